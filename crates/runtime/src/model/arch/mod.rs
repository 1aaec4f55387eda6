//! One small file per family of architectures: its metadata keys, its layer, its tensor names.

mod bloom;
mod gemma;
mod gpt2;
mod granite;
mod lfm2;
mod llama;
mod mpt;
mod olmoe;
mod phi3;
mod qwen;
mod smollm3;

use super::builder::Builder;
use super::spec::ModelSpec;
use crate::Limits;
use crate::gguf::{ModelFile, ModelFileError};

type Describe = fn(&Builder<'_>) -> Result<ModelSpec, ModelFileError>;

const DESCRIPTIONS: [(&str, Describe); 15] = [
    ("bloom", bloom::describe),
    ("gemma2", gemma::describe_gemma2),
    ("gemma3", gemma::describe_gemma3),
    ("gpt2", gpt2::describe),
    ("granite", granite::describe),
    ("granitemoe", granite::describe),
    ("lfm2", lfm2::describe),
    ("llama", llama::describe),
    ("mpt", mpt::describe),
    ("olmoe", olmoe::describe),
    ("phi3", phi3::describe),
    ("qwen2", qwen::describe_qwen2),
    ("qwen3", qwen::describe_qwen3),
    ("qwen3moe", qwen::describe_qwen3),
    ("smollm3", smollm3::describe),
];

/// The architectures that can be run, by their name in `general.architecture`.
pub const ARCHITECTURES: [&str; DESCRIPTIONS.len()] = {
    let mut names = [""; DESCRIPTIONS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = DESCRIPTIONS[index].0;
        index += 1;
    }
    names
};

/// Describes the model in `file`.
///
/// # Errors
/// When the architecture is not known, or metadata or tensors are missing, do not fit together or
/// pass `limits`.
pub fn model_spec(file: &ModelFile, limits: &Limits) -> Result<ModelSpec, ModelFileError> {
    let architecture = file
        .metadata
        .string("general.architecture")?
        .ok_or_else(|| ModelFileError::Metadata {
            key: "general.architecture".into(),
            what: "is missing; this file holds no language model".into(),
        })?;
    let describe = DESCRIPTIONS
        .iter()
        .find(|(name, _)| *name == architecture)
        .map(|(_, describe)| describe)
        .ok_or_else(|| ModelFileError::Metadata {
            key: "general.architecture".into(),
            what: format!(
                "is `{architecture}`, which is not supported; supported are {}",
                ARCHITECTURES.join(", ")
            ),
        })?;
    describe(&Builder::new(file, architecture, limits)?)
}
