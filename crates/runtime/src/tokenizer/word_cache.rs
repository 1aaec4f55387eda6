//! Remembers the ids of words met earlier in the same text: most words of a language repeat.

use foldhash::HashMap;

/// Words longer than this repeat too rarely to keep.
const LONGEST: usize = 48;
const MOST_WORDS: usize = 1 << 15;

/// Word to ids, for one call.
#[derive(Default)]
pub(super) struct WordCache<'a> {
    words: HashMap<&'a [u8], (u32, u32)>,
    ids: Vec<u32>,
}

impl<'a> WordCache<'a> {
    /// Appends the ids of `word` to `out`, from memory or from `encode`.
    pub(super) fn encode(
        &mut self,
        word: &'a [u8],
        out: &mut Vec<u32>,
        encode: impl FnOnce(&mut Vec<u32>),
    ) {
        if word.len() > LONGEST {
            return encode(out);
        }
        if let Some(&(start, end)) = self.words.get(word) {
            out.extend_from_slice(&self.ids[start as usize..end as usize]);
            return;
        }
        let before = out.len();
        encode(out);
        if self.words.len() < MOST_WORDS {
            let start = self.ids.len() as u32;
            self.ids.extend_from_slice(&out[before..]);
            self.words.insert(word, (start, self.ids.len() as u32));
        }
    }
}
