//! Which tensor gets which type: bits go where they save most divergence.
//!
//! Two measurements make the estimate. *How much does a relative error of a tensor's output matter?* Tensors of one kind in
//! neighbouring layers get noise, and the divergence of the predictions is measured: a share of it for each unit of noise power
//! relative to the signal's. *What error does each type leave?* A sample of rows is rounded to every type in question, by
//! the method and under the Gram matrix that the whole tensor will be rounded with. The product of the two is what a type costs a
//! tensor, in nats; divergences of small errors add up. The allocation is the knapsack's greedy one over the lower convex hull of
//! each tensor's (bytes, nats), which is optimal but for the last tensor that fits.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::f16;
use ondine_kernels::{Isa, TensorType, ThreadPool, dequantize};
use ondine_runtime::backend::LoadOptions;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::fidelity::divergence;
use ondine_runtime::gguf::{ModelFile, TensorInfo};
use ondine_runtime::{Limits, Model};

use crate::CompressError;
use crate::calibrate::Windows;
use crate::comparison::Scored;
use crate::format::{Effort, Encoder};
use crate::gptq;
use crate::linear_algebra::Factor;
use crate::quantize::{
    Compensation, Method, QuantizeOptions, Worker, bytes_as, importance_of, is_matrix, padded,
    plan, with_rows, write_model,
};

/// What the model must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Bytes of the file at most.
    FileBytes(u64),
    /// Bits of an element at most, on average over all tensors.
    BitsPerWeight(f64),
    /// Estimated mean divergence at most, nats.
    Divergence(f64),
}

/// The types that were chosen.
#[derive(Debug, Clone, Default)]
pub struct Allocation {
    /// By tensor name.
    pub types: HashMap<String, TensorType>,
    /// What the chosen types are estimated to cost in all, nats.
    pub divergence: f64,
    /// What was measured, tensor by tensor.
    pub tensors: Vec<TensorCosts>,
}

/// What a tensor's choices cost.
#[derive(Debug, Clone)]
pub struct TensorCosts {
    /// Its name.
    pub name: String,
    /// Nats for each unit of noise power relative to the signal's.
    pub sensitivity: f64,
    /// Each type with its bytes and its estimated cost in nats, smallest first, as far as more bytes cost less.
    pub choices: Vec<(TensorType, u64, f64)>,
}

/// Types to choose from, where rows fill their blocks.
const TYPES: [TensorType; 13] = [
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::IQ4_XS,
    TensorType::MXFP4,
    TensorType::IQ4_NL,
    TensorType::Q4_K,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_K,
    TensorType::Q5_1,
    TensorType::Q6_K,
    TensorType::Q8_0,
    TensorType::F16,
];
/// Rows of a tensor that are rounded to each type.
const SAMPLE: usize = 64;
/// Tokens that the Gram matrices of the estimate are made of.
const SAMPLE_TOKENS: usize = 4096;
/// Groups of neighbouring layers whose tensors of one kind are perturbed together.
const LAYER_GROUPS: usize = 6;
/// Tokens of a window whose predictions are compared; those of its second half.
const WINDOW: usize = 128;
/// Bytes of reference predictions that are kept.
const PREDICTIONS: usize = 256 << 20;

