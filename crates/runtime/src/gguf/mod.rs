//! GGUF model files, versions 2 and 3, whole or split.
//!
//! Layout (specification: `docs/gguf.md` of the ggml project): magic `GGUF`, version, tensor count,
//! metadata count; the metadata entries; the tensor table; padding to `general.alignment`; tensor
//! data. All integers are little-endian.

mod cursor;
mod file;
mod metadata;
mod writer;

pub(crate) use file::Weightless;
pub use file::{ModelFile, TensorInfo};
pub use metadata::{Array, ElementType, Metadata, StringIter, Value};
pub use writer::HeaderWriter;

use thiserror::Error;

/// Why a model file was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelFileError {
    /// The medium failed.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// File the read was for.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file ends before what it declares.
    #[error(
        "{file}: ends inside {}; the download may be incomplete, fetch the file again",
        one_line(what)
    )]
    Truncated {
        /// File that is too short.
        file: String,
        /// What was being read.
        what: String,
    },
    /// Something declared by the file cannot be true or is beyond [`crate::Limits`].
    #[error("{file}: {}", one_line(what))]
    Invalid {
        /// File at fault.
        file: String,
        /// What is wrong, and what to do about it.
        what: String,
    },
    /// A metadata entry that the model needs is missing or has the wrong type.
    #[error("metadata `{}`: {}", one_line(key), one_line(what))]
    Metadata {
        /// Key of the entry.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor is missing or has the wrong shape or type.
    #[error("tensor `{}`: {}", one_line(tensor), one_line(what))]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Text that may hold names from a file, fit for one line of an error: control characters escaped, the middle of long
/// ones left out.
pub(crate) fn one_line(text: &str) -> String {
    const HEAD: usize = 120;
    const TAIL: usize = 60;
    let mut line = String::new();
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    let length = line.chars().count();
    if length <= HEAD + TAIL {
        return line;
    }
    let head = line.chars().take(HEAD);
    let tail = line.chars().skip(length - TAIL);
    head.chain(['…']).chain(tail).collect()
}
