//! Exponential and hyperbolic tangent on vectors.

use super::elementwise::{Unary, map_assign};
use crate::Isa;
use crate::arch::lanes::Arithmetic;

/// Error bound of [`exp`] in units in the last place, for normal results.
pub const EXP_ULP: f64 = 1.5;

/// Error bound of the hyperbolic tangent inside [`softcap`](super::softcap) in units in the last place.
pub const TANH_ULP: f64 = 4.0;

/// `x = e^x`, each within [`EXP_ULP`]; overflow gives infinity, results below the normal range are rounded twice.
///
/// Method: `x = n ln 2 + r` with `n` integral and `|r| <= ln 2 / 2` (ln 2 in two parts, Cody and Waite), a polynomial
/// of degree 7 for `e^r` (its Taylor series with the last coefficients fitted), and multiplication by `2^n` in two
/// steps so that neither overflows early.
pub fn exp(isa: Isa, x: &mut [f32]) {
    map_assign(isa, Exp, x);
}

#[derive(Clone, Copy)]
struct Exp;
impl Unary for Exp {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        exp_lanes(lanes, x)
    }
}

const LN_2_HIGH: f32 = 0.693_145_75;
const LN_2_LOW: f32 = 1.428_606_8e-6;

/// `e^x`; see [`exp`].
#[inline(always)]
pub(super) fn exp_lanes<L: Arithmetic>(lanes: L, x: L::Vector) -> L::Vector {
    // Beyond these the result is 0 or infinite anyway. The order of the operands lets NaN through.
    let x = lanes.max(lanes.splat(-104.0), lanes.min(lanes.splat(89.0), x));
    let n = lanes.round(lanes.mul(x, lanes.splat(std::f32::consts::LOG2_E)));
    let r = lanes.mul_add(n, lanes.splat(-LN_2_HIGH), x);
    let r = lanes.mul_add(n, lanes.splat(-LN_2_LOW), r);
    let mut p = lanes.splat(1.0 / 5040.0);
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = lanes.mul_add(p, r, lanes.splat(coefficient));
    }
    let half = lanes.round(lanes.mul(n, lanes.splat(0.5)));
    let rest = lanes.sub(n, half);
    lanes.mul(
        lanes.mul(p, lanes.power_of_two(half)),
        lanes.power_of_two(rest),
    )
}

/// `tanh x` within [`TANH_ULP`].
///
/// Method: below 0.625 an odd polynomial (the coefficients of Cephes' `tanhf`), above `1 - 2 / (e^2|x| + 1)`.
#[inline(always)]
pub(super) fn tanh<L: Arithmetic>(lanes: L, x: L::Vector) -> L::Vector {
    let size = lanes.abs(x);
    let square = lanes.mul(x, x);
    let mut p = lanes.splat(-5.704_988_7e-3);
    for coefficient in [
        2.063_908_8e-2,
        -5.373_971_4e-2,
        1.333_144_2e-1,
        -3.333_328e-1,
    ] {
        p = lanes.mul_add(p, square, lanes.splat(coefficient));
    }
    let small = lanes.mul_add(lanes.mul(p, square), x, x);
    let one = lanes.splat(1.0);
    let e = exp_lanes(lanes, lanes.add(size, size));
    let large = lanes.sub(one, lanes.div(lanes.splat(2.0), lanes.add(e, one)));
    let zero = lanes.splat(0.0);
    let large = lanes.select_less(x, zero, lanes.sub(zero, large), large);
    lanes.select_less(size, lanes.splat(0.625), small, large)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid<L: Arithmetic>(lanes: L, x: L::Vector) -> L::Vector {
    let one = lanes.splat(1.0);
    let e = exp_lanes(lanes, lanes.sub(lanes.splat(0.0), x));
    lanes.div(one, lanes.add(one, e))
}

/// The error function, within 4e-7 absolutely.
///
/// Method: formula 7.1.26 of Abramowitz and Stegun (error 1.5e-7), plus rounding.
#[inline(always)]
pub(super) fn erf<L: Arithmetic>(lanes: L, x: L::Vector) -> L::Vector {
    let one = lanes.splat(1.0);
    let zero = lanes.splat(0.0);
    let size = lanes.abs(x);
    let t = lanes.div(one, lanes.mul_add(lanes.splat(0.327_591_1), size, one));
    let mut p = lanes.splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = lanes.mul_add(p, t, lanes.splat(coefficient));
    }
    let gauss = exp_lanes(lanes, lanes.sub(zero, lanes.mul(size, size)));
    let size_erf = lanes.sub(one, lanes.mul(lanes.mul(p, t), gauss));
    lanes.select_less(x, zero, lanes.sub(zero, size_erf), size_erf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, same_bits_on_each_isa};

    #[derive(Clone, Copy)]
    struct Tanh;
    impl Unary for Tanh {
        #[inline(always)]
        fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
            tanh(lanes, x)
        }
    }

    /// Distance of `got` from `exact` in units in the last place of `exact`.
    fn ulp(got: f32, exact: f64) -> f64 {
        let unit = f64::from((exact as f32).abs().max(f32::MIN_POSITIVE))
            .log2()
            .floor()
            - 23.0;
        (f64::from(got) - exact).abs() / unit.exp2()
    }

    fn grid(low: f64, high: f64, steps: usize) -> Vec<f32> {
        (0..=steps)
            .map(|i| (low + (high - low) * i as f64 / steps as f64) as f32)
            .collect()
    }

    #[test]
    fn exp_is_within_its_bound() {
        let x = grid(-87.3, 88.7, 300_007);
        for isa in each_isa() {
            let mut y = x.clone();
            exp(isa, &mut y);
            let worst = x
                .iter()
                .zip(&y)
                .map(|(&x, &y)| ulp(y, f64::from(x).exp()))
                .fold(0.0, f64::max);
            assert!(worst <= EXP_ULP, "{worst} units on {isa:?}");
        }
        same_bits_on_each_isa(&x, exp);
    }

    #[test]
    fn exp_at_the_ends() {
        for isa in each_isa() {
            let mut x = [
                0.0,
                -0.0,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::NAN,
                88.8,
                1e30,
                -1e30,
                -100.0,
                -87.4,
            ];
            exp(isa, &mut x);
            assert_eq!(x[..4], [1.0, 1.0, f32::INFINITY, 0.0]);
            assert!(x[4].is_nan());
            assert_eq!(x[5..8], [f32::INFINITY, f32::INFINITY, 0.0]);
            assert!((x[8] - (-100f64).exp() as f32).abs() <= 2.0 * f32::from_bits(1));
            assert!((x[9] - f64::from(-87.4f32).exp() as f32).abs() <= 4.0 * f32::from_bits(1));
        }
    }

    #[test]
    fn tanh_is_within_its_bound() {
        let x = grid(-12.0, 12.0, 200_003);
        for isa in each_isa() {
            let mut y = x.clone();
            map_assign(isa, Tanh, &mut y);
            let worst = x
                .iter()
                .zip(&y)
                .map(|(&x, &y)| ulp(y, f64::from(x).tanh()))
                .fold(0.0, f64::max);
            assert!(worst <= TANH_ULP, "{worst} units on {isa:?}");
            let mut ends = [f32::INFINITY, f32::NEG_INFINITY, 0.0];
            map_assign(isa, Tanh, &mut ends);
            assert_eq!(ends, [1.0, -1.0, 0.0]);
        }
        same_bits_on_each_isa(&x, |isa, x| map_assign(isa, Tanh, x));
    }
}
