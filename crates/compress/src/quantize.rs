//! Writes a model with other tensor types, tensor by tensor and in bounded memory.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ondine_kernels::{Isa, TensorType, ThreadPool, dequantize};
use ondine_runtime::Model;
use ondine_runtime::gguf::{HeaderWriter, ModelFile, TensorInfo};

use crate::CompressError;
use crate::calibrate::{Windows, grams};
use crate::format::{Effort, Encoder};
use crate::gptq;
use crate::imatrix::{Importance, ImportanceMatrix};
use crate::linear_algebra::{Factor, pieces};

/// How codes are chosen.
#[derive(Clone)]
pub enum Method<'a> {
    /// Round to nearest under the scales that the extremes give: fast.
    Nearest,
    /// Scales of the least squared error, weighted by the importance matrix where there is one.
    Search,
    /// Error-compensating rounding by the Gram matrices of the inputs.
    Gptq {
        /// The model that is quantised, for its inputs.
        model: &'a Model,
        /// What it reads.
        windows: &'a Windows,
        /// Bytes of Gram matrices that are in memory at once.
        memory: u64,
    },
}

/// What is written.
#[derive(Clone)]
pub struct QuantizeOptions<'a> {
    /// The type of most matrices.
    pub tensor_type: TensorType,
    /// Whether the embedding and the output head get that type too; they get six bits or more otherwise.
    pub pure: bool,
    /// Tensors whose name contains one of these keep their type.
    pub keep: Vec<String>,
    /// Types of tensors by name, before everything else.
    pub types: HashMap<String, TensorType>,
    /// Importance of columns.
    pub importance: Option<&'a ImportanceMatrix>,
    /// How codes are chosen.
    pub method: Method<'a>,
    /// Threads.
    pub threads: usize,
}

/// What became of a model.
#[derive(Debug, Clone)]
pub struct QuantizeReport {
    /// Bytes of all tensors before.
    pub bytes_before: u64,
    /// Bytes of all tensors now.
    pub bytes: u64,
    /// Elements of all tensors.
    pub elements: u64,
    /// Each tensor, in file order.
    pub tensors: Vec<TensorReport>,
}

/// What became of a tensor.
#[derive(Debug, Clone)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its type before.
    pub before: TensorType,
    /// Its type now.
    pub now: TensorType,
    /// Its bytes now.
    pub bytes: u64,
}

impl QuantizeReport {
    /// Bits of an element, on average.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.elements.max(1) as f64
    }
}

/// Writes `file` to `out` as `options` say. `progress` hears what is done, of how much, and says whether to go on.
///
/// # Errors
/// When a tensor cannot be read or written, or `progress` says no; `out` is then as it was.
pub fn quantize(
    file: &ModelFile,
    out: &Path,
    options: &QuantizeOptions<'_>,
    progress: &mut dyn FnMut(&str, usize, usize) -> bool,
) -> Result<QuantizeReport, CompressError> {
    let plan = plan(file, options)?;
    let header = header(file, options.tensor_type, &plan)?;
    let mut report = QuantizeReport {
        bytes_before: 0,
        bytes: 0,
        elements: 0,
        tensors: Vec::new(),
    };
    for (tensor, ty) in file.tensors().iter().zip(&plan) {
        let bytes = bytes_as(tensor, *ty)?;
        report.bytes_before += tensor.bytes;
        report.bytes += bytes;
        report.elements += tensor.columns() * tensor.rows();
        report.tensors.push(TensorReport {
            name: tensor.name.clone(),
            before: tensor.tensor_type,
            now: *ty,
            bytes,
        });
    }
    let worker = Worker {
        pool: ThreadPool::new(options.threads.max(1)),
        isa: Isa::detect(),
    };
    let all: u64 = report.bytes_before;
    let mut done = 0;
    let mut compensation = Compensation::new(file, options, &plan);
    write_atomically(out, |writer| {
        let failed = |error: io::Error| CompressError::Io {
            path: out.display().to_string(),
            source: error,
        };
        writer.write_all(&header.finish()).map_err(failed)?;
        for (tensor, ty) in file.tensors().iter().zip(&plan) {
            let factor = compensation.factor(&worker, tensor, progress)?;
            let importance = options
                .importance
                .and_then(|all| all.tensors.get(&tensor.name));
            let effort = match options.method {
                Method::Nearest => Effort::Nearest,
                _ => Effort::Search,
            };
            let how = How {
                effort,
                importance,
                factor: factor.as_deref(),
            };
            worker.tensor(file, tensor, *ty, &how, &mut |bytes, read| {
                writer.write_all(bytes).map_err(failed)?;
                let so_far = ((done + read) >> 10) as usize;
                match progress("quantise", so_far, (all >> 10) as usize) {
                    true => Ok(()),
                    false => Err(CompressError::Interrupted),
                }
            })?;
            done += tensor.bytes;
            let length = bytes_as(tensor, *ty)?;
            let padding = (padded(length) - length) as usize;
            writer.write_all(&[0; 32][..padding]).map_err(failed)?;
        }
        Ok(())
    })?;
    Ok(report)
}

