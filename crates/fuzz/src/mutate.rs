//! Mutations without feedback: what breaks parsers, stacked a few at a time on an input of the corpus.

/// Longest input that is made; longer ones find nothing that shorter ones do not.
pub const LONGEST: usize = 1 << 16;

/// Makes new inputs from old ones; the same seed makes the same inputs.
pub struct Mutator {
    state: u64,
    words: &'static [&'static str],
}

impl Mutator {
    /// A source of mutations for a parser that knows these words.
    pub fn new(seed: u64, words: &'static [&'static str]) -> Self {
        Self {
            state: seed ^ 0x9e37_79b9_7f4a_7c15,
            words,
        }
    }

    /// One to eight mutations of one input of the corpus, which must not be empty.
    pub fn next_input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        let (most, rounds) = (LONGEST.max(input.len()), 1 << self.below(4));
        for _ in 0..rounds {
            self.mutate(&mut input, corpus);
            input.truncate(most);
        }
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        match self.below(12) {
            0 | 1 => self.flip_bit(input),
            2 => self.set_byte(input),
            3 | 4 => self.set_integer(input),
            5 => self.change_integer(input),
            6 => {
                let end = self.below(input.len() + 1);
                input.truncate(end);
            }
            7 => self.delete(input),
            8 => self.repeat(input),
            9 => {
                let other = self.below(corpus.len());
                self.splice(input, &corpus[other]);
            }
            10 => self.insert_word(input),
            _ => self.insert_bytes(input),
        }
    }

    fn flip_bit(&mut self, input: &mut [u8]) {
        if let Some(at) = self.position(input) {
            input[at] ^= 1 << self.below(8);
        }
    }

    fn set_byte(&mut self, input: &mut [u8]) {
        if let Some(at) = self.position(input) {
            input[at] = self.next() as u8;
        }
    }

    /// Writes a boundary value of 1, 2, 4 or 8 bytes, as a length or an offset would be.
    fn set_integer(&mut self, input: &mut [u8]) {
        const BOUNDARIES: [u64; 16] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0xffff,
            0x10000,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 32,
            i64::MAX as u64,
            1 << 63,
            u64::MAX,
        ];
        let value = BOUNDARIES[self.below(BOUNDARIES.len())];
        let value = value.wrapping_add(self.below(3) as u64).wrapping_sub(1);
        self.with_field(input, |_, field| {
            let length = field.len();
            field.copy_from_slice(&value.to_le_bytes()[..length]);
        });
    }

    /// Adds or takes a little, or doubles: a length that is almost right.
    fn change_integer(&mut self, input: &mut [u8]) {
        self.with_field(input, |this, field| {
            let mut wide = [0u8; 8];
            wide[..field.len()].copy_from_slice(field);
            let value = u64::from_le_bytes(wide);
            let value = match this.below(4) {
                0 => value.wrapping_add(1 + this.below(16) as u64),
                1 => value.wrapping_sub(1 + this.below(16) as u64),
                2 => value.wrapping_mul(2),
                _ => value.wrapping_neg(),
            };
            let length = field.len();
            field.copy_from_slice(&value.to_le_bytes()[..length]);
        });
    }

    fn with_field(&mut self, input: &mut [u8], change: impl FnOnce(&mut Self, &mut [u8])) {
        let width = 1 << self.below(4);
        if input.len() < width {
            return;
        }
        let mut at = self.below(input.len() - width + 1);
        // Most integers of a binary file stand near its beginning.
        if self.below(2) == 0 {
            at = at.min(self.below(4096));
        }
        change(self, &mut input[at..at + width]);
    }

    fn delete(&mut self, input: &mut Vec<u8>) {
        let range = self.range(input.len());
        input.drain(range);
    }

    fn repeat(&mut self, input: &mut Vec<u8>) {
        let range = self.range(input.len());
        let piece = input[range.clone()].to_vec();
        // Nesting is made of short pieces repeated often.
        let times = if piece.len() < 16 {
            1 << self.below(14)
        } else {
            1 + self.below(3)
        };
        let room = LONGEST.saturating_sub(input.len()) / piece.len().max(1);
        let pieces = piece.repeat(times.min(room));
        input.splice(range.start..range.start, pieces);
    }

    fn splice(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let from = self.range(other.len());
        let at = self.below(input.len() + 1);
        if self.below(2) == 0 {
            input.truncate(at);
            input.extend_from_slice(&other[from.start..]);
        } else {
            input.splice(at..at, other[from].iter().copied());
        }
    }

    fn insert_word(&mut self, input: &mut Vec<u8>) {
        if self.words.is_empty() {
            return;
        }
        let word = self.words[self.below(self.words.len())].as_bytes();
        let at = self.below(input.len() + 1);
        let end = if self.below(2) == 0 {
            at
        } else {
            (at + word.len()).min(input.len())
        };
        input.splice(at..end, word.iter().copied());
    }

    fn insert_bytes(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let count = 1 + self.below(8);
        let bytes: Vec<u8> = (0..count).map(|_| self.next() as u8).collect();
        input.splice(at..at, bytes);
    }

    fn position(&mut self, input: &[u8]) -> Option<usize> {
        (!input.is_empty()).then(|| self.below(input.len()))
    }

    /// A range inside `length`, short more often than long.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let longest = (length - start).min(1 << self.below(13));
        start..start + self.below(longest + 1)
    }

    /// A number below `bound`, which is at least 1.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_repeat_with_the_seed_and_differ_without() {
        let corpus = [b"GGUF one".to_vec(), b"GGUF two".to_vec(), Vec::new()];
        let make = |seed| {
            let mut mutator = Mutator::new(seed, &["word"]);
            (0..1000)
                .map(|_| mutator.next_input(&corpus))
                .collect::<Vec<_>>()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        let inputs = make(3);
        assert!(inputs.iter().all(|input| input.len() <= LONGEST));
        assert!(
            inputs
                .iter()
                .any(|input| input.windows(4).any(|part| part == b"word"))
        );
        let distinct: std::collections::HashSet<_> = inputs.iter().collect();
        assert!(distinct.len() > 500, "{} of 1000 differ", distinct.len());
    }
}
