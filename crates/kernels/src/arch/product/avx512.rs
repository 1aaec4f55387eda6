//! AVX-512 with VNNI: 16 rows in the lanes, four columns at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers, several of which share an index"
)]

mod spans;

use std::arch::x86_64::*;

use self::spans::span_tile;
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
        let run = self.tile_fn(group.ty, width);
        // SAFETY: `self` proves the features, and the lengths were checked above.
        unsafe { run(group.bytes.as_ptr(), group.blocks, panel.as_ptr(), sums) }
    }

    /// The kernel for a type and a width of tiles.
    ///
    /// # Panics
    /// If the type is one of floats, or the width no power of two up to 16.
    pub(super) fn tile_fn(self, ty: TensorType, width: usize) -> TileFn {
        macro_rules! types {
            ($($tile:ident: $($ty:ident)*;)*) => {
                match ty {
                    $($(TensorType::$ty => match width {
                        1 => $tile::<{ TensorType::$ty as u32 }, 1>,
                        2 => $tile::<{ TensorType::$ty as u32 }, 2>,
                        4 => $tile::<{ TensorType::$ty as u32 }, 4>,
                        8 => $tile::<{ TensorType::$ty as u32 }, 8>,
                        16 => $tile::<{ TensorType::$ty as u32 }, 16>,
                        _ => unreachable!("widths are powers of two up to 16"),
                    },)*)*
                    TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                        unreachable!("floats have kernels of their own")
                    }
                }
            };
        }
        types!(
            tile: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL MXFP4;
            span_tile: Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS TQ1_0 TQ2_0;
        )
    }
}

