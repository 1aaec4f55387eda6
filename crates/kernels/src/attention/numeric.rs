//! What both kernels compute on vectors: powers of two, softcap and bias, masks, and how rows are described.

use bytemuck::{Pod, Zeroable};

use crate::arch::wide::{WIDE, Wide};

/// Score of a position that is not seen. Finite, so that differences of two of them are numbers.
pub(super) const UNSEEN: f32 = -1e30;

/// A vector in memory, aligned so that no load crosses cache lines.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Vector(pub(super) [f32; WIDE]);

impl Vector {
    pub(super) const ZERO: Vector = Vector([0.0; WIDE]);

    /// The same memory as integers.
    #[inline(always)]
    pub(super) fn ints(&self) -> &[i32; WIDE] {
        bytemuck::cast_ref(&self.0)
    }

    /// The same memory as integers.
    #[inline(always)]
    pub(super) fn ints_mut(&mut self) -> &mut [i32; WIDE] {
        bytemuck::cast_mut(&mut self.0)
    }
}

/// `2^x` for `x <= 0`, within a relative error of 4e-7; below -126 as there.
///
/// Method: `x = n + r` with `|r| <= 1/2`, the Taylor series of `2^r` up to degree 6.
#[inline(always)]
pub(super) fn exp2<W: Wide>(w: W, x: W::Float) -> W::Float {
    let half = w.splat(0.5);
    let shifted = w.add(w.max(w.splat(-125.5), x), half);
    let r = w.sub(w.fraction(shifted), half);
    let mut p = w.splat(1.540_353e-4);
    for coefficient in [
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        0.240_226_5,
        std::f32::consts::LN_2,
        1.0,
    ] {
        p = w.mul_add(p, r, w.splat(coefficient));
    }
    w.scale_by_floor(p, shifted)
}

/// `2^x` for `x <= 100`, within a relative error of 8e-5, which is below the rounding of what it is used for; below
/// -126 as there.
///
/// Method: `x = n + r` with `0 <= r < 1`, the cubic with the least relative error.
#[inline(always)]
pub(super) fn exp2_coarse<W: Wide>(w: W, x: W::Float) -> W::Float {
    let x = w.max(w.splat(-126.0), x);
    let r = w.fraction(x);
    let mut p = w.splat(0.078_024_52);
    for coefficient in [0.226_067_16, 0.695_833_54, 0.999_925_2] {
        p = w.mul_add(p, r, w.splat(coefficient));
    }
    w.scale_by_floor(p, x)
}

/// `cap * tanh(x / cap)` where `x` and `cap` are in units of log2.
///
/// Method: for small arguments an odd polynomial (the coefficients of Cephes' `tanhf`), else
/// `1 - 2 / (e^2|x| + 1)`.
#[inline(always)]
pub(super) fn softcap<W: Wide>(w: W, x: W::Float, cap: f32) -> W::Float {
    let zero = w.splat(0.0);
    let x = w.mul(x, w.splat(1.0 / cap));
    let size = w.max(x, w.sub(zero, x));
    let square = w.mul(x, x);
    let mut p = w.splat(-5.704_988_7e-3);
    for coefficient in [
        2.063_908_8e-2,
        -5.373_971_4e-2,
        1.333_144_2e-1,
        -3.333_328e-1,
    ] {
        p = w.mul_add(p, square, w.splat(coefficient));
    }
    let small = w.mul_add(w.mul(p, square), x, x);
    // e^-2|x| is at most 1, so nothing overflows.
    let e = exp2(w, w.mul(size, w.splat(-2.0 * std::f32::consts::LOG2_E)));
    let one = w.splat(1.0);
    let large = w.div(w.sub(one, e), w.add(one, e));
    let large = w.select_less(x, zero, w.sub(zero, large), large);
    let tanh = w.select_less(size, w.splat(0.625), small, large);
    w.mul(tanh, w.splat(cap))
}
