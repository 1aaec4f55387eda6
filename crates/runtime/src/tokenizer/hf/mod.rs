//! Tokenizers from Hugging Face's `tokenizer.json` and the files beside it.
//!
//! A `tokenizer.json` states a pipeline: added tokens cut the text, a normalizer rewrites what lies between
//! them, pre-tokenizers cut it into words, and byte-pair merges make tokens of those. Every part follows
//! the `tokenizers` library (version 0.23), whose ids these are; what it has and this does not is refused.

mod config;
mod json;
mod normalizer;
mod pipeline;
mod steps;

use std::path::Path;
use std::sync::{Arc, OnceLock};

pub(super) use pipeline::Pipeline;

use config::Config;
use json::{JsonModel, TokenizerJson};
use serde_json::Value;

use super::bpe::{Alphabet, BytePair, Missing};
use super::vocabulary::{Kind, Vocabulary};
use super::well_known::find_ends;
use super::{Model, Tokenizer, TokenizerError};
use crate::Limits;
use crate::source::{self, ByteSource};

/// Name of the file in a model's directory.
pub(super) const FILE: &str = "tokenizer.json";

impl Tokenizer {
    /// Makes the tokenizer of a Hugging Face directory: `tokenizer.json`, and for the roles of tokens
    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and `config.json` where
    /// they exist.
    ///
    /// # Errors
    /// When a file is missing, damaged or larger than `limits` allow, or when the tokenizer does something
    /// that is not supported.
    pub fn from_hf_dir(path: &Path, limits: &Limits) -> Result<Self, TokenizerError> {
        open(&path.join(FILE), limits)
    }
}

/// Opens the `tokenizer.json` at `path`, with the files beside it.
pub(super) fn open(path: &Path, limits: &Limits) -> Result<Tokenizer, TokenizerError> {
    let file = path.display().to_string();
    let source = read(path, limits)?;
    let bytes = source_bytes(&source)?;
    let config = Config::read(path.parent().unwrap_or(Path::new(".")), limits)?;
    from_json(&file, &bytes, &config, limits)
}

/// The file at `path`, when it is not too large.
fn read(path: &Path, limits: &Limits) -> Result<Arc<dyn ByteSource>, TokenizerError> {
    let source = source::open(path).map_err(|source| TokenizerError::Io {
        file: path.display().to_string(),
        source,
    })?;
    match source.len() {
        found if found > limits.json_bytes => Err(TokenizerError::TooLarge {
            what: "a JSON file beside the model",
            found,
            limit: limits.json_bytes,
        }),
        _ => Ok(source),
    }
}

fn source_bytes(
    source: &Arc<dyn ByteSource>,
) -> Result<std::borrow::Cow<'_, [u8]>, TokenizerError> {
    if let Some(bytes) = source.as_slice() {
        return Ok(bytes.into());
    }
    let mut bytes = vec![0; source.len() as usize];
    source
        .read_at(0, &mut bytes)
        .map_err(|error| TokenizerError::Io {
            file: source.name().to_owned(),
            source: error,
        })?;
    Ok(bytes.into())
}

fn from_json(
    file: &str,
    bytes: &[u8],
    config: &Config,
    limits: &Limits,
) -> Result<Tokenizer, TokenizerError> {
    let json: TokenizerJson<'_> =
        serde_json::from_slice(bytes).map_err(|error| json_error(file, &error))?;
    check_model(&json.model)?;
    let (mut vocabulary, added) = read_vocabulary(&json, limits)?;

    let normalizer = normalizer::parse(&json.normalizer)?;
    let (steps, alphabet) = steps::parse(&json.pre_tokenizer)?;
    let unknown = match json.model.unk_token.as_deref() {
        None => None,
        Some(text) => Some(
            vocabulary
                .token(text.as_bytes())
                .ok_or_else(|| invalid("unk_token", "is no token"))?,
        ),
    };
    let missing = Missing::Early {
        byte_fallback: json.model.byte_fallback,
        unknown,
        fuse: json.model.fuse_unk,
    };
    check_limit("the list of merges", json.model.merges.0.len(), limits)?;
    let pairs = json
        .model
        .merges
        .0
        .iter()
        .map(|(left, right)| (&**left, &**right));
    let mut model = BytePair::strict(&vocabulary, pairs, alphabet, missing)?;
    model.ignore_merges = json.model.ignore_merges;

    let decoder = Decoder::parse(&json.decoder, alphabet);
    let (prefix, suffix) = template(&json.post_processor, &vocabulary)?;
    let mut names = config.names(&vocabulary);
    names.unknown = names.unknown.or(unknown);
    if !config.has_names() {
        names.bos = names.bos.or(prefix.first().copied());
        names.eos = names.eos.or(suffix.last().copied());
    }
    let ends = config.ends(&vocabulary);
    let end_of_generation = find_ends(&mut vocabulary, &mut names, [None; 3], ends);
    let prefix = with_flag(prefix, names.bos, config.add_bos);
    let suffix = with_flag(suffix, names.eos, config.add_eos);
    Ok(Tokenizer {
        vocabulary,
        model: Model::Pipeline {
            model,
            pipeline: Pipeline::new(normalizer, steps, &added),
            spelling: decoder.spelling,
        },
        names,
        prefix,
        suffix,
        end_of_generation,
        add_space_prefix: false,
        strip_space: decoder.strip_space,
        warnings: Vec::new(),
        special: OnceLock::new(),
        decoded: OnceLock::new(),
    })
}

