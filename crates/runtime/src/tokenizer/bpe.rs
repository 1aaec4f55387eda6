//! Byte-pair encoding: merges in rank order inside the words of a pre-tokenizer.

use foldhash::{HashMap, HashMapExt};

use super::TokenizerError;
use super::byte_alphabet;
use super::merge::{Merge, Merger, Symbol};
use super::pretokenizer::{Stage, split_words};
use super::unicode::{Char, Tables, decode};
use super::vocabulary::Vocabulary;
use super::word_cache::WordCache;

/// How bytes that no piece covers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's: every byte is one printable character.
    Bytes,
    /// Text as it is; what has no piece falls back to `<0xXX>` tokens.
    Text,
}

/// A byte-pair model.
pub(super) struct BytePair {
    pub stages: Vec<Stage>,
    pub alphabet: Alphabet,
    pub ignore_merges: bool,
    /// Words of line feeds only are looked up whole first.
    pub whole_newlines: bool,
    /// Stands for text that has neither a piece nor byte tokens.
    pub unknown: Option<Unknown>,
    /// (left id << 32 | right id) to rank and merged id.
    merges: HashMap<u64, Merge>,
    /// Piece of each byte's character; shape [256], used with [`Alphabet::Bytes`].
    byte_pieces: Vec<u32>,
    /// Token of each byte for the fallback; shape [256].
    byte_tokens: Vec<Option<u32>>,
}

/// The unknown token of a Hugging Face model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unknown {
    pub id: u32,
    /// Neighbouring unknown characters give one token.
    pub fuse: bool,
}

/// Marks a character without a piece: its code point follows in the low bits.
const NO_PIECE: u32 = 1 << 31;

impl BytePair {
    /// Takes the merges in rank order, each as its two pieces; adds pieces that only merges name to the
    /// vocabulary. Of equal pairs the first counts.
    pub(super) fn new<'a>(
        vocabulary: &mut Vocabulary,
        merges: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
        alphabet: Alphabet,
        stages: Vec<Stage>,
    ) -> Result<Self, TokenizerError> {
        let mut table = HashMap::with_capacity(merges.len());
        let mut both = Vec::new();
        for (rank, (left, right)) in merges.enumerate() {
            if left.is_empty() || right.is_empty() {
                continue;
            }
            both.clear();
            both.extend_from_slice(left);
            both.extend_from_slice(right);
            let left = vocabulary.intern(left)?;
            let right = vocabulary.intern(right)?;
            let merge = Merge {
                order: rank as u32,
                id: vocabulary.intern(&both)?,
            };
            table.entry(pair(left, right)).or_insert(merge);
        }
        let mut byte_pieces = Vec::with_capacity(256);
        let mut byte_tokens = Vec::with_capacity(256);
        for byte in 0..=255u8 {
            byte_tokens.push(match alphabet {
                // The fallback looks for a token that is this one byte of the piece's text.
                Alphabet::Bytes => vocabulary.token(&[byte]),
                Alphabet::Text => vocabulary.token(format!("<0x{byte:02X}>").as_bytes()),
            });
            if alphabet == Alphabet::Bytes {
                let text = byte_alphabet::character(byte).to_string();
                byte_pieces.push(vocabulary.intern(text.as_bytes())?);
            }
        }
        Ok(BytePair {
            stages,
            alphabet,
            ignore_merges: false,
            whole_newlines: false,
            unknown: None,
            merges: table,
            byte_pieces,
            byte_tokens,
        })
    }

    /// Appends the ids of `text`, which holds no special token.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let mut chars: Vec<Char> = Vec::new();
        decode(text, Tables::shared(), &mut chars);
        let mut words = Vec::new();
        split_words(&self.stages, &chars, &mut words);
        self.encode_words(vocabulary, text, &chars, &words, out);
    }

    /// Appends the ids of words given as lengths in characters.
    pub(super) fn encode_words(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        chars: &[Char],
        words: &[usize],
        out: &mut Vec<u32>,
    ) {
        let mut cache = WordCache::default();
        let mut merger = Merger::default();
        let mut spelled = String::new();
        let (mut first_char, mut first_byte) = (0, 0);
        for &length in words {
            let word_chars = &chars[first_char..first_char + length];
            let bytes: usize = word_chars.iter().map(|c| c.utf8_len()).sum();
            let word = &text[first_byte..first_byte + bytes];
            cache.encode(word.as_bytes(), out, |out| {
                self.encode_word(vocabulary, word, &mut merger, &mut spelled, out);
            });
            first_char += length;
            first_byte += bytes;
        }
    }

    fn encode_word(
        &self,
        vocabulary: &Vocabulary,
        word: &str,
        merger: &mut Merger,
        spelled: &mut String,
        out: &mut Vec<u32>,
    ) {
        let newlines = self.whole_newlines && word.bytes().all(|byte| byte == b'\n');
        if (self.ignore_merges || newlines)
            && let Some(id) = vocabulary.token(self.spell(word, spelled).as_bytes())
        {
            out.push(id);
            return;
        }
        merger.symbols.clear();
        match self.alphabet {
            Alphabet::Bytes => {
                let symbols = word.bytes().enumerate().map(|(at, byte)| Symbol {
                    id: self.byte_pieces[usize::from(byte)],
                    start: at as u32,
                    end: at as u32 + 1,
                });
                merger.symbols.extend(symbols);
            }
            Alphabet::Text => {
                let symbols = word.char_indices().map(|(at, c)| {
                    let end = at + c.len_utf8();
                    let piece = vocabulary.piece(&word.as_bytes()[at..end]);
                    Symbol {
                        id: piece.unwrap_or(NO_PIECE | c as u32),
                        start: at as u32,
                        end: end as u32,
                    }
                });
                merger.symbols.extend(symbols);
            }
        }
        merger.run(|left, right| self.merges.get(&pair(left.id, right.id)).copied());
        let tokens = vocabulary.len();
        let mut after_unknown = false;
        for symbol in &merger.symbols {
            if (symbol.id as usize) < tokens {
                out.push(symbol.id);
                after_unknown = false;
            } else {
                let piece = &word.as_bytes()[symbol.start as usize..symbol.end as usize];
                after_unknown = self.fall_back(vocabulary, symbol.id, piece, after_unknown, out);
            }
        }
    }

    /// Writes a piece that is no token; true when it was written as the unknown token.
    fn fall_back(
        &self,
        vocabulary: &Vocabulary,
        id: u32,
        piece: &[u8],
        after_unknown: bool,
        out: &mut Vec<u32>,
    ) -> bool {
        let text = match self.alphabet {
            Alphabet::Bytes => vocabulary.text(id).unwrap_or(piece),
            Alphabet::Text => piece,
        };
        let tokens = text.iter().map(|&byte| self.byte_tokens[usize::from(byte)]);
        match self.unknown {
            Some(unknown) if tokens.clone().any(|token| token.is_none()) => {
                if !(unknown.fuse && after_unknown) {
                    out.push(unknown.id);
                }
                true
            }
            _ => {
                out.extend(tokens.flatten());
                false
            }
        }
    }

    /// The word as the vocabulary spells it.
    fn spell<'w>(&self, word: &'w str, buffer: &'w mut String) -> &'w str {
        match self.alphabet {
            Alphabet::Text => word,
            Alphabet::Bytes => {
                buffer.clear();
                buffer.extend(word.bytes().map(byte_alphabet::character));
                buffer
            }
        }
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
