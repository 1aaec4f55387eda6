//! `ondine apply`: the old version and a delta → the new version.

use crate::error::CliError;
use crate::output::Output;
use ondine_package::{Limits, delta};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `ondine apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine apply helper-3.gguf helper-3-4.delta -o helper-4.gguf

The new file appears only when its hash is what the delta promises. After an interruption the same command goes on.")]
pub struct Args {
    /// The version that the delta starts from
    old: PathBuf,
    /// The delta
    delta: PathBuf,
    /// The new version to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Writes the new version and prints its hash.
///
/// # Errors
/// `Refused` for another base or a damaged delta, `Failed` when a file cannot be read or written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let applied = delta::apply(&args.old, &args.delta, &args.output, &Limits::default())?;
    if output.is_json() {
        return output.json(&json!({ "size": applied.size, "blake3": applied.result.to_hex(), "resumed_streams": applied.resumed }));
    }
    output.line(&applied.result.to_hex())
}
