//! What the verbs that use a model share: finding it, opening it, loading it.

use crate::error::CliError;
use crate::output::Output;
use crate::progress::TerminalProgress;
use ondine_hub::{Hub, Settings};
use ondine_runtime::Limits;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{
    Backend, Deadlines, Decoder, FallbackDecoder, HeadReport, KvType, LoadOptions, MemoryBudget,
    StepDown, Unavailable,
};
use ondine_runtime::gguf::ModelFileError;
use ondine_runtime::{Model, ModelError, PackedCache};
use serde_json::{Value, json};
#[cfg(feature = "npu")]
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The model that is used when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// Which model.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArgs {
    /// Model: a name from `ondine models`, a .gguf file, a directory, an installed model, or any of them sealed
    #[arg(short, long, value_name = "MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,
    /// File with the identity that opens a sealed model
    #[cfg(feature = "package")]
    #[arg(long, value_name = "FILE", env = "ONDINE_IDENTITY")]
    pub identity: Vec<PathBuf>,
}

/// How it runs.
#[derive(Debug, Clone, clap::Args)]
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
    /// Memory to use at most, as 300MiB; weights that do not fit are read from disk as they are needed
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_budget: Option<u64>,
    /// Compute all scores of the output head each time. Otherwise, where only the highest count and the head is Q8_0, they
    /// are found reading little more than half of it; the tokens are the same
    #[arg(long)]
    pub full_head: bool,
    /// Neither use nor write packed weights on disk, which make the next start quicker
    #[arg(long)]
    pub no_cache: bool,
    /// Where it runs: cpu, onnx[:EP], openvino[:DEVICE], sim:PROFILE or auto (accelerators first);
    /// several are tried in turn, and one that fails later is left for the next
    #[arg(
        long = "backend",
        value_name = "BACKEND",
        default_value = "cpu",
        value_delimiter = '+'
    )]
    pub backends: Vec<String>,
    /// Seconds that one step may take on an accelerator before it is given up
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(f32), default_value = "60")]
    pub step_deadline: f32,
    #[cfg(feature = "npu")]
    #[command(flatten)]
    pub accelerator: AcceleratorArgs,
    /// Simulated devices in use, for the report afterwards.
    #[cfg(feature = "npu")]
    #[arg(skip)]
    simulated: RefCell<Vec<ondine_npu::sim::SimBackend>>,
}

/// What vendor runtimes are told.
#[cfg(feature = "npu")]
#[derive(Debug, Clone, clap::Args)]
pub struct AcceleratorArgs {
    /// ONNX Runtime: a library that holds the execution provider
    #[arg(long, value_name = "FILE")]
    pub ep_library: Option<PathBuf>,
    /// Option for the execution provider or the device, such as NPU_TURBO=YES
    #[arg(long = "ep-option", value_name = "KEY=VALUE", value_parser = parse_option)]
    pub ep_options: Vec<(String, String)>,
    /// Where converted and compiled models are kept; beside the model unless given
    #[arg(long, value_name = "DIR")]
    pub backend_cache: Option<PathBuf>,
}

