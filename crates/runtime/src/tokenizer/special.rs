//! Finding special tokens in raw text.

use std::ops::Range;

use super::unicode::{Char, MARK, Tables};
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

/// A set of tokens to look for.
pub(super) struct SpecialTokens {
    /// Sorted by text.
    entries: Vec<Entry>,
    /// Range of `entries` by first byte; shape [256].
    by_first_byte: Vec<Range<u32>>,
    precedence: Precedence,
}

struct Entry {
    text: Box<[u8]>,
    id: u32,
    kind: Kind,
}

/// A token of more bytes than this is not looked for; published ones have fewer than a hundred.
const LONGEST: usize = 1 << 10;
/// Matches held at once; beyond that only the longest at each position counts.
const MOST_MATCHES: usize = 1 << 22;

#[derive(Debug, Clone, Copy)]
struct Match {
    start: usize,
    length: usize,
    /// Index of the entry.
    entry: usize,
}

impl SpecialTokens {
    /// The tokens of `vocabulary` that are matched in text, as GGUF files mark them.
    pub(super) fn of_vocabulary(vocabulary: &Vocabulary) -> Self {
        let tokens = vocabulary
            .ids_of_kind(Kind::MATCHED)
            .filter_map(|id| Some((vocabulary.text(id)?, id, vocabulary.kind(id))));
        SpecialTokens::new(tokens, Precedence::Longest)
    }

    /// The given (text, id, kind); of equal texts the last counts.
    pub(super) fn new<'a>(
        tokens: impl Iterator<Item = (&'a [u8], u32, Kind)>,
        precedence: Precedence,
    ) -> Self {
        let mut entries: Vec<Entry> = tokens
            .filter(|(text, ..)| (1..=LONGEST).contains(&text.len()))
            .map(|(text, id, kind)| Entry {
                text: text.into(),
                id,
                kind,
            })
            .collect();
        entries.reverse();
        entries.sort_by(|a, b| a.text.cmp(&b.text));
        entries.dedup_by(|later, first| later.text == first.text);
        let mut by_first_byte = vec![0..0; 256];
        for (position, entry) in entries.iter().enumerate() {
            let range: &mut Range<u32> = &mut by_first_byte[usize::from(entry.text[0])];
            if range.start == range.end {
                range.start = position as u32;
            }
            range.end = position as u32 + 1;
        }
        SpecialTokens {
            entries,
            by_first_byte,
            precedence,
        }
    }

    /// Cuts `text` into special tokens and the text between them. Without `control_too`, the text of
    /// control tokens stays text.
    pub(super) fn partition(&self, text: &[u8], control_too: bool) -> Vec<Fragment> {
        if text.is_empty() {
            return Vec::new();
        }
        let taken = if self.entries.is_empty() {
            Vec::new()
        } else {
            match self.precedence {
                Precedence::Longest => self.take_longest(text, control_too),
                Precedence::Leftmost => self.take_leftmost(text, control_too),
            }
        };
        let mut fragments = Vec::with_capacity(taken.len() * 2 + 1);
        let mut start = 0;
        for (range, id) in taken {
            if range.start > start {
                fragments.push(Fragment::Text(start..range.start));
            }
            fragments.push(Fragment::Token(id));
            start = range.end;
        }
        if start < text.len() {
            fragments.push(Fragment::Text(start..text.len()));
        }
        fragments
    }

    fn take_longest(&self, text: &[u8], control_too: bool) -> Vec<(Range<usize>, u32)> {
        let mut matches = Vec::new();
        for start in 0..text.len() {
            let crowded = matches.len() >= MOST_MATCHES;
            let mut longest = None;
            self.matches_at(text, start, |found| {
                if !control_too && self.entries[found.entry].kind.any(Kind::SPECIAL) {
                    return;
                }
                if !crowded {
                    matches.push(found);
                }
                longest = Some(found);
            });
            if crowded {
                matches.extend(longest);
            }
        }
        let id = |found: &Match| self.entries[found.entry].id;
        matches.sort_unstable_by_key(|found| (usize::MAX - found.length, id(found), found.start));
        let mut taken = std::collections::BTreeMap::new();
        for found in matches {
            let end = found.start + found.length;
            let before = taken.range(..end).next_back();
            let floor = before.map_or(0, |(_, &(to, _))| to);
            if floor > found.start {
                continue;
            }
            let ceiling = taken.range(end..).next();
            let ceiling = ceiling.map_or(text.len(), |(&from, _)| from);
            let kind = self.entries[found.entry].kind;
            let space = |c: char| matches!(c, ' ' | '\t'..='\r');
            let range = widen(kind, text, floor..ceiling, found.start..end, space);
            taken.insert(range.start, (range.end, id(&found)));
        }
        taken
            .into_iter()
            .map(|(start, (end, id))| (start..end, id))
            .collect()
    }

