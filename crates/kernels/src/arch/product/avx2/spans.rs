//! Formats whose scales are multiples of a unit for 256 columns.

use std::arch::x86_64::*;

use super::{REGISTER, ROWS, bytes, dots, halves, unpack, zero};
use crate::TensorType;
use crate::activations::WORDS;
use crate::arch::product::Sums;
use crate::packed::layout::{Codes, GROUP, SPAN, Scales, VECTOR, spec};

/// Products of a group of `blocks` blocks of type `TY` with a panel of `T` tokens.
///
/// # Safety
/// The features must be there, `group` and `panel` as long as `blocks` says, and the blocks whole spans.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn span_tile<const TY: u32, const T: usize>(
    group: *const u8,
    blocks: usize,
    panel: *const i32,
    sums: &mut Sums,
) {
    let spec = const { spec(TensorType::of(TY)) };
    let mut digits = Digits([0; 64 * VECTOR]);
    sums.0[..T].fill([0.0; GROUP]);
    for index in 0..blocks / SPAN {
        // SAFETY: the span lies in the group, its inputs in the panel.
        unsafe {
            let span = group.add(index * spec.span_bytes(SPAN));
            if let Codes::Ternary = spec.codes {
                unpack_digits(span.add(spec.scale_header()), &mut digits);
            }
            // As on AVX-512: the scales first, so that the stream stays straight.
            for line in (0..spec.codes_at(SPAN)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let input = panel.add(index * SPAN * WORDS * T);
            one_span::<TY, T>(span, &digits, input, sums);
        }
    }
}

/// Adds the products of one span with `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
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
        let mut acc = [[_mm256_setzero_ps(); T]; 2];
        let mut lows = [[_mm256_setzero_si256(); T]; 2];
        for index in 0..SPAN {
            let vectors = match spec.codes {
                Codes::Ternary => digits.0.as_ptr().add(index * 8 * VECTOR),
                _ => codes.add(index * spec.code_bytes()),
            };
            let input = inputs.add(index * WORDS * T);
            for part in 0..2 {
                let weights = unpack::<TY>(vectors.add(REGISTER * part));
                let scales = multiples::<TY>(span, index, part);
                match T {
                    1 => tokens::<TY, T, 1>(&weights, &scales, input, 0, &mut acc[part]),
                    2 => tokens::<TY, T, 2>(&weights, &scales, input, 0, &mut acc[part]),
                    _ => {
                        for first in (0..T).step_by(4) {
                            tokens::<TY, T, 4>(&weights, &scales, input, first, &mut acc[part]);
                        }
                    }
                }
                if spec.minima() > 0 {
                    let minima = minima::<TY>(span, index, part);
                    for token in 0..T {
                        let first = *input.add(9 * T + token);
                        let second = *input.add(10 * T + token);
                        let pair = _mm256_set1_epi32((first & 0xffff) | (second << 16));
                        let low = _mm256_madd_epi16(minima, pair);
                        lows[part][token] = _mm256_add_epi32(lows[part][token], low);
                    }
                }
            }
        }
        for part in 0..2 {
            let unit = halves(span, part);
            for token in 0..T {
                let mut whole = _mm256_mul_ps(acc[part][token], unit);
                if spec.minima() > 0 {
                    let low = _mm256_cvtepi32_ps(lows[part][token]);
                    whole = _mm256_fmadd_ps(low, halves(span.add(32), part), whole);
                }
                let scale = _mm256_set1_ps(*inputs.add(8 * T + token).cast());
                let sum = sums.0[token].as_mut_ptr().add(ROWS * part);
                _mm256_storeu_ps(sum, _mm256_fmadd_ps(whole, scale, _mm256_loadu_ps(sum)));
            }
        }
    }
}

/// Adds the products of one block with the `N` tokens from `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn tokens<const TY: u32, const T: usize, const N: usize>(
    weights: &[__m256i; 8],
    scales: &[__m256; 2],
    input: *const i32,
    first: usize,
    acc: &mut [__m256; T],
) {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the inputs have `T` tokens; the caller has the features.
    unsafe {
        let mut dots = dots::<TY, N>(weights, input.add(8 * first));
        for i in 0..N {
            let token = first + i;
            let sum = &mut acc[token];
            if let Some(shift) = zero::<TY>() {
                let halves = [9, 10].map(|word| *input.add(word * T + token));
                let starts = match spec.halves() {
                    2 => halves,
                    _ => [halves[0] + halves[1], 0],
                };
                for half in 0..spec.halves() {
                    let start = _mm256_set1_epi32(starts[half] << shift);
                    dots[half][i] = _mm256_add_epi32(dots[half][i], start);
                }
            }
            if let Scales::Span = spec.scales {
                *sum = _mm256_add_ps(_mm256_cvtepi32_ps(dots[0][i]), *sum);
                continue;
            }
            for half in 0..spec.halves() {
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[half][i]), scales[half], *sum);
            }
        }
    }
}

