//! Tokenizers from GGUF metadata (`tokenizer.ggml.*`).
//!
//! Defaults, well-known texts and corrections are those of llama.cpp b11434, so that the same file gives
//! the same ids and stops at the same tokens.

use std::sync::OnceLock;

use super::bpe::{Alphabet, BytePair};
use super::pretokenizer::{Preset, preset};
use super::sentencepiece::SentencePiece;
use super::special::Precedence;
use super::vocabulary::{Kind, Vocabulary};
use super::{Model, SpecialNames, Tokenizer, TokenizerError};
use crate::Limits;
use crate::gguf::{Array, Metadata, ModelFileError};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

impl Tokenizer {
    /// Makes the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// When an entry is absent, of a wrong type or inconsistent, when the tokenizer is of a kind that is
    /// not supported, or when it is larger than `limits` allow.
    pub fn from_gguf(metadata: &Metadata, limits: &Limits) -> Result<Self, TokenizerError> {
        match metadata.string(MODEL)?.ok_or(TokenizerError::Missing { key: MODEL })? {
            "llama" => sentence_piece(metadata, limits),
            "gpt2" => byte_pair(metadata, limits, None),
            "gemma4" => byte_pair(metadata, limits, Some("gemma4")),
            name => Err(TokenizerError::UnknownModel { name: name.to_owned() }),
        }
    }
}

fn sentence_piece(metadata: &Metadata, limits: &Limits) -> Result<Tokenizer, TokenizerError> {
    let vocabulary = read_vocabulary(metadata, limits)?;
    let scores: Vec<f32> = match metadata.array(SCORES)? {
        None => vec![0.0; vocabulary.len()],
        Some(array) => {
            check_length(SCORES, array.len(), vocabulary.len())?;
            let scores = array.floats().ok_or_else(|| invalid(SCORES, "is not made of numbers"))?;
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
    let add_space_prefix = metadata.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut tokenizer = finish(
        metadata,
        vocabulary,
        Model::SentencePiece(model),
        names,
        Defaults { add_bos: true, force_bos: false },
    )?;
    tokenizer.add_space_prefix = add_space_prefix;
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
    } = preset(name).ok_or_else(|| TokenizerError::UnknownPreTokenizer { name: name.to_owned() })?;

    let mut vocabulary = read_vocabulary(metadata, limits)?;
    let merges = match metadata.array(MERGES)? {
        None if name == "kimi-k2" => Vec::new(),
        None => return Err(TokenizerError::Missing { key: MERGES }),
        Some(array) => {
            check_limit("the list of merges", array.len(), limits.vocabulary)?;
            let lines = array.strings().ok_or_else(|| invalid(MERGES, "is not made of strings"))?;
            lines.map(split_merge).collect()
        }
    };
    let alphabet = if spaces_escaped { Alphabet::Text } else { Alphabet::Bytes };
    let mut model = BytePair::new(&mut vocabulary, merges.into_iter(), alphabet, stages)?;
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
        Model::BytePair(model),
        names,
        Defaults { add_bos, force_bos },
    )?;
    tokenizer.warnings = warnings;
    Ok(tokenizer)
}

/// The two pieces of a merge; the separator is the first space after the first byte.
fn split_merge(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().skip(1).position(|&byte| byte == b' ') {
        Some(at) => (&line[..=at], &line[at + 2..]),
        None => (&[], &[]),
    }
}

