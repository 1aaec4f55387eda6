//! How far a model's predictions are from those of the model it was made of, on the same tokens.
//!
//! The convention is that of llama.cpp's perplexity tool: a text is cut into windows, and what follows each token of a
//! window's second half is scored.

use std::sync::{Mutex, PoisonError};

use ondine_kernels::ThreadPool;
use ondine_kernels::ops::argmax;
use ondine_runtime::backend::cpu::available_threads;
use ondine_runtime::backend::{Decoder, Run, Scores, Select, SequenceId, Wanted};
use ondine_runtime::fidelity::divergence;
use ondine_runtime::perplexity::log_probability;

use crate::CompressError;
use crate::calibrate::Windows;

/// Tokens whose scores are in memory together.
const STEP: usize = 32;

/// What was found at one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// Kullback-Leibler divergence from the reference, nats.
    pub divergence: f64,
    /// Negative log-likelihood of the token that follows, nats.
    pub loss: f64,
    /// The reference's.
    pub reference_loss: f64,
    /// Whether both expect the same token most.
    pub same_best: bool,
}

/// All positions that were scored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// In the order of the text.
    pub positions: Vec<Position>,
    /// Windows computed.
    pub windows: usize,
}

impl Comparison {
    /// Mean divergence, nats.
    pub fn divergence(&self) -> f64 {
        self.mean(|position| position.divergence).0
    }

    /// Mean of a figure over all positions, and its standard error.
    pub fn mean(&self, of: impl Fn(&Position) -> f64) -> (f64, f64) {
        let count = self.positions.len().max(1) as f64;
        let mean = self.positions.iter().map(&of).sum::<f64>() / count;
        let squares = self.positions.iter().map(|p| (of(p) - mean).powi(2));
        let variance = squares.sum::<f64>() / count;
        (mean, (variance / (count - 1.0).max(1.0)).sqrt())
    }

    /// The divergence that a share of `quantile` (0 to 1) of the positions stays below.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let mut all: Vec<f64> = self.positions.iter().map(|p| p.divergence).collect();
        all.sort_by(f64::total_cmp);
        let at = (quantile * all.len().saturating_sub(1) as f64).round() as usize;
        all.get(at).copied().unwrap_or(0.0)
    }
}

/// Compares `decoder` with `reference`; `progress` hears windows done, of all, and the mean divergence so far, and says
/// whether to go on.
///
/// # Errors
/// When a decoder fails or the two have vocabularies of other sizes; [`CompressError::Interrupted`] when `progress` says no.
pub fn compare(
    decoder: &mut dyn Decoder,
    reference: &mut dyn Decoder,
    windows: &Windows,
    progress: &mut dyn FnMut(usize, usize, f64) -> bool,
) -> Result<Comparison, CompressError> {
    let pool = ThreadPool::new(available_threads());
    let all = windows.iter().count();
    let mut result = Comparison::default();
    let mut sum = 0.0;
    for (index, tokens) in windows.iter().enumerate() {
        let mut scored = Scored::new(decoder, tokens);
        let mut expected = Scored::new(reference, tokens);
        let computed = (|| {
            while let Some(found) = scored.next(decoder)? {
                let Some(wanted) = expected.next(reference)? else {
                    break;
                };
                let positions = positions(&pool, &wanted, &found)?;
                sum += positions.iter().map(|p| p.divergence).sum::<f64>();
                result.positions.extend(positions);
            }
            Ok::<(), CompressError>(())
        })();
        decoder.stop(scored.sequence);
        reference.stop(expected.sequence);
        computed?;
        result.windows = index + 1;
        if !progress(index + 1, all, sum / result.positions.len().max(1) as f64) {
            return Err(CompressError::Interrupted);
        }
    }
    Ok(result)
}

fn positions(
    pool: &ThreadPool,
    reference: &Part<'_>,
    found: &Part<'_>,
) -> Result<Vec<Position>, CompressError> {
    if reference.logits.len() != found.logits.len() || reference.count() != found.count() {
        return Err(CompressError::Invalid(
            "the two models have vocabularies of different sizes; compare models made of one another"
                .into(),
        ));
    }
    let out = Mutex::new(vec![None; found.count()]);
    pool.run(found.count(), &|index| {
        let (p, q) = (reference.position(index), found.position(index));
        let next = found.next[index] as usize;
        let position = Position {
            divergence: divergence(p, q),
            loss: -log_probability(q, next),
            reference_loss: -log_probability(p, next),
            same_best: argmax(p) == argmax(q),
        };
        out.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(position);
    });
    let out = out.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(out.into_iter().flatten().collect())
}

/// The second half of a window, some tokens at a time.
pub(crate) struct Scored<'a> {
    tokens: &'a [u32],
    /// The sequence it is computed in; whoever began it stops it.
    pub(crate) sequence: SequenceId,
    at: usize,
}

/// Scores after some tokens.
pub(crate) struct Part<'a> {
    /// [tokens, vocabulary].
    pub(crate) logits: Vec<f32>,
    /// The token that follows each.
    pub(crate) next: &'a [u32],
}

impl Part<'_> {
    pub(crate) fn count(&self) -> usize {
        self.next.len()
    }

    pub(crate) fn position(&self, index: usize) -> &[f32] {
        let vocabulary = self.logits.len() / self.count().max(1);
        &self.logits[index * vocabulary..(index + 1) * vocabulary]
    }
}

impl<'a> Scored<'a> {
    pub(crate) fn new(decoder: &mut dyn Decoder, tokens: &'a [u32]) -> Self {
        Scored {
            tokens,
            sequence: decoder.start(),
            at: 0,
        }
    }

    /// The next scores; `None` after the last.
    pub(crate) fn next(
        &mut self,
        decoder: &mut dyn Decoder,
    ) -> Result<Option<Part<'a>>, CompressError> {
        let half = self.tokens.len() / 2;
        let last = self.tokens.len() - 1;
        let mut run = Run {
            sequence: self.sequence,
            tokens: &self.tokens[..half],
            wanted: Wanted::Nothing,
            select: Select::All,
        };
        if self.at == 0 && half > 0 {
            decoder.forward(&[run], &mut |_| {})?;
            self.at = half;
        }
        let end = last.min(self.at + STEP);
        if self.at >= end {
            return Ok(None);
        }
        run.tokens = &self.tokens[self.at..end];
        run.wanted = Wanted::From(0);
        let mut logits = Vec::new();
        decoder.forward(&[run], &mut |scored| {
            if let Scores::All(scores) = scored.scores {
                logits.extend_from_slice(scores);
            }
        })?;
        let next = &self.tokens[self.at + 1..end + 1];
        self.at = end;
        Ok(Some(Part { logits, next }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_the_definition() {
        let (p, q) = ([0.5f32, 0.3, 0.2], [0.3f32, 0.4, 0.3]);
        let part = |probabilities: [f32; 3]| Part {
            logits: probabilities.map(f32::ln).to_vec(),
            next: &[1],
        };
        let pool = ThreadPool::new(1);
        let found = positions(&pool, &part(p), &part(q)).unwrap();
        let expected: f32 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((found[0].divergence - f64::from(expected)).abs() < 1e-6);
        assert!((found[0].loss + f64::from(0.4f32.ln())).abs() < 1e-6);
        assert!((found[0].reference_loss + f64::from(0.3f32.ln())).abs() < 1e-6);
        assert!(!found[0].same_best);
        let short = Part {
            logits: vec![0.0; 2],
            next: &[1],
        };
        assert!(positions(&pool, &part(p), &short).is_err());
    }
}
