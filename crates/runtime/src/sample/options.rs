//! How a token is chosen, as the caller states it.

use super::SampleError;

/// How the next token is chosen. The settings act in this order: penalties and biases, the mask of a constraint,
/// top-k, typical, top-p, min-p, temperature. Each filter sees what the ones before it kept, with probabilities that
/// add up to 1 again, at temperature 1.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Logits are divided by it before the draw; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together have this probability; 1 keeps all. (Holtzman et al., "The curious
    /// case of neural text degeneration", 2020.)
    pub top_p: f32,
    /// Keep tokens that are at least `min_p` times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the expected one and that together have this probability; 1 keeps
    /// all. (Meister et al., "Locally typical sampling", 2023.)
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred; 1 does nothing. (Keskar et al.,
    /// "CTRL", 2019.)
    pub repeat_penalty: f32,
    /// Subtracted from a token's logit once for each time it occurred.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit if it occurred.
    pub presence_penalty: f32,
    /// Tokens that the penalties look back on, the prompt's included; `usize::MAX` looks back on all.
    pub penalty_window: usize,
    /// Added to the logits of single tokens; minus infinity forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Each filter keeps at least that many tokens; at least 1.
    pub min_keep: usize,
    /// Seed of the draws: the same seed, model and prompt give the same text on every machine.
    pub seed: u64,
    /// Report this many of the likeliest tokens, and the log-probability of the chosen one; 0 reports neither.
    pub top_logprobs: usize,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        SamplingOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            logit_bias: Vec::new(),
            min_keep: 1,
            seed: 0,
            top_logprobs: 0,
        }
    }
}

impl SamplingOptions {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        SamplingOptions {
            temperature: 0.0,
            ..SamplingOptions::default()
        }
    }

    /// A seed that differs from run to run, for callers that do not want the same text again.
    pub fn random_seed() -> u64 {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(std::time::SystemTime::now())
    }

    /// Whether the values make sense.
    ///
    /// # Errors
    /// [`SampleError::Option`] names the first that does not.
    pub fn validate(&self) -> Result<(), SampleError> {
        let number = |name, value: f32, least: f32, most: f32, range| {
            if value >= least && value <= most {
                Ok(())
            } else {
                Err(SampleError::Option { name, value, range })
            }
        };
        const MOST: f32 = f32::MAX;
        number("temperature", self.temperature, 0.0, MOST, "0 or more")?;
        number("top_p", self.top_p, 0.0, 1.0, "between 0 and 1")?;
        number("min_p", self.min_p, 0.0, 1.0, "between 0 and 1")?;
        number("typical_p", self.typical_p, 0.0, 1.0, "between 0 and 1")?;
        let tiny = f32::MIN_POSITIVE;
        number("repeat_penalty", self.repeat_penalty, tiny, MOST, "above 0")?;
        let finite = "a finite number";
        number(
            "frequency_penalty",
            self.frequency_penalty,
            -MOST,
            MOST,
            finite,
        )?;
        number(
            "presence_penalty",
            self.presence_penalty,
            -MOST,
            MOST,
            finite,
        )?;
        for &(_, bias) in &self.logit_bias {
            let range = "a finite number or minus infinity";
            number("logit_bias", bias, f32::NEG_INFINITY, MOST, range)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_in_one_sentence() {
        let changes: [fn(&mut SamplingOptions); 9] = [
            |o| o.temperature = -0.1,
            |o| o.temperature = f32::NAN,
            |o| o.temperature = f32::INFINITY,
            |o| o.top_p = 1.5,
            |o| o.min_p = -0.5,
            |o| o.typical_p = f32::NAN,
            |o| o.repeat_penalty = 0.0,
            |o| o.presence_penalty = f32::INFINITY,
            |o| o.logit_bias = vec![(1, f32::INFINITY)],
        ];
        for change in changes {
            let mut options = SamplingOptions::default();
            options.validate().unwrap();
            change(&mut options);
            let message = options.validate().unwrap_err().to_string();
            assert!(
                message.contains("must be") && !message.contains('\n'),
                "{message}"
            );
        }
        let mut options = SamplingOptions::greedy();
        options.logit_bias = vec![(1, f32::NEG_INFINITY)];
        options.validate().unwrap();
    }
}
