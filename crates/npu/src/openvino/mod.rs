//! OpenVINO as a backend: `openvino`, `openvino:CPU`, `openvino:GPU`, `openvino:NPU`, `openvino:AUTO`.
//!
//! The model is exported once ([`crate::export::openvino`]) and kept beside its file. On the device NPU Intel's pipeline
//! for language models splits it into a prompt graph and a token graph of static shapes; where there is no NPU,
//! `ONDINE_NPUW_DEVICES=CPU` makes that pipeline run on the processor, which is how it is tested.

mod decoder;
mod ffi;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ondine_runtime::Model;
use ondine_runtime::backend::cpu::available_threads;
use ondine_runtime::backend::{
    Backend, BackendError, Decoder, DeviceReport, Fit, LoadOptions, Unavailable,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::model::ModelSpec;

use crate::cache::{self, Entry};
use crate::choose::Settings;
use crate::export::openvino::{self, Form};
use crate::export::{ExportError, supported};
use crate::library::Search;
use decoder::{Kind, OpenVinoDecoder};
use ffi::{CallError, Core};

/// Where OpenVINO is.
pub const LIBRARY: Search = Search {
    title: "OpenVINO",
    variable: "ONDINE_OPENVINO_LIB",
    package: "openvino",
    inside: "libs",
    file: "libopenvino_c.so",
};

/// Devices on which Intel's NPU pipeline computes, in place of the NPU.
const PIPELINE_DEVICES: &str = "ONDINE_NPUW_DEVICES";

/// Tokens of context unless the caller says otherwise.
const DEFAULT_CONTEXT: usize = 2048;

/// Longest prompt that an NPU's graph is compiled for, and room for the answer, unless the caller says otherwise.
const NPU_CONTEXT: usize = 1152;

/// Tokens of the NPU's prompt graph that are computed together.
const NPU_CHUNK: usize = 128;

const DEVICES: [&str; 4] = ["CPU", "GPU", "NPU", "AUTO"];

/// Runs models through OpenVINO.
pub struct OpenVinoBackend {
    name: String,
    device: String,
    settings: Settings,
}

impl OpenVinoBackend {
    /// The backend of a device; none when there is no device of that name.
    pub fn new(device: &str, settings: &Settings) -> Option<Self> {
        let device = device.to_uppercase();
        let known = DEVICES.contains(&device.as_str()) || device.starts_with("GPU.");
        known.then(|| OpenVinoBackend {
            name: format!("openvino:{device}"),
            device,
            settings: settings.clone(),
        })
    }

    fn is_npu(&self) -> bool {
        self.device == "NPU"
    }

    fn pipeline_devices() -> Option<String> {
        std::env::var(PIPELINE_DEVICES)
            .ok()
            .filter(|devices| !devices.is_empty())
    }

    fn report(&self, threads: usize) -> DeviceReport {
        let device = match (self.is_npu(), Self::pipeline_devices()) {
            (true, Some(devices)) => format!("OpenVINO, NPU pipeline on {devices}"),
            _ => format!("OpenVINO, {}", self.device),
        };
        DeviceReport {
            backend: self.name.clone(),
            device,
            threads,
        }
    }

    fn form(&self) -> Form {
        match self.is_npu() {
            false => Form::General,
            true if self.option("WEIGHTS").is_some_and(|value| value == "int4") => Form::NpuInt4,
            true => Form::NpuInt8,
        }
    }

    fn option(&self, key: &str) -> Option<&str> {
        let found = self.settings.options.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    fn context(&self, spec: &ModelSpec, options: &LoadOptions) -> usize {
        let usual = if self.is_npu() {
            NPU_CONTEXT
        } else {
            DEFAULT_CONTEXT
        };
        let longest = spec.position_embedding.as_ref().map(|table| table.rows);
        let wanted = options.context.unwrap_or(usual.min(spec.context_length));
        wanted.clamp(1, longest.unwrap_or(usize::MAX))
    }

    fn properties(&self, context: usize, threads: usize) -> Vec<(String, String)> {
        let mut properties: Vec<(&str, String)> = Vec::new();
        if self.is_npu() {
            let response = (context / 4).clamp(1, 128);
            properties.extend([
                ("NPU_USE_NPUW", "YES".to_owned()),
                ("NPUW_LLM", "YES".to_owned()),
                (
                    "NPUW_LLM_MAX_PROMPT_LEN",
                    (context - response).max(1).to_string(),
                ),
                ("NPUW_LLM_MIN_RESPONSE_LEN", response.to_string()),
                // The quick compilation refuses models of few layers.
                ("NPUW_LLM_GENERATE_HINT", "BEST_PERF".to_owned()),
                ("NPUW_LLM_PREFILL_CHUNK_SIZE", NPU_CHUNK.to_string()),
            ]);
            if let Some(devices) = Self::pipeline_devices() {
                properties.push(("NPUW_DEVICES", devices));
            }
        } else if self.device == "CPU" {
            properties.extend([
                ("INFERENCE_PRECISION_HINT", "f32".to_owned()),
                ("KV_CACHE_PRECISION", "f32".to_owned()),
                // Activations are not rounded: the CPU backend's rounding would not be repeated, but added to.
                ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "0".to_owned()),
                ("INFERENCE_NUM_THREADS", threads.to_string()),
                ("PERFORMANCE_HINT", "LATENCY".to_owned()),
            ]);
        }
        let mut properties: Vec<(String, String)> = properties
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        for (key, value) in &self.settings.options {
            if key == "WEIGHTS" {
                continue;
            }
            properties.retain(|(known, _)| known != key);
            properties.push((key.clone(), value.clone()));
        }
        properties
    }

    fn exported(&self, form: Form, context: usize) -> Result<Entry, Unavailable> {
        let model: &Arc<Model> = self.settings.model.as_ref().ok_or_else(|| {
            Unavailable::NotPresent("the backend was not told which model it is for".into())
        })?;
        let kind = format!("openvino-{}-{context}", form.name());
        cache::entry(model, self.settings.cache.as_deref(), &kind, |directory| {
            openvino::export(model, directory, form, context, &mut |_, _| ())
                .map(|_| ())
                .map_err(export_reason)
        })
    }
}

impl Backend for OpenVinoBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn probe(&self) -> Result<DeviceReport, Unavailable> {
        load_library()?;
        let core = Core::new().map_err(|error| reason(error, Stage::Probe))?;
        let devices = core
            .devices()
            .map_err(|error| reason(error, Stage::Probe))?;
        let emulated = self.is_npu() && Self::pipeline_devices().is_some();
        let here = |device: &str| {
            devices
                .iter()
                .any(|found| found == device || found.split('.').next() == Some(device))
        };
        if self.device != "AUTO" && !emulated && !here(&self.device) {
            let hint = match self.is_npu() {
                true => {
                    format!("; {PIPELINE_DEVICES}=CPU runs the NPU's pipeline on the processor")
                }
                false => String::new(),
            };
            return Err(Unavailable::NotPresent(format!(
                "OpenVINO finds no device {} here, only {}{hint}",
                self.device,
                devices.join(", ")
            )));
        }
        Ok(self.report(available_threads()))
    }

    fn fits(&self, spec: &ModelSpec, options: &LoadOptions) -> Result<Fit, Unavailable> {
        supported(spec).map_err(export_reason)?;
        let context = self.context(spec, options);
        Ok(Fit {
            weights: 0,
            kv: (spec.kv_elements_per_position() * context * size_of::<f32>()) as u64,
        })
    }

    fn load(
        &self,
        file: &ModelFile,
        spec: &Arc<ModelSpec>,
        options: &LoadOptions,
    ) -> Result<Box<dyn Decoder>, BackendError> {
        load_library()?;
        let threads = options.threads.unwrap_or_else(available_threads).max(1);
        let context = self.context(spec, options);
        let entry = self.exported(self.form(), context)?;
        let path = entry.path.join("model.xml");
        let core = Core::new().map_err(|error| reason(error, Stage::Load))?;
        let properties = self.properties(context, threads);
        let compiled = Arc::new(core)
            .compile(&path, &self.device, &properties)
            .map_err(|error| reason(error, Stage::Load))?;
        let kind = match self.is_npu() {
            true => Kind::Pipeline,
            false => Kind::Stateful,
        };
        let weights = file.tensors().iter().map(|tensor| tensor.bytes).sum();
        let mut decoder = OpenVinoDecoder::new(
            spec.clone(),
            self.report(threads),
            compiled,
            kind,
            context,
            weights,
            entry.note,
        );
        decoder.warm_up()?;
        Ok(Box::new(decoder))
    }
}

