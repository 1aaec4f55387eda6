//! Formats whose scales are multiples of a unit for 256 columns.

use std::arch::x86_64::*;

use super::{bytes, dots, four_tokens, halves, in_memory, unpack};
use crate::TensorType;
use crate::activations::WORDS;
use crate::arch::product::Sums;
use crate::packed::layout::{Codes, SPAN, Scales, VECTOR, spec};

/// Products of a group of `blocks` blocks of type `TY` with a panel of `T` tokens.
///
/// # Safety
/// The features must be there, `group` and `panel` as long as `blocks` says, and the blocks whole spans.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn span_tile<const TY: u32, const T: usize>(
    group: *const u8,
    blocks: usize,
    panel: *const i32,
    sums: &mut Sums,
) {
    let spec = const { spec(TensorType::of(TY)) };
    let mut digits = Digits([0; 64 * VECTOR]);
    sums.0[..T].fill([0.0; 16]);
    for index in 0..blocks / SPAN {
        // SAFETY: the span lies in the group, its inputs in the panel.
        unsafe {
            let span = group.add(index * spec.span_bytes(SPAN));
            if let Codes::Ternary = spec.codes {
                unpack_digits(span.add(spec.scale_header()), &mut digits);
            }
            // The scales first, so that the stream stays straight.
            for line in (0..spec.codes_at(SPAN)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let input = panel.add(index * SPAN * WORDS * T);
            one_span::<TY, T>(span, &digits, input, sums);
        }
    }
}

/// Adds the products of one span with `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn one_span<const TY: u32, const T: usize>(
    span: *const u8,
    digits: &Digits,
    inputs: *const i32,
    sums: &mut Sums,
) {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features, a span, and inputs of `SPAN * WORDS * T` words.
    unsafe {
        let codes = span.add(spec.codes_at(SPAN));
        let mut acc = [_mm512_setzero_ps(); T];
        // Σ a of the first and the second 16 columns as a pair, where minima need it, [block, token].
        let mut pairs = [[0i32; T]; SPAN];
        for index in 0..SPAN {
            let vectors = match spec.codes {
                Codes::Ternary => digits.0.as_ptr().add(index * 8 * VECTOR),
                _ => codes.add(index * spec.code_bytes()),
            };
            let input = inputs.add(index * WORDS * T);
            let weights = unpack::<TY>(vectors);
            let scales = multiples::<TY>(span, index);
            block::<TY, T>(&weights, &scales, input, &mut acc);
            if spec.minima() == 2 {
                for token in 0..T {
                    let (first, second) = (*input.add(9 * T + token), *input.add(10 * T + token));
                    pairs[index][token] = (first & 0xffff) | (second << 16);
                }
            }
        }
        if spec.minima() == 2 {
            in_memory(&pairs);
        }

        let unit = halves(span);
        let lows = minima::<TY>(span);
        for (token, acc) in acc.iter().enumerate() {
            let mut whole = _mm512_mul_ps(*acc, unit);
            if spec.minima() > 0 {
                let mut low = _mm512_setzero_si512();
                for (place, lows) in lows.iter().enumerate() {
                    let pair = match spec.minima() {
                        // Of two blocks.
                        1 if place < SPAN / 2 => *inputs.add((2 * place * WORDS + 11) * T + token),
                        1 => break,
                        _ => pairs[place][token],
                    };
                    low = _mm512_dpwssd_epi32(low, *lows, _mm512_set1_epi32(pair));
                }
                let unit = halves(span.add(32));
                whole = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), unit, whole);
            }
            let scale = _mm512_set1_ps(*inputs.add(8 * T + token).cast());
            let sum = sums.0[token].as_mut_ptr();
            _mm512_storeu_ps(sum, _mm512_fmadd_ps(whole, scale, _mm512_loadu_ps(sum)));
        }
    }
}

