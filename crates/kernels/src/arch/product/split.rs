//! Kernels of the split form: the screen, which reads high nibbles only, and joining both halves again.
//!
//! For each row and token, over the blocks of 32 columns in their order, `split_tile` computes
//!
//! ```text
//! dot  = Σ (16 h - 120) * a                         exact, in integers
//! dot += Σ (l - 8) * a                              with all bits: the product of the interleaved form, bit by bit
//! sum += (dot * scale) * scale of a                 the second product fused
//! ```
//!
//! and `screen_bundle` the first line alone for all blocks, then block by block the second of some. So all instruction sets give the same bits.

#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers, several of which share an index"
)]

use half::f16;

use super::Sums;
use crate::activations::{TILE, WORDS};
use crate::arch::memory::prefetch;
use crate::packed::layout::{GROUP, SPAN, VECTOR, spec};
use crate::packed::split::{
    BUNDLE, LowPart, NIBBLES, SCALES, high_group_bytes, high_span_bytes, low_group_bytes,
    nibbles_at,
};
use crate::{Isa, TensorType};

/// A group of 16 rows of a split matrix.
#[derive(Clone, Copy)]
pub(crate) struct SplitGroup<'a> {
    pub(crate) high: &'a [u8],
    pub(crate) low: LowPart<'a>,
}

/// Products of a group with the `width` tokens of `panel`: with all bits, or by the high nibbles.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn split_tile(
    isa: Isa,
    group: SplitGroup<'_>,
    all_bits: bool,
    panel: &[i32],
    width: usize,
    sums: &mut Sums,
) {
    check(group, panel, width, sums);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if Isa::Avx512.is_available() => {
            let run = match (width, all_bits) {
                (1, false) => tile_avx512::<1, false>,
                (1, true) => tile_avx512::<1, true>,
                (2, false) => tile_avx512::<2, false>,
                (2, true) => tile_avx512::<2, true>,
                (4, false) => tile_avx512::<4, false>,
                (4, true) => tile_avx512::<4, true>,
                (8, false) => tile_avx512::<8, false>,
                (8, true) => tile_avx512::<8, true>,
                (_, false) => tile_avx512::<16, false>,
                (_, true) => tile_avx512::<16, true>,
            };
            // SAFETY: the features were found, and the lengths were checked above.
            unsafe { run(group, panel.as_ptr(), sums) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if Isa::Avx2.is_available() => {
            let run = match width {
                1 => tile_avx2::<1>,
                2 => tile_avx2::<2>,
                4 => tile_avx2::<4>,
                8 => tile_avx2::<8>,
                _ => tile_avx2::<16>,
            };
            // SAFETY: the features were found, and the lengths were checked above.
            unsafe { run(group, all_bits, panel.as_ptr(), sums) }
        }
        _ => tile(group, all_bits, panel, width, sums),
    }
}

/// A bundle of groups of a split matrix.
#[derive(Clone, Copy)]
pub(crate) struct SplitBundle<'a> {
    /// The high parts of its groups, [group].
    pub(crate) highs: &'a [u8],
    /// The low part, `[block][group][NIBBLES]`.
    pub(crate) lows: &'a [u8],
    /// Groups.
    pub(crate) groups: usize,
    /// Blocks of each.
    pub(crate) blocks: usize,
}

impl<'a> SplitBundle<'a> {
    fn group(&self, group: usize) -> SplitGroup<'a> {
        let bytes = high_group_bytes(self.blocks);
        SplitGroup {
            high: &self.highs[group * bytes..][..bytes],
            low: LowPart::new(self.lows, self.groups, self.blocks, group),
        }
    }
}

/// Screens the groups of a bundle, at most as many as there are `sums`: by the high nibbles, then by the low ones of the
/// blocks `whole`.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn screen_bundle(
    isa: Isa,
    bundle: SplitBundle<'_>,
    whole: &[usize],
    panel: &[i32],
    width: usize,
    sums: &mut [Sums],
) {
    let SplitBundle { groups, blocks, .. } = bundle;
    assert_eq!(bundle.highs.len(), groups * high_group_bytes(blocks));
    assert_eq!(bundle.lows.len(), groups * low_group_bytes(blocks));
    assert_eq!(panel.len(), blocks * WORDS * width);
    assert!(width.is_power_of_two() && width <= TILE && groups <= sums.len().min(BUNDLE));
    assert!(whole.iter().all(|&block| block < blocks));
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
            unsafe { run(bundle, whole, panel, sums) }
        }
        _ => {
            for (group, sums) in (0..groups).zip(sums) {
                let group = bundle.group(group);
                split_tile(isa, group, false, panel, width, sums);
                for &block in whole {
                    let input = &panel[block * WORDS * width..][..WORDS * width];
                    add_low(group, block, input, width, sums);
                }
            }
        }
    }
}

