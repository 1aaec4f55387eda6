//! `ondine keygen`: a pair of keys, to sign models or to seal them.

use super::delivery::{Passphrase, write_secret, write_text};
use crate::error::CliError;
use crate::output::Output;
use ondine_package::seal::Identity;
use ondine_package::signature::{Algorithm, PrivateKey};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `ondine keygen`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine keygen -o release               writes release.key (keep it) and release.pub (ship it)
  ONDINE_PASSPHRASE=… ondine keygen -o release
  ondine keygen --kind seal -o device    writes device.key (an age identity) and device.pub (its recipient)")]
pub struct Args {
    /// What the keys are for
    #[arg(long, value_enum, default_value = "ecdsa-p256")]
    kind: Kind,
    /// Names of the two files, without .key and .pub
    #[arg(short, long, value_name = "PREFIX")]
    output: PathBuf,
    #[command(flatten)]
    passphrase: Passphrase,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    /// Signing; every verifier of the format reads it
    EcdsaP256,
    /// Signing
    EcdsaP384,
    /// Signing; smaller and quicker, read by this tool only
    Ed25519,
    /// Sealing: X25519, as age uses it
    Seal,
}

/// Writes the two files and prints the public half's name.
///
/// # Errors
/// `Failed` when a file exists already or cannot be written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let named = |extension: &str| {
        let mut name = args.output.as_os_str().to_owned();
        name.push(extension);
        PathBuf::from(name)
    };
    let (secret, public) = (named(".key"), named(".pub"));
    let algorithm = match args.kind {
        Kind::EcdsaP256 => Algorithm::EcdsaP256,
        Kind::EcdsaP384 => Algorithm::EcdsaP384,
        Kind::Ed25519 => Algorithm::Ed25519,
        Kind::Seal => {
            let identity = Identity::generate()?;
            let recipient = identity.recipient().to_string();
            write_secret(
                &secret,
                &format!(
                    "# public key: {recipient}\n{}\n",
                    identity.to_text().as_str()
                ),
            )?;
            write_text(&public, &format!("{recipient}\n"))?;
            return report(output, &secret, &public, &recipient);
        }
    };
    let (key, pem) = PrivateKey::generate_pem(algorithm, args.passphrase.read()?.as_deref())?;
    write_secret(&secret, &pem)?;
    write_text(&public, &key.public().to_pem())?;
    report(output, &secret, &public, &key.public().hint().to_hex())
}

fn report(output: &mut Output, secret: &Path, public: &Path, name: &str) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(&json!({ "private": secret, "public": public, "name": name }));
    }
    output.note(&format!(
        "{} is secret; {} goes to whoever verifies or seals",
        secret.display(),
        public.display()
    ));
    output.line(name)
}
