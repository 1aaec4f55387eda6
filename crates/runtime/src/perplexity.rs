//! Perplexity of a text, by the convention of llama.cpp's tool.
//!
//! The text is tokenised once and cut into windows of equal length without overlap. Each window is
//! computed on its own, its first token replaced by the beginning-of-text token where the model asks
//! for one, and the tokens of its second half are scored.

use crate::backend::{BackendError, Decoder, Run, Scores, Select, Wanted};

/// The result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Mean negative log-likelihood per scored token, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub ppl: f64,
    /// Standard error of `nll`.
    pub standard_error: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Windows computed.
    pub windows: usize,
}

/// Scores `tokens` in windows of `window` tokens, at most `most_windows` of them. `begin` replaces
/// each window's first token. `progress` hears (windows done, windows in all, perplexity so far) and
/// says whether to go on.
///
/// # Errors
/// See [`BackendError`]. A text shorter than one window gives zero tokens.
pub fn perplexity(
    decoder: &mut dyn Decoder,
    tokens: &[u32],
    window: usize,
    most_windows: Option<usize>,
    begin: Option<u32>,
    mut progress: impl FnMut(usize, usize, f64) -> bool,
) -> Result<Perplexity, BackendError> {
    let windows = tokens.len() / window.max(2);
    let windows = windows.min(most_windows.unwrap_or(windows));
    let (mut sum, mut sum_of_squares, mut count) = (0.0f64, 0.0f64, 0usize);
    let mut done = 0;
    for (index, content) in tokens.chunks_exact(window.max(2)).take(windows).enumerate() {
        let mut content = content.to_vec();
        if let Some(begin) = begin {
            content[0] = begin;
        }
        let sequence = decoder.start();
        let first = content.len() / 2;
        let run = Run {
            sequence,
            tokens: &content[..content.len() - 1],
            wanted: Wanted::From(first),
            select: Select::All,
        };
        let computed = decoder.forward(&[run], &mut |scored| {
            if let Scores::All(logits) = scored.scores {
                let loss = -log_probability(logits, content[scored.token + 1] as usize);
                sum += loss;
                sum_of_squares += loss * loss;
                count += 1;
            }
        });
        decoder.stop(sequence);
        computed?;
        done = index + 1;
        if !progress(done, windows, (sum / count.max(1) as f64).exp()) {
            break;
        }
    }
    let tokens = count.max(1) as f64;
    let nll = sum / tokens;
    let variance = (sum_of_squares / tokens - nll * nll).max(0.0);
    Ok(Perplexity {
        nll,
        ppl: nll.exp(),
        standard_error: (variance / (tokens - 1.0).max(1.0)).sqrt(),
        tokens: count,
        windows: done,
    })
}

/// Natural logarithm of the softmax of `logits` at `index`, summed in f64.
pub fn log_probability(logits: &[f32], index: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from((logit - largest).exp()))
        .sum();
    f64::from(logits[index] - largest) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probability_is_that_of_the_softmax() {
        let logits = [1.0f32, 2.0, 3.0, -1.0];
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        for (index, &logit) in logits.iter().enumerate() {
            let expected = (f64::from(logit).exp() / sum).ln();
            assert!((log_probability(&logits, index) - expected).abs() < 1e-6);
        }
    }
}
