//! `ondine calibrate`: which columns of a model's matrices matter.

use super::load::ModelArgs;
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use crate::progress::Bar;
use ondine_compress::CompressError;
use ondine_compress::calibrate::{Windows, calibrate};
use ondine_runtime::Model;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `ondine calibrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine calibrate -m smollm2-135m-instruct text.txt -o imatrix.gguf
  ondine quantize model.gguf small.gguf --type Q4_K --imatrix imatrix.gguf

The file has the form that llama-imatrix writes and llama-quantize reads.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text like what the model will read, UTF-8
    file: PathBuf,
    /// Where the importance matrix is written
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Tokens of a window
    #[arg(long = "ctx", value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    window: u32,
    /// Windows to read at most, spread over the text
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
}

/// Measures and writes.
///
/// # Errors
/// `Failed` when the model or the text cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let model = args.model.open(output)?;
    let windows = windows(&model, &args.file, args.window, args.chunks)?;
    let bar = Bar::new(output, "windows");
    let matrix = calibrate(&model, &windows, &mut |done, all| {
        bar.set(done, all, "");
        !interrupt::is_interrupted()
    });
    bar.finish();
    let mut matrix = matrix.map_err(failed)?;
    let name = args.file.file_name().unwrap_or_default();
    matrix.datasets = vec![name.to_string_lossy().into_owned()];
    matrix.write(&args.out).map_err(failed)?;
    let tokens = windows.tokens.len();
    if output.is_json() {
        return output.json(&json!({
            "file": args.out,
            "tensors": matrix.tensors.len(),
            "chunks": matrix.chunks,
            "tokens": tokens,
        }));
    }
    output.line(&format!(
        "{}: importance of {} tensors from {tokens} tokens",
        args.out.display(),
        matrix.tensors.len()
    ))
}

/// The text at `path` in windows for `model`.
pub fn windows(model: &Model, path: &Path, window: u32, most: u32) -> Result<Windows, CliError> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|error| CliError::Failed(format!("{name}: {error}")))?;
    let text = String::from_utf8(text)
        .map_err(|_| CliError::Failed(format!("{name}: is not UTF-8; convert it first")))?;
    Windows::of(model, &text, window as usize, most as usize)
        .map_err(|error| CliError::Failed(format!("{name}: {error}")))
}

pub fn failed(error: CompressError) -> CliError {
    match error {
        CompressError::Interrupted => CliError::Interrupted("interrupted".into()),
        error => CliError::Failed(error.to_string()),
    }
}
