//! Eight f32 lanes behind one interface, so that a kernel is written once and compiled for each instruction set.
//!
//! Each operation is one correctly rounded IEEE operation per lane, fused multiply-add included, so a kernel gives the
//! same bits on every instruction set as long as it uses nothing else.

use half::f16;

use crate::Isa;

/// Lanes in one vector.
pub const LANES: usize = 8;

/// One vector's worth of elements in memory.
pub type Block = [f32; LANES];

/// Arithmetic on vectors of f32.
pub trait Arithmetic: Copy + Send + Sync {
    /// A vector register.
    type Vector: Copy;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::Vector;
    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`.
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b`.
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a / b`.
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The smaller lane; `b` where either is NaN.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The larger lane; `b` where either is NaN.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `|a|`.
    fn abs(self, a: Self::Vector) -> Self::Vector;
    /// `if a < b { x } else { y }`, lane by lane.
    fn select_less(
        self,
        a: Self::Vector,
        b: Self::Vector,
        x: Self::Vector,
        y: Self::Vector,
    ) -> Self::Vector;
    /// The nearest integer, ties to even.
    fn round(self, a: Self::Vector) -> Self::Vector;
    /// `2^n` for integral lanes `n` in `-127..=127`, where `-127` gives 0; anything for other lanes.
    fn power_of_two(self, n: Self::Vector) -> Self::Vector;
}

/// Proof that an instruction set is there, and its operations on vectors of [`LANES`] f32.
pub trait Lanes: Arithmetic {
    /// Reads and widens half-precision numbers.
    fn load_f16(self, source: &[f16; LANES]) -> Self::Vector;
    /// Reads and converts signed bytes.
    fn load_i8(self, source: &[i8; LANES]) -> Self::Vector;
    /// Reads a vector.
    fn load(self, source: &Block) -> Self::Vector;
    /// Writes a vector.
    fn store(self, vector: Self::Vector, target: &mut Block);
    /// Exchanges lanes 0 and 1, 2 and 3, and so on.
    fn swap_pairs(self, a: Self::Vector) -> Self::Vector;
    /// The largest lane (of no NaN).
    #[inline(always)]
    fn reduce_max(self, a: Self::Vector) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        fold(lanes, |x, y| if x > y { x } else { y })
    }
    /// The sum of the lanes: (0+4, 1+5, 2+6, 3+7), then halves again.
    #[inline(always)]
    fn reduce_add(self, a: Self::Vector) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        fold(lanes, |x, y| x + y)
    }
}

/// Work that can be compiled for any instruction set.
pub trait Kernel {
    /// What the work returns.
    type Output;
    /// Does the work; must be `#[inline(always)]`, so that it is compiled with the instruction set's features.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` with the lanes of `isa`, or with the portable ones if this machine lacks it.
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        Isa::Scalar => kernel.run(ScalarLanes),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => match avx2::Avx2Lanes::detect() {
            Some(lanes) => lanes.run(kernel),
            None => kernel.run(ScalarLanes),
        },
        // NEON belongs to AArch64, so that compilers vectorise the portable lanes.
        #[cfg(not(target_arch = "x86_64"))]
        _ => kernel.run(ScalarLanes),
    }
}

#[inline(always)]
fn fold(lanes: Block, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    let (p, q, r, s) = (combine(a, e), combine(b, f), combine(c, g), combine(d, h));
    combine(combine(p, r), combine(q, s))
}

/// Portable lanes. Needs no proof.
#[derive(Clone, Copy, Debug)]
pub struct ScalarLanes;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Block {
    std::array::from_fn(f)
}

impl Arithmetic for ScalarLanes {
    type Vector = Block;

