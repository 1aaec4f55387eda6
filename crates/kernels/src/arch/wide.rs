//! Sixteen f32 or i32 lanes behind one interface: what the attention kernels are written in.
//!
//! As with [`Lanes`](super::lanes::Lanes), each operation on floats is one correctly rounded IEEE operation per lane, and
//! integer arithmetic is exact, so a kernel gives the same bits on every instruction set.

use half::f16;

use crate::Isa;

/// Lanes in one vector.
pub const WIDE: usize = 16;

/// Proof that an instruction set is there, and its operations on vectors of [`WIDE`] lanes.
pub trait Wide: Copy + Send + Sync {
    /// A register of f32.
    type Float: Copy;
    /// A register of i32.
    type Int: Copy;
    /// Vectors that a matrix kernel may keep side by side with eight partners without running out of registers; 1
    /// means that four partners are the limit.
    const SIDE: usize;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::Float;
    /// Reads a vector.
    fn load(self, source: &[f32; WIDE]) -> Self::Float;
    /// Reads and widens half-precision numbers.
    fn load_f16(self, source: &[f16; WIDE]) -> Self::Float;
    /// Reads and converts signed bytes.
    fn load_i8(self, source: &[i8; WIDE]) -> Self::Float;
    /// Writes a vector.
    fn store(self, vector: Self::Float, target: &mut [f32; WIDE]);
    /// `a + b`.
    fn add(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a - b`.
    fn sub(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a * b`.
    fn mul(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a / b`.
    fn div(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    /// The larger lane; `b` where either is NaN.
    fn max(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// The square root.
    fn sqrt(self, a: Self::Float) -> Self::Float;
    /// `if a < b { x } else { y }`, lane by lane.
    fn select_less(
        self,
        a: Self::Float,
        b: Self::Float,
        x: Self::Float,
        y: Self::Float,
    ) -> Self::Float;
    /// `a - floor(a)`, rounded once.
    fn fraction(self, a: Self::Float) -> Self::Float;
    /// `a * 2^floor(n)` for lanes `n` in `-126..=127`; anything for other lanes.
    fn scale_by_floor(self, a: Self::Float, n: Self::Float) -> Self::Float;

    /// All lanes `value`.
    fn splat_int(self, value: i32) -> Self::Int;
    /// Reads a vector.
    fn load_int(self, source: &[i32; WIDE]) -> Self::Int;
    /// Writes a vector.
    fn store_int(self, vector: Self::Int, target: &mut [i32; WIDE]);
    /// `a + b`, wrapping.
    fn add_int(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Each lane's low half of `low` and, above it, the low half of `high`.
    fn pair(self, low: Self::Int, high: Self::Int) -> Self::Int;
    /// `sum + a.low * b.low + a.high * b.high`, the halves of each lane taken as signed 16-bit numbers; wrapping.
    fn dot_pairs(self, a: Self::Int, b: Self::Int, sum: Self::Int) -> Self::Int;
    /// The nearest integer, ties to even, of lanes within the range of i32; `i32::MIN` for others.
    fn to_int(self, a: Self::Float) -> Self::Int;
    /// As f32, rounded.
    fn to_float(self, a: Self::Int) -> Self::Float;

    /// Asks for the cache line of `target` ahead of its use, into the second-level cache: the first level has too few
    /// outstanding misses to keep memory busy.
    fn prefetch<T>(self, target: &T);

    /// The largest lane (of no NaN).
    #[inline(always)]
    fn reduce_max(self, a: Self::Float) -> f32 {
        let mut lanes = [0.0; WIDE];
        self.store(a, &mut lanes);
        fold(lanes, |x, y| if x > y { x } else { y })
    }

    /// The sum of the lanes, in halves.
    #[inline(always)]
    fn reduce_add(self, a: Self::Float) -> f32 {
        let mut lanes = [0.0; WIDE];
        self.store(a, &mut lanes);
        fold(lanes, |x, y| x + y)
    }
}

/// Work that can be compiled for any instruction set.
pub trait WideKernel {
    /// What the work returns.
    type Output;
    /// Does the work; must be `#[inline(always)]`, so that it is compiled with the instruction set's features.
    fn run<W: Wide>(self, wide: W) -> Self::Output;
}

/// Runs `kernel` with the lanes of `isa`, or with the portable ones if this machine lacks it.
#[inline]
pub fn dispatch_wide<K: WideKernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Scalar => {}
        Isa::Avx2 => {
            if let Some(wide) = avx2::Avx2Wide::detect() {
                return wide.run(kernel);
            }
        }
        Isa::Avx512 => {
            if let Some(wide) = avx512::Avx512Wide::detect() {
                return wide.run(kernel);
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    kernel.run(ScalarWide)
}

#[inline(always)]
fn fold(lanes: [f32; WIDE], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| combine(lanes[i], lanes[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| combine(eight[i], eight[i + 4]));
    combine(combine(four[0], four[2]), combine(four[1], four[3]))
}

/// Portable lanes. Needs no proof.
#[derive(Clone, Copy, Debug)]
pub struct ScalarWide;

#[inline(always)]
fn each<T>(f: impl FnMut(usize) -> T) -> [T; WIDE] {
    std::array::from_fn(f)
}

impl Wide for ScalarWide {
    type Float = [f32; WIDE];
    type Int = [i32; WIDE];
    const SIDE: usize = 1;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Float {
        [value; WIDE]
    }
    #[inline(always)]
    fn load(self, source: &[f32; WIDE]) -> Self::Float {
        *source
    }
    #[inline(always)]
    fn load_f16(self, source: &[f16; WIDE]) -> Self::Float {
        each(|i| source[i].to_f32())
    }
    #[inline(always)]
    fn load_i8(self, source: &[i8; WIDE]) -> Self::Float {
        each(|i| f32::from(source[i]))
    }
    #[inline(always)]
    fn store(self, vector: Self::Float, target: &mut [f32; WIDE]) {
        *target = vector;
    }
    #[inline(always)]
    fn add(self, a: Self::Float, b: Self::Float) -> Self::Float {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::Float, b: Self::Float) -> Self::Float {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::Float, b: Self::Float) -> Self::Float {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::Float, b: Self::Float) -> Self::Float {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::Float, b: Self::Float) -> Self::Float {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sqrt(self, a: Self::Float) -> Self::Float {
        each(|i| a[i].sqrt())
    }
    #[inline(always)]
    fn select_less(
        self,
        a: Self::Float,
        b: Self::Float,
        x: Self::Float,
        y: Self::Float,
    ) -> Self::Float {
        each(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn fraction(self, a: Self::Float) -> Self::Float {
        each(|i| a[i] - a[i].floor())
    }
    #[inline(always)]
    fn scale_by_floor(self, a: Self::Float, n: Self::Float) -> Self::Float {
        each(|i| {
            let exponent = (n[i].floor() as i32).wrapping_add(127);
            a[i] * f32::from_bits((exponent << 23) as u32)
        })
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::Int {
        [value; WIDE]
    }
    #[inline(always)]
    fn load_int(self, source: &[i32; WIDE]) -> Self::Int {
        *source
    }
    #[inline(always)]
    fn store_int(self, vector: Self::Int, target: &mut [i32; WIDE]) {
        *target = vector;
    }
    #[inline(always)]
    fn add_int(self, a: Self::Int, b: Self::Int) -> Self::Int {
        each(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn pair(self, low: Self::Int, high: Self::Int) -> Self::Int {
        each(|i| (low[i] & 0xffff) | (high[i] << 16))
    }
    #[inline(always)]
    fn dot_pairs(self, a: Self::Int, b: Self::Int, sum: Self::Int) -> Self::Int {
        each(|i| {
            let low = i32::from(a[i] as i16) * i32::from(b[i] as i16);
            let high = (a[i] >> 16) * (b[i] >> 16);
            sum[i].wrapping_add(low.wrapping_add(high))
        })
    }
    #[inline(always)]
    fn to_int(self, a: Self::Float) -> Self::Int {
        each(|i| {
            let rounded = a[i].round_ties_even();
            if (-2_147_483_648.0..2_147_483_648.0).contains(&rounded) {
                rounded as i32
            } else {
                i32::MIN
            }
        })
    }
    #[inline(always)]
    fn to_float(self, a: Self::Int) -> Self::Float {
        each(|i| a[i] as f32)
    }
    #[inline(always)]
    fn prefetch<T>(self, _target: &T) {}
}

/// Writes the trait's methods: each body is intrinsics that need what the proof says.
#[cfg(target_arch = "x86_64")]
macro_rules! methods {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)? $body:block)*) => {
        $(#[inline(always)]
        fn $name(self, $($argument: $kind),*) $(-> $result)? {
            // SAFETY: `self` proves the instruction set; loads and stores get references to whole blocks and use the
            // unaligned forms.
            unsafe { $body }
        })*
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{WIDE, Wide, WideKernel};
    use crate::Isa;

    /// Proof that AVX-512 F, BW, VL and VNNI are there.
    #[derive(Clone, Copy)]
    pub struct Avx512Wide(());

    impl Avx512Wide {
        /// The proof, if this machine has the instruction set.
        #[inline]
        pub fn detect() -> Option<Avx512Wide> {
            Isa::Avx512.is_available().then_some(Avx512Wide(()))
        }

        /// Runs `kernel` compiled with the instruction set's features.
        #[inline]
        pub fn run<K: WideKernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
            fn enter<K: WideKernel>(wide: Avx512Wide, kernel: K) -> K::Output {
                kernel.run(wide)
            }
            // SAFETY: `self` exists only where detection found these features.
            unsafe { enter(self, kernel) }
        }
    }

    impl Wide for Avx512Wide {
        type Float = __m512;
        type Int = __m512i;
        const SIDE: usize = 3;

        methods! {
            splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
            load(source: &[f32; WIDE]) -> __m512 { _mm512_loadu_ps(source.as_ptr()) }
            load_f16(source: &[f16; WIDE]) -> __m512 {
                _mm512_cvtph_ps(_mm256_loadu_si256(source.as_ptr().cast()))
            }
            load_i8(source: &[i8; WIDE]) -> __m512 {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(source.as_ptr().cast())))
            }
            store(vector: __m512, target: &mut [f32; WIDE]) {
                _mm512_storeu_ps(target.as_mut_ptr(), vector)
            }
            add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
            mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
            mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
            sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
            select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
                _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), x)
            }
            fraction(a: __m512) -> __m512 {
                let floor = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a);
                _mm512_sub_ps(a, floor)
            }
            scale_by_floor(a: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(a, n) }
            splat_int(value: i32) -> __m512i { _mm512_set1_epi32(value) }
            load_int(source: &[i32; WIDE]) -> __m512i { _mm512_loadu_si512(source.as_ptr().cast()) }
            store_int(vector: __m512i, target: &mut [i32; WIDE]) {
                _mm512_storeu_si512(target.as_mut_ptr().cast(), vector)
            }
            add_int(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
            pair(low: __m512i, high: __m512i) -> __m512i {
                _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high))
            }
            dot_pairs(a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
                _mm512_dpwssd_epi32(sum, a, b)
            }
            to_int(a: __m512) -> __m512i { _mm512_cvtps_epi32(a) }
            to_float(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
            reduce_max(a: __m512) -> f32 {
                let half = _mm256_max_ps(_mm512_castps512_ps256(a), high_half(a));
                let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
                let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
                _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
            }
            reduce_add(a: __m512) -> f32 {
                let half = _mm256_add_ps(_mm512_castps512_ps256(a), high_half(a));
                let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
                let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
                _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
            }
        }

        #[inline(always)]
        fn prefetch<T>(self, target: &T) {
            // SAFETY: a prefetch touches no memory that the program can see, at any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>((&raw const *target).cast()) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn high_half(a: __m512) -> __m256 {
        _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a)))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{WIDE, Wide, WideKernel};
    use crate::Isa;

