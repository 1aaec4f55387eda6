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
mod family;
mod json;
mod metadata;
mod names;
mod rope;
mod safetensors;
mod text;

use std::path::Path;

use checkpoint::Checkpoint;
use config::Config;
use family::Family;
use metadata::Header;

use crate::Limits;
use crate::gguf::{ModelFile, ModelFileError};

/// Opens the checkpoint in `directory`: `config.json` with `model.safetensors`, or with
/// `model.safetensors.index.json` and its shards, of type F32, F16 or BF16.
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
    let tied = config.boolean(&["tie_word_embeddings", "tie_embedding"])?;
    let left_out = tied == Some(true);
    let assembled = assemble::assemble(&checkpoint, &family, &shape, left_out, limits)?;
    if tied == Some(false)
        && !assembled
            .tensors
            .iter()
            .any(|tensor| tensor.name == "output.weight")
    {
        return Err(ModelFileError::Tensor {
            tensor: "lm_head.weight".into(),
            what: "is missing though config.json has `tie_word_embeddings` false; fetch the missing shard".into(),
        });
    }
    let mut files = checkpoint.files;
    let views = assembled.views;
    let mut tensors = assembled.tensors;
    // The configuration is part of what the model computes, and so of its hash.
    let weights = files.len();
    files.push(open_source(config.path())?);
    for tensor in &mut tensors {
        if tensor.source >= weights {
            tensor.source += 1;
        }
    }
    ModelFile::from_parts(header.finish(), tensors, files, views, limits)
}

fn open_source(
    path: &Path,
) -> Result<std::sync::Arc<dyn crate::source::ByteSource>, ModelFileError> {
    crate::source::open(path).map_err(|source| ModelFileError::Io {
        file: path.display().to_string(),
        source,
    })
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
