//! `ondine diff`: what turns one version of a model into the next.

use crate::error::CliError;
use crate::output::Output;
use ondine_package::{Limits, delta};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `ondine diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine diff helper-3.gguf helper-4.gguf -o helper-3-4.delta
  ondine apply helper-3.gguf helper-3-4.delta -o helper-4.gguf")]
pub struct Args {
    /// The version that the device has
    old: PathBuf,
    /// The version that it shall have
    new: PathBuf,
    /// The delta to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Writes the delta and prints its size.
///
/// # Errors
/// `Failed` when a file cannot be read or written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let made = delta::diff(&args.old, &args.new, &args.output, &Limits::default())?;
    if output.is_json() {
        return output.json(&json!({
            "size": made.size,
            "result_size": made.result_size,
            "result_blake3": made.result.to_hex(),
            "same_tensors": made.same_tensors,
            "changed_tensors": made.changed_tensors,
        }));
    }
    let share = 100.0 * made.size as f64 / made.result_size.max(1) as f64;
    output.line(&format!(
        "{} bytes, {share:.2}% of the new version",
        made.size
    ))
}
