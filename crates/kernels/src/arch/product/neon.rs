//! AArch64: the sums of products by the dot-product instructions. Codes are unpacked by the portable code, which compilers
//! vectorise for NEON, once for all tokens of a tile; the rest of the arithmetic is the portable kernel's.

use std::arch::aarch64::*;
use std::arch::asm;

use super::scalar::Dots;
use crate::Isa;
use crate::packed::layout::{GROUP, VECTOR};

/// Proof that the dot-product instructions are there, and whether those of mixed signs are (I8MM).
#[derive(Clone, Copy)]
pub(super) struct Neon {
    has_mixed_signs: bool,
}

impl Neon {
    /// The proof, if this machine has the instruction set.
    #[inline]
    pub(super) fn detect() -> Option<Neon> {
        Isa::Neon.is_available().then(|| Neon {
            has_mixed_signs: std::arch::is_aarch64_feature_detected!("i8mm"),
        })
    }

    /// Without the instructions of mixed signs, for tests.
    #[cfg(test)]
    pub(super) fn with_equal_signs(self) -> Neon {
        Neon {
            has_mixed_signs: false,
        }
    }
}

impl Dots for Neon {
    #[inline(always)]
    fn dots(self, codes: &[u8; 8 * VECTOR], input: &[i32; 8]) -> [[i32; GROUP]; 2] {
        // SAFETY: `self` proves the features.
        unsafe {
            match self.has_mixed_signs {
                true => mixed(codes, input),
                false => equal(codes, input),
            }
        }
    }
}

/// Registers that hold a value for each of 16 rows.
const REGISTERS: usize = GROUP / 4;
/// Bytes of a register.
const REGISTER: usize = 16;

/// Products of unsigned codes with signed numbers.
#[target_feature(enable = "neon,dotprod,i8mm")]
fn mixed(codes: &[u8; 8 * VECTOR], input: &[i32; 8]) -> [[i32; GROUP]; 2] {
    let mut out = [[0; GROUP]; 2];
    for ((out, codes), input) in halves(&mut out, codes, input) {
        let mut sums = [vdupq_n_s32(0); REGISTERS];
        for (codes, &word) in codes.chunks_exact(VECTOR).zip(input) {
            let a = vdupq_n_s32(word);
            for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<REGISTER>().0) {
                let codes = load(codes);
                // SAFETY: an instruction of I8MM, which the caller has, on registers alone. The intrinsic is not stable.
                unsafe {
                    asm!(
                        "usdot {sum:v}.4s, {codes:v}.16b, {a:v}.16b",
                        sum = inout(vreg) *sum,
                        codes = in(vreg) codes,
                        a = in(vreg) a,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        store(&sums, out);
    }
    out
}

/// The same by products of signed numbers: `Σ c a = Σ (c - 128) a + 128 Σ a`.
#[target_feature(enable = "neon,dotprod")]
fn equal(codes: &[u8; 8 * VECTOR], input: &[i32; 8]) -> [[i32; GROUP]; 2] {
    let mut out = [[0; GROUP]; 2];
    let sign = vdupq_n_u8(0x80);
    for ((out, codes), input) in halves(&mut out, codes, input) {
        let bytes = input.iter().flat_map(|word| word.to_le_bytes());
        let total: i32 = bytes.map(|byte| i32::from(byte as i8)).sum();
        let mut sums = [vdupq_n_s32(total << 7); REGISTERS];
        for (codes, &word) in codes.chunks_exact(VECTOR).zip(input) {
            let a = vdupq_n_s32(word);
            for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<REGISTER>().0) {
                let codes = veorq_u8(load(codes), sign);
                // SAFETY: a dot-product instruction, which the caller has, on registers alone. The intrinsic is not stable.
                unsafe {
                    asm!(
                        "sdot {sum:v}.4s, {codes:v}.16b, {a:v}.16b",
                        sum = inout(vreg) *sum,
                        codes = in(vreg) codes,
                        a = in(vreg) a,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        store(&sums, out);
    }
    out
}

/// Results, codes and inputs of the first and the last 16 columns.
#[inline(always)]
fn halves<'a>(
    out: &'a mut [[i32; GROUP]; 2],
    codes: &'a [u8; 8 * VECTOR],
    input: &'a [i32; 8],
) -> impl Iterator<Item = ((&'a mut [i32; GROUP], &'a [u8]), &'a [i32])> {
    let codes = codes.chunks_exact(4 * VECTOR);
    out.iter_mut().zip(codes).zip(input.chunks_exact(4))
}

#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8; REGISTER]) -> uint8x16_t {
    // SAFETY: 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn store(sums: &[int32x4_t; REGISTERS], out: &mut [i32; GROUP]) {
    for (sum, out) in sums.iter().zip(out.as_chunks_mut::<4>().0) {
        // SAFETY: four integers.
        unsafe { vst1q_s32(out.as_mut_ptr(), *sum) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::product::scalar::Portable;

    #[test]
    fn both_ways_give_the_portable_sums() {
        let Some(neon) = Neon::detect() else { return };
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 56) as u8
        };
        for round in 0..200 {
            let extreme = [0u8, 255];
            let codes = std::array::from_fn(|_| match round {
                0 | 1 => extreme[round],
                _ => byte(),
            });
            let input = std::array::from_fn(|_| {
                let bytes = std::array::from_fn(|_| match round {
                    0 | 1 => 0x81,
                    _ => byte(),
                });
                i32::from_le_bytes(bytes)
            });
            let expected = Portable.dots(&codes, &input);
            assert_eq!(neon.dots(&codes, &input), expected, "{round}");
            let equal = neon.with_equal_signs();
            assert_eq!(equal.dots(&codes, &input), expected, "{round}");
        }
    }
}
