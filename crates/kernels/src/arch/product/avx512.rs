//! AVX-512 with VNNI: 16 rows in the lanes, four columns at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers, several of which share an index"
)]

use std::arch::x86_64::*;

use super::{Group, Sums};
use crate::activations::WORDS;
use crate::packed::layout::{Codes, SPAN, Scales, VECTOR, spec};
use crate::{Isa, TensorType};

/// Proof that AVX-512 F, BW, VL and VNNI are there.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The proof, if this machine has the instruction set.
    #[inline]
    pub(super) fn detect() -> Option<Avx512> {
        Isa::Avx512.is_available().then_some(Avx512(()))
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const TY: u32, const T: usize>(
    group: *const u8,
    blocks: usize,
    panel: *const i32,
    sums: &mut Sums,
) {
    let spec = const { spec(TensorType::of(TY)) };
    let mut digits = Digits([0; 64 * VECTOR]);
    let mut acc = [_mm512_setzero_ps(); T];
    let mut span = group;
    let mut input = panel;
    let mut left = blocks;
    while left > 0 {
        let count = left.min(SPAN);
        left -= count;
        // SAFETY: the span lies in the group.
        unsafe {
            let header = span_scales::<TY>(span);
            if let Codes::Ternary = spec.codes {
                unpack_digits(span.add(spec.scale_header()), &mut digits);
            }
            // The scales lie before the codes but are used between them. Touching them in order first keeps the
            // stream straight, which the hardware's prefetching needs: without this some formats read at a third of
            // the speed. Fetching codes ahead by instructions made reading slower.
            for line in (0..spec.codes_at(count)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let codes = span.add(spec.codes_at(count));
            for index in 0..count {
                let vectors = match spec.codes {
                    Codes::Ternary => digits.0.as_ptr().add(index * 8 * VECTOR),
                    _ => codes.add(index * spec.code_bytes()),
                };
                let weights = unpack::<TY>(vectors);
                let scales = block_scales::<TY>(span, &header, index);
                block::<TY, T>(&weights, &scales, input, &mut acc);
                input = input.add(WORDS * T);
            }
            span = span.add(spec.span_bytes(count));
        }
    }
    for (sums, acc) in sums.0.iter_mut().zip(acc) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
    }
}

/// Scales and minima of a block, 16 rows each.
struct BlockScales {
    scales: [__m512; 2],
    minima: [__m512; 2],
}

/// Adds the products of one block with `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn block<const TY: u32, const T: usize>(
    weights: &[__m512i; 8],
    scales: &BlockScales,
    input: *const i32,
    acc: &mut [__m512; T],
) {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: `input` has `WORDS * T` words; the caller has the features.
    unsafe {
        let scale = input.add(8 * T).cast::<f32>();
        let totals = input.add(9 * T);
        let firsts = input.add(10 * T);
        // What the zero point takes away, and what minima of halves are multiplied with, for all tokens at once.
        let mut starts = [[0i32; T]; 2];
        let mut half_factors = [[0f32; T]; 2];
        for token in 0..T {
            let (total, first) = (*totals.add(token), *firsts.add(token));
            if let Some(shift) = spec.zero_shift {
                if spec.halves() == 2 {
                    starts[0][token] = first << shift;
                    starts[1][token] = (total - first) << shift;
                } else {
                    starts[0][token] = total << shift;
                }
            }
            if spec.minima() == 2 {
                half_factors[0][token] = *scale.add(token) * first as f32;
                half_factors[1][token] = *scale.add(token) * (total - first) as f32;
            }
        }
        let factors = input.add(11 * T).cast::<f32>();
        let minimum_factors = match spec.minima() {
            2 => [half_factors[0].as_ptr(), half_factors[1].as_ptr()],
            _ => [factors; 2],
        };
        let inputs = TokenInputs {
            codes: input,
            scale,
            starts: &starts,
            minimum_factors,
        };
        // Written out, so that the sums stay in registers.
        match T {
            1 => tokens::<TY, T, 0, 1>(weights, scales, &inputs, acc),
            2 => tokens::<TY, T, 0, 2>(weights, scales, &inputs, acc),
            _ => {
                tokens::<TY, T, 0, 4>(weights, scales, &inputs, acc);
                if T > 4 {
                    tokens::<TY, T, 4, 4>(weights, scales, &inputs, acc);
                }
                if T > 8 {
                    tokens::<TY, T, 8, 4>(weights, scales, &inputs, acc);
                    tokens::<TY, T, 12, 4>(weights, scales, &inputs, acc);
                }
            }
        }
    }
}

