//! Text to token ids and back.
//!
//! Two models cover the supported families: byte-pair merges inside the words of a pre-tokenizer
//! (GPT-2, Llama 3, Qwen, SmolLM, ...) and SentencePiece's score-ordered merges (Llama 2, Gemma, Phi 3,
//! Mistral). Vocabularies come from GGUF metadata, where the ids equal llama.cpp's, or from a Hugging
//! Face `tokenizer.json`, where they equal the `tokenizers` library's.
//!
//! Encoding takes n log n time in the length of the text, whatever the text.

mod bpe;
mod byte_alphabet;
mod decode;
mod from_gguf;
mod hf;
mod merge;
mod pretokenizer;
mod sentencepiece;
mod special;
mod unicode;
mod unicode_runs;
mod vocabulary;
mod well_known;
mod word_cache;

use crate::gguf::one_line;
use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bpe::{Alphabet, BytePair};
pub use decode::StreamDecoder;
use hf::Pipeline;
use pretokenizer::{Stage, split_words};
use sentencepiece::{SPACE, SentencePiece};
use special::{Fragment, SpecialTokens};
use unicode::{Char, Tables};
use vocabulary::{Kind, Vocabulary};

use crate::Limits;
use crate::gguf::{ModelFile, ModelFileError};
use crate::source;

/// Why a tokenizer cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The model file's metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] ModelFileError),
    /// A needed metadata entry is absent.
    #[error("the model has no '{key}' in its metadata; convert it again with its tokenizer")]
    Missing {
        /// Name of the entry.
        key: &'static str,
    },
    /// A metadata entry does not fit the rest.
    #[error(
        "the model's '{key}' {}; the file is damaged, fetch it again",
        one_line(what)
    )]
    Invalid {
        /// Name of the entry.
        key: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The tokenizer is of a kind that is not supported.
    #[error(
        "the tokenizer model '{}' is not supported; use a model with a 'gpt2' or 'llama' tokenizer",
        one_line(name)
    )]
    UnknownModel {
        /// Name in the file.
        name: String,
    },
    /// The pre-tokenizer has no known rules, so any ids would be wrong.
    #[error(
        "the pre-tokenizer '{}' is not known; convert the model again with a supported 'tokenizer.ggml.pre'",
        one_line(name)
    )]
    UnknownPreTokenizer {
        /// Name in the file.
        name: String,
    },
    /// A file beside the model cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file is not what it should be.
    #[error("{file}: {}", one_line(what))]
    Json {
        /// The file.
        file: String,
        /// What is wrong, and where.
        what: String,
    },
    /// The `tokenizer.json` asks for something that is not implemented, so any ids would be wrong.
    #[error(
        "{} in tokenizer.json is not supported; use the model's GGUF file",
        one_line(what)
    )]
    Unsupported {
        /// What is asked for.
        what: String,
    },
    /// Two tokens have the same text.
    #[error(
        "the tokens {first} and {second} have the same text; the file is damaged, fetch it again"
    )]
    Duplicate {
        /// Lower id.
        first: u32,
        /// Higher id.
        second: u32,
    },
    /// A directory has no tokenizer, or several.
    #[error("{directory} has {found}; name the file to use")]
    Directory {
        /// The directory.
        directory: String,
        /// What was found instead of one tokenizer.
        found: String,
    },
    /// Something is larger than the limits allow.
    #[error(
        "{what} has {found} entries or bytes where at most {limit} are allowed; raise the limit if you trust the file"
    )]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        found: u64,
        /// The largest allowed size.
        limit: u64,
    },
}

/// How to encode a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Add the tokens that start and end a text as the model asks (BOS, EOS).
    pub add_special: bool,
    /// Turn the text of control tokens (`<|im_start|>`) into those tokens; otherwise it stays plain text,
    /// which is what untrusted input needs.
    pub parse_special: bool,
}

/// A vocabulary with its rules. Shared freely between threads.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    names: SpecialNames,
    /// Added around a text by [`EncodeOptions::add_special`].
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    end_of_generation: Vec<u32>,
    /// SentencePiece: a text that starts or follows a special token gets a leading space.
    add_space_prefix: bool,
    /// A decoded text loses the leading space that encoding added.
    strip_space: bool,
    warnings: Vec<String>,
    /// Tokens that GGUF models look for in raw text.
    special: OnceLock<SpecialTokens>,
    decoded: OnceLock<DecodedPieces>,
}

enum Model {
    /// From GGUF: merges inside the words of a pre-tokenizer.
    Words { model: BytePair, stages: Vec<Stage> },
    /// From GGUF: score-ordered merges.
    SentencePiece(SentencePiece),
    /// From `tokenizer.json`.
    Pipeline {
        model: BytePair,
        pipeline: Pipeline,
        /// How pieces spell text.
        spelling: Alphabet,
    },
}