/// Chooses a type for each matrix of `model` that `options` leave open, so that `target` holds. A copy of the model is
/// kept at `scratch` meanwhile.
///
/// # Errors
/// When the model cannot be computed, or no choice meets the target; [`CompressError::Interrupted`] when `progress` says no.
pub fn allocate(
    model: &Model,
    options: &QuantizeOptions<'_>,
    windows: &Windows,
    target: Target,
    scratch: &Path,
    progress: &mut dyn FnMut(&str, usize, usize) -> bool,
) -> Result<Allocation, CompressError> {
    let file = model.file();
    let open: Vec<&TensorInfo> = file
        .tensors()
        .iter()
        .filter(|tensor| is_open(tensor, options))
        .collect();
    let worker = Worker {
        pool: ThreadPool::new(options.threads.max(1)),
        isa: Isa::detect(),
    };
    let few = few(windows);
    let mut sampling = options.clone();
    if let Method::Gptq { windows, .. } = &mut sampling.method {
        *windows = &few;
    }
    let costs = relative_costs(file, &sampling, &open, &worker, progress)?;
    let sensitivities = sensitivities(model, &open, &costs, windows, &worker, scratch, progress)?;
    let mut tensors = Vec::with_capacity(open.len());
    for (tensor, costs) in open.iter().zip(&costs) {
        let sensitivity = sensitivities[&tensor.name];
        let mut choices = Vec::new();
        for (ty, cost) in &costs.types {
            choices.push((*ty, bytes_as(tensor, *ty)?, sensitivity * cost));
        }
        tensors.push(TensorCosts {
            name: tensor.name.clone(),
            sensitivity,
            choices: hull(choices),
        });
    }
    let fixed = fixed_bytes(file, options, &open)?;
    let budget = match target {
        Target::FileBytes(bytes) => Budget::Bytes(bytes.saturating_sub(fixed.file)),
        Target::BitsPerWeight(bits) => {
            let bytes = (bits * fixed.elements as f64 / 8.0) as u64;
            Budget::Bytes(bytes.saturating_sub(fixed.tensors))
        }
        Target::Divergence(nats) => Budget::Nats(nats),
    };
    choose(tensors, budget)
}

/// As many windows as the estimate needs, spread over all.
fn few(windows: &Windows) -> Windows {
    let count = windows.iter().count();
    let kept = count.min(SAMPLE_TOKENS.div_ceil(windows.length.max(1)));
    let chosen = (0..kept).filter_map(|index| windows.iter().nth(index * count / kept));
    Windows {
        tokens: chosen.flatten().copied().collect(),
        length: windows.length,
    }
}

fn is_open(tensor: &TensorInfo, options: &QuantizeOptions<'_>) -> bool {
    is_matrix(tensor)
        && !options.types.contains_key(&tensor.name)
        && !options.keep.iter().any(|part| tensor.name.contains(part))
        && tensor.columns().is_multiple_of(32)
}

/// Bytes that no choice changes.
struct Fixed {
    /// Of the file.
    file: u64,
    /// Of tensors.
    tensors: u64,
    /// Elements of all tensors.
    elements: u64,
}

fn fixed_bytes(
    file: &ModelFile,
    options: &QuantizeOptions<'_>,
    open: &[&TensorInfo],
) -> Result<Fixed, CompressError> {
    let plan = plan(file, options)?;
    let mut out = Fixed {
        file: crate::quantize::header(file, options.tensor_type, &plan)?
            .finish()
            .len() as u64,
        tensors: 0,
        elements: 0,
    };
    for (tensor, ty) in file.tensors().iter().zip(&plan) {
        out.elements += tensor.columns() * tensor.rows();
        if !open.iter().any(|open| open.name == tensor.name) {
            let bytes = bytes_as(tensor, *ty)?;
            out.tensors += bytes;
            out.file += padded(bytes);
        }
    }
    Ok(out)
}

enum Budget {
    Bytes(u64),
    Nats(f64),
}

