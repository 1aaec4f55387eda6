//! The device's view of the model in memory: every matrix quantised to the device's precision, row by row.
//!
//! A row is `[scales][smallest values][codes][bias]`: scales and smallest values are half-precision floats, one per
//! group; codes have 4 bits (low half first) or 8; 16-bit weights have no groups; the bias is one 32-bit float.

use std::collections::HashMap;
use std::sync::Arc;

use half::{bf16, f16};
use ondine_kernels::{ThreadPool, dequantize};
use ondine_runtime::gguf::{ModelFile, ModelFileError};
use ondine_runtime::model::{FeedForward, Linear, Mixer, ModelSpec, Norm};

use crate::profile::{Activations, Precision};
use crate::program::{Matrix, Vector};

/// Rows that a thread quantises together.
const ROWS: usize = 16;

/// A matrix in memory.
pub(super) struct Stored {
    pub(super) columns: usize,
    pub(super) bits: u32,
    pub(super) group: usize,
    pub(super) offset: bool,
    pub(super) bias: bool,
    pub(super) brain: bool,
    pub(super) row_bytes: usize,
    /// [rows × row_bytes]
    pub(super) bytes: Vec<u8>,
}

/// All matrices and vectors of a model.
pub(super) struct Store {
    matrices: HashMap<Matrix, Arc<Stored>>,
    vectors: HashMap<Vector, Vec<f32>>,
    /// Learnt positions, [positions, embedding].
    pub(super) positions: Option<Vec<f32>>,
    pub(super) bytes: u64,
}

impl Store {
    /// Reads and quantises everything that `spec` names.
    pub(super) fn load(
        file: &ModelFile,
        spec: &ModelSpec,
        precision: &Precision,
        pool: &ThreadPool,
    ) -> Result<Self, ModelFileError> {
        let mut store = Store {
            matrices: HashMap::new(),
            vectors: HashMap::new(),
            positions: None,
            bytes: 0,
        };
        let reader = Reader {
            file,
            pool,
            precision,
        };
        let weights = precision.weight_bits;
        let mut add = |matrix: Matrix, linear: &Linear, bits: u32| {
            let stored = reader.matrix(linear, bits)?;
            store.bytes += stored.bytes.len() as u64;
            store.matrices.insert(matrix, Arc::new(stored));
            Ok::<_, ModelFileError>(())
        };
        add(
            Matrix::Embedding,
            &spec.token_embedding,
            precision.embedding_bits,
        )?;
        if !(spec.tied_output && precision.embedding_bits == precision.head_bits) {
            add(Matrix::Head, &spec.output, precision.head_bits)?;
        }
        for (index, layer) in spec.layers.iter().enumerate() {
            if let Mixer::Attention(attention) = &layer.mixer {
                add(Matrix::Query(index), &attention.query, weights)?;
                add(Matrix::Key(index), &attention.key, weights)?;
                add(Matrix::Value(index), &attention.value, weights)?;
                add(Matrix::MixerOutput(index), &attention.output, weights)?;
            }
            match &layer.feed_forward {
                FeedForward::Gated(gated) => {
                    add(Matrix::Gate(index, 0), &gated.gate, weights)?;
                    add(Matrix::Up(index, 0), &gated.up, weights)?;
                    add(Matrix::Down(index, 0), &gated.down, weights)?;
                }
                FeedForward::Plain { up, down, .. } => {
                    add(Matrix::Up(index, 0), up, weights)?;
                    add(Matrix::Down(index, 0), down, weights)?;
                }
                FeedForward::Experts(_) => {}
            }
        }
        if !store.matrices.contains_key(&Matrix::Head) {
            let table = store.matrices[&Matrix::Embedding].clone();
            store.matrices.insert(Matrix::Head, table);
        }
        if let Some(positions) = &spec.position_embedding {
            store.positions = Some(reader.rows(positions, 0, positions.rows)?);
        }
        store.norms(&reader, spec)?;
        Ok(store)
    }

