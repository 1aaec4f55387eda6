//! Conversations that ended, kept so that the next ones that begin alike need not be computed from the start.

use ondine_runtime::backend::{Decoder, SequenceId};

/// Conversations kept at most; each costs at least a page in every layer.
const MOST: usize = 64;

/// Tokens that must be common for a reuse to pay.
const LEAST_COMMON: usize = 8;

/// Positions that a decoder takes memory for at once.
const PAGE: usize = 64;

/// Ended sequences, least recently used first, within a bound of bytes.
pub(super) struct PrefixCache {
    kept: Vec<Kept>,
    /// Bytes of all, as if none shared anything.
    bytes: u64,
    most_bytes: u64,
    per_position: u64,
}

struct Kept {
    sequence: SequenceId,
    tokens: Vec<u32>,
}

impl Kept {
    fn bytes(&self, per_position: u64) -> u64 {
        self.tokens.len().next_multiple_of(PAGE) as u64 * per_position
    }
}

impl PrefixCache {
    /// Nothing is kept yet; at most `most_bytes` will be, with `per_position` bytes for the keys and values of a token.
    pub(super) fn new(most_bytes: u64, per_position: u64) -> Self {
        PrefixCache {
            kept: Vec::new(),
            bytes: 0,
            most_bytes,
            per_position,
        }
    }

    /// Bytes that are kept; those shared with others count for each.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

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
        let kept = Kept { sequence, tokens };
        let bytes = kept.bytes(self.per_position);
        if bytes > self.most_bytes {
            decoder.stop(sequence);
            return;
        }
        while self.kept.len() >= MOST || self.bytes + bytes > self.most_bytes {
            self.drop_oldest(decoder);
        }
        self.bytes += bytes;
        self.kept.push(kept);
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
        let oldest = self.kept.remove(0);
        self.bytes -= oldest.bytes(self.per_position);
        decoder.stop(oldest.sequence);
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
