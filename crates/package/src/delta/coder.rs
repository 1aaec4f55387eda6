//! Binary range coder and the adaptive probabilities it is driven by.
//!
//! Range coder after Martin (1979) in the carry-propagating form, with a 64-bit range so that 16-bit probabilities lose nothing.
//! Everything is integer arithmetic: both sides compute the same numbers on every machine.

use std::io::{self, Read};
use std::sync::LazyLock;

/// One side of the coder. A model is written once: the encoder is told the bit and answers it, the decoder ignores what it is
/// told and answers what was coded.
pub(super) trait Coder {
    /// Codes one bit; `one` is the probability of `true` in 1/65536, from 1 to 65535.
    fn bit(&mut self, one: u32, bit: bool) -> bool;
    /// Whether this side finds out the bits.
    const DECODES: bool;
}

/// Writes bits into memory.
pub(super) struct Encoder {
    low: u64,
    range: u64,
    out: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Self {
        Encoder {
            low: 0,
            range: u64::MAX,
            out: Vec::new(),
        }
    }

    /// The shortest bytes that decode to what was coded; the decoder reads zeros after them.
    pub fn finish(mut self) -> Vec<u8> {
        for kept in (0..=64).step_by(8) {
            let mask = u64::MAX.checked_shr(kept).unwrap_or(0);
            let (rounded, carry) = self.low.overflowing_add(mask);
            let rounded = rounded & !mask;
            let inside = rounded.wrapping_sub(self.low) < self.range;
            if inside {
                if carry && rounded < self.low {
                    self.carry();
                }
                self.out
                    .extend_from_slice(&rounded.to_be_bytes()[..kept as usize / 8]);
                break;
            }
        }
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }

    fn carry(&mut self) {
        for byte in self.out.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return;
            }
        }
    }
}

impl Coder for Encoder {
    const DECODES: bool = false;

    #[inline]
    fn bit(&mut self, one: u32, bit: bool) -> bool {
        let bound = (self.range >> 16) * u64::from(one);
        if bit {
            self.range = bound;
        } else {
            let (low, carry) = self.low.overflowing_add(bound);
            self.low = low;
            self.range -= bound;
            if carry {
                self.carry();
            }
        }
        if self.range < 1 << 32 {
            self.out
                .extend_from_slice(&((self.low >> 32) as u32).to_be_bytes());
            self.low <<= 32;
            self.range <<= 32;
        }
        bit
    }
}

/// Reads bits from a stream of bytes, zeros after its end.
pub(super) struct Decoder<R> {
    code: u64,
    range: u64,
    input: R,
    buffer: Vec<u8>,
    at: usize,
    /// Set when the medium failed; the answer is then of no use.
    failed: Option<io::Error>,
}

impl<R: Read> Decoder<R> {
    pub fn new(input: R) -> Self {
        let mut decoder = Decoder {
            code: 0,
            range: u64::MAX,
            input,
            buffer: Vec::new(),
            at: 0,
            failed: None,
        };
        decoder.code = u64::from(decoder.word()) << 32 | u64::from(decoder.word());
        decoder
    }

    /// What the medium said, if reading ever failed.
    pub fn error(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    #[inline]
    fn word(&mut self) -> u32 {
        if let Some(&word) = self
            .buffer
            .get(self.at..)
            .and_then(|rest| rest.first_chunk::<4>())
        {
            self.at += 4;
            return u32::from_be_bytes(word);
        }
        self.refill()
    }

    #[cold]
    fn refill(&mut self) -> u32 {
        const BLOCK: u64 = 64 << 10;
        let mut next = self.buffer.split_off(self.at.min(self.buffer.len()));
        if let Err(error) = self.input.by_ref().take(BLOCK).read_to_end(&mut next) {
            self.failed = Some(error);
        }
        if next.len() < 4 {
            next.resize(4, 0);
        }
        self.buffer = next;
        self.at = 4;
        u32::from_be_bytes([
            self.buffer[0],
            self.buffer[1],
            self.buffer[2],
            self.buffer[3],
        ])
    }
}

impl<R: Read> Coder for Decoder<R> {
    const DECODES: bool = true;