/// Adds to `sums` what the low nibbles of a block contribute.
fn add_low(group: SplitGroup<'_>, block: usize, input: &[i32], width: usize, sums: &mut Sums) {
    let scales = block_scales(group.high, group.low.blocks(), block);
    let low = group.low.block(block);
    for (token, sums) in sums.0[..width].iter_mut().enumerate() {
        let codes = &input[8 * token..][..8];
        let scale = f32::from_bits(input[8 * width + token] as u32);
        for (lane, sum) in sums.iter_mut().enumerate() {
            let dot = 8 * input[9 * width + token] + nibble_dot(low, lane, codes);
            let own = f16::from_le_bytes([scales[2 * lane], scales[2 * lane + 1]]);
            *sum = (dot as f32 * own.to_f32()).mul_add(scale, *sum);
        }
    }
}

fn check(group: SplitGroup<'_>, panel: &[i32], width: usize, sums: &Sums) {
    let blocks = group.low.blocks();
    assert_eq!(group.high.len(), high_group_bytes(blocks));
    assert_eq!(panel.len(), blocks * WORDS * width);
    assert!(width.is_power_of_two() && width <= sums.0.len());
}

/// The 16 scales of a block of a group of `blocks` blocks.
fn block_scales(high: &[u8], blocks: usize, block: usize) -> &[u8; SCALES] {
    let first = block / SPAN * SPAN;
    let span = block / SPAN * high_span_bytes(SPAN.min(blocks));
    let at = span + SCALES * (block - first);
    high[at..].first_chunk().expect("a block of the group")
}

/// Joins the parts of a group to the interleaved form of Q8_0.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn join(isa: Isa, high: &[u8], low: LowPart<'_>, out: &mut [u8]) {
    let blocks = low.blocks();
    assert_eq!(high.len(), high_group_bytes(blocks));
    let q8_0 = spec(TensorType::Q8_0);
    assert_eq!(out.len(), q8_0.group_bytes(blocks));
    let (mut high, mut out) = (high, out);
    for first in (0..blocks).step_by(SPAN) {
        let count = SPAN.min(blocks - first);
        let (high_span, later) = high.split_at(high_span_bytes(count));
        high = later;
        let low = (first..first + count).map(|block| low.block(block));
        let (span, later) = out.split_at_mut(q8_0.span_bytes(count));
        out = later;
        let (scales, codes) = span.split_at_mut(q8_0.codes_at(count));
        scales[..SCALES * count].copy_from_slice(&high_span[..SCALES * count]);
        let nibbles = &high_span[nibbles_at(count)..];
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 if Isa::Avx2.is_available() => {
                // SAFETY: AVX2 was found.
                unsafe { join_avx2(nibbles, low, codes) }
            }
            _ => join_span(nibbles, low, codes),
        }
    }
}

/// A row of a split matrix.
#[derive(Clone, Copy)]
pub(crate) struct SplitRow<'a> {
    pub(crate) group: SplitGroup<'a>,
    pub(crate) lane: usize,
}

impl SplitRow<'_> {
    /// `Σ d (l - 8) x` over the blocks that are not `whole`, and the sum of the squares of the scales. Sums of 32
    /// products are exact, the rest is in f64.
    pub(crate) fn residual_product(
        self,
        isa: Isa,
        whole: &[bool],
        panel: &[i32],
        width: usize,
        token: usize,
    ) -> (f64, f64) {
        let SplitGroup { high, low } = self.group;
        let blocks = whole.len();
        let mut inputs = panel.chunks_exact(WORDS * width);
        let mut rest = high;
        let (mut sum, mut squares) = (0.0, 0.0);
        for first in (0..blocks).step_by(SPAN) {
            let count = SPAN.min(blocks - first);
            let (span, later) = rest.split_at(high_span_bytes(count));
            rest = later;
            for (block, input) in (0..count).zip(&mut inputs) {
                let scale = f64::from(crate::packed::split::scale(span, block, self.lane));
                squares += scale * scale;
                if !whole[first + block] {
                    let low = low.block(first + block);
                    let codes = &input[8 * token..][..8];
                    let dot = match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 | Isa::Avx2 if Isa::Avx2.is_available() => {
                            // SAFETY: AVX2 was found.
                            unsafe { nibble_dot_avx2(low, self.lane, codes) }
                        }
                        _ => nibble_dot(low, self.lane, codes),
                    };
                    let dot = dot + 8 * input[9 * width + token];
                    let input_scale = f64::from(f32::from_bits(input[8 * width + token] as u32));
                    sum += f64::from(dot) * scale * input_scale;
                }
            }
        }
        (sum, squares)
    }

    /// Fetches what [`residual_product`](Self::residual_product) will read: a few bytes of many lines.
    pub(crate) fn fetch(self, whole: &[bool]) {
        let blocks = whole.len();
        for (block, _) in whole.iter().enumerate().filter(|(_, whole)| !**whole) {
            prefetch(block_scales(self.group.high, blocks, block).as_ptr().addr());
            let words = self.group.low.block(block)[4 * self.lane..].as_ptr().addr();
            for vector in 0..4 {
                prefetch(words + VECTOR * vector);
            }
        }
    }
}

