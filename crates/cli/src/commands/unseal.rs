//! `ondine unseal`: back to plain files.

use super::delivery::identities;
use super::seal::files;
use crate::error::CliError;
use crate::output::Output;
use ondine_package::Limits;
use ondine_package::seal::{SealedFile, unseal_file};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `ondine unseal`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine unseal model.gguf.sealed -i device.key -o model.gguf
  ondine unseal helper-3-sealed -i device.key -o helper-3")]
pub struct Args {
    /// Sealed file, or directory of sealed files
    model: PathBuf,
    /// File with the identity that opens it
    #[arg(short, long, value_name = "FILE", required = true)]
    identity: Vec<PathBuf>,
    /// The file or directory to write
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
}

/// Writes the plain files and prints how many there are.
///
/// # Errors
/// `Refused` when a file was changed or is not sealed for these identities, `Failed` when one cannot be read or written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let identities = identities(&args.identity)?;
    let limits = Limits::default();
    let whole = args.model.is_dir();
    let mut names = Vec::new();
    for (name, from, to) in files(&args.model, &args.output)? {
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| CliError::Failed(format!("{}: {error}", parent.display())))?;
        }
        if whole {
            // In a directory a file must be where it was when it was sealed.
            SealedFile::open(&from, &identities, &limits)?.expect_name(&name)?;
        }
        let (name, _) = unseal_file(&from, &to, &identities, &limits)?;
        names.push(name.to_string());
    }
    if output.is_json() {
        return output.json(&json!({ "files": names, "path": args.output }));
    }
    output.line(&format!("unsealed {} files", names.len()))
}
