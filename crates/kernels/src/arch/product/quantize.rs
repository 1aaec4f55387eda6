//! Activations → blocks of signed bytes.

use crate::Isa;
use crate::activations::WORDS;
use crate::packed::layout::{BLOCK, SPAN};

/// Blocks whose numbers are all smaller are zero.
const SMALLEST: f32 = 1e-30;

/// Quantises the rows of `x`, [tokens, cols], into a panel of `width` tokens; tokens that are missing become zero.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn quantize_rows(isa: Isa, x: &[f32], cols: usize, width: usize, panel: &mut [i32]) {
    let blocks = cols / BLOCK;
    assert!(cols.is_multiple_of(BLOCK) && x.len().is_multiple_of(cols) && x.len() <= width * cols);
    assert_eq!(panel.len(), blocks * WORDS * width);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if Isa::Avx512.is_available() => {
            // SAFETY: AVX-512 was found.
            unsafe { avx512::rows(x, cols, width, panel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 if Isa::Avx2.is_available() => {
            // SAFETY: AVX2 was found.
            unsafe { avx2::rows(x, cols, width, panel) }
        }
        _ => rows(x, cols, width, panel, largest_bits, codes),
    }
}

/// As [`quantize_rows`], with one scale for [`SPAN`] blocks.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn quantize_span_rows(
    isa: Isa,
    x: &[f32],
    cols: usize,
    width: usize,
    panel: &mut [i32],
) {
    let blocks = cols / BLOCK;
    assert!(cols.is_multiple_of(SPAN * BLOCK) && x.len().is_multiple_of(cols));
    assert!(x.len() <= width * cols);
    assert_eq!(panel.len(), blocks * WORDS * width);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if Isa::Avx512.is_available() => {
            // SAFETY: AVX-512 was found.
            unsafe { avx512::span_rows(x, cols, width, panel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 if Isa::Avx2.is_available() => {
            // SAFETY: AVX2 was found.
            unsafe { avx2::span_rows(x, cols, width, panel) }
        }
        _ => span_rows(x, cols, width, panel, largest_bits, codes),
    }
}

#[inline(always)]
fn rows(
    x: &[f32],
    cols: usize,
    width: usize,
    panel: &mut [i32],
    largest_bits: impl Fn(&[f32; BLOCK]) -> u32,
    codes: impl Fn(&[f32; BLOCK], f32) -> Codes,
) {
    let mut rows = x.chunks_exact(cols);
    for token in 0..width {
        // Row by row: a straight stream, which matters more than where the codes go.
        let mut blocks = rows.next().map(|row| row.as_chunks::<BLOCK>().0.iter());
        for panel in panel.chunks_exact_mut(WORDS * width) {
            let x = blocks.as_mut().and_then(Iterator::next);
            let largest = x.map_or(0, &largest_bits);
            let (Codes(words, sums), scale) = match (x, scale(largest)) {
                (Some(x), Some((scale, inverse))) => (codes(x, inverse), scale),
                _ => (Codes([0; 8], [0; 2]), not_finite_scale(largest)),
            };
            let total = sums[0] + sums[1];
            panel[8 * token..8 * token + 8].copy_from_slice(&words);
            let words = &mut panel[8 * width..][..4 * width];
            words[token] = rounded_to_half(scale).to_bits() as i32;
            words[width + token] = total;
            words[2 * width + token] = sums[0];
            let scaled_sum = rounded_to_half(scale * total as f32);
            words[3 * width + token] = scaled_sum.to_bits() as i32;
        }
    }
}

#[inline(always)]
fn span_rows(
    x: &[f32],
    cols: usize,
    width: usize,
    panel: &mut [i32],
    largest_bits: impl Fn(&[f32; BLOCK]) -> u32,
    codes: impl Fn(&[f32; BLOCK], f32) -> Codes,
) {
    let mut rows = x.chunks_exact(cols);
    for token in 0..width {
        let mut spans = rows
            .next()
            .map(|row| row.as_chunks::<BLOCK>().0.chunks_exact(SPAN));
        for panel in panel.chunks_exact_mut(SPAN * WORDS * width) {
            let x = spans.as_mut().and_then(Iterator::next).unwrap_or(&[]);
            let largest = x.iter().map(&largest_bits).max().unwrap_or(0);
            let (scale, inverse) = match scale(largest) {
                // The exact inverse of the factor: other engines do the same for these formats.
                Some((_, inverse)) => (1.0 / inverse, Some(inverse)),
                None => (not_finite_scale(largest), None),
            };
            let mut totals = [0; SPAN];
            for (index, panel) in panel.chunks_exact_mut(WORDS * width).enumerate() {
                let Codes(words, sums) = match (x.get(index), inverse) {
                    (Some(x), Some(inverse)) => codes(x, inverse),
                    _ => Codes([0; 8], [0; 2]),
                };
                totals[index] = sums[0] + sums[1];
                panel[8 * token..8 * token + 8].copy_from_slice(&words);
                panel[8 * width + token] = scale.to_bits() as i32;
                panel[9 * width + token] = sums[0];
                panel[10 * width + token] = sums[1];
                panel[11 * width + token] = 0;
            }
            for (pair, totals) in totals.chunks_exact(2).enumerate() {
                let word = (totals[0] & 0xffff) | (totals[1] << 16);
                panel[(2 * pair * WORDS + 11) * width + token] = word;
            }
        }
    }
}

/// A block's codes as words of four, and the negated sums of the first and the last 16.
struct Codes([i32; 8], [i32; 2]);

/// The bits of the largest size of a block: as bits, sizes order like integers, with infinity and NaN above all others.
fn largest_bits(x: &[f32; BLOCK]) -> u32 {
    x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0)
}

fn codes(x: &[f32; BLOCK], inverse: f32) -> Codes {
    let codes: [i8; BLOCK] = x.map(|x| (x * inverse).round_ties_even() as i8);
    let sum = |codes: &[i8]| -codes.iter().map(|&x| i32::from(x)).sum::<i32>();
    let words = std::array::from_fn(|word| {
        i32::from_le_bytes(std::array::from_fn(|byte| codes[4 * word + byte] as u8))
    });
    Codes(words, [sum(&codes[..16]), sum(&codes[16..])])
}

/// Scale and its inverse for a block whose largest size has these bits; `None` if its codes are all zero.
#[inline(always)]
fn scale(largest: u32) -> Option<(f32, f32)> {
    let largest = f32::from_bits(largest);
    (SMALLEST..f32::INFINITY)
        .contains(&largest)
        .then(|| (largest * (1.0 / 127.0), 127.0 / largest))
}

/// The nearest half-precision number where that has all its digits, else the number itself. The codes belong to the
/// unrounded scale. Other engines store scales and scaled sums of activations so; with the same rounding, codes near a
/// tie fall to the same side in layer after layer.
#[inline(always)]
fn rounded_to_half(x: f32) -> f32 {
    const NORMAL: std::ops::Range<f32> = 6.103_515_6e-5..65_504.0;
    if !NORMAL.contains(&x.abs()) {
        return x;
    }
    let bits = x.to_bits();
    f32::from_bits((bits + 0xfff + ((bits >> 13) & 1)) & !0x1fff)
}

/// The scale of a block of zeros, or of one with a number that is not finite.
#[inline(always)]
fn not_finite_scale(largest: u32) -> f32 {
    if f32::from_bits(largest) < SMALLEST {
        0.0
    } else {
        f32::NAN
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Codes};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn rows(x: &[f32], cols: usize, width: usize, panel: &mut [i32]) {
        super::rows(
            x,
            cols,
            width,
            panel,
            |x| largest_bits(x),
            |x, inverse| codes(x, inverse),
        );
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn span_rows(x: &[f32], cols: usize, width: usize, panel: &mut [i32]) {
        super::span_rows(
            x,
            cols,
            width,
            panel,
            |x| largest_bits(x),
            |x, inverse| codes(x, inverse),
        );
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn largest_bits(x: &[f32; BLOCK]) -> u32 {
        let sign = _mm256_set1_epi32(i32::MAX);
        let size = load(x).map(|v| _mm256_and_si256(_mm256_castps_si256(v), sign));
        largest_lane(_mm256_max_epu32(
            _mm256_max_epu32(size[0], size[1]),
            _mm256_max_epu32(size[2], size[3]),
        ))
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) fn largest_lane(lanes: __m256i) -> u32 {
        let most = _mm_max_epu32(
            _mm256_castsi256_si128(lanes),
            _mm256_extracti128_si256::<1>(lanes),
        );
        let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
        let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
        _mm_cvtsi128_si32(most) as u32
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn codes(x: &[f32; BLOCK], inverse: f32) -> Codes {
        let inverse = _mm256_set1_ps(inverse);
        let codes = load(x).map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)));
        let words = _mm256_packs_epi16(
            _mm256_packs_epi32(codes[0], codes[1]),
            _mm256_packs_epi32(codes[2], codes[3]),
        );
        // The packs work on halves of 128 bits: words 0, 2, 4, 6 of the codes come first.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let codes = _mm256_permutevar8x32_epi32(words, order);
        let mut out = [0; 8];
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), codes) };
        Codes(out, negated_sums(codes))
    }

    /// The negated sums of the first and the last 16 codes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) fn negated_sums(codes: __m256i) -> [i32; 2] {
        // Sums of eight unsigned bytes each, every byte 128 too large.
        let unsigned = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
        let eights = _mm256_sad_epu8(unsigned, _mm256_setzero_si256());
        let (low, high) = (
            _mm256_castsi256_si128(eights),
            _mm256_extracti128_si256::<1>(eights),
        );
        let halves = _mm_add_epi64(_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high));
        let first = 128 * 16 - _mm_cvtsi128_si32(halves);
        let second = 128 * 16 - _mm_extract_epi32::<2>(halves);
        [first, second]
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn load(x: &[f32; BLOCK]) -> [__m256; 4] {
        // SAFETY: 8 of 32 numbers each.
        std::array::from_fn(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) })
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::avx2::{largest_lane, negated_sums};
    use super::{BLOCK, Codes};

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    pub(super) fn rows(x: &[f32], cols: usize, width: usize, panel: &mut [i32]) {
        let (largest, codes) = (|x: &_| largest_bits(x), |x: &_, inverse| codes(x, inverse));
        super::rows(x, cols, width, panel, largest, codes);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    pub(super) fn span_rows(x: &[f32], cols: usize, width: usize, panel: &mut [i32]) {
        let (largest, codes) = (|x: &_| largest_bits(x), |x: &_, inverse| codes(x, inverse));
        super::span_rows(x, cols, width, panel, largest, codes);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    #[inline]
    fn largest_bits(x: &[f32; BLOCK]) -> u32 {
        let sign = _mm512_set1_epi32(i32::MAX);
        let [first, second] = load(x).map(|v| _mm512_and_si512(_mm512_castps_si512(v), sign));
        let most = _mm512_max_epu32(first, second);
        largest_lane(_mm256_max_epu32(
            _mm512_castsi512_si256(most),
            _mm512_extracti64x4_epi64::<1>(most),
        ))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    #[inline]
    fn codes(x: &[f32; BLOCK], inverse: f32) -> Codes {
        let inverse = _mm512_set1_ps(inverse);
        let [first, second] =
            load(x).map(|v| _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, inverse))));
        let codes = _mm256_set_m128i(second, first);
        let mut out = [0; 8];
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), codes) };
        Codes(out, negated_sums(codes))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    #[inline]
    fn load(x: &[f32; BLOCK]) -> [__m512; 2] {
        // SAFETY: 16 of 32 numbers each.
        std::array::from_fn(|i| unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * i)) })
    }
}
