//! The tokens that may be drawn, and the filters that leave fewer of them.
//!
//! Weights are integers, so that sums do not depend on their order and a draw is exact: the same on every machine.
//! Nothing sorts: a filter finds the last token that it keeps by partial selection, and one pass drops those after it.

use std::cmp::Ordering;

use ondine_kernels::{Isa, ops};

use super::SamplingOptions;
use super::scan::Scan;

/// Weight of the likeliest token. 2^22 tokens of this weight still add up within 64 bits; what is 2^-40 times as
/// likely as the likeliest is never drawn.
const FULL_WEIGHT: u64 = 1 << 40;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
    /// Probability relative to the likeliest token's, which has [`FULL_WEIGHT`].
    pub(super) weight: u64,
    /// What the filters order by, the largest first; no two candidates have the same.
    key: u64,
}

/// The candidates of one draw, in the order of their ids. Kept from draw to draw for its memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidates {
    all: Vec<Candidate>,
    /// Logit of the likeliest.
    largest: f32,
    /// Key and weight of each candidate, in any order.
    keys: Vec<(u64, u64)>,
    exponents: Vec<f32>,
}

impl Candidates {
    /// Collects what `options` keep of `logits`, with the weights to draw by.
    ///
    /// `scan` is of the same logits; at least one of them is finite, none NaN.
    pub(super) fn collect(
        &mut self,
        isa: Isa,
        options: &SamplingOptions,
        logits: &[f32],
        scan: &mut Scan,
    ) -> &[Candidate] {
        self.take_top_k(options, logits, scan);
        self.weigh(isa, 1.0);
        let least = options.min_keep.max(1);
        if options.typical_p < 1.0 {
            self.key_by_surprise();
            self.keep_mass(options.typical_p, least);
        }
        if options.top_p < 1.0 {
            self.key_by_rank();
            self.keep_mass(options.top_p, least);
        }
        if options.min_p > 0.0 {
            self.keep_likely(options.min_p, least);
        }
        // After the typical filter the likeliest token may be gone, and the weights are too small to divide.
        if options.temperature != 1.0 || options.typical_p < 1.0 {
            self.weigh(isa, options.temperature);
        }
        &self.all
    }

    fn take_top_k(&mut self, options: &SamplingOptions, logits: &[f32], scan: &mut Scan) {
        let top_k = match options.top_k {
            0 => logits.len(),
            top_k => top_k.max(options.min_keep),
        };
        let all = &mut self.all;
        all.clear();
        scan.for_each_of_top(logits, top_k, |token, logit| {
            all.push(Candidate {
                token,
                logit,
                weight: 0,
                key: 0,
            });
        });
        if all.len() > top_k {
            self.key_by_rank();
            self.keep_count(top_k);
        }
    }

    /// Sets the weights to `e^((logit - largest) / temperature)`.
    fn weigh(&mut self, isa: Isa, temperature: f32) {
        let largest = self.all.iter().map(|candidate| candidate.logit);
        self.largest = largest.fold(f32::NEG_INFINITY, f32::max);
        self.exponents.clear();
        let exponents = self.all.iter();
        let exponents = exponents.map(|candidate| (candidate.logit - self.largest) / temperature);
        self.exponents.extend(exponents);
        ops::exp(isa, &mut self.exponents);
        for (candidate, &relative) in self.all.iter_mut().zip(&self.exponents) {
            // Exact but for the fraction: a power of two changes no digit.
            candidate.weight = (relative * FULL_WEIGHT as f32) as u64;
        }
    }

    /// Orders by logit, of equals the smaller id first.
    fn key_by_rank(&mut self) {
        for candidate in &mut self.all {
            candidate.key = key(candidate.logit, candidate.token);
        }
    }

    /// Orders by the distance of the surprise `-ln p` from its mean, the entropy; the nearest first.
    ///
    /// With `d = logit - largest` the surprise is `ln Z - d`; `ln Z` cancels, which leaves `|mean of d - d|`.
    fn key_by_surprise(&mut self) {
        let (mut sum, mut total) = (0.0, 0.0);
        for candidate in &self.all {
            let weight = candidate.weight as f64;
            sum += weight * f64::from(candidate.logit - self.largest);
            total += weight;
        }
        let mean = sum / total;
        for candidate in &mut self.all {
            let distance = (mean - f64::from(candidate.logit - self.largest)).abs();
            candidate.key = key(-distance as f32, candidate.token);
        }
    }

