//! The block formats of GGUF files: reading all of them, writing two.
//!
//! Every quantised format is, 16 elements at a time, `scale * (code - zero) - minimum` with an unsigned code of at most
//! 8 bits; formats with a codebook have it applied, shifted by the zero so that codes are unsigned.

mod decode;
mod quantize;

use half::{bf16, f16};

use decode::{Decoded, decode};
pub use decode::{IQ4_CODES, MXFP4_CODES};
pub(crate) use decode::{RawBlock, e8m0_half, raw_codes, raw_scales, scale_k3};
pub use quantize::quantize;

use crate::{KernelError, TensorType};

/// Decodes whole blocks to f32, as ggml's reference does.
///
/// `raw` are blocks as in a GGUF file; `out` is as long as their elements.
///
/// # Errors
/// If the lengths of `raw` and `out` disagree.
pub fn dequantize(ty: TensorType, raw: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    let expected = ty.row_bytes(out.len()).ok_or(KernelError::PartialBlock {
        ty,
        columns: out.len(),
    })?;
    if raw.len() != expected {
        return Err(KernelError::Length {
            ty,
            expected,
            actual: raw.len(),
        });
    }
    match ty {
        TensorType::F32 => {
            for (bytes, out) in raw.chunks_exact(4).zip(out) {
                *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        TensorType::F16 => {
            for (bytes, out) in raw.chunks_exact(2).zip(out) {
                *out = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        TensorType::BF16 => {
            for (bytes, out) in raw.chunks_exact(2).zip(out) {
                *out = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        _ => {
            let mut block = Decoded::new();
            let blocks = raw.chunks_exact(ty.block_bytes());
            for (raw, out) in blocks.zip(out.chunks_exact_mut(ty.block_len())) {
                decode(ty, raw, &mut block);
                block.write(ty, out);
            }
        }
    }
    Ok(())
}

/// One block of a quantised format as integers: element `i` is `scales[i / 16] * codes[i] - minima[i / 16]`.
#[derive(Debug, Clone)]
pub struct BlockCodes {
    /// Codes, zero at the format's zero; as many as the block's elements.
    pub codes: [i16; 256],
    /// A scale for each 16 elements.
    pub scales: [f32; 16],
    /// What is subtracted from each 16 elements; 0 where the format has none.
    pub minima: [f32; 16],
}

impl Default for BlockCodes {
    fn default() -> Self {
        BlockCodes {
            codes: [0; 256],
            scales: [0.0; 16],
            minima: [0.0; 16],
        }
    }
}

impl BlockCodes {
    /// Reads one block; false for float formats and for `raw` of another length than a block.
    pub fn read(&mut self, ty: TensorType, raw: &[u8]) -> bool {
        use TensorType::*;
        if matches!(ty, F32 | F16 | BF16) || raw.len() != ty.block_bytes() {
            return false;
        }
        let mut block = Decoded::new();
        decode(ty, raw, &mut block);
        let zero = zero(ty) as i16;
        for (code, raw) in self.codes.iter_mut().zip(&block.codes) {
            *code = i16::from(*raw) - zero;
        }
        self.scales = block.scales;
        self.minima = match has_minima(ty) {
            true => block.minima,
            false => [0.0; 16],
        };
        true
    }
}

/// What is subtracted from each code of a quantised format.
fn zero(ty: TensorType) -> i32 {
    use TensorType::*;
    match ty {
        Q4_0 => 8,
        Q5_0 => 16,
        Q8_0 | IQ4_NL | IQ4_XS => 128,
        Q3_K => 4,
        Q6_K => 32,
        // Codes -12..=12, shifted.
        MXFP4 => 16,
        TQ1_0 | TQ2_0 => 1,
        Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K | F32 | F16 | BF16 => 0,
    }
}

/// Whether blocks have minima.
fn has_minima(ty: TensorType) -> bool {
    use TensorType::*;
    matches!(ty, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K)
}
