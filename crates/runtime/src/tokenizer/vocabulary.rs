//! The pieces of a vocabulary: one arena of text, one hash index, no allocation per token.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

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

/// Texts by id and ids by text.
///
/// Ids from [`Vocabulary::len`] on are pieces that merges name although no token has their text.
pub(super) struct Vocabulary {
    /// All texts, one after the other.
    arena: Vec<u8>,
    /// End of each text in the arena; shape [tokens + extra pieces].
    ends: Vec<u32>,
    /// Shape [tokens].
    kinds: Vec<Kind>,
    index: HashTable<u32>,
    hasher: RandomState,
    longest: usize,
}

impl Vocabulary {
    /// Takes the texts in id order. An empty text becomes `[EMPTY_id]`; of equal texts the last id is found.
    pub(super) fn new<'a>(
        texts: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
        kinds: Vec<Kind>,
    ) -> Result<Self, TokenizerError> {
        let bytes: usize = texts.clone().map(<[u8]>::len).sum();
        let tokens = texts.len();
        let mut vocabulary = Vocabulary {
            arena: Vec::with_capacity(bytes + 4096),
            ends: Vec::with_capacity(tokens),
            kinds,
            index: HashTable::with_capacity(tokens),
            hasher: RandomState::default(),
            longest: 0,
        };
        for text in texts {
            if text.is_empty() {
                let name = format!("[EMPTY_{}]", vocabulary.ends.len());
                vocabulary.push(name.as_bytes())?;
            } else {
                vocabulary.push(text)?;
            }
        }
        vocabulary.kinds.resize(tokens, Kind::NORMAL);
        Ok(vocabulary)
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Bytes of the longest text.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The text of a token or extra piece as it stands in the file.
    pub(super) fn text(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = match index.checked_sub(1) {
            Some(previous) => self.ends[previous] as usize,
            None => 0,
        };
        Some(&self.arena[start..end])
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
        self.piece(text).filter(|&id| (id as usize) < self.len())
    }

    /// The token or extra piece with this text.
    pub(super) fn piece(&self, text: &[u8]) -> Option<u32> {
        self.index
            .find(self.hash(text), |&id| self.text(id) == Some(text))
            .copied()
    }

    /// The piece with this text, added when there is none.
    pub(super) fn intern(&mut self, text: &[u8]) -> Result<u32, TokenizerError> {
        match self.piece(text) {
            Some(id) => Ok(id),
            None => self.push(text),
        }
    }

    fn push(&mut self, text: &[u8]) -> Result<u32, TokenizerError> {
        let id = self.ends.len() as u32;
        self.arena.extend_from_slice(text);
        let end = u32::try_from(self.arena.len())
            .ok()
            .filter(|_| id < 1 << 31)
            .ok_or(TokenizerError::TooLarge {
                what: "the vocabulary's text",
                found: self.arena.len() as u64,
                limit: u64::from(u32::MAX),
            })?;
        self.ends.push(end);
        self.longest = self.longest.max(text.len());
        let hash = self.hash(text);
        let (arena, ends, hasher) = (&self.arena, &self.ends, &self.hasher);
        let text_of = |id: u32| {
            let index = id as usize;
            let start = if index == 0 { 0 } else { ends[index - 1] as usize };
            &arena[start..ends[index] as usize]
        };
        let entry = self.index.entry(
            hash,
            |&other| text_of(other) == text,
            |&other| hash_with(hasher, text_of(other)),
        );
        *entry.or_insert(id).get_mut() = id;
        Ok(id)
    }

    fn hash(&self, text: &[u8]) -> u64 {
        hash_with(&self.hasher, text)
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
        let texts: [&[u8]; 4] = [b"a", b"", b"ab", b"a"];
        let mut vocabulary = Vocabulary::new(texts.iter().copied(), Vec::new()).unwrap();
        assert_eq!(vocabulary.len(), 4);
        assert_eq!(vocabulary.token(b"a"), Some(3), "the last of equal texts");
        assert_eq!(vocabulary.token(b"[EMPTY_1]"), Some(1));
        assert_eq!(vocabulary.token(b"b"), None);
        let extra = vocabulary.intern(b"b").unwrap();
        assert_eq!(extra, 4);
        assert_eq!(vocabulary.intern(b"b").unwrap(), 4);
        assert_eq!(vocabulary.token(b"b"), None, "an extra piece is no token");
        assert_eq!(vocabulary.text(4), Some(&b"b"[..]));
        assert_eq!(vocabulary.text(5), None);
    }
}