/// The header of `file` with other types.
pub(crate) fn header(
    file: &ModelFile,
    mostly: TensorType,
    plan: &[TensorType],
) -> Result<HeaderWriter, CompressError> {
    let mut header = HeaderWriter::new();
    header.copy(&file.metadata, |key| {
        !key.starts_with("split.")
            && !matches!(
                key,
                "general.alignment" | "general.file_type" | "general.quantization_version"
            )
    });
    header.u32("general.quantization_version", 2);
    header.u32("general.file_type", file_type(mostly));
    for (tensor, ty) in file.tensors().iter().zip(plan) {
        let bytes = bytes_as(tensor, *ty)?;
        header.tensor(&tensor.name, &tensor.shape, *ty as u32, bytes);
    }
    Ok(header)
}

/// Writes `file` with the types of `plan`, each number rounded to the nearest.
pub(crate) fn write_model(
    file: &ModelFile,
    plan: &[TensorType],
    worker: &Worker,
    out: &Path,
) -> Result<(), CompressError> {
    let header = header(file, TensorType::F16, plan)?;
    write_atomically(out, |writer| {
        let failed = |source| CompressError::Io {
            path: out.display().to_string(),
            source,
        };
        writer.write_all(&header.finish()).map_err(failed)?;
        for (tensor, ty) in file.tensors().iter().zip(plan) {
            let how = How {
                effort: Effort::Nearest,
                importance: None,
                factor: None,
            };
            worker.tensor(file, tensor, *ty, &how, &mut |bytes, _| {
                writer.write_all(bytes).map_err(failed)
            })?;
            let length = bytes_as(tensor, *ty)?;
            let padding = (padded(length) - length) as usize;
            writer.write_all(&[0; 32][..padding]).map_err(failed)?;
        }
        Ok(())
    })
}

/// Bytes of a tensor in the file, up to where the next one begins.
pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(32)
}

/// Writes a file beside `path` and renames it when it is whole.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    let failed = |error: io::Error| CompressError::Io {
        path: path.display().to_string(),
        source: error,
    };
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = Path::new(&partial);
    let written = (|| {
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(partial).map_err(failed)?);
        write(&mut writer)?;
        writer
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        std::fs::rename(partial, path).map_err(failed)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(partial);
    }
    written
}

/// The type of each tensor.
pub(crate) fn plan(
    file: &ModelFile,
    options: &QuantizeOptions<'_>,
) -> Result<Vec<TensorType>, CompressError> {
    Encoder::new(options.tensor_type, Effort::Nearest, Isa::Scalar)?;
    let head = match file.tensor("output.weight") {
        Some(_) => "output.weight",
        None => "token_embd.weight",
    };
    let types = file.tensors().iter().map(|tensor| {
        if let Some(ty) = options.types.get(&tensor.name) {
            return *ty;
        }
        let kept = options.keep.iter().any(|part| tensor.name.contains(part));
        if kept || !is_matrix(tensor) {
            return tensor.tensor_type;
        }
        let wanted = match tensor.name == head && !options.pure {
            true => at_least_six_bits(options.tensor_type),
            false => options.tensor_type,
        };
        fitting(wanted, tensor.columns() as usize)
    });
    Ok(types.collect())
}

/// Whether a tensor is a matrix that products read, and not what is small and sensitive.
pub(crate) fn is_matrix(tensor: &TensorInfo) -> bool {
    const NOT: [&str; 5] = [
        "norm",
        "ffn_gate_inp",
        "position_embd",
        "conv",
        "token_types",
    ];
    tensor.shape.len() >= 2
        && tensor.rows() > 1
        && tensor.name.ends_with(".weight")
        && !NOT.iter().any(|part| tensor.name.contains(part))
}

