//! Portable code compiled for an instruction set: plain loops that the compiler turns into vectors.

use crate::Isa;

/// Work that gains from being compiled with an instruction set's features.
pub trait Work {
    /// What the work returns.
    type Output;
    /// Does the work; must be `#[inline(always)]`, as must be what it calls, so that it is compiled with the features.
    fn run(self) -> Self::Output;
}

/// Runs `work` compiled for `isa`, or for the least processor if this machine lacks it.
///
/// The result is the same on every instruction set: no operation is contracted or reordered.
#[inline]
pub fn compiled_for<W: Work>(isa: Isa, work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn wide<W: Work>(work: W) -> W::Output {
            work.run()
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        fn narrow<W: Work>(work: W) -> W::Output {
            work.run()
        }
        if isa == Isa::Avx512 && isa.is_available() {
            // SAFETY: the features were found a line above.
            return unsafe { wide(work) };
        }
        if isa != Isa::Scalar && Isa::Avx2.is_available() {
            // SAFETY: the features were found a line above.
            return unsafe { narrow(work) };
        }
    }
    let _ = isa;
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [f32]);

    impl Work for Sum<'_> {
        type Output = f32;
        #[inline(always)]
        fn run(self) -> f32 {
            let mut lanes = [0.0f32; 16];
            for chunk in self.0.as_chunks::<16>().0 {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane += x * x;
                }
            }
            lanes.iter().sum()
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let numbers: Vec<f32> = (0..160).map(|i| (i as f32 * 0.37).sin()).collect();
        let expected = Sum(&numbers).run();
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
            assert_eq!(compiled_for(isa, Sum(&numbers)), expected, "{isa:?}");
        }
    }
}
