//! Activations → blocks of signed bytes.

use crate::Isa;
use crate::activations::WORDS;
use crate::packed::layout::BLOCK;

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
        Isa::Avx2 | Isa::Avx512 if Isa::Avx2.is_available() => {
            // SAFETY: AVX2 was found.
            unsafe { rows_avx2(x, cols, width, panel) }
        }
        _ => rows(x, cols, width, panel, block),
    }
}

/// A block's codes as words of four, its scale, the negated sums of all codes and of the first 16.
type Quantised = ([i32; 8], f32, [i32; 2]);

#[inline(always)]
fn rows(
    x: &[f32],
    cols: usize,
    width: usize,
    panel: &mut [i32],
    block: impl Fn(&[f32; BLOCK]) -> Quantised,
) {
    let mut rows = x.chunks_exact(cols);
    for token in 0..width {
        // Row by row: a straight stream, which matters more than where the codes go.
        let mut blocks = rows.next().map(|row| row.as_chunks::<BLOCK>().0.iter());
        for panel in panel.chunks_exact_mut(WORDS * width) {
            let x = blocks.as_mut().and_then(Iterator::next);
            let (codes, scale, sums) = x.map_or(([0; 8], 0.0, [0; 2]), &block);
            panel[8 * token..8 * token + 8].copy_from_slice(&codes);
            let words = &mut panel[8 * width..][..4 * width];
            words[token] = scale.to_bits() as i32;
            words[width + token] = sums[0];
            words[2 * width + token] = sums[1];
            words[3 * width + token] = (scale * sums[0] as f32).to_bits() as i32;
        }
    }
}

fn block(x: &[f32; BLOCK]) -> Quantised {
    // As bits sizes order like integers, with infinity and NaN above all others.
    let largest = x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0);
    let Some((scale, inverse)) = scale(largest) else {
        return ([0; 8], not_finite_scale(largest), [0; 2]);
    };
    let codes: [i8; BLOCK] = x.map(|x| (x * inverse).round_ties_even() as i8);
    let sum = |codes: &[i8]| -codes.iter().map(|&x| i32::from(x)).sum::<i32>();
    let words = std::array::from_fn(|word| {
        i32::from_le_bytes(std::array::from_fn(|byte| codes[4 * word + byte] as u8))
    });
    (words, scale, [sum(&codes), sum(&codes[..16])])
}

/// Scale and its inverse for a block whose largest size has these bits; `None` if its codes are all zero.
#[inline(always)]
fn scale(largest: u32) -> Option<(f32, f32)> {
    let largest = f32::from_bits(largest);
    (SMALLEST..f32::INFINITY)
        .contains(&largest)
        .then(|| (largest / 127.0, 127.0 / largest))
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
#[target_feature(enable = "avx2,fma")]
fn rows_avx2(x: &[f32], cols: usize, width: usize, panel: &mut [i32]) {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn block(x: &[f32; BLOCK]) -> Quantised {
        // SAFETY: loads and stores stay within `x` and local arrays.
        unsafe {
            let v: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
            let sign = _mm256_set1_epi32(i32::MAX);
            let size = v.map(|v| _mm256_and_si256(_mm256_castps_si256(v), sign));
            let most = _mm256_max_epu32(
                _mm256_max_epu32(size[0], size[1]),
                _mm256_max_epu32(size[2], size[3]),
            );
            let most = _mm_max_epu32(
                _mm256_castsi256_si128(most),
                _mm256_extracti128_si256::<1>(most),
            );
            let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
            let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
            let largest = _mm_cvtsi128_si32(most) as u32;
            let Some((scale, inverse)) = scale(largest) else {
                return ([0; 8], not_finite_scale(largest), [0; 2]);
            };
            let inverse = _mm256_set1_ps(inverse);
            let codes = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)));
            let ends = [
                _mm256_add_epi32(codes[0], codes[1]),
                _mm256_add_epi32(codes[2], codes[3]),
            ];
            let sum = |v: __m256i| {
                let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
                let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
                -_mm_cvtsi128_si32(v)
            };
            let sums = [sum(_mm256_add_epi32(ends[0], ends[1])), sum(ends[0])];
            let words = _mm256_packs_epi16(
                _mm256_packs_epi32(codes[0], codes[1]),
                _mm256_packs_epi32(codes[2], codes[3]),
            );
            // The packs work on halves of 128 bits: words 0, 2, 4, 6 of the codes come first.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let mut out = [0; 8];
            _mm256_storeu_si256(
                out.as_mut_ptr().cast(),
                _mm256_permutevar8x32_epi32(words, order),
            );
            (out, scale, sums)
        }
    }

    rows(x, cols, width, panel, |x| block(x));
}