    fn copy_keys(&mut self) {
        self.keys.clear();
        let keys = self
            .all
            .iter()
            .map(|candidate| (candidate.key, candidate.weight));
        self.keys.extend(keys);
    }

    /// Keeps the first candidates in the order of the keys: as few as have `mass` of the weight, but at least `least`.
    fn keep_mass(&mut self, mass: f32, least: usize) {
        self.copy_keys();
        let total: u64 = self.all.iter().map(|candidate| candidate.weight).sum();
        let mut wanted = ((total as f64 * f64::from(mass)) as u64).max(1);
        // The boundary lies in `low..high`; what is before has less than the wanted weight, by `wanted`.
        let (mut low, mut high) = (0, self.keys.len());
        while high - low > 1 {
            let half = (high - low) / 2;
            let range = &mut self.keys[low..high];
            range.select_nth_unstable_by(half, descending);
            let before: u64 = range[..half].iter().map(|&(_, weight)| weight).sum();
            if before >= wanted {
                high = low + half;
            } else {
                wanted -= before;
                low += half;
            }
        }
        if low + 1 < least {
            return self.keep_count(least);
        }
        if let Some(&(last, _)) = self.keys.get(low) {
            self.all.retain(|candidate| candidate.key >= last);
        }
    }

    /// Keeps the candidates that have `share` of the likeliest one's weight, but at least `least`.
    fn keep_likely(&mut self, share: f32, least: usize) {
        let heaviest = self.all.iter().map(|candidate| candidate.weight).max();
        let bound = (heaviest.unwrap_or(0) as f64 * f64::from(share)) as u64;
        let likely = self
            .all
            .iter()
            .filter(|candidate| candidate.weight >= bound)
            .count();
        if likely >= least {
            self.all.retain(|candidate| candidate.weight >= bound);
        } else {
            self.key_by_rank();
            self.keep_count(least);
        }
    }

    /// Keeps the first `count` candidates in the order of the keys.
    fn keep_count(&mut self, count: usize) {
        if count == 0 || count >= self.all.len() {
            return;
        }
        self.copy_keys();
        let (_, &mut (last, _), _) = self.keys.select_nth_unstable_by(count - 1, descending);
        self.all.retain(|candidate| candidate.key >= last);
    }
}

fn descending(a: &(u64, u64), b: &(u64, u64)) -> Ordering {
    b.0.cmp(&a.0)
}