    fn norms(&mut self, reader: &Reader<'_>, spec: &ModelSpec) -> Result<(), ModelFileError> {
        let mut add = |vector: Vector, norms: &[&Norm]| {
            let mut values = Vec::new();
            for norm in norms {
                values.extend(reader.vector(&norm.weight, 0, norm.length)?);
                if let Some(bias) = &norm.bias {
                    values.extend(reader.vector(bias, 0, norm.length)?);
                }
            }
            self.vectors.insert(vector, values);
            Ok::<_, ModelFileError>(())
        };
        if let Some(norm) = &spec.embedding_norm {
            add(Vector::Embedding, &[norm])?;
        }
        add(Vector::Output, &[&spec.output_norm])?;
        for (index, layer) in spec.layers.iter().enumerate() {
            add(Vector::Mixer(index), &[&layer.mixer_norm])?;
            add(Vector::FeedForward(index), &[&layer.feed_forward_norm])?;
            if let Some(norm) = &layer.mixer_post_norm {
                add(Vector::MixerPost(index), &[norm])?;
            }
            if let Some(norm) = &layer.feed_forward_post_norm {
                add(Vector::FeedForwardPost(index), &[norm])?;
            }
            if let Mixer::Attention(attention) = &layer.mixer
                && let Some(norms) = &attention.query_key_norm
            {
                add(Vector::QueryKey(index), &[&norms.query, &norms.key])?;
            }
        }
        Ok(())
    }

    /// The matrix; every one that a program names was loaded.
    pub(super) fn matrix(&self, matrix: Matrix) -> Option<&Arc<Stored>> {
        self.matrices.get(&matrix)
    }

    /// A norm's weights, then its bias.
    pub(super) fn vector(&self, vector: Vector) -> &[f32] {
        self.vectors.get(&vector).map_or(&[], Vec::as_slice)
    }
}

impl Stored {
    /// Groups of a row.
    pub(super) fn groups(&self) -> usize {
        match self.bits {
            16 => 0,
            _ => self.columns.div_ceil(self.group),
        }
    }

    /// Splits a row's bytes into (scales, smallest values, codes, bias).
    pub(super) fn parts<'r>(&self, row: &'r [u8]) -> (&'r [u8], &'r [u8], &'r [u8], f32) {
        let scales = 2 * self.groups();
        let smallest = if self.offset { scales } else { 0 };
        let codes = (self.columns * self.bits as usize).div_ceil(8);
        let (head, rest) = row.split_at(scales);
        let (low, rest) = rest.split_at(smallest);
        let (codes, bias) = rest.split_at(codes);
        let bias = match bias {
            &[a, b, c, d] if self.bias => f32::from_le_bytes([a, b, c, d]),
            _ => 0.0,
        };
        (head, low, codes, bias)
    }

    /// A row's codes as integers; those without a smallest value are signed.
    pub(super) fn codes(&self, codes: &[u8], out: &mut [i16]) {
        match (self.bits, self.offset) {
            (4, offset) => {
                let zero = if offset { 0 } else { 8 };
                for (index, out) in out.iter_mut().enumerate() {
                    let byte = codes[index / 2];
                    let code = if index % 2 == 0 { byte & 15 } else { byte >> 4 };
                    *out = i16::from(code) - zero;
                }
            }
            (_, true) => {
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = i16::from(*code);
                }
            }
            (_, false) => {
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = i16::from(*code as i8);
                }
            }
        }
    }

    /// A whole row as floats.
    pub(super) fn floats(&self, row: &[u8], out: &mut [f32]) {
        let (scales, smallest, codes, _) = self.parts(row);
        if self.bits == 16 {
            read_halves(codes, self.brain, out);
            return;
        }
        let mut integers = vec![0i16; self.columns];
        self.codes(codes, &mut integers);
        for (group, (out, integers)) in out
            .chunks_mut(self.group)
            .zip(integers.chunks(self.group))
            .enumerate()
        {
            let scale = half_at(scales, group);
            let low = if self.offset {
                half_at(smallest, group)
            } else {
                0.0
            };
            for (out, &code) in out.iter_mut().zip(integers) {
                *out = f32::from(code) * scale + low;
            }
        }
    }
}

