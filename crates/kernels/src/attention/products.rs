//! The two kinds of products in a tile.
//!
//! Half-precision and byte pages are multiplied as pairs of 16-bit integers: queries and keys are scaled to a length of
//! [`LENGTH`], so that no dot product can overflow an i32 (Cauchy and Schwarz), and come out more exactly than with
//! bf16 at the same speed. Weights get 13 bits relative to the page's largest, values 12 bits relative to the largest of
//! their dimension in the page; 64 of their products fit an i32 too.

use super::numeric::{Vector, exp2, exp2_coarse};
use crate::arch::wide::Wide;

/// Euclidean length of integer queries and keys. Rounding each element adds less than `sqrt(head_dim) / 2`.
const LENGTH: f32 = 32_000.0;

/// log2 of the integer weight of the page's largest score.
const WEIGHT_BITS: f32 = 13.0;

/// Largest integer value: `64 * (2^13 + 1) * 4000` is below `2^31`.
const VALUE_MAX: f32 = 4000.0;

/// Lengths and values below this are taken for zero.
const TINY: f32 = 1e-30;

/// How rows and pages are multiplied.
pub(super) trait Products: Copy + Send + Sync {
    /// A vector of operands or sums.
    type Register<W: Wide>: Copy;
    /// Elements of the inner dimension that one step takes.
    const STEP: usize;

    fn zero<W: Wide>(w: W) -> Self::Register<W>;
    fn load<W: Wide>(w: W, source: &Vector) -> Self::Register<W>;
    fn broadcast<W: Wide>(w: W, source: f32) -> Self::Register<W>;
    fn add_product<W: Wide>(
        w: W,
        a: Self::Register<W>,
        b: Self::Register<W>,
        sum: Self::Register<W>,
    ) -> Self::Register<W>;
    fn to_float<W: Wide>(w: W, sum: Self::Register<W>) -> W::Float;
    /// Writes [`Self::STEP`] consecutive elements of the inner dimension.
    fn store<W: Wide>(w: W, elements: [W::Float; 2], target: &mut Vector);
    /// Factor that brings keys of this squared length, or queries, to their length, and its inverse.
    fn key_factors<W: Wide>(w: W, squares: W::Float) -> [W::Float; 2];
    /// The same for values of this largest size.
    fn value_factors<W: Wide>(w: W, largest: W::Float) -> [W::Float; 2];
    /// `2^(x * factor - largest)` for [`Self::STEP`] scores, times what [`Self::value_factors`] allow; the weights go
    /// to `target`, their sum is added to `total`.
    fn weights<W: Wide>(
        w: W,
        scores: [W::Float; 2],
        factor: W::Float,
        largest: W::Float,
        total: Self::Register<W>,
        target: &mut Vector,
    ) -> Self::Register<W>;
}

/// Single precision throughout.
#[derive(Clone, Copy)]
pub(super) struct FloatProducts;

/// Pairs of 16-bit integers.
#[derive(Clone, Copy)]
pub(super) struct PairProducts;

impl Products for FloatProducts {
    type Register<W: Wide> = W::Float;
    const STEP: usize = 1;

    #[inline(always)]
    fn zero<W: Wide>(w: W) -> W::Float {
        w.splat(0.0)
    }
    #[inline(always)]
    fn load<W: Wide>(w: W, source: &Vector) -> W::Float {
        w.load(&source.0)
    }
    #[inline(always)]
    fn broadcast<W: Wide>(w: W, source: f32) -> W::Float {
        w.splat(source)
    }
    #[inline(always)]
    fn add_product<W: Wide>(w: W, a: W::Float, b: W::Float, sum: W::Float) -> W::Float {
        w.mul_add(a, b, sum)
    }
    #[inline(always)]
    fn to_float<W: Wide>(_: W, sum: W::Float) -> W::Float {
        sum
    }
    #[inline(always)]
    fn store<W: Wide>(w: W, elements: [W::Float; 2], target: &mut Vector) {
        w.store(elements[0], &mut target.0);
    }
    #[inline(always)]
    fn key_factors<W: Wide>(w: W, _: W::Float) -> [W::Float; 2] {
        [w.splat(1.0); 2]
    }
    #[inline(always)]
    fn value_factors<W: Wide>(w: W, _: W::Float) -> [W::Float; 2] {
        [w.splat(1.0); 2]
    }
    #[inline(always)]
    fn weights<W: Wide>(
        w: W,
        scores: [W::Float; 2],
        factor: W::Float,
        largest: W::Float,
        total: W::Float,
        target: &mut Vector,
    ) -> W::Float {
        let weights = exp2(w, w.sub(w.mul(scores[0], factor), largest));
        w.store(weights, &mut target.0);
        w.add(total, weights)
    }
}

impl Products for PairProducts {
    type Register<W: Wide> = W::Int;
    const STEP: usize = 2;

    #[inline(always)]
    fn zero<W: Wide>(w: W) -> W::Int {
        w.splat_int(0)
    }
    #[inline(always)]
    fn load<W: Wide>(w: W, source: &Vector) -> W::Int {
        w.load_int(source.ints())
    }
    #[inline(always)]
    fn broadcast<W: Wide>(w: W, source: f32) -> W::Int {
        w.splat_int(source.to_bits() as i32)
    }
    #[inline(always)]
    fn add_product<W: Wide>(w: W, a: W::Int, b: W::Int, sum: W::Int) -> W::Int {
        w.dot_pairs(a, b, sum)
    }
    #[inline(always)]
    fn to_float<W: Wide>(w: W, sum: W::Int) -> W::Float {
        w.to_float(sum)
    }
    #[inline(always)]
    fn store<W: Wide>(w: W, elements: [W::Float; 2], target: &mut Vector) {
        let (low, high) = (w.to_int(elements[0]), w.to_int(elements[1]));
        w.store_int(w.pair(low, high), target.ints_mut());
    }
    #[inline(always)]
    fn key_factors<W: Wide>(w: W, squares: W::Float) -> [W::Float; 2] {
        factors(w, w.sqrt(squares), LENGTH)
    }
    #[inline(always)]
    fn value_factors<W: Wide>(w: W, largest: W::Float) -> [W::Float; 2] {
        factors(w, largest, VALUE_MAX)
    }
    #[inline(always)]
    fn weights<W: Wide>(
        w: W,
        scores: [W::Float; 2],
        factor: W::Float,
        largest: W::Float,
        total: W::Int,
        target: &mut Vector,
    ) -> W::Int {
        let shift = w.sub(w.splat(WEIGHT_BITS), largest);
        let low = w.to_int(exp2_coarse(w, w.mul_add(scores[0], factor, shift)));
        let high = w.to_int(exp2_coarse(w, w.mul_add(scores[1], factor, shift)));
        w.store_int(w.pair(low, high), target.ints_mut());
        w.add_int(total, w.add_int(low, high))
    }
}

/// `[wanted / size, size / wanted]`, zeros for a size near zero.
#[inline(always)]
fn factors<W: Wide>(w: W, size: W::Float, wanted: f32) -> [W::Float; 2] {
    let zero = w.splat(0.0);
    let tiny = w.splat(TINY);
    let up = w.select_less(tiny, size, w.div(w.splat(wanted), size), zero);
    [up, w.mul(size, w.splat(1.0 / wanted))]
}
