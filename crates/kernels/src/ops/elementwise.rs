//! Operations on each element alone, and the driver that the activations share.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::arch::lanes::Avx512Arithmetic;
use crate::arch::lanes::{Arithmetic, Kernel, LANES, Lanes, dispatch};

/// `out = a + b`.
pub fn add(isa: Isa, a: &[f32], b: &[f32], out: &mut [f32]) {
    map2(isa, Add, a, b, out);
}

/// `a += b`.
pub fn add_assign(isa: Isa, a: &mut [f32], b: &[f32]) {
    map2_assign(isa, Add, a, b);
}

/// `out = a * b`.
pub fn mul(isa: Isa, a: &[f32], b: &[f32], out: &mut [f32]) {
    map2(isa, Mul, a, b, out);
}

/// `a *= b`.
pub fn mul_assign(isa: Isa, a: &mut [f32], b: &[f32]) {
    map2_assign(isa, Mul, a, b);
}

/// `x *= factor`.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    map_assign(isa, Scale(factor), x);
}

/// `a += factor * b`, rounded once: the step that mixes experts.
pub fn scale_add(isa: Isa, a: &mut [f32], b: &[f32], factor: f32) {
    map2_assign(isa, ScaleAdd(factor), a, b);
}

/// Limits each element to `low..=high`; NaN becomes `low`.
pub fn clamp(isa: Isa, x: &mut [f32], low: f32, high: f32) {
    map_assign(isa, Clamp(low, high), x);
}

/// Rounds to half precision, ties to even; beyond its range becomes infinite.
pub fn f32_to_f16(x: &[f32], out: &mut [f16]) {
    out.convert_from_f32_slice(x);
}

/// Widens half precision; exact.
pub fn f16_to_f32(x: &[f16], out: &mut [f32]) {
    x.convert_to_f32_slice(out);
}

/// A function of one element.
pub(super) trait Unary: Copy {
    /// Must be `#[inline(always)]`.
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector;
}

/// A function of two elements.
pub(super) trait Binary: Copy {
    /// Must be `#[inline(always)]`.
    fn map<L: Arithmetic>(self, lanes: L, a: L::Vector, b: L::Vector) -> L::Vector;
}

/// `x = f(x)`.
pub(super) fn map_assign<F: Unary>(isa: Isa, f: F, x: &mut [f32]) {
    dispatch(isa, MapAssign { f, x });
}

/// `out = f(a, b)`.
pub(super) fn map2<F: Binary>(isa: Isa, f: F, a: &[f32], b: &[f32], out: &mut [f32]) {
    assert_eq!(a.len(), b.len());
    assert_eq!(a.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512
        && let Some(wide) = Avx512Arithmetic::detect()
    {
        let done = wide.map2(a, b, out, |wide, a, b| f.map(wide, a, b));
        if done == out.len() {
            return;
        }
        let (a, b, out) = (&a[done..], &b[done..], &mut out[done..]);
        return dispatch(isa, Map2 { f, a, b, out });
    }
    dispatch(isa, Map2 { f, a, b, out });
}

/// `a = f(a, b)`.
pub(super) fn map2_assign<F: Binary>(isa: Isa, f: F, a: &mut [f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    dispatch(isa, Map2Assign { f, a, b });
}

/// The last, partial block, filled up with zeros.
#[inline(always)]
pub(super) fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut block = [0.0; LANES];
    block[..rest.len()].copy_from_slice(rest);
    block
}

struct MapAssign<'a, F> {
    f: F,
    x: &'a mut [f32],
}

impl<F: Unary> Kernel for MapAssign<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (blocks, rest) = self.x.as_chunks_mut::<LANES>();
        for block in blocks {
            lanes.store(self.f.map(lanes, lanes.load(block)), block);
        }
        let mut block = padded(rest);
        lanes.store(self.f.map(lanes, lanes.load(&block)), &mut block);
        rest.copy_from_slice(&block[..rest.len()]);
    }
}

