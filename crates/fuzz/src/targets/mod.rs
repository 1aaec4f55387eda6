//! The targets, one file each.

mod chat_template;
mod checkpoint;
mod constraint;
mod gguf;
mod prefix_file;
mod registry;
mod tokenizer_json;

use crate::Target;

/// Every target.
pub const TARGETS: &[Target] = &[
    chat_template::TARGET,
    checkpoint::TARGET,
    constraint::TARGET,
    gguf::TARGET,
    prefix_file::TARGET,
    registry::TARGET,
    tokenizer_json::TARGET,
];
