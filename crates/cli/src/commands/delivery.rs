//! What the verbs of model delivery share: keys and passphrases from files, and the exit code of each error.

use crate::error::CliError;
use ondine_package::Limits;
use ondine_package::seal::{Identity, SealError};
use ondine_package::signature::{PrivateKey, PublicKey, SignatureError};
use ondine_package::{
    bundle::PackError, delta::DeltaError, release::ReleaseError, store::StoreError,
};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the passphrase of a private key comes from; never an argument, which other users of the machine could see.
#[derive(Debug, clap::Args)]
pub struct Passphrase {
    /// File whose first line is the private key's passphrase (else the environment variable ONDINE_PASSPHRASE)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    /// The passphrase, if one was given.
    ///
    /// # Errors
    /// `Failed` when the file cannot be read.
    pub fn read(&self) -> Result<Option<String>, CliError> {
        match &self.passphrase_file {
            Some(path) => Ok(read_text(path)?.lines().next().map(str::to_owned)),
            None => Ok(std::env::var("ONDINE_PASSPHRASE").ok()),
        }
    }
}

/// Reads a private key that signs.
///
/// # Errors
/// `Failed` when it cannot be read, `Refused` when it is not such a key.
pub fn private_key(path: &Path, passphrase: &Passphrase) -> Result<PrivateKey, CliError> {
    let passphrase = passphrase.read()?;
    Ok(PrivateKey::from_pem(
        &read_text(path)?,
        passphrase.as_deref(),
    )?)
}

/// Reads a public key that verifies.
///
/// # Errors
/// As [`private_key`].
pub fn public_key(path: &Path) -> Result<PublicKey, CliError> {
    Ok(PublicKey::from_pem(&read_text(path)?)?)
}

/// Reads the identities in some files.
///
/// # Errors
/// As [`private_key`].
pub fn identities(paths: &[PathBuf]) -> Result<Vec<Identity>, CliError> {
    let mut found = Vec::new();
    for path in paths {
        found.extend(Identity::parse_file(&read_text(path)?)?);
    }
    Ok(found)
}

/// Reads a small text file.
///
/// # Errors
/// `Failed`, naming the file.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    let most = Limits::default().key_bytes;
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(most).read_to_string(&mut text));
    read.map(|_| text)
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

/// Writes a new file that only its owner may read.
///
/// # Errors
/// `Failed` when it exists already or cannot be written.
pub fn write_secret(path: &Path, text: &str) -> Result<(), CliError> {
    use std::io::Write;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

/// Writes a file that anybody may read.
///
/// # Errors
/// `Failed`, naming the file.
pub fn write_text(path: &Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

fn refused(refusal: bool, text: String) -> CliError {
    if refusal {
        CliError::Refused(text)
    } else {
        CliError::Failed(text)
    }
}

impl From<SignatureError> for CliError {
    fn from(error: SignatureError) -> Self {
        refused(error.is_refusal(), error.to_string())
    }
}

impl From<SealError> for CliError {
    fn from(error: SealError) -> Self {
        let refusal = error.is_refusal() || matches!(error, SealError::NoIdentity(_));
        refused(refusal, error.to_string())
    }
}

impl From<DeltaError> for CliError {
    fn from(error: DeltaError) -> Self {
        refused(error.is_refusal(), error.to_string())
    }
}

impl From<PackError> for CliError {
    fn from(error: PackError) -> Self {
        let refusal = matches!(error, PackError::Differs { .. } | PackError::Manifest(_));
        refused(refusal, error.to_string())
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        refused(error.is_refusal(), error.to_string())
    }
}

impl From<ReleaseError> for CliError {
    fn from(error: ReleaseError) -> Self {
        refused(error.is_refusal(), error.to_string())
    }
}
