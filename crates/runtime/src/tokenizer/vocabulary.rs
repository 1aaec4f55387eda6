//! The pieces of a vocabulary: one arena of text, one hash index, no allocation per token.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::TokenizerError;

/// What a token is for; bits as a token may be several things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kind(u8);

impl Kind {
    pub(super) const NONE: Kind = Kind(0);
    pub(super) const NORMAL: Kind = Kind(1);
    pub(super) const UNKNOWN: Kind = Kind(2);
    pub(super) const CONTROL: Kind = Kind(4);
    pub(super) const USER_DEFINED: Kind = Kind(8);
    pub(super) const BYTE: Kind = Kind(16);
    pub(super) const STRIP_LEFT: Kind = Kind(32);
    pub(super) const STRIP_RIGHT: Kind = Kind(64);
    /// Found only where no word character touches it.
    pub(super) const SINGLE_WORD: Kind = Kind(128);
    /// Control or unknown: has no text of its own in an answer.
    pub(super) const SPECIAL: Kind = Kind(2 | 4);
    /// Found in raw text before the model sees it.
    pub(super) const MATCHED: Kind = Kind(2 | 4 | 8);

    /// The kind numbered `value` in `tokenizer.ggml.token_type`; unused and undefined tokens have no bit.
    pub(super) fn from_gguf(value: i64) -> Kind {
        match value {
            1 => Kind::NORMAL,
            2 => Kind::UNKNOWN,
            3 => Kind::CONTROL,
            4 => Kind::USER_DEFINED,
            6 => Kind::BYTE,
            _ => Kind(0),
        }
    }

    pub(super) fn any(self, of: Kind) -> bool {
        self.0 & of.0 != 0
    }

    pub(super) fn with(self, more: Kind) -> Kind {
        Kind(self.0 | more.0)
    }

    pub(super) fn without(self, fewer: Kind) -> Kind {
        Kind(self.0 & !fewer.0)
    }
}

/// The tokens: texts by id and ids by text.
pub(super) struct Vocabulary {
    pieces: Pieces,
    /// Shape [tokens].
    kinds: Vec<Kind>,
}

impl Vocabulary {
    /// Takes the texts in id order. An empty text becomes `[EMPTY_id]`.
    ///
    /// # Errors
    /// When two tokens have the same text, or all texts together pass 4 GiB.
    pub(super) fn new<'a>(
        texts: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
        mut kinds: Vec<Kind>,
    ) -> Result<Self, TokenizerError> {
        let bytes: usize = texts.clone().map(<[u8]>::len).sum();
        let tokens = texts.len();
        let mut pieces = Pieces::with_capacity(tokens, bytes);
        for text in texts {
            let id = pieces.len() as u32;
            let name;
            let text = match text {
                [] => {
                    name = format!("[EMPTY_{id}]");
                    name.as_bytes()
                }
                text => text,
            };
            let found = pieces.intern(text)?;
            if found != id {
                return Err(TokenizerError::Duplicate {
                    first: found,
                    second: id,
                });
            }
        }
        kinds.resize(tokens, Kind::NORMAL);
        Ok(Vocabulary { pieces, kinds })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Bytes of the longest text.
    pub(super) fn longest(&self) -> usize {
        self.pieces.longest
    }

    /// Bytes of all texts together.
    pub(super) fn text_bytes(&self) -> usize {
        self.pieces.arena.len()
    }

    /// The text of a token as it stands in the file.
    pub(super) fn text(&self, id: u32) -> Option<&[u8]> {
        self.pieces.text(id)
    }

    pub(super) fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or_default()
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: Kind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    /// Ids of the tokens that have a bit of `of`, ascending.
    pub(super) fn ids_of_kind(&self, of: Kind) -> impl Iterator<Item = u32> {
        self.kinds
            .iter()
            .enumerate()
            .filter(move |(_, kind)| kind.any(of))
            .map(|(id, _)| id as u32)
    }

    /// The token with this text.
    pub(super) fn token(&self, text: &[u8]) -> Option<u32> {
        self.pieces.find(text)
    }
}

/// Distinct texts, numbered in the order of arrival.
pub(super) struct Pieces {
    /// All texts, one after the other.
    arena: Vec<u8>,
    /// End of each text in the arena; shape [pieces].
    ends: Vec<u32>,
    index: HashTable<u32>,
    hasher: RandomState,
    /// Bytes of the longest text.
    longest: usize,
}

impl Pieces {
    pub(super) fn with_capacity(pieces: usize, bytes: usize) -> Self {
        Pieces {
            arena: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(pieces),
            index: HashTable::with_capacity(pieces),
            hasher: RandomState::default(),
            longest: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn text(&self, piece: u32) -> Option<&[u8]> {
        let index = piece as usize;
        let end = *self.ends.get(index)? as usize;
        let start = match index.checked_sub(1) {
            Some(previous) => self.ends[previous] as usize,
            None => 0,
        };
        Some(&self.arena[start..end])
    }

    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        self.index
            .find(hash_with(&self.hasher, text), |&id| {
                self.text(id) == Some(text)
            })
            .copied()
    }

    /// The number of this text, which is added when it is new.
    ///
    /// # Errors
    /// When all texts together pass 4 GiB.
    pub(super) fn intern(&mut self, text: &[u8]) -> Result<u32, TokenizerError> {
        let (arena, ends, hasher) = (&self.arena, &self.ends, &self.hasher);
        let text_of = |id: u32| {
            let index = id as usize;
            let start = if index == 0 { 0 } else { ends[index - 1] };
            &arena[start as usize..ends[index] as usize]
        };
        let entry = self.index.entry(
            hash_with(hasher, text),
            |&other| text_of(other) == text,
            |&other| hash_with(hasher, text_of(other)),
        );
        let vacant = match entry {
            Entry::Occupied(found) => return Ok(*found.get()),
            Entry::Vacant(vacant) => vacant,
        };
        let id = self.ends.len() as u32;
        let end = u32::try_from(self.arena.len() + text.len())
            .ok()
            .filter(|_| id < 1 << 31)
            .ok_or(TokenizerError::TooLarge {
                what: "the vocabulary's text",
                found: (self.arena.len() + text.len()) as u64,
                limit: u64::from(u32::MAX),
            })?;
        vacant.insert(id);
        self.arena.extend_from_slice(text);
        self.ends.push(end);
        self.longest = self.longest.max(text.len());
        Ok(id)
    }
}

fn hash_with(hasher: &RandomState, text: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(text);
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_it_holds() {
        let texts: [&[u8]; 3] = [b"a", b"", b"ab"];
        let vocabulary = Vocabulary::new(texts.iter().copied(), Vec::new()).unwrap();
        assert_eq!(vocabulary.len(), 3);
        assert_eq!(vocabulary.token(b"ab"), Some(2));
        assert_eq!(vocabulary.token(b"[EMPTY_1]"), Some(1));
        assert_eq!(vocabulary.token(b"b"), None);
        assert_eq!(vocabulary.text(2), Some(&b"ab"[..]));
        assert_eq!(vocabulary.text(3), None);
    }

    #[test]
    fn equal_texts_are_refused() {
        let texts: [&[u8]; 3] = [b"a", b"b", b"a"];
        let error = Vocabulary::new(texts.iter().copied(), Vec::new()).err();
        assert!(matches!(
            error,
            Some(TokenizerError::Duplicate {
                first: 0,
                second: 2
            })
        ));
    }
}
