//! Byte-pair encoding: merges in rank order inside the words of a pre-tokenizer.

use std::sync::{Mutex, OnceLock, PoisonError};

use foldhash::{HashMap, HashMapExt};

use super::TokenizerError;
use super::byte_alphabet;
use super::merge::{Merge, Merger, Symbol};
use super::vocabulary::{Pieces, Vocabulary};
use super::word_cache::WordCache;

/// How the vocabulary spells text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's: every byte is one printable character.
    Bytes,
    /// Text as it is.
    Text,
}

/// A byte-pair model.
pub(super) struct BytePair {
    /// How words arrive and pieces are written.
    pub alphabet: Alphabet,
    pub ignore_merges: bool,
    /// Words of line feeds only are looked up whole first.
    pub whole_newlines: bool,
    pub missing: Missing,
    /// Merges that wait for the first text.
    lines: Mutex<MergeLines>,
    tables: OnceLock<Tables>,
}

/// What becomes of characters without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// They may merge all the same; what is no token in the end is written as byte tokens, or dropped
    /// (GGUF models).
    Late,
    /// Decided before merging (Hugging Face models).
    Early {
        /// Try `<0xXX>` tokens.
        byte_fallback: bool,
        /// Else this token; nothing when there is none.
        unknown: Option<u32>,
        /// Neighbouring unknown characters give one token.
        fuse: bool,
    },
}

/// Merge lines as a file writes them (`left right`), in rank order.
#[derive(Debug, Default)]
pub(super) struct MergeLines {
    text: Vec<u8>,
    /// End of each line in the text; shape [merges].
    ends: Vec<u32>,
}

/// What encoding looks up, made from the merges.
struct Tables {
    /// (left piece << 32 | right piece) to rank and merged piece.
    merges: HashMap<u64, Merge>,
    /// Pieces that merges name although they are no tokens; numbered from the vocabulary's length on.
    extra: Pieces,
    /// Piece of each byte's character, or [`NO_PIECE`]; shape [256], used with [`Alphabet::Bytes`].
    byte_pieces: Vec<u32>,
    /// Token of each byte for the fallback; shape [256].
    byte_tokens: Vec<Option<u32>>,
}

/// Marks a character without a piece.
const NO_PIECE: u32 = u32::MAX;

impl MergeLines {
    /// Copies the lines.
    ///
    /// # Errors
    /// When they and the vocabulary together could pass 4 GiB of pieces.
    pub(super) fn new<'a>(
        lines: impl ExactSizeIterator<Item = &'a [u8]>,
        vocabulary: &Vocabulary,
    ) -> Result<Self, TokenizerError> {
        let mut copy = MergeLines {
            text: Vec::new(),
            ends: Vec::with_capacity(lines.len()),
        };
        for line in lines {
            copy.text.extend_from_slice(line);
            copy.ends.push(copy.text.len() as u32);
        }
        // Each line adds its two pieces and their sum at most, each byte its own piece.
        let found = (copy.text.len() as u64) * 2 + vocabulary.text_bytes() as u64 + 1024;
        let limit = u64::from(u32::MAX);
        match found {
            found if found > limit => Err(TokenizerError::TooLarge {
                what: "the list of merges",
                found,
                limit,
            }),
            _ => Ok(copy),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ends.iter().enumerate().map(|(index, &end)| {
            let start = match index.checked_sub(1) {
                Some(previous) => self.ends[previous],
                None => 0,
            };
            &self.text[start as usize..end as usize]
        })
    }
}

impl BytePair {
    /// A model whose merges are read when the first text arrives. Merges may name pieces that are no
    /// tokens; of equal pairs the first counts.
    pub(super) fn lenient(lines: MergeLines, alphabet: Alphabet) -> Self {
        BytePair {
            alphabet,
            ignore_merges: false,
            whole_newlines: false,
            missing: Missing::Late,
            lines: Mutex::new(lines),
            tables: OnceLock::new(),
        }
    }

