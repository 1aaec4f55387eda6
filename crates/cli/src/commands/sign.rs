//! `ondine sign`: one signature over every file of a model.

use super::delivery::{Passphrase, private_key, write_text};
use crate::error::CliError;
use crate::output::Output;
use ondine_package::{Limits, signature};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `ondine sign`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine sign helper-3 --private-key release.key --signature helper-3/model.sig
  ondine sign model.gguf --private-key release.key --signature model.sig

The signature is in the OpenSSF Model Signing format, which other tools verify too.")]
pub struct Args {
    /// Directory or file to sign
    model: PathBuf,
    /// PEM file of the key
    #[arg(long, value_name = "FILE")]
    private_key: PathBuf,
    /// Where the signature goes
    #[arg(long, value_name = "FILE", default_value = "model.sig")]
    signature: PathBuf,
    #[command(flatten)]
    passphrase: Passphrase,
}

/// Writes the signature and prints where it is.
///
/// # Errors
/// `Failed` when a file cannot be read or written, `Refused` for links and special files.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let key = private_key(&args.private_key, &args.passphrase)?;
    let text = signature::sign(&args.model, &args.signature, &key, &Limits::default())?;
    write_text(&args.signature, &text)?;
    if output.is_json() {
        return output
            .json(&json!({ "signature": args.signature, "key": key.public().hint().to_hex() }));
    }
    output.line(&args.signature.display().to_string())
}