/// Products of a group of so many blocks with a panel, into sums. The caller proves the features, and that group and
/// panel are as long as the blocks say.
pub(super) type TileFn = unsafe fn(*const u8, usize, *const i32, &mut Sums);

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
    let mut acc = [_mm512_setzero_ps(); T];
    let mut span = group;
    let mut input = panel;
    let mut left = blocks;
    while left > 0 {
        let count = left.min(SPAN);
        left -= count;
        // SAFETY: the span lies in the group.
        unsafe {
            // The scales lie before the codes but are used between them. Touching them in order first keeps the
            // stream straight, which the hardware's prefetching needs: without this some formats read at a third of
            // the speed. Fetching codes ahead by instructions made reading slower.
            for line in (0..spec.codes_at(count)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let codes = span.add(spec.codes_at(count));
            for index in 0..count {
                let weights = unpack::<TY>(codes.add(index * spec.code_bytes()));
                let scales = block_scales::<TY>(span, index);
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

/// Scale and minimum of a block, 16 rows each.
struct BlockScales {
    scale: __m512,
    minimum: __m512,
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
        let totals = input.add(9 * T);
        // What the zero point takes away, for all tokens at once.
        let mut starts = [0i32; T];
        if let Some(shift) = spec.zero_shift {
            for token in 0..T {
                starts[token] = *totals.add(token) << shift;
            }
            if T >= 4 {
                in_memory(&starts);
            }
        }
        let (input_scales, factors) = (input.add(8 * T), input.add(11 * T));
        for first in (0..T).step_by(4) {
            if let Some(four) = acc[first..].first_chunk_mut() {
                let tokens = FourTokens {
                    codes: input.add(8 * first),
                    starts: starts.as_ptr().add(first),
                    scales: input_scales.add(first),
                    factors: factors.add(first),
                };
                match (spec.zero_shift, spec.minima()) {
                    (None, 0) => unreachable!("blocks have a zero point or a minimum"),
                    (None, _) => four_with_minimum(four, weights, scales, &tokens),
                    (Some(_), _) => four_with_zero(four, weights, scales, &tokens),
                }
                continue;
            }
            for token in first..T {
                let mut dot = [_mm512_set1_epi32(starts[token])];
                dots(&mut dot, weights, 0..8, input.add(8 * token));
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[0]), scales.scale);
                let scale = _mm512_set1_ps(*input_scales.add(token).cast());
                acc[token] = _mm512_fmadd_ps(scaled, scale, acc[token]);
                if spec.minima() > 0 {
                    let factor = _mm512_set1_ps(*factors.add(token).cast());
                    acc[token] = _mm512_fmadd_ps(scales.minimum, factor, acc[token]);
                }
            }
        }
    }
}

/// What four tokens bring into a block.
struct FourTokens {
    /// [token, 8 words]
    codes: *const i32,
    /// Where dot products start, [token].
    starts: *const i32,
    /// f32, [token]
    scales: *const i32,
    /// What minima are multiplied with, f32, [token].
    factors: *const i32,
}

/// The instructions by which four tokens meet the vectors of codes of a block.
///
/// Written as assembly for their order: four chains side by side hide the latency, and their sums are used up before the
/// next four begin. The compiler would gather the sums of all tokens first, which takes more registers than there are.
macro_rules! four_tokens {
    (@dots) => {
        concat!(four_tokens!(@half_dots), four_tokens!(@half "w4" "w5" "w6" "w7", "16 + "))
    };
    (@half_dots) => {
        four_tokens!(@half "w0" "w1" "w2" "w3", "")
    };
    (@half $w0:literal $w1:literal $w2:literal $w3:literal, $base:literal) => {
        concat!(
            four_tokens!(@step $w0, $base, "0"),
            four_tokens!(@step $w1, $base, "4"),
            four_tokens!(@step $w2, $base, "8"),
            four_tokens!(@step $w3, $base, "12"),
        )
    };
    (@step $w:literal, $base:literal, $word:literal) => {
        concat!(
            "vpdpbusd {d0}, {", $w, "}, dword ptr [{codes} + ", $base, $word, "]{{1to16}}\n",
            "vpdpbusd {d1}, {", $w, "}, dword ptr [{codes} + 32 + ", $base, $word, "]{{1to16}}\n",
            "vpdpbusd {d2}, {", $w, "}, dword ptr [{codes} + 64 + ", $base, $word, "]{{1to16}}\n",
            "vpdpbusd {d3}, {", $w, "}, dword ptr [{codes} + 96 + ", $base, $word, "]{{1to16}}\n",
        )
    };
    (@from_zero) => {
        "vpxord {d0}, {d0}, {d0}\nvpxord {d1}, {d1}, {d1}\nvpxord {d2}, {d2}, {d2}\nvpxord {d3}, {d3}, {d3}\n"
    };
    (@from_starts) => {
        "vpbroadcastd {d0}, dword ptr [{starts}]\nvpbroadcastd {d1}, dword ptr [{starts} + 4]\n\
         vpbroadcastd {d2}, dword ptr [{starts} + 8]\nvpbroadcastd {d3}, dword ptr [{starts} + 12]\n"
    };
    (@to_float) => {
        "vcvtdq2ps {d0}, {d0}\nvcvtdq2ps {d1}, {d1}\nvcvtdq2ps {d2}, {d2}\nvcvtdq2ps {d3}, {d3}\n"
    };
    (@times_scale) => {
        "vmulps {d0}, {d0}, {scale}\nvmulps {d1}, {d1}, {scale}\nvmulps {d2}, {d2}, {scale}\nvmulps {d3}, {d3}, {scale}\n"
    };
    (@add_times_scale) => {
        "vfmadd231ps {a0}, {d0}, {scale}\nvfmadd231ps {a1}, {d1}, {scale}\n\
         vfmadd231ps {a2}, {d2}, {scale}\nvfmadd231ps {a3}, {d3}, {scale}\n"
    };
    (@add_times_input_scale) => {
        "vfmadd231ps {a0}, {d0}, dword ptr [{scales}]{{1to16}}\nvfmadd231ps {a1}, {d1}, dword ptr [{scales} + 4]{{1to16}}\n\
         vfmadd231ps {a2}, {d2}, dword ptr [{scales} + 8]{{1to16}}\nvfmadd231ps {a3}, {d3}, dword ptr [{scales} + 12]{{1to16}}\n"
    };
    (@add_minimum) => {
        "vfmadd231ps {a0}, {minimum}, dword ptr [{factors}]{{1to16}}\nvfmadd231ps {a1}, {minimum}, dword ptr [{factors} + 4]{{1to16}}\n\
         vfmadd231ps {a2}, {minimum}, dword ptr [{factors} + 8]{{1to16}}\nvfmadd231ps {a3}, {minimum}, dword ptr [{factors} + 12]{{1to16}}\n"
    };
    ($acc:ident, $codes:expr, [$($line:ident)*], [$($name:ident = $weight:expr),*], $($rest:tt)*) => {{
        // With a type: the registers of `_` are named after a smaller one.
        let (_d0, _d1, _d2, _d3): (__m512i, __m512i, __m512i, __m512i);
        std::arch::asm!(
            $(four_tokens!(@$line),)*
            codes = in(reg) $codes,
            $($name = in(zmm_reg) $weight,)*
            $($rest)*
            a0 = inout(zmm_reg) $acc[0],
            a1 = inout(zmm_reg) $acc[1],
            a2 = inout(zmm_reg) $acc[2],
            a3 = inout(zmm_reg) $acc[3],
            d0 = out(zmm_reg) _d0,
            d1 = out(zmm_reg) _d1,
            d2 = out(zmm_reg) _d2,
            d3 = out(zmm_reg) _d3,
            // Not `readonly`: no load is to be moved to before it and spilled.
            options(nostack, preserves_flags)
        )
    }};
}
use four_tokens;

/// Adds the products of a block with four tokens, where the format has a zero point.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn four_with_zero(
    acc: &mut [__m512; 4],
    w: &[__m512i; 8],
    scales: &BlockScales,
    tokens: &FourTokens,
) {
    // SAFETY: the caller has the features and four tokens of a block.
    unsafe {
        four_tokens!(
            acc, tokens.codes,
            [from_starts dots to_float times_scale add_times_input_scale],
            [w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5], w6 = w[6], w7 = w[7]],
            starts = in(reg) tokens.starts,
            scale = in(zmm_reg) scales.scale,
            scales = in(reg) tokens.scales,
        );
    }
}

