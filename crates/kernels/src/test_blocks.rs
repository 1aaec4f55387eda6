//! Random blocks of every tensor type, for tests.

use half::{bf16, f16};

use crate::TensorType;
use crate::ops::test_support::Random;

/// `rows` rows of `cols` elements within about `-2..2`: random codes under random scales of both signs.
pub(crate) fn random_rows(ty: TensorType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out = random_bytes(ty, rows, cols, seed + 1);
    let scale =
        |random: &mut Random, size: f32| f16::from_f32(random.signed() * size).to_le_bytes();
    use TensorType::*;
    for block in out.chunks_exact_mut(ty.block_bytes()) {
        let mut put =
            |at: usize, size: f32| block[at..at + 2].copy_from_slice(&scale(&mut random, size));
        match ty {
            F32 => block.copy_from_slice(&random.signed().to_le_bytes()),
            F16 => put(0, 1.0),
            BF16 => block.copy_from_slice(&bf16::from_f32(random.signed()).to_le_bytes()),
            Q4_0 => put(0, 0.1),
            Q5_0 => put(0, 0.05),
            Q8_0 | IQ4_NL => put(0, 0.01),
            Q4_1 | Q5_1 => {
                put(0, 0.05);
                put(2, 0.5);
            }
            Q2_K => {
                put(80, 0.03);
                put(82, 0.03);
            }
            Q3_K => put(108, 0.01),
            Q4_K | Q5_K => {
                put(0, 0.002);
                put(2, 0.01);
            }
            Q6_K => put(208, 0.0005),
            IQ4_XS => put(0, 0.0004),
            TQ1_0 => put(52, 1.0),
            TQ2_0 => put(64, 1.0),
            MXFP4 => block[0] = 120 + random.below(8) as u8,
        }
    }
    out
}

/// The same with bits of any kind in every place, scales included.
pub(crate) fn random_bytes(ty: TensorType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let len = rows * ty.row_bytes(cols).expect("whole blocks");
    (0..len).map(|_| (random.next() >> 40) as u8).collect()
}
