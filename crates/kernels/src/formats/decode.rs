//! Reads single blocks.

use half::f16;

use super::{has_minima, zero};
use crate::TensorType;

/// The codebook of IQ4_NL and IQ4_XS, plus 128.
pub const IQ4_CODES: [u8; 16] = [
    1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241,
];

/// The codebook of MXFP4 (twice the E2M1 numbers), plus 16.
pub const MXFP4_CODES: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

/// One block: codes, and a scale and a minimum for each 16 of them.
pub(crate) struct Decoded {
    pub(crate) codes: [u8; 256],
    pub(crate) scales: [f32; 16],
    /// What is subtracted; 0 where the format has none.
    pub(crate) minima: [f32; 16],
}

impl Decoded {
    pub(crate) fn new() -> Self {
        Decoded {
            codes: [0; 256],
            scales: [0.0; 16],
            minima: [0.0; 16],
        }
    }

    /// Element values, [block length].
    pub(crate) fn write(&self, ty: TensorType, out: &mut [f32]) {
        let zero = zero(ty);
        let minima = has_minima(ty);
        for (index, out) in out.iter_mut().enumerate() {
            let value = self.scales[index / 16] * (i32::from(self.codes[index]) - zero) as f32;
            *out = if minima {
                value - self.minima[index / 16]
            } else {
                value
            };
        }
    }
}

/// A block's codes before the codebook, and its scale bytes in a plain order.
pub(crate) struct RawBlock {
    pub(crate) codes: [u8; 256],
    pub(crate) scales: [u8; 20],
}

impl RawBlock {
    pub(crate) fn new() -> Self {
        RawBlock {
            codes: [0; 256],
            scales: [0; 20],
        }
    }
}

/// Decodes one block of a quantised format; `raw` has the block's length.
pub(crate) fn decode(ty: TensorType, raw: &[u8], out: &mut Decoded) {
    use TensorType::*;
    raw_codes(ty, raw, &mut out.codes);
    match ty {
        IQ4_NL | IQ4_XS => look_up(&IQ4_CODES, &mut out.codes[..ty.block_len()]),
        MXFP4 => look_up(&MXFP4_CODES, &mut out.codes[..32]),
        _ => (),
    }
    let mut bytes = [0; 20];
    raw_scales(ty, raw, &mut bytes);
    let scale = half_at(&bytes, 0);
    let minimum = half_at(&bytes, 2);
    for index in 0..ty.block_len() / 16 {
        let (s, m) = match ty {
            Q4_1 | Q5_1 => (scale, -minimum),
            MXFP4 => (e8m0_half(bytes[0]), 0.0),
            IQ4_XS => (scale * (f32::from(bytes[2 + index / 2]) - 32.0), 0.0),
            Q2_K => (
                scale * f32::from(bytes[4 + index] & 15),
                minimum * f32::from(bytes[4 + index] >> 4),
            ),
            Q3_K => (
                scale * (f32::from(scale_k3(&bytes[2..14], index)) - 32.0),
                0.0,
            ),
            Q4_K | Q5_K => (
                scale * f32::from(bytes[4 + index / 2 * 2]),
                minimum * f32::from(bytes[5 + index / 2 * 2]),
            ),
            Q6_K => (scale * f32::from(bytes[2 + index] as i8), 0.0),
            _ => (scale, 0.0),
        };
        out.scales[index] = s;
        out.minima[index] = m;
    }
}

/// The codes of one block, before the codebook.
#[inline]
pub(crate) fn raw_codes(ty: TensorType, raw: &[u8], codes: &mut [u8; 256]) {
    use TensorType::*;
    match ty {
        F32 | F16 | BF16 => unreachable!("float formats have no codes"),
        Q4_0 | IQ4_NL => nibbles(&raw[2..], codes),
        Q4_1 => nibbles(&raw[4..], codes),
        Q5_0 => {
            nibbles(&raw[6..], codes);
            fifth_bits(&raw[2..6], codes);
        }
        Q5_1 => {
            nibbles(&raw[8..], codes);
            fifth_bits(&raw[4..8], codes);
        }
        Q8_0 => {
            for (code, byte) in codes.iter_mut().zip(&raw[2..34]) {
                *code = byte ^ 0x80;
            }
        }
        MXFP4 => nibbles(&raw[1..], codes),
        IQ4_XS => {
            for block in 0..8 {
                nibbles(&raw[8 + 16 * block..], &mut codes[32 * block..]);
            }
        }
        Q2_K => two_bits(&raw[16..80], codes),
        Q3_K => {
            two_bits(&raw[32..96], codes);
            for (block, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (code, byte) in codes.iter_mut().zip(&raw[..32]) {
                    *code |= (byte >> block & 1) << 2;
                }
            }
        }
        Q4_K => wide_nibbles(&raw[16..144], codes),
        Q5_K => {
            wide_nibbles(&raw[48..176], codes);
            for (block, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (code, byte) in codes.iter_mut().zip(&raw[16..48]) {
                    *code |= (byte >> block & 1) << 4;
                }
            }
        }
        Q6_K => q6_k(raw, codes),
        TQ1_0 => tq1_0(raw, codes),
        TQ2_0 => two_bits(raw, codes),
    }
}

