//! Log-probabilities that the model gave, for reports.

use ondine_kernels::{Isa, ops};

use super::scan::Scan;
use super::{SampleError, Sampled};

/// Logits whose exponentials are computed at once.
const BLOCK: usize = 1024;

/// The model's own distribution, before anything is changed about it.
pub(super) struct Logprobs {
    /// Shape [vocabulary].
    logits: Vec<f32>,
    /// Logarithm of the sum of the exponentials.
    normaliser: f64,
    top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of `logits`, with the `count` likeliest tokens.
    pub(super) fn new(isa: Isa, logits: &[f32], count: usize) -> Result<Self, SampleError> {
        let mut scan = Scan::default();
        scan.read(logits);
        if scan.is_damaged || scan.largest == f32::NEG_INFINITY {
            return Err(SampleError::NotFinite);
        }
        let normaliser =
            f64::from(scan.largest) + sum_of_exponentials(isa, logits, scan.largest).ln();
        let mut top = Vec::new();
        scan.for_each_of_top(logits, count, |token, logit| top.push((token, logit)));
        top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(count);
        for (_, logit) in &mut top {
            *logit = (f64::from(*logit) - normaliser) as f32;
        }
        Ok(Logprobs {
            logits: logits.to_vec(),
            normaliser,
            top,
        })
    }

    pub(super) fn sampled(self, token: u32) -> Sampled {
        let logit = self.logits.get(token as usize).copied();
        Sampled {
            token,
            logprob: logit.map_or(f32::NAN, |logit| {
                (f64::from(logit) - self.normaliser) as f32
            }),
            top: self.top,
        }
    }
}

fn sum_of_exponentials(isa: Isa, logits: &[f32], largest: f32) -> f64 {
    let mut block = [0.0; BLOCK];
    let mut sum = 0.0;
    for logits in logits.chunks(BLOCK) {
        let block = &mut block[..logits.len()];
        for (difference, logit) in block.iter_mut().zip(logits) {
            *difference = logit - largest;
        }
        ops::exp(isa, block);
        sum += block.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits: Vec<f32> = (0..3000)
            .map(|i| ((i * 7919) % 2999) as f32 / 200.0)
            .collect();
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let exact = |token: u32| (f64::from(logits[token as usize]).exp() / total).ln();
        let logprobs = Logprobs::new(Isa::detect(), &logits, 5).unwrap();
        let sampled = logprobs.sampled(17);
        assert!((f64::from(sampled.logprob) - exact(17)).abs() < 1e-5);
        assert_eq!(sampled.top.len(), 5);
        assert!(sampled.top.is_sorted_by(|a, b| a.1 >= b.1));
        for (token, logprob) in sampled.top {
            assert!((f64::from(logprob) - exact(token)).abs() < 1e-5);
        }
    }

    #[test]
    fn more_than_the_vocabulary_is_the_vocabulary() {
        let logits = [1.0, f32::NEG_INFINITY, 2.0];
        let sampled = Logprobs::new(Isa::Scalar, &logits, 10).unwrap().sampled(1);
        assert_eq!(sampled.logprob, f32::NEG_INFINITY);
        assert_eq!(
            sampled.top.iter().map(|top| top.0).collect::<Vec<_>>(),
            [2, 0]
        );
        assert!(Logprobs::new(Isa::Scalar, &[f32::NAN], 1).is_err());
    }
}
