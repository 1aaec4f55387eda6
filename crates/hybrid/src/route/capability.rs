//! How likely a small and a large model answer a prompt well: a linear model over hashed words and length.
//!
//! Ridge regression of the recorded outcomes on the words of the prompt (hashed into [`WORDS`] buckets, scaled to unit length) and
//! the logarithm of its length. The length is not penalised: on subjects that the training never saw it is all that is left. The
//! difference of the two predictions is what a request gains by going to the large model.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Buckets that words are hashed into.
const WORDS: usize = 1024;
/// Words, length, constant.
const FEATURES: usize = WORDS + 2;
/// Weight of the penalty on word weights; chosen on the training outcomes, see `docs/routing.md`.
const PENALTY: f64 = 60.0;
/// Longest prompt looked at, in bytes: what decides is said by then, and the time stays bounded.
const MAX_PROMPT: usize = 8 << 10;

/// A prompt and whether a small and a large model answered it well.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The prompt.
    pub prompt: String,
    /// True if the small model was right.
    pub weak: bool,
    /// True if the large model was right.
    pub strong: bool,
    /// What the prompt belongs to, for evaluations that hold a subject back.
    #[serde(default)]
    pub bench: String,
}

/// Which of the two trained models a candidate is likened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Small.
    Weak,
    /// Large.
    Strong,
}

/// Why there is no model.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ModelError {
    /// Too few outcomes, or all alike.
    #[error("the outcomes do not determine a model: give some hundred different prompts")]
    Undetermined,
    /// A file that is no model.
    #[error("this is no capability model: {0}")]
    Format(String),
}

/// The learnt weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilityModel {
    /// [`FEATURES`] weights of the small model's success.
    weak: Vec<f32>,
    /// [`FEATURES`] weights of the large model's success.
    strong: Vec<f32>,
}

impl CapabilityModel {
    /// The model that ships with the program, trained on RouteLLM's recorded outcomes (MMLU, GSM8K).
    ///
    /// # Errors
    /// [`ModelError::Format`] if the program was built with a broken file.
    pub fn shipped() -> Result<Self, ModelError> {
        Self::from_json(include_str!("../../data/capability.json"))
    }

    /// Reads a model.
    ///
    /// # Errors
    /// [`ModelError::Format`].
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        let model: Self =
            serde_json::from_str(text).map_err(|error| ModelError::Format(error.to_string()))?;
        let sound = [&model.weak, &model.strong].iter().all(|weights| {
            weights.len() == FEATURES && weights.iter().all(|weight| weight.is_finite())
        });
        if sound {
            Ok(model)
        } else {
            Err(ModelError::Format(format!(
                "it needs twice {FEATURES} finite weights"
            )))
        }
    }

    /// Learns from outcomes: the normal equations of ridge regression, solved by Cholesky's method in double precision.
    ///
    /// # Errors
    /// [`ModelError::Undetermined`].
    pub fn train<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Result<Self, ModelError> {
        let mut gram = vec![0.0_f64; FEATURES * FEATURES];
        let mut right = [vec![0.0_f64; FEATURES], vec![0.0_f64; FEATURES]];
        for outcome in outcomes {
            let features = features(&outcome.prompt);
            for &(row, a) in &features {
                for &(column, b) in &features {
                    gram[row * FEATURES + column] += f64::from(a) * f64::from(b);
                }
                right[0][row] += f64::from(a) * f64::from(u8::from(outcome.weak));
                right[1][row] += f64::from(a) * f64::from(u8::from(outcome.strong));
            }
        }
        for index in 0..FEATURES {
            gram[index * FEATURES + index] += if index < WORDS { PENALTY } else { 1e-3 };
        }
        cholesky(&mut gram, FEATURES)?;
        let [weak, strong] = right.map(|mut right| {
            substitute(&gram, FEATURES, &mut right);
            right
                .into_iter()
                .map(|weight| ((weight * 1e5).round() / 1e5) as f32)
                .collect()
        });
        Ok(Self { weak, strong })
    }

    /// The probability that a model of this tier answers well, 0 to 1.
    pub fn quality(&self, prompt: &str, tier: Tier) -> f32 {
        let [weak, strong] = self.qualities(prompt);
        match tier {
            Tier::Weak => weak,
            Tier::Strong => strong,
        }
    }

    /// As [`CapabilityModel::quality`] for both tiers, the small one first, reading the prompt once.
    pub fn qualities(&self, prompt: &str) -> [f32; 2] {
        self.scores(prompt).map(|score| score.clamp(0.0, 1.0))
    }

    /// What the large model adds, to order prompts by.
    pub fn gain(&self, prompt: &str) -> f32 {
        let [weak, strong] = self.scores(prompt);
        strong - weak
    }

    fn scores(&self, prompt: &str) -> [f32; 2] {
        let features = features(prompt);
        [&self.weak, &self.strong].map(|weights| {
            features
                .iter()
                .map(|(index, value)| weights[*index] * value)
                .sum()
        })
    }
}

/// How a model on this device differs from the tier that it is likened to: learnt from the user's own outcomes, one for each
/// model and quantisation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    offset: f32,
    count: u32,
}

