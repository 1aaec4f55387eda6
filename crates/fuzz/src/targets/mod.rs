//! The targets, one file each.

mod gguf;
mod registry;

use crate::Target;

/// Every target.
pub const TARGETS: &[Target] = &[gguf::TARGET, registry::TARGET];
