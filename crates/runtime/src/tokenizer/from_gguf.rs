//! Tokenizers from GGUF metadata (`tokenizer.ggml.*`).
//!
//! Defaults, well-known texts and corrections are those of llama.cpp b11434, so that the same file gives
//! the same ids and stops at the same tokens.

use std::sync::OnceLock;

use super::bpe::{Alphabet, BytePair, MergeLines};
use super::pretokenizer::{Preset, preset};
use super::sentencepiece::SentencePiece;
use super::vocabulary::{Kind, Vocabulary};
use super::well_known::find_ends;
use super::{Model, SpecialNames, Tokenizer, TokenizerError};
use crate::Limits;
use crate::gguf::{Array, Metadata, ModelFileError};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
/// Pad, repository and file separator of filling in the middle: all end a generation.
const FIM_END_KEYS: [&str; 3] = [
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
];

impl Tokenizer {
    /// Makes the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// When an entry is absent, of a wrong type or inconsistent, when the tokenizer is of a kind that is
    /// not supported, or when it is larger than `limits` allow.
    pub fn from_gguf(metadata: &Metadata, limits: &Limits) -> Result<Self, TokenizerError> {
        match metadata
            .string(MODEL)?
            .ok_or(TokenizerError::Missing { key: MODEL })?
        {
            "llama" => sentence_piece(metadata, limits),
            "gpt2" => byte_pair(metadata, limits, None),
            "gemma4" => byte_pair(metadata, limits, Some("gemma4")),
            name => Err(TokenizerError::UnknownModel {
                name: name.to_owned(),
            }),
        }
    }
}

fn sentence_piece(metadata: &Metadata, limits: &Limits) -> Result<Tokenizer, TokenizerError> {
    let vocabulary = read_vocabulary(metadata, limits)?;
    let scores: Vec<f32> = match metadata.array(SCORES)? {
        None => vec![0.0; vocabulary.len()],
        Some(array) => {
            check_length(SCORES, array.len(), vocabulary.len())?;
            let scores = array
                .floats()
                .ok_or_else(|| invalid(SCORES, "is not made of numbers"))?;
            scores.take(vocabulary.len()).collect()
        }
    };
    let defaults = SpecialNames {
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..SpecialNames::default()
    };
    let names = read_names(metadata, &vocabulary, defaults)?;
    let model = SentencePiece::new(&vocabulary, scores.into_iter(), names.unknown);
    let add_space_prefix = metadata
        .boolean("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let mut tokenizer = finish(
        metadata,
        vocabulary,
        Model::SentencePiece(model),
        names,
        Defaults {
            add_bos: true,
            force_bos: false,
        },
    )?;
    tokenizer.add_space_prefix = add_space_prefix;
    tokenizer.strip_space = add_space_prefix;
    Ok(tokenizer)
}

fn byte_pair(
    metadata: &Metadata,
    limits: &Limits,
    fixed_pre: Option<&str>,
) -> Result<Tokenizer, TokenizerError> {
    let mut warnings = Vec::new();
    let name = match fixed_pre {
        Some(name) => name,
        None => metadata.string(PRE)?.unwrap_or_default(),
    };
    let name = if name.is_empty() {
        warnings.push(format!(
            "the model does not name its pre-tokenizer ('{PRE}'), so the default is used and answers may be worse"
        ));
        "default"
    } else {
        name
    };
    let Preset {
        stages,
        ignore_merges,
        add_bos,
        without_bos,
        spaces_escaped,
        whole_newlines,
        force_bos,
    } = preset(name).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
        name: name.to_owned(),
    })?;

    let vocabulary = read_vocabulary(metadata, limits)?;
    let lines = match metadata.array(MERGES)? {
        None if name == "kimi-k2" => MergeLines::default(),
        None => return Err(TokenizerError::Missing { key: MERGES }),
        Some(array) => {
            check_limit("the list of merges", array.len(), limits.vocabulary)?;
            let lines = array
                .strings()
                .ok_or_else(|| invalid(MERGES, "is not made of strings"))?;
            MergeLines::new(lines, &vocabulary)?
        }
    };
    let alphabet = if spaces_escaped {
        Alphabet::Text
    } else {
        Alphabet::Bytes
    };
    let mut model = BytePair::lenient(lines, alphabet);
    model.ignore_merges = ignore_merges;
    model.whole_newlines = whole_newlines;

    let default_id = fixed_pre.is_none().then_some(11);
    let defaults = SpecialNames {
        bos: default_id.filter(|_| !without_bos),
        eos: default_id,
        ..SpecialNames::default()
    };
    let names = read_names(metadata, &vocabulary, defaults)?;
    let mut tokenizer = finish(
        metadata,
        vocabulary,
        Model::Words { model, stages },
        names,
        Defaults { add_bos, force_bos },
    )?;
    tokenizer.warnings = warnings;
    Ok(tokenizer)
}

fn read_vocabulary(metadata: &Metadata, limits: &Limits) -> Result<Vocabulary, TokenizerError> {
    let tokens: Array<'_> = metadata
        .array(TOKENS)?
        .ok_or(TokenizerError::Missing { key: TOKENS })?;
    check_limit("the vocabulary", tokens.len(), limits.vocabulary)?;
    let texts = tokens
        .strings()
        .ok_or_else(|| invalid(TOKENS, "is not made of strings"))?;
    let kinds = match metadata.array(TOKEN_TYPE)? {
        None => Vec::new(),
        Some(array) => {
            check_length(TOKEN_TYPE, array.len(), tokens.len())?;
            let values = array
                .integers()
                .ok_or_else(|| invalid(TOKEN_TYPE, "is not made of integers"))?;
            values.take(tokens.len()).map(Kind::from_gguf).collect()
        }
    };
    Vocabulary::new(texts, kinds)
}

