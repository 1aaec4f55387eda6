//! What was learnt of providers, and what retries and hedges may still cost. Shared by all requests.

use super::Breaker;
use crate::route::MovingQuantile;
use std::collections::BTreeMap;
use std::time::Duration;

/// Bounds of retries and hedges.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthOptions {
    /// Attempts at one provider for one request.
    pub attempts: u32,
    /// Retries that a request adds to the budget that all share; at most [`HealthOptions::most_retries`] are saved up.
    pub retries_per_request: f64,
    /// Retries saved up at most.
    pub most_retries: f64,
    /// Pause before the first retry; it doubles, and half of it is drawn at random.
    pub pause: Duration,
    /// Time for the first text.
    pub first_text: Duration,
    /// Time between texts.
    pub between_texts: Duration,
    /// Share of requests that are sent twice at most.
    pub hedged: f64,
}

impl Default for HealthOptions {
    fn default() -> Self {
        HealthOptions {
            attempts: 3,
            retries_per_request: 0.2,
            most_retries: 20.0,
            pause: Duration::from_millis(200),
            first_text: Duration::from_secs(20),
            between_texts: Duration::from_secs(10),
            hedged: 0.1,
        }
    }
}

/// Breakers, budgets and times.
#[derive(Debug)]
pub struct Health {
    /// The bounds.
    pub options: HealthOptions,
    breakers: BTreeMap<String, Breaker>,
    /// Milliseconds to the first text, by place.
    first_texts: BTreeMap<String, MovingQuantile>,
    retries: f64,
    requests: u64,
    hedges: u64,
    random: u64,
}

impl Health {
    /// Nothing is known yet. `seed` makes the jitter.
    pub fn new(options: HealthOptions, seed: u64) -> Self {
        Health {
            retries: options.most_retries,
            options,
            breakers: BTreeMap::new(),
            first_texts: BTreeMap::new(),
            requests: 0,
            hedges: 0,
            random: seed | 1,
        }
    }

    /// The breaker of a place.
    pub fn breaker(&mut self, place: &str) -> &mut Breaker {
        self.breakers.entry(place.to_owned()).or_default()
    }

    /// Milliseconds to the first text that a share `q` of the last answers of a place did not exceed; none before eight answers.
    pub fn first_text_ms(&self, place: &str, q: f32) -> Option<f32> {
        let times = self
            .first_texts
            .get(place)
            .filter(|times| times.len() >= 8)?;
        times.quantile(q)
    }

    /// Requests that were sent twice, of how many.
    pub fn hedges(&self) -> (u64, u64) {
        (self.hedges, self.requests)
    }

    pub(super) fn begin(&mut self) {
        self.requests += 1;
        let saved = self.retries + self.options.retries_per_request;
        self.retries = saved.min(self.options.most_retries);
    }

    pub(super) fn note_first_text(&mut self, place: &str, time: Duration) {
        let times = self.first_texts.entry(place.to_owned()).or_default();
        times.add(time.as_secs_f32() * 1000.0);
    }

    /// Takes a retry from the budget and says how long to wait before it; none when it is used up.
    pub(super) fn retry(&mut self, attempt: u32, asked: Option<Duration>) -> Option<Duration> {
        if attempt >= self.options.attempts || self.retries < 1.0 {
            return None;
        }
        self.retries -= 1.0;
        let pause = self.options.pause * 2_u32.saturating_pow(attempt.saturating_sub(1).min(10));
        let jittered = pause / 2 + pause.mul_f64(self.next() / 2.0);
        Some(jittered.max(asked.unwrap_or_default()))
    }

    /// Takes a hedge from the budget.
    pub(super) fn hedge(&mut self) -> bool {
        let is_affordable = (self.hedges + 1) as f64 <= self.requests as f64 * self.options.hedged;
        self.hedges += u64::from(is_affordable);
        is_affordable
    }

    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}
