//! The pieces of a vocabulary: one arena of text, one hash index, no allocation per token.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;

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
            match text {
                [] => pieces.push(format!("[EMPTY_{}]", pieces.len()).as_bytes())?,
                text => pieces.push(text)?,
            }
        }
        if let Err((first, second)) = pieces.build_index() {
            return Err(TokenizerError::Duplicate { first, second });
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
    /// Hash table with linear probing, at most half full: the upper half of the text's hash above its number
    /// plus one; zero when empty. So a look-up that fails seldom touches the arena. Length a power of two.
    slots: Vec<u64>,
    hasher: RandomState,
    /// Bytes of the longest text.
    longest: usize,
}

impl Pieces {
    pub(super) fn with_capacity(pieces: usize, bytes: usize) -> Self {
        Pieces {
            arena: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(pieces),
            slots: Vec::new(),
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
        self.probe(self.hash(text), text).ok()
    }

    /// The number of this text, which is added when it is new.
    ///
    /// # Errors
    /// When all texts together pass 4 GiB.
    pub(super) fn intern(&mut self, text: &[u8]) -> Result<u32, TokenizerError> {
        if let Some(id) = self.find(text) {
            return Ok(id);
        }
        let id = self.len() as u32;
        self.push(text)?;
        if self.slots.len() < self.len() * 2 {
            // All texts are distinct, so that this cannot fail.
            let _ = self.build_index();
        } else if let Err(slot) = self.probe(self.hash(text), text) {
            self.slots[slot] = entry(self.hash(text), id);
        }
        Ok(id)
    }

    /// Adds a text without making it known to [`Pieces::find`].
    fn push(&mut self, text: &[u8]) -> Result<(), TokenizerError> {
        let bytes = self.arena.len() + text.len();
        let end = u32::try_from(bytes)
            .ok()
            .filter(|_| self.ends.len() < 1 << 31)
            .ok_or_else(|| TokenizerError::TooLarge {
                what: "the vocabulary's text",
                found: bytes as u64,
                limit: u64::from(u32::MAX),
            })?;
        self.arena.extend_from_slice(text);
        self.ends.push(end);
        self.longest = self.longest.max(text.len());
        Ok(())
    }

    /// Makes all texts known to [`Pieces::find`]; the error is two equal ones.
    fn build_index(&mut self) -> Result<(), (u32, u32)> {
        let pieces = self.len() as u32;
        let text = |id: u32| self.text(id).unwrap_or_default();
        // Hashes first: then the table's cache misses overlap, which halves the time.
        let hashes: Vec<u64> = (0..pieces).map(|id| self.hash(text(id))).collect();
        self.slots.clear();
        self.slots
            .resize((self.len() * 2).next_power_of_two().max(16), 0);
        for (id, hash) in (0..pieces).zip(hashes) {
            let text = self.text(id).unwrap_or_default();
            match self.probe(hash, text) {
                Ok(found) => return Err((found, id)),
                Err(slot) => self.slots[slot] = entry(hash, id),
            }
        }
        Ok(())
    }

    /// The piece with this text, or the slot where it belongs.
    fn probe(&self, hash: u64, text: &[u8]) -> Result<u32, usize> {
        let Some(mask) = self.slots.len().checked_sub(1) else {
            return Err(0);
        };
        let mut slot = hash as usize & mask;
        loop {
            let found = self.slots[slot];
            if found == 0 {
                return Err(slot);
            }
            let id = (found as u32).wrapping_sub(1);
            if found >> 32 == hash >> 32 && self.text(id) == Some(text) {
                return Ok(id);
            }
            slot = (slot + 1) & mask;
        }
    }

    fn hash(&self, text: &[u8]) -> u64 {
        let mut state = self.hasher.build_hasher();
        state.write(text);
        state.finish()
    }
}

fn entry(hash: u64, id: u32) -> u64 {
    hash >> 32 << 32 | u64::from(id + 1)
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
    fn interned_pieces_stay_as_the_table_grows() {
        let mut pieces = Pieces::with_capacity(0, 0);
        for _ in 0..2 {
            for number in 0..1000u32 {
                assert_eq!(
                    pieces.intern(number.to_string().as_bytes()).unwrap(),
                    number
                );
            }
        }
        assert_eq!(pieces.len(), 1000);
        assert_eq!(pieces.find(b"1000"), None);
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
