//! Reads single blocks.

use half::f16;

use super::{has_minima, zero};
use crate::TensorType;

/// The codebook of IQ4_NL and IQ4_XS, plus 128.
pub(crate) const IQ4_CODES: [u8; 16] = [
    1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241,
];

/// The codebook of MXFP4 (twice the E2M1 numbers), plus 16.
pub(crate) const MXFP4_CODES: [u8; 16] =
    [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

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

/// Decodes one block of a quantised format; `raw` has the block's length.
pub(crate) fn decode(ty: TensorType, raw: &[u8], out: &mut Decoded) {
    use TensorType::*;
    match ty {
        F32 | F16 | BF16 => unreachable!("float formats have no codes"),
        Q4_0 => {
            out.scales[..2].fill(half_at(raw, 0));
            nibbles(&raw[2..], &mut out.codes);
        }
        Q4_1 => {
            out.scales[..2].fill(half_at(raw, 0));
            out.minima[..2].fill(-half_at(raw, 2));
            nibbles(&raw[4..], &mut out.codes);
        }
        Q5_0 => {
            out.scales[..2].fill(half_at(raw, 0));
            nibbles(&raw[6..], &mut out.codes);
            fifth_bits(&raw[2..6], &mut out.codes);
        }
        Q5_1 => {
            out.scales[..2].fill(half_at(raw, 0));
            out.minima[..2].fill(-half_at(raw, 2));
            nibbles(&raw[8..], &mut out.codes);
            fifth_bits(&raw[4..8], &mut out.codes);
        }
        Q8_0 => {
            out.scales[..2].fill(half_at(raw, 0));
            for (code, byte) in out.codes.iter_mut().zip(&raw[2..]) {
                *code = byte ^ 0x80;
            }
        }
        IQ4_NL => {
            out.scales[..2].fill(half_at(raw, 0));
            nibbles(&raw[2..], &mut out.codes);
            look_up(&IQ4_CODES, &mut out.codes[..32]);
        }
        MXFP4 => {
            out.scales[..2].fill(e8m0_half(raw[0]));
            nibbles(&raw[1..], &mut out.codes);
            look_up(&MXFP4_CODES, &mut out.codes[..32]);
        }
        IQ4_XS => iq4_xs(raw, out),
        Q2_K => q2_k(raw, out),
        Q3_K => q3_k(raw, out),
        Q4_K | Q5_K => q45_k(ty, raw, out),
        Q6_K => q6_k(raw, out),
        TQ1_0 => tq1_0(raw, out),
        TQ2_0 => {
            out.scales.fill(half_at(raw, 64));
            two_bits(raw, &mut out.codes);
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
pub(crate) fn scale_min_k4(scales: &[u8], index: usize) -> (u8, u8) {
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
    for (index, code) in codes.iter_mut().enumerate() {
        let (half, shift, byte) = (index / 128, index / 32 % 4, index % 32);
        *code = raw[half * 32 + byte] >> (2 * shift) & 3;
    }
}

fn iq4_xs(raw: &[u8], out: &mut Decoded) {
    let scale = half_at(raw, 0);
    let high = u16::from_le_bytes([raw[2], raw[3]]);
    for block in 0..8 {
        let low = raw[4 + block / 2] >> (4 * (block % 2)) & 15;
        let bits = i32::from(low) | i32::from(high >> (2 * block) & 3) << 4;
        out.scales[2 * block..][..2].fill(scale * (bits - 32) as f32);
        nibbles(&raw[8 + 16 * block..], &mut out.codes[32 * block..]);
    }
    look_up(&IQ4_CODES, &mut out.codes);
}

fn q2_k(raw: &[u8], out: &mut Decoded) {
    let (scale, minimum) = (half_at(raw, 80), half_at(raw, 82));
    for index in 0..16 {
        out.scales[index] = scale * f32::from(raw[index] & 15);
        out.minima[index] = minimum * f32::from(raw[index] >> 4);
    }
    two_bits(&raw[16..80], &mut out.codes);
}

fn q3_k(raw: &[u8], out: &mut Decoded) {
    let scale = half_at(raw, 108);
    for index in 0..16 {
        out.scales[index] = scale * (i32::from(scale_k3(&raw[96..108], index)) - 32) as f32;
    }
    two_bits(&raw[32..96], &mut out.codes);
    for (index, code) in out.codes.iter_mut().enumerate() {
        *code |= (raw[index % 32] >> (index / 32) & 1) << 2;
    }
}

/// 6-bit scale number `index` of the 12 bytes in Q3_K.
pub(super) fn scale_k3(scales: &[u8], index: usize) -> u8 {
    let low = scales[index % 8] >> (4 * (index / 8)) & 15;
    let high = scales[8 + index % 4] >> (2 * (index / 4)) & 3;
    low | high << 4
}

fn q45_k(ty: TensorType, raw: &[u8], out: &mut Decoded) {
    let (scale, minimum) = (half_at(raw, 0), half_at(raw, 2));
    let low = if ty == TensorType::Q4_K { 16 } else { 48 };
    for block in 0..8 {
        let (s, m) = scale_min_k4(&raw[4..16], block);
        out.scales[2 * block..][..2].fill(scale * f32::from(s));
        out.minima[2 * block..][..2].fill(minimum * f32::from(m));
        for index in 0..32 {
            let byte = raw[low + block / 2 * 32 + index];
            let mut code = byte >> (4 * (block % 2)) & 15;
            if ty == TensorType::Q5_K {
                code |= (raw[16 + index] >> block & 1) << 4;
            }
            out.codes[32 * block + index] = code;
        }
    }
}

fn q6_k(raw: &[u8], out: &mut Decoded) {
    let scale = half_at(raw, 208);
    for index in 0..16 {
        out.scales[index] = scale * f32::from(raw[192 + index] as i8);
    }
    for (index, code) in out.codes.iter_mut().enumerate() {
        let (half, quarter, place) = (index / 128, index / 32 % 4, index % 32);
        let low = raw[half * 64 + quarter % 2 * 32 + place] >> (4 * (quarter / 2)) & 15;
        let high = raw[128 + half * 32 + place] >> (2 * quarter) & 3;
        *code = low | high << 4;
    }
}

fn tq1_0(raw: &[u8], out: &mut Decoded) {
    out.scales.fill(half_at(raw, 52));
    for (index, code) in out.codes.iter_mut().enumerate() {
        // 32 bytes of five digits, 16 bytes of five, 4 bytes of four; digits in planes.
        let (byte, digit) = match index {
            0..160 => (index % 32, index / 32),
            160..240 => (32 + (index - 160) % 16, (index - 160) / 16),
            _ => (48 + (index - 240) % 4, (index - 240) / 4),
        };
        let rest = raw[byte].wrapping_mul([1, 3, 9, 27, 81][digit]);
        *code = (u16::from(rest) * 3 >> 8) as u8;
    }
}