/// Orders by value, of equals the smaller id as the larger key. No two tokens have the same key.
fn key(value: f32, token: u32) -> u64 {
    // Adding 0 makes 0 of -0. Negative numbers order the other way round than their bits.
    let bits = (value + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    u64::from(ordered) << 32 | u64::from(!token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(options: &SamplingOptions, logits: &[f32]) -> Vec<Candidate> {
        let mut scan = Scan::default();
        scan.read(logits);
        let mut candidates = Candidates::default();
        candidates
            .collect(Isa::detect(), options, logits, &mut scan)
            .to_vec()
    }

    /// The definition of each filter, by sorting, in double precision: tokens and probabilities, likeliest first.
    fn expected(options: &SamplingOptions, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut tokens: Vec<(u32, f64)> = (0_u32..)
            .zip(logits.iter().map(|&logit| f64::from(logit)))
            .filter(|&(_, logit)| logit > f64::NEG_INFINITY)
            .collect();
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let least = options.min_keep.max(1);
        if options.top_k > 0 {
            tokens.truncate(options.top_k.max(least));
        }
        let probabilities = |tokens: &[(u32, f64)], temperature: f64| -> Vec<f64> {
            let largest = tokens
                .iter()
                .map(|&(_, logit)| logit)
                .fold(f64::MIN, f64::max);
            let weights = tokens
                .iter()
                .map(|&(_, logit)| ((logit - largest) / temperature).exp());
            let weights: Vec<f64> = weights.collect();
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / total).collect()
        };
        let nucleus = |probabilities: &[f64], mass: f64| {
            let mut sum = 0.0;
            let reached = probabilities.iter().position(|p| {
                sum += p;
                sum >= mass
            });
            reached.map_or(probabilities.len(), |last| (last + 1).max(least))
        };
        if options.typical_p < 1.0 {
            let p = probabilities(&tokens, 1.0);
            let entropy: f64 = p
                .iter()
                .map(|p| if *p > 0.0 { -p * p.ln() } else { 0.0 })
                .sum();
            let mut order: Vec<usize> = (0..tokens.len()).collect();
            let distance = |&index: &usize| (-p[index].ln() - entropy).abs();
            order.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)));
            let sorted: Vec<f64> = order.iter().map(|&index| p[index]).collect();
            order.truncate(nucleus(&sorted, f64::from(options.typical_p)));
            order.sort_unstable();
            tokens = order.into_iter().map(|index| tokens[index]).collect();
        }
        if options.top_p < 1.0 {
            let p = probabilities(&tokens, 1.0);
            tokens.truncate(nucleus(&p, f64::from(options.top_p)));
        }
        if options.min_p > 0.0 {
            let p = probabilities(&tokens, 1.0);
            let likely = p
                .iter()
                .filter(|&&other| other >= p[0] * f64::from(options.min_p));
            tokens.truncate(likely.count().max(least));
        }
        let p = probabilities(&tokens, f64::from(options.temperature));
        tokens
            .into_iter()
            .zip(p)
            .map(|((token, _), p)| (token, p))
            .collect()
    }

    fn options() -> impl Strategy<Value = SamplingOptions> {
        let share = || prop_oneof![Just(1.0_f32), 0.013_f32..0.999];
        let numbers = (
            0.1_f32..3.0,
            share(),
            share(),
            prop_oneof![Just(0.0_f32), 0.003_f32..0.9],
        );
        (
            numbers,
            prop_oneof![Just(0_usize), 1_usize..300],
            0_usize..4,
        )
            .prop_map(
                |((temperature, top_p, typical_p, min_p), top_k, min_keep)| SamplingOptions {
                    temperature,
                    top_k,
                    top_p,
                    typical_p,
                    min_p,
                    min_keep,
                    ..SamplingOptions::default()
                },
            )
    }

    /// Logits at steps of 1/8, so that equal ones occur, with some forbidden.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let logit = prop_oneof![
            8 => (-80_i32..80).prop_map(|x| x as f32 / 8.0),
            1 => Just(f32::NEG_INFINITY),
        ];
        prop::collection::vec(logit, 1..700).prop_filter("nothing allowed", |logits| {
            logits.iter().any(|x| x.is_finite())
        })
    }

    proptest! {
        #[test]
        fn filters_keep_what_their_definitions_say(options in options(), logits in logits()) {
            let expected = expected(&options, &logits);
            let mut got = kept(&options, &logits);
            prop_assert!(got.is_sorted_by_key(|candidate| candidate.token));
            got.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
            let total: u64 = got.iter().map(|candidate| candidate.weight).sum();
            // Where the sums of the definition meet a bound almost exactly, one token more or less is right.
            let same = got.len().min(expected.len());
            if options.typical_p == 1.0 {
                prop_assert!(got.len().abs_diff(expected.len()) <= 1);
                for (got, expected) in got[..same].iter().zip(&expected) {
                    prop_assert_eq!(got.token, expected.0);
                }
            }
            if got.len() == expected.len() {
                for (got, expected) in got.iter().zip(&expected) {
                    prop_assert_eq!(got.token, expected.0);
                    let p = got.weight as f64 / total as f64;
                    prop_assert!((p - expected.1).abs() <= 1e-5 * expected.1 + 1e-9);
                }
            }
        }
    }

    #[test]
    fn equal_surprises_do_not_hide_the_typical_filter() {
        // The property test lets a difference of the count pass; here the sets are known.
        let logits: Vec<f32> = [0.5_f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let mut options = SamplingOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..SamplingOptions::default()
        };
        let tokens = |options: &SamplingOptions| -> Vec<u32> {
            kept(options, &logits)
                .iter()
                .map(|candidate| candidate.token)
                .collect()
        };
        // Entropy 1.142; surprises 0.693, 1.204, 1.897, 2.996.
        options.typical_p = 0.25;
        assert_eq!(tokens(&options), [1]);
        options.typical_p = 0.75;
        assert_eq!(tokens(&options), [0, 1]);
        options.typical_p = 0.9;
        assert_eq!(tokens(&options), [0, 1, 2]);
        options.typical_p = 1.0;
        options.top_p = 0.79;
        assert_eq!(tokens(&options), [0, 1]);
        options.top_p = 1.0;
        options.min_p = 0.31;
        assert_eq!(tokens(&options), [0, 1]);
        options.min_p = 0.0;
        options.top_k = 3;
        assert_eq!(tokens(&options), [0, 1, 2]);
        options.top_p = 0.0;
        assert_eq!(tokens(&options), [0]);
        options.min_keep = 2;
        assert_eq!(tokens(&options), [0, 1]);
    }
}
