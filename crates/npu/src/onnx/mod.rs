//! ONNX Runtime as a backend: `onnx`, `onnx:cpu`, `onnx:openvino`, `onnx:qnn` and so on.
//!
//! The model is exported once ([`crate::export::onnx`]) and kept beside its file; execution providers that know fused
//! attention get the fused form, those of NPUs the fixed one.

mod decoder;
mod ffi;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ondine_runtime::Model;
use ondine_runtime::backend::cpu::available_threads;
use ondine_runtime::backend::{
    Backend, BackendError, Decoder, DeviceReport, Fit, LoadOptions, Unavailable,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::model::{Mixer, ModelSpec};
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use crate::cache::{self, Entry};
use crate::choose::Settings;
use crate::export::ExportError;
use crate::export::onnx::{self, Form};
use crate::library::Search;
use decoder::OnnxDecoder;

/// Where ONNX Runtime is.
pub const LIBRARY: Search = Search {
    title: "ONNX Runtime",
    variable: "ONDINE_ORT_LIB",
    package: "onnxruntime",
    inside: "capi",
    file: "libonnxruntime.so",
};

/// Tokens of context unless the caller says otherwise.
const DEFAULT_CONTEXT: usize = 2048;

/// The option that chooses the form of the graphs; all others are the provider's.
const FORM: &str = "FORM";

/// What the OpenVINO provider tells its device.
const EXACT: &str =
    r#"{"CPU":{"INFERENCE_PRECISION_HINT":"f32","DYNAMIC_QUANTIZATION_GROUP_SIZE":"0"}}"#;

/// Execution providers by the names that `onnx:NAME` takes.
const PROVIDERS: [&str; 8] = [
    "cpu", "openvino", "qnn", "vitisai", "coreml", "nnapi", "dml", "xnnpack",
];

/// Runs models through ONNX Runtime.
pub struct OnnxBackend {
    name: String,
    provider: String,
    settings: Settings,
}

impl OnnxBackend {
    /// The backend of an execution provider; none when there is no provider of that name.
    pub fn new(provider: &str, settings: &Settings) -> Option<Self> {
        if !PROVIDERS.contains(&provider) && settings.library.is_none() {
            return None;
        }
        Some(OnnxBackend {
            name: format!("onnx:{provider}"),
            provider: provider.to_owned(),
            settings: settings.clone(),
        })
    }

    fn report(&self, threads: usize) -> DeviceReport {
        DeviceReport {
            backend: self.name.clone(),
            device: format!("ONNX Runtime, {}", self.provider),
            threads,
        }
    }

    fn form(&self, spec: &ModelSpec) -> Form {
        let chosen = self.settings.options.iter().find(|(key, _)| key == FORM);
        if chosen.is_some_and(|(_, value)| value == "fixed") {
            return Form::Fixed;
        }
        match self.provider.as_str() {
            "cpu" | "dml" if Form::fused_fits(spec) => Form::Fused,
            _ => Form::Fixed,
        }
    }

    fn context(&self, spec: &ModelSpec, options: &LoadOptions) -> usize {
        let longest = spec.position_embedding.as_ref().map(|table| table.rows);
        let wanted = options
            .context
            .unwrap_or(DEFAULT_CONTEXT.min(spec.context_length));
        wanted.clamp(1, longest.unwrap_or(usize::MAX))
    }

    /// Sessions are built alike for every graph of the model.
    fn session(&self, graph: &Path, threads: usize) -> Result<Session, Unavailable> {
        let mut builder = Session::builder()
            .and_then(|builder| Ok(builder.with_intra_threads(threads)?))
            .and_then(|builder| Ok(builder.with_intra_op_spinning(false)?))
            .map_err(|error| reason(&error.to_string(), Stage::Load))?;
        builder = self.with_provider(builder)?;
        builder
            .commit_from_file(graph)
            .map_err(|error| reason(&error.to_string(), Stage::Load))
    }

    fn with_provider(&self, builder: SessionBuilder) -> Result<SessionBuilder, Unavailable> {
        let refused = |error: String| match error.contains("not enabled in this build")
            || error.contains("not supported in this build")
            || error.contains("symbol")
            || error.contains("Failed to load")
        {
            true => Unavailable::NotPresent(format!(
                "this ONNX Runtime has no execution provider `{}`: install the wheel that has it, or give --ep-library",
                self.provider
            )),
            false => reason(&error, Stage::Load),
        };
        if let Some(library) = &self.settings.library {
            return self.with_plugin(builder, library);
        }
        let Some(provider) = self.dispatch() else {
            return Ok(builder);
        };
        let strict = builder
            .with_execution_providers([provider.error_on_failure()])
            .map_err(|error| refused(error.to_string()))?;
        match self.provider.as_str() {
            // These take what they can and leave the rest to the CPU by design.
            "coreml" | "nnapi" | "dml" | "xnnpack" => Ok(strict),
            _ => strict
                .with_disable_cpu_fallback()
                .map_err(|error| refused(error.to_string())),
        }
    }

    fn dispatch(&self) -> Option<ExecutionProviderDispatch> {
        fn configured<P: ArbitrarilyConfigurableExecutionProvider>(
            provider: P,
            options: &[(String, String)],
        ) -> P {
            let own = options.iter().filter(|(key, _)| key != FORM);
            own.fold(provider, |provider, (key, value)| {
                provider.with_arbitrary_config(key, value)
            })
        }
        let options = &self.settings.options;
        Some(match self.provider.as_str() {
            "openvino" => {
                let mut provider = ep::OpenVINO::default();
                if !options.iter().any(|(key, _)| key == "device_type") {
                    // Its defaults would round every activation: to bf16 where the processor has units for it, to
                    // bytes before products with compressed weights.
                    provider = provider
                        .with_device_type("CPU")
                        .with_precision("FP32")
                        .with_arbitrary_config("load_config", EXACT);
                }
                configured(provider, options).build()
            }
            "qnn" => configured(ep::QNN::default(), options).build(),
            "vitisai" => configured(ep::Vitis::default(), options).build(),
            "coreml" => configured(ep::CoreML::default(), options).build(),
            "xnnpack" => configured(ep::XNNPACK::default(), options).build(),
            "nnapi" => ep::NNAPI::default().build(),
            "dml" => ep::DirectML::default().build(),
            _ => return None,
        })
    }

    /// A provider in a library of its own.
    fn with_plugin(
        &self,
        builder: SessionBuilder,
        library: &Path,
    ) -> Result<SessionBuilder, Unavailable> {
        let said = |error: String| Unavailable::NotPresent(one_line(&error));
        let environment =
            ort::environment::Environment::current().map_err(|error| said(error.to_string()))?;
        let known: Vec<String> = environment
            .devices()
            .filter_map(|device| Some(device.ep().ok()?.to_owned()))
            .collect();
        let registered = environment
            .register_ep_library("ondine", library)
            .map_err(|error| {
                said(format!(
                    "{}: is no execution provider: {error}",
                    library.display()
                ))
            })?;
        // It stays registered for the life of the process, as sessions need it.
        std::mem::forget(registered);
        let new = |name: &str| !known.iter().any(|known| known == name);
        let devices: Vec<_> = environment
            .devices()
            .filter(|device| device.ep().is_ok_and(new))
            .collect();
        let Some(name) = devices.first().and_then(|device| device.ep().ok()) else {
            return Err(said(format!(
                "{}: found no device that it could use",
                library.display()
            )));
        };
        let options: Vec<(String, String)> = self
            .settings
            .options
            .iter()
            .map(|(key, value)| (format!("{name}.{key}"), value.clone()))
            .collect();
        builder
            .with_devices(devices, Some(&options))
            .map_err(|error| said(error.to_string()))
    }

    fn exported(&self, form: Form, context: usize) -> Result<Entry, Unavailable> {
        let model: &Arc<Model> = self.settings.model.as_ref().ok_or_else(|| {
            Unavailable::NotPresent("the backend was not told which model it is for".into())
        })?;
        let kind = format!("onnx-{}-{context}", form.name());
        cache::entry(model, self.settings.cache.as_deref(), &kind, |directory| {
            onnx::export(model, directory, &[form], context, &mut |_, _| ())
                .map(|_| ())
                .map_err(export_reason)
        })
    }
}

impl Backend for OnnxBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn probe(&self) -> Result<DeviceReport, Unavailable> {
        let library = load_library()?;
        if self.provider == "openvino" && self.settings.library.is_none() {
            let beside = library.with_file_name("libonnxruntime_providers_openvino.so");
            if !beside.is_file() {
                return Err(Unavailable::NotPresent(format!(
                    "{} has no OpenVINO execution provider: pip install onnxruntime-openvino in its place",
                    library.display()
                )));
            }
        }
        if self.settings.library.is_none() && self.dispatch().is_some() {
            // Asked of an empty session: whether the library was built with the provider at all.
            let builder =
                Session::builder().map_err(|error| reason(&error.to_string(), Stage::Load))?;
            self.with_provider(builder)?;
        }
        Ok(self.report(available_threads()))
    }

    fn fits(&self, spec: &ModelSpec, options: &LoadOptions) -> Result<Fit, Unavailable> {
        crate::export::supported(spec).map_err(export_reason)?;
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
        debug_assert!(
            spec.layers
                .iter()
                .all(|layer| matches!(layer.mixer, Mixer::Attention(_)))
        );
        let threads = options.threads.unwrap_or_else(available_threads).max(1);
        let (form, context) = (self.form(spec), self.context(spec, options));
        let Entry {
            path: directory,
            note,
        } = self.exported(form, context)?;
        let session = |name: &str| self.session(&directory.join(name), threads);
        let mut decoder = match form {
            Form::Fused => OnnxDecoder::fused(file, spec, context, session("model.onnx")?)?,
            Form::Fixed => OnnxDecoder::fixed(
                file,
                spec,
                context,
                session("prompt.onnx")?,
                session("step.onnx")?,
            )?,
        };
        decoder.set_device(self.report(threads), note);
        decoder.warm_up()?;
        Ok(Box::new(decoder))
    }
}