/// The scales of one block in a plain order: the f16 scale, the f16 minimum (or what is added) if the format has one,
/// then a byte for each scale of a part; Q4_K and Q5_K scale, minimum, scale, minimum …; Q3_K its 12 bytes as they
/// are; MXFP4 only its exponent.
#[inline]
pub(crate) fn raw_scales(ty: TensorType, raw: &[u8], scales: &mut [u8; 20]) {
    use TensorType::*;
    match ty {
        F32 | F16 | BF16 => unreachable!("float formats have no scales"),
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL => scales[..2].copy_from_slice(&raw[..2]),
        Q4_1 | Q5_1 => scales[..4].copy_from_slice(&raw[..4]),
        MXFP4 => scales[0] = raw[0],
        TQ1_0 => scales[..2].copy_from_slice(&raw[52..54]),
        TQ2_0 => scales[..2].copy_from_slice(&raw[64..66]),
        Q2_K => {
            scales[..4].copy_from_slice(&raw[80..84]);
            scales[4..20].copy_from_slice(&raw[..16]);
        }
        Q3_K => {
            scales[..2].copy_from_slice(&raw[108..110]);
            scales[2..14].copy_from_slice(&raw[96..108]);
        }
        Q4_K | Q5_K => {
            scales[..4].copy_from_slice(&raw[..4]);
            for block in 0..8 {
                let (scale, minimum) = scale_min_k4(&raw[4..16], block);
                scales[4 + 2 * block] = scale;
                scales[5 + 2 * block] = minimum;
            }
        }
        Q6_K => {
            scales[..2].copy_from_slice(&raw[208..210]);
            scales[2..18].copy_from_slice(&raw[192..208]);
        }
        IQ4_XS => {
            scales[..2].copy_from_slice(&raw[..2]);
            let high = u16::from_le_bytes([raw[2], raw[3]]);
            for block in 0..8 {
                let low = raw[4 + block / 2] >> (4 * (block % 2)) & 15;
                scales[2 + block] = low | ((high >> (2 * block) & 3) as u8) << 4;
            }
        }
    }
}

/// Half of the number that an E8M0 exponent stands for (Open Compute Project, microscaling formats): the codebook
/// holds doubled numbers.
pub(crate) fn e8m0_half(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => u32::from(exponent - 1) << 23,
    })
}

/// 6-bit scale and minimum number `index` of the 12 bytes in Q4_K and Q5_K.
fn scale_min_k4(scales: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (scales[index] & 63, scales[index + 4] & 63)
    } else {
        (
            scales[index + 4] & 15 | scales[index - 4] >> 6 << 4,
            scales[index + 4] >> 4 | scales[index] >> 6 << 4,
        )
    }
}

fn half_at(raw: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32()
}

/// 32 codes: element `j` and `j + 16` share byte `j`.
fn nibbles(raw: &[u8], codes: &mut [u8]) {
    for (index, byte) in raw[..16].iter().enumerate() {
        codes[index] = byte & 15;
        codes[index + 16] = byte >> 4;
    }
}

fn fifth_bits(raw: &[u8], codes: &mut [u8]) {
    for (index, code) in codes[..32].iter_mut().enumerate() {
        *code |= (raw[index / 8] >> (index % 8) & 1) << 4;
    }
}

fn look_up(book: &[u8; 16], codes: &mut [u8]) {
    for code in codes {
        *code = book[usize::from(*code)];
    }
}

/// 256 codes of 2 bits: in each half, element `32 s + j` has bits `2 s` of byte `j`.
fn two_bits(raw: &[u8], codes: &mut [u8; 256]) {
    for (block, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, shift) = (block / 4, 2 * (block % 4));
        for (code, byte) in codes.iter_mut().zip(&raw[half * 32..][..32]) {
            *code = byte >> shift & 3;
        }
    }
}

/// 6-bit scale number `index` of the 12 bytes in Q3_K.
pub(crate) fn scale_k3(scales: &[u8], index: usize) -> u8 {
    let low = scales[index % 8] >> (4 * (index / 8)) & 15;
    let high = scales[8 + index % 4] >> (2 * (index / 4)) & 3;
    low | high << 4
}

/// 256 codes: in each quarter, element `j` and `j + 32` share byte `j`.
fn wide_nibbles(raw: &[u8], codes: &mut [u8; 256]) {
    let quarters = codes.as_chunks_mut::<64>().0;
    for (raw, codes) in raw.as_chunks::<32>().0.iter().zip(quarters) {
        let (low, high) = codes.split_at_mut(32);
        for ((byte, low), high) in raw.iter().zip(low).zip(high) {
            *low = byte & 15;
            *high = byte >> 4;
        }
    }
}

fn q6_k(raw: &[u8], codes: &mut [u8; 256]) {
    for (block, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (block / 4, block % 4);
        let low = &raw[half * 64 + quarter % 2 * 32..][..32];
        let high = &raw[128 + half * 32..][..32];
        for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
            *code = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
        }
    }
}

fn tq1_0(raw: &[u8], codes: &mut [u8; 256]) {
    for (index, code) in codes.iter_mut().enumerate() {
        // 32 bytes of five digits, 16 bytes of five, 4 bytes of four; digits in planes.
        let (byte, digit) = match index {
            0..160 => (index % 32, index / 32),
            160..240 => (32 + (index - 160) % 16, (index - 160) / 16),
            _ => (48 + (index - 240) % 4, (index - 240) / 4),
        };
        let rest = raw[byte].wrapping_mul([1, 3, 9, 27, 81][digit]);
        *code = ((u16::from(rest) * 3) >> 8) as u8;
    }
}