#[cfg(feature = "npu")]
fn parse_option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "has the form KEY=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
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
    /// The model `name`, opened with nothing else.
    #[cfg(feature = "serve")]
    pub fn named(name: &str) -> Self {
        ModelArgs {
            model: name.to_owned(),
            #[cfg(feature = "package")]
            identity: Vec::new(),
        }
    }

    /// The path of the model, downloaded first if it is known by name and not here.
    pub fn path(&self, output: &Output) -> Result<PathBuf, CliError> {
        #[cfg(feature = "package")]
        if let Some(path) = super::installed::plain_path(&self.model)? {
            return Ok(path);
        }
        let hub = Hub::from_environment()?;
        Ok(hub
            .resolve(&self.model, &TerminalProgress::new(output))?
            .path)
    }

    /// The model, opened but without weights.
    pub fn open(&self, output: &Output) -> Result<Arc<Model>, CliError> {
        #[cfg(feature = "package")]
        if let Some(model) = super::installed::open(&self.model, &self.identity)? {
            return Ok(Arc::new(model));
        }
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
            packed_cache: match self.no_cache {
                true => None,
                false => packed_cache(),
            },
            memory_budget: self.memory_budget.map(MemoryBudget::Process),
            screened_head: !self.full_head,
            ..LoadOptions::default()
        }
    }

    /// Loads the weights where `--backend` says.
    pub fn load(&self, model: &Arc<Model>, output: &Output) -> Result<Box<dyn Decoder>, CliError> {
        self.load_with(model, &self.options(), output)
    }

    /// As [`LoadArgs::load`], with options that began as [`LoadArgs::options`].
    pub fn load_with(
        &self,
        model: &Arc<Model>,
        options: &LoadOptions,
        output: &Output,
    ) -> Result<Box<dyn Decoder>, CliError> {
        self.load_remarking(model, options, output.is_quiet())
    }

    /// As [`LoadArgs::load_with`], for when the output is no longer at hand; remarks are made unless `quiet`.
    pub fn load_remarking(
        &self,
        model: &Arc<Model>,
        options: &LoadOptions,
        quiet: bool,
    ) -> Result<Box<dyn Decoder>, CliError> {
        let failed = |error: &dyn std::fmt::Display| {
            let error = CliError::Failed(format!("{}: {error}", model.path().display()));
            #[cfg(feature = "package")]
            let error = super::installed::or_refusal(error);
            error
        };
        let candidates = self.candidates(model)?;
        if let [only] = candidates.as_slice()
            && !only.needs_watching()
        {
            let decoder = model
                .load(only.as_ref(), options)
                .map_err(|error| failed(&error))?;
            for note in decoder.notes().iter().filter(|_| !quiet) {
                eprintln!("{note}");
            }
            return Ok(decoder);
        }
        let alone = candidates.len() == 1;
        let decoder = FallbackDecoder::load(
            model,
            candidates,
            options,
            self.deadlines()?,
            // With nothing to move on to, the error says the same.
            Box::new(move |step| {
                if !quiet && !alone {
                    eprintln!("{}", step.sentence());
                }
            }),
        );
        match decoder {
            Ok(decoder) => {
                for note in decoder.notes().iter().filter(|_| !quiet) {
                    eprintln!("{note}");
                }
                Ok(Box::new(decoder))
            }
            Err(error) => Err(match error.reason() {
                Some(reason) => failed(&format!("{} ({})", reason, reason.kind())),
                None => failed(&error),
            }),
        }
    }

    /// Loads the model a second time as a reference: on the backend or with the instruction set called `name`.
    #[cfg(feature = "npu")]
    pub fn load_against(
        &self,
        name: &str,
        model: &Arc<Model>,
        options: &LoadOptions,
        output: &Output,
    ) -> Result<Box<dyn Decoder>, CliError> {
        if is_isa(name) {
            let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
            let isa = ondine_kernels::Isa::from_name(name).map_err(|error| failed(&error))?;
            let backend = CpuBackend::with_isa(isa);
            return model
                .load(&backend, options)
                .map_err(|error| failed(&error));
        }
        let arguments = LoadArgs {
            backends: vec![name.to_owned()],
            ..self.clone()
        };
        arguments.load_with(model, options, output)
    }

    /// What the simulated devices did and how long real ones would have taken, also as a remark for the user.
    #[cfg(feature = "npu")]
    pub fn simulations(&self, output: &Output) -> Value {
        let simulated = self.simulated.borrow();
        let reports = simulated.iter().map(|backend| {
            let did = backend.statistics();
            let gain = did.single_buffer_seconds / did.predicted_seconds.max(f64::MIN_POSITIVE);
            output.note(&format!(
                "{}: at most {} of {} bytes on chip; the device would take {:.1} ms for these {} tokens, {gain:.2} times as fast as with one buffer",
                backend.name(), did.high_water_bytes, did.sram_bytes, 1e3 * did.predicted_seconds, did.tokens,
            ));
            json!({
                "backend": backend.name(),
                "sram_bytes": did.sram_bytes,
                "high_water_bytes": did.high_water_bytes,
                "steps": did.steps,
                "tokens": did.tokens,
                "tiles": did.tiles,
                "bytes_moved": did.bytes,
                "predicted_ms": 1e3 * did.predicted_seconds,
                "single_buffer_ms": 1e3 * did.single_buffer_seconds,
                "double_buffering": gain,
            })
        });
        reports.collect()
    }

    /// Nothing can be simulated in this build.
    #[cfg(not(feature = "npu"))]
    pub fn simulations(&self, _: &Output) -> Value {
        json!([])
    }

    fn deadlines(&self) -> Result<Deadlines, CliError> {
        let step = Duration::try_from_secs_f32(self.step_deadline)
            .ok()
            .filter(|step| !step.is_zero())
            .ok_or_else(|| CliError::Usage("--step-deadline is a number above zero".into()))?;
        Ok(Deadlines {
            step,
            ..Deadlines::default()
        })
    }

    /// The backends that are tried, in order.
    pub fn candidates(&self, model: &Arc<Model>) -> Result<Vec<Arc<dyn Backend>>, CliError> {
        let mut candidates: Vec<Arc<dyn Backend>> = Vec::new();
        for name in &self.backends {
            match name.as_str() {
                "cpu" => candidates.push(cpu()?),
                "auto" => {
                    candidates.extend(self.accelerators(model));
                    candidates.push(cpu()?);
                }
                other => candidates.push(self.accelerator(other, model)?),
            }
        }
        Ok(candidates)
    }

    #[cfg(feature = "npu")]
    fn accelerators(&self, model: &Arc<Model>) -> Vec<Arc<dyn Backend>> {
        ondine_npu::choose::automatic(&self.settings(model))
    }

    #[cfg(not(feature = "npu"))]
    fn accelerators(&self, _: &Arc<Model>) -> Vec<Arc<dyn Backend>> {
        Vec::new()
    }

    #[cfg(feature = "npu")]
    fn accelerator(&self, name: &str, model: &Arc<Model>) -> Result<Arc<dyn Backend>, CliError> {
        if let Some(device) = name.strip_prefix("sim:") {
            let backend = ondine_npu::sim::SimBackend::parse(device)
                .map_err(|error| CliError::Usage(error.to_string()))?;
            self.simulated.borrow_mut().push(backend.clone());
            return Ok(Arc::new(backend));
        }
        ondine_npu::choose::named(name, &self.settings(model))
            .map_err(|error| CliError::Usage(error.to_string()))
    }

    #[cfg(not(feature = "npu"))]
    fn accelerator(&self, name: &str, _: &Arc<Model>) -> Result<Arc<dyn Backend>, CliError> {
        Err(CliError::Usage(format!(
            "no backend `{name}`: this build has cpu only"
        )))
    }

    #[cfg(feature = "npu")]
    fn settings(&self, model: &Arc<Model>) -> ondine_npu::choose::Settings {
        ondine_npu::choose::Settings {
            model: Some(model.clone()),
            library: self.accelerator.ep_library.clone(),
            options: self.accelerator.ep_options.clone(),
            cache: self.accelerator.backend_cache.clone(),
        }
    }
}

