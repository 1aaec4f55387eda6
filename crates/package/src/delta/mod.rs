//! Deltas: what a device needs to make the next version of a model from the one it has.
//!
//! ```text
//! magic · BLAKE3 of the result · start of the base's BLAKE3 · lengths · kind · streams
//! ```
//!
//! A GGUF file is taken apart: its header is coded as bytes (`general`), then a plan says for each tensor which old tensor it
//! comes from (the same name; else equal content under another name; else a similar tensor of that shape; else none), then the
//! tensors that changed follow in streams of their own, which are coded and decoded on all cores:
//!
//! | tensor | how |
//! |---|---|
//! | quantised blocks | `quantised`: factors, then codes, on the new grid |
//! | plain numbers | `plain::Floats`: distance in units of the last place |
//! | other types, and new tensors | `plain::Records` |
//!
//! Any other file is coded as bytes as a whole. Applying takes a few megabytes of memory beside the header (for other files up to
//! 60), whatever the size, can be taken up again after an interruption, and makes the result visible only when its hash is right.

#![allow(
    clippy::needless_range_loop,
    reason = "indices are those of the formats, and several arrays share them"
)]

mod apply;
mod block;
mod coder;
mod diff;
mod general;
mod layout;
mod plain;
mod plan;
mod quantised;
#[cfg(test)]
mod tests;

pub use apply::{Applied, apply};
pub use diff::{Made, diff};

use std::io;

/// Why a delta was not made, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not a delta.
    #[error("{0} is not a delta; give the file that ondine diff wrote")]
    NotADelta(String),
    /// It was made for another base.
    #[error("{0} is not the file this delta starts from; give the version it was made against")]
    OtherBase(String),
    /// It declares a result that is larger than what is allowed.
    #[error("the delta declares a result of {0} bytes, more than {1}; it is refused")]
    TooLarge(u64, u64),
    /// Its content cannot be decoded, or the result's hash differs.
    #[error("the delta is damaged: {0}; fetch it again")]
    Damaged(String),
}

impl DeltaError {
    /// Whether the delta or the base is not what it should be (rather than a file that cannot be read).
    pub fn is_refusal(&self) -> bool {
        !matches!(self, DeltaError::File { .. })
    }
}

fn file_error(path: &std::path::Path) -> impl Fn(io::Error) -> DeltaError + use<> {
    let path = path.display().to_string();
    move |source| match source.kind() {
        io::ErrorKind::InvalidData => {
            DeltaError::Damaged("a copy reaches outside of the base".into())
        }
        _ => DeltaError::File {
            path: path.clone(),
            source,
        },
    }
}
