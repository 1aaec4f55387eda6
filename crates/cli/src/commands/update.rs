//! `ondine update`: the installed model becomes the release that its repository offers to this device.

use super::delivery::identities;
use super::installed::{StoreArgs, open_store, self_test};
use super::remote;
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use ondine_package::release::{Happening, Outcome, Update, update};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `ondine update`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine update --from https://models.example/acme --root root.json
  ondine update --from oci://registry.example/acme/helper:stable --root root.json
  ondine update --from /media/usb/repository acme/helper
  ondine update

The repository's root is asked for once; the device keeps it. What an interrupted update has fetched is used by the next.")]
pub struct Args {
    /// Name of the model, where the repository has several
    name: Option<String>,
    /// Repository: a directory, https://… or oci://registry/name:tag; the one of the last update unless given
    #[arg(long, value_name = "URL|DIR")]
    from: Option<String>,
    /// The repository's root of trust, when this device is updated for the first time
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// What a staged rollout knows this device by; a random text that never leaves it unless given
    #[arg(long, value_name = "TEXT", env = "ONDINE_DEVICE")]
    device: Option<String>,
    /// File with the identity that opens a sealed model, to test it
    #[arg(short, long, value_name = "FILE", env = "ONDINE_IDENTITY")]
    identity: Vec<PathBuf>,
}

/// Updates and prints what is installed now.
///
/// # Errors
/// `Refused` for metadata, releases or bytes that are not what was signed, or a release that fails its test; `Failed` for what
/// cannot be read, written or reached. What was installed stays.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let store = open_store(&args.store.path()?)?;
    let from = args
        .from
        .clone()
        .or_else(|| store.source())
        .ok_or_else(|| CliError::Usage("say where updates come from with --from".into()))?;
    let remote = remote::open(&from)?;
    let root = match &args.root {
        Some(path) => Some(
            std::fs::read(path)
                .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?,
        ),
        None => None,
    };
    let identities = identities(&args.identity)?;
    let bar = Bar::new(output);
    let version = env!("CARGO_PKG_VERSION").parse();
    let outcome = update(
        &store,
        &Update {
            remote,
            root: root.as_deref(),
            name: args.name.as_deref(),
            device: args.device.as_deref(),
            runtime: version.map_err(|error: ondine_package::bundle::ManifestError| {
                CliError::Failed(error.to_string())
            })?,
            now: ondine_package::release::now(),
            pause: Duration::from_millis(500),
            self_test: &|installed| self_test(&store, installed, &identities),
            happening: &|happening| bar.show(happening),
            is_cancelled: &interrupt::is_interrupted,
        },
    );
    bar.end();
    let outcome = match outcome {
        Err(error) if interrupt::is_interrupted() => {
            return Err(CliError::Interrupted(error.to_string()));
        }
        other => other?,
    };
    store.set_source(&from)?;
    report(&outcome, output)
}

fn report(outcome: &Outcome, output: &mut Output) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(&match outcome {
            Outcome::Installed {
                installed,
                from,
                received,
            } => json!({
                "outcome": "installed",
                "name": installed.manifest.name,
                "version": installed.manifest.version,
                "from": from,
                "identity": installed.identity.to_hex(),
                "received_bytes": received,
                "size": installed.manifest.total_size(),
            }),
            Outcome::Current {
                version,
                waiting,
                halted,
            } => json!({ "outcome": "current", "version": version, "waiting": waiting, "halted": halted }),
            Outcome::RolledBack { from, to } => {
                json!({ "outcome": "rolled_back", "from": from, "version": to })
            }
        });
    }
    output.line(&match outcome {
        Outcome::Installed {
            installed,
            received,
            ..
        } => format!(
            "{} release {} is installed ({received} bytes fetched for {}); the first answer makes it final",
            installed.manifest.name,
            installed.manifest.version,
            installed.manifest.total_size()
        ),
        Outcome::Current {
            version,
            waiting: Some(waiting),
            ..
        } => format!("release {version} stays: release {waiting} has not reached this device yet"),
        Outcome::Current {
            version,
            halted: true,
            ..
        } => format!("release {version} stays: the publisher has halted updates"),
        Outcome::Current { version, .. } => format!("release {version} is up to date"),
        Outcome::RolledBack { from, to } => {
            format!("release {from} was withdrawn by its publisher; release {to} is back")
        }
    })
}

/// Progress on standard error: a line per file, and a bar on a terminal.
struct Bar {
    notes: bool,
    #[cfg(feature = "pull")]
    bar: Option<indicatif::ProgressBar>,
}

impl Bar {
    fn new(output: &Output) -> Self {
        Bar {
            notes: !output.is_quiet(),
            #[cfg(feature = "pull")]
            bar: output
                .shows_progress()
                .then(|| indicatif::ProgressBar::new(0)),
        }
    }

    fn show(&self, happening: Happening<'_>) {
        match happening {
            Happening::Fetching {
                path,
                size,
                transfer,
                deltas,
            } => {
                self.note(&match deltas {
                    0 => format!("{path}: {transfer} bytes"),
                    1 => format!("{path}: {transfer} bytes of delta instead of {size}"),
                    n => format!("{path}: {transfer} bytes in {n} deltas instead of {size}"),
                });
                #[cfg(feature = "pull")]
                if let Some(bar) = &self.bar {
                    bar.set_length(transfer);
                    bar.set_position(0);
                }
            }
            Happening::DeltaFailed(reason) => {
                self.note(&format!("the whole file is fetched instead: {reason}"));
            }
            Happening::Testing => self.note("testing the new release"),
            #[cfg(feature = "pull")]
            Happening::Progress(count) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(count);
                }
            }
            #[cfg(not(feature = "pull"))]
            Happening::Progress(_) => {}
        }
    }

    fn note(&self, text: &str) {
        if !self.notes {
            return;
        }
        #[cfg(feature = "pull")]
        if let Some(bar) = &self.bar {
            return bar.println(text);
        }
        eprintln!("{text}");
    }

    fn end(&self) {
        #[cfg(feature = "pull")]
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