fn tile(group: SplitGroup<'_>, all_bits: bool, panel: &[i32], width: usize, sums: &mut Sums) {
    let blocks = group.low.blocks();
    let sums = &mut sums.0[..width];
    sums.fill([0.0; GROUP]);
    let mut inputs = panel.chunks_exact(WORDS * width);
    let mut rest = group.high;
    for first in (0..blocks).step_by(SPAN) {
        let count = SPAN.min(blocks - first);
        let (span, later) = rest.split_at(high_span_bytes(count));
        rest = later;
        let nibbles = span[nibbles_at(count)..].chunks_exact(NIBBLES);
        for ((block, nibbles), input) in (0..count).zip(nibbles).zip(&mut inputs) {
            for (token, sums) in sums.iter_mut().enumerate() {
                let codes = &input[8 * token..][..8];
                let scale = f32::from_bits(input[8 * width + token] as u32);
                let total = input[9 * width + token];
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let mut dot = 120 * total + 16 * nibble_dot(nibbles, lane, codes);
                    if all_bits {
                        let low = group.low.block(first + block);
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

/// [`nibble_dot`], exact as well: pairs of products of at most 15 * 127 fit into 16 bits, four of them too.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn nibble_dot_avx2(nibbles: &[u8; NIBBLES], lane: usize, codes: &[i32]) -> i32 {
    use std::arch::x86_64::*;

    let word = |j: usize| {
        let word = nibbles[VECTOR * j + 4 * lane..].first_chunk();
        i32::from_le_bytes(*word.expect("a word of the block"))
    };
    let words = _mm_setr_epi32(word(0), word(1), word(2), word(3));
    let half = _mm_set1_epi8(15);
    let front = _mm_setr_epi32(codes[0], codes[1], codes[2], codes[3]);
    let back = _mm_setr_epi32(codes[4], codes[5], codes[6], codes[7]);
    let first = _mm_maddubs_epi16(_mm_and_si128(words, half), front);
    let second = _mm_maddubs_epi16(_mm_and_si128(_mm_srli_epi16::<4>(words), half), back);
    let sums = _mm_madd_epi16(_mm_add_epi16(first, second), _mm_set1_epi16(1));
    let sums = _mm_add_epi32(sums, _mm_srli_si128::<8>(sums));
    _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_srli_si128::<4>(sums)))
}

/// 16 times the nibbles' products for the back half, which is what the dot products of [`unpack_avx512`] need.
///
/// # Safety
/// AVX-512 VNNI must be there, and 8 words at `codes`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn dot_avx512(
    weights: &[std::arch::x86_64::__m512i; 8],
    codes: *const i32,
) -> std::arch::x86_64::__m512i {
    use std::arch::x86_64::*;

    let mut dots = [_mm512_setzero_si512(); 2];
    for j in 0..8 {
        // SAFETY: 8 words.
        let a = _mm512_set1_epi32(unsafe { *codes.add(j) });
        dots[j / 4] = _mm512_dpbusd_epi32(dots[j / 4], weights[j], a);
    }
    _mm512_add_epi32(dots[0], _mm512_srai_epi32::<4>(dots[1]))
}

/// The nibbles of a block, the high halves 16 times too large.
///
/// # Safety
/// AVX-512 must be there, and a block's nibbles at `nibbles`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn unpack_avx512(nibbles: *const u8) -> [std::arch::x86_64::__m512i; 8] {
    use std::arch::x86_64::*;

    let (low_half, high_half) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0xf0u8 as i8));
    let mut weights = [_mm512_setzero_si512(); 8];
    for j in 0..4 {
        // SAFETY: four vectors.
        let both = unsafe { _mm512_loadu_si512(nibbles.add(VECTOR * j).cast()) };
        weights[j] = _mm512_and_si512(both, low_half);
        weights[4 + j] = _mm512_and_si512(both, high_half);
    }
    weights
}