/// Adds the products of one block with `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn block<const TY: u32, const T: usize>(
    w: &[__m512i; 8],
    scales: &[__m512; 2],
    input: *const i32,
    acc: &mut [__m512; T],
) {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: `input` has `WORDS * T` words; the caller has the features.
    unsafe {
        let (firsts, seconds) = (input.add(9 * T), input.add(10 * T));
        // What the zero point takes away, for all tokens at once.
        let mut starts = [[0i32; T]; 2];
        if let Some(shift) = spec.zero_shift {
            for token in 0..T {
                let (first, second) = (*firsts.add(token), *seconds.add(token));
                if spec.halves() == 2 {
                    starts[0][token] = first << shift;
                    starts[1][token] = second << shift;
                } else {
                    starts[0][token] = (first + second) << shift;
                }
            }
            if T >= 4 {
                in_memory(&starts);
            }
        }
        for half in 0..spec.halves() {
            let vectors = 4 * half..8 / (spec.halves() - half);
            for first in (0..T).step_by(4) {
                let codes = input.add(8 * first);
                let Some(four) = acc[first..].first_chunk_mut() else {
                    for token in first..T {
                        let mut dot = [_mm512_set1_epi32(starts[half][token])];
                        dots(&mut dot, w, vectors.clone(), input.add(8 * token));
                        let dot = _mm512_cvtepi32_ps(dot[0]);
                        acc[token] = _mm512_fmadd_ps(dot, scales[half], acc[token]);
                    }
                    continue;
                };
                let starts = starts[half].as_ptr().add(first);
                match (spec.halves(), spec.zero_shift) {
                    (1, None) => four_whole(four, w, scales[0], codes),
                    (1, Some(_)) => four_whole_with_zero(four, w, scales[0], codes, starts),
                    (_, None) => four_half(four, w, half, scales[half], codes),
                    (_, Some(_)) => {
                        four_half_with_zero(four, w, half, scales[half], codes, starts);
                    }
                }
            }
        }
    }
}

/// Adds the products of a block with four tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn four_whole(acc: &mut [__m512; 4], w: &[__m512i; 8], scale: __m512, codes: *const i32) {
    // SAFETY: the caller has the features and four tokens of a block.
    unsafe {
        four_tokens!(
            acc, codes,
            [from_zero dots to_float add_times_scale],
            [w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5], w6 = w[6], w7 = w[7]],
            scale = in(zmm_reg) scale,
        );
    }
}

/// Adds the products of a block with four tokens, where the format has a zero point.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn four_whole_with_zero(
    acc: &mut [__m512; 4],
    w: &[__m512i; 8],
    scale: __m512,
    codes: *const i32,
    starts: *const i32,
) {
    // SAFETY: the caller has the features and four tokens of a block.
    unsafe {
        four_tokens!(
            acc, codes,
            [from_starts dots to_float add_times_scale],
            [w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5], w6 = w[6], w7 = w[7]],
            starts = in(reg) starts,
            scale = in(zmm_reg) scale,
        );
    }
}

/// Adds the products of half a block with four tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn four_half(
    acc: &mut [__m512; 4],
    w: &[__m512i; 8],
    half: usize,
    scale: __m512,
    codes: *const i32,
) {
    let j = 4 * half;
    // SAFETY: the caller has the features and four tokens of a block.
    unsafe {
        four_tokens!(
            acc, codes.add(j),
            [from_zero half_dots to_float add_times_scale],
            [w0 = w[j], w1 = w[j + 1], w2 = w[j + 2], w3 = w[j + 3]],
            scale = in(zmm_reg) scale,
        );
    }
}

/// Adds the products of half a block with four tokens, where the format has a zero point.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn four_half_with_zero(
    acc: &mut [__m512; 4],
    w: &[__m512i; 8],
    half: usize,
    scale: __m512,
    codes: *const i32,
    starts: *const i32,
) {
    let j = 4 * half;
    // SAFETY: the caller has the features and four tokens of a block.
    unsafe {
        four_tokens!(
            acc, codes.add(j),
            [from_starts half_dots to_float add_times_scale],
            [w0 = w[j], w1 = w[j + 1], w2 = w[j + 2], w3 = w[j + 3]],
            starts = in(reg) starts,
            scale = in(zmm_reg) scale,
        );
    }
}

