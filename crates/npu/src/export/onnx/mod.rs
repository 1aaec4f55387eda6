//! Export to ONNX: block-quantised weights in one data file, graphs that share it.
//!
//! | form | files | for |
//! |---|---|---|
//! | fused | `model.onnx`: any number of tokens, `GroupQueryAttention` with keys and values in place | ONNX Runtime on CPUs and GPUs |
//! | fixed | `prompt.onnx` of 128 tokens and `step.onnx` of one: attention in plain operations, static shapes, new keys and values out | NPU providers |
//!
//! Matrices are `MatMulNBits` of com.microsoft (4 or 8 bits, blocks of 16 or 32); what a format's minima add is a small
//! plain product with the sums of the input's blocks.

mod graph;
pub mod proto;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use ondine_runtime::Model;
use ondine_runtime::model::{Attention, Mixer, ModelSpec};

use super::data::DataFile;
use super::interface::Interface;
use super::weights::Weights;
use super::{ExportError, Report, decoder, io_error, supported};
use graph::OnnxGraph;

/// Tokens of the fixed prompt graph.
pub const PROMPT_TOKENS: usize = 128;

/// The file that holds the weights of all graphs.
pub const DATA_FILE: &str = "weights.bin";

/// Which kind of graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// One graph for any number of tokens, with fused attention.
    Fused,
    /// A prompt graph and a step graph of static shapes.
    Fixed,
}

impl Form {
    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Form::Fused => "fused",
            Form::Fixed => "fixed",
        }
    }

    /// Whether `GroupQueryAttention` can do what the model's attention does.
    pub fn fused_fits(spec: &ModelSpec) -> bool {
        spec.layers.iter().all(|layer| match &layer.mixer {
            Mixer::Attention(attention) => fuses(attention),
            Mixer::ShortConvolution(_) => false,
        })
    }
}

fn fuses(attention: &Attention) -> bool {
    attention.key_dim == attention.value_dim
        && attention.key_dim.is_multiple_of(8)
        && attention.alibi_max_bias.is_none()
}

/// The shape of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Fused { context: usize },
    Fixed { tokens: usize, context: usize },
}

/// Writes `model` as ONNX into `directory`, in each of `forms`, for contexts of up to `context` tokens.
///
/// # Errors
/// [`ExportError`] when the model cannot be expressed or a file cannot be read or written.
pub fn export(
    model: &Model,
    directory: &Path,
    forms: &[Form],
    context: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, ExportError> {
    let spec = model.spec();
    supported(spec)?;
    if forms.contains(&Form::Fused) && !Form::fused_fits(spec) {
        return Err(ExportError::Unsupported(
            "attention that GroupQueryAttention does not know (ALiBi, or heads of other sizes); choose --form fixed".into(),
        ));
    }
    fs::create_dir_all(directory).map_err(|error| io_error(directory, error))?;
    let weights = Weights::new(model.file());
    let interface = Interface::of(spec);
    let rotations = interface.tables(model.file(), context)?;
    let mut data = DataFile::create(&directory.join(DATA_FILE))?;
    let mut report = Report::default();
    for form in forms {
        let shapes: &[(&str, Shape)] = match form {
            Form::Fused => &[("model.onnx", Shape::Fused { context })],
            Form::Fixed => &[
                (
                    "prompt.onnx",
                    Shape::Fixed {
                        tokens: PROMPT_TOKENS,
                        context,
                    },
                ),
                ("step.onnx", Shape::Fixed { tokens: 1, context }),
            ],
        };
        for (name, shape) in shapes {
            let mut graph = OnnxGraph::new(
                spec, &weights, &interface, &rotations, &mut data, *shape, progress,
            );
            decoder::write(spec, &mut graph)?;
            let (bytes, losses) = graph.finish();
            report.losses.extend(losses);
            let path = directory.join(name);
            let written = File::create(&path).and_then(|mut file| file.write_all(&bytes));
            written.map_err(|error| io_error(&path, error))?;
            report.files.push(path);
        }
    }
    report.bytes = data.finish()?;
    report.files.push(directory.join(DATA_FILE));
    let description: BTreeMap<&str, String> = BTreeMap::from([
        ("architecture", spec.architecture.clone()),
        ("context", context.to_string()),
        ("prompt_tokens", PROMPT_TOKENS.to_string()),
        ("vocabulary", spec.vocabulary.to_string()),
    ]);
    let path = directory.join("export.json");
    let text = serde_json::json!(description).to_string();
    fs::write(&path, text).map_err(|error| io_error(&path, error))?;
    report.files.push(path);
    Ok(report)
}
