//! What belongs to the text around the weights: the chat template and the tokens that begin and end.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::Config;
use super::json;
use super::metadata::Header;
use crate::Limits;
use crate::gguf::ModelFileError;

/// Writes the chat template and the special tokens of `directory`, as far as there are any.
pub(super) fn write(
    header: &mut Header,
    config: &Config,
    directory: &Path,
    limits: &Limits,
) -> Result<(), ModelFileError> {
    if let Some(template) = chat_template(directory, limits)? {
        header.string("tokenizer.chat_template", &template);
    }
    let path = directory.join("generation_config.json");
    let generation: Map<String, Value> = json::read(&path, limits)?.unwrap_or_default();
    for (key, name) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ] {
        let here = generation.get(key).filter(|value| !value.is_null());
        let value = here.or(config.value(&[key]));
        if let Some(id) = value.and_then(first_id) {
            header.unsigned(name, id);
        }
    }
    Ok(())
}

/// A token's number, or the first of several.
fn first_id(value: &Value) -> Option<u32> {
    let value = match value {
        Value::Array(several) => several.first()?,
        one => one,
    };
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The template of plain conversations: a file of its own, else what the tokenizer's or the
/// processor's configuration says.
fn chat_template(directory: &Path, limits: &Limits) -> Result<Option<String>, ModelFileError> {
    let path = directory.join("chat_template.jinja");
    if let Some(template) = json::read_text(&path, limits)? {
        return Ok(Some(template));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let file: Option<TemplateFile> = json::read(&directory.join(name), limits)?;
        if let Some(template) = file.and_then(|file| file.chat_template) {
            return Ok(template.default());
        }
    }
    Ok(None)
}

#[derive(Deserialize)]
struct TemplateFile {
    #[serde(default)]
    chat_template: Option<Template>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Template {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Template {
    fn default(self) -> Option<String> {
        match self {
            Template::One(template) => Some(template),
            Template::Several(several) => several
                .into_iter()
                .find(|named| named.name == "default")
                .map(|named| named.template),
        }
    }
}
