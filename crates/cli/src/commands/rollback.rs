//! `ondine rollback`: back to the release before.

use super::installed::StoreArgs;
use crate::error::CliError;
use crate::output::Output;
use serde_json::json;

/// Arguments of `ondine rollback`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine rollback

The release that is left is not installed on this device again; the next one is.")]
pub struct Args {
    #[command(flatten)]
    store: StoreArgs,
}

/// Returns to the release before and prints which that is.
///
/// # Errors
/// `Failed` when there is none, `Refused` when its files are damaged.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let installed = args.store.open_existing()?.rollback()?;
    let (name, version) = (&installed.manifest.name, installed.manifest.version);
    if output.is_json() {
        return output.json(&json!({ "name": name, "version": version }));
    }
    output.line(&format!("{name} release {version} is back"))
}
