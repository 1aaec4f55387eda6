//! Roles of tokens, from the files beside `tokenizer.json`.

use std::path::Path;

use serde_json::Value;

use super::super::SpecialNames;
use super::super::vocabulary::Vocabulary;
use super::{Limits, TokenizerError, json_error, list, read, source_bytes, token_named};

/// What the files beside `tokenizer.json` say; each may be absent.
#[derive(Debug, Default)]
pub(super) struct Config {
    tokenizer: Value,
    special_tokens_map: Value,
    generation: Value,
    model: Value,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
}

impl Config {
    /// Reads the files of `directory`.
    ///
    /// # Errors
    /// When a file exists and is not JSON, or is larger than `limits` allow.
    pub(super) fn read(directory: &Path, limits: &Limits) -> Result<Self, TokenizerError> {
        let file = |name: &str| {
            let path = directory.join(name);
            if !path.is_file() {
                return Ok(Value::Null);
            }
            let source = read(&path, limits)?;
            serde_json::from_slice(&source_bytes(&source)?)
                .map_err(|error| json_error(&path.display().to_string(), &error))
        };
        Ok(Config::new(
            file("tokenizer_config.json")?,
            file("special_tokens_map.json")?,
            file("generation_config.json")?,
            file("config.json")?,
        ))
    }

    pub(super) fn new(
        tokenizer: Value,
        special_tokens_map: Value,
        generation: Value,
        model: Value,
    ) -> Self {
        Config {
            add_bos: tokenizer["add_bos_token"].as_bool(),
            add_eos: tokenizer["add_eos_token"].as_bool(),
            tokenizer,
            special_tokens_map,
            generation,
            model,
        }
    }

    /// Whether any file names tokens.
    pub(super) fn has_names(&self) -> bool {
        !self.tokenizer.is_null() || !self.special_tokens_map.is_null()
    }

    pub(super) fn names(&self, vocabulary: &Vocabulary) -> SpecialNames {
        let token = |key: &str| token_named(vocabulary, self.text(key));
        let id = |key: &str| self.ids(key).find(|&id| (id as usize) < vocabulary.len());
        SpecialNames {
            bos: token("bos_token").or_else(|| id("bos_token_id")),
            eos: token("eos_token").or_else(|| id("eos_token_id")),
            unknown: token("unk_token"),
            separator: token("sep_token"),
            padding: token("pad_token").or_else(|| id("pad_token_id")),
            ..SpecialNames::default()
        }
    }

    /// All tokens that are said to end a generation.
    pub(super) fn ends(&self, vocabulary: &Vocabulary) -> Vec<u32> {
        let ids = self.ids("eos_token_id");
        ids.filter(|&id| (id as usize) < vocabulary.len()).collect()
    }

    /// The text of a token: a string, or an object with its content.
    fn text(&self, key: &str) -> Option<&str> {
        [&self.tokenizer, &self.special_tokens_map]
            .into_iter()
            .find_map(|file| {
                let value = &file[key];
                value.as_str().or_else(|| value["content"].as_str())
            })
    }

    /// Ids of the generation's and the model's configuration: one, or a list.
    fn ids(&self, key: &str) -> impl Iterator<Item = u32> {
        [&self.generation, &self.model]
            .into_iter()
            .flat_map(move |file| {
                let one = file[key].as_u64();
                one.into_iter()
                    .chain(list(file, key).iter().filter_map(Value::as_u64))
            })
            .filter_map(|id| u32::try_from(id).ok())
    }
}
