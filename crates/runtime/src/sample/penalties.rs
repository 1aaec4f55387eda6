//! Penalties for tokens that occurred lately.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::SamplingOptions;

/// The last tokens, as many as the penalties look back on.
#[derive(Debug, Clone, Default)]
pub(super) struct RecentTokens {
    window: usize,
    tokens: VecDeque<u32>,
    counts: HashMap<u32, u32, foldhash::fast::FixedState>,
}

impl RecentTokens {
    /// For these options; holds nothing if they ask for no penalty.
    pub(super) fn new(options: &SamplingOptions) -> Self {
        let penalises = options.repeat_penalty != 1.0
            || options.frequency_penalty != 0.0
            || options.presence_penalty != 0.0;
        RecentTokens {
            window: if penalises { options.penalty_window } else { 0 },
            ..RecentTokens::default()
        }
    }

    pub(super) fn push(&mut self, token: u32) {
        if self.window == 0 {
            return;
        }
        if self.tokens.len() == self.window
            && let Some(oldest) = self.tokens.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.tokens.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Lowers the logits of the tokens held.
    pub(super) fn apply(&self, options: &SamplingOptions, logits: &mut [f32]) {
        for (&token, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                lower(options, count, logit);
            }
        }
    }

    /// Lowers the logits of the tokens held, where `logits[i]` is that of token `tokens[i]`.
    pub(super) fn apply_to(&self, options: &SamplingOptions, tokens: &[u32], logits: &mut [f32]) {
        if self.counts.is_empty() {
            return;
        }
        for (token, logit) in tokens.iter().zip(logits) {
            if let Some(&count) = self.counts.get(token) {
                lower(options, count, logit);
            }
        }
    }

    /// The tokens held.
    pub(super) fn tokens(&self) -> impl Iterator<Item = u32> {
        self.counts.keys().copied()
    }

    /// Whether tokens are held at all.
    pub(super) fn is_used(&self) -> bool {
        self.window > 0
    }
}

fn lower(options: &SamplingOptions, count: u32, logit: &mut f32) {
    *logit = if *logit > 0.0 {
        *logit / options.repeat_penalty
    } else {
        *logit * options.repeat_penalty
    };
    *logit -= count as f32 * options.frequency_penalty + options.presence_penalty;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let options = SamplingOptions {
            repeat_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            penalty_window: 3,
            ..SamplingOptions::default()
        };
        let mut recent = RecentTokens::new(&options);
        for token in [0, 1, 2, 1, 99] {
            recent.push(token);
        }
        // 0 and the first 1 are forgotten; 99 is no token of these logits.
        let mut logits = [4.0, 4.0, -4.0];
        recent.apply(&options, &mut logits);
        assert_eq!(logits, [4.0, 1.25, -8.75]);
        recent.push(1);
        let mut logits = [4.0, 4.0, -4.0];
        recent.apply(&options, &mut logits);
        assert_eq!(logits, [4.0, 0.75, -4.0]);
    }

    #[test]
    fn without_penalties_nothing_is_kept() {
        let mut recent = RecentTokens::new(&SamplingOptions::default());
        recent.push(1);
        assert!(recent.tokens.is_empty());
    }
}
