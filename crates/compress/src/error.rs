//! Why a model could not be made smaller.

use ondine_kernels::{KernelError, TensorType};
use ondine_runtime::ModelError;
use ondine_runtime::backend::BackendError;
use ondine_runtime::gguf::ModelFileError;
use thiserror::Error;

/// Why a model could not be made smaller or measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompressError {
    /// A model file is at fault.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// A model is at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A decoder failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Numbers cannot be read.
    #[error("tensor `{tensor}`: {source}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        source: KernelError,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The type is read but not written.
    #[error("no model can be written as {0}: choose another type")]
    NotWritable(TensorType),
    /// A file or an argument does not fit.
    #[error("{0}")]
    Invalid(String),
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}
