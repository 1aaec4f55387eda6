//! `ondine seal`: encrypts a model so that it can be read at any offset by those it is sealed for.

use super::delivery::read_text;
use crate::error::CliError;
use crate::output::Output;
use ondine_package::path::BundlePath;
use ondine_package::seal::{Cipher, Recipient, seal_file};
use ondine_package::{Limits, signature};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `ondine seal`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine seal model.gguf -r age1… -o model.gguf.sealed
  ondine seal helper-3 --recipients-file device.pub -o helper-3-sealed")]
pub struct Args {
    /// File, or directory whose files are sealed one by one
    model: PathBuf,
    /// Who may open it: age1…
    #[arg(short, long, value_name = "RECIPIENT")]
    recipient: Vec<String>,
    /// File with one recipient per line
    #[arg(long, value_name = "FILE")]
    recipients_file: Vec<PathBuf>,
    /// How it is encrypted; the quicker one on this machine unless told
    #[arg(long, value_enum)]
    cipher: Option<CipherName>,
    /// The file or directory to write
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CipherName {
    /// AES-256-GCM
    Aes256Gcm,
    /// XChaCha20-Poly1305
    Xchacha20Poly1305,
}

/// Writes the sealed files and prints how many there are.
///
/// # Errors
/// `Usage` without recipients, `Failed` when a file cannot be read or written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let recipients = recipients(args)?;
    let cipher = match args.cipher {
        None => Cipher::best(),
        Some(CipherName::Aes256Gcm) => Cipher::Aes256Gcm,
        Some(CipherName::Xchacha20Poly1305) => Cipher::XChaCha20Poly1305,
    };
    let files = files(&args.model, &args.output)?;
    for (name, from, to) in &files {
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| CliError::Failed(format!("{}: {error}", parent.display())))?;
        }
        seal_file(from, to, name, &recipients, cipher)?;
    }
    if output.is_json() {
        let names: Vec<&str> = files.iter().map(|(name, _, _)| name.as_str()).collect();
        return output.json(&json!({ "files": names, "cipher": format!("{cipher:?}"), "recipients": recipients.len(), "path": args.output }));
    }
    output.line(&format!(
        "sealed {} files for {} recipients",
        files.len(),
        recipients.len()
    ))
}

fn recipients(args: &Args) -> Result<Vec<Recipient>, CliError> {
    let mut texts = args.recipient.clone();
    for path in &args.recipients_file {
        let text = read_text(path)?;
        texts.extend(
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    if texts.is_empty() {
        return Err(CliError::Usage(
            "seal needs at least one --recipient or --recipients-file".into(),
        ));
    }
    Ok(texts
        .iter()
        .map(|text| Recipient::parse(text))
        .collect::<Result<_, _>>()?)
}

type Work = (BundlePath, PathBuf, PathBuf);

/// Name, source and destination of each file.
pub(super) fn files(model: &Path, output: &Path) -> Result<Vec<Work>, CliError> {
    if model.is_dir() {
        let found = signature::walk(model, &Limits::default())?;
        return Ok(found
            .into_iter()
            .map(|name| (name.clone(), name.under(model), name.under(output)))
            .collect());
    }
    let name = model
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let name = BundlePath::parse(name).map_err(|error| CliError::Refused(error.to_string()))?;
    Ok(vec![(name, model.to_owned(), output.to_owned())])
}