/// The `index`-th half-precision float.
pub(super) fn half_at(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Reads 16-bit floats.
pub(super) fn read_halves(bytes: &[u8], brain: bool, out: &mut [f32]) {
    for (out, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        let pair = [pair[0], pair[1]];
        *out = match brain {
            true => bf16::from_le_bytes(pair).to_f32(),
            false => f16::from_le_bytes(pair).to_f32(),
        };
    }
}

/// Writes 16-bit floats; what is too large for half precision becomes its largest number, as devices saturate.
pub(super) fn write_halves(values: &[f32], brain: bool, out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.chunks_exact_mut(2)) {
        let pair = match brain {
            true => bf16::from_f32(*value).to_le_bytes(),
            false => {
                let most = f32::from(f16::MAX);
                f16::from_f32(value.clamp(-most, most)).to_le_bytes()
            }
        };
        out.copy_from_slice(&pair);
    }
}

struct Reader<'a> {
    file: &'a ModelFile,
    pool: &'a ThreadPool,
    precision: &'a Precision,
}

impl Reader<'_> {
    fn matrix(&self, linear: &Linear, bits: u32) -> Result<Stored, ModelFileError> {
        let columns = linear.columns;
        let bias = linear
            .bias
            .as_ref()
            .map(|bias| self.vector(bias, linear.first_row, linear.rows))
            .transpose()?;
        let row_bytes =
            self.precision.row_bytes(bits, columns) as usize + if bias.is_some() { 4 } else { 0 };
        let mut stored = Stored {
            columns,
            bits,
            group: self.precision.group_length(columns),
            offset: self.precision.offset && bits < 16,
            bias: bias.is_some(),
            brain: self.precision.activations == Activations::Bf16,
            row_bytes,
            bytes: vec![0; linear.rows * row_bytes],
        };
        // Some rows at a time, so that a large table is never in memory as floats.
        let slab = (1 << 22) / columns.max(1) / ROWS * ROWS + ROWS;
        let mut bytes = std::mem::take(&mut stored.bytes);
        let mut first = 0;
        while first < linear.rows {
            let rows = slab.min(linear.rows - first);
            let floats = self.rows(linear, first, rows)?;
            let out = &mut bytes[first * row_bytes..(first + rows) * row_bytes];
            self.pool
                .for_each_chunk_mut(out, ROWS * row_bytes, |chunk, out| {
                    for (offset, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                        let row = chunk * ROWS + offset;
                        let values = &floats[row * columns..(row + 1) * columns];
                        quantise(&stored, values, out);
                        if let Some(bias) = &bias {
                            let at = row_bytes - 4;
                            out[at..].copy_from_slice(&bias[first + row].to_le_bytes());
                        }
                    }
                });
            first += rows;
        }
        stored.bytes = bytes;
        Ok(stored)
    }

    /// Rows of a matrix as floats.
    fn rows(&self, linear: &Linear, first: usize, rows: usize) -> Result<Vec<f32>, ModelFileError> {
        let start = (linear.first_row + first) * linear.columns;
        self.vector(&linear.weight, start, rows * linear.columns)
    }

    /// `length` elements of a tensor from `start` on, as floats.
    fn vector(&self, name: &str, start: usize, length: usize) -> Result<Vec<f32>, ModelFileError> {
        let refuse = |what: &str| ModelFileError::Tensor {
            tensor: name.to_owned(),
            what: what.to_owned(),
        };
        let tensor = self
            .file
            .tensor(name)
            .ok_or_else(|| refuse("is missing; convert the model again"))?;
        let block = tensor.tensor_type.block_len();
        if !start.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(refuse("has partial blocks"));
        }
        let bytes_of =
            |elements: usize| (elements / block * tensor.tensor_type.block_bytes()) as u64;
        let (from, to) = (bytes_of(start), bytes_of(start + length));
        if to > tensor.bytes {
            return Err(refuse("is shorter than its shape"));
        }
        let source = self.file.source(tensor);
        let range = tensor.offset + from..tensor.offset + to;
        let mut out = vec![0.0; length];
        let done = match source.as_slice() {
            Some(all) => dequantize(
                tensor.tensor_type,
                &all[range.start as usize..range.end as usize],
                &mut out,
            ),
            None => {
                let mut raw = vec![0; (to - from) as usize];
                source
                    .read_at(range.start, &mut raw)
                    .map_err(|error| ModelFileError::Io {
                        file: source.name().to_owned(),
                        source: error,
                    })?;
                dequantize(tensor.tensor_type, &raw, &mut out)
            }
        };
        done.map_err(|error| refuse(&error.to_string()))?;
        source.release(range);
        Ok(out)
    }
}

