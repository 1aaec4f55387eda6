//! Export to OpenVINO: a stateful decoder as intermediate representation (`model.xml`, `model.bin`).
//!
//! Keys and values are variables of the model, as Intel's pipelines for language models expect. Weights are signed
//! codes of 4 or 8 bits with a scale per group.
//!
//! | form | weights | for |
//! |---|---|---|
//! | general | the model's own codes, blocks of 16 or 32, f32 scales | CPU, GPU |
//! | npu | rounded to symmetric int8 by channel, or int4 in groups of 128 where rows fill them; f16 scales | NPU |

mod graph;
mod ir;

use std::fs;
use std::path::Path;

use ondine_runtime::Model;

use super::data::DataFile;
use super::interface::Interface;
use super::weights::Weights;
use super::{ExportError, Report, decoder, io_error, supported};
use graph::IrGraph;

/// Which weights the device takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The model's own codes.
    General,
    /// Symmetric int8, one scale per output channel.
    NpuInt8,
    /// Symmetric int4 in groups of 128; int8 by channel for rows that do not fill groups.
    NpuInt4,
}

impl Form {
    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Form::General => "general",
            Form::NpuInt8 => "npu-int8",
            Form::NpuInt4 => "npu-int4",
        }
    }
}

/// Writes `model` as OpenVINO's intermediate representation into `directory`.
///
/// # Errors
/// [`ExportError`] when the model cannot be expressed or a file cannot be read or written.
pub fn export(
    model: &Model,
    directory: &Path,
    form: Form,
    context: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, ExportError> {
    let spec = model.spec();
    supported(spec)?;
    fs::create_dir_all(directory).map_err(|error| io_error(directory, error))?;
    let weights = Weights::new(model.file());
    let interface = Interface::of(spec);
    let rotations = interface.tables(model.file(), context)?;
    let data_path = directory.join("model.bin");
    let mut data = DataFile::create(&data_path)?;
    let mut graph = IrGraph::new(
        spec, &weights, &interface, &rotations, &mut data, form, progress,
    )?;
    decoder::write(spec, &mut graph)?;
    let (xml, losses) = graph.finish()?;
    let path = directory.join("model.xml");
    fs::write(&path, xml).map_err(|error| io_error(&path, error))?;
    Ok(Report {
        bytes: data.finish()?,
        files: vec![path, data_path],
        losses,
    })
}
