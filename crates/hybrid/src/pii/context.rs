//! Words near a finding that make it likelier.

use std::ops::Range;

/// How far before and after a finding a context word may stand, in bytes.
const BEFORE: usize = 72;
const AFTER: usize = 32;
/// What a context word adds, and the least confidence that it leaves.
const RAISE: f32 = 0.35;
const AT_LEAST: f32 = 0.4;

/// The confidence of a finding of `score`, raised if a word of `words` stands near `range`.
pub(crate) fn confidence(text: &str, range: Range<usize>, score: f32, words: &[&str]) -> f32 {
    if score < 1.0 && nearby(text, range, words) {
        (score + RAISE).clamp(AT_LEAST, 1.0)
    } else {
        score
    }
}

/// True if one of `words`, given in small letters, begins a word near `range`.
pub(crate) fn nearby(text: &str, range: Range<usize>, words: &[&str]) -> bool {
    let from = floor(text, range.start.saturating_sub(BEFORE));
    let to = floor(text, (range.end + AFTER).min(text.len()));
    let before = text[from..range.start].to_lowercase();
    let after = text[range.end.min(to)..to].to_lowercase();
    words.iter().any(|word| begins_word(&before, word) || begins_word(&after, word))
}

fn begins_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        // Short words must stand alone: «id» is not in «did» nor in «idea».
        let free_before = !text[..at].chars().next_back().is_some_and(char::is_alphanumeric);
        let free_after = !text[at + word.len()..].chars().next().is_some_and(char::is_alphanumeric);
        free_before && (word.len() > 4 || free_after) || word.len() > 6 || !word.is_ascii()
    })
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_raise_and_parts_of_words_do_not() {
        let text = "My passport is X1. I did it.";
        assert!(confidence(text, 15..17, 0.1, &["passport"]) >= 0.4);
        assert_eq!(confidence(text, 15..17, 0.1, &["id"]), 0.1);
        assert_eq!(confidence(text, 15..17, 1.0, &["passport"]), 1.0);
    }
}