fn check_model(model: &JsonModel<'_>) -> Result<(), TokenizerError> {
    let unsupported = |what: String| Err(TokenizerError::Unsupported { what });
    match model.kind.as_deref() {
        Some("BPE") => {}
        None if !model.merges.0.is_empty() => {}
        Some(kind) => return unsupported(format!("the model type '{}'", shorten(kind))),
        None => return unsupported("a model without a type".to_owned()),
    }
    let set = |text: &Option<_>| text.as_deref().is_some_and(|text: &str| !text.is_empty());
    if set(&model.continuing_subword_prefix) || set(&model.end_of_word_suffix) {
        return unsupported("a prefix or suffix of word parts".to_owned());
    }
    Ok(())
}

/// A token that is cut out of raw text.
struct AddedToken<'a> {
    text: &'a str,
    id: u32,
    kind: Kind,
    /// Looked for in normalized text.
    normalized: bool,
}

/// The tokens in id order, those of the model first; ids between them that have no text are unused.
fn read_vocabulary<'j>(
    json: &'j TokenizerJson<'_>,
    limits: &Limits,
) -> Result<(Vocabulary, Vec<AddedToken<'j>>), TokenizerError> {
    let model = &json.model.vocab.0;
    check_limit(
        "the vocabulary",
        model.len() + json.added_tokens.len(),
        limits,
    )?;
    let mut texts: Vec<Option<&str>> = Vec::with_capacity(model.len() + json.added_tokens.len());
    let mut place = |text: &'j str, id: i64, key: &'static str| {
        let index = u32::try_from(id)
            .ok()
            .filter(|&id| u64::from(id) < limits.vocabulary)
            .ok_or_else(|| {
                invalid(
                    key,
                    &format!("has a token with the id {id}, which cannot be"),
                )
            })?;
        let index = index as usize;
        if index >= texts.len() {
            texts.resize(index + 1, None);
        }
        match texts[index].replace(text) {
            Some(other) if other != text => {
                Err(invalid(key, &format!("gives the id {id} to two tokens")))
            }
            _ => Ok(index as u32),
        }
    };
    for (text, id) in model {
        place(text, *id, "vocab")?;
    }
    // A token that the model has keeps the model's id.
    let known: foldhash::HashMap<&str, i64> = match json.added_tokens.len() {
        0 => foldhash::HashMap::default(),
        _ => {
            let contents: std::collections::HashSet<&str> = json
                .added_tokens
                .iter()
                .map(|token| &*token.content)
                .collect();
            let known = model.iter().filter(|(text, _)| contents.contains(&**text));
            known.map(|(text, id)| (&**text, *id)).collect()
        }
    };
    let mut added = Vec::with_capacity(json.added_tokens.len());
    for token in &json.added_tokens {
        let id = known.get(&*token.content).copied().unwrap_or(token.id);
        let flag = |set: bool, kind| if set { kind } else { Kind::NONE };
        added.push(AddedToken {
            text: &token.content,
            id: place(&token.content, id, "added_tokens")?,
            kind: flag(token.special, Kind::CONTROL)
                .with(flag(!token.special, Kind::USER_DEFINED))
                .with(flag(token.lstrip, Kind::STRIP_LEFT))
                .with(flag(token.rstrip, Kind::STRIP_RIGHT))
                .with(flag(token.single_word, Kind::SINGLE_WORD)),
            normalized: token.normalized.unwrap_or(!token.special),
        });
    }
    let mut kinds: Vec<Kind> = texts
        .iter()
        .map(|text| match text {
            None => Kind::NONE,
            Some(text) if json.model.byte_fallback && is_byte(text) => Kind::BYTE,
            Some(_) => Kind::NORMAL,
        })
        .collect();
    for token in &added {
        kinds[token.id as usize] = token.kind;
    }
    let texts = texts.iter().map(|text| text.unwrap_or_default().as_bytes());
    Ok((Vocabulary::new(texts, kinds)?, added))
}

