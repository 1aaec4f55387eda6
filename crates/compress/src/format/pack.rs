//! Writes blocks, as ggml lays them out.

use half::f16;
use ondine_kernels::TensorType;

use super::{BLOCK, Scales};

/// Writes one block: `codes` count from the format's lowest level (codebooks: positions in the book).
pub(super) fn pack(ty: TensorType, scales: &Scales, codes: &[u8; BLOCK], out: &mut [u8]) {
    use TensorType::*;
    let [d, m] = scales.block.map(|x| f16::from_f32(x).to_le_bytes());
    match ty {
        Q4_0 | IQ4_NL => {
            out[..2].copy_from_slice(&d);
            nibbles(codes, &mut out[2..]);
        }
        Q4_1 => {
            out[..2].copy_from_slice(&d);
            out[2..4].copy_from_slice(&m);
            nibbles(codes, &mut out[4..]);
        }
        Q5_0 => {
            out[..2].copy_from_slice(&d);
            fifth_bits(codes, &mut out[2..6]);
            nibbles(codes, &mut out[6..]);
        }
        Q5_1 => {
            out[..2].copy_from_slice(&d);
            out[2..4].copy_from_slice(&m);
            fifth_bits(codes, &mut out[4..8]);
            nibbles(codes, &mut out[8..]);
        }
        Q8_0 => {
            out[..2].copy_from_slice(&d);
            for (out, code) in out[2..].iter_mut().zip(codes) {
                *out = code.wrapping_sub(127);
            }
        }
        MXFP4 => {
            out[0] = exponent(scales.block[0]);
            nibbles(codes, &mut out[1..]);
        }
        IQ4_XS => {
            out[..2].copy_from_slice(&d);
            let mut high = 0u16;
            out[4..8].fill(0);
            for (part, factor) in scales.factors[..8].iter().enumerate() {
                let stored = (factor + 32) as u16;
                out[4 + part / 2] |= ((stored & 15) as u8) << (4 * (part % 2));
                high |= (stored >> 4) << (2 * part);
            }
            out[2..4].copy_from_slice(&high.to_le_bytes());
            for part in 0..8 {
                nibbles(&codes[32 * part..], &mut out[8 + 16 * part..]);
            }
        }
        Q2_K => {
            for part in 0..16 {
                out[part] = (scales.factors[part] | scales.minimum_factors[part] << 4) as u8;
            }
            two_bits(codes, &mut out[16..80]);
            out[80..82].copy_from_slice(&d);
            out[82..84].copy_from_slice(&m);
        }
        Q3_K => {
            out[..32].fill(0);
            for (index, code) in codes.iter().enumerate() {
                out[index % 32] |= (code >> 2) << (index / 32);
            }
            two_bits(codes, &mut out[32..96]);
            out[96..108].fill(0);
            for (part, factor) in scales.factors.iter().enumerate() {
                let stored = (factor + 32) as u8;
                out[96 + part % 8] |= (stored & 15) << (4 * (part / 8));
                out[104 + part % 4] |= (stored >> 4) << (2 * (part / 4));
            }
            out[108..110].copy_from_slice(&d);
        }
        Q4_K | Q5_K => {
            out[..2].copy_from_slice(&d);
            out[2..4].copy_from_slice(&m);
            six_bit_pairs(scales, &mut out[4..16]);
            let low = match ty {
                Q4_K => 16,
                _ => {
                    out[16..48].fill(0);
                    for (index, code) in codes.iter().enumerate() {
                        out[16 + index % 32] |= (code >> 4) << (index / 32);
                    }
                    48
                }
            };
            let quarters = codes.as_chunks::<64>().0;
            for (codes, out) in quarters.iter().zip(out[low..].as_chunks_mut::<32>().0) {
                for (index, out) in out.iter_mut().enumerate() {
                    *out = codes[index] & 15 | (codes[index + 32] & 15) << 4;
                }
            }
        }
        Q6_K => {
            out[..192].fill(0);
            for (index, &code) in codes.iter().enumerate() {
                let (half, quarter, at) = (index / 128, index / 32 % 4, index % 32);
                out[half * 64 + quarter % 2 * 32 + at] |= (code & 15) << (4 * (quarter / 2));
                out[128 + half * 32 + at] |= (code >> 4) << (2 * quarter);
            }
            for (out, factor) in out[192..208].iter_mut().zip(&scales.factors) {
                *out = *factor as i8 as u8;
            }
            out[208..210].copy_from_slice(&d);
        }
        TQ2_0 => {
            two_bits(codes, &mut out[..64]);
            out[64..66].copy_from_slice(&d);
        }
        F32 | F16 | BF16 | TQ1_0 => unreachable!("not a block format that is written"),
    }
}

/// The E8M0 exponent of a scale on doubled numbers (see `e8m0` in the search): a power of two from 2^-128 to 2^126.
fn exponent(scale: f32) -> u8 {
    match (scale.to_bits() >> 23) as i32 {
        // 2^-128 and 2^-127 are subnormal as f32.
        0 => u8::from(scale.to_bits() >= 0x0040_0000),
        biased => (biased + 1).min(254) as u8,
    }
}

/// 32 codes: element `j` and `j + 16` share byte `j`.
fn nibbles(codes: &[u8], out: &mut [u8]) {
    for (index, out) in out[..16].iter_mut().enumerate() {
        *out = codes[index] & 15 | (codes[index + 16] & 15) << 4;
    }
}

fn fifth_bits(codes: &[u8; BLOCK], out: &mut [u8]) {
    out.fill(0);
    for (index, code) in codes[..32].iter().enumerate() {
        out[index / 8] |= (code >> 4 & 1) << (index % 8);
    }
}

/// 256 codes of 2 bits: in each half, element `32 s + j` has bits `2 s` of byte `j`.
fn two_bits(codes: &[u8; BLOCK], out: &mut [u8]) {
    out.fill(0);
    for (index, code) in codes.iter().enumerate() {
        out[index / 128 * 32 + index % 32] |= (code & 3) << (2 * (index / 32 % 4));
    }
}

/// Eight scales and minima of 6 bits in 12 bytes.
fn six_bit_pairs(scales: &Scales, out: &mut [u8]) {
    let scale = |part: usize| scales.factors[part] as u8;
    let minimum = |part: usize| scales.minimum_factors[part] as u8;
    for part in 0..4 {
        out[part] = scale(part) | scale(part + 4) >> 4 << 6;
        out[part + 4] = minimum(part) | minimum(part + 4) >> 4 << 6;
        out[part + 8] = scale(part + 4) & 15 | minimum(part + 4) << 4;
    }
}