/// Upgrades in the order of nats saved for each byte.
fn choose(tensors: Vec<TensorCosts>, budget: Budget) -> Result<Allocation, CompressError> {
    let mut chosen = vec![0usize; tensors.len()];
    let mut bytes: u64 = tensors.iter().map(|t| padded(t.choices[0].1)).sum();
    let mut nats: f64 = tensors.iter().map(|t| t.choices[0].2).sum();
    if let Budget::Bytes(most) = budget
        && bytes > most
    {
        return Err(CompressError::Invalid(format!(
            "the smallest types leave matrices of {bytes} bytes where the target leaves room for {most}; ask for a larger file"
        )));
    }
    let mut upgrades: Vec<(f64, usize, usize)> = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        for step in 1..tensor.choices.len() {
            let (less, more) = (&tensor.choices[step - 1], &tensor.choices[step]);
            let gain = (less.2 - more.2) / (more.1 - less.1).max(1) as f64;
            upgrades.push((gain, index, step));
        }
    }
    // Within a tensor the hull's gains fall, so that each step comes after the one before it.
    upgrades.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    for (_, index, step) in upgrades {
        if matches!(budget, Budget::Nats(most) if nats <= most) {
            break;
        }
        let choices = &tensors[index].choices;
        let more = padded(choices[step].1) - padded(choices[step - 1].1);
        let fits = match budget {
            Budget::Bytes(most) => bytes + more <= most,
            Budget::Nats(_) => true,
        };
        if chosen[index] + 1 == step && fits {
            chosen[index] = step;
            bytes += more;
            nats += choices[step].2 - choices[step - 1].2;
        }
    }
    if let Budget::Nats(most) = budget
        && nats > most
    {
        return Err(CompressError::Invalid(format!(
            "even the largest types are estimated to cost {nats:.2e} nats, above the target of {most:.2e}; ask for more"
        )));
    }
    let types = tensors.iter().zip(&chosen);
    Ok(Allocation {
        types: types
            .map(|(tensor, step)| (tensor.name.clone(), tensor.choices[*step].0))
            .collect(),
        divergence: nats.max(0.0),
        tensors,
    })
}

/// The choices on the lower convex hull, smallest first; larger ones that cost no less are left out.
fn hull(mut choices: Vec<(TensorType, u64, f64)>) -> Vec<(TensorType, u64, f64)> {
    choices.sort_by(|a, b| a.1.cmp(&b.1).then(a.2.total_cmp(&b.2)));
    let mut out: Vec<(TensorType, u64, f64)> = Vec::new();
    for choice in choices {
        if out.last().is_some_and(|last| choice.2 >= last.2) {
            continue;
        }
        while let [.., a, b] = out.as_slice() {
            let slope = |from: &(TensorType, u64, f64), to: &(TensorType, u64, f64)| {
                (from.2 - to.2) / (to.1 - from.1).max(1) as f64
            };
            if slope(a, b) > slope(b, &choice) {
                break;
            }
            out.pop();
        }
        out.push(choice);
    }
    out
}

/// Errors of a tensor's output relative to the output, as powers.
struct RelativeCosts {
    /// Of each type.
    types: Vec<(TensorType, f64)>,
    /// Of the noise.
    noise: f64,
}

/// Rounds a sample of each tensor's rows to every type.
fn relative_costs(
    file: &ModelFile,
    options: &QuantizeOptions<'_>,
    open: &[&TensorInfo],
    worker: &Worker,
    progress: &mut dyn FnMut(&str, usize, usize) -> bool,
) -> Result<Vec<RelativeCosts>, CompressError> {
    let names: std::collections::HashSet<&str> = open.iter().map(|t| t.name.as_str()).collect();
    // Every tensor that is open may be rounded by compensation.
    let types = file
        .tensors()
        .iter()
        .map(|tensor| match names.contains(tensor.name.as_str()) {
            true => TensorType::Q4_0,
            false => TensorType::F32,
        });
    let types: Vec<TensorType> = types.collect();
    let mut compensation = Compensation::new(file, options, &types);
    let mut out = Vec::with_capacity(open.len());
    for (index, tensor) in open.iter().enumerate() {
        let factor = compensation.factor(worker, tensor, progress)?;
        let weights = importance_of(options.importance, tensor);
        let sample = Sample::read(file, tensor)?;
        out.push(sample.costs(tensor, options, factor.as_deref(), &weights, worker)?);
        if !progress("round samples", index + 1, open.len()) {
            return Err(CompressError::Interrupted);
        }
    }
    Ok(out)
}