/// What a block's tokens bring.
struct TokenInputs<'a, const T: usize> {
    /// [token, 8 words]
    codes: *const i32,
    /// [token]
    scale: *const f32,
    /// Where dot products start, [half, token].
    starts: &'a [[i32; T]; 2],
    /// What minima are multiplied with, of each half [token].
    minimum_factors: [*const f32; 2],
}

/// Adds the products of one block with the `N` tokens from `FIRST` on: several at once, so that their chains of dot
/// products overlap.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn tokens<const TY: u32, const T: usize, const FIRST: usize, const N: usize>(
    weights: &[__m512i; 8],
    scales: &BlockScales,
    inputs: &TokenInputs<'_, T>,
    acc: &mut [__m512; T],
) {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the inputs have `T` tokens; the caller has the features.
    unsafe {
        let mut dots = [[_mm512_setzero_si512(); N]; 2];
        if spec.zero_shift.is_some() {
            for half in 0..spec.halves() {
                for i in 0..N {
                    dots[half][i] = _mm512_set1_epi32(inputs.starts[half][FIRST + i]);
                }
            }
        }
        for (step, first) in [0, 4].into_iter().enumerate() {
            let dots = &mut dots[if spec.halves() == 2 { step } else { 0 }];
            if let Some(four) = dots.first_chunk_mut::<4>() {
                dot_4x4(four, weights, first, inputs.codes.add(8 * FIRST));
                continue;
            }
            for j in first..first + 4 {
                for i in 0..N {
                    let a = _mm512_set1_epi32(*inputs.codes.add(8 * (FIRST + i) + j));
                    dots[i] = _mm512_dpbusd_epi32(dots[i], weights[j], a);
                }
            }
        }
        for i in 0..N {
            let mut scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[0][i]), scales.scales[0]);
            if spec.halves() == 2 {
                scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[1][i]), scales.scales[1], scaled);
            }
            let mut sum = acc[FIRST + i];
            sum = _mm512_fmadd_ps(scaled, _mm512_set1_ps(*inputs.scale.add(FIRST + i)), sum);
            for half in 0..spec.minima() {
                let factor = _mm512_set1_ps(*inputs.minimum_factors[half].add(FIRST + i));
                sum = _mm512_fmadd_ps(scales.minima[half], factor, sum);
            }
            acc[FIRST + i] = sum;
        }
    }
}

/// Adds the products of four vectors of codes with four tokens, whose words follow at steps of 32 bytes.
///
/// Written as assembly for the order of the instructions: four chains side by side hide the latency, while the compiler
/// would either lay them one after the other or gather those of all tokens, which takes more registers than there are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn dot_4x4(
    dots: &mut [__m512i; 4],
    weights: &[__m512i; 8],
    first: usize,
    codes: *const i32,
) {
    macro_rules! steps {
        ($($dot:literal, $weight:literal, $offset:literal;)*) => {
            // SAFETY: the caller has the features and four tokens of a block; `first` is 0 or 4.
            unsafe {
                std::arch::asm!(
                    $(concat!(
                        "vpdpbusd {d", $dot, "}, {w", $weight, "}, dword ptr [{codes} + ", $offset, "]{{1to16}}"
                    ),)*
                    codes = in(reg) codes.add(first),
                    w0 = in(zmm_reg) weights[first],
                    w1 = in(zmm_reg) weights[first + 1],
                    w2 = in(zmm_reg) weights[first + 2],
                    w3 = in(zmm_reg) weights[first + 3],
                    d0 = inout(zmm_reg) dots[0],
                    d1 = inout(zmm_reg) dots[1],
                    d2 = inout(zmm_reg) dots[2],
                    d3 = inout(zmm_reg) dots[3],
                    // Not `readonly`: no load is to be moved to before it and spilled.
                    options(nostack, preserves_flags)
                );
            }
        };
    }
    steps!(
        0, 0, 0; 1, 0, 32; 2, 0, 64; 3, 0, 96;
        0, 1, 4; 1, 1, 36; 2, 1, 68; 3, 1, 100;
        0, 2, 8; 1, 2, 40; 2, 2, 72; 3, 2, 104;
        0, 3, 12; 1, 3, 44; 2, 3, 76; 3, 3, 108;
    );
}

