//! Kernels of the split form: the screen, which reads high nibbles only, and joining both halves again.
//!
//! The screen computes, for each row and token, over the blocks of 32 columns in their order,
//!
//! ```text
//! dot  = Σ (16 h - 120) * a                         exact, in integers
//! dot += Σ (l - 8) * a                              in blocks that are to be screened with all bits
//! sum += (dot * scale) * scale of a                 the second product fused
//! ```
//!
//! So all instruction sets give the same bits.

#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers, several of which share an index"
)]

use half::f16;

use super::Sums;
use crate::activations::WORDS;
use crate::packed::layout::{GROUP, SPAN, VECTOR, spec};
use crate::packed::split::{
    NIBBLES, SCALES, high_group_bytes, high_span_bytes, low_group_bytes, nibbles_at,
};
use crate::{Isa, TensorType};

/// A group of 16 rows to screen.
#[derive(Clone, Copy)]
pub(crate) struct ScreenGroup<'a> {
    pub(crate) high: &'a [u8],
    pub(crate) low: &'a [u8],
    /// Whether a block is screened with all its bits, [block].
    pub(crate) whole: &'a [bool],
}

/// Screens a group with the `width` tokens of `panel`.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn screen_tile(
    isa: Isa,
    group: ScreenGroup<'_>,
    panel: &[i32],
    width: usize,
    sums: &mut Sums,
) {
    let blocks = group.whole.len();
    assert_eq!(group.high.len(), high_group_bytes(blocks));
    assert_eq!(group.low.len(), low_group_bytes(blocks));
    assert_eq!(panel.len(), blocks * WORDS * width);
    assert!(width.is_power_of_two() && width <= sums.0.len());
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if Isa::Avx512.is_available() => {
            let run = match width {
                1 => screen_avx512::<1>,
                2 => screen_avx512::<2>,
                4 => screen_avx512::<4>,
                8 => screen_avx512::<8>,
                _ => screen_avx512::<16>,
            };
            // SAFETY: the features were found, and the lengths were checked above.
            unsafe { run(group, panel.as_ptr(), sums) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if Isa::Avx2.is_available() => {
            let run = match width {
                1 => screen_avx2::<1>,
                2 => screen_avx2::<2>,
                4 => screen_avx2::<4>,
                8 => screen_avx2::<8>,
                _ => screen_avx2::<16>,
            };
            // SAFETY: the features were found, and the lengths were checked above.
            unsafe { run(group, panel.as_ptr(), sums) }
        }
        _ => screen(group, panel, width, sums),
    }
}

/// Joins the parts of a group to the interleaved form of Q8_0.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn join(isa: Isa, high: &[u8], low: &[u8], blocks: usize, out: &mut [u8]) {
    assert_eq!(high.len(), high_group_bytes(blocks));
    assert_eq!(low.len(), low_group_bytes(blocks));
    let q8_0 = spec(TensorType::Q8_0);
    assert_eq!(out.len(), q8_0.group_bytes(blocks));
    let (mut high, mut low, mut out) = (high, low, out);
    for first in (0..blocks).step_by(SPAN) {
        let count = SPAN.min(blocks - first);
        let (high_span, later) = high.split_at(high_span_bytes(count));
        high = later;
        let (low_span, later) = low.split_at(low_group_bytes(count));
        low = later;
        let (span, later) = out.split_at_mut(q8_0.span_bytes(count));
        out = later;
        let (scales, codes) = span.split_at_mut(q8_0.codes_at(count));
        scales[..SCALES * count].copy_from_slice(&high_span[..SCALES * count]);
        let nibbles = &high_span[nibbles_at(count)..];
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 if Isa::Avx2.is_available() => {
                // SAFETY: AVX2 was found.
                unsafe { join_avx2(nibbles, low_span, codes) }
            }
            _ => join_span(nibbles, low_span, codes),
        }
    }
}

/// `Σ d (l - 8) x` of one row over the blocks that were not screened with all bits, and the sum of the squares of its
/// scales. Sums of 32 products are exact, the rest is in f64.
pub(crate) fn residual_product(
    group: ScreenGroup<'_>,
    lane: usize,
    panel: &[i32],
    width: usize,
    token: usize,
) -> (f64, f64) {
    let blocks = group.whole.len();
    let mut inputs = panel.chunks_exact(WORDS * width);
    let mut rest = group.high;
    let mut lows = group.whole.iter().zip(group.low.chunks_exact(NIBBLES));
    let (mut sum, mut squares) = (0.0, 0.0);
    for first in (0..blocks).step_by(SPAN) {
        let count = SPAN.min(blocks - first);
        let (span, later) = rest.split_at(high_span_bytes(count));
        rest = later;
        for ((block, input), (&whole, low)) in (0..count).zip(&mut inputs).zip(&mut lows) {
            let scale = f64::from(crate::packed::split::scale(span, block, lane));
            squares += scale * scale;
            if !whole {
                let dot = nibble_dot(low, lane, &input[8 * token..][..8]);
                let dot = dot + 8 * input[9 * width + token];
                let input_scale = f64::from(f32::from_bits(input[8 * width + token] as u32));
                sum += f64::from(dot) * scale * input_scale;
            }
        }
    }
    (sum, squares)
}

