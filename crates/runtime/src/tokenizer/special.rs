//! Finding special tokens in raw text.

use std::collections::BTreeMap;
use std::ops::Range;

use super::vocabulary::{Kind, Vocabulary};

/// A stretch of the text to encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    /// Bytes that hold no special token.
    Text(Range<usize>),
    /// A special token.
    Token(u32),
}

/// Which of several overlapping tokens wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precedence {
    /// The longest token anywhere in the text, then the next longest in what is left (GGUF models).
    Longest,
    /// The leftmost, and the longest of those that start there (Hugging Face tokenizers).
    Leftmost,
}

/// Looks for a set of tokens.
pub(super) struct SpecialTokens {
    /// Sorted by text.
    ids: Vec<u32>,
    /// Range of `ids` by first byte; shape [256].
    by_first_byte: Vec<Range<u32>>,
    precedence: Precedence,
}

/// A token of more bytes than this is not looked for; published ones have fewer than a hundred.
const LONGEST: usize = 1 << 10;
/// Matches held at once; beyond that only the longest at each position counts.
const MOST_MATCHES: usize = 1 << 22;

#[derive(Debug, Clone, Copy)]
struct Match {
    start: usize,
    length: usize,
    id: u32,
}

impl SpecialTokens {
    /// The tokens of `vocabulary` with a bit of `kinds` and none of `except`.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        kinds: Kind,
        except: Kind,
        precedence: Precedence,
    ) -> Self {
        let text = |id: &u32| vocabulary.text(*id).unwrap_or_default();
        let mut ids: Vec<u32> = vocabulary
            .ids_of_kind(kinds)
            .filter(|&id| !vocabulary.kind(id).any(except) && text(&id).len() <= LONGEST)
            .collect();
        ids.sort_unstable_by(|a, b| text(a).cmp(text(b)));
        let mut by_first_byte = vec![0..0; 256];
        for (position, id) in ids.iter().enumerate() {
            let range: &mut Range<u32> = &mut by_first_byte[usize::from(text(id)[0])];
            if range.is_empty() {
                range.start = position as u32;
            }
            range.end = position as u32 + 1;
        }
        SpecialTokens { ids, by_first_byte, precedence }
    }

    /// Cuts `text` into special tokens and the text between them.
    pub(super) fn partition(&self, vocabulary: &Vocabulary, text: &[u8]) -> Vec<Fragment> {
        if text.is_empty() {
            return Vec::new();
        }
        let taken = if self.ids.is_empty() {
            BTreeMap::new()
        } else {
            match self.precedence {
                Precedence::Longest => self.take_longest(vocabulary, text),
                Precedence::Leftmost => self.take_leftmost(vocabulary, text),
            }
        };
        let mut fragments = Vec::with_capacity(taken.len() * 2 + 1);
        let mut start = 0;
        for (from, (to, id)) in taken {
            if from > start {
                fragments.push(Fragment::Text(start..from));
            }
            fragments.push(Fragment::Token(id));
            start = to;
        }
        if start < text.len() {
            fragments.push(Fragment::Text(start..text.len()));
        }
        fragments
    }

    fn take_longest(&self, vocabulary: &Vocabulary, text: &[u8]) -> BTreeMap<usize, (usize, u32)> {
        let mut matches = Vec::new();
        for start in 0..text.len() {
            let crowded = matches.len() >= MOST_MATCHES;
            let mut longest = None;
            self.matches_at(vocabulary, text, start, |found| {
                if !crowded {
                    matches.push(found);
                }
                longest = Some(found);
            });
            if crowded {
                matches.extend(longest);
            }
        }
        matches.sort_unstable_by_key(|found| (usize::MAX - found.length, found.id, found.start));
        let mut taken = BTreeMap::new();
        for found in matches {
            let end = found.start + found.length;
            let before = taken.range(..end).next_back();
            let floor = before.map_or(0, |(_, &(to, _))| to);
            if floor > found.start {
                continue;
            }
            let ceiling = taken.range(end..).next().map_or(text.len(), |(&from, _)| from);
            let range = strip(vocabulary.kind(found.id), text, floor..ceiling, found.start..end);
            taken.insert(range.start, (range.end, found.id));
        }
        taken
    }

    fn take_leftmost(&self, vocabulary: &Vocabulary, text: &[u8]) -> BTreeMap<usize, (usize, u32)> {
        let mut taken = BTreeMap::new();
        let (mut start, mut floor) = (0, 0);
        while start < text.len() {
            let mut longest = None;
            self.matches_at(vocabulary, text, start, |found| longest = Some(found));
            let Some(found) = longest else {
                start += 1;
                continue;
            };
            let end = start + found.length;
            let range = strip(vocabulary.kind(found.id), text, floor..text.len(), start..end);
            taken.insert(range.start, (range.end, found.id));
            (start, floor) = (range.end, range.end);
        }
        taken
    }

    /// Reports the tokens that start at `start`, shortest first, by narrowing the sorted list.
    fn matches_at(
        &self,
        vocabulary: &Vocabulary,
        text: &[u8],
        start: usize,
        mut found: impl FnMut(Match),
    ) {
        let range = &self.by_first_byte[usize::from(text[start])];
        let mut ids = &self.ids[range.start as usize..range.end as usize];
        let mut length = 1;
        while let Some(&first) = ids.first() {
            let piece = |id: u32| vocabulary.text(id).unwrap_or_default();
            if piece(first).len() == length {
                found(Match { start, length, id: first });
            }
            let Some(&next) = text.get(start + length) else { return };
            let low = ids.partition_point(|&id| piece(id).get(length).is_none_or(|&byte| byte < next));
            ids = &ids[low..];
            let high = ids.partition_point(|&id| piece(id).get(length) == Some(&next));
            ids = &ids[..high];
            length += 1;
        }
    }
}