fn at_least_six_bits(ty: TensorType) -> TensorType {
    match 8 * ty.block_bytes() >= 6 * ty.block_len() {
        true => ty,
        false => TensorType::Q6_K,
    }
}

/// `ty`, or the type of about as many bits whose blocks fit rows of `columns`.
pub(crate) fn fitting(ty: TensorType, columns: usize) -> TensorType {
    use TensorType::*;
    if columns.is_multiple_of(ty.block_len()) {
        return ty;
    }
    if !columns.is_multiple_of(32) {
        return F16;
    }
    match ty {
        Q5_K => Q5_0,
        Q6_K => Q8_0,
        _ => IQ4_NL,
    }
}

pub(crate) fn bytes_as(tensor: &TensorInfo, ty: TensorType) -> Result<u64, CompressError> {
    let columns = tensor.columns() as usize;
    let row = ty.row_bytes(columns).ok_or_else(|| CompressError::Tensor {
        tensor: tensor.name.clone(),
        source: ondine_kernels::KernelError::PartialBlock { ty, columns },
    })?;
    Ok(row as u64 * tensor.rows())
}

/// llama.cpp's number for a file that is mostly of this type.
fn file_type(ty: TensorType) -> u32 {
    use TensorType::*;
    match ty {
        F32 => 0,
        F16 => 1,
        Q4_0 => 2,
        Q4_1 => 3,
        Q8_0 => 7,
        Q5_0 => 8,
        Q5_1 => 9,
        Q2_K => 10,
        Q3_K => 12,
        Q4_K => 15,
        Q5_K => 17,
        Q6_K => 18,
        IQ4_NL => 25,
        IQ4_XS => 30,
        BF16 => 32,
        TQ1_0 => 36,
        TQ2_0 => 37,
        MXFP4 => 38,
    }
}

/// How one tensor is rounded.
pub(crate) struct How<'a> {
    pub(crate) effort: Effort,
    pub(crate) importance: Option<&'a Importance>,
    pub(crate) factor: Option<&'a Factor>,
}

/// Gets blocks, and how many bytes of the tensor were read so far.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&[u8], u64) -> Result<(), CompressError>;

/// Threads that quantise.
pub(crate) struct Worker {
    pub(crate) pool: ThreadPool,
    pub(crate) isa: Isa,
}

/// Elements of a slab: what is read, quantised and written together.
const SLAB: usize = 4 << 20;
/// Elements that a thread takes at a time.
const PIECE: usize = 64 << 10;

impl Worker {
    /// Quantises a tensor slab by slab; `take` gets the blocks and how many bytes of the tensor were read so far.
    pub(crate) fn tensor(
        &self,
        file: &ModelFile,
        tensor: &TensorInfo,
        ty: TensorType,
        how: &How<'_>,
        take: Take<'_>,
    ) -> Result<(), CompressError> {
        let (columns, rows) = (tensor.columns() as usize, tensor.rows() as usize);
        let row_bytes = row_bytes(tensor)?;
        let slab = (SLAB / columns.max(1)).max(1).next_multiple_of(gptq::ROWS);
        let mut out = Vec::new();
        for first in (0..rows).step_by(slab) {
            let range = first..rows.min(first + slab);
            let read = range.end as u64 * row_bytes as u64;
            with_rows(file, tensor, range.clone(), |raw| {
                if ty == tensor.tensor_type && how.factor.is_none() {
                    // What is of the type already loses nothing by being copied.
                    out.clear();
                    out.extend_from_slice(raw);
                    return Ok(());
                }
                self.rows(tensor, ty, how, range, raw, &mut out)
            })??;
            take(&out, read)?;
        }
        Ok(())
    }

