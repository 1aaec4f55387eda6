//! Hugging Face checkpoint directories: `config.json` and safetensors, presented as a [`ModelFile`].
//!
//! The configuration becomes the metadata, and the tensors get the names, that a GGUF file of the
//! same architecture has; so everything after this module sees one kind of model. Weights stay where
//! they are: fused, stacked or transposed ones are views of the files.
//!
//! The vocabulary is read elsewhere ([`crate::tokenizer`]).

mod assemble;
mod checkpoint;
mod config;
mod explain;
mod family;
mod json;
mod metadata;
mod names;
mod rope;
mod safetensors;
mod text;

use std::path::Path;

use assemble::Assembled;
use checkpoint::Checkpoint;
use config::Config;
use family::Family;
use metadata::Header;

use crate::Limits;
use crate::gguf::{ModelFile, ModelFileError, Weightless};
use crate::model::{ModelSpec, model_spec};
use crate::source;

/// Opens the checkpoint in `directory`: `config.json` with `model.safetensors`, or with
/// `model.safetensors.index.json` and its shards, of type F32, F16 or BF16. What is opened can be
/// described ([`model_spec`]).
///
/// # Errors
/// [`ModelFileError`] says what is wrong with which file.
pub fn open(directory: &Path, limits: &Limits) -> Result<ModelFile, ModelFileError> {
    let config = Config::read(directory, limits)?;
    let family = Family::of(&config)?;
    let mut header = Header::new(family.architecture);
    header.string("general.name", &model_name(directory));
    let shape = metadata::write(&mut header, &config, &family, limits)?;
    text::write(&mut header, &config, directory, limits)?;

    let checkpoint = Checkpoint::open(directory, limits)?;
    let assembled = assemble::assemble(&checkpoint, &config, &family, &shape, limits)?;
    // The configuration is part of what the model computes, and so of its hash.
    let mut files = checkpoint.files;
    files.push(
        source::open(config.path()).map_err(|source| ModelFileError::Io {
            file: config.path().display().to_string(),
            source,
        })?,
    );
    let Assembled { tensors, views } = assembled;
    let file = ModelFile::from_parts(header.finish(), tensors, files, views, limits)?;
    match model_spec(&file, limits) {
        Ok(_) => Ok(file),
        Err(error) => Err(explain::in_checkpoint_words(error, &config, &family)),
    }
}

/// Describes the model of a bare `config.json`, of which there are no weights: for planning, not for loading. Biases,
/// which weigh next to nothing, are left out.
///
/// # Errors
/// [`ModelFileError`] says what is wrong with the file.
pub fn describe(config: &Path, limits: &Limits) -> Result<ModelSpec, ModelFileError> {
    let config = Config::open(config, limits)?;
    let family = Family::of(&config)?;
    let mut header = Header::new(family.architecture);
    let stem = config.path().file_stem().and_then(|stem| stem.to_str());
    let name = match stem {
        Some("config") | None => model_name(config.path().parent().unwrap_or(Path::new("."))),
        Some(stem) => stem.to_owned(),
    };
    header.string("general.name", &name);
    let shape = metadata::write(&mut header, &config, &family, limits)?;
    let vocabulary = config.size(&["vocab_size"], None)?;
    let tied_by_custom = matches!(
        family.architecture,
        "bloom" | "gemma2" | "gemma3" | "gpt2" | "lfm2" | "mpt" | "smollm3"
    );
    let tied = config
        .boolean(&["tie_word_embeddings", "tie_embedding"])?
        .unwrap_or(tied_by_custom);
    let file = ModelFile::from_parts(header.finish(), vec![], vec![], vec![], limits)?;
    let context = file
        .metadata
        .unsigned(&format!("{}.context_length", family.architecture))?;
    let file = file.with_promise(Weightless {
        tied,
        experts: shape.experts > 0,
        vocabulary: vocabulary.into(),
        positions: context.unwrap_or(0),
    });
    model_spec(&file, limits).map_err(|error| explain::in_checkpoint_words(error, &config, &family))
}

/// What to call the model: its directory, or in a download cache its repository
/// (`models--owner--name/snapshots/revision`).
fn model_name(directory: &Path) -> String {
    let absolute = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let mut parts = absolute
        .ancestors()
        .filter_map(|ancestor| ancestor.file_name()?.to_str());
    let own = parts.next().unwrap_or("model");
    let repository = parts
        .nth(1)
        .and_then(|name| name.strip_prefix("models--"))
        .and_then(|name| name.rsplit("--").next());
    repository.unwrap_or(own).to_owned()
}
