//! `ondine gc`: removes what no installed release needs.

use super::installed::StoreArgs;
use crate::error::CliError;
use crate::output::Output;
use serde_json::json;

/// Arguments of `ondine gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine gc

The current release and the one before stay; so do their files.")]
pub struct Args {
    #[command(flatten)]
    store: StoreArgs,
}

/// Removes files and prints how many.
///
/// # Errors
/// `Failed` when a file cannot be removed, or while an update runs.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let removed = args.store.open_existing()?.collect_garbage()?;
    if output.is_json() {
        return output.json(&json!({ "removed": removed }));
    }
    output.line(&format!("removed {removed} files"))
}
