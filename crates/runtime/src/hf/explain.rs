//! Says what the checkpoint's own names are when its tensors do not make a model.

use super::config::Config;
use super::family::Family;
use crate::gguf::ModelFileError;

/// An error about the model, which knows only its own names, in the words of the checkpoint.
pub(super) fn in_checkpoint_words(
    error: ModelFileError,
    config: &Config,
    family: &Family,
) -> ModelFileError {
    match error {
        ModelFileError::Metadata { key, what } => {
            config.refuse(&format!("makes the metadata `{key}`, which {what}"))
        }
        ModelFileError::Tensor { tensor, what } => {
            let what = match what.strip_prefix("is missing") {
                Some(_) => {
                    "is missing; fetch the missing file, or one that fits config.json".into()
                }
                None => what,
            };
            let tensor = stored_name(&tensor, family).unwrap_or(tensor);
            ModelFileError::Tensor { tensor, what }
        }
        other => other,
    }
}

/// What a checkpoint calls the model's tensor `name`, without the outer module.
fn stored_name(name: &str, family: &Family) -> Option<String> {
    let (base, kind) = name.rsplit_once('.')?;
    let layer = base
        .strip_prefix("blk.")
        .and_then(|rest| rest.split('.').next());
    let pattern = match layer {
        Some(layer) => base.replacen(&format!("blk.{layer}."), "blk.#.", 1),
        None => base.to_owned(),
    };
    let rule = family.rules().find(|rule| rule.to == pattern)?;
    let stored = rule.from.replace('#', layer.unwrap_or_default());
    Some(format!("{}.{kind}", stored.replace('@', "0")))
}