impl Calibration {
    /// Outcomes after which a new one still counts: a model that changes is learnt again.
    const MEMORY: u32 = 200;

    /// Starts from a known difference, for example measured by an evaluation of the quantised model.
    pub fn starting_at(offset: f32) -> Self {
        Self {
            offset: offset.clamp(-1.0, 1.0),
            count: 20,
        }
    }

    /// The corrected probability.
    pub fn apply(&self, predicted: f32) -> f32 {
        (predicted + self.offset).clamp(0.0, 1.0)
    }

    /// Learns from one outcome: was the answer, predicted to be good with this probability, good?
    pub fn learn(&mut self, predicted: f32, good: bool) {
        self.count = (self.count + 1).min(Self::MEMORY);
        let error = f32::from(u8::from(good)) - self.apply(predicted);
        // The first few outcomes say little.
        self.offset = (self.offset + error / (self.count as f32 + 10.0)).clamp(-1.0, 1.0);
    }
}

/// The features that are not zero, with their places.
fn features(prompt: &str) -> Vec<(usize, f32)> {
    let end = (0..=prompt.len().min(MAX_PROMPT))
        .rev()
        .find(|at| prompt.is_char_boundary(*at))
        .unwrap_or(0);
    let text = &prompt[..end];
    let mut seen = [false; WORDS];
    let mut buckets = Vec::with_capacity(256);
    let mut add = |word: &[u8]| {
        let bucket = (fnv1a(word) % WORDS as u64) as usize;
        if !std::mem::replace(&mut seen[bucket], true) {
            buckets.push(bucket);
        }
    };
    let bytes = text.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        let start = index;
        if bytes[index].is_ascii_alphabetic() {
            while bytes.get(index).is_some_and(u8::is_ascii_alphabetic) {
                index += 1;
            }
            add(&bytes[start..index]);
        } else {
            index += text[index..].chars().next().map_or(1, char::len_utf8);
            if !bytes[start].is_ascii_whitespace() {
                add(&bytes[start..index]);
            }
        }
    }
    let scale = 1.0 / (buckets.len().max(1) as f32).sqrt();
    let mut features: Vec<(usize, f32)> =
        buckets.into_iter().map(|bucket| (bucket, scale)).collect();
    // Centred on a typical question so that the constant keeps its meaning.
    features.push((WORDS, ((prompt.len() + 1) as f32).ln() - 6.0));
    features.push((WORDS + 1, 1.0));
    features
}

/// Fowler, Noll and Vo's hash 1a of the small letters.
fn fnv1a(word: &[u8]) -> u64 {
    word.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Replaces the lower triangle of a positive definite matrix by its Cholesky factor.
fn cholesky(matrix: &mut [f64], size: usize) -> Result<(), ModelError> {
    for row in 0..size {
        for column in 0..=row {
            let (a, b) = (row * size, column * size);
            let dot: f64 = (0..column).map(|k| matrix[a + k] * matrix[b + k]).sum();
            let rest = matrix[a + column] - dot;
            if row == column {
                if !rest.is_finite() || rest <= 0.0 {
                    return Err(ModelError::Undetermined);
                }
                matrix[a + column] = rest.sqrt();
            } else {
                matrix[a + column] = rest / matrix[b + column];
            }
        }
    }
    Ok(())
}

/// Solves L Lᵀ x = right in place.
fn substitute(factor: &[f64], size: usize, right: &mut [f64]) {
    for row in 0..size {
        let dot: f64 = (0..row).map(|k| factor[row * size + k] * right[k]).sum();
        right[row] = (right[row] - dot) / factor[row * size + row];
    }
    for row in (0..size).rev() {
        let dot: f64 = (row + 1..size)
            .map(|k| factor[k * size + row] * right[k])
            .sum();
        right[row] = (right[row] - dot) / factor[row * size + row];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> Vec<Outcome> {
        (0..400)
            .map(|index| {
                let hard = index % 2 == 0;
                let topic = if hard {
                    "prove the theorem about integrals"
                } else {
                    "name the capital city"
                };
                Outcome {
                    prompt: format!("{topic} number {index}"),
                    weak: !hard,
                    strong: true,
                    bench: String::new(),
                }
            })
            .collect()
    }

    #[test]
    fn what_is_hard_for_the_small_model_is_learnt() {
        let model = CapabilityModel::train(&outcomes()).unwrap();
        let [hard, easy] =
            ["prove a theorem about sums", "name a capital"].map(|prompt| model.gain(prompt));
        assert!(hard > easy + 0.2, "{hard} {easy}");
        let again = CapabilityModel::from_json(&serde_json::to_string(&model).unwrap()).unwrap();
        assert_eq!(again, model);
        assert!(CapabilityModel::from_json("{\"weak\":[],\"strong\":[]}").is_err());
    }

    #[test]
    fn calibration_follows_outcomes() {
        let mut calibration = Calibration::default();
        for index in 0..300 {
            calibration.learn(0.8, index % 2 == 0);
        }
        assert!(
            (calibration.apply(0.8) - 0.5).abs() < 0.06,
            "{calibration:?}"
        );
    }
}