fn screen(group: ScreenGroup<'_>, panel: &[i32], width: usize, sums: &mut Sums) {
    let blocks = group.whole.len();
    let sums = &mut sums.0[..width];
    sums.fill([0.0; GROUP]);
    let mut inputs = panel.chunks_exact(WORDS * width);
    let mut rest = group.high;
    let mut lows = group.whole.iter().zip(group.low.chunks_exact(NIBBLES));
    for first in (0..blocks).step_by(SPAN) {
        let count = SPAN.min(blocks - first);
        let (span, later) = rest.split_at(high_span_bytes(count));
        rest = later;
        let nibbles = span[nibbles_at(count)..].chunks_exact(NIBBLES);
        let blocks = (0..count).zip(nibbles).zip(&mut inputs).zip(&mut lows);
        for (((block, nibbles), input), (&whole, low)) in blocks {
            for (token, sums) in sums.iter_mut().enumerate() {
                let codes = &input[8 * token..][..8];
                let scale = f32::from_bits(input[8 * width + token] as u32);
                let total = input[9 * width + token];
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let mut dot = 120 * total + 16 * nibble_dot(nibbles, lane, codes);
                    if whole {
                        dot += 8 * total + nibble_dot(low, lane, codes);
                    }
                    let own = &span[SCALES * block + 2 * lane..];
                    let own = f16::from_le_bytes([own[0], own[1]]).to_f32();
                    *sum = (dot as f32 * own).mul_add(scale, *sum);
                }
            }
        }
    }
}

/// `Σ nibble * a` of one row of a block.
#[inline(always)]
fn nibble_dot(nibbles: &[u8], lane: usize, codes: &[i32]) -> i32 {
    let mut dot = 0;
    for j in 0..4 {
        let word = &nibbles[VECTOR * j + 4 * lane..][..4];
        let (front, back) = (codes[j].to_le_bytes(), codes[4 + j].to_le_bytes());
        for q in 0..4 {
            dot += i32::from(word[q] & 15) * i32::from(front[q] as i8);
            dot += i32::from(word[q] >> 4) * i32::from(back[q] as i8);
        }
    }
    dot
}

/// # Safety
/// The features must be there, the group as long as its blocks say, and the panel of `T` tokens.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn screen_avx512<const T: usize>(
    group: ScreenGroup<'_>,
    panel: *const i32,
    sums: &mut Sums,
) {
    use std::arch::x86_64::*;

    let blocks = group.whole.len();
    let mut acc = [_mm512_setzero_ps(); T];
    let (mut span, mut input) = (group.high.as_ptr(), panel);
    let low_half = _mm512_set1_epi8(15);
    let high_half = _mm512_set1_epi8(0xf0u8 as i8);
    // SAFETY: what it is called with are a block's vectors. The high halves are 16 times too large.
    let unpack = |vectors: *const u8| unsafe {
        let mut weights = [_mm512_setzero_si512(); 8];
        for j in 0..4 {
            let both = _mm512_loadu_si512(vectors.add(VECTOR * j).cast());
            weights[j] = _mm512_and_si512(both, low_half);
            weights[4 + j] = _mm512_and_si512(both, high_half);
        }
        weights
    };
    // SAFETY: what it is called with are a token's words.
    let dot = |weights: &[__m512i; 8], codes: *const i32| unsafe {
        let mut dots = [_mm512_setzero_si512(); 2];
        for j in 0..8 {
            let a = _mm512_set1_epi32(*codes.add(j));
            dots[j / 4] = _mm512_dpbusd_epi32(dots[j / 4], weights[j], a);
        }
        _mm512_add_epi32(dots[0], _mm512_srai_epi32::<4>(dots[1]))
    };
    for first in (0..blocks).step_by(SPAN) {
        let count = SPAN.min(blocks - first);
        // SAFETY: the span lies in the group, the inputs in the panel.
        unsafe {
            // As in the product: the scales first, so that the stream stays straight.
            for line in (0..nibbles_at(count)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let nibbles = span.add(nibbles_at(count));
            for block in 0..count {
                let scale = _mm256_loadu_si256(span.add(SCALES * block).cast());
                let scale = _mm512_cvtph_ps(scale);
                let weights = unpack(nibbles.add(NIBBLES * block));
                let low = group.whole[first + block]
                    .then(|| unpack(group.low.as_ptr().add(NIBBLES * (first + block))));
                for token in 0..T {
                    let codes = input.add(8 * token);
                    let total = *input.add(9 * T + token);
                    let sixteen = _mm512_slli_epi32::<4>(dot(&weights, codes));
                    let mut dots = _mm512_add_epi32(sixteen, _mm512_set1_epi32(120 * total));
                    if let Some(low) = &low {
                        let low = _mm512_add_epi32(dot(low, codes), _mm512_set1_epi32(8 * total));
                        dots = _mm512_add_epi32(dots, low);
                    }
                    let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale);
                    let factor = _mm512_set1_ps(*input.add(8 * T + token).cast::<f32>());
                    acc[token] = _mm512_fmadd_ps(scaled, factor, acc[token]);
                }
                input = input.add(WORDS * T);
            }
            span = span.add(high_span_bytes(count));
        }
    }
    for (sums, acc) in sums.0.iter_mut().zip(acc) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
    }
}