fn read_vocabulary(metadata: &Metadata, limits: &Limits) -> Result<Vocabulary, TokenizerError> {
    let tokens: Array<'_> = metadata
        .array(TOKENS)?
        .ok_or(TokenizerError::Missing { key: TOKENS })?;
    check_limit("the vocabulary", tokens.len(), limits.vocabulary)?;
    let texts = tokens.strings().ok_or_else(|| invalid(TOKENS, "is not made of strings"))?;
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

/// Texts that end a generation in some family, whatever the file's ids say.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];
/// How many of [`END_TEXTS`] can be the end of a turn.
const TURN_TEXTS: usize = 11;

const FIM_PREFIX_TEXTS: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX_TEXTS: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE_TEXTS: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
/// A model that starts a new file or pads has finished what it was asked to fill in.
const FIM_END_TEXTS: [(&str, &[&str]); 3] = [
    (
        "tokenizer.ggml.fim_pad_token_id",
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    ),
    (
        "tokenizer.ggml.fim_rep_token_id",
        &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    ),
    ("tokenizer.ggml.fim_sep_token_id", &["<|file_sep|>"]),
];

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
        separator: either("tokenizer.ggml.separator_token_id", "tokenizer.ggml.seperator_token_id")?,
        padding: read("tokenizer.ggml.padding_token_id", None)?,
        fim_prefix: either("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")?,
        fim_suffix: either("tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id")?,
        fim_middle: either("tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id")?,
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
    let id = metadata.unsigned(key).or_else(|error| match metadata.value(key) {
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
    let mut fim_ends = Vec::new();
    for (key, texts) in FIM_END_TEXTS {
        let id = read_id(metadata, &vocabulary, key, None)?;
        fim_ends.extend(id.or_else(|| find_control(&mut vocabulary, texts)));
    }
    let end_of_generation = find_ends(&mut vocabulary, &mut names, fim_ends);
    set_strip_rules(metadata, &mut vocabulary)?;
    Ok(Tokenizer {
        prefix: names.bos.filter(|_| add_bos).into_iter().collect(),
        suffix: names.eos.filter(|_| add_eos).into_iter().collect(),
        vocabulary,
        model,
        precedence: Precedence::Longest,
        names,
        end_of_generation,
        add_space_prefix: false,
        warnings: Vec::new(),
        all_special: OnceLock::new(),
        user_defined: OnceLock::new(),
        decoded: OnceLock::new(),
    })
}

/// The first of `texts` that is a token; it becomes a control token.
fn find_control(vocabulary: &mut Vocabulary, texts: &[&str]) -> Option<u32> {
    let id = texts.iter().find_map(|text| vocabulary.token(text.as_bytes()))?;
    vocabulary.set_kind(id, vocabulary.kind(id).with(Kind::CONTROL));
    Some(id)
}

/// Completes `names` by well-known texts and collects the tokens that end a generation.
fn find_ends(
    vocabulary: &mut Vocabulary,
    names: &mut SpecialNames,
    mut ends: Vec<u32>,
) -> Vec<u32> {
    let by_text = |vocabulary: &mut Vocabulary, id: Option<u32>, texts: &[&str]| {
        id.or_else(|| find_control(vocabulary, texts))
    };
    names.eot = by_text(vocabulary, names.eot, &END_TEXTS[..TURN_TEXTS]);
    names.eom = by_text(vocabulary, names.eom, &["<|eom_id|>"]);
    names.fim_prefix = by_text(vocabulary, names.fim_prefix, FIM_PREFIX_TEXTS);
    names.fim_suffix = by_text(vocabulary, names.fim_suffix, FIM_SUFFIX_TEXTS);
    names.fim_middle = by_text(vocabulary, names.fim_middle, FIM_MIDDLE_TEXTS);

    for text in END_TEXTS {
        ends.extend(find_control(vocabulary, &[text]));
    }
    // These frame channels that a program reads, so they are rendered.
    for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
        if let Some(id) = vocabulary.token(text.as_bytes()) {
            vocabulary.set_kind(id, Kind::USER_DEFINED);
        }
    }
    ends.extend([names.eos, names.eot, names.eom].into_iter().flatten());
    ends.sort_unstable();
    ends.dedup();

    let end = |text: &str| {
        vocabulary
            .token(text.as_bytes())
            .filter(|id| ends.binary_search(id).is_ok())
    };
    let calls = end("<|call|>").or(end("<|calls|>")).is_some();
    let harmony = end("<|return|>").or(end("<|flush|>")).is_some();
    // In these families "<|end|>" ends a message, not the answer.
    let message_end = end("<|end|>").filter(|_| calls && harmony);
    // In these, "</s>" is a plain token.
    let other_ends = end("<|tool_response>").or(end("<|plamo:eos|>")).is_some();
    let plain_s = end("</s>").filter(|_| other_ends);
    for (id, kind) in [(message_end, Kind::USER_DEFINED), (plain_s, Kind::NORMAL)] {
        if let Some(id) = id {
            ends.retain(|&end| end != id);
            vocabulary.set_kind(id, kind);
        }
    }
    ends
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
        return Err(invalid(key, &format!("has {found} entries for {tokens} tokens")));
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
    TokenizerError::Invalid { key, what: what.to_owned() }
}