/// The codes of a block: vector `j` has the columns `4 j` to `4 j + 3` of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn unpack<const TY: u32>(vectors: *const u8) -> [__m512i; 8] {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a block's vectors.
    unsafe {
        let load = |vector: usize| _mm512_loadu_si512(vectors.add(VECTOR * vector).cast());
        let nibble = _mm512_set1_epi8(15);
        let crumb = _mm512_set1_epi8(3);
        let mut out = [_mm512_setzero_si512(); 8];
        match spec.codes {
            Codes::Bytes | Codes::Ternary => {
                for j in 0..8 {
                    out[j] = load(j);
                }
            }
            Codes::Nibbles | Codes::NibblesBits | Codes::NibblesPairs => {
                for j in 0..4 {
                    let both = load(j);
                    out[j] = _mm512_and_si512(both, nibble);
                    out[j + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
                }
            }
            Codes::Pairs | Codes::PairsBits => {
                for j in 0..2 {
                    let all = load(j);
                    out[j] = _mm512_and_si512(all, crumb);
                    out[j + 2] = _mm512_and_si512(_mm512_srli_epi16::<2>(all), crumb);
                    out[j + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(all), crumb);
                    out[j + 6] = _mm512_and_si512(_mm512_srli_epi16::<6>(all), crumb);
                }
            }
        }
        if let Some(book) = &spec.book {
            let book = _mm512_broadcast_i32x4(_mm_loadu_si128(book.as_ptr().cast()));
            for code in &mut out {
                *code = _mm512_shuffle_epi8(book, *code);
            }
        }
        // `code | (shifted & mask)`
        const MERGE: i32 = 0xf8;
        match spec.codes {
            Codes::NibblesBits => {
                let bits = load(4);
                let mask = _mm512_set1_epi8(16);
                let shifted = [
                    _mm512_slli_epi16::<4>(bits),
                    _mm512_slli_epi16::<3>(bits),
                    _mm512_slli_epi16::<2>(bits),
                    _mm512_slli_epi16::<1>(bits),
                    bits,
                    _mm512_srli_epi16::<1>(bits),
                    _mm512_srli_epi16::<2>(bits),
                    _mm512_srli_epi16::<3>(bits),
                ];
                for j in 0..8 {
                    out[j] = _mm512_ternarylogic_epi32::<MERGE>(out[j], shifted[j], mask);
                }
            }
            Codes::PairsBits => {
                let bits = load(2);
                let mask = _mm512_set1_epi8(4);
                let shifted = [
                    _mm512_slli_epi16::<2>(bits),
                    _mm512_slli_epi16::<1>(bits),
                    bits,
                    _mm512_srli_epi16::<1>(bits),
                    _mm512_srli_epi16::<2>(bits),
                    _mm512_srli_epi16::<3>(bits),
                    _mm512_srli_epi16::<4>(bits),
                    _mm512_srli_epi16::<5>(bits),
                ];
                for j in 0..8 {
                    out[j] = _mm512_ternarylogic_epi32::<MERGE>(out[j], shifted[j], mask);
                }
            }
            Codes::NibblesPairs => {
                let mask = _mm512_set1_epi8(48);
                for vector in 0..2 {
                    let pairs = load(4 + vector);
                    let shifted = [
                        _mm512_slli_epi16::<4>(pairs),
                        _mm512_slli_epi16::<2>(pairs),
                        pairs,
                        _mm512_srli_epi16::<2>(pairs),
                    ];
                    for place in 0..4 {
                        let j = vector + 2 * place;
                        out[j] = _mm512_ternarylogic_epi32::<MERGE>(out[j], shifted[place], mask);
                    }
                }
            }
            _ => (),
        }
        out
    }
}