    /// Searches on after the token itself, so that whitespace which it swallowed may hold the next token:
    /// the ranges may overlap, as in the reference.
    fn take_leftmost(&self, text: &[u8], control_too: bool) -> Vec<(Range<usize>, u32)> {
        let mut taken = Vec::new();
        let (mut position, mut floor) = (0, 0);
        while position < text.len() {
            let mut longest = None;
            self.matches_at(text, position, |found| longest = Some(found));
            let Some(found) = longest else {
                position += 1;
                continue;
            };
            let Entry { id, kind, .. } = self.entries[found.entry];
            let end = position + found.length;
            let word_touches = || {
                last_char(&text[..found.start]).is_some_and(is_word)
                    || first_char(&text[end..]).is_some_and(is_word)
            };
            let skipped = (!control_too && kind.any(Kind::SPECIAL))
                || (kind.any(Kind::SINGLE_WORD) && word_touches());
            if !skipped {
                let free = floor.min(found.start)..text.len();
                let range = widen(kind, text, free, found.start..end, char::is_whitespace);
                floor = range.end;
                taken.push((range, id));
            }
            position = end;
        }
        taken
    }

    /// Reports the tokens that start at `start`, shortest first, by narrowing the sorted list.
    fn matches_at(&self, text: &[u8], start: usize, mut found: impl FnMut(Match)) {
        let range = &self.by_first_byte[usize::from(text[start])];
        let mut first = range.start as usize;
        let mut entries = &self.entries[first..range.end as usize];
        let mut length = 1;
        while let Some(shortest) = entries.first() {
            if shortest.text.len() == length {
                found(Match {
                    start,
                    length,
                    entry: first,
                });
            }
            let Some(next) = text.get(start + length) else {
                return;
            };
            let byte = |entry: &Entry| entry.text.get(length).copied();
            let low = entries.partition_point(|entry| byte(entry).is_none_or(|byte| byte < *next));
            entries = &entries[low..];
            first += low;
            let high = entries.partition_point(|entry| byte(entry) == Some(*next));
            entries = &entries[..high];
            length += 1;
        }
    }
}

/// Widens a match over the whitespace that its token swallows, within `free`.
fn widen(
    kind: Kind,
    text: &[u8],
    free: Range<usize>,
    found: Range<usize>,
    space: impl Fn(char) -> bool,
) -> Range<usize> {
    let (mut start, mut end) = (found.start, found.end);
    if kind.any(Kind::STRIP_LEFT) {
        while let Some(c) = last_char(&text[free.start..start])
            && space(c)
        {
            start -= c.len_utf8();
        }
    }
    if kind.any(Kind::STRIP_RIGHT) {
        while let Some(c) = first_char(&text[end..free.end])
            && space(c)
        {
            end += c.len_utf8();
        }
    }
    start..end
}

/// The first character, unless the text starts with damage.
fn first_char(text: &[u8]) -> Option<char> {
    let text = &text[..text.len().min(4)];
    text.utf8_chunks().next()?.valid().chars().next()
}

/// The last character, unless the text ends in damage.
fn last_char(text: &[u8]) -> Option<char> {
    let start = (text.len().saturating_sub(4)..text.len())
        .rev()
        .find(|&at| text[at] & 0xC0 != 0x80)?;
    std::str::from_utf8(&text[start..]).ok()?.chars().next()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || Char::new(c as u32, Tables::shared()).in_set(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(tokens: &[(&str, Kind)], precedence: Precedence, text: &str) -> Vec<Fragment> {
        let tokens = tokens.iter().zip(0..);
        let tokens = tokens.map(|(&(text, kind), id)| (text.as_bytes(), id, kind));
        SpecialTokens::new(tokens, precedence).partition(text.as_bytes(), true)
    }

    #[test]
    fn longest_token_wins_anywhere() {
        let tokens = [
            ("<a>", Kind::CONTROL),
            ("<a><b", Kind::CONTROL),
            ("b><long>", Kind::CONTROL),
        ];
        assert_eq!(
            partition(&tokens, Precedence::Longest, "x<a><b><long>"),
            [
                Fragment::Text(0..1),
                Fragment::Token(0),
                Fragment::Text(4..5),
                Fragment::Token(2)
            ]
        );
        assert_eq!(
            partition(&tokens, Precedence::Leftmost, "x<a><b><long>"),
            [
                Fragment::Text(0..1),
                Fragment::Token(1),
                Fragment::Text(6..13)
            ]
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
                [
                    Fragment::Token(1),
                    Fragment::Token(1),
                    Fragment::Token(0),
                    Fragment::Text(8..9)
                ]
            );
        }
    }

    #[test]
    fn single_words_stand_alone() {
        let tokens = [("ab", Kind::USER_DEFINED.with(Kind::SINGLE_WORD))];
        assert_eq!(
            partition(&tokens, Precedence::Leftmost, "ab abc éab .ab"),
            [
                Fragment::Token(0),
                Fragment::Text(2..13),
                Fragment::Token(0)
            ]
        );
    }
}
