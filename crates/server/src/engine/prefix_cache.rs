//! Conversations that ended, kept so that the next ones that begin alike need not be computed from the start.

use ondine_runtime::backend::{Decoder, SequenceId};

/// Conversations kept at most; each costs at least a page in every layer.
const MOST: usize = 64;

/// Tokens that must be common for a reuse to pay.
const LEAST_COMMON: usize = 8;

/// Ended sequences, least recently used first.
#[derive(Default)]
pub(super) struct PrefixCache {
    kept: Vec<Kept>,
}

struct Kept {
    sequence: SequenceId,
    tokens: Vec<u32>,
}

impl PrefixCache {
    /// Keeps a sequence that holds `tokens`. One that holds a beginning of them is superfluous then.
    pub(super) fn keep(
        &mut self,
        decoder: &mut dyn Decoder,
        sequence: SequenceId,
        tokens: Vec<u32>,
    ) {
        if tokens.len() < LEAST_COMMON || self.kept.iter().any(|kept| kept.tokens == tokens) {
            decoder.stop(sequence);
            return;
        }
        if self.kept.len() == MOST {
            self.drop_oldest(decoder);
        }
        self.kept.push(Kept { sequence, tokens });
    }

    /// A sequence that holds a beginning of `prompt`, but not all of it, and how many tokens it holds.
    ///
    /// A kept sequence is cut back to what is common; where the decoder cannot cut that far back (a sliding window), the next
    /// best is tried.
    pub(super) fn begin(
        &mut self,
        decoder: &mut dyn Decoder,
        running: &[(SequenceId, &[u32])],
        prompt: &[u32],
    ) -> (SequenceId, usize) {
        let mut candidates: Vec<(usize, SequenceId)> = self
            .kept
            .iter()
            .map(|kept| (common(&kept.tokens, prompt), kept.sequence))
            .chain(
                running
                    .iter()
                    .map(|(sequence, tokens)| (common(tokens, prompt), *sequence)),
            )
            .filter(|(common, _)| *common >= LEAST_COMMON)
            .collect();
        candidates.sort_by_key(|(common, _)| std::cmp::Reverse(*common));
        for (common, source) in candidates.into_iter().take(4) {
            let Ok(fork) = decoder.fork(source) else {
                continue;
            };
            let held = decoder.truncate(fork, common);
            if held > 0 {
                self.touch(source);
                return (fork, held);
            }
            decoder.stop(fork);
        }
        (decoder.start(), 0)
    }

    /// Tokens of `prompt` that some kept sequence holds.
    pub(super) fn best_common(&self, prompt: &[u32]) -> usize {
        let commons = self.kept.iter().map(|kept| common(&kept.tokens, prompt));
        commons.max().unwrap_or(0)
    }

    /// Forgets the least recently used; false when there is none.
    pub(super) fn drop_oldest(&mut self, decoder: &mut dyn Decoder) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        decoder.stop(self.kept.remove(0).sequence);
        true
    }

    fn touch(&mut self, sequence: SequenceId) {
        if let Some(index) = self.kept.iter().position(|kept| kept.sequence == sequence) {
            let kept = self.kept.remove(index);
            self.kept.push(kept);
        }
    }
}

/// Tokens at the beginning that `held` and `prompt` share, at least one of `prompt` left over: its scores are needed.
pub(super) fn common(held: &[u32], prompt: &[u32]) -> usize {
    let same = held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    same.min(prompt.len().saturating_sub(1))
}