/// Adds the products of a block with four tokens, where the format has a minimum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn four_with_minimum(
    acc: &mut [__m512; 4],
    w: &[__m512i; 8],
    scales: &BlockScales,
    tokens: &FourTokens,
) {
    // SAFETY: the caller has the features and four tokens of a block.
    unsafe {
        four_tokens!(
            acc, tokens.codes,
            [from_zero dots to_float times_scale add_times_input_scale add_minimum],
            [w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5], w6 = w[6], w7 = w[7]],
            scale = in(zmm_reg) scales.scale,
            scales = in(reg) tokens.scales,
            minimum = in(zmm_reg) scales.minimum,
            factors = in(reg) tokens.factors,
        );
    }
}

/// Adds the products of the vectors of codes `range` with `N` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn dots<const N: usize>(
    dots: &mut [__m512i; N],
    weights: &[__m512i; 8],
    range: std::ops::Range<usize>,
    codes: *const i32,
) {
    for j in range {
        for i in 0..N {
            // SAFETY: the codes are those of `N` tokens.
            let a = _mm512_set1_epi32(unsafe { *codes.add(8 * i + j) });
            dots[i] = _mm512_dpbusd_epi32(dots[i], weights[j], a);
        }
    }
}

/// Makes the compiler compute a value as vectors into memory, from where the kernel broadcasts its elements; it would
/// take them apart into scalar registers.
#[inline(always)]
fn in_memory<V>(value: &V) {
    // SAFETY: no instructions.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) std::ptr::from_ref(value), options(nostack, preserves_flags));
    }
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

/// Scale and minimum of block `index` of a span.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn block_scales<const TY: u32>(span: *const u8, index: usize) -> BlockScales {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span with such a block.
    unsafe {
        let zero = _mm512_setzero_ps();
        let meta = span.add(spec.header() + index * spec.meta());
        let (scale, minimum) = match spec.scales {
            Scales::HalfAdd => {
                let sign = _mm512_set1_epi32(i32::MIN);
                let minimum = _mm512_xor_si512(_mm512_castps_si512(halves(meta.add(32))), sign);
                (halves(meta), _mm512_castsi512_ps(minimum))
            }
            Scales::Exponent => {
                let exponent = bytes(meta);
                let one = _mm512_set1_epi32(1);
                let usual = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponent, one));
                let tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponent);
                let is_tiny = _mm512_cmple_epu32_mask(exponent, one);
                let bits = _mm512_mask_mov_epi32(usual, is_tiny, tiny);
                (_mm512_castsi512_ps(bits), zero)
            }
            // Others have spans.
            _ => (halves(meta), zero),
        };
        BlockScales { scale, minimum }
    }
}

/// 16 bytes as integers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn bytes(at: *const u8) -> __m512i {
    // SAFETY: the caller has the features and 16 bytes.
    unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())) }
}

/// 16 half-precision numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller has the features and 32 bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}
