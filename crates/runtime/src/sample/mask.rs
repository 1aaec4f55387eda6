//! Which tokens are allowed.

/// A set of tokens that may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `token % 32` of word `token / 32`; bits from `tokens` on are 0.
    words: Vec<u32>,
    tokens: usize,
}

const BITS: usize = u32::BITS as usize;

impl TokenMask {
    /// The empty set over a vocabulary of `tokens`.
    pub fn none(tokens: usize) -> Self {
        TokenMask {
            words: vec![0; tokens.div_ceil(BITS)],
            tokens,
        }
    }

    /// The whole vocabulary of `tokens`.
    pub fn all(tokens: usize) -> Self {
        let mut mask = TokenMask::none(tokens);
        mask.set_words(&vec![u32::MAX; mask.words.len()]);
        mask
    }

    /// Takes the set from words of 32 tokens each, the lowest bit the first token; missing words are empty.
    pub fn set_words(&mut self, words: &[u32]) {
        let shared = self.words.len().min(words.len());
        self.words[..shared].copy_from_slice(&words[..shared]);
        self.words[shared..].fill(0);
        if !self.tokens.is_multiple_of(BITS)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (self.tokens % BITS)) - 1;
        }
    }

    /// Adds `token`; one outside the vocabulary is ignored.
    pub fn allow(&mut self, token: u32) {
        let token = token as usize;
        if token < self.tokens {
            self.words[token / BITS] |= 1 << (token % BITS);
        }
    }

    /// Removes `token`.
    pub fn forbid(&mut self, token: u32) {
        if let Some(word) = self.words.get_mut(token as usize / BITS) {
            *word &= !(1 << (token as usize % BITS));
        }
    }

    /// Whether `token` is in the set.
    pub fn allows(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / BITS).copied();
        word.unwrap_or(0) >> (token as usize % BITS) & 1 == 1
    }

    /// Keeps the tokens that are in `other`, too, unless there are none. Returns whether there were.
    pub(crate) fn prefer(&mut self, other: &TokenMask) -> bool {
        let words = || self.words.iter().zip(&other.words);
        let is_met = words().any(|(word, other)| word & other != 0);
        if is_met {
            self.words = words().map(|(word, other)| word & other).collect();
        }
        is_met
    }

    /// Number of tokens in the set.
    pub fn count(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokens
    }

    /// Makes every logit outside the set minus infinity.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (block, &word) in logits.chunks_mut(BITS).zip(&self.words) {
            if word == 0 {
                block.fill(f32::NEG_INFINITY);
            } else if word != u32::MAX {
                for (bit, logit) in block.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        let covered = logits.len().min(self.words.len() * BITS);
        logits[covered..].fill(f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_tokens_become_impossible() {
        for tokens in [0, 1, 31, 32, 33, 64, 100] {
            let mut mask = TokenMask::none(tokens);
            for token in (0..tokens as u32).filter(|token| token % 3 == 1) {
                mask.allow(token);
            }
            mask.allow(1000);
            let mut logits = vec![1.0; 130];
            mask.apply(&mut logits);
            for (token, &logit) in logits.iter().enumerate() {
                let allowed = token < tokens && token % 3 == 1;
                assert_eq!(logit == 1.0, allowed, "{token} of {tokens}");
                assert_eq!(mask.allows(token as u32), allowed);
            }
            assert_eq!(TokenMask::all(tokens).count(), tokens);
            mask.forbid(1);
            mask.forbid(1000);
            assert!(!mask.allows(1));
        }
    }
}