/// # Safety
/// The features must be there, the bundle as long as its groups and blocks say, with blocks `whole` and at least as many
/// `sums` as groups, and the panel of `T` tokens.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn screen_avx512<const T: usize>(
    bundle: SplitBundle<'_>,
    whole: &[usize],
    panel: &[i32],
    sums: &mut [Sums],
) {
    use std::arch::x86_64::*;

    let groups = bundle.groups;
    let run = |block: usize| bundle.lows[NIBBLES * groups * block..].as_ptr();
    let fetch = |nibbles: *const u8| {
        for vector in 0..4 {
            _mm_prefetch::<_MM_HINT_T0>(nibbles.wrapping_add(VECTOR * vector).cast());
        }
    };
    // Each run is fetched while the one before is computed: no run is long enough for the hardware to foresee it well.
    let first = whole.first().map(|&block| run(block));
    for (group, sums) in (0..groups).zip(&mut *sums) {
        if let Some(next) = first {
            fetch(next.wrapping_add(NIBBLES * group));
        }
        // SAFETY: as for this function.
        unsafe { tile_avx512::<T, false>(bundle.group(group), panel.as_ptr(), sums) };
    }
    let high_bytes = high_group_bytes(bundle.blocks);
    for (index, &block) in whole.iter().enumerate() {
        let next = whole.get(index + 1).map(|&block| run(block));
        let (low, scales) = (run(block), block_scales(bundle.highs, bundle.blocks, block));
        let input = panel[block * WORDS * T..].as_ptr();
        for (group, sums) in (0..groups).zip(&mut *sums) {
            if let Some(next) = next {
                fetch(next.wrapping_add(NIBBLES * group));
            }
            // SAFETY: 16 scales of the group, its nibbles, the words of each token and its 16 sums.
            unsafe {
                let scale = _mm256_loadu_si256(scales.as_ptr().add(high_bytes * group).cast());
                let scale = _mm512_cvtph_ps(scale);
                let weights = unpack_avx512(low.add(NIBBLES * group));
                for (token, sums) in sums.0[..T].iter_mut().enumerate() {
                    let total = *input.add(9 * T + token);
                    let dots = dot_avx512(&weights, input.add(8 * token));
                    let dots = _mm512_add_epi32(dots, _mm512_set1_epi32(8 * total));
                    let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale);
                    let factor = _mm512_set1_ps(*input.add(8 * T + token).cast::<f32>());
                    let sum = _mm512_loadu_ps(sums.as_ptr());
                    _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_fmadd_ps(scaled, factor, sum));
                }
            }
        }
    }
}

/// # Safety
/// The features must be there, the group as long as its blocks say, and the panel of `T` tokens.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile_avx512<const T: usize, const ALL_BITS: bool>(
    group: SplitGroup<'_>,
    panel: *const i32,
    sums: &mut Sums,
) {
    use std::arch::x86_64::*;

    let blocks = group.low.blocks();
    let mut acc = [_mm512_setzero_ps(); T];
    let (mut span, mut input) = (group.high.as_ptr(), panel);
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
                let weights = unpack_avx512(nibbles.add(NIBBLES * block));
                let low = match ALL_BITS {
                    true => unpack_avx512(group.low.block(first + block).as_ptr()),
                    false => weights,
                };
                for token in 0..T {
                    let codes = input.add(8 * token);
                    let total = *input.add(9 * T + token);
                    let sixteen = _mm512_slli_epi32::<4>(dot_avx512(&weights, codes));
                    let mut dots = _mm512_add_epi32(sixteen, _mm512_set1_epi32(120 * total));
                    if ALL_BITS {
                        let low = dot_avx512(&low, codes);
                        let low = _mm512_add_epi32(low, _mm512_set1_epi32(8 * total));
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
unsafe fn tile_avx2<const T: usize>(
    group: SplitGroup<'_>,
    all_bits: bool,
    panel: *const i32,
    sums: &mut Sums,
) {
    use std::arch::x86_64::*;

    let blocks = group.low.blocks();
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
                    let low = all_bits
                        .then(|| unpack(group.low.block(first + block).as_ptr().add(32 * part)));
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
fn join_span<'a>(nibbles: &[u8], low: impl Iterator<Item = &'a [u8; NIBBLES]>, codes: &mut [u8]) {
    let blocks = nibbles.as_chunks::<NIBBLES>().0.iter().zip(low);
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
fn join_avx2<'a>(nibbles: &[u8], low: impl Iterator<Item = &'a [u8; NIBBLES]>, codes: &mut [u8]) {
    join_span(nibbles, low, codes);
}