/// Whether `text` is `<0xXX>`.
fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Tokens that a post-processor puts before and after a text.
fn template(
    value: &Value,
    vocabulary: &Vocabulary,
) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < vocabulary.len())
            .ok_or_else(|| invalid("post_processor", "names a token that does not exist"))
    };
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    match kind(value) {
        "" | "ByteLevel" => {}
        "Sequence" => {
            for part in list(value, "processors") {
                let (before, after) = template(part, vocabulary)?;
                prefix.splice(0..0, before);
                suffix.extend(after);
            }
        }
        "TemplateProcessing" => {
            let mut after = false;
            for piece in list(value, "single") {
                if piece.get("Sequence").is_some() {
                    after = true;
                } else if let Some(name) = piece["SpecialToken"]["id"].as_str() {
                    let ids = list(&value["special_tokens"][name], "ids");
                    let ids: Vec<u32> = ids.iter().map(id).collect::<Result<_, _>>()?;
                    if after { &mut suffix } else { &mut prefix }.extend(ids);
                } else {
                    return Err(invalid("post_processor", "has a piece of an unknown kind"));
                }
            }
        }
        "RobertaProcessing" | "BertProcessing" => {
            prefix.push(id(&value["cls"][1])?);
            suffix.push(id(&value["sep"][1])?);
        }
        other => {
            let what = format!("the post-processor '{}'", shorten(other));
            return Err(TokenizerError::Unsupported { what });
        }
    }
    Ok((prefix, suffix))
}

/// `add_bos_token` and `add_eos_token` overrule the template, as they do when a model is converted.
fn with_flag(ids: Vec<u32>, id: Option<u32>, flag: Option<bool>) -> Vec<u32> {
    match (id, flag) {
        (Some(id), Some(true)) if !ids.contains(&id) => [&ids[..], &[id]].concat(),
        (Some(id), Some(false)) => ids.into_iter().filter(|&other| other != id).collect(),
        _ => ids,
    }
}

/// What the decoder says about the pieces.
struct Decoder {
    spelling: Alphabet,
    strip_space: bool,
}

impl Decoder {
    fn parse(value: &Value, alphabet: Alphabet) -> Self {
        let mut decoder = Decoder {
            spelling: alphabet,
            strip_space: false,
        };
        decoder.add(value, 0);
        decoder
    }

    fn add(&mut self, value: &Value, depth: usize) {
        match kind(value) {
            "Sequence" if depth < MAX_DEPTH => {
                for part in list(value, "decoders") {
                    self.add(part, depth + 1);
                }
            }
            "ByteLevel" => self.spelling = Alphabet::Bytes,
            "Metaspace" => {
                self.spelling = Alphabet::Text;
                self.strip_space = steps::prepends(value);
            }
            "Strip" => self.strip_space = value["start"].as_u64().is_some_and(|start| start > 0),
            _ => {}
        }
    }
}

/// Sequences in sequences; JSON itself allows 128.
const MAX_DEPTH: usize = 128;

/// The `type` of a component; empty for none.
fn kind(value: &Value) -> &str {
    value["type"].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn check_limit(what: &'static str, found: usize, limits: &Limits) -> Result<(), TokenizerError> {
    match found as u64 {
        found if found > limits.vocabulary => Err(TokenizerError::TooLarge {
            what,
            found,
            limit: limits.vocabulary,
        }),
        _ => Ok(()),
    }
}

fn json_error(file: &str, error: &serde_json::Error) -> TokenizerError {
    TokenizerError::Json {
        file: file.to_owned(),
        what: format!("{}; fetch the file again", shorten(&error.to_string())),
    }
}

/// At most 120 characters, so that a hostile file cannot flood a message.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn invalid(key: &'static str, what: &str) -> TokenizerError {
    TokenizerError::Invalid {
        key,
        what: what.to_owned(),
    }
}

/// Roles of tokens by text, for [`Config`].
fn token_named(vocabulary: &Vocabulary, text: Option<&str>) -> Option<u32> {
    vocabulary.token(text?.as_bytes())
}

#[cfg(test)]
mod tests;