    #[inline]
    fn bit(&mut self, one: u32, _: bool) -> bool {
        let bound = (self.range >> 16) * u64::from(one);
        // The encoder gives the lower part to `true`.
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code -= bound;
            self.range -= bound;
        }
        if self.range < 1 << 32 {
            self.code = self.code << 32 | u64::from(self.word());
            self.range <<= 32;
        }
        bit
    }
}

/// An adaptive probability: 22 bits of it, and 10 bits that count what it has seen. The first bits move it most.
#[derive(Clone, Copy)]
pub(super) struct Bit(u32);

/// 65536 / (n + 1.5).
static RECIPROCALS: [u32; 1024] = {
    let mut table = [0; 1024];
    let mut n = 0;
    while n < table.len() {
        table[n] = (131_072 / (2 * n + 3)) as u32;
        n += 1;
    }
    table
};

impl Default for Bit {
    fn default() -> Self {
        Bit(1 << 31)
    }
}

impl Bit {
    /// Probability of `true` in 1/65536.
    #[inline]
    pub fn one(self) -> u32 {
        (self.0 >> 16).clamp(1, 65_535)
    }

    /// Moves towards `bit`, by at least 1/`slowest`.
    #[inline]
    pub fn update(&mut self, bit: bool, slowest: u32) {
        let (count, p) = (self.0 & 1023, self.0 >> 10);
        let target = if bit { (1 << 22) - 1 } else { 0 };
        let step =
            ((i64::from(target) - i64::from(p)) * i64::from(RECIPROCALS[count as usize])) >> 16;
        let p = (i64::from(p) + step) as u32;
        self.0 = p << 10 | (count + u32::from(count < slowest));
    }

    #[inline]
    pub fn code<C: Coder>(&mut self, coder: &mut C, bit: bool) -> bool {
        let bit = coder.bit(self.one(), bit);
        self.update(bit, 400);
        bit
    }
}

/// Logistic mixing of `N` probabilities (Mahoney, 2005): weights in the domain of ln(p / (1 − p)), learnt while coding.
#[derive(Clone, Copy)]
pub(super) struct Mixer<const N: usize>([i32; N]);

/// Stretched values are in 1/256 and stay within ±11.
const STRETCH_LIMIT: i32 = 11 * 256;
const SQUASHED: usize = 2 * STRETCH_LIMIT as usize + 1;

impl<const N: usize> Default for Mixer<N> {
    fn default() -> Self {
        Mixer([(1.15 * 65_536.0 / N as f64) as i32; N])
    }
}

impl<const N: usize> Mixer<N> {
    /// For inputs that often know nothing: those that do are believed from the start.
    pub fn confident() -> Self {
        Mixer([20_000; N])
    }

    /// Codes `bit` with the mix of `inputs`, then teaches the inputs and the weights.
    #[inline]
    pub fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        inputs: [&mut Bit; N],
        slowest: u32,
        bit: bool,
    ) -> bool {
        let tables = &*TABLES;
        let mut stretched = [0; N];
        let mut dot = 0_i64;
        for i in 0..N {
            stretched[i] = i32::from(tables.stretch[usize::from(inputs[i].one() as u16)]);
            dot += i64::from(stretched[i]) * i64::from(self.0[i]);
        }
        let mixed = ((dot >> 16) as i32).clamp(-STRETCH_LIMIT, STRETCH_LIMIT);
        let one = u32::from(tables.squash[(mixed + STRETCH_LIMIT) as usize]);
        let bit = coder.bit(one, bit);
        let error = (i32::from(bit) << 16) - one as i32;
        for i in 0..N {
            self.0[i] += ((i64::from(stretched[i]) * i64::from(error)) >> 18) as i32;
        }
        for input in inputs {
            input.update(bit, slowest);
        }
        bit
    }
}

struct Tables {
    /// ln(p / (1 − p)) in 1/256, by p in 1/65536.
    stretch: Box<[i16; 65_536]>,
    /// The inverse, by value + limit, in 1/65536.
    squash: Box<[u16; SQUASHED]>,
}

