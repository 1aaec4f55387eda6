//! A user's own words: names of people, projects and places that must not leave.

use super::Entity;
use super::engine::Hit;
use super::recognizer::is_word;
use super::scanner::ScanError;
use aho_corasick::{AhoCorasick, MatchKind};

/// Words and phrases that count as `entity` wherever they stand as whole words, in capitals or not.
#[derive(Debug, Clone)]
pub struct Dictionary {
    entity: Entity,
    words: AhoCorasick,
}

impl Dictionary {
    /// Most words of one dictionary.
    pub const MAX_WORDS: usize = 1_000_000;
    /// Longest word or phrase, in bytes.
    pub const MAX_LENGTH: usize = 256;

    /// A dictionary of `words`; blank ones are left out.
    ///
    /// # Errors
    /// [`ScanError::Dictionary`] if there are too many, or one is too long.
    pub fn new<W: AsRef<str>>(
        entity: Entity,
        words: impl IntoIterator<Item = W>,
    ) -> Result<Self, ScanError> {
        let lowered: Vec<String> = words
            .into_iter()
            .map(|word| fold_case(word.as_ref().trim()))
            .filter(|word| !word.is_empty())
            .take(Self::MAX_WORDS + 1)
            .collect();
        let refuse = |reason: &str| ScanError::Dictionary {
            entity: entity.to_string(),
            reason: reason.to_string(),
        };
        if lowered.len() > Self::MAX_WORDS {
            return Err(refuse("more than 1,000,000 words"));
        }
        if lowered.iter().any(|word| word.len() > Self::MAX_LENGTH) {
            return Err(refuse("a word is longer than 256 bytes"));
        }
        let words = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&lowered)
            .map_err(|error| refuse(&error.to_string()))?;
        Ok(Self { entity, words })
    }

    pub(crate) fn find(&self, text: &str, wanted: &dyn Fn(&Entity) -> bool, hits: &mut Vec<Hit>) {
        if !wanted(&self.entity) {
            return;
        }
        let lowered = fold_case(text);
        for found in self.words.find_iter(&lowered) {
            let before = text[..found.start()].chars().next_back();
            let after = text[found.end()..].chars().next();
            if !before.is_some_and(is_word) && !after.is_some_and(is_word) {
                hits.push(Hit {
                    entity: self.entity.clone(),
                    start: found.start(),
                    end: found.end(),
                    score: 1.0,
                    context: &[],
                });
            }
        }
    }
}

/// Small letters where that does not change a character's length, so that offsets stay true.
fn fold_case(text: &str) -> String {
    text.chars()
        .map(|c| {
            let mut lower = c.to_lowercase();
            match (lower.next(), lower.next()) {
                (Some(lower), None) if lower.len_utf8() == c.len_utf8() => lower,
                _ => c,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_of_any_case() {
        let dictionary =
            Dictionary::new(Entity::named("PROJECT"), ["Blue Heron", "Ärger", ""]).unwrap();
        let mut hits = Vec::new();
        dictionary.find("BLUE HERON, blue herons, ärger!", &|_| true, &mut hits);
        let found: Vec<_> = hits.iter().map(|hit| (hit.start, hit.end)).collect();
        assert_eq!(found, [(0, 10), (25, 31)]);
        assert!(Dictionary::new(Entity::named("X"), ["a".repeat(300)]).is_err());
    }
}
