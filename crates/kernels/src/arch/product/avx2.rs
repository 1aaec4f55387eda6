//! AVX2: 8 rows in the lanes, four columns at a time, products in pairs of 16 bits.

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
            ($($tile:ident: $($ty:ident)*;)*) => {
                match group.ty {
                    $($(TensorType::$ty => {
                        let run = match width {
                            1 => $tile::<{ TensorType::$ty as u32 }, 1>,
                            2 => $tile::<{ TensorType::$ty as u32 }, 2>,
                            4 => $tile::<{ TensorType::$ty as u32 }, 4>,
                            8 => $tile::<{ TensorType::$ty as u32 }, 8>,
                            16 => $tile::<{ TensorType::$ty as u32 }, 16>,
                            _ => unreachable!("widths are powers of two up to 16"),
                        };
                        // SAFETY: `self` proves the features, and the lengths were checked above.
                        unsafe { run(group.bytes.as_ptr(), group.blocks, panel.as_ptr(), sums) }
                    })*)*
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
    let mut acc = [[_mm256_setzero_ps(); T]; 2];
    let mut span = group;
    let mut input = panel;
    let mut left = blocks;
    while left > 0 {
        let count = left.min(SPAN);
        left -= count;
        // SAFETY: the span lies in the group.
        unsafe {
            // As on AVX-512: the scales first, so that the stream stays straight.
            for line in (0..spec.codes_at(count)).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(span.add(line).cast());
            }
            let codes = span.add(spec.codes_at(count));
            for index in 0..count {
                let vectors = codes.add(index * spec.code_bytes());
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

/// Scale and minimum of a block, 8 rows each.
struct BlockScales {
    scale: __m256,
    minimum: __m256,
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
    // SAFETY: the inputs have `T` tokens; the caller has the features.
    unsafe {
        let dots = dots::<TY, N>(weights, input.add(8 * first));
        for i in 0..N {
            let token = first + i;
            let scale = *input.add(8 * T + token).cast::<f32>();
            let dot = match zero::<TY>() {
                Some(shift) => {
                    let start = _mm256_set1_epi32(*input.add(9 * T + token) << shift);
                    _mm256_add_epi32(dots[0][i], start)
                }
                None => dots[0][i],
            };
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scales.scale);
            let mut sum = _mm256_fmadd_ps(scaled, _mm256_set1_ps(scale), acc[token]);
            if spec.minima() > 0 {
                let factor = _mm256_set1_ps(*input.add(11 * T + token).cast::<f32>());
                sum = _mm256_fmadd_ps(scales.minimum, factor, sum);
            }
            acc[token] = sum;
        }
    }
}

/// The shift of what is still to be taken away from the codes: signed ones have lost their zero.
const fn zero<const TY: u32>() -> Option<u32> {
    let spec = spec(TensorType::of(TY));
    match spec.largest_code {
        255 => None,
        _ => spec.zero_shift,
    }
}

/// Products of the codes of a block with `N` tokens, of each half where the format has two scales.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn dots<const TY: u32, const N: usize>(
    weights: &[__m256i; 8],
    codes: *const i32,
) -> [[__m256i; N]; 2] {
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
    let mut dots = [[_mm256_setzero_si256(); N]; 2];
    for start in (0..8).step_by(fit) {
        let half = if spec.halves() == 2 { start / 4 } else { 0 };
        let mut pairs = [_mm256_setzero_si256(); N];
        for j in start..start + fit {
            for i in 0..N {
                // SAFETY: the codes are those of `N` tokens.
                let a = _mm256_set1_epi32(unsafe { *codes.add(8 * i + j) });
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
    dots
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

/// Scale and minimum of rows `8 part` and up in block `index` of a span.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn block_scales<const TY: u32>(span: *const u8, index: usize, part: usize) -> BlockScales {
    let spec = const { spec(TensorType::of(TY)) };
    // SAFETY: the caller has the features and a span with such a block.
    unsafe {
        let zero = _mm256_setzero_ps();
        let meta = span.add(spec.header() + index * spec.meta());
        let (scale, minimum) = match spec.scales {
            Scales::HalfAdd => {
                let minimum = _mm256_xor_ps(halves(meta.add(32), part), _mm256_set1_ps(-0.0));
                (halves(meta, part), minimum)
            }
            Scales::Exponent => {
                let exponent = bytes(meta, part);
                let one = _mm256_set1_epi32(1);
                let usual = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponent, one));
                let tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponent);
                let is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponent);
                let bits = _mm256_blendv_epi8(usual, tiny, is_tiny);
                (_mm256_castsi256_ps(bits), zero)
            }
            // Others have spans.
            _ => (halves(meta, part), zero),
        };
        BlockScales { scale, minimum }
    }
}

/// Half-precision numbers of rows `8 part` and up.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn halves(at: *const u8, part: usize) -> __m256 {
    // SAFETY: the caller has the features and 32 bytes.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.add(2 * ROWS * part).cast())) }
}

/// Bytes of rows `8 part` and up as integers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn bytes(at: *const u8, part: usize) -> __m256i {
    // SAFETY: the caller has the features and 16 bytes.
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.add(ROWS * part).cast())) }
}