/// Tokens with a role, where the model has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialNames {
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message (the model waits for a tool).
    pub eom: Option<u32>,
    /// Stands for text outside the vocabulary.
    pub unknown: Option<u32>,
    /// Separator.
    pub separator: Option<u32>,
    /// Padding.
    pub padding: Option<u32>,
    /// Fill in the middle: before the prefix.
    pub fim_prefix: Option<u32>,
    /// Fill in the middle: before the suffix.
    pub fim_suffix: Option<u32>,
    /// Fill in the middle: before the middle.
    pub fim_middle: Option<u32>,
}

/// Bytes of all tokens, one after the other.
struct DecodedPieces {
    bytes: Vec<u8>,
    /// Shape [tokens].
    ends: Vec<u32>,
}

impl Tokenizer {
    /// Opens the tokenizer of a GGUF file (one with a vocabulary only is enough), a `tokenizer.json`, or a
    /// directory that holds either.
    ///
    /// # Errors
    /// [`TokenizerError`] says what is wrong with which file.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, TokenizerError> {
        if path.is_dir() {
            if path.join(hf::FILE).is_file() {
                return Self::from_hf_dir(path, limits);
            }
            return Self::open_gguf(&only_gguf(path)?, limits);
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => hf::open(path, limits),
            _ => Self::open_gguf(path, limits),
        }
    }

    fn open_gguf(path: &Path, limits: &Limits) -> Result<Self, TokenizerError> {
        let source = source::open(path).map_err(|source| TokenizerError::Io {
            file: path.display().to_string(),
            source,
        })?;
        // The vocabulary is in the first shard, so the others are not needed.
        Self::from_gguf(&ModelFile::from_source(source, limits)?.metadata, limits)
    }

    /// The ids of `text`.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        self.encode_bytes(text.as_bytes(), options)
    }

    /// The ids of bytes that should be UTF-8.
    ///
    /// Byte-pair models see each byte that is not part of a character as U+FFFD; SentencePiece models fall
    /// back to byte tokens for it.
    pub fn encode_bytes(&self, text: &[u8], options: EncodeOptions) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3 + 8);
        if options.add_special {
            out.extend_from_slice(&self.prefix);
        }
        match &self.model {
            Model::Pipeline {
                model, pipeline, ..
            } => {
                let text = replace_damage(text);
                pipeline.encode(
                    &self.vocabulary,
                    model,
                    &text,
                    options.parse_special,
                    &mut out,
                );
            }
            _ => self.encode_gguf(text, options.parse_special, &mut out),
        }
        if options.add_special {
            out.extend_from_slice(&self.suffix);
        }
        out
    }

    /// The text of `ids`, damaged characters as U+FFFD. Control tokens have text only `with_special`.
    ///
    /// The space that SentencePiece models add in front of a text is dropped again.
    pub fn decode(&self, ids: &[u32], with_special: bool) -> String {
        let mut decoder = StreamDecoder::new(self, with_special, self.strip_space);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&decoder.push(id));
        }
        text.push_str(&decoder.finish());
        text
    }

    /// A decoder for ids that continue a text, so that a leading space stays.
    pub fn stream_decoder(&self, with_special: bool) -> StreamDecoder<&Tokenizer> {
        StreamDecoder::new(self, with_special, false)
    }

    /// The same, sharing ownership of the tokenizer.
    pub fn shared_stream_decoder(
        self: &Arc<Self>,
        with_special: bool,
    ) -> StreamDecoder<Arc<Tokenizer>> {
        StreamDecoder::new(self.clone(), with_special, false)
    }

    /// The bytes that `id` adds to a text: its text for a control token, nothing for an unused one.
    ///
    /// The first call builds the table of all tokens (a few milliseconds).
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let decoded = self.decoded.get_or_init(|| self.decode_all());
        let index = id as usize;
        let Some(&end) = decoded.ends.get(index) else {
            return &[];
        };
        let start = match index.checked_sub(1) {
            Some(previous) => decoded.ends[previous],
            None => 0,
        };
        &decoded.bytes[start as usize..end as usize]
    }

    /// The token as the vocabulary spells it (`Ġhello`, `▁hello`, `<0x0A>`).
    pub fn token_text(&self, id: u32) -> Option<Cow<'_, str>> {
        ((id as usize) < self.vocabulary.len())
            .then(|| self.vocabulary.text(id))
            .flatten()
            .map(String::from_utf8_lossy)
    }

    /// The token that the vocabulary spells like `text`.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.vocabulary.token(text.as_bytes())
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Tokens with a role.
    pub fn special(&self) -> &SpecialNames {
        &self.names
    }

    /// Beginning of a text.
    pub fn bos(&self) -> Option<u32> {
        self.names.bos
    }

    /// End of a text.
    pub fn eos(&self) -> Option<u32> {
        self.names.eos
    }

    /// Whether a text gets a BOS token by [`EncodeOptions::add_special`].
    pub fn adds_bos(&self) -> bool {
        self.names.bos.is_some_and(|bos| self.prefix.contains(&bos))
    }

    /// All tokens that end a generation, ascending.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether generation ends at `id`.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// Whether `id` is a control or unknown token, which has no text in an answer.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.kind(id).any(Kind::SPECIAL)
    }

    /// What a user should hear about this tokenizer, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn encode_gguf(&self, text: &[u8], parse_special: bool, out: &mut Vec<u32>) {
        let special = self
            .special
            .get_or_init(|| SpecialTokens::of_vocabulary(&self.vocabulary));
        let mut after_special = true;
        for fragment in special.partition(text, parse_special) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(ref range) => {
                    self.encode_fragment(&text[range.clone()], after_special, out);
                }
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
    }

    fn encode_fragment(&self, text: &[u8], after_special: bool, out: &mut Vec<u32>) {
        match &self.model {
            Model::SentencePiece(model) => {
                let prefix = self.add_space_prefix && after_special;
                let escaped = escape_spaces(text, prefix);
                model.encode(&self.vocabulary, &escaped, out);
            }
            Model::Words { model, stages } => {
                let mut text = replace_damage(text);
                if model.alphabet == Alphabet::Text {
                    text = Cow::Owned(text.replace(' ', SPACE));
                }
                let mut chars: Vec<Char> = Vec::new();
                unicode::decode(&text, Tables::shared(), &mut chars);
                let mut lengths = Vec::new();
                split_words(stages, &chars, &mut lengths);
                let (mut first, mut start) = (0, 0);
                let words = lengths.iter().map(|length| {
                    let word = &chars[first..first + length];
                    let end = start + word.iter().map(|c| c.utf8_len()).sum::<usize>();
                    let word = &text[start..end];
                    (first, start) = (first + length, end);
                    word
                });
                model.encode_words(&self.vocabulary, words, out);
            }
            Model::Pipeline { .. } => {}
        }
    }

    /// Appends the bytes of `id` to `out`; nothing for special tokens unless asked.
    fn append_piece(&self, id: u32, with_special: bool, out: &mut Vec<u8>) {
        if (id as usize) >= self.vocabulary.len() {
            return;
        }
        let kind = self.vocabulary.kind(id);
        let text = self.vocabulary.text(id).unwrap_or_default();
        if kind.any(Kind::SPECIAL) && !with_special {
            return;
        }
        if kind.any(Kind::MATCHED) {
            out.extend_from_slice(text);
        } else if kind.any(Kind::BYTE) {
            out.extend(byte_token(text));
        } else if kind.any(Kind::NORMAL) {
            match &self.model {
                Model::Words {
                    model:
                        BytePair {
                            alphabet: Alphabet::Bytes,
                            ..
                        },
                    ..
                }
                | Model::Pipeline {
                    spelling: Alphabet::Bytes,
                    ..
                } => {
                    byte_alphabet::append_bytes(text, out);
                }
                _ => append_unescaped(text, out),
            }
        }
    }

    fn decode_all(&self) -> DecodedPieces {
        let mut bytes = Vec::new();
        let ends = (0..self.vocabulary.len() as u32)
            .map(|id| {
                self.append_piece(id, true, &mut bytes);
                bytes.len() as u32
            })
            .collect();
        DecodedPieces { bytes, ends }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.vocab_len())
            .field("special", &self.names)
            .finish_non_exhaustive()
    }
}

