//! Speed of a loaded model: prompts computed at once, tokens computed one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::backend::{BackendError, Decoder, Run, Select, SequenceId, Wanted};

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
    /// This many tokens of each sequence, one after the other.
    Decode {
        /// Tokens computed of each sequence.
        tokens: usize,
        /// Tokens already held by each.
        depth: usize,
        /// Sequences that are decoded together; 0 counts as 1.
        batch: usize,
    },
}

impl Test {
    /// The name that tools for this purpose use: `pp512`, `tg128`, `tg128@d4096`; and `tg128x16` for 16 sequences.
    pub fn name(self) -> String {
        let (mut name, depth) = match self {
            Test::Prefill { tokens, depth } => (format!("pp{tokens}"), depth),
            Test::Decode { tokens, depth, .. } => (format!("tg{tokens}"), depth),
        };
        if self.batch() > 1 {
            name += &format!("x{}", self.batch());
        }
        if depth > 0 {
            name += &format!("@d{depth}");
        }
        name
    }

    /// Sequences that are computed together.
    pub fn batch(self) -> usize {
        match self {
            Test::Prefill { .. } => 1,
            Test::Decode { batch, .. } => batch.max(1),
        }
    }

    /// Tokens that a sequence holds at the end.
    pub fn length(self) -> usize {
        match self {
            Test::Prefill { tokens, depth } | Test::Decode { tokens, depth, .. } => tokens + depth,
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

impl Rate {
    /// The median and the range of some rates; zeros of none.
    pub fn of(mut rates: Vec<f64>) -> Rate {
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
}

/// What was measured of one test.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Tokens of all sequences per second, with the machine as it is.
    pub rate: Rate,
    /// The same of each round, in order.
    pub rounds: Vec<f64>,
    /// The same beside the neighbours that were asked for.
    pub beside: Option<Rate>,
}

/// How often, and beside whom, a [`Bench`] runs its tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds that count; one more warms up.
    pub count: usize,
    /// Busy threads that want the processor besides; with any, each test runs without and with them in turn.
    pub neighbours: usize,
}

/// A model under measurement: the depth of each test is computed once and kept.
pub struct Bench<'d> {
    decoder: &'d mut dyn Decoder,
    /// What is computed, again and again.
    text: Vec<u32>,
    /// Whether all scores of a decoded token are wanted, not only the highest.
    all_scores: bool,
}

impl<'d> Bench<'d> {
    /// Measures `decoder` with the tokens of `text`: how much of the output head and which experts a token needs depends
    /// on them, so that random ones would measure what nobody writes.
    pub fn new(decoder: &'d mut dyn Decoder, text: &[u32]) -> Self {
        let vocabulary = decoder.spec().vocabulary as u32;
        let known = text.iter().copied().filter(|&token| token < vocabulary);
        let mut text: Vec<u32> = known.collect();
        if text.is_empty() {
            text.push(0);
        }
        Bench {
            decoder,
            text,
            all_scores: false,
        }
    }

    /// Asks for all scores of a decoded token, in place of what a greedy choice needs.
    #[must_use]
    pub fn with_all_scores(mut self, all_scores: bool) -> Self {
        self.all_scores = all_scores;
        self
    }

    /// Runs each test once per round, all tests in turn, so that a slow moment of the machine does not
    /// fall on one of them; the first round warms up and is not counted. `progress` hears (tests
    /// done, tests in all) while nothing runs, after each test.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn run(
        &mut self,
        tests: &[Test],
        rounds: Rounds,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Measured>, BackendError> {
        let mut alone = vec![Vec::with_capacity(rounds.count); tests.len()];
        let mut beside = alone.clone();
        let all = (rounds.count + 1) * tests.len();
        for round in 0..=rounds.count {
            for (index, test) in tests.iter().enumerate() {
                let rate = self.once(*test, 0)?;
                if round > 0 {
                    alone[index].push(rate);
                }
                if round > 0 && rounds.neighbours > 0 {
                    beside[index].push(self.once(*test, rounds.neighbours)?);
                }
                progress(round * tests.len() + index + 1, all);
            }
        }
        let beside = beside
            .into_iter()
            .map(|rates| (!rates.is_empty()).then(|| Rate::of(rates)));
        Ok(alone
            .into_iter()
            .zip(beside)
            .map(|(rounds, beside)| Measured {
                rate: Rate::of(rounds.clone()),
                rounds,
                beside,
            })
            .collect())
    }

