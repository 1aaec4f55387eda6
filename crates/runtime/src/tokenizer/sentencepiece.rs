//! SentencePiece's byte-pair model: neighbours merge when their text is a piece, best score first.

use std::sync::OnceLock;

use super::merge::{Merge, Merger, Symbol};
use super::vocabulary::Vocabulary;
use super::word_cache::WordCache;

/// U+2581, which stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// A score-ordered model.
pub(super) struct SentencePiece {
    /// Merge order by token: smaller merges first; shape [tokens].
    orders: Vec<u32>,
    /// Token of each byte; shape [256].
    byte_tokens: Vec<Option<u32>>,
    unknown: Option<u32>,
    /// Whether some piece has this byte right before a space mark: text may be cut where none has.
    joins_space: OnceLock<[bool; 256]>,
}

impl SentencePiece {
    /// Takes the scores by token; a score that is not a number merges last.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        scores: impl Iterator<Item = f32>,
        unknown: Option<u32>,
    ) -> Self {
        let byte_tokens = (0..=255u8)
            .map(|byte| {
                vocabulary
                    .token(format!("<0x{byte:02X}>").as_bytes())
                    .or_else(|| vocabulary.token(&[byte]))
            })
            .collect();
        SentencePiece {
            orders: scores.map(order).collect(),
            byte_tokens,
            unknown,
            joins_space: OnceLock::new(),
        }
    }

    /// Appends the ids of `text`, whose spaces are already [`SPACE`] marks.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &[u8], out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        if std::str::from_utf8(text).is_err() {
            // A damaged lead byte may swallow a space mark, so damaged text is not cut.
            return self.encode_part(vocabulary, text, &mut merger, out);
        }
        let joins = self.joins_space.get_or_init(|| space_joins(vocabulary));
        let mut cache = WordCache::default();
        let mut start = 0;
        let mut search = 0;
        while let Some(found) = find(&text[search..], SPACE.as_bytes()) {
            let mark = search + found;
            if mark > start && !joins[usize::from(text[mark - 1])] {
                self.encode_cached(vocabulary, &text[start..mark], &mut cache, &mut merger, out);
                start = mark;
            }
            search = mark + SPACE.len();
        }
        self.encode_cached(vocabulary, &text[start..], &mut cache, &mut merger, out);
    }

    fn encode_cached<'a>(
        &self,
        vocabulary: &Vocabulary,
        part: &'a [u8],
        cache: &mut WordCache<'a>,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) {
        cache.encode(part, out, |out| {
            self.encode_part(vocabulary, part, merger, out);
        });
    }

    fn encode_part(
        &self,
        vocabulary: &Vocabulary,
        text: &[u8],
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) {
        merger.symbols.clear();
        let mut start = 0;
        while start < text.len() {
            let end = (start + character_length(text[start])).min(text.len());
            merger.symbols.push(Symbol {
                id: NOT_LOOKED_UP,
                start: start as u32,
                end: end as u32,
            });
            start = end;
        }
        let longest = vocabulary.longest();
        merger.run(|left, right| {
            let text = &text[left.start as usize..right.end as usize];
            if text.len() > longest {
                return None;
            }
            let id = vocabulary.token(text)?;
            let order = self.orders.get(id as usize).copied()?;
            Some(Merge { order, id })
        });
        for symbol in &merger.symbols {
            let piece = &text[symbol.start as usize..symbol.end as usize];
            let token = match symbol.id {
                NOT_LOOKED_UP => vocabulary.token(piece),
                id => Some(id),
            };
            match token {
                Some(id) => out.push(id),
                None => out.extend(
                    piece
                        .iter()
                        .filter_map(|&byte| self.byte_tokens[usize::from(byte)].or(self.unknown)),
                ),
            }
        }
    }
}

/// A single character that has not merged.
const NOT_LOOKED_UP: u32 = u32::MAX;

/// Bytes of the character that `lead` starts; a stray continuation byte stands alone.
fn character_length(lead: u8) -> usize {
    match lead >> 4 {
        0x0..=0xB => 1,
        0xC | 0xD => 2,
        0xE => 3,
        _ => 4,
    }
}

/// Maps scores to integers in descending order, so that the best score is the smallest.
fn order(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    !ascending
}

fn space_joins(vocabulary: &Vocabulary) -> [bool; 256] {
    let mut joins = [false; 256];
    for id in 0..vocabulary.len() as u32 {
        let text = vocabulary.text(id).unwrap_or_default();
        let mut search = 1;
        while let Some(found) = text
            .get(search..)
            .and_then(|rest| find(rest, SPACE.as_bytes()))
        {
            joins[usize::from(text[search + found - 1])] = true;
            search += found + SPACE.len();
        }
    }
    joins
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_follow_scores_downwards() {
        let scores = [
            f32::INFINITY,
            3.5,
            0.0,
            -0.25,
            -1e30,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        for pair in scores.windows(2) {
            assert!(order(pair[0]) < order(pair[1]), "{pair:?}");
        }
        assert_eq!(order(0.0), order(-0.0));
    }
}
