//! `ondine publish`: a signed bundle becomes a release that devices update to.

use super::delivery::{Passphrase, private_key, read_text};
use crate::error::CliError;
use crate::output::Output;
use ondine_package::Limits;
use ondine_package::release::{Keys, Publication, Published, Trust, publish};
use ondine_package::signature::PrivateKey;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `ondine publish`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine publish helper-1 --signature helper-1.sig --to site --root-key root.key --release-key release.key
  ondine publish helper-2 --signature helper-2.sig --to site --release-key release.key --delta-from helper-1
  ondine publish --to site --release-key release.key --rollout 25
  ondine publish --to site --release-key release.key --withdraw 2
  ondine publish --to site --online-key online.key
  ondine publish --to site --root-key root.key --new-root-key root2.key --new-release-key release2.key

The directory is a repository of The Update Framework: any web server can serve it as it is. Give devices metadata/1.root.json.
Without anything to change, it says again what is newest, which must happen before the metadata expires.")]
pub struct Args {
    /// Bundle to release
    bundle: Option<PathBuf>,
    /// Directory of the repository
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Signature over the bundle; as many as the trust policy asks for
    #[arg(long, value_name = "FILE", requires = "bundle")]
    signature: Vec<PathBuf>,
    /// Bundle of an earlier release to make deltas from
    #[arg(long, value_name = "DIR", requires = "bundle")]
    delta_from: Vec<PathBuf>,
    /// Key of the root, which says who may do what; needed for a new repository and to change keys
    #[arg(long, value_name = "FILE")]
    root_key: Vec<PathBuf>,
    /// Key that says what the releases are
    #[arg(long, value_name = "FILE")]
    release_key: Vec<PathBuf>,
    /// Key that says what is newest; the first release key unless given
    #[arg(long, value_name = "FILE")]
    online_key: Option<PathBuf>,
    /// How many of the root keys must sign; all unless given
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    root_threshold: usize,
    /// How many of the release keys must sign; all unless given
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    release_threshold: usize,
    /// Key of the root from now on
    #[arg(long, value_name = "FILE", requires = "new_release_key")]
    new_root_key: Vec<PathBuf>,
    /// Release key from now on
    #[arg(long, value_name = "FILE", requires = "new_root_key")]
    new_release_key: Vec<PathBuf>,
    /// Online key from now on
    #[arg(long, value_name = "FILE", requires = "new_root_key")]
    new_online_key: Option<PathBuf>,
    #[command(flatten)]
    passphrase: Passphrase,
    /// Trust policy: who may sign bundles of which models; the first release key unless ever given
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Share of devices that get the newest release, or VERSION=PERCENT
    #[arg(long, value_name = "PERCENT", value_parser = parse_rollout)]
    rollout: Option<(u64, u64)>,
    /// Take a release back: devices that have it return to the one before
    #[arg(long, value_name = "VERSION")]
    withdraw: Option<u64>,
    /// Stop all installations
    #[arg(long, conflicts_with = "resume")]
    halt: bool,
    /// Let installations go on
    #[arg(long)]
    resume: bool,
    /// Name of the model, where there is no bundle and the repository has several
    #[arg(long)]
    name: Option<String>,
    /// Days until the root expires
    #[arg(long, default_value_t = 730, value_name = "DAYS")]
    root_days: u32,
    /// Days until the list of releases expires
    #[arg(long, default_value_t = 365, value_name = "DAYS")]
    release_days: u32,
    /// Days until devices want to hear again what is newest
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    online_days: u32,
    /// Copy the repository to this registry: oci://registry/name:tag
    #[cfg(feature = "pull")]
    #[arg(long, value_name = "OCI")]
    push: Option<String>,
}

/// Publishes and prints what devices will see.
///
/// # Errors
/// `Refused` when the bundle is not what its signatures say, `Failed` for keys that do not fit and what cannot be written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let keys = |paths: &[PathBuf]| -> Result<Vec<PrivateKey>, CliError> {
        let read = |path: &PathBuf| private_key(path, &args.passphrase);
        paths.iter().map(read).collect()
    };
    let one = |path: &Option<PathBuf>| keys(path.as_slice()).map(|mut keys| keys.pop());
    let (root, release, online) = (
        keys(&args.root_key)?,
        keys(&args.release_key)?,
        one(&args.online_key)?,
    );
    let (new_root, new_release) = (keys(&args.new_root_key)?, keys(&args.new_release_key)?);
    let new_online = one(&args.new_online_key)?;
    let trust = match &args.trust {
        Some(path) => Some(Trust::parse(read_text(path)?.as_bytes())?),
        None => None,
    };
    let limits = Limits::default();
    let thresholds = (args.root_threshold, args.release_threshold);
    let published = publish(&Publication {
        to: &args.to,
        keys: roles(&root, &release, online.as_ref(), thresholds),
        rotate: (!new_root.is_empty())
            .then(|| roles(&new_root, &new_release, new_online.as_ref(), thresholds)),
        bundle: args
            .bundle
            .as_deref()
            .map(|bundle: &Path| (bundle, args.signature.as_slice())),
        delta_from: &args.delta_from,
        name: args.name.as_deref(),
        rollout: args.rollout,
        withdraw: args.withdraw,
        halt: (args.halt || args.resume).then_some(args.halt),
        trust,
        expires_days: [args.root_days, args.release_days, args.online_days],
        now: ondine_package::release::now(),
        limits: &limits,
    })?;
    #[cfg(feature = "pull")]
    if let Some(target) = &args.push {
        let sent = super::registry::push(&args.to, target)?;
        output.note(&format!("{sent} files sent to {target}"));
    }
    report(&published, args, output)
}

fn roles<'a>(
    root: &'a [PrivateKey],
    release: &'a [PrivateKey],
    online: Option<&'a PrivateKey>,
    (root_threshold, release_threshold): (usize, usize),
) -> Keys<'a> {
    Keys {
        root,
        release,
        online,
        root_threshold,
        release_threshold,
    }
}

fn report(published: &Published, args: &Args, output: &mut Output) -> Result<(), CliError> {
    if output.is_json() {
        let deltas: Vec<_> = published
            .deltas
            .iter()
            .map(|(path, size, whole)| json!({ "path": path, "size": size, "whole": whole }))
            .collect();
        return output.json(&json!({
            "name": published.name,
            "version": published.version,
            "root_version": published.root_version,
            "expires": published.expires.to_string(),
            "deltas": deltas,
            "path": args.to,
        }));
    }
    for (path, size, whole) in &published.deltas {
        output.line(&format!("{path}: {size} bytes of delta instead of {whole}"))?;
    }
    let what = match (&published.name, published.version) {
        (Some(name), Some(version)) => format!("{name} release {version} is published"),
        (Some(name), None) => format!("the index of {name} is changed"),
        _ => "the metadata is renewed".into(),
    };
    output.line(&format!(
        "{what}; devices accept it until {}",
        published.expires.strftime("%Y-%m-%d")
    ))
}

/// `PERCENT` or `VERSION=PERCENT` → version (0 is the newest) and hundredths of a percent.
fn parse_rollout(text: &str) -> Result<(u64, u64), String> {
    let (version, share) = text.split_once('=').unwrap_or(("0", text));
    let version = version
        .parse()
        .map_err(|_| format!("`{version}` is not a release"))?;
    let share: f64 = share
        .trim_end_matches('%')
        .parse()
        .map_err(|_| format!("`{share}` is not a percentage"))?;
    if !(0.0..=100.0).contains(&share) {
        return Err(format!("`{share}` is not from 0 to 100"));
    }
    Ok((version, (share * 100.0).round() as u64))
}