/// Widens a match over the whitespace that its token swallows, within `free`.
fn strip(kind: Kind, text: &[u8], free: Range<usize>, found: Range<usize>) -> Range<usize> {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let (mut start, mut end) = (found.start, found.end);
    if kind.any(Kind::STRIP_LEFT) {
        start -= text[free.start..start].iter().rev().take_while(|byte| space(byte)).count();
    }
    if kind.any(Kind::STRIP_RIGHT) {
        end += text[end..free.end].iter().take_while(|byte| space(byte)).count();
    }
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(tokens: &[(&str, Kind)], precedence: Precedence, text: &str) -> Vec<Fragment> {
        let kinds = tokens.iter().map(|token| token.1).collect();
        let texts = tokens.iter().map(|token| token.0.as_bytes());
        let vocabulary = Vocabulary::new(texts, kinds).unwrap();
        SpecialTokens::new(&vocabulary, Kind::MATCHED, Kind::NONE, precedence)
            .partition(&vocabulary, text.as_bytes())
    }

    #[test]
    fn longest_token_wins_anywhere() {
        let tokens = [("<a>", Kind::CONTROL), ("<a><b", Kind::CONTROL), ("b><long>", Kind::CONTROL)];
        assert_eq!(
            partition(&tokens, Precedence::Longest, "x<a><b><long>"),
            [Fragment::Text(0..1), Fragment::Token(0), Fragment::Text(4..5), Fragment::Token(2)]
        );
        assert_eq!(
            partition(&tokens, Precedence::Leftmost, "x<a><b><long>"),
            [Fragment::Text(0..1), Fragment::Token(1), Fragment::Text(6..13)]
        );
    }

    #[test]
    fn tokens_swallow_whitespace_as_their_kind_says() {
        let tokens = [
            ("<l>", Kind::CONTROL.with(Kind::STRIP_LEFT)),
            ("<r>", Kind::CONTROL.with(Kind::STRIP_RIGHT)),
        ];
        for precedence in [Precedence::Longest, Precedence::Leftmost] {
            assert_eq!(
                partition(&tokens, precedence, "a \n<l> b <r>\t c"),
                [
                    Fragment::Text(0..1),
                    Fragment::Token(0),
                    Fragment::Text(6..9),
                    Fragment::Token(1),
                    Fragment::Text(14..15)
                ]
            );
        }
    }

    #[test]
    fn repeated_characters_split_from_the_left() {
        let tokens = [("\n\n", Kind::USER_DEFINED), ("\n\n\n", Kind::USER_DEFINED)];
        for precedence in [Precedence::Longest, Precedence::Leftmost] {
            assert_eq!(
                partition(&tokens, precedence, "\n\n\n\n\n\n\n\n."),
                [Fragment::Token(1), Fragment::Token(1), Fragment::Token(0), Fragment::Text(8..9)]
            );
        }
    }
}