/// When a call into the runtime failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Probe,
    Load,
    Step,
}

/// The reason behind what the runtime said.
fn reason(error: CallError, stage: Stage) -> Unavailable {
    let lower = error.0.to_lowercase();
    let said = short(&error.0);
    if lower.contains("bad_alloc") || lower.contains("out of memory") {
        return Unavailable::OutOfMemory(said);
    }
    match stage {
        Stage::Probe => Unavailable::NotPresent(said),
        Stage::Load if lower.contains("driver") && lower.contains("version") => {
            Unavailable::DriverTooOld(said)
        }
        Stage::Load if lower.contains("not supported") || lower.contains("unsupported") => {
            Unavailable::Unsupported(said)
        }
        Stage::Load => Unavailable::CompileFailed(said),
        Stage::Step => Unavailable::DeviceLost(said),
    }
}

/// The runtime's messages begin with where in its source they come from; the last line says what is wrong.
fn short(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Exception from"))
        .collect();
    let line = lines.last().copied().unwrap_or("no message");
    line.chars().take(300).collect()
}

fn export_reason(error: ExportError) -> Unavailable {
    match error {
        ExportError::Unsupported(_) => Unavailable::Unsupported(error.to_string()),
        other => Unavailable::CompileFailed(other.to_string()),
    }
}

/// Loads the library, once in the life of the process.
fn load_library() -> Result<PathBuf, Unavailable> {
    static LOADED: OnceLock<Result<PathBuf, Unavailable>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let path = LIBRARY.find()?;
            ffi::load(&path).map_err(|error| match error.0.contains("too old") {
                true => {
                    Unavailable::DriverTooOld(format!("{}: {}", path.display(), short(&error.0)))
                }
                false => {
                    Unavailable::NotPresent(format!("{}: {}", path.display(), short(&error.0)))
                }
            })?;
            Ok(path)
        })
        .clone()
}
