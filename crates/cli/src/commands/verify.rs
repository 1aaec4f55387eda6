//! `ondine verify`: is every byte of a model what a key's owner signed?

use super::delivery::public_key;
use crate::error::CliError;
use crate::output::Output;
use ondine_package::{Limits, signature};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `ondine verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine verify helper-3 --public-key release.pub --signature helper-3/model.sig
  ondine verify model.gguf --public-key release.pub --signature model.sig --json

Exit code 3 and a reason when a file, the signature or the key is not the right one.")]
pub struct Args {
    /// Directory or file to verify
    model: PathBuf,
    /// PEM file of the key
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// The signature
    #[arg(long, value_name = "FILE", default_value = "model.sig")]
    signature: PathBuf,
}

/// Prints what was verified.
///
/// # Errors
/// `Refused` with the reason, `Failed` when a file cannot be read.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let key = public_key(&args.public_key)?;
    let verified = signature::verify(&args.model, &args.signature, &key, &Limits::default())?;
    let ignored: Vec<&str> = verified.ignored.iter().map(|path| path.as_str()).collect();
    if output.is_json() {
        let files: Vec<_> = verified
            .files
            .iter()
            .map(|(path, digest)| json!({ "path": path.as_str(), "digest": digest.to_hex() }))
            .collect();
        return output.json(&json!({
            "verified": true,
            "name": verified.name,
            "root": verified.root.to_hex(),
            "key": verified.key.to_hex(),
            "files": files,
            "ignored": ignored,
        }));
    }
    output.note(&format!(
        "not covered by the signature: {}",
        ignored.join(", ")
    ));
    output.line(&format!(
        "verified {}, {} files",
        verified.name,
        verified.files.len().max(1)
    ))
}