    /// Tokens per second of one run beside `neighbours` busy threads.
    fn once(&mut self, test: Test, neighbours: usize) -> Result<f64, BackendError> {
        let (tokens, depth, step) = match test {
            Test::Prefill { tokens, depth } => (tokens, depth, tokens.max(1)),
            Test::Decode { tokens, depth, .. } => (tokens, depth, 1),
        };
        let sequences: Vec<SequenceId> = (0..test.batch()).map(|_| self.decoder.start()).collect();
        /// Sequences that are decoded together begin so far apart.
        const APART: usize = 37;
        let part = |index: usize, from: usize, count| self.tokens(index * APART + from, count);
        let indices = || 0..sequences.len();
        let before: Vec<Vec<u32>> = indices().map(|index| part(index, 0, depth)).collect();
        let measured: Vec<Vec<u32>> = indices().map(|index| part(index, depth, tokens)).collect();
        let select = match self.all_scores {
            true => Select::All,
            // What a greedy choice asks for.
            false => Select::Best {
                count: 1,
                also: &[],
            },
        };
        let decoder = &mut *self.decoder;
        let result = (|| {
            if depth > 0 {
                for (&sequence, tokens) in sequences.iter().zip(&before) {
                    let wanted = Wanted::Nothing;
                    let run = Run {
                        sequence,
                        tokens,
                        wanted,
                        select: Select::All,
                    };
                    decoder.forward(&[run], &mut |_| ())?;
                }
            }
            let _neighbours = Neighbours::start(neighbours);
            let started = Instant::now();
            for first in (0..tokens).step_by(step) {
                let runs: Vec<Run<'_>> = sequences
                    .iter()
                    .zip(&measured)
                    .map(|(&sequence, tokens)| Run {
                        sequence,
                        tokens: &tokens[first..first + step],
                        wanted: Wanted::Last,
                        select,
                    })
                    .collect();
                decoder.forward(&runs, &mut |_| ())?;
            }
            Ok((tokens * test.batch()) as f64 / started.elapsed().as_secs_f64())
        })();
        for sequence in sequences {
            self.decoder.stop(sequence);
        }
        result
    }

    /// `count` tokens of the text from place `first` on.
    fn tokens(&self, first: usize, count: usize) -> Vec<u32> {
        let text = self.text.iter().cycle().skip(first % self.text.len());
        text.take(count).copied().collect()
    }
}

/// Busy threads, as other programs have them, until this is dropped.
struct Neighbours {
    over: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Neighbours {
    /// They end by themselves after this, whatever happens.
    const LONGEST: Duration = Duration::from_secs(600);
    /// Time for the system to spread the threads over the cores.
    const SETTLING: Duration = Duration::from_millis(100);

    /// Starts `count` threads, or as many as the system allows.
    fn start(count: usize) -> Neighbours {
        let over = Arc::new(AtomicBool::new(false));
        let end = Instant::now() + Neighbours::LONGEST;
        let threads: Vec<_> = (0..count)
            .map_while(|index| {
                let over = Arc::clone(&over);
                std::thread::Builder::new()
                    .name(format!("neighbour-{index}"))
                    .spawn(move || while !over.load(Relaxed) && Instant::now() < end {})
                    .ok()
            })
            .collect();
        if count > 0 {
            std::thread::sleep(Neighbours::SETTLING);
        }
        Neighbours { over, threads }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // Such a thread cannot panic.
            let _ = thread.join();
        }
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
            batch: 1,
        };
        let together = Test::Decode {
            tokens: 128,
            depth: 0,
            batch: 16,
        };
        assert_eq!(prefill.name(), "pp512");
        assert_eq!(decode.name(), "tg128@d4096");
        assert_eq!(together.name(), "tg128x16");
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let rate = Rate::of(vec![4.0, 1.0, 2.0, 10.0]);
        assert_eq!((rate.median, rate.min, rate.max), (3.0, 1.0, 10.0));
    }
}
