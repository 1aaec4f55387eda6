//! Activation functions, the gated products of feed-forward layers, and the soft cap.

use super::elementwise::{Binary, Unary, map_assign, map2};
use super::math::{erf, sigmoid, tanh};
use crate::Isa;
use crate::arch::lanes::Arithmetic;

/// Error bound of [`activate`]: `|error| <= ACTIVATION_ABSOLUTE_ERROR * max(|x|, 1)`.
pub const ACTIVATION_ABSOLUTE_ERROR: f64 = 4e-7;

/// Relative error bound of [`softcap`].
pub const SOFTCAP_RELATIVE_ERROR: f64 = 7e-7;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + e^-x)`, also called swish.
    Silu,
    /// `x Φ(x)` in the tanh form: `x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³)))` (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// `x Φ(x) = x / 2 (1 + erf(x / √2))`.
    GeluErf,
    /// `x / (1 + e^(-1.702 x))`.
    GeluQuick,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
}

/// `x = activation(x)`, within [`ACTIVATION_ABSOLUTE_ERROR`].
pub fn activate(isa: Isa, activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => map_assign(isa, Silu, x),
        Activation::GeluTanh => map_assign(isa, GeluTanh, x),
        Activation::GeluErf => map_assign(isa, GeluErf, x),
        Activation::GeluQuick => map_assign(isa, GeluQuick, x),
        Activation::Relu => map_assign(isa, Relu, x),
        Activation::ReluSquared => map_assign(isa, ReluSquared, x),
    }
}

/// `out = activation(gate) * up`: the middle of a gated feed-forward layer (Shazeer 2020).
pub fn gated_product(isa: Isa, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Silu => map2(isa, Gated(Silu), gate, up, out),
        Activation::GeluTanh => map2(isa, Gated(GeluTanh), gate, up, out),
        Activation::GeluErf => map2(isa, Gated(GeluErf), gate, up, out),
        Activation::GeluQuick => map2(isa, Gated(GeluQuick), gate, up, out),
        Activation::Relu => map2(isa, Gated(Relu), gate, up, out),
        Activation::ReluSquared => map2(isa, Gated(ReluSquared), gate, up, out),
    }
}

/// `x = cap * tanh(x / cap)`, within [`SOFTCAP_RELATIVE_ERROR`] (Gemma 2).
pub fn softcap(isa: Isa, x: &mut [f32], cap: f32) {
    map_assign(isa, Softcap(cap), x);
}

#[derive(Clone, Copy)]
struct Gated<F>(F);
impl<F: Unary> Binary for Gated<F> {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, gate: L::Vector, up: L::Vector) -> L::Vector {
        lanes.mul(self.0.map(lanes, gate), up)
    }
}

#[derive(Clone, Copy)]
struct Silu;
impl Unary for Silu {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        lanes.mul(x, sigmoid(lanes, x))
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;
impl Unary for GeluTanh {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        // (1 + tanh u) / 2 is the logistic function of 2u.
        const FACTOR: f32 = 1.595_769; // 2 √(2/π)
        let cube = lanes.mul_add(lanes.mul(x, x), lanes.splat(0.044715), lanes.splat(1.0));
        let u = lanes.mul(lanes.mul(x, lanes.splat(FACTOR)), cube);
        lanes.mul(x, sigmoid(lanes, u))
    }
}

#[derive(Clone, Copy)]
struct GeluErf;
impl Unary for GeluErf {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        let erf = erf(
            lanes,
            lanes.mul(x, lanes.splat(std::f32::consts::FRAC_1_SQRT_2)),
        );
        let half = lanes.mul(x, lanes.splat(0.5));
        lanes.mul_add(half, erf, half)
    }
}

#[derive(Clone, Copy)]
struct GeluQuick;
impl Unary for GeluQuick {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        lanes.mul(x, sigmoid(lanes, lanes.mul(x, lanes.splat(1.702))))
    }
}

#[derive(Clone, Copy)]
struct Relu;
impl Unary for Relu {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        lanes.max(lanes.splat(0.0), x)
    }
}

#[derive(Clone, Copy)]
struct ReluSquared;
impl Unary for ReluSquared {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        let x = lanes.max(lanes.splat(0.0), x);
        lanes.mul(x, x)
    }
}

#[derive(Clone, Copy)]
struct Softcap(f32);
impl Unary for Softcap {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        let cap = lanes.splat(self.0);
        lanes.mul(cap, tanh(lanes, lanes.div(x, cap)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, lengths, numbers, same_bits_on_each_isa};

    const ALL: [Activation; 6] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::GeluQuick,
        Activation::Relu,
        Activation::ReluSquared,
    ];

    /// The error function by its power series, good to 1e-13 for `|x| <= 5`.
    fn erf_exact(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-17 * sum.abs().max(1e-300) && n < 300.0 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::GeluErf => 0.5 * x * (1.0 + erf_exact(x / 2f64.sqrt())),
            Activation::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
            Activation::Relu => x.max(0.0),
            Activation::ReluSquared => x.max(0.0).powi(2),
        }
    }

    #[test]
    fn activations_are_within_their_bound() {
        let x: Vec<f32> = (-100_000..=100_000).map(|i| i as f32 * 1.1e-4).collect();
        for activation in ALL {
            for isa in each_isa() {
                let mut y = x.clone();
                activate(isa, activation, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let exact = exact(activation, f64::from(x));
                    let size = f64::from(x).abs().max(exact).max(1.0);
                    let error = (f64::from(y) - exact).abs() / size;
                    assert!(
                        error <= ACTIVATION_ABSOLUTE_ERROR,
                        "{activation:?} of {x}: {y}, {exact}, {isa:?}"
                    );
                }
            }
            same_bits_on_each_isa(&x, |isa, x| activate(isa, activation, x));
        }
    }

    #[test]
    fn large_numbers_stay_finite() {
        for activation in ALL {
            for isa in each_isa() {
                let mut x = [-1e4, 1e4, -300.0, 300.0];
                activate(isa, activation, &mut x);
                assert!(x.iter().all(|x| x.is_finite()), "{activation:?}: {x:?}");
                assert_eq!([x[0].abs(), x[2].abs()], [0.0, 0.0]);
            }
        }
    }

    #[test]
    fn gated_product_is_activation_times_up() {
        for length in lengths() {
            let (gate, up) = (numbers(length, 3, 4.0), numbers(length, 4, 2.0));
            for activation in ALL {
                for isa in each_isa() {
                    let mut expected = gate.clone();
                    activate(isa, activation, &mut expected);
                    expected.iter_mut().zip(&up).for_each(|(g, u)| *g *= u);
                    let mut out = vec![0.0; length];
                    gated_product(isa, activation, &gate, &up, &mut out);
                    assert_eq!(out, expected);
                }
            }
        }
    }

    #[test]
    fn softcap_is_within_its_bound() {
        let x = numbers(10_000, 5, 120.0);
        for isa in each_isa() {
            let mut y = x.clone();
            softcap(isa, &mut y, 30.0);
            for (&x, &y) in x.iter().zip(&y) {
                let exact = 30.0 * (f64::from(x) / 30.0).tanh();
                assert!(
                    (f64::from(y) - exact).abs() <= SOFTCAP_RELATIVE_ERROR * exact.abs(),
                    "{x}: {y}, {exact}"
                );
            }
        }
    }
}
