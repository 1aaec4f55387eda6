//! Backends by name.

use std::path::PathBuf;
use std::sync::Arc;

use ondine_runtime::Model;
use ondine_runtime::backend::Backend;
use thiserror::Error;

use crate::sim::{SimBackend, SimOptionsError};

/// What the backends are told.
#[derive(Clone, Default)]
pub struct Settings {
    /// The model that will be loaded: what is converted or compiled for it is kept beside its file.
    pub model: Option<Arc<Model>>,
    /// ONNX Runtime: a library that holds the execution provider.
    pub library: Option<PathBuf>,
    /// Options for the execution provider or the device.
    pub options: Vec<(String, String)>,
    /// Where converted and compiled models are kept, if not beside the model.
    pub cache: Option<PathBuf>,
}

/// A name that is no backend.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendNameError {
    /// There is no such backend.
    #[error("no backend `{0}`: there are cpu, onnx[:EP], openvino[:DEVICE], sim:PROFILE and auto")]
    Unknown(String),
    /// There is no such simulated device.
    #[error(transparent)]
    Simulated(#[from] SimOptionsError),
}

/// The backends of vendor runtimes, for lists.
pub const NAMES: [&str; 8] = [
    "onnx:cpu",
    "onnx:openvino",
    "onnx:qnn",
    "onnx:vitisai",
    "onnx:xnnpack",
    "openvino:CPU",
    "openvino:GPU",
    "openvino:NPU",
];

/// The accelerator backend called `name`, such as `onnx:cpu` or `openvino:NPU`.
///
/// # Errors
/// When there is no backend of that name. Whether its device is there is what [`Backend::probe`] says.
pub fn named(name: &str, settings: &Settings) -> Result<Arc<dyn Backend>, BackendNameError> {
    let (kind, detail) = name.split_once(':').unwrap_or((name, ""));
    let backend: Option<Arc<dyn Backend>> = match kind {
        #[cfg(feature = "onnx")]
        "onnx" => {
            let provider = if detail.is_empty() { "cpu" } else { detail };
            crate::onnx::OnnxBackend::new(provider, settings)
                .map(|backend| Arc::new(backend) as Arc<dyn Backend>)
        }
        #[cfg(feature = "openvino")]
        "openvino" => {
            let device = if detail.is_empty() { "CPU" } else { detail };
            crate::openvino::OpenVinoBackend::new(device, settings)
                .map(|backend| Arc::new(backend) as Arc<dyn Backend>)
        }
        "sim" => Some(Arc::new(SimBackend::parse(detail)?)),
        _ => None,
    };
    backend.ok_or_else(|| BackendNameError::Unknown(name.to_owned()))
}

/// The accelerators that `auto` tries before the CPU, those first that are expected to be the quickest: NPUs and GPUs.
/// Vendor runtimes on the processor itself are slower than the CPU backend and are not among them.
pub fn automatic(settings: &Settings) -> Vec<Arc<dyn Backend>> {
    let mut names = vec!["openvino:NPU", "openvino:GPU"];
    if settings.library.is_some() {
        names.insert(0, "onnx:plugin");
    }
    names
        .into_iter()
        .filter_map(|name| named(name, settings).ok())
        .collect()
}