/// # Safety
/// The features must be there, the group as long as its blocks say, and the panel of `T` tokens.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn screen_avx2<const T: usize>(group: ScreenGroup<'_>, panel: *const i32, sums: &mut Sums) {
    use std::arch::x86_64::*;

    let blocks = group.whole.len();
    let mut acc = [[_mm256_setzero_ps(); T]; 2];
    let (mut span, mut input) = (group.high.as_ptr(), panel);
    let low_half = _mm256_set1_epi8(15);
    let one = _mm256_set1_epi16(1);
    // SAFETY: what it is called with are halves of a block's vectors.
    let unpack = |vectors: *const u8| unsafe {
        let mut weights = [_mm256_setzero_si256(); 8];
        for j in 0..4 {
            let both = _mm256_loadu_si256(vectors.add(VECTOR * j).cast());
            weights[j] = _mm256_and_si256(both, low_half);
            weights[4 + j] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low_half);
        }
        weights
    };
    // SAFETY: what it is called with are a token's words. Eight pairs of products of at most 15 * 127 fit into 16 bits.
    let dot = |weights: &[__m256i; 8], codes: *const i32| unsafe {
        let mut pairs = _mm256_setzero_si256();
        for j in 0..8 {
            let a = _mm256_set1_epi32(*codes.add(j));
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[j], a));
        }
        _mm256_madd_epi16(pairs, one)
    };
    for first in (0..blocks).step_by(SPAN) {
        let count = SPAN.min(blocks - first);
        // SAFETY: the span lies in the group, the inputs in the panel.
        unsafe {
            for line in (0..nibbles_at(count)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let nibbles = span.add(nibbles_at(count));
            for block in 0..count {
                for (part, acc) in acc.iter_mut().enumerate() {
                    let scale = _mm_loadu_si128(span.add(SCALES * block + 16 * part).cast());
                    let scale = _mm256_cvtph_ps(scale);
                    let weights = unpack(nibbles.add(NIBBLES * block + 32 * part));
                    let low = group.whole[first + block].then(|| {
                        unpack(
                            group
                                .low
                                .as_ptr()
                                .add(NIBBLES * (first + block) + 32 * part),
                        )
                    });
                    for token in 0..T {
                        let codes = input.add(8 * token);
                        let total = *input.add(9 * T + token);
                        let sixteen = _mm256_slli_epi32::<4>(dot(&weights, codes));
                        let mut dots = _mm256_add_epi32(sixteen, _mm256_set1_epi32(120 * total));
                        if let Some(low) = &low {
                            let low =
                                _mm256_add_epi32(dot(low, codes), _mm256_set1_epi32(8 * total));
                            dots = _mm256_add_epi32(dots, low);
                        }
                        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scale);
                        let factor = _mm256_set1_ps(*input.add(8 * T + token).cast::<f32>());
                        acc[token] = _mm256_fmadd_ps(scaled, factor, acc[token]);
                    }
                }
                input = input.add(WORDS * T);
            }
            span = span.add(high_span_bytes(count));
        }
    }
    for (part, acc) in acc.iter().enumerate() {
        for (sums, &acc) in sums.0.iter_mut().zip(acc) {
            // SAFETY: 8 of 16 floats.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(8 * part), acc) };
        }
    }
}

#[inline(always)]
fn join_span(nibbles: &[u8], low: &[u8], codes: &mut [u8]) {
    let blocks = nibbles.as_chunks::<NIBBLES>().0.iter();
    let blocks = blocks.zip(low.as_chunks::<NIBBLES>().0);
    for ((high, low), out) in blocks.zip(codes.as_chunks_mut::<{ 2 * NIBBLES }>().0) {
        let (front, back) = out.split_at_mut(NIBBLES);
        for at in 0..NIBBLES {
            front[at] = high[at] << 4 | (low[at] & 15);
            back[at] = (high[at] & 0xf0) | low[at] >> 4;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn join_avx2(nibbles: &[u8], low: &[u8], codes: &mut [u8]) {
    join_span(nibbles, low, codes);
}
