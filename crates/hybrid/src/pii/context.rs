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

/// True if one of `words`, given in small letters, begins a word near `range`; long ones may also stand inside a compound.
pub(crate) fn nearby(text: &str, range: Range<usize>, words: &[&str]) -> bool {
    let from = floor(text, range.start.saturating_sub(BEFORE));
    let to = floor(text, (range.end + AFTER).min(text.len()));
    [&text[from..range.start], &text[range.end.min(to)..to]]
        .iter()
        .any(|side| !side.is_empty() && mentions(side, words))
}

fn mentions(side: &str, words: &[&str]) -> bool {
    let bytes = side.as_bytes();
    let mut inside = false;
    for (at, byte) in bytes.iter().enumerate() {
        let letter = byte.is_ascii_alphanumeric() || *byte >= 0x80;
        if letter
            && !inside
            && words
                .iter()
                .any(|word| is_word_at(bytes, at, word.as_bytes()))
        {
            return true;
        }
        inside = letter;
    }
    // Compounds and scripts without blanks; rare enough to search for at leisure.
    let compounds = || {
        words
            .iter()
            .filter(|word| word.len() > 8 || !word.is_ascii())
    };
    compounds().next().is_some() && {
        let side = side.to_lowercase();
        compounds().any(|word| side.contains(word))
    }
}

/// True if `word` stands at `at`. Short words must end there: «id» is not in «idea».
fn is_word_at(bytes: &[u8], at: usize, word: &[u8]) -> bool {
    // Most words differ in the first letter, which is cheaper to compare than a slice.
    if !word
        .first()
        .is_some_and(|first| first.eq_ignore_ascii_case(&bytes[at]))
    {
        return false;
    }
    let end = at + word.len();
    bytes
        .get(at..end)
        .is_some_and(|part| part.eq_ignore_ascii_case(word))
        && (word.len() > 4 || !bytes.get(end).is_some_and(u8::is_ascii_alphanumeric))
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
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