/// Rows spread over a tensor.
struct Sample {
    /// Which ones.
    rows: Vec<usize>,
    /// [rows, columns].
    x: Vec<f32>,
    /// Rows of each of the tensor's matrices.
    rows_of_matrix: usize,
}

impl Sample {
    fn read(file: &ModelFile, tensor: &TensorInfo) -> Result<Self, CompressError> {
        let (columns, rows) = (tensor.columns() as usize, tensor.rows() as usize);
        let count = rows.min(SAMPLE);
        let chosen: Vec<usize> = (0..count).map(|index| index * rows / count).collect();
        let mut x = vec![0.0; count * columns];
        for (row, x) in chosen.iter().zip(x.chunks_exact_mut(columns)) {
            with_rows(file, tensor, *row..row + 1, |raw| {
                dequantize(tensor.tensor_type, raw, x)
            })?
            .map_err(|source| CompressError::Tensor {
                tensor: tensor.name.clone(),
                source,
            })?;
        }
        Ok(Sample {
            rows: chosen,
            x,
            rows_of_matrix: tensor.shape.get(1).map_or(1, |rows| *rows as usize),
        })
    }

    fn costs(
        &self,
        tensor: &TensorInfo,
        options: &QuantizeOptions<'_>,
        factor: Option<&Factor>,
        weights: &[Vec<f32>],
        worker: &Worker,
    ) -> Result<RelativeCosts, CompressError> {
        let columns = tensor.columns() as usize;
        let effort = match options.method {
            Method::Nearest => Effort::Nearest,
            _ => Effort::Search,
        };
        let seed = seed_of(&tensor.name);
        let types: Vec<TensorType> = TYPES
            .into_iter()
            .filter(|ty| columns.is_multiple_of(ty.block_len()))
            .collect();
        let encoders = types
            .iter()
            .map(|ty| Encoder::new(*ty, effort, worker.isa))
            .collect::<Result<Vec<_>, _>>()?;
        // Sums over the sample: of the signal, the noise, and each type's error.
        let sums = Mutex::new(vec![0.0f64; 2 + types.len()]);
        let failed: Mutex<Option<CompressError>> = Mutex::new(None);
        let pieces = self.x.len().div_ceil(gptq::ROWS * columns);
        worker.pool.run(pieces, &|piece| {
            let rows = piece * gptq::ROWS..self.rows.len().min((piece + 1) * gptq::ROWS);
            let x = &self.x[rows.start * columns..rows.end * columns];
            let mut found = vec![0.0f64; 2 + types.len()];
            let mut noisy = vec![0.0f32; columns];
            let power = |row: usize, e: &[f32]| match factor {
                Some(factor) => factor.power(e),
                None => {
                    let matrix = self.rows[rows.start + row] / self.rows_of_matrix;
                    let weights = weights.get(matrix).unwrap_or(&weights[0]);
                    e.iter()
                        .zip(weights)
                        .map(|(e, w)| f64::from(e * e * w))
                        .sum()
                }
            };
            for (row, x) in x.chunks_exact(columns).enumerate() {
                found[0] += power(row, x);
                noise(x, seed, self.rows[rows.start + row], &mut noisy);
                found[1] += power(row, &noisy);
            }
            let mut back = vec![0.0f32; x.len()];
            for (found, encoder) in found[2..].iter_mut().zip(&encoders) {
                let ty = encoder.tensor_type();
                let row_bytes = ty.row_bytes(columns).unwrap_or(0);
                let mut bytes = vec![0u8; rows.len() * row_bytes];
                match factor {
                    Some(factor) if encoder.format().is_some() => {
                        gptq::round_rows(encoder, factor, x, &mut bytes);
                    }
                    _ => {
                        let each = x
                            .chunks_exact(columns)
                            .zip(bytes.chunks_exact_mut(row_bytes));
                        for (row, (x, bytes)) in each.enumerate() {
                            let matrix = self.rows[rows.start + row] / self.rows_of_matrix;
                            let weights = weights.get(matrix).unwrap_or(&weights[0]);
                            encoder.rows(x, columns, weights, bytes);
                        }
                    }
                }
                if let Err(source) = dequantize(ty, &bytes, &mut back) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(CompressError::Tensor {
                            tensor: tensor.name.clone(),
                            source,
                        });
                    return;
                }
                for (back, x) in back.iter_mut().zip(x) {
                    *back -= x;
                }
                *found = back
                    .chunks_exact(columns)
                    .enumerate()
                    .map(|(row, e)| power(row, e))
                    .sum();
            }
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            for (sum, found) in sums.iter_mut().zip(&found) {
                *sum += found;
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !sums.iter().all(|sum| sum.is_finite()) {
            return Err(CompressError::Invalid(format!(
                "tensor `{}` has numbers that are not finite; fetch or train the model again",
                tensor.name
            )));
        }
        let signal = sums[0].max(f64::MIN_POSITIVE);
        Ok(RelativeCosts {
            types: types
                .into_iter()
                .zip(sums[2..].iter().map(|sum| sum / signal))
                .collect(),
            noise: sums[1] / signal,
        })
    }
}

/// Noise of the size of four-bit rounding: up to half a step of sixteen levels over each 32 numbers.
fn noise(x: &[f32], seed: u64, row: usize, out: &mut [f32]) {
    let mut state = seed ^ (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (x, out) in x.chunks(32).zip(out.chunks_mut(32)) {
        let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for out in out {
            // SplitMix64 (Steele et al. 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let uniform = ((z >> 40) as f32 / (1u64 << 24) as f32) - 0.5;
            *out = uniform * most / 7.5;
        }
    }
}

fn seed_of(name: &str) -> u64 {
    // FNV-1a.
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Nats for each unit of relative noise power, for each tensor.
fn sensitivities(
    model: &Model,
    open: &[&TensorInfo],
    costs: &[RelativeCosts],
    windows: &Windows,
    worker: &Worker,
    scratch: &Path,
    progress: &mut dyn FnMut(&str, usize, usize) -> bool,
) -> Result<HashMap<String, f64>, CompressError> {
    let groups = groups(model, open);
    let all = groups.len() + 1;
    if !progress("measure", 0, all) {
        return Err(CompressError::Interrupted);
    }
    let noisy = NoisyCopy::write(model.file(), open, worker, scratch)?;
    let windows = short_windows(windows, model.tokenizer().vocab_len());
    let reference = predictions(&noisy.path, &windows)?;
    let mut out = HashMap::new();
    for (index, group) in groups.iter().enumerate() {
        if !progress("measure", index + 1, all) {
            return Err(CompressError::Interrupted);
        }
        for tensor in group {
            noisy.rewrite(model.file(), open[*tensor], worker, true)?;
        }
        let found = distance(&noisy.path, &windows, &reference)?;
        for tensor in group {
            noisy.rewrite(model.file(), open[*tensor], worker, false)?;
        }
        let noise: f64 = group.iter().map(|tensor| costs[*tensor].noise).sum();
        let sensitivity = found / noise.max(f64::MIN_POSITIVE);
        for tensor in group {
            out.insert(open[*tensor].name.clone(), sensitivity);
        }
    }
    Ok(out)
}

/// Tensors of one kind in neighbouring layers, as indices into `open`; the first and the last layer are on their own.
fn groups(model: &Model, open: &[&TensorInfo]) -> Vec<Vec<usize>> {
    let layers = model.spec().layers.len();
    let mut out: Vec<((String, usize), Vec<usize>)> = Vec::new();
    for (index, tensor) in open.iter().enumerate() {
        let layer = tensor.name.strip_prefix("blk.").and_then(|rest| {
            let (layer, kind) = rest.split_once('.')?;
            Some((layer.parse::<usize>().ok()?, kind))
        });
        let key = match layer {
            None => (tensor.name.clone(), 0),
            Some((layer, kind)) => {
                let group = match layer {
                    0 => 0,
                    last if last + 1 == layers => LAYER_GROUPS - 1,
                    _ => 1 + (layer - 1) * (LAYER_GROUPS - 2) / layers.saturating_sub(2).max(1),
                };
                (kind.to_owned(), group)
            }
        };
        match out.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(index),
            None => out.push((key, vec![index])),
        }
    }
    out.into_iter().map(|(_, group)| group).collect()
}

/// A copy of a model whose open matrices are F16, to be overwritten with noise.
struct NoisyCopy {
    path: PathBuf,
}

impl Drop for NoisyCopy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl NoisyCopy {
    fn write(
        file: &ModelFile,
        open: &[&TensorInfo],
        worker: &Worker,
        path: &Path,
    ) -> Result<Self, CompressError> {
        let types = file.tensors().iter().map(|tensor| {
            match open.iter().any(|open| open.name == tensor.name) {
                true => TensorType::F16,
                false => tensor.tensor_type,
            }
        });
        let copy = NoisyCopy {
            path: path.to_owned(),
        };
        write_model(file, &types.collect::<Vec<_>>(), worker, path)?;
        Ok(copy)
    }

    /// Writes a tensor's numbers, with noise or without.
    fn rewrite(
        &self,
        file: &ModelFile,
        tensor: &TensorInfo,
        worker: &Worker,
        noisy: bool,
    ) -> Result<(), CompressError> {
        let failed = |source| CompressError::Io {
            path: self.path.display().to_string(),
            source,
        };
        let copy = ModelFile::open(&self.path, &Limits::default())?;
        let offset = copy.tensor(&tensor.name).map_or(0, |copy| copy.offset);
        drop(copy);
        let mut out = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .map_err(failed)?;
        out.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let (columns, rows) = (tensor.columns() as usize, tensor.rows() as usize);
        let slab = ((4 << 20) / columns).max(1);
        let seed = seed_of(&tensor.name);
        let mut bytes = Vec::new();
        for first in (0..rows).step_by(slab) {
            let range = first..rows.min(first + slab);
            bytes.resize(range.len() * columns * 2, 0u8);
            let error = Mutex::new(None);
            with_rows(file, tensor, range.clone(), |raw| {
                let row_bytes = raw.len() / range.len();
                worker
                    .pool
                    .for_each_chunk_mut(&mut bytes, 2 * columns, |row, out| {
                        let mut x = vec![0.0; columns];
                        let raw = &raw[row * row_bytes..(row + 1) * row_bytes];
                        if let Err(source) = dequantize(tensor.tensor_type, raw, &mut x) {
                            *error.lock().unwrap_or_else(PoisonError::into_inner) =
                                Some(CompressError::Tensor {
                                    tensor: tensor.name.clone(),
                                    source,
                                });
                        }
                        let mut added = vec![0.0; columns];
                        if noisy {
                            noise(&x, seed, range.start + row, &mut added);
                        }
                        let numbers = x.iter().zip(&added).zip(out.as_chunks_mut::<2>().0);
                        for ((x, added), out) in numbers {
                            *out = f16::from_f32(x + added).to_le_bytes();
                        }
                    });
            })?;
            if let Some(error) = error.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(error);
            }
            out.write_all(&bytes).map_err(failed)?;
        }
        Ok(())
    }
}

/// The beginnings of some windows, as many as predictions may be kept of.
fn short_windows(windows: &Windows, vocabulary: usize) -> Windows {
    let length = windows.length.min(WINDOW);
    let scored = (length - length / 2).max(1);
    let most = (PREDICTIONS / (2 * scored * vocabulary.max(1))).clamp(2, 16);
    let count = windows.iter().count();
    let kept = count.min(most);
    let tokens = (0..kept).flat_map(|index| {
        let window = windows.iter().nth(index * count / kept).unwrap_or(&[]);
        window[..length].to_vec()
    });
    Windows {
        tokens: tokens.collect(),
        length,
    }
}

/// Predictions of one model, [positions][vocabulary].
type Predictions = Vec<Vec<f16>>;

fn predictions(path: &Path, windows: &Windows) -> Result<Predictions, CompressError> {
    let mut out = Vec::new();
    each_position(path, windows, &mut |logits| {
        out.extend(logits.iter().map(|logits| {
            // Shifted, so that f16 holds what counts.
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let shifted = logits.iter().map(|logit| f16::from_f32(logit - most));
            shifted.collect::<Vec<_>>()
        }));
    })?;
    Ok(out)
}

/// Mean divergence of the model at `path` from predictions kept.
fn distance(path: &Path, windows: &Windows, kept: &Predictions) -> Result<f64, CompressError> {
    let pool = ThreadPool::new(ondine_runtime::backend::cpu::available_threads());
    let (mut sum, mut at) = (0.0, 0);
    each_position(path, windows, &mut |logits| {
        let found = Mutex::new(vec![0.0; logits.len()]);
        pool.run(logits.len(), &|index| {
            let Some(reference) = kept.get(at + index) else {
                return;
            };
            let reference: Vec<f32> = reference.iter().map(|x| x.to_f32()).collect();
            let apart = divergence(&reference, logits[index]);
            found.lock().unwrap_or_else(PoisonError::into_inner)[index] = apart;
        });
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        sum += found.iter().sum::<f64>();
        at += logits.len();
    })?;
    Ok(sum / at.max(1) as f64)
}

fn each_position(
    path: &Path,
    windows: &Windows,
    take: &mut dyn FnMut(&[&[f32]]),
) -> Result<(), CompressError> {
    let model = Model::open(path, &Limits::default())?;
    let options = LoadOptions {
        context: Some(windows.length),
        ..LoadOptions::default()
    };
    let mut decoder = model.load(&CpuBackend::with_isa(Isa::detect()), &options)?;
    for tokens in windows.iter() {
        let mut scored = Scored::new(decoder.as_mut(), tokens);
        let computed: Result<(), CompressError> = (|| {
            while let Some(part) = scored.next(decoder.as_mut())? {
                let each: Vec<&[f32]> = (0..part.count()).map(|i| part.position(i)).collect();
                take(&each);
            }
            Ok(())
        })();
        decoder.stop(scored.sequence);
        computed?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use TensorType::{Q2_K, Q4_K, Q5_K, Q6_K, Q8_0};

    #[test]
    fn the_hull_leaves_out_what_never_pays() {
        let choices = vec![
            (Q8_0, 80, 0.0),
            (Q2_K, 20, 1.0),
            (Q4_K, 40, 0.9), // above the line from 20 to 50
            (Q5_K, 50, 0.1),
            (Q6_K, 60, 0.2), // larger and worse
        ];
        let found: Vec<_> = hull(choices).iter().map(|choice| choice.0).collect();
        assert_eq!(found, [Q2_K, Q5_K, Q8_0]);
    }

    fn two() -> Vec<TensorCosts> {
        let tensor = |name: &str, sensitivity: f64| TensorCosts {
            name: name.into(),
            sensitivity,
            choices: vec![
                (Q2_K, 32, sensitivity),
                (Q4_K, 64, 0.2 * sensitivity),
                (Q8_0, 128, 0.0),
            ],
        };
        vec![tensor("a", 1.0), tensor("b", 0.05)]
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let found = choose(two(), Budget::Bytes(160)).unwrap();
        assert_eq!((found.types["a"], found.types["b"]), (Q8_0, Q2_K));
        assert!((found.divergence - 0.05).abs() < 1e-9);
        let found = choose(two(), Budget::Nats(0.3)).unwrap();
        assert_eq!((found.types["a"], found.types["b"]), (Q4_K, Q2_K));
        let found = choose(two(), Budget::Nats(0.02)).unwrap();
        assert_eq!((found.types["a"], found.types["b"]), (Q8_0, Q4_K));
        assert!(choose(two(), Budget::Bytes(63)).is_err());
    }
}
