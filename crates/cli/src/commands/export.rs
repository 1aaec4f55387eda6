//! `ondine export`: a model in the format of a vendor runtime.

use super::load::{ModelArgs, peak_resident_bytes};
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Bar;
use ondine_npu::export::{Report, onnx, openvino};
use serde_json::json;
use std::path::PathBuf;

/// Tokens of context unless `--ctx` says otherwise: enough for a conversation, and within what NPUs take.
const DEFAULT_CONTEXT: usize = 2048;

/// Arguments of `ondine export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine export onnx -m smollm2-135m-instruct smollm2-onnx
  ondine export onnx --form fixed --ctx 1024 smollm2-npu
  ondine export openvino smollm2-ov
  ondine export openvino --form npu-int4 smollm2-ov-npu

Quantised weights keep their codes and scales; what has to be rounded is measured and said.")]
pub struct Args {
    /// The format
    #[arg(value_enum)]
    format: Format,
    /// Directory to write, made if it is not there
    directory: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of context; 2048 or the model's own length unless given
    #[arg(long = "ctx", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    context: Option<u32>,
    /// Form of the graph and its weights; what fits the model unless given
    #[arg(long, value_enum, value_delimiter = ',')]
    form: Vec<FormArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// ONNX, for ONNX Runtime
    Onnx,
    /// OpenVINO's intermediate representation
    Openvino,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormArg {
    /// ONNX: one graph with fused attention, for CPUs and GPUs
    Fused,
    /// ONNX: a prompt graph and a step graph of static shapes in plain operations, for NPUs
    Fixed,
    /// OpenVINO: the model's own weights, for CPUs and GPUs
    General,
    /// OpenVINO: symmetric int8 by channel, for NPUs
    NpuInt8,
    /// OpenVINO: symmetric int4 in groups of 128 where rows fill them, for NPUs
    NpuInt4,
}

/// Writes the files.
///
/// # Errors
/// `Failed` when the model cannot be expressed or a file cannot be written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let model = args.model.open(output)?;
    let spec = model.spec();
    let context = args
        .context
        .map_or(DEFAULT_CONTEXT.min(spec.context_length), |tokens| {
            tokens as usize
        });
    let bar = Bar::new(output, "matrices");
    let mut progress = |done: usize, all: usize| bar.set(done.min(all), all, "");
    let result = match args.format {
        Format::Onnx => {
            let forms = onnx_forms(args, onnx::Form::fused_fits(spec))?;
            onnx::export(&model, &args.directory, &forms, context, &mut progress)
        }
        Format::Openvino => {
            let form = openvino_form(args)?;
            openvino::export(&model, &args.directory, form, context, &mut progress)
        }
    };
    bar.finish();
    let report =
        result.map_err(|error| CliError::Failed(format!("{}: {error}", args.model.model)))?;
    print(&report, context, output)
}

fn onnx_forms(args: &Args, fused_fits: bool) -> Result<Vec<onnx::Form>, CliError> {
    let mut forms = Vec::new();
    for form in &args.form {
        forms.push(match form {
            FormArg::Fused => onnx::Form::Fused,
            FormArg::Fixed => onnx::Form::Fixed,
            _ => return Err(wrong_form("onnx", "fused and fixed")),
        });
    }
    if forms.is_empty() {
        forms.extend(fused_fits.then_some(onnx::Form::Fused));
        forms.push(onnx::Form::Fixed);
    }
    Ok(forms)
}

fn openvino_form(args: &Args) -> Result<openvino::Form, CliError> {
    match args.form.as_slice() {
        [] | [FormArg::General] => Ok(openvino::Form::General),
        [FormArg::NpuInt8] => Ok(openvino::Form::NpuInt8),
        [FormArg::NpuInt4] => Ok(openvino::Form::NpuInt4),
        _ => Err(wrong_form("openvino", "one of general, npu-int8, npu-int4")),
    }
}

fn wrong_form(format: &str, forms: &str) -> CliError {
    CliError::Usage(format!("--form: {format} has {forms}"))
}

fn print(report: &Report, context: usize, output: &mut Output) -> Result<(), CliError> {
    let loss = report.loss();
    if output.is_json() {
        let losses: serde_json::Map<String, serde_json::Value> = report
            .losses
            .iter()
            .map(|(name, loss)| (name.clone(), loss.relative().into()))
            .collect();
        return output.json(&json!({
            "files": report.files,
            "weights_bytes": report.bytes,
            "context": context,
            "rounded_matrices": report.losses.len(),
            "relative_error": if report.losses.is_empty() { 0.0 } else { loss.relative() },
            "losses": losses,
            "peak_rss_bytes": peak_resident_bytes(),
        }));
    }
    for file in &report.files {
        output.line(&file.display().to_string())?;
    }
    output.line(&format!(
        "{:.1} MB of weights, contexts of up to {context} tokens",
        report.bytes as f64 / 1e6
    ))?;
    match report.losses.len() {
        0 => output.line("every weight is the model's own"),
        rounded => output.line(&format!(
            "{rounded} matrices were rounded: relative error {:.4} (root mean square)",
            loss.relative()
        )),
    }
}
