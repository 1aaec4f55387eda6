//! Rewriting text before it is cut into words.

use std::borrow::Cow;

use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use super::super::pretokenizer::{Dialect, Pattern};
use super::super::unicode::{Char, MARK, Tables, decode};
use super::super::{TokenizerError, byte_alphabet};
use super::{MAX_DEPTH, invalid, kind, list, shorten};

/// One rewriting.
#[derive(Debug)]
pub(super) enum Normalizer {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    StripAccents,
    /// Each byte becomes one character of GPT-2's alphabet.
    Bytes,
    /// Put before a text that is not empty.
    Prepend(String),
    Strip {
        left: bool,
        right: bool,
    },
    ReplaceText {
        text: String,
        with: String,
    },
    ReplacePattern {
        pattern: Box<Pattern>,
        with: String,
    },
}

/// The rewritings of `value`, in order.
pub(super) fn parse(value: &Value) -> Result<Vec<Normalizer>, TokenizerError> {
    let mut all = Vec::new();
    add(value, 0, &mut all)?;
    Ok(all)
}

/// Runs `all` over `text`.
pub(super) fn run<'a>(all: &[Normalizer], text: &'a str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for normalizer in all {
        if let Some(changed) = normalizer.apply(&text) {
            text = Cow::Owned(changed);
        }
    }
    text
}

fn add(value: &Value, depth: usize, all: &mut Vec<Normalizer>) -> Result<(), TokenizerError> {
    all.push(match kind(value) {
        "" if value.is_null() => return Ok(()),
        "Sequence" if depth < MAX_DEPTH => {
            return list(value, "normalizers")
                .iter()
                .try_for_each(|part| add(part, depth + 1, all));
        }
        "NFC" => Normalizer::Nfc,
        "NFD" => Normalizer::Nfd,
        "NFKC" => Normalizer::Nfkc,
        "NFKD" => Normalizer::Nfkd,
        "Lowercase" => Normalizer::Lowercase,
        "StripAccents" => Normalizer::StripAccents,
        "ByteLevel" => Normalizer::Bytes,
        "Prepend" => Normalizer::Prepend(string(value, "prepend")?),
        "Strip" => Normalizer::Strip {
            left: value["strip_left"].as_bool().unwrap_or(true),
            right: value["strip_right"].as_bool().unwrap_or(true),
        },
        "Replace" => {
            let with = string(value, "content")?;
            match (
                value["pattern"]["String"].as_str(),
                value["pattern"]["Regex"].as_str(),
            ) {
                (Some(text), _) => Normalizer::ReplaceText {
                    text: text.to_owned(),
                    with,
                },
                (_, Some(source)) => Normalizer::ReplacePattern {
                    pattern: Box::new(compile(source)?),
                    with,
                },
                _ => return Err(invalid("normalizer", "replaces without a pattern")),
            }
        }
        other => {
            let what = format!("the normalizer '{}'", shorten(other));
            return Err(TokenizerError::Unsupported { what });
        }
    });
    Ok(())
}

fn string(value: &Value, key: &str) -> Result<String, TokenizerError> {
    match value[key].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(invalid("normalizer", &format!("lacks '{key}'"))),
    }
}

/// A regular expression of the file.
pub(super) fn compile(source: &str) -> Result<Pattern, TokenizerError> {
    Pattern::new(source, Dialect::Unicode).map_err(|what| TokenizerError::Unsupported {
        what: format!("a regular expression ({})", shorten(&what)),
    })
}

impl Normalizer {
    /// The new text; `None` when it stays as it is.
    fn apply(&self, text: &str) -> Option<String> {
        let changed = match self {
            // ASCII is in every normal form.
            Normalizer::Nfc | Normalizer::Nfd | Normalizer::Nfkc | Normalizer::Nfkd
                if text.is_ascii() =>
            {
                return None;
            }
            Normalizer::Nfc if unicode_normalization::is_nfc(text) => return None,
            Normalizer::Nfc => text.nfc().collect(),
            Normalizer::Nfd => text.nfd().collect(),
            Normalizer::Nfkc => text.nfkc().collect(),
            Normalizer::Nfkd => text.nfkd().collect(),
            Normalizer::Lowercase => text.chars().flat_map(char::to_lowercase).collect(),
            Normalizer::StripAccents => {
                let tables = Tables::shared();
                let mark = |c: &char| Char::new(*c as u32, tables).in_set(MARK);
                text.chars().filter(|c| !mark(c)).collect()
            }
            Normalizer::Bytes => text.bytes().map(byte_alphabet::character).collect(),
            Normalizer::Prepend(_) if text.is_empty() => return None,
            Normalizer::Prepend(prefix) => format!("{prefix}{text}"),
            Normalizer::Strip { left, right } => {
                let text = if *left { text.trim_start() } else { text };
                let text = if *right { text.trim_end() } else { text };
                text.to_owned()
            }
            Normalizer::ReplaceText { text: from, .. } if from.is_empty() => return None,
            Normalizer::ReplaceText { text: from, with } => text.replace(from.as_str(), with),
            Normalizer::ReplacePattern { pattern, with } => replace(text, pattern, with),
        };
        Some(changed)
    }
}

fn replace(text: &str, pattern: &Pattern, with: &str) -> String {
    let mut chars = Vec::new();
    decode(text, Tables::shared(), &mut chars);
    let bytes =
        |from: usize, to: usize| chars[from..to].iter().map(|c| c.utf8_len()).sum::<usize>();
    let mut out = String::with_capacity(text.len());
    let (mut done, mut done_bytes) = (0, 0);
    pattern.matches(&chars, |start, end| {
        let kept = done_bytes + bytes(done, start);
        out.push_str(&text[done_bytes..kept]);
        out.push_str(with);
        (done, done_bytes) = (end, kept + bytes(start, end));
    });
    out.push_str(&text[done_bytes..]);
    out
}
