//! `ondine export`: a model in the format of a vendor runtime.

use super::load::{ModelArgs, peak_resident_bytes};
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Bar;
use ondine_npu::export::{Report, onnx};
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
    /// ONNX: fused attention for CPUs and GPUs, fixed shapes in plain operations for NPUs, or both
    #[arg(long, value_enum, value_delimiter = ',')]
    form: Vec<FormArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// ONNX, for ONNX Runtime
    Onnx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormArg {
    /// One graph with fused attention
    Fused,
    /// A prompt graph and a step graph of static shapes
    Fixed,
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
    let result = match args.format {
        Format::Onnx => {
            let mut forms: Vec<onnx::Form> = args
                .form
                .iter()
                .map(|form| match form {
                    FormArg::Fused => onnx::Form::Fused,
                    FormArg::Fixed => onnx::Form::Fixed,
                })
                .collect();
            if forms.is_empty() {
                if onnx::Form::fused_fits(spec) {
                    forms.push(onnx::Form::Fused);
                }
                forms.push(onnx::Form::Fixed);
            }
            onnx::export(
                &model,
                &args.directory,
                &forms,
                context,
                &mut |done, all| {
                    bar.set(done.min(all), all, "");
                },
            )
        }
    };
    bar.finish();
    let report =
        result.map_err(|error| CliError::Failed(format!("{}: {error}", args.model.model)))?;
    print(&report, context, output)
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