/// Quantises a row. Symmetric 4-bit codes use the whole range from -8 on: the value farthest from zero becomes -8.
fn quantise(stored: &Stored, values: &[f32], out: &mut [u8]) {
    if stored.bits == 16 {
        write_halves(values, stored.brain, out);
        return;
    }
    let groups = stored.groups();
    let codes_at = groups * if stored.offset { 4 } else { 2 };
    for (group, values) in values.chunks(stored.group).enumerate() {
        let (scale, low, least, most) = grid(stored, values);
        let (scale, low) = (f16::from_f32(scale), f16::from_f32(low));
        out[2 * group..2 * group + 2].copy_from_slice(&scale.to_le_bytes());
        if stored.offset {
            let at = 2 * (groups + group);
            out[at..at + 2].copy_from_slice(&low.to_le_bytes());
        }
        let (scale, low) = (scale.to_f32(), low.to_f32());
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for (offset, value) in values.iter().enumerate() {
            let index = group * stored.group + offset;
            let code = ((value - low) * inverse).round().clamp(least, most) as i32;
            match (stored.bits, stored.offset) {
                (4, offset) => {
                    let nibble = (code + if offset { 0 } else { 8 }) as u8 & 15;
                    out[codes_at + index / 2] |= nibble << (4 * (index % 2));
                }
                _ => out[codes_at + index] = code as u8,
            }
        }
    }
}

/// (scale, smallest value, least code, most code) of a group.
fn grid(stored: &Stored, values: &[f32]) -> (f32, f32, f32, f32) {
    let levels = ((1u32 << stored.bits) - 1) as f32;
    if stored.offset {
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        return ((high - low) / levels, low, 0.0, levels);
    }
    let farthest = values
        .iter()
        .copied()
        .fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let half = ((levels + 1.0) / 2.0).floor();
    match stored.bits {
        4 => (farthest / -half, 0.0, -half, half - 1.0),
        _ => (farthest.abs() / (half - 1.0), 0.0, 1.0 - half, half - 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(bits: u32, group: usize, offset: bool, columns: usize) -> Stored {
        let groups = if bits == 16 {
            0
        } else {
            columns.div_ceil(group)
        };
        let row_bytes = (columns * bits as usize).div_ceil(8) + groups * if offset { 4 } else { 2 };
        Stored {
            columns,
            bits,
            group,
            offset,
            bias: false,
            brain: false,
            row_bytes,
            bytes: Vec::new(),
        }
    }

    /// Half a step of the grid, and what rounding the scale to half precision adds over the whole range.
    #[test]
    fn rows_come_back_within_half_a_step() {
        let values: Vec<f32> = (0..101)
            .map(|index| ((index * 37 % 101) as f32 - 50.0) / 40.0)
            .collect();
        for (bits, group, offset) in [
            (4, 32, false),
            (4, 32, true),
            (8, 101, false),
            (16, 1, false),
        ] {
            let stored = stored(bits, group, offset, values.len());
            let mut row = vec![0; stored.row_bytes];
            quantise(&stored, &values, &mut row);
            let mut back = vec![0.0; values.len()];
            stored.floats(&row, &mut back);
            let step = match (bits, offset) {
                (4, true) => 2.6 / 15.0,
                (4, false) => 1.3 / 8.0,
                (8, _) => 1.3 / 127.0,
                _ => 1.3 / 1024.0,
            };
            // The symmetric grid has no code for the other end of its range: a whole step is lost there.
            let most = if bits == 4 && !offset { 1.01 } else { 0.51 } * step + 2.0 * 1.3 / 2048.0;
            for (value, back) in values.iter().zip(&back) {
                assert!((value - back).abs() <= most, "{bits} {value} {back}");
            }
        }
    }
}
