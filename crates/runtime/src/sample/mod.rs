//! From logits to a token, and texts that end a generation.
//!
//! A choice is the same on every machine: the exponentials of the kernels are, filters and draws compute with
//! integers, and the random numbers are this module's own.

mod candidates;
mod logprobs;
mod mask;
mod options;
mod penalties;
mod random;
mod scan;
mod stop;

use ondine_kernels::Isa;

use crate::backend::Select;
use candidates::Candidates;
use logprobs::Logprobs;
pub use mask::TokenMask;
pub use options::SamplingOptions;
use penalties::RecentTokens;
use random::Random;
use scan::Scan;
pub use stop::{Pushed, StopMatcher};

/// Why no token can be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// An option has a value that makes no sense.
    #[error("{name} is {value} but must be {range}")]
    Option {
        /// Name of the option.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A bias is given for a token that does not exist.
    #[error(
        "logit_bias names token {token}, but the model has {vocabulary} tokens; use an id below that"
    )]
    UnknownToken {
        /// The id.
        token: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
    /// The logits are not numbers.
    #[error(
        "the model computed a score that is not a finite number; the model file may be damaged, fetch it again"
    )]
    NotFinite,
    /// No token is allowed.
    #[error("no token is allowed here; loosen the constraint or the logit biases")]
    NothingAllowed,
}

/// A chosen token.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of the probability that the model gave the token, before penalties, masks, filters and
    /// temperature. NaN unless [`SamplingOptions::top_logprobs`] asks for it.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, likeliest first, as many as
    /// [`SamplingOptions::top_logprobs`].
    pub top: Vec<(u32, f32)>,
}

/// Compares bits, so that a log-probability that was not asked for equals itself.
impl PartialEq for Sampled {
    fn eq(&self, other: &Self) -> bool {
        let bits = |sampled: &Sampled| -> Vec<(u32, u32)> {
            let top = sampled.top.iter().map(|&(token, p)| (token, p.to_bits()));
            top.chain([(sampled.token, sampled.logprob.to_bits())])
                .collect()
        };
        bits(self) == bits(other)
    }
}

/// Which logits a choice depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// Those of all tokens.
    All,
    /// The highest, and those of some tokens.
    Best {
        /// How many of the highest.
        count: usize,
        /// The tokens, in order.
        also: Vec<u32>,
    },
}

impl Needs {
    /// The same as a decoder is asked.
    pub fn select(&self) -> Select<'_> {
        match self {
            Needs::All => Select::All,
            Needs::Best { count, also } => Select::Best {
                count: *count,
                also,
            },
        }
    }
}