/// The byte of a `<0xXX>` token.
fn byte_token(text: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(text.get(3..5)?).ok()?;
    u8::from_str_radix(digits, 16).ok()
}

fn escape_spaces(text: &[u8], prefix: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 2 + SPACE.len());
    if prefix {
        out.extend_from_slice(SPACE.as_bytes());
    }
    for &byte in text {
        match byte {
            b' ' => out.extend_from_slice(SPACE.as_bytes()),
            _ => out.push(byte),
        }
    }
    out
}

fn append_unescaped(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let [first, ..] = rest {
        match rest.strip_prefix(SPACE.as_bytes()) {
            Some(after) => {
                out.push(b' ');
                rest = after;
            }
            None => {
                out.push(*first);
                rest = &rest[1..];
            }
        }
    }
}

/// The one GGUF file of a directory.
fn only_gguf(directory: &Path) -> Result<std::path::PathBuf, TokenizerError> {
    let read = std::fs::read_dir(directory).map_err(|source| TokenizerError::Io {
        file: directory.display().to_string(),
        source,
    })?;
    let mut found: Vec<_> = read
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "gguf")
        })
        .collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        count => Err(TokenizerError::Directory {
            directory: directory.display().to_string(),
            found: match count {
                0 => "neither a tokenizer.json nor a GGUF file".to_owned(),
                _ => format!("{count} GGUF files"),
            },
        }),
    }
}

/// Each byte that is not part of a character becomes U+FFFD.
fn replace_damage(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{FFFD}'));
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests;
