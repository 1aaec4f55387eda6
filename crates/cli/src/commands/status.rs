//! `ondine status`: what is installed.

use super::installed::StoreArgs;
use crate::error::CliError;
use crate::output::Output;
use ondine_package::digest::Digest;
use ondine_package::store::{Disk, Store};
use serde_json::{Value, json};

/// Arguments of `ondine status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine status
  ondine status --store /var/lib/helper --json")]
pub struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// Read every file and check it
    #[arg(long)]
    check: bool,
}

/// Prints the releases and where updates come from.
///
/// # Errors
/// `Failed` when nothing is installed, `Refused` when files are damaged.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let store = args.store.open_existing()?;
    let status = store.status()?;
    if args.check && status.current.is_some() {
        store.check()?;
    }
    let version = |identity: Option<Digest>| version(&store, identity);
    let (current, previous) = (version(status.current)?, version(status.previous)?);
    let state = match (status.current, status.healthy) {
        (None, _) => "empty",
        (_, true) => "healthy",
        (_, false) => "on trial",
    };
    if output.is_json() {
        let describe = |version: Option<u64>, identity: Option<Digest>| match (version, identity) {
            (Some(version), Some(identity)) => {
                json!({ "version": version, "identity": identity.to_hex() })
            }
            _ => Value::Null,
        };
        return output.json(&json!({
            "name": status.name,
            "current": describe(current, status.current),
            "previous": describe(previous, status.previous),
            "state": state,
            "highest_version": status.highest_version,
            "source": store.source(),
        }));
    }
    let name = status.name.unwrap_or_else(|| "nothing".into());
    match current {
        Some(version) => output.line(&format!("{name} release {version}, {state}"))?,
        None => output.line("nothing is installed")?,
    }
    if let Some(version) = previous {
        output.line(&format!("release {version} can be returned to"))?;
    }
    match store.source() {
        Some(source) => output.line(&format!("updates come from {source}")),
        None => Ok(()),
    }
}

fn version(store: &Store<Disk>, identity: Option<Digest>) -> Result<Option<u64>, CliError> {
    Ok(match identity {
        Some(identity) => Some(store.version(identity)?.version),
        None => None,
    })
}