    /// Quantises rows of a tensor, given as they are stored.
    fn rows(
        &self,
        tensor: &TensorInfo,
        ty: TensorType,
        how: &How<'_>,
        range: Range<usize>,
        raw: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        let columns = tensor.columns() as usize;
        let rows_of_matrix = tensor.shape.get(1).map_or(1, |rows| *rows as usize);
        let failed = |source| CompressError::Tensor {
            tensor: tensor.name.clone(),
            source,
        };
        let encoder = Encoder::new(ty, how.effort, self.isa)?;
        let row_bytes = ty
            .row_bytes(columns)
            .ok_or_else(|| failed(ondine_kernels::KernelError::PartialBlock { ty, columns }))?;
        let raw_bytes = raw.len() / range.len().max(1);
        out.resize(range.len() * row_bytes, 0);
        let per_piece = match how.factor {
            Some(_) => gptq::ROWS,
            None => (PIECE / columns).max(1).min(rows_of_matrix),
        };
        let importance = weights(how.importance, columns);
        let error: Mutex<Option<CompressError>> = Mutex::new(None);
        let targets = pieces(out, per_piece * row_bytes);
        self.pool.run(targets.len(), &|piece| {
            let first = piece * per_piece;
            let out = targets.take(piece);
            let count = out.len() / row_bytes;
            let mut x = vec![0.0; count * columns];
            let raw = &raw[first * raw_bytes..(first + count) * raw_bytes];
            let mut run = || {
                dequantize(tensor.tensor_type, raw, &mut x).map_err(failed)?;
                if let Some(bad) = x.iter().position(|x| !x.is_finite()) {
                    return Err(CompressError::Invalid(format!(
                        "tensor `{}` has a number that is not finite in row {}; fetch or train the model again",
                        tensor.name,
                        range.start + first + bad / columns
                    )));
                }
                match how.factor {
                    Some(factor) if encoder.format().is_some() => {
                        gptq::round_rows(&encoder, factor, &x, out);
                    }
                    _ => {
                        for row in 0..count {
                            let matrix = (range.start + first + row) / rows_of_matrix;
                            let weights = importance.get(matrix).unwrap_or(&importance[0]);
                            let x = &x[row * columns..(row + 1) * columns];
                            let out = &mut out[row * row_bytes..(row + 1) * row_bytes];
                            encoder.rows(x, columns, weights, out);
                        }
                    }
                }
                Ok(())
            };
            if let Err(new) = run() {
                *error.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
            }
        });
        match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Weights of each matrix's columns.
fn weights(importance: Option<&Importance>, columns: usize) -> Vec<Vec<f32>> {
    match importance {
        Some(importance) if importance.columns == columns && !importance.counts.is_empty() => {
            let matrices = 0..importance.counts.len();
            matrices
                .map(|matrix| normalised(importance.mean(matrix)))
                .collect()
        }
        _ => vec![vec![1.0; columns]],
    }
}

/// Weights of each of a tensor's matrices' columns.
pub(crate) fn importance_of(all: Option<&ImportanceMatrix>, tensor: &TensorInfo) -> Vec<Vec<f32>> {
    let importance = all.and_then(|all| all.tensors.get(&tensor.name));
    weights(importance, tensor.columns() as usize)
}

/// Weights with a mean of one, and none so small that its column is forgotten.
fn normalised(mut weights: Vec<f32>) -> Vec<f32> {
    let mean = weights.iter().sum::<f32>() / weights.len().max(1) as f32;
    if mean.is_nan() || mean <= 0.0 {
        weights.fill(1.0);
        return weights;
    }
    for weight in &mut weights {
        *weight = *weight / mean + 1e-4;
    }
    weights
}

fn row_bytes(tensor: &TensorInfo) -> Result<usize, CompressError> {
    let columns = tensor.columns() as usize;
    let ty = tensor.tensor_type;
    ty.row_bytes(columns).ok_or_else(|| CompressError::Tensor {
        tensor: tensor.name.clone(),
        source: ondine_kernels::KernelError::PartialBlock { ty, columns },
    })
}

/// Shows the stored bytes of some rows, then gives their pages back.
pub(crate) fn with_rows<T>(
    file: &ModelFile,
    tensor: &TensorInfo,
    rows: Range<usize>,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, CompressError> {
    let row_bytes = row_bytes(tensor)? as u64;
    let source = file.source(tensor);
    let range =
        tensor.offset + rows.start as u64 * row_bytes..tensor.offset + rows.end as u64 * row_bytes;
    if let Some(all) = source.as_slice() {
        let out = read(&all[range.start as usize..range.end as usize]);
        source.release(range);
        return Ok(out);
    }
    let mut copy = vec![0; (range.end - range.start) as usize];
    source
        .read_at(range.start, &mut copy)
        .map_err(|error| CompressError::Io {
            path: source.name().to_owned(),
            source: error,
        })?;
    Ok(read(&copy))
}

/// The factors for error-compensating rounding, made for as many tensors at a time as memory allows.
pub(crate) struct Compensation<'a> {
    method: Method<'a>,
    /// Tensors that are rounded so, in file order, with their columns.
    tensors: Vec<(String, usize)>,
    /// Which tensor's input each one shares.
    site_of: HashMap<String, String>,
    made: HashMap<String, Arc<Vec<f32>>>,
    last: Option<(String, Arc<Factor>)>,
    next: usize,
}

impl<'a> Compensation<'a> {
    pub(crate) fn new(
        file: &ModelFile,
        options: &QuantizeOptions<'a>,
        plan: &[TensorType],
    ) -> Self {
        let mut out = Compensation {
            method: options.method.clone(),
            tensors: Vec::new(),
            site_of: HashMap::new(),
            made: HashMap::new(),
            last: None,
            next: 0,
        };
        if let Method::Gptq { model, .. } = &options.method {
            out.site_of = sites(model);
            for (tensor, ty) in file.tensors().iter().zip(plan) {
                let quantised = crate::format::is_quantised(*ty);
                if quantised && out.site_of.contains_key(&tensor.name) && tensor.shape.len() == 2 {
                    out.tensors
                        .push((tensor.name.clone(), tensor.columns() as usize));
                }
            }
        }
        out
    }

    /// The factor of the tensor that comes next in the file, if it is rounded with one.
    pub(crate) fn factor(
        &mut self,
        worker: &Worker,
        tensor: &TensorInfo,
        progress: &mut dyn FnMut(&str, usize, usize) -> bool,
    ) -> Result<Option<Arc<Factor>>, CompressError> {
        let Method::Gptq {
            model,
            windows,
            memory,
        } = self.method
        else {
            return Ok(None);
        };
        if self
            .tensors
            .get(self.next)
            .is_none_or(|(name, _)| *name != tensor.name)
        {
            return Ok(None);
        }
        if !self.made.contains_key(&tensor.name) {
            self.made.clear();
            self.last = None;
            let (mut wanted, mut seen, mut bytes) = (HashSet::new(), HashSet::new(), 0);
            for (name, columns) in &self.tensors[self.next..] {
                let site = &self.site_of[name];
                if seen.insert(site.clone()) {
                    bytes += 4 * (columns * columns) as u64;
                }
                if bytes > memory && !wanted.is_empty() {
                    break;
                }
                wanted.insert(name.clone());
            }
            let report = &mut |done, all| progress("calibrate", done, all);
            self.made = grams(model, windows, &wanted, report)?.matrices;
        }
        self.next += 1;
        let Some(gram) = self.made.get(&tensor.name) else {
            return Ok(None);
        };
        let site = &self.site_of[&tensor.name];
        if let Some((last, factor)) = &self.last
            && last == site
        {
            return Ok(Some(factor.clone()));
        }
        let columns = tensor.columns() as usize;
        let factor = Factor::new(
            worker.isa,
            &worker.pool,
            gram,
            columns,
            damping(model, &tensor.name),
        );
        let factor = Arc::new(factor);
        self.last = Some((site.clone(), factor.clone()));
        Ok(Some(factor))
    }
}

/// A share of the mean diagonal: more for an embedding that is also the head, whose rows are read as they are too.
pub(crate) fn damping(model: &Model, name: &str) -> f32 {
    let spec = model.spec();
    match spec.tied_output && spec.output.weight == name {
        true => 0.1,
        false => 0.01,
    }
}

/// For each tensor that products read, the first tensor that reads the same input.
pub(crate) fn sites(model: &Model) -> HashMap<String, String> {
    let spec = model.spec();
    let mut out = HashMap::new();
    let mut add = |names: Vec<&ondine_runtime::model::Linear>| {
        if let Some(first) = names.first() {
            let first = first.weight.clone();
            for linear in names {
                out.insert(linear.weight.clone(), first.clone());
            }
        }
    };
    for layer in &spec.layers {
        add(layer.mixer.inputs());
        add(vec![layer.mixer.output()]);
        add(layer.feed_forward.inputs());
        add(layer.feed_forward.output().into_iter().collect());
    }
    add(vec![&spec.output]);
    out
}
