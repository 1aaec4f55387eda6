//! Softmax of one row.

use super::math::exp_lanes;
use crate::Isa;
use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch};

/// Relative error bound of [`softmax`] for rows of up to a million elements within 80 of the largest.
pub const SOFTMAX_RELATIVE_ERROR: f64 = 8e-6;

/// Vectors that are summed before their sum is added to the total.
const BLOCKS_PER_SUM: usize = 64;

/// `x = e^(x - max) / sum`. Elements of minus infinity become 0; a row of nothing else becomes all 0.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    dispatch(isa, Softmax(x));
}

struct Softmax<'a>(&'a mut [f32]);

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (blocks, rest) = self.0.as_chunks_mut::<LANES>();
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut largest = lanes.load(&last);
        for block in blocks.iter() {
            largest = lanes.max(lanes.load(block), largest);
        }
        let largest = lanes.reduce_max(largest);
        if largest == f32::NEG_INFINITY {
            return self.0.fill(0.0);
        }
        let shift = lanes.splat(largest);
        // Sums of groups, then their sum: a single running sum of a long row would lose digits.
        let mut total = lanes.splat(0.0);
        for group in blocks
            .chunks_mut(BLOCKS_PER_SUM)
            .chain([std::slice::from_mut(&mut last)])
        {
            let mut part = lanes.splat(0.0);
            for block in group {
                let e = exp_lanes(lanes, lanes.sub(lanes.load(block), shift));
                part = lanes.add(part, e);
                lanes.store(e, block);
            }
            total = lanes.add(total, part);
        }
        let factor = lanes.splat(1.0 / lanes.reduce_add(total));
        for block in blocks.iter_mut().chain([&mut last]) {
            lanes.store(lanes.mul(lanes.load(block), factor), block);
        }
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, lengths, numbers, same_bits_on_each_isa};

    #[test]
    fn softmax_is_within_its_bound() {
        for length in lengths()
            .into_iter()
            .chain([262_144])
            .filter(|&length| length > 0)
        {
            let x = numbers(length, 9, 30.0);
            let largest = x.iter().fold(f64::MIN, |a, &b| a.max(f64::from(b)));
            let exact: Vec<f64> = x.iter().map(|&x| (f64::from(x) - largest).exp()).collect();
            let total: f64 = exact.iter().sum();
            for isa in each_isa() {
                let mut y = x.clone();
                softmax(isa, &mut y);
                for (&y, e) in y.iter().zip(&exact) {
                    let exact = e / total;
                    assert!(
                        (f64::from(y) - exact).abs() <= SOFTMAX_RELATIVE_ERROR * exact,
                        "{y} {exact} {length}"
                    );
                }
            }
            same_bits_on_each_isa(&x, softmax);
        }
    }

    #[test]
    fn masked_elements_become_zero() {
        for isa in each_isa() {
            let mut x = [f32::NEG_INFINITY, 1e30, f32::NEG_INFINITY, 1e30];
            softmax(isa, &mut x);
            assert_eq!(x, [0.0, 0.5, 0.0, 0.5]);
            let mut x = [f32::NEG_INFINITY; 11];
            softmax(isa, &mut x);
            assert_eq!(x, [0.0; 11]);
            softmax(isa, &mut []);
        }
    }
}