/// Made with integers only, so that every machine has the same ones.
static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    /// e^(−1/256) · 2^62.
    const STEP: u128 = 4_593_706_758_521_714_574;
    let mut squash = Box::new([0_u16; SQUASHED]);
    let mut power: u128 = 1 << 62;
    for x in 0..=STRETCH_LIMIT as usize {
        // 1 / (1 + e^−x)
        let p = ((1_u128 << 62) * 65_536 / ((1 << 62) + power)).clamp(1, 65_535) as u16;
        squash[STRETCH_LIMIT as usize + x] = p;
        squash[STRETCH_LIMIT as usize - x] = (65_536 - u32::from(p)).clamp(1, 65_535) as u16;
        power = (power * STEP) >> 62;
    }
    let mut stretch = Box::new([0_i16; 65_536]);
    let mut x = 0;
    for (p, out) in stretch.iter_mut().enumerate() {
        while x + 1 < squash.len() && usize::from(squash[x]) < p {
            x += 1;
        }
        *out = (x as i32 - STRETCH_LIMIT) as i16;
    }
    Tables { stretch, squash }
});

/// Codes numbers whose size is roughly known from a context: zero, sign, length in bits, leading bits.
pub(super) struct Numbers {
    contexts: Vec<NumberContext>,
    signs: Vec<Bit>,
}

#[derive(Clone)]
struct NumberContext {
    zero: Bit,
    length: [Bit; 33],
    /// By length: a tree of the first two bits below the leading one.
    leading: [[Bit; 4]; 33],
}

impl Numbers {
    pub fn new(contexts: usize, sign_contexts: usize) -> Self {
        let context = NumberContext {
            zero: Bit::default(),
            length: [Bit::default(); 33],
            leading: [[Bit::default(); 4]; 33],
        };
        Numbers {
            contexts: vec![context; contexts],
            signs: vec![Bit::default(); sign_contexts.max(1)],
        }
    }

    /// Codes a signed number of less than 32 bits.
    #[inline]
    pub fn signed<C: Coder>(
        &mut self,
        coder: &mut C,
        context: usize,
        sign_context: usize,
        value: i64,
    ) -> i64 {
        if self.contexts[context].zero.code(coder, value == 0) {
            return 0;
        }
        let negative = self.signs[sign_context].code(coder, value < 0);
        let size = self.at_least_one(coder, context, value.unsigned_abs()) as i64;
        if negative { -size } else { size }
    }

    /// Codes a number from 0 to 2³² − 2.
    pub fn unsigned<C: Coder>(&mut self, coder: &mut C, context: usize, value: u64) -> u64 {
        self.at_least_one(coder, context, value + 1) - 1
    }

    fn at_least_one<C: Coder>(&mut self, coder: &mut C, context: usize, value: u64) -> u64 {
        let context = &mut self.contexts[context];
        let bits = 63 - (value | 1).leading_zeros() as usize;
        let mut length = 0;
        while length < 32 && context.length[length].code(coder, length < bits) {
            length += 1;
        }
        let mut found = 1_u64;
        for at in (0..length).rev() {
            let bit = value >> at & 1 == 1;
            let below = length - 1 - at;
            let bit = match below {
                0 => context.leading[length][0].code(coder, bit),
                1 => context.leading[length][2 + (found & 1) as usize].code(coder, bit),
                _ => coder.bit(1 << 15, bit),
            };
            found = found << 1 | u64::from(bit);
        }
        found
    }
}

/// Codes signed numbers whose size several contexts give a hint of: like [`Numbers`], with each decision mixed.
pub(super) struct MixedNumbers<const N: usize> {
    /// By input and context: zero, then the length in bits.
    sizes: [Vec<[Bit; SIZES]>; N],
    mixers: [Mixer<N>; SIZES],
    signs: Vec<Bit>,
    /// By length and context of the first input.
    leading: Vec<[[Bit; 8]; SIZES]>,
}

const SIZES: usize = 20;

impl<const N: usize> MixedNumbers<N> {
    pub fn new(contexts: usize, sign_contexts: usize) -> Self {
        MixedNumbers {
            sizes: std::array::from_fn(|_| vec![[Bit::default(); SIZES]; contexts]),
            mixers: [Mixer::default(); SIZES],
            signs: vec![Bit::default(); sign_contexts],
            leading: vec![[[Bit::default(); 8]; SIZES]; contexts],
        }
    }