/// Scale and minimum of a span, where it has them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn span_scales<const TY: u32>(span: *const u8) -> [__m512; 2] {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span.
    unsafe {
        let zero = _mm512_setzero_ps();
        match spec.scales {
            Scales::Half | Scales::HalfAdd | Scales::Exponent => [zero; 2],
            Scales::Span | Scales::SpanSix | Scales::HalvesSigned | Scales::HalvesSix => {
                [halves(span), zero]
            }
            Scales::SpanMinimum | Scales::HalvesNibbles => [halves(span), halves(span.add(32))],
        }
    }
}

/// Scales and minima of block `index` of a span.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn block_scales<const TY: u32>(
    span: *const u8,
    header: &[__m512; 2],
    index: usize,
) -> BlockScales {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span with such a block.
    unsafe {
        let zero = _mm512_setzero_ps();
        let meta = span.add(spec.header() + index * spec.meta());
        let bytes = |at: *const u8| _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
        let scaled =
            |factor: __m512, number: __m512i| _mm512_mul_ps(factor, _mm512_cvtepi32_ps(number));
        let (scales, minima) = match spec.scales {
            Scales::Half => ([halves(meta), zero], [zero; 2]),
            Scales::HalfAdd => {
                let sign = _mm512_set1_epi32(i32::MIN);
                let minimum = _mm512_xor_si512(_mm512_castps_si512(halves(meta.add(32))), sign);
                ([halves(meta), zero], [_mm512_castsi512_ps(minimum), zero])
            }
            Scales::Exponent => {
                let exponent = bytes(meta);
                let one = _mm512_set1_epi32(1);
                let usual = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponent, one));
                let tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponent);
                let is_tiny = _mm512_cmple_epu32_mask(exponent, one);
                let bits = _mm512_mask_mov_epi32(usual, is_tiny, tiny);
                ([_mm512_castsi512_ps(bits), zero], [zero; 2])
            }
            Scales::Span => ([header[0], zero], [zero; 2]),
            Scales::SpanSix => {
                let number = _mm512_sub_epi32(bytes(meta), _mm512_set1_epi32(32));
                ([scaled(header[0], number), zero], [zero; 2])
            }
            Scales::SpanMinimum => (
                [scaled(header[0], bytes(meta)), zero],
                [scaled(header[1], bytes(meta.add(16))), zero],
            ),
            Scales::HalvesNibbles => {
                let both = [bytes(meta), bytes(meta.add(16))];
                let low = both.map(|both| _mm512_and_si512(both, _mm512_set1_epi32(15)));
                let high = both.map(|both| _mm512_srli_epi32::<4>(both));
                (
                    low.map(|number| scaled(header[0], number)),
                    high.map(|number| scaled(header[1], number)),
                )
            }
            Scales::HalvesSix => {
                let packed = span.add(32);
                let scale = |place: usize| {
                    let place = 2 * index + place;
                    let low = bytes(packed.add(16 * (place % 8)));
                    let high = bytes(packed.add(16 * (8 + place % 4)));
                    let low = _mm512_srlv_epi32(low, _mm512_set1_epi32(4 * (place / 8) as i32));
                    let high = _mm512_srlv_epi32(high, _mm512_set1_epi32(2 * (place / 4) as i32));
                    let low = _mm512_and_si512(low, _mm512_set1_epi32(15));
                    let high = _mm512_and_si512(high, _mm512_set1_epi32(3));
                    let number = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
                    scaled(header[0], _mm512_sub_epi32(number, _mm512_set1_epi32(32)))
                };
                ([scale(0), scale(1)], [zero; 2])
            }
            Scales::HalvesSigned => {
                let scale = |place: usize| {
                    let number = _mm512_cvtepi8_epi32(_mm_loadu_si128(meta.add(16 * place).cast()));
                    scaled(header[0], number)
                };
                ([scale(0), scale(1)], [zero; 2])
            }
        };
        BlockScales { scales, minima }
    }
}

/// 16 half-precision numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller has the features and 32 bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
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
