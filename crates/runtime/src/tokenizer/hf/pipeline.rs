//! The way of a text through a `tokenizer.json`.

use super::super::bpe::BytePair;
use super::super::special::{Fragment, Precedence, SpecialTokens};
use super::super::vocabulary::Vocabulary;
use super::AddedToken;
use super::normalizer::{self, Normalizer};
use super::steps::{Step, Words};

/// What happens to a text before the model's merges.
pub(in crate::tokenizer) struct Pipeline {
    normalizer: Vec<Normalizer>,
    steps: Vec<Step>,
    /// Tokens that are cut out of raw text.
    raw: SpecialTokens,
    /// Tokens that are cut out of normalized text.
    normalized: SpecialTokens,
}

impl Pipeline {
    pub(super) fn new(
        normalizer: Vec<Normalizer>,
        steps: Vec<Step>,
        added: &[AddedToken<'_>],
    ) -> Self {
        let tokens = |normalized| {
            added
                .iter()
                .filter(move |token| token.normalized == normalized)
        };
        let raw = tokens(false).map(|token| (token.text.as_bytes(), token.id, token.kind));
        let raw = SpecialTokens::new(raw, Precedence::Leftmost);
        let rewritten: Vec<_> = tokens(true)
            .map(|token| (normalizer::run(&normalizer, token.text), token))
            .collect();
        let rewritten = rewritten
            .iter()
            .map(|(text, token)| (text.as_bytes(), token.id, token.kind));
        Pipeline {
            raw,
            normalized: SpecialTokens::new(rewritten, Precedence::Leftmost),
            normalizer,
            steps,
        }
    }

    /// Appends the ids of `text`.
    pub(in crate::tokenizer) fn encode(
        &self,
        vocabulary: &Vocabulary,
        model: &BytePair,
        text: &str,
        parse_special: bool,
        out: &mut Vec<u32>,
    ) {
        for fragment in self.raw.partition(text.as_bytes(), parse_special) {
            let range = match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    continue;
                }
                Fragment::Text(range) => range,
            };
            let first = range.start == 0;
            // Tokens are whole characters, so what lies between them is too.
            let text = normalizer::run(&self.normalizer, text.get(range).unwrap_or_default());
            for fragment in self.normalized.partition(text.as_bytes(), parse_special) {
                match fragment {
                    Fragment::Token(id) => out.push(id),
                    Fragment::Text(range) => {
                        let first = first && range.start == 0;
                        let part = text.get(range).unwrap_or_default();
                        let words = Words::new(part, &self.steps, first);
                        model.encode_words(vocabulary, words.iter(), out);
                    }
                }
            }
        }
    }
}