/// Whether `name` is that of an instruction set, of this machine or not.
#[cfg(feature = "npu")]
pub fn is_isa(name: &str) -> bool {
    let found = ondine_kernels::Isa::from_name(name);
    !matches!(found, Err(ondine_kernels::IsaError::Unknown(_)))
}

fn cpu() -> Result<Arc<dyn Backend>, CliError> {
    let backend = CpuBackend::from_environment();
    Ok(Arc::new(backend.map_err(|error: Unavailable| {
        CliError::Failed(error.to_string())
    })?))
}

/// Where packed weights are kept, if a home for them is known.
pub fn packed_cache() -> Option<PackedCache> {
    let directory = Settings::from_environment().ok()?.home.join("packed");
    let limit = std::env::var("ONDINE_PACKED_LIMIT").ok();
    let limit = limit.and_then(|size| parse_size(&size).ok());
    Some(PackedCache::new(
        directory,
        limit.unwrap_or(PackedCache::DEFAULT_LIMIT),
    ))
}

/// What was read from the disk for lack of memory, if anything.
pub fn streaming_json(decoder: &dyn Decoder) -> Option<Value> {
    let report = decoder.streaming()?;
    let disk = decoder.disk_bytes_per_second();
    let share = disk.map(|disk| report.bytes_per_second() / disk);
    Some(json!({
        "resident_bytes": report.resident_bytes,
        "buffer_bytes": report.buffer_bytes,
        "bytes_per_token": report.bytes_per_pass(),
        "bytes_per_second": report.bytes_per_second(),
        "disk_bytes_per_second": disk,
        "share_of_disk": share,
        "experts_used": report.experts_used,
        "experts_kept": report.experts_kept,
    }))
}

/// Reads a number of bytes: `300MiB`, `1.5GB`, `65536`.
/// Bytes, as `300MiB` or `80MB` say them.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err("is a number of bytes with KiB, MiB, GiB, KB, MB or GB".into()),
    };
    let number: f64 = digits
        .trim()
        .parse()
        .map_err(|_| format!("`{digits}` is not a number"))?;
    let bytes = number * unit as f64;
    match (0.0..1e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err("is out of range".into()),
    }
}

/// Backends that were given up, as they stand in JSON.
pub fn step_downs_json(step_downs: &[StepDown]) -> Value {
    step_downs
        .iter()
        .map(|step| {
            json!({
                "backend": step.backend,
                "reason": step.reason.kind(),
                "message": step.reason.to_string(),
                "moment": step.moment.name(),
            })
        })
        .collect()
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

/// What the output head read.
pub fn head_json(head: &HeadReport) -> Value {
    json!({
        "bytes": head.bytes,
        "bytes_read_per_token": head.bytes_per_row().round(),
        "fallback_rate": head.fallback_rate(),
    })
}

/// Most memory that this process ever held, in bytes, where the system tells.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("300MiB", 300 << 20),
            ("1.5GB", 1_500_000_000),
            ("65536", 65536),
            ("2 GiB", 2 << 30),
            ("7k", 7000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1e40", "3 parsecs", "NaN"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