    /// A model from pairs of pieces in rank order; of equal pairs the last counts.
    ///
    /// # Errors
    /// When a merge names a piece that is no token.
    pub(super) fn strict<'a>(
        vocabulary: &Vocabulary,
        pairs: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        alphabet: Alphabet,
        missing: Missing,
    ) -> Result<Self, TokenizerError> {
        let mut merges = HashMap::with_capacity(pairs.len());
        let mut both = Vec::new();
        for (rank, (left, right)) in pairs.enumerate() {
            let token = |text: &[u8]| {
                vocabulary
                    .token(text)
                    .ok_or_else(|| TokenizerError::Invalid {
                        key: "merges",
                        what: format!("entry {rank} names a piece that is no token"),
                    })
            };
            both.clear();
            both.extend_from_slice(left.as_bytes());
            both.extend_from_slice(right.as_bytes());
            let merge = Merge {
                order: rank as u32,
                id: token(&both)?,
            };
            merges.insert(
                pair(token(left.as_bytes())?, token(right.as_bytes())?),
                merge,
            );
        }
        let byte_pieces = (0..=255)
            .map(|byte| {
                let text = byte_alphabet::character(byte).to_string();
                vocabulary.token(text.as_bytes()).unwrap_or(NO_PIECE)
            })
            .collect();
        let tables = Tables {
            merges,
            extra: Pieces::with_capacity(0, 0),
            byte_pieces,
            byte_tokens: byte_tokens(vocabulary),
        };
        Ok(BytePair {
            alphabet,
            ignore_merges: false,
            whole_newlines: false,
            missing,
            lines: Mutex::default(),
            tables: OnceLock::from(tables),
        })
    }

    /// Appends the ids of a text that a pre-tokenizer has cut into words.
    pub(super) fn encode_words<'a>(
        &self,
        vocabulary: &Vocabulary,
        words: impl Iterator<Item = &'a str>,
        out: &mut Vec<u32>,
    ) {
        let mut encoder = WordEncoder {
            model: self,
            vocabulary,
            tables: self.tables(vocabulary),
            merger: Merger::default(),
            spelled: String::new(),
        };
        let mut cache = WordCache::default();
        for word in words {
            cache.encode(word.as_bytes(), out, |out| encoder.encode(word, out));
        }
    }

    fn tables(&self, vocabulary: &Vocabulary) -> &Tables {
        self.tables.get_or_init(|| {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            Tables::lenient(vocabulary, &std::mem::take(&mut lines), self.alphabet)
        })
    }
}

impl Tables {
    fn lenient(vocabulary: &Vocabulary, lines: &MergeLines, alphabet: Alphabet) -> Self {
        let mut extra = Pieces::with_capacity(0, 0);
        let mut merges = HashMap::with_capacity(lines.ends.len());
        let tokens = vocabulary.len() as u32;
        let mut piece = |text: &[u8]| match vocabulary.token(text) {
            Some(id) => id,
            // `MergeLines::new` has checked that the pieces fit.
            None => extra.intern(text).map_or(NO_PIECE, |id| tokens + id),
        };
        let mut both = Vec::new();
        for (rank, line) in lines.iter().enumerate() {
            let (left, right) = split_merge(line);
            if left.is_empty() || right.is_empty() {
                continue;
            }
            both.clear();
            both.extend_from_slice(left);
            both.extend_from_slice(right);
            let order = rank as u32;
            let merge = Merge {
                order,
                id: piece(&both),
            };
            merges
                .entry(pair(piece(left), piece(right)))
                .or_insert(merge);
        }
        let byte_pieces = match alphabet {
            Alphabet::Bytes => (0..=255)
                .map(|byte| piece(byte_alphabet::character(byte).to_string().as_bytes()))
                .collect(),
            Alphabet::Text => Vec::new(),
        };
        let byte_tokens = match alphabet {
            // The fallback looks for a token that is this one byte of the piece's text.
            Alphabet::Bytes => (0..=255).map(|byte| vocabulary.token(&[byte])).collect(),
            Alphabet::Text => byte_tokens(vocabulary),
        };
        Tables {
            merges,
            extra,
            byte_pieces,
            byte_tokens,
        }
    }
}