struct Map2<'a, F> {
    f: F,
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl<F: Binary> Kernel for Map2<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (a_blocks, a_rest) = self.a.as_chunks::<LANES>();
        let (b_blocks, b_rest) = self.b.as_chunks::<LANES>();
        let (out_blocks, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((a, b), out) in a_blocks.iter().zip(b_blocks).zip(out_blocks) {
            lanes.store(self.f.map(lanes, lanes.load(a), lanes.load(b)), out);
        }
        let mut block = [0.0; LANES];
        let (a, b) = (lanes.load(&padded(a_rest)), lanes.load(&padded(b_rest)));
        lanes.store(self.f.map(lanes, a, b), &mut block);
        out_rest.copy_from_slice(&block[..out_rest.len()]);
    }
}

struct Map2Assign<'a, F> {
    f: F,
    a: &'a mut [f32],
    b: &'a [f32],
}

impl<F: Binary> Kernel for Map2Assign<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (a_blocks, a_rest) = self.a.as_chunks_mut::<LANES>();
        let (b_blocks, b_rest) = self.b.as_chunks::<LANES>();
        for (a, b) in a_blocks.iter_mut().zip(b_blocks) {
            lanes.store(self.f.map(lanes, lanes.load(a), lanes.load(b)), a);
        }
        let mut block = padded(a_rest);
        let b = lanes.load(&padded(b_rest));
        lanes.store(self.f.map(lanes, lanes.load(&block), b), &mut block);
        a_rest.copy_from_slice(&block[..a_rest.len()]);
    }
}

#[derive(Clone, Copy)]
struct Add;
impl Binary for Add {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, a: L::Vector, b: L::Vector) -> L::Vector {
        lanes.add(a, b)
    }
}

#[derive(Clone, Copy)]
struct Mul;
impl Binary for Mul {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, a: L::Vector, b: L::Vector) -> L::Vector {
        lanes.mul(a, b)
    }
}

#[derive(Clone, Copy)]
struct ScaleAdd(f32);
impl Binary for ScaleAdd {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, a: L::Vector, b: L::Vector) -> L::Vector {
        lanes.mul_add(b, lanes.splat(self.0), a)
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);
impl Unary for Scale {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        lanes.mul(x, lanes.splat(self.0))
    }
}

#[derive(Clone, Copy)]
struct Clamp(f32, f32);
impl Unary for Clamp {
    #[inline(always)]
    fn map<L: Arithmetic>(self, lanes: L, x: L::Vector) -> L::Vector {
        lanes.min(lanes.max(x, lanes.splat(self.0)), lanes.splat(self.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, lengths, numbers};

    #[test]
    fn each_operation_matches_plain_code_exactly() {
        for length in lengths() {
            let (a, b) = (numbers(length, 1, 3.0), numbers(length, 2, 3.0));
            let check = |name: &str, got: &[f32], f: &dyn Fn(f32, f32) -> f32| {
                let expected: Vec<f32> = a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect();
                assert_eq!(got, expected, "{name}, length {length}");
            };
            for isa in each_isa() {
                let mut out = vec![0.0; length];
                add(isa, &a, &b, &mut out);
                check("add", &out, &|a, b| a + b);
                mul(isa, &a, &b, &mut out);
                check("mul", &out, &|a, b| a * b);
                out.copy_from_slice(&a);
                add_assign(isa, &mut out, &b);
                check("add_assign", &out, &|a, b| a + b);
                out.copy_from_slice(&a);
                mul_assign(isa, &mut out, &b);
                check("mul_assign", &out, &|a, b| a * b);
                out.copy_from_slice(&a);
                scale(isa, &mut out, 0.37);
                check("scale", &out, &|a, _| a * 0.37);
                out.copy_from_slice(&a);
                scale_add(isa, &mut out, &b, -0.7);
                check("scale_add", &out, &|a, b| b.mul_add(-0.7, a));
                out.copy_from_slice(&a);
                clamp(isa, &mut out, -1.0, 0.5);
                check("clamp", &out, &|a, _| a.clamp(-1.0, 0.5));
            }
        }
    }

    #[test]
    fn half_precision_round_trip_is_exact_for_its_own_numbers() {
        let halves: Vec<f16> = (0..=0x7bff).map(f16::from_bits).collect();
        let mut wide = vec![0.0; halves.len()];
        f16_to_f32(&halves, &mut wide);
        let mut back = vec![f16::ZERO; halves.len()];
        f32_to_f16(&wide, &mut back);
        assert_eq!(back, halves);
    }
}
