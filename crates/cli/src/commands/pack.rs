//! `ondine pack`: files → a bundle directory with its manifest.

use crate::error::CliError;
use crate::output::Output;
use ondine_package::Limits;
use ondine_package::bundle::{self, Input, Manifest, Parent, Role, RuntimeVersion};
use ondine_package::path::BundlePath;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `ondine pack`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine pack model.gguf LICENCE --name acme/helper --release 3 -o helper-3
  ondine pack model.gguf --name acme/helper --release 4 --parent helper-3 -o helper-4

The same files give the same bundle, byte for byte.")]
pub struct Args {
    /// The files; their roles follow from their names
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Name of the model, the same for all its releases
    #[arg(long)]
    name: String,
    /// Number of the release, higher than that of any before
    #[arg(long)]
    release: u64,
    /// The oldest runtime that can run it
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_name = "VERSION")]
    minimum_runtime: String,
    /// Bundle of an earlier release that deltas may start from
    #[arg(long, value_name = "DIR")]
    parent: Vec<PathBuf>,
    /// The directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

/// Writes the bundle and prints its identity.
///
/// # Errors
/// `Failed` when a file cannot be read or written, `Refused` when the manifest would break a rule.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let limits = Limits::default();
    let inputs = args
        .files
        .iter()
        .map(|file| input(file))
        .collect::<Result<Vec<_>, _>>()?;
    let mut parents = Vec::new();
    for directory in &args.parent {
        let path = directory.join(bundle::MANIFEST_NAME);
        let bytes = std::fs::read(&path)
            .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
        let manifest = Manifest::parse(&bytes, &limits)
            .map_err(|error| CliError::Refused(error.to_string()))?;
        parents.push(Parent {
            manifest: manifest.identity(),
            version: manifest.version,
        });
    }
    let runtime: RuntimeVersion = args
        .minimum_runtime
        .parse()
        .map_err(|error: bundle::ManifestError| CliError::Usage(error.to_string()))?;
    let manifest = bundle::pack(
        &inputs,
        &args.name,
        args.release,
        runtime,
        &parents,
        &args.output,
        &limits,
    )?;
    let identity = manifest.identity().to_hex();
    if output.is_json() {
        return output.json(&json!({
            "name": manifest.name,
            "version": manifest.version,
            "identity": identity,
            "files": manifest.files.len(),
            "size": manifest.total_size(),
            "path": args.output,
        }));
    }
    output.line(&identity)
}

fn input(from: &Path) -> Result<Input, CliError> {
    let name = from.file_name().and_then(|name| name.to_str());
    let name =
        name.ok_or_else(|| CliError::Usage(format!("{} has no file name", from.display())))?;
    let path = BundlePath::parse(name).map_err(|error| CliError::Refused(error.to_string()))?;
    let lower = name.to_lowercase();
    let lower = lower.strip_suffix(".sealed").unwrap_or(&lower).to_owned();
    let role = match lower.as_str() {
        _ if lower.ends_with(".gguf") || lower.ends_with(".safetensors") => Role::Model,
        _ if lower.starts_with("tokenizer") => Role::Tokenizer,
        _ if lower.starts_with("chat_template") => Role::ChatTemplate,
        "generation_config.json" => Role::GenerationDefaults,
        _ if lower.starts_with("licen") => Role::Licence,
        _ if lower.starts_with("evaluation") => Role::Evaluation,
        _ if lower.starts_with("device") => Role::DeviceProfile,
        _ if lower.starts_with("self_test") => Role::SelfTest,
        _ => Role::Other,
    };
    Ok(Input {
        from: from.to_owned(),
        path,
        role,
    })
}
