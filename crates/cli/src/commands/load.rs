//! What the verbs that use a model share: finding it, opening it, loading it.

use crate::error::CliError;
use crate::output::Output;
use crate::progress::TerminalProgress;
use ondine_hub::Hub;
use ondine_runtime::Limits;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{Decoder, KvType, LoadOptions};
use ondine_runtime::gguf::ModelFileError;
use ondine_runtime::{Model, ModelError};
use std::path::PathBuf;
use std::sync::Arc;

/// The model that is used when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// Which model.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Model: a name from `ondine models`, a .gguf file, or a directory
    #[arg(short, long, value_name = "MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,
}

/// How it runs.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// Tokens of context; the model's own length unless given
    #[arg(long = "ctx", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Threads; one per core unless given
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Element type of the keys and values kept: f16 unless given (for `logits` f32)
    #[arg(long, value_name = "TYPE", value_enum)]
    pub kv_type: Option<KvTypeArg>,
}

/// Element types of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KvTypeArg {
    /// 32-bit floats
    F32,
    /// 16-bit floats
    F16,
    /// 8-bit integers with a scale per block
    #[value(name = "q8_0")]
    Q8_0,
}

impl ModelArgs {
    /// The path of the model, downloaded first if it is known by name and not here.
    pub fn path(&self, output: &Output) -> Result<PathBuf, CliError> {
        let hub = Hub::from_environment()?;
        Ok(hub
            .resolve(&self.model, &TerminalProgress::new(output))?
            .path)
    }

    /// The model, opened but without weights.
    pub fn open(&self, output: &Output) -> Result<Arc<Model>, CliError> {
        let path = self.path(output)?;
        Ok(Arc::new(Model::open(&path, &Limits::default())?))
    }
}

impl LoadArgs {
    /// The options as the library takes them.
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            context: self.context.map(|tokens| tokens as usize),
            threads: self.threads.map(usize::from),
            kv_type: match self.kv_type {
                Some(KvTypeArg::F32) => KvType::F32,
                None | Some(KvTypeArg::F16) => KvType::F16,
                Some(KvTypeArg::Q8_0) => KvType::Q8_0,
            },
            ..LoadOptions::default()
        }
    }

    /// Loads the weights on the CPU.
    pub fn load(&self, model: &Model) -> Result<Box<dyn Decoder>, CliError> {
        self.load_with(model, &self.options())
    }

    /// Loads the weights on the CPU with options that began as [`LoadArgs::options`].
    pub fn load_with(
        &self,
        model: &Model,
        options: &LoadOptions,
    ) -> Result<Box<dyn Decoder>, CliError> {
        let backend =
            CpuBackend::from_environment().map_err(|error| CliError::Failed(error.to_string()))?;
        model
            .load(&backend, options)
            .map_err(|error| CliError::Failed(format!("{}: {error}", model.path().display())))
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        CliError::Failed(error.to_string())
    }
}

impl From<ModelFileError> for CliError {
    fn from(error: ModelFileError) -> Self {
        CliError::Failed(error.to_string())
    }
}

/// Most memory that this process ever held, in bytes, where the system tells.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
