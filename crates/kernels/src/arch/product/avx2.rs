//! AVX2: 8 rows in the lanes, four columns at a time, products in pairs of 16 bits.

#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers, several of which share an index"
)]

use std::arch::x86_64::*;

use super::{Group, Sums};
use crate::activations::WORDS;
use crate::packed::layout::{Codes, GROUP, SPAN, Scales, VECTOR, spec};
use crate::{Isa, TensorType};

/// Proof that AVX2, FMA and F16C are there.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Rows in a register.
const ROWS: usize = 8;
/// Bytes of a register.
const REGISTER: usize = 32;

impl Avx2 {
    /// The proof, if this machine has the instruction set.
    #[inline]
    pub(super) fn detect() -> Option<Avx2> {
        Isa::Avx2.is_available().then_some(Avx2(()))
    }

    /// Products of `group` with the `width` tokens of `panel`.
    ///
    /// # Panics
    /// If the lengths disagree.
    pub(super) fn tile(self, group: Group<'_>, panel: &[i32], width: usize, sums: &mut Sums) {
        assert_eq!(group.bytes.len(), spec(group.ty).group_bytes(group.blocks));
        assert_eq!(panel.len(), group.blocks * WORDS * width);
        macro_rules! types {
            ($($ty:ident)*) => {
                match group.ty {
                    $(TensorType::$ty => {
                        let run = match width {
                            1 => tile::<{ TensorType::$ty as u32 }, 1>,
                            2 => tile::<{ TensorType::$ty as u32 }, 2>,
                            4 => tile::<{ TensorType::$ty as u32 }, 4>,
                            8 => tile::<{ TensorType::$ty as u32 }, 8>,
                            16 => tile::<{ TensorType::$ty as u32 }, 16>,
                            _ => unreachable!("widths are powers of two up to 16"),
                        };
                        // SAFETY: `self` proves the features, and the lengths were checked above.
                        unsafe { run(group.bytes.as_ptr(), group.blocks, panel.as_ptr(), sums) }
                    })*
                    TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                        unreachable!("floats have kernels of their own")
                    }
                }
            };
        }
        types!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 TQ1_0 TQ2_0)
    }
}

/// Products of a group of `blocks` blocks of type `TY` with a panel of `T` tokens.
///
/// # Safety
/// The features must be there, `group` and `panel` as long as `blocks` says.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const TY: u32, const T: usize>(
    group: *const u8,
    blocks: usize,
    panel: *const i32,
    sums: &mut Sums,
) {
    let spec = const { spec(TensorType::of(TY)) };
    let mut digits = Digits([0; 64 * VECTOR]);
    let mut acc = [[_mm256_setzero_ps(); T]; 2];
    let mut span = group;
    let mut input = panel;
    let mut left = blocks;
    while left > 0 {
        let count = left.min(SPAN);
        left -= count;
        // SAFETY: the span lies in the group.
        unsafe {
            if let Codes::Ternary = spec.codes {
                unpack_digits(span.add(spec.scale_header()), &mut digits);
            }
            // As on AVX-512: the scales first, so that the stream stays straight.
            for line in (0..spec.codes_at(count)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let codes = span.add(spec.codes_at(count));
            for index in 0..count {
                let vectors = match spec.codes {
                    Codes::Ternary => digits.0.as_ptr().add(index * 8 * VECTOR),
                    _ => codes.add(index * spec.code_bytes()),
                };
                for (part, acc) in acc.iter_mut().enumerate() {
                    let weights = unpack::<TY>(vectors.add(REGISTER * part));
                    let scales = block_scales::<TY>(span, index, part);
                    block::<TY, T>(&weights, &scales, input, acc);
                }
                input = input.add(WORDS * T);
            }
            span = span.add(spec.span_bytes(count));
        }
    }
    for (token, sums) in sums.0[..T].iter_mut().enumerate() {
        for (part, acc) in acc.iter().enumerate() {
            // SAFETY: 8 of 16 floats.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(ROWS * part), acc[token]) };
        }
    }
}

/// Scales and minima of a block, 8 rows each.
struct BlockScales {
    scales: [__m256; 2],
    minima: [__m256; 2],
}

/// Adds the products of one block with `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn block<const TY: u32, const T: usize>(
    weights: &[__m256i; 8],
    scales: &BlockScales,
    input: *const i32,
    acc: &mut [__m256; T],
) {
    // SAFETY: `input` has `WORDS * T` words; the caller has the features.
    unsafe {
        match T {
            1 => tokens::<TY, T, 1>(weights, scales, input, 0, acc),
            2 => tokens::<TY, T, 2>(weights, scales, input, 0, acc),
            _ => {
                for first in (0..T).step_by(4) {
                    tokens::<TY, T, 4>(weights, scales, input, first, acc);
                }
            }
        }
    }
}