/// Chooses tokens as its options say. Holds the random state and the tokens that the penalties look back on.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    isa: Isa,
    random: Random,
    recent: RecentTokens,
    scan: Scan,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler with the seed of `options`.
    ///
    /// # Errors
    /// What [`SamplingOptions::validate`] says.
    pub fn new(options: SamplingOptions) -> Result<Self, SampleError> {
        options.validate()?;
        Ok(Sampler {
            isa: Isa::detect(),
            random: Random::new(options.seed),
            recent: RecentTokens::new(&options),
            scan: Scan::default(),
            candidates: Candidates::default(),
            options,
        })
    }

    /// Notes a token of the prompt or the answer, for the penalties.
    pub fn accept(&mut self, token: u32) {
        self.recent.push(token);
    }

    /// What the choice of the next token needs, if `ahead` are accepted before it.
    pub fn needs(&self, ahead: &[u32]) -> Needs {
        let options = &self.options;
        let least = options.min_keep.max(1);
        let count = match (options.temperature == 0.0, options.top_k) {
            _ if options.top_logprobs > 0 => return Needs::All,
            (true, _) => 1,
            (false, 0) => return Needs::All,
            (false, top_k) => top_k.max(least),
        };
        let mut also: Vec<u32> = options.logit_bias.iter().map(|&(token, _)| token).collect();
        if self.recent.is_used() {
            also.extend(self.recent.tokens());
            also.extend_from_slice(ahead);
        }
        also.sort_unstable();
        also.dedup();
        // A token that is not changed is among the best of all unless changed ones stand before it.
        Needs::Best {
            count: count + also.len(),
            also,
        }
    }

    /// Chooses as [`sample`](Self::sample) would among the logits of a `vocabulary` of which `best`, (token, logit), are
    /// what [`needs`](Self::needs) asked for. The token is the same.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_among(
        &mut self,
        best: &[(u32, f32)],
        vocabulary: usize,
    ) -> Result<Sampled, SampleError> {
        let mut ordered = best.to_vec();
        ordered.sort_unstable_by_key(|&(token, _)| token);
        let (tokens, mut logits): (Vec<u32>, Vec<f32>) = ordered.into_iter().unzip();
        for &(token, bias) in &self.options.logit_bias {
            match tokens.binary_search(&token) {
                Ok(place) => logits[place] += bias,
                Err(_) => return Err(SampleError::UnknownToken { token, vocabulary }),
            }
        }
        self.recent.apply_to(&self.options, &tokens, &mut logits);
        let place = self.choose(&logits)?;
        Ok(Sampled {
            token: tokens[place as usize],
            logprob: f32::NAN,
            top: Vec::new(),
        })
    }

    /// Chooses among `logits` (shape `[vocabulary]`) one that `mask` allows. The logits are changed.
    ///
    /// # Errors
    /// When a logit is NaN or infinite, or when nothing is allowed.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        mask: Option<&TokenMask>,
    ) -> Result<Sampled, SampleError> {
        let logprobs = match self.options.top_logprobs {
            0 => None,
            count => Some(Logprobs::new(self.isa, logits, count)?),
        };
        self.adjust(logits, mask)?;
        let token = self.choose(logits)?;
        Ok(match logprobs {
            Some(logprobs) => logprobs.sampled(token),
            None => Sampled {
                token,
                logprob: f32::NAN,
                top: Vec::new(),
            },
        })
    }

    /// Chooses among logits that nothing is to be done to any more.
    fn choose(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        self.scan.read(logits);
        if self.scan.is_damaged {
            return Err(SampleError::NotFinite);
        }
        if self.scan.largest == f32::NEG_INFINITY {
            return Err(SampleError::NothingAllowed);
        }
        let token = if self.options.temperature == 0.0 {
            self.scan.argmax(logits)
        } else {
            self.draw(logits)
        };
        token.ok_or(SampleError::NothingAllowed)
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let candidates = &mut self.candidates;
        let candidates = candidates.collect(self.isa, &self.options, logits, &mut self.scan);
        let total = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut place = self.random.below(total);
        for candidate in candidates {
            if place < candidate.weight {
                return Some(candidate.token);
            }
            place -= candidate.weight;
        }
        None
    }

    /// Applies biases, penalties and the mask.
    fn adjust(&self, logits: &mut [f32], mask: Option<&TokenMask>) -> Result<(), SampleError> {
        let vocabulary = logits.len();
        for &(token, bias) in &self.options.logit_bias {
            *logits
                .get_mut(token as usize)
                .ok_or(SampleError::UnknownToken { token, vocabulary })? += bias;
        }
        self.recent.apply(&self.options, logits);
        if let Some(mask) = mask {
            mask.apply(logits);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 40_000;

    /// Draws often and compares the counts with `expected` probabilities (chi-square, probability 0.0001 of a false
    /// alarm, but the seed is fixed).
    fn assert_distribution(
        options: SamplingOptions,
        logits: &[f32],
        history: &[u32],
        expected: &[f64],
    ) {
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = vec![0_u32; logits.len()];
        history.iter().for_each(|&token| sampler.accept(token));
        for _ in 0..DRAWS {
            let sampled = sampler.sample(&mut logits.to_vec(), None).unwrap();
            counts[sampled.token as usize] += 1;
        }
        let total: f64 = expected.iter().sum();
        let mut chi_square = 0.0;
        let mut possible = 0.0;
        for (&count, &p) in counts.iter().zip(expected) {
            let expected = p / total * f64::from(DRAWS);
            if p == 0.0 {
                assert_eq!(count, 0);
            } else {
                chi_square += (f64::from(count) - expected).powi(2) / expected;
                possible += 1.0;
            }
        }
        // Wilson and Hilferty's approximation of the quantile; 3.719 is the normal one.
        let freedom: f64 = possible - 1.0;
        let spread = 2.0 / (9.0 * freedom.max(1.0));
        let bound = freedom * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
        assert!(chi_square <= bound, "{chi_square} > {bound}: {counts:?}");
    }

    fn unfiltered(seed: u64) -> SamplingOptions {
        SamplingOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            ..SamplingOptions::default()
        }
    }

    const P: [f64; 6] = [0.35, 0.25, 0.2, 0.1, 0.07, 0.03];

    fn logits() -> Vec<f32> {
        P.iter().map(|p| p.ln() as f32 + 3.0).collect()
    }

    #[test]
    fn draws_follow_the_probabilities() {
        assert_distribution(unfiltered(1), &logits(), &[], &P);
        let mut options = unfiltered(2);
        options.temperature = 0.5;
        assert_distribution(options, &logits(), &[], &P.map(|p| p * p));
        let mut options = unfiltered(3);
        options.temperature = 2.0;
        assert_distribution(options, &logits(), &[], &P.map(f64::sqrt));
    }

    #[test]
    fn draws_follow_the_filters() {
        let keep = |count: usize| -> Vec<f64> {
            P.iter()
                .enumerate()
                .map(|(i, &p)| if i < count { p } else { 0.0 })
                .collect()
        };
        let mut options = unfiltered(4);
        options.top_k = 4;
        assert_distribution(options, &logits(), &[], &keep(4));
        let mut options = unfiltered(5);
        options.top_p = 0.75;
        assert_distribution(options, &logits(), &[], &keep(3));
        let mut options = unfiltered(6);
        options.min_p = 0.25;
        assert_distribution(options, &logits(), &[], &keep(4));
        // Entropy 1.556; surprises 1.050, 1.386, 1.609, 2.303, 2.659, 3.507: nearest are 2, 1, 0.
        let mut options = unfiltered(7);
        options.typical_p = 0.4;
        assert_distribution(options, &logits(), &[], &[0.0, 0.25, 0.2, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn draws_follow_penalties_and_biases() {
        let mut options = unfiltered(8);
        options.frequency_penalty = 0.5;
        options.presence_penalty = 0.25;
        let mut expected = P;
        expected[0] *= (-1.25_f64).exp();
        expected[3] *= (-0.75_f64).exp();
        assert_distribution(options, &logits(), &[0, 3, 0], &expected);
        let mut options = unfiltered(9);
        options.repeat_penalty = 1.5;
        let mut expected = P;
        expected[1] *= (-(P[1].ln() + 3.0) / 3.0).exp();
        assert_distribution(options, &logits(), &[1], &expected);
        let mut options = unfiltered(10);
        options.logit_bias = vec![(5, 2.0), (0, f32::NEG_INFINITY)];
        let mut expected = P;
        expected[5] *= 2.0_f64.exp();
        expected[0] = 0.0;
        assert_distribution(options, &logits(), &[], &expected);
    }

    #[test]
    fn the_best_logits_are_enough() {
        let mut random = Random::new(5);
        for round in 0..400_u64 {
            let vocabulary = 50 + random.below(400) as usize;
            // Steps of 1/4, so that many are equal.
            let logits: Vec<f32> = (0..vocabulary)
                .map(|_| random.below(60) as f32 / 4.0 - 5.0)
                .collect();
            let mut token = || random.below(vocabulary as u64) as u32;
            let options = SamplingOptions {
                temperature: [0.0, 0.7, 1.5][round as usize % 3],
                top_k: [1, 3, 40][round as usize / 3 % 3],
                typical_p: [1.0, 0.9][round as usize / 9 % 2],
                min_keep: [1, 5][round as usize / 18 % 2],
                repeat_penalty: [1.0, 1.5][round as usize % 2],
                presence_penalty: [0.0, 0.0, -0.75][round as usize % 3],
                logit_bias: match round % 5 {
                    0 => vec![
                        (token(), 2.0),
                        (token(), f32::NEG_INFINITY),
                        (token(), -1.0),
                    ],
                    _ => Vec::new(),
                },
                seed: round,
                ..SamplingOptions::default()
            };
            let mut full = Sampler::new(options).unwrap();
            for _ in 0..10 {
                full.accept(token());
            }
            let ahead = [token(), token()];
            let needs = full.needs(&ahead);
            ahead.iter().for_each(|&token| full.accept(token));
            let Needs::Best { count, also } = needs else {
                panic!("filtered choices need only the best");
            };
            let mut best: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let best: Vec<(u32, f32)> = best
                .into_iter()
                .enumerate()
                .filter(|(rank, (token, _))| *rank < count || also.contains(token))
                .map(|(_, best)| best)
                .collect();
            let mut among = full.clone();
            for _ in 0..3 {
                let expected = full.sample(&mut logits.clone(), None).unwrap();
                let got = among.sample_among(&best, vocabulary).unwrap();
                assert_eq!(got, expected, "round {round}");
            }
        }
        let mut options = unfiltered(1);
        assert_eq!(
            Sampler::new(options.clone()).unwrap().needs(&[]),
            Needs::All
        );
        options.top_k = 4;
        options.top_logprobs = 1;
        assert_eq!(
            Sampler::new(options.clone()).unwrap().needs(&[]),
            Needs::All
        );
        options.top_logprobs = 0;
        options.logit_bias = vec![(99, 1.0)];
        let error = Sampler::new(options).unwrap().sample_among(&[(1, 1.0)], 50);
        assert!(error.unwrap_err().to_string().contains("token 99"));
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..5000)
            .map(|i| ((i * 7919) % 4999) as f32 / 500.0)
            .collect();
        let draw = |seed, isa, top_k| -> Vec<u32> {
            let options = SamplingOptions {
                seed,
                top_k,
                top_p: 0.99,
                typical_p: 0.97,
                temperature: 1.1,
                min_p: 0.0,
                ..SamplingOptions::default()
            };
            let mut sampler = Sampler::new(options).unwrap();
            sampler.isa = isa;
            (0..8)
                .map(|_| sampler.sample(&mut logits.clone(), None).unwrap().token)
                .collect()
        };
        for &isa in Isa::ALL {
            if isa.is_available() {
                assert_eq!(draw(7, isa, 40), PINNED_TOP_40);
                assert_eq!(draw(7, isa, 0), PINNED_ALL);
            }
        }
        assert_ne!(draw(8, Isa::Scalar, 0), PINNED_ALL);
    }

    /// As this module has always drawn them: texts of old seeds must not change.
    const PINNED_TOP_40: [u32; 8] = [416, 844, 3614, 2015, 4785, 2330, 3614, 1587];
    const PINNED_ALL: [u32; 8] = [291, 866, 3590, 2133, 4819, 2330, 3614, 1657];

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(SamplingOptions::greedy()).unwrap();
        let mut logits = vec![0.0; 300];
        logits[100] = 2.0;
        logits[200] = 2.0;
        assert_eq!(sampler.sample(&mut logits, None).unwrap().token, 100);
        let mut mask = TokenMask::all(300);
        mask.forbid(100);
        assert_eq!(sampler.sample(&mut logits, Some(&mask)).unwrap().token, 200);
    }

    #[test]
    fn a_mask_is_never_left() {
        let mut sampler = Sampler::new(unfiltered(11)).unwrap();
        let mut mask = TokenMask::none(6);
        mask.allow(3);
        mask.allow(5);
        for _ in 0..1000 {
            let token = sampler.sample(&mut logits(), Some(&mask)).unwrap().token;
            assert!(mask.allows(token));
        }
        let none = TokenMask::none(6);
        let error = sampler.sample(&mut logits(), Some(&none)).unwrap_err();
        assert_eq!(error, SampleError::NothingAllowed);
    }

    #[test]
    fn damage_is_an_error() {
        for options in [SamplingOptions::greedy(), unfiltered(1)] {
            for top_logprobs in [0, 2] {
                let options = SamplingOptions {
                    top_logprobs,
                    ..options.clone()
                };
                let mut sampler = Sampler::new(options).unwrap();
                for damage in [f32::NAN, f32::INFINITY] {
                    let result = sampler.sample(&mut [1.0, damage, 2.0], None);
                    assert_eq!(result.unwrap_err(), SampleError::NotFinite);
                }
                assert!(sampler.sample(&mut Vec::new(), None).is_err());
            }
        }
        let options = SamplingOptions {
            logit_bias: vec![(9, 1.0)],
            ..SamplingOptions::default()
        };
        let error = Sampler::new(options).unwrap().sample(&mut logits(), None);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("token 9") && message.contains("6 tokens"));
    }

    #[test]
    fn extreme_temperatures_still_draw() {
        for temperature in [f32::MIN_POSITIVE, 1e-6, 1e30, f32::MAX] {
            let mut options = unfiltered(12);
            options.temperature = temperature;
            let mut sampler = Sampler::new(options).unwrap();
            let token = sampler.sample(&mut logits(), None).unwrap().token;
            assert!(temperature > 1.0 || token == 0);
        }
    }
}
