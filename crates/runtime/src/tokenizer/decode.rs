//! From ids back to text.

use std::borrow::Borrow;

use super::Tokenizer;

/// Turns ids into text one at a time and never gives out half a character.
///
/// Bytes of an unfinished character are kept until the ids that complete it arrive; bytes that cannot
/// become a character are replaced by U+FFFD.
pub struct StreamDecoder<T> {
    tokenizer: T,
    with_special: bool,
    /// A leading space that encoding added is still to be dropped.
    strip_space: bool,
    pending: Vec<u8>,
}

impl<T: Borrow<Tokenizer>> StreamDecoder<T> {
    pub(super) fn new(tokenizer: T, with_special: bool, strip_space: bool) -> Self {
        StreamDecoder {
            tokenizer,
            with_special,
            strip_space,
            pending: Vec::new(),
        }
    }

    /// Takes the next id and returns the text that is now complete, often empty.
    ///
    /// An id outside the vocabulary has no text.
    pub fn push(&mut self, id: u32) -> String {
        let start = self.pending.len();
        self.tokenizer
            .borrow()
            .append_piece(id, self.with_special, &mut self.pending);
        if self.strip_space && self.pending.len() > start {
            self.strip_space = false;
            if self.pending[start] == b' ' {
                self.pending.remove(start);
            }
        }
        let mut text = String::new();
        let kept = append_complete(&self.pending, &mut text);
        self.pending.drain(..kept);
        text
    }

    /// Returns what is left: an unfinished character as U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Appends the characters of `bytes` up to an unfinished last one; returns the bytes consumed.
fn append_complete(bytes: &[u8], text: &mut String) -> usize {
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(rest) => {
                text.push_str(rest);
                return bytes.len();
            }
            Err(error) => {
                let valid = start + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[start..valid]));
                match error.error_len() {
                    None => return valid,
                    Some(length) => {
                        text.push('\u{FFFD}');
                        start = valid + length;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completes_only_whole_characters() {
        let bytes = "a€😀".as_bytes();
        for cut in 0..=bytes.len() {
            let mut text = String::new();
            let used = append_complete(&bytes[..cut], &mut text);
            assert_eq!(text.as_bytes(), &bytes[..used]);
            assert!(cut - used < 4 && "a€😀".starts_with(&text));
        }
        let mut text = String::new();
        assert_eq!(append_complete(b"\xFFa\xE2\x82", &mut text), 2);
        assert_eq!(text, "\u{FFFD}a");
    }
}