/// When a call into the runtime failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Load,
    Step,
}

/// The reason behind what the runtime said.
pub(super) fn reason(said: &str, stage: Stage) -> Unavailable {
    let lower = said.to_lowercase();
    let said = one_line(said);
    if lower.contains("bad_alloc")
        || lower.contains("failed to allocate")
        || lower.contains("out of memory")
    {
        return Unavailable::OutOfMemory(said);
    }
    match stage {
        Stage::Step => Unavailable::DeviceLost(said),
        Stage::Load if lower.contains("not_implemented") || lower.contains("not supported") => {
            Unavailable::Unsupported(said)
        }
        Stage::Load => Unavailable::CompileFailed(said),
    }
}

fn export_reason(error: ExportError) -> Unavailable {
    match error {
        ExportError::Unsupported(_) => Unavailable::Unsupported(error.to_string()),
        other => Unavailable::CompileFailed(other.to_string()),
    }
}

/// Runtimes tell stories; the first line says what is wrong.
pub(crate) fn one_line(said: &str) -> String {
    let line = said.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("no message").chars().take(300).collect()
}

/// Loads the library, once in the life of the process.
fn load_library() -> Result<PathBuf, Unavailable> {
    static LOADED: OnceLock<Result<PathBuf, Unavailable>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let path = LIBRARY.find()?;
            let builder = ort::init_from(&path).map_err(|error| {
                let said = one_line(&error.to_string());
                match error {
                    ort::LoadDynamicError::BadVersion { .. } => Unavailable::DriverTooOld(said),
                    _ => Unavailable::NotPresent(said),
                }
            })?;
            // Its warnings are for its developers; its errors arrive as errors.
            builder
                .with_name("ondine")
                .with_logger(Arc::new(|_, _, _, _, _| ()))
                .commit();
            Ok(path)
        })
        .clone()
}