/// Adds the products of one block with the `N` tokens from `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn tokens<const TY: u32, const T: usize, const N: usize>(
    weights: &[__m256i; 8],
    scales: &BlockScales,
    input: *const i32,
    first: usize,
    acc: &mut [__m256; T],
) {
    let spec = const { spec(TensorType::of(TY)) };
    // How many products of pairs fit into 16 bits together.
    let fit = const {
        let spec = crate::packed::layout::spec(TensorType::of(TY));
        let largest = if spec.largest_code == 255 {
            128
        } else {
            spec.largest_code as usize
        };
        let fit = i16::MAX as usize / (2 * 127 * largest);
        let most = 8 / spec.halves();
        // A power of two, so that halves end with a whole step.
        if fit >= most {
            most
        } else if fit >= 4 {
            4
        } else if fit >= 2 {
            2
        } else {
            1
        }
    };
    let signed = spec.largest_code == 255;
    let one = _mm256_set1_epi16(1);
    // SAFETY: the inputs have `T` tokens; the caller has the features.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); N]; 2];
        for start in (0..8).step_by(fit) {
            let half = if spec.halves() == 2 { start / 4 } else { 0 };
            let mut pairs = [_mm256_setzero_si256(); N];
            for j in start..start + fit {
                for i in 0..N {
                    let a = _mm256_set1_epi32(*input.add(8 * (first + i) + j));
                    let product = if signed {
                        _mm256_maddubs_epi16(
                            _mm256_abs_epi8(weights[j]),
                            _mm256_sign_epi8(a, weights[j]),
                        )
                    } else {
                        _mm256_maddubs_epi16(weights[j], a)
                    };
                    pairs[i] = if j == start {
                        product
                    } else {
                        _mm256_add_epi16(pairs[i], product)
                    };
                }
            }
            for i in 0..N {
                let sum = _mm256_madd_epi16(pairs[i], one);
                dots[half][i] = _mm256_add_epi32(dots[half][i], sum);
            }
        }
        for i in 0..N {
            let token = first + i;
            let scale = *input.add(8 * T + token).cast::<f32>();
            let total = *input.add(9 * T + token);
            let firsts = *input.add(10 * T + token);
            let parts = if spec.halves() == 2 {
                [firsts, total - firsts]
            } else {
                [total, 0]
            };
            // Signed codes had their zero taken away already.
            if let (Some(shift), false) = (spec.zero_shift, signed) {
                for half in 0..spec.halves() {
                    let start = _mm256_set1_epi32(parts[half] << shift);
                    dots[half][i] = _mm256_add_epi32(dots[half][i], start);
                }
            }
            let mut scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[0][i]), scales.scales[0]);
            if spec.halves() == 2 {
                scaled = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[1][i]), scales.scales[1], scaled);
            }
            let mut sum = _mm256_fmadd_ps(scaled, _mm256_set1_ps(scale), acc[token]);
            match spec.minima() {
                0 => (),
                1 => {
                    let factor = _mm256_set1_ps(*input.add(11 * T + token).cast::<f32>());
                    sum = _mm256_fmadd_ps(scales.minima[0], factor, sum);
                }
                _ => {
                    for half in 0..2 {
                        let factor = _mm256_set1_ps(scale * parts[half] as f32);
                        sum = _mm256_fmadd_ps(scales.minima[half], factor, sum);
                    }
                }
            }
            acc[token] = sum;
        }
    }
}

/// The codes of 8 rows of a block: vector `j` has the columns `4 j` to `4 j + 3`. Codes that fill a byte come as signed
/// numbers, 128 taken away.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn unpack<const TY: u32>(vectors: *const u8) -> [__m256i; 8] {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a block's vectors.
    unsafe {
        let load = |vector: usize| _mm256_loadu_si256(vectors.add(VECTOR * vector).cast());
        let nibble = _mm256_set1_epi8(15);
        let crumb = _mm256_set1_epi8(3);
        let mut out = [_mm256_setzero_si256(); 8];
        match spec.codes {
            Codes::Bytes | Codes::Ternary => {
                for j in 0..8 {
                    out[j] = load(j);
                }
            }
            Codes::Nibbles | Codes::NibblesBits | Codes::NibblesPairs => {
                for j in 0..4 {
                    let both = load(j);
                    out[j] = _mm256_and_si256(both, nibble);
                    out[j + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
                }
            }
            Codes::Pairs | Codes::PairsBits => {
                for j in 0..2 {
                    let all = load(j);
                    out[j] = _mm256_and_si256(all, crumb);
                    out[j + 2] = _mm256_and_si256(_mm256_srli_epi16::<2>(all), crumb);
                    out[j + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(all), crumb);
                    out[j + 6] = _mm256_and_si256(_mm256_srli_epi16::<6>(all), crumb);
                }
            }
        }
        if let Some(book) = &spec.book {
            let book = _mm256_broadcastsi128_si256(_mm_loadu_si128(book.as_ptr().cast()));
            for code in &mut out {
                *code = _mm256_shuffle_epi8(book, *code);
            }
        }
        if spec.largest_code == 255 {
            for code in &mut out {
                *code = _mm256_xor_si256(*code, _mm256_set1_epi8(i8::MIN));
            }
        }
        let merge = |code: __m256i, shifted: __m256i, mask: i8| {
            _mm256_or_si256(code, _mm256_and_si256(shifted, _mm256_set1_epi8(mask)))
        };
        match spec.codes {
            Codes::NibblesBits => {
                let bits = load(4);
                let shifted = [
                    _mm256_slli_epi16::<4>(bits),
                    _mm256_slli_epi16::<3>(bits),
                    _mm256_slli_epi16::<2>(bits),
                    _mm256_slli_epi16::<1>(bits),
                    bits,
                    _mm256_srli_epi16::<1>(bits),
                    _mm256_srli_epi16::<2>(bits),
                    _mm256_srli_epi16::<3>(bits),
                ];
                for j in 0..8 {
                    out[j] = merge(out[j], shifted[j], 16);
                }
            }
            Codes::PairsBits => {
                let bits = load(2);
                let shifted = [
                    _mm256_slli_epi16::<2>(bits),
                    _mm256_slli_epi16::<1>(bits),
                    bits,
                    _mm256_srli_epi16::<1>(bits),
                    _mm256_srli_epi16::<2>(bits),
                    _mm256_srli_epi16::<3>(bits),
                    _mm256_srli_epi16::<4>(bits),
                    _mm256_srli_epi16::<5>(bits),
                ];
                for j in 0..8 {
                    out[j] = merge(out[j], shifted[j], 4);
                }
            }
            Codes::NibblesPairs => {
                for vector in 0..2 {
                    let pairs = load(4 + vector);
                    let shifted = [
                        _mm256_slli_epi16::<4>(pairs),
                        _mm256_slli_epi16::<2>(pairs),
                        pairs,
                        _mm256_srli_epi16::<2>(pairs),
                    ];
                    for place in 0..4 {
                        let j = vector + 2 * place;
                        out[j] = merge(out[j], shifted[place], 48);
                    }
                }
            }
            _ => (),
        }
        out
    }
}

