//! What the tests of the kernels share.

use crate::Isa;

/// The instruction sets that this machine can run.
pub fn each_isa() -> Vec<Isa> {
    Isa::ALL
        .iter()
        .copied()
        .filter(|isa| isa.is_available())
        .collect()
}

/// Lengths around the edges of vectors and groups of vectors.
pub fn lengths() -> Vec<usize> {
    vec![
        0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130, 576, 1001,
    ]
}

/// A small random number generator (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `-1..1`.
    pub fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}

/// `length` random numbers within `-size..size`.
pub fn numbers(length: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..length).map(|_| random.signed() * size).collect()
}

/// Applies `f` to `x` on each instruction set and checks that the bits are the same.
pub fn same_bits_on_each_isa(x: &[f32], f: impl Fn(Isa, &mut [f32])) {
    let run = |isa| {
        let mut x = x.to_vec();
        f(isa, &mut x);
        x.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let expected = run(Isa::Scalar);
    for isa in each_isa() {
        let got = run(isa);
        let different = (0..x.len()).find(|&i| got[i] != expected[i]);
        assert!(
            different.is_none(),
            "{isa:?} differs from scalar at {different:?} of {}",
            x.len()
        );
    }
}
