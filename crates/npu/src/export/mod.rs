//! Models in the formats of vendor runtimes.
//!
//! A [`Model`](ondine_runtime::Model) is written tensor by tensor, so that no more than one matrix's scales are in
//! memory. Quantised weights keep their codes and scales; what is rounded is measured ([`Report::losses`]).

mod data;
mod decoder;
pub mod interface;
pub mod onnx;
pub mod openvino;
pub mod weights;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ondine_runtime::gguf::ModelFileError;
use ondine_runtime::model::{FeedForward, Mixer, ModelSpec};
use thiserror::Error;

use weights::Loss;

/// What an export wrote.
#[derive(Debug, Default)]
pub struct Report {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Bytes of weights.
    pub bytes: u64,
    /// The loss of each matrix that was rounded; those that are not named here are carried over as they are.
    pub losses: BTreeMap<String, Loss>,
}

impl Report {
    /// The loss over all rounded matrices.
    pub fn loss(&self) -> Loss {
        let mut all = Loss::default();
        self.losses.values().for_each(|loss| all.add(*loss));
        all
    }
}

/// Why a model was not exported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The format, or this exporter, does not know something that the model has.
    #[error("cannot be exported: the export knows no {0}")]
    Unsupported(String),
    /// The model file is at fault.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// A file could not be written.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether every layer of the model can be written.
///
/// # Errors
/// [`ExportError::Unsupported`] names what cannot.
pub fn supported(spec: &ModelSpec) -> Result<(), ExportError> {
    for layer in &spec.layers {
        if matches!(layer.mixer, Mixer::ShortConvolution(_)) {
            return Err(ExportError::Unsupported("short convolutions".into()));
        }
        if matches!(layer.feed_forward, FeedForward::Experts(_)) {
            return Err(ExportError::Unsupported("mixtures of experts".into()));
        }
    }
    Ok(())
}

fn io_error(path: &Path, source: io::Error) -> ExportError {
    ExportError::Io {
        file: path.display().to_string(),
        source,
    }
}