/// The multiples of the unit that are the scales of rows `8 part` and up in block `index`, of each half where the format
/// has two.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn multiples<const TY: u32>(span: *const u8, index: usize, part: usize) -> [__m256; 2] {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span.
    unsafe {
        let meta = span.add(spec.header() + index * spec.meta());
        let zero = _mm256_setzero_si256();
        let numbers = match spec.scales {
            Scales::SpanSix => [
                _mm256_sub_epi32(bytes(meta, part), _mm256_set1_epi32(32)),
                zero,
            ],
            Scales::SpanMinimum => [bytes(meta, part), zero],
            Scales::HalvesNibbles => [bytes(meta, part), bytes(meta.add(GROUP), part)]
                .map(|both| _mm256_and_si256(both, _mm256_set1_epi32(15))),
            Scales::HalvesSix => {
                let packed = span.add(32);
                [2 * index, 2 * index + 1].map(|place| {
                    let low = bytes(packed.add(GROUP * (place % 8)), part);
                    let high = bytes(packed.add(GROUP * (8 + place % 4)), part);
                    let low = _mm256_srlv_epi32(low, _mm256_set1_epi32(4 * (place / 8) as i32));
                    let high = _mm256_srlv_epi32(high, _mm256_set1_epi32(2 * (place / 4) as i32));
                    let low = _mm256_and_si256(low, _mm256_set1_epi32(15));
                    let high = _mm256_and_si256(high, _mm256_set1_epi32(3));
                    let number = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
                    _mm256_sub_epi32(number, _mm256_set1_epi32(32))
                })
            }
            Scales::HalvesSigned => [0, GROUP].map(|at| {
                let numbers = _mm_loadl_epi64(meta.add(at + ROWS * part).cast());
                _mm256_cvtepi8_epi32(numbers)
            }),
            // One, or none of this kind.
            _ => [zero; 2],
        };
        numbers.map(|numbers| _mm256_cvtepi32_ps(numbers))
    }
}

/// The multiples of the minima of rows `8 part` and up in block `index`, those of both halves as a pair.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn minima<const TY: u32>(span: *const u8, index: usize, part: usize) -> __m256i {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span.
    unsafe {
        let meta = span.add(spec.header() + index * spec.meta());
        let [first, second] = match spec.scales {
            Scales::SpanMinimum => [bytes(meta.add(GROUP), part); 2],
            _ => [meta, meta.add(GROUP)].map(|at| _mm256_srli_epi32::<4>(bytes(at, part))),
        };
        _mm256_or_si256(first, _mm256_slli_epi32::<16>(second))
    }
}

/// The codes of a span of ternary digits, 64 vectors.
#[repr(align(64))]
struct Digits([u8; 64 * VECTOR]);

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn unpack_digits(packed: *const u8, digits: &mut Digits) {
    let out = digits.0.as_mut_ptr();
    // SAFETY: the caller has the features and 13 vectors; `out` has 64.
    unsafe {
        for register in 0..26 {
            let (vector, part) = (register / 2, register % 2);
            let mut rest = _mm256_loadu_si256(packed.add(REGISTER * register).cast());
            let places = if vector < 12 { 5 } else { 4 };
            for place in 0..places {
                let group = if vector < 12 {
                    12 * place + vector
                } else {
                    60 + place
                };
                // The digit is the carry out of the byte when it is multiplied by 3.
                let above = |limit: u8| {
                    let limit = _mm256_set1_epi8(limit as i8);
                    _mm256_cmpeq_epi8(_mm256_max_epu8(rest, limit), rest)
                };
                let carries = _mm256_add_epi8(above(86), above(171));
                let digit = _mm256_sub_epi8(_mm256_setzero_si256(), carries);
                let at = out.add(VECTOR * group + REGISTER * part);
                _mm256_storeu_si256(at.cast(), digit);
                rest = _mm256_add_epi8(rest, _mm256_add_epi8(rest, rest));
            }
        }
    }
}
