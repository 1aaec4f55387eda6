//! Root-mean-square norm and layer norm of one row.

use super::elementwise::padded;
use crate::Isa;
use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch};

/// Error bound of the norms relative to the largest element of the result, for rows of up to 65,536 elements.
pub const NORM_RELATIVE_ERROR: f64 = 2e-6;

/// Independent accumulators of a sum: 4 vectors, so 32 partial sums.
const ACCUMULATORS: usize = 4;

/// `out = x / √(mean(x²) + epsilon) * weight` (Zhang and Sennrich 2019). All slices are one row.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert_eq!(x.len(), weight.len());
    assert_eq!(x.len(), out.len());
    dispatch(
        isa,
        RmsNorm {
            x,
            weight,
            epsilon,
            out,
        },
    );
}

/// `residual += delta`, then `out = rms_norm(residual)`, in two passes instead of three.
pub fn add_rms_norm(
    isa: Isa,
    residual: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    assert_eq!(residual.len(), delta.len());
    assert_eq!(residual.len(), weight.len());
    assert_eq!(residual.len(), out.len());
    dispatch(
        isa,
        AddRmsNorm {
            residual,
            delta,
            weight,
            epsilon,
            out,
        },
    );
}

/// `out = (x - mean) / √(variance + epsilon) * weight + bias` (Ba et al. 2016); the variance is the mean squared
/// distance from the mean, in a pass of its own.
pub fn layer_norm(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
    out: &mut [f32],
) {
    assert_eq!(x.len(), weight.len());
    assert_eq!(x.len(), out.len());
    assert!(bias.is_none_or(|bias| bias.len() == x.len()));
    dispatch(
        isa,
        LayerNorm {
            x,
            weight,
            bias,
            epsilon,
            out,
        },
    );
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let squares = sum(lanes, self.x, |lanes, x, total| lanes.mul_add(x, x, total));
        write_scaled(
            lanes,
            self.x,
            self.weight,
            inverse_root(squares, self.x.len(), self.epsilon),
            self.out,
        );
    }
}

struct AddRmsNorm<'a> {
    residual: &'a mut [f32],
    delta: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for AddRmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        // The same partial sums as in `sum`, so that the fused form gives the bits of the two steps.
        let mut totals = [lanes.splat(0.0); ACCUMULATORS];
        let (blocks, rest) = self.residual.as_chunks_mut::<LANES>();
        let (delta_blocks, delta_rest) = self.delta.as_chunks::<LANES>();
        for (group, deltas) in blocks
            .chunks_mut(ACCUMULATORS)
            .zip(delta_blocks.chunks(ACCUMULATORS))
        {
            for ((block, delta), total) in group.iter_mut().zip(deltas).zip(&mut totals) {
                let x = lanes.add(lanes.load(block), lanes.load(delta));
                lanes.store(x, block);
                *total = lanes.mul_add(x, x, *total);
            }
        }
        rest.iter_mut()
            .zip(delta_rest)
            .for_each(|(x, delta)| *x += delta);
        let x = lanes.load(&padded(rest));
        totals[0] = lanes.mul_add(x, x, totals[0]);
        let factor = inverse_root(fold(lanes, totals), self.residual.len(), self.epsilon);
        write_scaled(lanes, self.residual, self.weight, factor, self.out);
    }
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mean = sum(lanes, self.x, |lanes, x, total| lanes.add(x, total)) / self.x.len() as f32;
        let negative_mean = lanes.splat(-mean);
        for (out, x) in self
            .out
            .as_chunks_mut::<LANES>()
            .0
            .iter_mut()
            .zip(self.x.as_chunks::<LANES>().0)
        {
            lanes.store(lanes.add(lanes.load(x), negative_mean), out);
        }
        let whole = self.x.len() / LANES * LANES;
        self.out[whole..]
            .iter_mut()
            .zip(&self.x[whole..])
            .for_each(|(out, x)| *out = x - mean);
        let squares = sum(lanes, self.out, |lanes, x, total| {
            lanes.mul_add(x, x, total)
        });
        let factor = inverse_root(squares, self.x.len(), self.epsilon);
        for i in 0..self.x.len() {
            let scaled = self.out[i] * factor * self.weight[i];
            self.out[i] = self.bias.map_or(scaled, |bias| scaled + bias[i]);
        }
    }
}

/// `1 / √(squares / length + epsilon)`.
#[inline(always)]
fn inverse_root(squares: f32, length: usize, epsilon: f32) -> f32 {
    1.0 / (squares / length as f32 + epsilon).sqrt()
}

/// `out = x * factor * weight`.
#[inline(always)]
fn write_scaled<L: Lanes>(lanes: L, x: &[f32], weight: &[f32], factor: f32, out: &mut [f32]) {
    let scale = lanes.splat(factor);
    let (x_blocks, x_rest) = x.as_chunks::<LANES>();
    let (weight_blocks, weight_rest) = weight.as_chunks::<LANES>();
    let (out_blocks, out_rest) = out.as_chunks_mut::<LANES>();
    for ((x, weight), out) in x_blocks.iter().zip(weight_blocks).zip(out_blocks) {
        lanes.store(
            lanes.mul(lanes.mul(lanes.load(x), scale), lanes.load(weight)),
            out,
        );
    }
    for ((x, weight), out) in x_rest.iter().zip(weight_rest).zip(out_rest) {
        *out = x * factor * weight;
    }
}