    /// Proof that AVX2, FMA and F16C are there.
    #[derive(Clone, Copy)]
    pub struct Avx2Wide(());

    impl Avx2Wide {
        /// The proof, if this machine has the instruction set.
        #[inline]
        pub fn detect() -> Option<Avx2Wide> {
            Isa::Avx2.is_available().then_some(Avx2Wide(()))
        }

        /// Runs `kernel` compiled with the instruction set's features.
        #[inline]
        pub fn run<K: WideKernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn enter<K: WideKernel>(wide: Avx2Wide, kernel: K) -> K::Output {
                kernel.run(wide)
            }
            // SAFETY: `self` exists only where detection found these features.
            unsafe { enter(self, kernel) }
        }
    }

    /// Two registers of eight lanes.
    type Floats = [__m256; 2];
    type Ints = [__m256i; 2];

    impl Wide for Avx2Wide {
        type Float = Floats;
        type Int = Ints;
        const SIDE: usize = 1;

        methods! {
            splat(value: f32) -> Floats { [_mm256_set1_ps(value); 2] }
            load(source: &[f32; WIDE]) -> Floats {
                [_mm256_loadu_ps(source.as_ptr()), _mm256_loadu_ps(source.as_ptr().add(8))]
            }
            load_f16(source: &[f16; WIDE]) -> Floats {
                let source = source.as_ptr().cast::<__m128i>();
                [
                    _mm256_cvtph_ps(_mm_loadu_si128(source)),
                    _mm256_cvtph_ps(_mm_loadu_si128(source.add(1))),
                ]
            }
            load_i8(source: &[i8; WIDE]) -> Floats {
                let bytes = _mm_loadu_si128(source.as_ptr().cast());
                let high = _mm_unpackhi_epi64(bytes, bytes);
                [
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
                ]
            }
            store(vector: Floats, target: &mut [f32; WIDE]) {
                _mm256_storeu_ps(target.as_mut_ptr(), vector[0]);
                _mm256_storeu_ps(target.as_mut_ptr().add(8), vector[1]);
            }
            add(a: Floats, b: Floats) -> Floats { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
            sub(a: Floats, b: Floats) -> Floats { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
            mul(a: Floats, b: Floats) -> Floats { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
            div(a: Floats, b: Floats) -> Floats { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
            mul_add(a: Floats, b: Floats, c: Floats) -> Floats {
                [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
            }
            max(a: Floats, b: Floats) -> Floats { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
            sqrt(a: Floats) -> Floats { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
            select_less(a: Floats, b: Floats, x: Floats, y: Floats) -> Floats {
                [
                    _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                    _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
                ]
            }
            fraction(a: Floats) -> Floats {
                [
                    _mm256_sub_ps(a[0], _mm256_floor_ps(a[0])),
                    _mm256_sub_ps(a[1], _mm256_floor_ps(a[1])),
                ]
            }
            scale_by_floor(a: Floats, n: Floats) -> Floats {
                [scale_half(a[0], n[0]), scale_half(a[1], n[1])]
            }
            splat_int(value: i32) -> Ints { [_mm256_set1_epi32(value); 2] }
            load_int(source: &[i32; WIDE]) -> Ints {
                let source = source.as_ptr().cast::<__m256i>();
                [_mm256_loadu_si256(source), _mm256_loadu_si256(source.add(1))]
            }
            store_int(vector: Ints, target: &mut [i32; WIDE]) {
                let target = target.as_mut_ptr().cast::<__m256i>();
                _mm256_storeu_si256(target, vector[0]);
                _mm256_storeu_si256(target.add(1), vector[1]);
            }
            add_int(a: Ints, b: Ints) -> Ints {
                [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
            }
            pair(low: Ints, high: Ints) -> Ints {
                [
                    _mm256_blend_epi16::<0xaa>(low[0], _mm256_slli_epi32::<16>(high[0])),
                    _mm256_blend_epi16::<0xaa>(low[1], _mm256_slli_epi32::<16>(high[1])),
                ]
            }
            dot_pairs(a: Ints, b: Ints, sum: Ints) -> Ints {
                [
                    _mm256_add_epi32(sum[0], _mm256_madd_epi16(a[0], b[0])),
                    _mm256_add_epi32(sum[1], _mm256_madd_epi16(a[1], b[1])),
                ]
            }
            to_int(a: Floats) -> Ints { [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])] }
            to_float(a: Ints) -> Floats { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
        }

        #[inline(always)]
        fn prefetch<T>(self, target: &T) {
            // SAFETY: a prefetch touches no memory that the program can see, at any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>((&raw const *target).cast()) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn scale_half(a: __m256, n: __m256) -> __m256 {
        let n = _mm256_cvtps_epi32(_mm256_floor_ps(n));
        let exponent = _mm256_add_epi32(n, _mm256_set1_epi32(127));
        _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{Random, each_isa};

    /// All operations on one set of operands, as bits.
    struct All<'a> {
        floats: &'a [[f32; WIDE]; 4],
        ints: &'a [[i32; WIDE]; 3],
        halves: &'a [f16; WIDE],
        bytes: &'a [i8; WIDE],
    }

    impl WideKernel for All<'_> {
        type Output = Vec<[u32; WIDE]>;
        #[inline(always)]
        fn run<W: Wide>(self, w: W) -> Self::Output {
            let [a, b, c, n] = self.floats.map(|x| w.load(&x));
            let [i, j, k] = self.ints.map(|x| w.load_int(&x));
            let floats = [
                w.add(a, b),
                w.sub(a, b),
                w.mul(a, b),
                w.div(a, b),
                w.mul_add(a, b, c),
                w.max(a, b),
                w.sqrt(w.mul(a, a)),
                w.select_less(a, b, c, n),
                w.fraction(a),
                w.scale_by_floor(a, n),
                w.splat(w.reduce_add(a)),
                w.splat(w.reduce_max(a)),
                w.load_f16(self.halves),
                w.load_i8(self.bytes),
                w.to_float(i),
            ];
            let ints = [
                w.splat_int(-5),
                w.add_int(i, j),
                w.pair(i, j),
                w.dot_pairs(i, j, k),
                w.to_int(a),
            ];
            let mut all = Vec::new();
            for float in floats {
                let mut lanes = [0.0; WIDE];
                w.store(float, &mut lanes);
                all.push(lanes.map(f32::to_bits));
            }
            for int in ints {
                let mut lanes = [0; WIDE];
                w.store_int(int, &mut lanes);
                all.push(lanes.map(|lane| lane as u32));
            }
            all
        }
    }

    #[test]
    fn each_operation_has_the_same_bits_on_each_isa() {
        let mut random = Random::new(3);
        for round in 0..2000 {
            let size = [1.0, 100.0, 1e7, 1e12][round % 4];
            let mut floats: [[f32; WIDE]; 4] =
                std::array::from_fn(|_| each(|_| random.signed() * size));
            floats[3] = each(|_| random.signed() * 126.0);
            // The product of two halves of i16::MIN does not occur: its pair would wrap differently.
            let ints: [[i32; WIDE]; 3] = std::array::from_fn(|_| {
                each(|_| {
                    let half = random.below(65_535) as i32 - 32_767;
                    (half << 16) | ((random.below(65_535) as i32 + 1) & 0xffff)
                })
            });
            let halves = each(|_| f16::from_f32(random.signed() * 1e4));
            let bytes = each(|_| random.below(256) as u8 as i8);
            let run = |isa| {
                let (floats, ints) = (&floats, &ints);
                let (halves, bytes) = (&halves, &bytes);
                dispatch_wide(
                    isa,
                    All {
                        floats,
                        ints,
                        halves,
                        bytes,
                    },
                )
            };
            let expected = run(Isa::Scalar);
            for isa in each_isa() {
                let got = run(isa);
                for (operation, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    assert_eq!(got, expected, "operation {operation} on {isa:?}");
                }
            }
        }
    }
}