/// Scales and minima of rows `8 part` and up in block `index` of a span.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn block_scales<const TY: u32>(span: *const u8, index: usize, part: usize) -> BlockScales {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span with such a block.
    unsafe {
        let zero = _mm256_setzero_ps();
        let meta = span.add(spec.header() + index * spec.meta());
        let halves = |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * part).cast()));
        let bytes =
            |at: *const u8| _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.add(ROWS * part).cast()));
        let scaled =
            |factor: __m256, number: __m256i| _mm256_mul_ps(factor, _mm256_cvtepi32_ps(number));
        let (scales, minima) = match spec.scales {
            Scales::Half => ([halves(meta), zero], [zero; 2]),
            Scales::HalfAdd => {
                let minimum = _mm256_xor_ps(halves(meta.add(32)), _mm256_set1_ps(-0.0));
                ([halves(meta), zero], [minimum, zero])
            }
            Scales::Exponent => {
                let exponent = bytes(meta);
                let one = _mm256_set1_epi32(1);
                let usual = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponent, one));
                let tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponent);
                let is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponent);
                let bits = _mm256_blendv_epi8(usual, tiny, is_tiny);
                ([_mm256_castsi256_ps(bits), zero], [zero; 2])
            }
            Scales::Span => ([halves(span), zero], [zero; 2]),
            Scales::SpanSix => {
                let number = _mm256_sub_epi32(bytes(meta), _mm256_set1_epi32(32));
                ([scaled(halves(span), number), zero], [zero; 2])
            }
            Scales::SpanMinimum => (
                [scaled(halves(span), bytes(meta)), zero],
                [scaled(halves(span.add(32)), bytes(meta.add(GROUP))), zero],
            ),
            Scales::HalvesNibbles => {
                let both = [bytes(meta), bytes(meta.add(GROUP))];
                let low = both.map(|both| _mm256_and_si256(both, _mm256_set1_epi32(15)));
                let high = both.map(|both| _mm256_srli_epi32::<4>(both));
                (
                    low.map(|number| scaled(halves(span), number)),
                    high.map(|number| scaled(halves(span.add(32)), number)),
                )
            }
            Scales::HalvesSix => {
                let packed = span.add(32);
                let scale = |place: usize| {
                    let place = 2 * index + place;
                    let low = bytes(packed.add(GROUP * (place % 8)));
                    let high = bytes(packed.add(GROUP * (8 + place % 4)));
                    let low = _mm256_srlv_epi32(low, _mm256_set1_epi32(4 * (place / 8) as i32));
                    let high = _mm256_srlv_epi32(high, _mm256_set1_epi32(2 * (place / 4) as i32));
                    let low = _mm256_and_si256(low, _mm256_set1_epi32(15));
                    let high = _mm256_and_si256(high, _mm256_set1_epi32(3));
                    let number = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
                    scaled(
                        halves(span),
                        _mm256_sub_epi32(number, _mm256_set1_epi32(32)),
                    )
                };
                ([scale(0), scale(1)], [zero; 2])
            }
            Scales::HalvesSigned => {
                let scale = |place: usize| {
                    let at = meta.add(GROUP * place + ROWS * part);
                    scaled(
                        halves(span),
                        _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())),
                    )
                };
                ([scale(0), scale(1)], [zero; 2])
            }
        };
        BlockScales { scales, minima }
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
