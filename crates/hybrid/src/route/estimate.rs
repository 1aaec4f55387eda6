//! Time and length, estimated before they are known.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// The last measurements of something and their quantiles.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MovingQuantile {
    recent: VecDeque<f32>,
}

impl MovingQuantile {
    /// Measurements that are remembered.
    const MEMORY: usize = 64;

    /// Adds a measurement; one that is not finite is left out.
    pub fn add(&mut self, value: f32) {
        if value.is_finite() {
            self.recent.push_back(value);
            while self.recent.len() > Self::MEMORY {
                self.recent.pop_front();
            }
        }
    }

    /// How many measurements are remembered.
    pub fn len(&self) -> usize {
        self.recent.len()
    }

    /// True before the first measurement.
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }

    /// The value that a share `q` (0 to 1) of the measurements does not exceed; `None` without measurements.
    pub fn quantile(&self, q: f32) -> Option<f32> {
        let mut sorted: Vec<f32> = self.recent.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let place = (q.clamp(0.0, 1.0) * (sorted.len().max(1) - 1) as f32).round() as usize;
        sorted.get(place).copied()
    }
}

/// What a candidate takes for an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyProfile {
    /// Time until work begins: queue and network, in milliseconds, at the 95th percentile.
    pub start_ms: f32,
    /// Time for a prompt token, in milliseconds.
    pub prompt_ms_per_token: f32,
    /// Time for an answer token, in milliseconds.
    pub answer_ms_per_token: f32,
}

impl LatencyProfile {
    /// Assumed of the device before anything was measured.
    pub const ASSUMED_DEVICE: Self = Self {
        start_ms: 20.0,
        prompt_ms_per_token: 2.0,
        answer_ms_per_token: 20.0,
    };
    /// Assumed of a provider before anything was measured.
    pub const ASSUMED_PROVIDER: Self = Self {
        start_ms: 600.0,
        prompt_ms_per_token: 0.1,
        answer_ms_per_token: 15.0,
    };

    /// The time of a whole answer, in milliseconds. `load` is how many requests share the place, at least 1.
    pub fn answer_ms(&self, prompt_tokens: u32, answer_tokens: u32, load: f32) -> f32 {
        let work = self.prompt_ms_per_token * prompt_tokens as f32
            + self.answer_ms_per_token * answer_tokens as f32;
        self.start_ms + work * load.max(1.0)
    }
}

/// How long answers were, by class of task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputLengths {
    /// Counts of answers of up to 2^i tokens, by class.
    classes: BTreeMap<String, [u32; Self::BUCKETS]>,
}

impl OutputLengths {
    const BUCKETS: usize = 16;
    /// Classes that are remembered; further ones count as no class.
    const MAX_CLASSES: usize = 256;
    /// Length assumed for a class without answers, and its upper quantiles.
    const UNKNOWN: (u32, u32) = (200, 600);
    /// Answers before a class's own lengths count.
    const ENOUGH: u32 = 5;

    /// Adds an answer of `tokens`.
    pub fn add(&mut self, class: &str, tokens: u32) {
        if self.classes.contains_key(class) || self.classes.len() < Self::MAX_CLASSES {
            let bucket = (32 - tokens.max(1).leading_zeros() as usize).min(Self::BUCKETS - 1);
            let counts = self.classes.entry(class.to_string()).or_default();
            counts[bucket] = counts[bucket].saturating_add(1);
        }
    }

    /// Tokens that a share `q` of the answers of `class` does not exceed, rounded up to a power of two.
    pub fn quantile(&self, class: &str, q: f32) -> u32 {
        let Some(counts) = self
            .classes
            .get(class)
            .filter(|counts| counts.iter().sum::<u32>() >= Self::ENOUGH)
        else {
            return if q > 0.5 {
                Self::UNKNOWN.1
            } else {
                Self::UNKNOWN.0
            };
        };
        let wanted = (q.clamp(0.0, 1.0) * counts.iter().sum::<u32>() as f32).ceil() as u32;
        let mut sum = 0;
        for (bucket, count) in counts.iter().enumerate() {
            sum += count;
            if sum >= wanted.max(1) {
                return 1 << bucket;
            }
        }
        1 << (Self::BUCKETS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_follow_the_measurements() {
        let mut moving = MovingQuantile::default();
        assert_eq!(moving.quantile(0.5), None);
        (1..=200).for_each(|value| moving.add(value as f32));
        moving.add(f32::NAN);
        assert_eq!(moving.quantile(1.0), Some(200.0));
        assert_eq!(moving.quantile(0.0), Some(137.0));
        let mut lengths = OutputLengths::default();
        assert_eq!(lengths.quantile("mail", 0.9), 600);
        (0..10).for_each(|_| lengths.add("mail", 100));
        assert_eq!(lengths.quantile("mail", 0.9), 128);
    }
}
