//! How far a decoder's fast paths are from a reference: does the likeliest token stay the same, how far apart are the
//! distributions?
//!
//! A text is cut into windows as for [`perplexity`](crate::perplexity), but all positions count. The decoder under test
//! computes each window three times, which covers its ways to compute: all tokens together; one by one; and one by one
//! with only the best scores asked for. The reference computes it together.

use crate::backend::{BackendError, Decoder, Run, Scores, Select, SequenceId, Wanted};

/// Scores that are asked for when only the best are.
const BEST: usize = 40;
/// Tokens whose logits are kept together.
const STEP: usize = 16;

/// The result.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Fidelity {
    /// Positions compared.
    pub positions: usize,
    /// Tokens computed together.
    pub together: Agreement,
    /// Tokens computed one by one.
    pub single: Agreement,
    /// Positions where the decoder gave only the best scores.
    pub selected: usize,
    /// Those of them whose tokens or bits differ from the full scores'.
    pub selected_wrongly: usize,
}

/// Agreement with the reference.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Agreement {
    /// Positions with the same likeliest token.
    pub same_best: usize,
    /// Sum of the Kullback-Leibler divergences from the reference, nats.
    pub divergence: f64,
    /// The largest of them.
    pub largest_divergence: f64,
}

impl Agreement {
    fn note(&mut self, reference: &[f32], logits: &[f32]) {
        let divergence = divergence(reference, logits);
        let best = |logits: &[f32]| ondine_kernels::ops::argmax(logits);
        self.same_best += usize::from(best(reference) == best(logits));
        self.divergence += divergence;
        self.largest_divergence = self.largest_divergence.max(divergence);
    }
}