/// Sums `step(x)` over a row; the zeros that fill up the last block must add nothing.
#[inline(always)]
fn sum<L: Lanes>(lanes: L, x: &[f32], step: impl Fn(L, L::Vector, L::Vector) -> L::Vector) -> f32 {
    let mut totals = [lanes.splat(0.0); ACCUMULATORS];
    let (blocks, rest) = x.as_chunks::<LANES>();
    let (groups, last) = blocks.as_chunks::<ACCUMULATORS>();
    for group in groups {
        for (block, total) in group.iter().zip(&mut totals) {
            *total = step(lanes, lanes.load(block), *total);
        }
    }
    for (block, total) in last.iter().zip(&mut totals) {
        *total = step(lanes, lanes.load(block), *total);
    }
    totals[0] = step(lanes, lanes.load(&padded(rest)), totals[0]);
    fold(lanes, totals)
}

#[inline(always)]
fn fold<L: Lanes>(lanes: L, [a, b, c, d]: [L::Vector; ACCUMULATORS]) -> f32 {
    lanes.reduce_add(lanes.add(lanes.add(a, c), lanes.add(b, d)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, lengths, numbers};

    fn close(got: &[f32], exact: &[f64]) -> bool {
        let largest = exact.iter().fold(0f64, |largest, x| largest.max(x.abs()));
        got.iter()
            .zip(exact)
            .all(|(&got, &exact)| (f64::from(got) - exact).abs() <= NORM_RELATIVE_ERROR * largest)
    }

    fn rms_exact(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f64> {
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let factor = 1.0 / (squares / x.len() as f64 + f64::from(epsilon)).sqrt();
        x.iter()
            .zip(weight)
            .map(|(&x, &w)| f64::from(x) * factor * f64::from(w))
            .collect()
    }

    fn layer_exact(x: &[f32], weight: &[f32], bias: Option<&[f32]>, epsilon: f32) -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let variance = x
            .iter()
            .map(|&x| (f64::from(x) - mean).powi(2))
            .sum::<f64>()
            / x.len() as f64;
        let factor = 1.0 / (variance + f64::from(epsilon)).sqrt();
        (0..x.len())
            .map(|i| {
                (f64::from(x[i]) - mean) * factor * f64::from(weight[i])
                    + bias.map_or(0.0, |bias| f64::from(bias[i]))
            })
            .collect()
    }

    #[test]
    fn norms_are_within_their_bound() {
        for length in lengths()
            .into_iter()
            .chain([4096, 65_536])
            .filter(|&length| length > 0)
        {
            let x: Vec<f32> = numbers(length, 1, 2.0).iter().map(|x| x + 0.5).collect();
            let (weight, bias) = (numbers(length, 2, 1.5), numbers(length, 3, 1.0));
            for isa in each_isa() {
                let mut out = vec![0.0; length];
                rms_norm(isa, &x, &weight, 1e-5, &mut out);
                assert!(
                    close(&out, &rms_exact(&x, &weight, 1e-5)),
                    "rms, {length}, {isa:?}"
                );
                layer_norm(isa, &x, &weight, Some(&bias), 1e-5, &mut out);
                assert!(
                    close(&out, &layer_exact(&x, &weight, Some(&bias), 1e-5)),
                    "layer, {length}"
                );
                layer_norm(isa, &x, &weight, None, 1e-5, &mut out);
                assert!(
                    close(&out, &layer_exact(&x, &weight, None, 1e-5)),
                    "no bias, {length}"
                );
            }
        }
    }

    #[test]
    fn a_missing_epsilon_or_mean_is_caught() {
        let (x, weight) = (numbers(64, 1, 0.01), vec![1.0; 64]);
        let mut out = vec![0.0; 64];
        rms_norm(Isa::detect(), &x, &weight, 1e-5, &mut out);
        assert!(!close(&out, &rms_exact(&x, &weight, 0.0)));
        let shifted: Vec<f32> = x.iter().map(|x| x + 1.0).collect();
        layer_norm(Isa::detect(), &shifted, &weight, None, 1e-5, &mut out);
        assert!(!close(&out, &rms_exact(&shifted, &weight, 1e-5)));
    }

    #[test]
    fn the_fused_form_gives_the_bits_of_the_two_steps_on_each_isa() {
        for length in lengths().into_iter().filter(|&length| length > 0) {
            let (x, delta, weight) = (
                numbers(length, 1, 2.0),
                numbers(length, 2, 2.0),
                numbers(length, 3, 1.0),
            );
            let sum: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
            let mut expected = vec![0.0; length];
            rms_norm(Isa::Scalar, &sum, &weight, 1e-6, &mut expected);
            for isa in each_isa() {
                let (mut residual, mut out) = (x.clone(), vec![0.0; length]);
                add_rms_norm(isa, &mut residual, &delta, &weight, 1e-6, &mut out);
                assert_eq!(residual, sum);
                assert_eq!(out, expected, "{length}, {isa:?}");
            }
        }
    }
}