    /// Whether the number is 0, which comes first.
    #[inline]
    pub fn zero<C: Coder>(&mut self, coder: &mut C, contexts: [usize; N], zero: bool) -> bool {
        self.decide(coder, contexts, 0, zero)
    }

    /// A number of less than 19 bits that is not 0; its sign has a context of its own, which is not needed for 0.
    pub fn other<C: Coder>(
        &mut self,
        coder: &mut C,
        contexts: [usize; N],
        sign_context: usize,
        value: i32,
    ) -> i32 {
        let negative = self.signs[sign_context].code(coder, value < 0);
        let size = value.unsigned_abs();
        let bits = 31 - (size | 1).leading_zeros() as usize;
        let mut length = 0;
        while length + 2 < SIZES && self.decide(coder, contexts, length + 1, length < bits) {
            length += 1;
        }
        let mut found = 1_u32;
        for at in (0..length).rev() {
            let bit = size >> at & 1 == 1;
            let bit = match length - 1 - at {
                0..=2 => self.leading[contexts[0]][length][found as usize & 7].code(coder, bit),
                _ => coder.bit(1 << 15, bit),
            };
            found = found << 1 | u32::from(bit);
        }
        if negative {
            -(found as i32)
        } else {
            found as i32
        }
    }

    #[inline]
    fn decide<C: Coder>(
        &mut self,
        coder: &mut C,
        contexts: [usize; N],
        which: usize,
        bit: bool,
    ) -> bool {
        let mut at = 0;
        let inputs = self.sizes.each_mut().map(|sizes| {
            at += 1;
            &mut sizes[contexts[at - 1]][which]
        });
        self.mixers[which].code(coder, inputs, 1000, bit)
    }
}

/// Codes a byte as eight bits, first to last, under one context.
#[inline]
pub(super) fn byte<C: Coder>(coder: &mut C, tree: &mut [Bit; 256], value: u8) -> u8 {
    let mut node = 1_usize;
    for at in (0..8).rev() {
        let bit = tree[node].code(coder, value >> at & 1 == 1);
        node = node << 1 | usize::from(bit);
    }
    node as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tables_are_inverse_and_symmetric() {
        let tables = &*TABLES;
        assert_eq!(tables.squash[STRETCH_LIMIT as usize], 32_768);
        // 1 / (1 + e^-1) = 0.731059
        assert_eq!(tables.squash[STRETCH_LIMIT as usize + 256], 47_910);
        for p in (64..65_472).step_by(97) {
            let back = tables.squash[(i32::from(tables.stretch[p]) + STRETCH_LIMIT) as usize];
            assert!((i32::from(back) - p as i32).abs() <= 130, "{p} {back}");
        }
    }

    #[test]
    fn certain_bits_cost_almost_nothing() {
        let mut encoder = Encoder::new();
        let mut bit = Bit::default();
        for _ in 0..100_000 {
            bit.code(&mut encoder, true);
        }
        assert!(encoder.finish().len() < 60);
    }

    proptest! {
        #[test]
        fn what_is_coded_is_decoded(bits in proptest::collection::vec((1u32..65_536, any::<bool>()), 0..2000), numbers in proptest::collection::vec(-(1i64 << 31)..1 << 31, 0..50)) {
            let mut encoder = Encoder::new();
            let (mut model, mut mixer, mut a, mut b) = (Numbers::new(2, 1), Mixer::<2>::default(), Bit::default(), Bit::default());
            for (p, bit) in &bits {
                encoder.bit(*p, *bit);
                mixer.code(&mut encoder, [&mut a, &mut b], 255, *bit);
            }
            for number in &numbers {
                model.signed(&mut encoder, 1, 0, *number);
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(bytes.as_slice());
            let (mut model, mut mixer, mut a, mut b) = (Numbers::new(2, 1), Mixer::<2>::default(), Bit::default(), Bit::default());
            for (p, bit) in &bits {
                prop_assert_eq!(decoder.bit(*p, false), *bit);
                prop_assert_eq!(mixer.code(&mut decoder, [&mut a, &mut b], 255, false), *bit);
            }
            for number in &numbers {
                prop_assert_eq!(model.signed(&mut decoder, 1, 0, 0), *number);
            }
        }
    }
}