fn read_names(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    defaults: SpecialNames,
) -> Result<SpecialNames, TokenizerError> {
    let read = |key: &str, default| read_id(metadata, vocabulary, key, default);
    let either = |key: &str, old_key: &str| read(old_key, read(key, None)?);
    Ok(SpecialNames {
        bos: read("tokenizer.ggml.bos_token_id", defaults.bos)?,
        eos: read("tokenizer.ggml.eos_token_id", defaults.eos)?,
        eot: read("tokenizer.ggml.eot_token_id", None)?,
        eom: read("tokenizer.ggml.eom_token_id", None)?,
        unknown: read("tokenizer.ggml.unknown_token_id", defaults.unknown)?,
        separator: either(
            "tokenizer.ggml.separator_token_id",
            "tokenizer.ggml.seperator_token_id",
        )?,
        padding: read("tokenizer.ggml.padding_token_id", None)?,
        fim_prefix: either(
            "tokenizer.ggml.fim_pre_token_id",
            "tokenizer.ggml.prefix_token_id",
        )?,
        fim_suffix: either(
            "tokenizer.ggml.fim_suf_token_id",
            "tokenizer.ggml.suffix_token_id",
        )?,
        fim_middle: either(
            "tokenizer.ggml.fim_mid_token_id",
            "tokenizer.ggml.middle_token_id",
        )?,
    })
}

/// The id under `key`; the default when it is absent or outside the vocabulary.
fn read_id(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    key: &str,
    default: Option<u32>,
) -> Result<Option<u32>, ModelFileError> {
    let inside = |id: &u32| (*id as usize) < vocabulary.len();
    let id = metadata
        .unsigned(key)
        .or_else(|error| match metadata.value(key) {
            // Some converters write -1 for "none".
            Some(crate::gguf::Value::Integer(_)) => Ok(None),
            _ => Err(error),
        })?;
    Ok(id
        .and_then(|id| u32::try_from(id).ok())
        .filter(inside)
        .or(default.filter(inside)))
}

/// What the model's kind says when the file is silent.
struct Defaults {
    add_bos: bool,
    force_bos: bool,
}

fn finish(
    metadata: &Metadata,
    mut vocabulary: Vocabulary,
    model: Model,
    mut names: SpecialNames,
    defaults: Defaults,
) -> Result<Tokenizer, TokenizerError> {
    let flag = |key: &str, default| metadata.boolean(key).map(|value| value.unwrap_or(default));
    let add_bos = flag("tokenizer.ggml.add_bos_token", defaults.add_bos)? || defaults.force_bos;
    let add_eos = flag("tokenizer.ggml.add_eos_token", false)?;
    let mut fim_ends = [None; 3];
    for (id, key) in fim_ends.iter_mut().zip(FIM_END_KEYS) {
        *id = read_id(metadata, &vocabulary, key, None)?;
    }
    let end_of_generation = find_ends(&mut vocabulary, &mut names, fim_ends, Vec::new());
    set_strip_rules(metadata, &mut vocabulary)?;
    Ok(Tokenizer {
        prefix: names.bos.filter(|_| add_bos).into_iter().collect(),
        suffix: names.eos.filter(|_| add_eos).into_iter().collect(),
        vocabulary,
        model,
        names,
        end_of_generation,
        add_space_prefix: false,
        strip_space: false,
        warnings: Vec::new(),
        special: OnceLock::new(),
        decoded: OnceLock::new(),
    })
}

/// Whitespace around special tokens that some families swallow; GGUF files do not say which.
fn set_strip_rules(metadata: &Metadata, vocabulary: &mut Vocabulary) -> Result<(), TokenizerError> {
    let text = |key: &str| metadata.string(key).map(Option::unwrap_or_default);
    let (pre, architecture) = (text(PRE)?, text("general.architecture")?);
    let name = text("general.name").unwrap_or_default().to_lowercase();
    let contains = |text: &str, any: &[&str]| any.iter().any(|part| text.contains(part));
    let masks = if contains(pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code", "mmbert"])
        || contains(architecture, &["nomic-bert-moe", "jina-bert-v3"])
    {
        "<mask>"
    } else if contains(&name, &["phi-3", "phi3"]) {
        let ids: Vec<u32> = vocabulary.ids_of_kind(Kind::MATCHED).collect();
        for id in ids.into_iter().chain(vocabulary.token(b"</s>")) {
            vocabulary.set_kind(id, vocabulary.kind(id).with(Kind::STRIP_RIGHT));
        }
        for text in ["<unk>", "<s>", "<|endoftext|>"] {
            if let Some(id) = vocabulary.token(text.as_bytes()) {
                vocabulary.set_kind(id, vocabulary.kind(id).without(Kind::STRIP_RIGHT));
            }
        }
        return Ok(());
    } else if contains(&name, &["modern-bert"]) {
        "[MASK]"
    } else {
        return Ok(());
    };
    if let Some(id) = vocabulary.token(masks.as_bytes()) {
        vocabulary.set_kind(id, vocabulary.kind(id).with(Kind::STRIP_LEFT));
    }
    Ok(())
}

fn check_length(key: &'static str, found: usize, tokens: usize) -> Result<(), TokenizerError> {
    if found < tokens {
        return Err(invalid(
            key,
            &format!("has {found} entries for {tokens} tokens"),
        ));
    }
    Ok(())
}

fn check_limit(what: &'static str, found: usize, limit: u64) -> Result<(), TokenizerError> {
    match found as u64 {
        found if found > limit => Err(TokenizerError::TooLarge { what, found, limit }),
        _ => Ok(()),
    }
}

fn invalid(key: &'static str, what: &str) -> TokenizerError {
    TokenizerError::Invalid {
        key,
        what: what.to_owned(),
    }
}
