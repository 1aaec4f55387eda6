//! Reads a model's tensors for an export: block by block, never a whole matrix in memory.
//!
//! Every quantised format of GGUF is, 16 elements at a time, `scale × code − minimum`. Exports know two grids, unsigned
//! codes of 4 or 8 bits around a zero point of 8 or 128 with one scale per block of 16 or 32; what a format has
//! beyond that, its minima, becomes an offset per block. Nothing is rounded on the way.

use std::ops::Range;

use ondine_kernels::{BlockCodes, TensorType, dequantize};
use ondine_runtime::gguf::{ModelFile, ModelFileError, TensorInfo};
use ondine_runtime::model::Linear;

/// Bytes of a tensor that are read before their pages are given back.
const SLAB_BYTES: usize = 4 << 20;

/// How a matrix's codes are laid out in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Bits of a code: 4 or 8.
    pub bits: usize,
    /// Elements that share a scale: 16 or 32.
    pub block: usize,
    /// Whether blocks have an offset.
    pub offsets: bool,
}

impl Grid {
    /// The grid on which a tensor of this type lies without loss; none for float formats.
    pub fn of(ty: TensorType) -> Option<Grid> {
        use TensorType::*;
        let (bits, block, offsets) = match ty {
            F32 | F16 | BF16 => return None,
            Q4_0 | TQ1_0 | TQ2_0 => (4, 32, false),
            Q4_1 | Q4_K => (4, 32, true),
            Q3_K => (4, 16, false),
            Q2_K => (4, 16, true),
            Q5_0 | Q8_0 | IQ4_NL | IQ4_XS | MXFP4 => (8, 32, false),
            Q5_1 | Q5_K => (8, 32, true),
            Q6_K => (8, 16, false),
        };
        Some(Grid {
            bits,
            block,
            offsets,
        })
    }

    /// The code that stands for zero.
    pub fn zero_point(self) -> i16 {
        1 << (self.bits - 1)
    }

    /// The same with codes of 8 bits.
    pub fn in_bytes(self) -> Grid {
        Grid { bits: 8, ..self }
    }
}

/// The grid of floats that are rounded to 8 bits.
pub const ROUNDED: Grid = Grid {
    bits: 8,
    block: 32,
    offsets: false,
};

/// Rows of a matrix on a [`Grid`].
#[derive(Debug, Default)]
pub struct GridRows {
    /// Codes, one a byte, [rows, columns].
    pub codes: Vec<u8>,
    /// Scales, [rows, columns / block].
    pub scales: Vec<f32>,
    /// Offsets, [rows, columns / block]; empty when the grid has none.
    pub offsets: Vec<f32>,
}

/// How far rounded weights are from the model's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Sum of the squared differences.
    pub squared_error: f64,
    /// Sum of the squared weights.
    pub squared_weight: f64,
}

impl Loss {
    /// Root mean square of the differences relative to that of the weights.
    pub fn relative(self) -> f64 {
        (self.squared_error / self.squared_weight.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// Counts `rounded` in place of `weight`.
    pub fn count(&mut self, weight: f32, rounded: f32) {
        self.squared_error += f64::from(weight - rounded).powi(2);
        self.squared_weight += f64::from(weight).powi(2);
    }

    /// Counts what another one counted.
    pub fn add(&mut self, other: Loss) {
        self.squared_error += other.squared_error;
        self.squared_weight += other.squared_weight;
    }
}

/// A model file's tensors.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    file: &'a ModelFile,
}

impl<'a> Weights<'a> {
    /// The tensors of `file`.
    pub fn new(file: &'a ModelFile) -> Self {
        Weights { file }
    }

    /// The type of a matrix.
    ///
    /// # Errors
    /// When the tensor is missing.
    pub fn tensor_type(&self, linear: &Linear) -> Result<TensorType, ModelFileError> {
        Ok(self.tensor(&linear.weight)?.tensor_type)
    }