/// Compares `decoder` with `reference` over the first `positions` positions of `tokens` in windows of `window`; `begin`
/// replaces each window's first token. `progress` hears (positions done, positions in all) and says whether to go on.
///
/// # Errors
/// See [`BackendError`].
pub fn fidelity(
    decoder: &mut dyn Decoder,
    reference: &mut dyn Decoder,
    tokens: &[u32],
    window: usize,
    positions: usize,
    begin: Option<u32>,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<Fidelity, BackendError> {
    let mut result = Fidelity::default();
    let positions = positions.min(tokens.len());
    for content in tokens[..positions].chunks(window.max(1)) {
        let mut content = content.to_vec();
        if let Some(begin) = begin {
            content[0] = begin;
        }
        let sequences = [decoder.start(), decoder.start(), decoder.start()];
        let expected_sequence = reference.start();
        for part in content.chunks(STEP) {
            let expected = all(reference, expected_sequence, part)?;
            let together = all(decoder, sequences[0], part)?;
            for (index, (expected, together)) in expected.iter().zip(&together).enumerate() {
                let token = &part[index..=index];
                let single = all(decoder, sequences[1], token)?;
                let single = single.first().map_or(&[][..], Vec::as_slice);
                result.together.note(expected, together);
                result.single.note(expected, single);
                let best = best(decoder, sequences[2], token)?;
                if let Some(best) = best {
                    result.selected += 1;
                    result.selected_wrongly += usize::from(!is_best_of(&best, single));
                }
            }
            result.positions += part.len();
            if !progress(result.positions, positions) {
                return Ok(result);
            }
        }
        for sequence in sequences {
            decoder.stop(sequence);
        }
        reference.stop(expected_sequence);
    }
    Ok(result)
}

/// Compares `decoder` with `reference`, each computing its own way, over the first `positions` positions of `tokens` in
/// windows of `window`; both read the same tokens, whatever they would have chosen. `begin` and `progress` are those of
/// [`fidelity`]. Returns (positions compared, agreement).
///
/// # Errors
/// See [`BackendError`].
pub fn agreement(
    decoder: &mut dyn Decoder,
    reference: &mut dyn Decoder,
    tokens: &[u32],
    window: usize,
    positions: usize,
    begin: Option<u32>,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<(usize, Agreement), BackendError> {
    let (mut done, mut result) = (0, Agreement::default());
    let positions = positions.min(tokens.len());
    for content in tokens[..positions].chunks(window.max(1)) {
        let mut content = content.to_vec();
        if let Some(begin) = begin {
            content[0] = begin;
        }
        let (sequence, expected_sequence) = (decoder.start(), reference.start());
        for part in content.chunks(STEP) {
            let expected = all(reference, expected_sequence, part)?;
            let found = all(decoder, sequence, part)?;
            for (expected, found) in expected.iter().zip(&found) {
                result.note(expected, found);
            }
            done += part.len();
            if !progress(done, positions) {
                return Ok((done, result));
            }
        }
        decoder.stop(sequence);
        reference.stop(expected_sequence);
    }
    Ok((done, result))
}

/// Logits after each of `tokens`.
fn all(
    decoder: &mut dyn Decoder,
    sequence: SequenceId,
    tokens: &[u32],
) -> Result<Vec<Vec<f32>>, BackendError> {
    let mut out = Vec::with_capacity(tokens.len());
    let run = Run {
        sequence,
        tokens,
        wanted: Wanted::From(0),
        select: Select::All,
    };
    decoder.forward(&[run], &mut |scored| {
        if let Scores::All(logits) = scored.scores {
            out.push(logits.to_vec());
        }
    })?;
    Ok(out)
}

/// The best scores after `tokens`, if the decoder gives only them.
fn best(
    decoder: &mut dyn Decoder,
    sequence: SequenceId,
    tokens: &[u32],
) -> Result<Option<Vec<(u32, f32)>>, BackendError> {
    let mut out = None;
    let run = Run {
        sequence,
        tokens,
        wanted: Wanted::Last,
        select: Select::Best {
            count: BEST,
            also: &[],
        },
    };
    decoder.forward(&[run], &mut |scored| {
        if let Scores::Candidates(best) = scored.scores {
            out = Some(best.to_vec());
        }
    })?;
    Ok(out)
}

/// Whether `best` begins with the highest of `logits`, bit by bit.
fn is_best_of(best: &[(u32, f32)], logits: &[f32]) -> bool {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let rank = |&token: &u32| (logits[token as usize], token);
    let count = BEST.min(order.len());
    let descending = |a: &u32, b: &u32| {
        let ((x, a), (y, b)) = (rank(a), rank(b));
        y.total_cmp(&x).then(a.cmp(&b))
    };
    if count < order.len() {
        order.select_nth_unstable_by(count, descending);
        order.truncate(count);
    }
    order.sort_unstable_by(descending);
    let same = |(&(token, logit), &expected): (&(u32, f32), &u32)| {
        token == expected && logit.to_bits() == logits[token as usize].to_bits()
    };
    best.len() >= count && best.iter().zip(&order).all(same)
}

/// Kullback-Leibler divergence of the softmax of `logits` from that of `reference`, nats, summed in f64.
pub fn divergence(reference: &[f32], logits: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits
            .iter()
            .map(|&logit| f64::from(logit - largest).exp())
            .sum();
        f64::from(largest) + sum.ln()
    };
    let (p_sum, q_sum) = (log_sum(reference), log_sum(logits));
    let terms = reference.iter().zip(logits).map(|(&p, &q)| {
        let p = f64::from(p) - p_sum;
        p.exp() * (p - (f64::from(q) - q_sum))
    });
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_definition() {
        let (p, q) = ([0.5f64, 0.3, 0.2], [0.4f64, 0.4, 0.2]);
        let expected: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let logits = |p: [f64; 3], shift: f64| p.map(|p| (p.ln() + shift) as f32);
        assert!((divergence(&logits(p, 3.0), &logits(q, -1.0)) - expected).abs() < 1e-6);
        assert!(divergence(&logits(p, 3.0), &logits(p, 1.0)) < 1e-9);
    }

    #[test]
    fn a_wrong_selection_is_seen() {
        let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 50) as f32).collect();
        let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        assert!(is_best_of(&order[..41], &logits));
        assert!(!is_best_of(&order[..39], &logits));
        order.swap(3, 4);
        assert!(!is_best_of(&order[..40], &logits));
        order.swap(3, 4);
        order[7].1 += 1e-4;
        assert!(!is_best_of(&order[..40], &logits));
    }
}
