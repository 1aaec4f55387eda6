//! `ondine cache`: the packed weights that are kept on disk.

use super::load::packed_cache;
use crate::error::CliError;
use crate::output::Output;
use ondine_runtime::{PackedCache, PackedFile};
use serde_json::json;
use std::time::UNIX_EPOCH;

/// Arguments of `ondine cache`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine cache
  ondine cache list --json
  ondine cache clear

A model's weights are brought into the form that the kernels read once, at its first start, and kept
in the directory `packed` beside the downloaded models. Files of models that changed are replaced,
those not used for longest make room. ONDINE_PACKED_LIMIT bounds the directory (16GiB), --no-cache of
the other verbs leaves it alone.")]
pub struct Args {
    /// What to do
    #[arg(value_enum, default_value_t = Action::List)]
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// Show the files, the one used last first
    List,
    /// Remove all files
    Clear,
}

/// Lists or clears.
///
/// # Errors
/// `Failed` when the directory cannot be read or a file not removed.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let cache = packed_cache().ok_or_else(|| {
        CliError::Failed("no home directory is known; set ONDINE_HOME to a directory".into())
    })?;
    let place = cache.directory().display().to_string();
    let failed = |error| CliError::Failed(format!("{place}: {error}"));
    match args.action {
        Action::List => list(&cache, &cache.files().map_err(failed)?, output),
        Action::Clear => {
            let freed = cache.clear().map_err(failed)?;
            if output.is_json() {
                return output.json(&json!({"directory": place, "freed_bytes": freed}));
            }
            output.line(&format!("{:.1} MB freed in {place}", freed as f64 / 1e6))
        }
    }
}

fn list(cache: &PackedCache, files: &[PackedFile], output: &mut Output) -> Result<(), CliError> {
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    if output.is_json() {
        let rows: Vec<_> = files
            .iter()
            .map(|file| {
                let used = file.used.duration_since(UNIX_EPOCH).unwrap_or_default();
                json!({
                    "path": file.path,
                    "bytes": file.bytes,
                    "model": file.model,
                    "used": used.as_secs(),
                })
            })
            .collect();
        let directory = cache.directory();
        return output.json(&json!({"directory": directory, "bytes": bytes, "files": rows}));
    }
    output.line(&format!(
        "{}: {} file(s), {:.1} MB",
        cache.directory().display(),
        files.len(),
        bytes as f64 / 1e6
    ))?;
    for file in files {
        let model = file.model.as_deref().unwrap_or("cannot be used any more");
        output.line(&format!("  {:>9.1} MB  {model}", file.bytes as f64 / 1e6))?;
    }
    Ok(())
}