    /// Elements `range` of a vector.
    ///
    /// # Errors
    /// When the tensor is missing, short or unreadable.
    pub fn vector(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>, ModelFileError> {
        let tensor = self.tensor(name)?;
        let (block, bytes) = (
            tensor.tensor_type.block_len(),
            tensor.tensor_type.block_bytes(),
        );
        if !range.start.is_multiple_of(block) || !range.end.is_multiple_of(block) {
            return Err(refuse(tensor, "has partial blocks"));
        }
        let mut out = vec![0.0; range.len()];
        let raw = self.bytes(
            tensor,
            range.start / block * bytes..range.end / block * bytes,
        )?;
        dequantize(tensor.tensor_type, &raw, &mut out)
            .map_err(|error| refuse(tensor, &error.to_string()))?;
        Ok(out)
    }

    /// Hands the rows of a matrix as floats to `each`, some at a time, with the number of the first.
    ///
    /// # Errors
    /// When the tensor is missing, short or unreadable, and what `each` says.
    pub fn float_rows<E: From<ModelFileError>>(
        &self,
        linear: &Linear,
        mut each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tensor = self.tensor(&linear.weight)?;
        let mut floats = Vec::new();
        self.slabs(linear, |first, rows, raw| {
            floats.resize(rows * linear.columns, 0.0);
            dequantize(tensor.tensor_type, raw, &mut floats)
                .map_err(|error| refuse(tensor, &error.to_string()))?;
            each(first, &floats)
        })
    }

    /// Hands the rows of a matrix on `grid` to `each`, some at a time. The grid is the type's own, the same in
    /// bytes, or [`ROUNDED`] for floats; the loss, zero but for floats, is returned.
    ///
    /// # Errors
    /// As [`Weights::float_rows`].
    pub fn grid_rows<E: From<ModelFileError>>(
        &self,
        linear: &Linear,
        grid: Grid,
        mut each: impl FnMut(&GridRows) -> Result<(), E>,
    ) -> Result<Loss, E> {
        let tensor = self.tensor(&linear.weight)?;
        let ty = tensor.tensor_type;
        let mut rows = GridRows::default();
        let mut loss = Loss::default();
        if Grid::of(ty).is_none() {
            self.float_rows(linear, |_, floats| {
                round_to_bytes(floats, &mut rows, &mut loss);
                each(&rows)
            })?;
            return Ok(loss);
        }
        let mut block = BlockCodes::default();
        let zero = grid.zero_point();
        let middle = middle(ty);
        self.slabs(linear, |_, count, raw| {
            rows.clear(count * linear.columns);
            for raw in raw.chunks_exact(ty.block_bytes()) {
                if !block.read(ty, raw) {
                    return Err(refuse(tensor, "has a damaged block").into());
                }
                for part in 0..ty.block_len() / grid.block {
                    let sixteen = part * grid.block / 16;
                    let (scale, minimum) = (block.scales[sixteen], block.minima[sixteen]);
                    rows.scales.push(scale);
                    if grid.offsets {
                        rows.offsets.push(scale * f32::from(middle) - minimum);
                    }
                    let codes = &block.codes[part * grid.block..(part + 1) * grid.block];
                    rows.codes
                        .extend(codes.iter().map(|&code| (code - middle + zero) as u8));
                }
            }
            each(&rows)
        })?;
        Ok(loss)
    }

    /// Hands the raw rows of a matrix to `each` with the number of the first and how many they are.
    fn slabs<E: From<ModelFileError>>(
        &self,
        linear: &Linear,
        mut each: impl FnMut(usize, usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tensor = self.tensor(&linear.weight)?;
        let row_bytes = tensor
            .tensor_type
            .row_bytes(linear.columns)
            .ok_or_else(|| refuse(tensor, "has rows of partial blocks"))?;
        let rows_per_slab = (SLAB_BYTES / row_bytes.max(1)).max(1);
        let mut first = 0;
        while first < linear.rows {
            let rows = rows_per_slab.min(linear.rows - first);
            let start = (linear.first_row + first) * row_bytes;
            let range = start..start + rows * row_bytes;
            let source = self.file.source(tensor);
            self.check(tensor, &range)?;
            let at = tensor.offset + range.start as u64..tensor.offset + range.end as u64;
            match source.as_slice() {
                Some(all) => each(first, rows, &all[at.start as usize..at.end as usize])?,
                None => each(first, rows, &self.bytes(tensor, range)?)?,
            }
            source.release(at);
            first += rows;
        }
        Ok(())
    }

    fn tensor(&self, name: &str) -> Result<&'a TensorInfo, ModelFileError> {
        self.file
            .tensor(name)
            .ok_or_else(|| ModelFileError::Tensor {
                tensor: name.to_owned(),
                what: "is missing; convert the model again".into(),
            })
    }

    fn bytes(&self, tensor: &TensorInfo, range: Range<usize>) -> Result<Vec<u8>, ModelFileError> {
        self.check(tensor, &range)?;
        let source = self.file.source(tensor);
        let mut copy = vec![0; range.len()];
        source
            .read_at(tensor.offset + range.start as u64, &mut copy)
            .map_err(|error| ModelFileError::Io {
                file: source.name().to_owned(),
                source: error,
            })?;
        Ok(copy)
    }

    fn check(&self, tensor: &TensorInfo, range: &Range<usize>) -> Result<(), ModelFileError> {
        match range.end as u64 <= tensor.bytes {
            true => Ok(()),
            false => Err(refuse(tensor, "is shorter than its shape")),
        }
    }
}

/// The code that is moved to the grid's zero point. Types with minima have codes from zero on: their middle, so that
/// what the offset takes over stays small and nothing large cancels.
fn middle(ty: TensorType) -> i16 {
    use TensorType::*;
    match ty {
        Q4_1 | Q4_K => 8,
        Q5_1 | Q5_K => 16,
        Q2_K => 2,
        _ => 0,
    }
}

impl GridRows {
    fn clear(&mut self, elements: usize) {
        self.codes.clear();
        self.codes.reserve(elements);
        self.scales.clear();
        self.offsets.clear();
    }
}

/// Blocks of 32 rounded to 8 bits, the largest of a block being 127 steps.
fn round_to_bytes(floats: &[f32], rows: &mut GridRows, loss: &mut Loss) {
    rows.clear(floats.len());
    for block in floats.chunks_exact(ROUNDED.block) {
        let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        rows.scales.push(scale);
        for &x in block {
            let code = (x * inverse).round().clamp(-127.0, 127.0);
            loss.count(x, code * scale);
            rows.codes.push((code as i16 + 128) as u8);
        }
    }
}

/// Groups of `group` floats rounded to signed codes of `bits` bits, [−2^(bits−1)+1, 2^(bits−1)−1], one scale per group
/// kept as f16; codes are unsigned around the grid's zero point, as everywhere here.
pub fn round_symmetric(
    floats: &[f32],
    bits: usize,
    group: usize,
    rows: &mut GridRows,
    loss: &mut Loss,
) {
    rows.clear(floats.len());
    let (zero, most) = (1i16 << (bits - 1), ((1i16 << (bits - 1)) - 1) as f32);
    for part in floats.chunks_exact(group) {
        let largest = part.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = half::f16::from_f32(largest / most).to_f32();
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        rows.scales.push(scale);
        for &x in part {
            let code = (x * inverse).round().clamp(-most, most);
            loss.count(x, code * scale);
            rows.codes.push((code as i16 + zero) as u8);
        }
    }
}

fn refuse(tensor: &TensorInfo, what: &str) -> ModelFileError {
    ModelFileError::Tensor {
        tensor: tensor.name.clone(),
        what: what.to_owned(),
    }
}
