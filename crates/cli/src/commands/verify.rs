//! `ondine verify`: is every byte of a model what a key's owner signed?

use super::delivery::{public_key, read_text};
use crate::error::CliError;
use crate::output::Output;
use ondine_package::digest::Digest;
use ondine_package::signature::{Signed, Signer, Verified};
use ondine_package::{Limits, signature};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `ondine verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine verify helper-3 --public-key release.pub --signature helper-3/model.sig
  ondine verify model.gguf --public-key release.pub --signature model.sig --json
  ondine verify helper-3 --signature helper-3.sigstore.json \\
    --certificate-identity release@acme.example --certificate-oidc-issuer https://accounts.example

With a certificate's identity, or with --trusted-root, the signature must also be in a public log. It may then be that of a model,
or of any one file, which may be given as sha256: and 64 digits.

Exit code 3 and a reason when a file, the signature or the key is not the right one.")]
pub struct Args {
    /// Directory or file to verify
    model: PathBuf,
    /// PEM file of the key
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "certificate_identity"
    )]
    public_key: Option<PathBuf>,
    /// Who must have signed: the e-mail address or the workflow's address in the certificate
    #[arg(
        long,
        value_name = "IDENTITY",
        conflicts_with = "public_key",
        requires = "certificate_oidc_issuer"
    )]
    certificate_identity: Option<String>,
    /// Who must have vouched for that identity
    #[arg(long, value_name = "URL", requires = "certificate_identity")]
    certificate_oidc_issuer: Option<String>,
    /// The certificate authorities and logs to believe (default: the public Sigstore instance's)
    #[arg(long, value_name = "FILE")]
    trusted_root: Option<PathBuf>,
    /// With --public-key: the signature must be in the public log
    #[arg(long)]
    logged: bool,
    /// The signature
    #[arg(long, value_name = "FILE", default_value = "model.sig")]
    signature: PathBuf,
}

/// Prints what was verified.
///
/// # Errors
/// `Refused` with the reason, `Failed` when a file cannot be read.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let key = args.public_key.as_deref().map(public_key).transpose()?;
    let signer = match (
        &key,
        &args.certificate_identity,
        &args.certificate_oidc_issuer,
    ) {
        (Some(key), ..) if args.logged || args.trusted_root.is_some() => Signer::Key(key),
        (Some(key), ..) => {
            let limits = Limits::default();
            let verified = signature::verify(&args.model, &args.signature, key, &limits)?;
            return print_model(&verified, json!({}), output);
        }
        (None, Some(identity), Some(issuer)) => Signer::Identity { identity, issuer },
        _ => {
            return Err(CliError::Usage(
                "give --public-key, or --certificate-identity and --certificate-oidc-issuer".into(),
            ));
        }
    };
    let root = args.trusted_root.as_deref().map(read_text).transpose()?;
    let digest = sha256(&args.model);
    let signed = digest.map_or(Signed::Path(&args.model), Signed::Digest);
    let limits = Limits::default();
    let verified =
        signature::verify_identity(signed, &args.signature, signer, root.as_deref(), &limits)?;
    let who = json!({ "identity": verified.identity, "issuer": verified.issuer });
    match verified.model {
        Some(model) => print_model(&model, who, output),
        None if output.is_json() => output.json(&with(json!({ "verified": true }), who)),
        None => output.line(&format!("verified {}", args.model.display())),
    }
}

/// The digest that stands for a file which is not here.
fn sha256(model: &Path) -> Option<Digest> {
    if model.exists() {
        return None;
    }
    Digest::from_hex(model.to_str()?.strip_prefix("sha256:")?)
}

fn print_model(verified: &Verified, who: Value, output: &mut Output) -> Result<(), CliError> {
    let ignored: Vec<&str> = verified.ignored.iter().map(|path| path.as_str()).collect();
    if output.is_json() {
        let files: Vec<_> = verified
            .files
            .iter()
            .map(|(path, digest)| json!({ "path": path.as_str(), "digest": digest.to_hex() }))
            .collect();
        let model = json!({
            "verified": true,
            "name": verified.name,
            "root": verified.root.to_hex(),
            "key": verified.key.map(|key| key.to_hex()),
            "files": files,
            "ignored": ignored,
        });
        return output.json(&with(model, who));
    }
    output.note(&format!(
        "not covered by the signature: {}",
        ignored.join(", ")
    ));
    output.line(&format!(
        "verified {}, {} files",
        verified.name,
        verified.files.len().max(1)
    ))
}

fn with(mut all: Value, more: Value) -> Value {
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
    all
}