    #[inline(always)]
    fn splat(self, value: f32) -> Block {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Block, b: Block) -> Block {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Block, b: Block) -> Block {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Block, b: Block) -> Block {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Block, b: Block) -> Block {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Block, b: Block, c: Block) -> Block {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, a: Block, b: Block) -> Block {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: Block, b: Block) -> Block {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: Block) -> Block {
        each(|i| a[i].abs())
    }
    #[inline(always)]
    fn select_less(self, a: Block, b: Block, x: Block, y: Block) -> Block {
        each(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn round(self, a: Block) -> Block {
        each(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    fn power_of_two(self, n: Block) -> Block {
        each(|i| f32::from_bits(((n[i] as i32).wrapping_add(127) << 23) as u32))
    }
}

impl Lanes for ScalarLanes {
    #[inline(always)]
    fn load(self, source: &Block) -> Block {
        *source
    }
    #[inline(always)]
    fn load_f16(self, source: &[f16; LANES]) -> Block {
        each(|i| source[i].to_f32())
    }
    #[inline(always)]
    fn load_i8(self, source: &[i8; LANES]) -> Block {
        each(|i| f32::from(source[i]))
    }
    #[inline(always)]
    fn store(self, vector: Block, target: &mut Block) {
        *target = vector;
    }
    #[inline(always)]
    fn swap_pairs(self, a: Block) -> Block {
        each(|i| a[i ^ 1])
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{Arithmetic, Block, Kernel, LANES, Lanes};
    use crate::Isa;

    /// Proof that AVX2, FMA and F16C are there.
    #[derive(Clone, Copy)]
    pub struct Avx2Lanes(());

    impl Avx2Lanes {
        /// The proof, if this machine has the instruction set.
        #[inline]
        pub fn detect() -> Option<Avx2Lanes> {
            Isa::Avx2.is_available().then_some(Avx2Lanes(()))
        }

        /// Runs `kernel` compiled with the instruction set's features.
        #[inline]
        pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn enter<K: Kernel>(lanes: Avx2Lanes, kernel: K) -> K::Output {
                kernel.run(lanes)
            }
            // SAFETY: `self` exists only where detection found these features.
            unsafe { enter(self, kernel) }
        }
    }

    /// Writes the trait's methods: each body is intrinsics that need what `Avx2Lanes` proves.
    macro_rules! methods {
        ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty $body:block)*) => {
            $(#[inline(always)]
            fn $name(self, $($argument: $kind),*) -> $result {
                // SAFETY: `self` proves AVX2, FMA and F16C; loads and stores get references to whole blocks and
                // use the unaligned forms.
                unsafe { $body }
            })*
        };
    }

    impl Arithmetic for Avx2Lanes {
        type Vector = __m256;

        methods! {
            splat(value: f32) -> __m256 { _mm256_set1_ps(value) }
            add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
            sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
            mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
            div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
            mul_add(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
            max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
            abs(a: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
            select_less(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
                _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
            }
            round(a: __m256) -> __m256 {
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
            }
            power_of_two(n: __m256) -> __m256 {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
    }

    impl Lanes for Avx2Lanes {
        methods! {
            load(source: &Block) -> __m256 { _mm256_loadu_ps(source.as_ptr()) }
            load_f16(source: &[f16; LANES]) -> __m256 {
                _mm256_cvtph_ps(_mm_loadu_si128(source.as_ptr().cast()))
            }
            load_i8(source: &[i8; LANES]) -> __m256 {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(source.as_ptr().cast())))
            }
            store(vector: __m256, target: &mut Block) -> () { _mm256_storeu_ps(target.as_mut_ptr(), vector) }
            swap_pairs(a: __m256) -> __m256 { _mm256_permute_ps::<0b10_11_00_01>(a) }
            reduce_max(a: __m256) -> f32 {
                let half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)))
            }
            reduce_add(a: __m256) -> f32 {
                let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512Arithmetic;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::Arithmetic;
    use crate::Isa;

    /// Proof that AVX-512 is there: arithmetic on 16 lanes, for work on each element alone.
    #[derive(Clone, Copy)]
    pub struct Avx512Arithmetic(());

    impl Avx512Arithmetic {
        /// The proof, if this machine has the instruction set.
        #[inline]
        pub fn detect() -> Option<Avx512Arithmetic> {
            Isa::Avx512.is_available().then_some(Avx512Arithmetic(()))
        }

        /// `out = f(a, b)`, vector by vector; gives how many elements that were.
        #[inline]
        pub fn map2(
            self,
            a: &[f32],
            b: &[f32],
            out: &mut [f32],
            f: impl Fn(Self, __m512, __m512) -> __m512,
        ) -> usize {
            #[target_feature(enable = "avx512f")]
            fn enter(
                lanes: Avx512Arithmetic,
                a: &[f32],
                b: &[f32],
                out: &mut [f32],
                f: impl Fn(Avx512Arithmetic, __m512, __m512) -> __m512,
            ) -> usize {
                let (a, b) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0);
                let out = out.as_chunks_mut::<16>().0;
                for ((a, b), out) in a.iter().zip(b).zip(&mut *out) {
                    // SAFETY: 16 floats each.
                    unsafe {
                        let (a, b) = (_mm512_loadu_ps(a.as_ptr()), _mm512_loadu_ps(b.as_ptr()));
                        _mm512_storeu_ps(out.as_mut_ptr(), f(lanes, a, b));
                    }
                }
                16 * a.len().min(b.len()).min(out.len())
            }
            // SAFETY: `self` exists only where detection found the feature.
            unsafe { enter(self, a, b, out, f) }
        }
    }

    /// Writes the trait's methods: each body is intrinsics that need what `Avx512Arithmetic` proves.
    macro_rules! methods {
        ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty $body:block)*) => {
            $(#[inline(always)]
            fn $name(self, $($argument: $kind),*) -> $result {
                // SAFETY: `self` proves AVX-512 F.
                unsafe { $body }
            })*
        };
    }

    impl Arithmetic for Avx512Arithmetic {
        type Vector = __m512;

        methods! {
            splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
            add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
            mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
            mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
            max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
            abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
            select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
                _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x)
            }
            round(a: __m512) -> __m512 {
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
            }
            power_of_two(n: __m512) -> __m512 {
                let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
            }
        }
    }
}
