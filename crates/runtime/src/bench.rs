//! Speed of a loaded model: prompts computed at once, tokens computed one by one.

use std::time::Instant;

use crate::backend::{BackendError, Decoder, Run, Wanted};

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// A prompt of this many tokens.
    Prefill {
        /// Tokens computed.
        tokens: usize,
        /// Tokens already held.
        depth: usize,
    },
    /// This many tokens, one after the other.
    Decode {
        /// Tokens computed.
        tokens: usize,
        /// Tokens already held.
        depth: usize,
    },
}

impl Test {
    /// The name that tools for this purpose use: `pp512`, `tg128`, `tg128@d4096`.
    pub fn name(self) -> String {
        let (kind, tokens, depth) = match self {
            Test::Prefill { tokens, depth } => ("pp", tokens, depth),
            Test::Decode { tokens, depth } => ("tg", tokens, depth),
        };
        match depth {
            0 => format!("{kind}{tokens}"),
            depth => format!("{kind}{tokens}@d{depth}"),
        }
    }

    /// Tokens that a sequence holds at the end.
    pub fn length(self) -> usize {
        match self {
            Test::Prefill { tokens, depth } | Test::Decode { tokens, depth } => tokens + depth,
        }
    }
}

/// Tokens per second over several repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// The median.
    pub median: f64,
    /// The slowest.
    pub min: f64,
    /// The fastest.
    pub max: f64,
}

/// A model under measurement: the depth of each test is computed once and kept.
pub struct Bench<'d> {
    decoder: &'d mut dyn Decoder,
    seed: u64,
}

impl<'d> Bench<'d> {
    /// Measures `decoder` with pseudo-random tokens.
    pub fn new(decoder: &'d mut dyn Decoder) -> Self {
        Bench {
            decoder,
            seed: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Runs each test once per round, all tests in turn, so that a slow moment of the machine does not
    /// fall on one of them; the first round warms up and is not counted. `progress` hears (runs
    /// done, runs in all).
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn run(
        &mut self,
        tests: &[Test],
        rounds: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Rate>, BackendError> {
        let mut rates = vec![Vec::with_capacity(rounds); tests.len()];
        let all = (rounds + 1) * tests.len();
        for round in 0..=rounds {
            for (index, test) in tests.iter().enumerate() {
                let rate = self.once(*test)?;
                if round > 0 {
                    rates[index].push(rate);
                }
                progress(round * tests.len() + index + 1, all);
            }
        }
        Ok(rates.into_iter().map(summary).collect())
    }

    /// Tokens per second of one run.
    fn once(&mut self, test: Test) -> Result<f64, BackendError> {
        let sequence = self.decoder.start();
        let (tokens, depth, step) = match test {
            Test::Prefill { tokens, depth } => (tokens, depth, tokens.max(1)),
            Test::Decode { tokens, depth } => (tokens, depth, 1),
        };
        let before = self.tokens(depth);
        let measured = self.tokens(tokens);
        let mut forward = |tokens: &[u32], wanted| {
            let run = Run {
                sequence,
                tokens,
                wanted,
            };
            self.decoder.forward(&[run], &mut |_| ())
        };
        let result = (|| {
            if depth > 0 {
                forward(&before, Wanted::Nothing)?;
            }
            let started = Instant::now();
            for part in measured.chunks(step) {
                forward(part, Wanted::Last)?;
            }
            Ok(tokens as f64 / started.elapsed().as_secs_f64())
        })();
        self.decoder.stop(sequence);
        result
    }

    /// Pseudo-random token ids (xorshift64).
    fn tokens(&mut self, count: usize) -> Vec<u32> {
        let vocabulary = self.decoder.spec().vocabulary as u64;
        (0..count)
            .map(|_| {
                self.seed ^= self.seed << 13;
                self.seed ^= self.seed >> 7;
                self.seed ^= self.seed << 17;
                (self.seed % vocabulary) as u32
            })
            .collect()
    }
}

fn summary(mut rates: Vec<f64>) -> Rate {
    rates.sort_by(f64::total_cmp);
    let middle = rates.len() / 2;
    let median = match rates.len() {
        0 => 0.0,
        length if length % 2 == 0 => (rates[middle - 1] + rates[middle]) / 2.0,
        _ => rates[middle],
    };
    Rate {
        median,
        min: rates.first().copied().unwrap_or(0.0),
        max: rates.last().copied().unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_other_tools() {
        let prefill = Test::Prefill {
            tokens: 512,
            depth: 0,
        };
        let decode = Test::Decode {
            tokens: 128,
            depth: 4096,
        };
        assert_eq!(prefill.name(), "pp512");
        assert_eq!(decode.name(), "tg128@d4096");
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let rate = summary(vec![4.0, 1.0, 2.0, 10.0]);
        assert_eq!((rate.median, rate.min, rate.max), (3.0, 1.0, 10.0));
    }
}