/// The multiples of the unit that are the scales of block `index`, of each half where the format has two.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn multiples<const TY: u32>(span: *const u8, index: usize) -> [__m512; 2] {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span.
    unsafe {
        let meta = span.add(spec.header() + index * spec.meta());
        let zero = _mm512_setzero_si512();
        let numbers = match spec.scales {
            Scales::SpanSix => [_mm512_sub_epi32(bytes(meta), _mm512_set1_epi32(32)), zero],
            Scales::SpanMinimum => [bytes(meta), zero],
            Scales::HalvesNibbles => [bytes(meta), bytes(meta.add(16))]
                .map(|both| _mm512_and_si512(both, _mm512_set1_epi32(15))),
            Scales::HalvesSix => {
                let packed = span.add(32);
                [2 * index, 2 * index + 1].map(|place| {
                    let low = bytes(packed.add(16 * (place % 8)));
                    let high = bytes(packed.add(16 * (8 + place % 4)));
                    let low = _mm512_srlv_epi32(low, _mm512_set1_epi32(4 * (place / 8) as i32));
                    let high = _mm512_srlv_epi32(high, _mm512_set1_epi32(2 * (place / 4) as i32));
                    let low = _mm512_and_si512(low, _mm512_set1_epi32(15));
                    let high = _mm512_and_si512(high, _mm512_set1_epi32(3));
                    let number = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
                    _mm512_sub_epi32(number, _mm512_set1_epi32(32))
                })
            }
            Scales::HalvesSigned => {
                [0, 16].map(|at| _mm512_cvtepi8_epi32(_mm_loadu_si128(meta.add(at).cast())))
            }
            // The unit itself.
            _ => [_mm512_set1_epi32(1), zero],
        };
        numbers.map(|numbers| _mm512_cvtepi32_ps(numbers))
    }
}

/// The multiples of a span's minima: pairs of blocks in the first four vectors, or the halves of each block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn minima<const TY: u32>(span: *const u8) -> [__m512i; SPAN] {
    let spec = const { spec(TensorType::of(TY)) };
    let mut out = [_mm512_setzero_si512(); SPAN];
    let meta = |index: usize| spec.header() + index * spec.meta();
    // SAFETY: the caller has the features and a span.
    unsafe {
        match spec.scales {
            Scales::SpanMinimum => {
                for pair in 0..SPAN / 2 {
                    let first = bytes(span.add(meta(2 * pair) + 16));
                    let second = bytes(span.add(meta(2 * pair + 1) + 16));
                    out[pair] = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
                }
            }
            Scales::HalvesNibbles => {
                for index in 0..SPAN {
                    let first = _mm512_srli_epi32::<4>(bytes(span.add(meta(index))));
                    let second = _mm512_srli_epi32::<4>(bytes(span.add(meta(index) + 16)));
                    out[index] = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
                }
            }
            _ => (),
        }
    }
    out
}

/// The codes of a span of ternary digits, 64 vectors.
#[repr(align(64))]
struct Digits([u8; 64 * VECTOR]);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn unpack_digits(packed: *const u8, digits: &mut Digits) {
    let out = digits.0.as_mut_ptr();
    // SAFETY: the caller has the features and 13 vectors; `out` has 64.
    unsafe {
        for vector in 0..13 {
            let mut rest = _mm512_loadu_si512(packed.add(VECTOR * vector).cast());
            let places = if vector < 12 { 5 } else { 4 };
            for place in 0..places {
                let group = if vector < 12 {
                    12 * place + vector
                } else {
                    60 + place
                };
                // The digit is the carry out of the byte when it is multiplied by 3.
                let above = |limit: i8| _mm512_cmpge_epu8_mask(rest, _mm512_set1_epi8(limit));
                let one = _mm512_set1_epi8(1);
                let digit = _mm512_maskz_mov_epi8(above(86), one);
                let digit = _mm512_mask_add_epi8(digit, above(171u8 as i8), digit, one);
                _mm512_storeu_si512(out.add(VECTOR * group).cast(), digit);
                rest = _mm512_add_epi8(rest, _mm512_add_epi8(rest, rest));
            }
        }
    }
}
