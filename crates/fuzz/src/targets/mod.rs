//! The targets, one file each.

mod chat_template;
mod checkpoint;
mod constraint;
mod delta;
mod gguf;
mod manifest;
mod prefix_file;
mod registry;
mod sealed;
mod signature;
mod tokenizer_json;

use crate::Target;

/// Every target.
pub const TARGETS: &[Target] = &[
    chat_template::TARGET,
    checkpoint::TARGET,
    constraint::TARGET,
    delta::TARGET,
    gguf::TARGET,
    manifest::TARGET,
    prefix_file::TARGET,
    registry::TARGET,
    sealed::TARGET,
    signature::TARGET,
    tokenizer_json::TARGET,
];