/// The two pieces of a merge; the separator is the first space after the first byte.
fn split_merge(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().skip(1).position(|&byte| byte == b' ') {
        Some(at) => (&line[..=at], &line[at + 2..]),
        None => (&[], &[]),
    }
}

fn byte_tokens(vocabulary: &Vocabulary) -> Vec<Option<u32>> {
    (0..=255u8)
        .map(|byte| vocabulary.token(format!("<0x{byte:02X}>").as_bytes()))
        .collect()
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

struct WordEncoder<'a> {
    model: &'a BytePair,
    vocabulary: &'a Vocabulary,
    tables: &'a Tables,
    merger: Merger,
    spelled: String,
}

impl WordEncoder<'_> {
    fn encode(&mut self, word: &str, out: &mut Vec<u32>) {
        let newlines = self.model.whole_newlines && word.bytes().all(|byte| byte == b'\n');
        if (self.model.ignore_merges || newlines)
            && let Some(id) = self.whole(word)
        {
            out.push(id);
            return;
        }
        self.merger.symbols.clear();
        match (self.model.alphabet, self.model.missing) {
            (Alphabet::Bytes, Missing::Late) => self.push_bytes(word),
            (Alphabet::Text, Missing::Late) => self.push_characters(word),
            (_, Missing::Early { .. }) => self.push_tokens(word),
        }
        let merges = &self.tables.merges;
        self.merger
            .run(|left, right| merges.get(&pair(left.id, right.id)).copied());
        let tokens = self.vocabulary.len();
        for symbol in &self.merger.symbols {
            if (symbol.id as usize) < tokens {
                out.push(symbol.id);
                continue;
            }
            let spelled = symbol.id as usize - tokens;
            let text = match self.tables.extra.text(spelled as u32) {
                Some(text) => text,
                None => &word.as_bytes()[symbol.start as usize..symbol.end as usize],
            };
            let bytes = text.iter();
            out.extend(bytes.filter_map(|&byte| self.tables.byte_tokens[usize::from(byte)]));
        }
    }

    /// The token that is the whole word.
    fn whole(&mut self, word: &str) -> Option<u32> {
        match self.model.alphabet {
            Alphabet::Text => self.vocabulary.token(word.as_bytes()),
            Alphabet::Bytes => {
                self.spelled.clear();
                let characters = word.bytes().map(byte_alphabet::character);
                self.spelled.extend(characters);
                self.vocabulary.token(self.spelled.as_bytes())
            }
        }
    }

    fn push_bytes(&mut self, word: &str) {
        let pieces = &self.tables.byte_pieces;
        let symbols = word.bytes().zip(0..).map(|(byte, at)| Symbol {
            id: pieces[usize::from(byte)],
            start: at,
            end: at + 1,
        });
        self.merger.symbols.extend(symbols);
    }

    fn push_characters(&mut self, word: &str) {
        let tokens = self.vocabulary.len() as u32;
        for (at, c) in word.char_indices() {
            let end = at + c.len_utf8();
            let text = &word.as_bytes()[at..end];
            let token = self.vocabulary.token(text);
            let piece = token.or_else(|| Some(tokens + self.tables.extra.find(text)?));
            self.merger.symbols.push(Symbol {
                id: piece.unwrap_or(NO_PIECE),
                start: at as u32,
                end: end as u32,
            });
        }
    }

    /// One token for each character, with the fallbacks of [`Missing::Early`].
    fn push_tokens(&mut self, word: &str) {
        if self.model.alphabet == Alphabet::Text {
            let mut pending = None;
            for (at, c) in word.char_indices() {
                let range = at..at + c.len_utf8();
                let token = self.vocabulary.token(&word.as_bytes()[range.clone()]);
                self.push_token(token, c, range, &mut pending);
            }
            self.merger.symbols.extend(pending);
            return;
        }
        if !self.tables.byte_pieces.contains(&NO_PIECE) {
            return self.push_bytes(word);
        }
        let mut pending = None;
        for (at, byte) in word.bytes().enumerate() {
            let piece = self.tables.byte_pieces[usize::from(byte)];
            let token = Some(piece).filter(|&piece| piece != NO_PIECE);
            let c = byte_alphabet::character(byte);
            self.push_token(token, c, at..at + 1, &mut pending);
        }
        self.merger.symbols.extend(pending);
    }

    /// `pending` is an unknown symbol that may still grow; as in the reference, byte tokens overtake it.
    fn push_token(
        &mut self,
        token: Option<u32>,
        c: char,
        range: std::ops::Range<usize>,
        pending: &mut Option<Symbol>,
    ) {
        let Missing::Early {
            byte_fallback,
            unknown,
            fuse,
        } = self.model.missing
        else {
            return;
        };
        let (start, end) = (range.start as u32, range.end as u32);
        let symbols = &mut self.merger.symbols;
        if let Some(id) = token {
            symbols.extend(pending.take());
            symbols.push(Symbol { id, start, end });
            return;
        }
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).bytes();
        let tokens = bytes.map(|byte| self.tables.byte_tokens[usize::from(byte)]);
        if byte_fallback && tokens.clone().all(|token| token.is_some()) {
            // Of one character's byte tokens each gets a range of its own, as far as there are bytes.
            for (index, id) in tokens.flatten().enumerate() {
                let at = (start + index as u32).min(end - 1);
                symbols.push(Symbol {
                    id,
                    start: at,
                    end: at + 1,
                });
            }
        } else if let Some(id) = unknown {
            match pending {
                Some(symbol) if fuse => symbol.end = end,
                _ => symbols.extend(pending.replace(Symbol { id, start, end })),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(texts: &[&str]) -> Vocabulary {
        Vocabulary::new(texts.iter().map(|text| text.as_bytes()), Vec::new()).unwrap()
    }

    fn encode(model: &BytePair, vocabulary: &Vocabulary, word: &str) -> Vec<u32> {
        let mut out = Vec::new();
        model.encode_words(vocabulary, std::iter::once(word), &mut out);
        out
    }

    #[test]
    fn merges_may_name_pieces_that_are_no_tokens() {
        let vocabulary = vocabulary(&["a", "b", "c", "abc"]);
        let lines: [&[u8]; 4] = [b"a b", b"ab c", b"no", b" c"];
        let lines = MergeLines::new(lines.into_iter(), &vocabulary).unwrap();
        let model = BytePair::lenient(lines, Alphabet::Bytes);
        assert_eq!(encode(&model, &vocabulary, "abc"), [3]);
        assert_eq!(encode(&model, &vocabulary, "abca"), [3, 0]);
        // What merged into a piece that is no token falls apart into bytes that are.
        assert_eq!(encode(&model, &vocabulary, "ab"), [0, 1]);
        assert_eq!(encode(&model, &vocabulary, "xcx"), [2]);
    }

    #[test]
    fn strict_merges_name_tokens() {
        let vocabulary = vocabulary(&["a", "b", "ab"]);
        let build = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().copied();
            BytePair::strict(&vocabulary, pairs, Alphabet::Text, Missing::Late)
        };
        assert_eq!(
            encode(&build(&[("a", "b")]).unwrap(), &vocabulary, "abb"),
            [2, 1]
        );
        let error = build(&[("a", "b"), ("b", "a")]).err().unwrap().to_string();
        assert!(error.contains("entry 1"), "{error}");
    }

    #[test]
    fn unknown_characters_fuse_when_asked() {
        let vocabulary = vocabulary(&["?", "a", "<0xC3>", "<0xA9>"]);
        let build = |byte_fallback, fuse| {
            let missing = Missing::Early {
                byte_fallback,
                unknown: Some(0),
                fuse,
            };
            BytePair::strict(&vocabulary, std::iter::empty(), Alphabet::Text, missing).unwrap()
        };
        assert_eq!(
            encode(&build(false, true), &vocabulary, "xéya"),
            [0, 1],
            "fused"
        );
        assert_eq!(
            encode(&build(false, false), &vocabulary, "xya"),
            [0, 0, 1],
            "apart"
        );
        assert_eq!(encode(&build(true, false), &vocabulary, "aé"), [1, 2, 3]);
    }
}
