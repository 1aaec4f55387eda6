//! OpenSSF Model Signing v1: one signature over every file of a directory.
//!
//! ```text
//! files → SHA-256 each → in-toto statement → DSSE envelope, signed → Sigstore bundle (JSON)
//! ```
//!
//! Format: the model-signing specification of the OpenSSF, predicate `https://model_signing/signature/v1.0`, method `key`.
//! The reader is stricter than the specification: what two verifiers might read differently is refused.

mod envelope;
mod error;
mod identity;
mod keys;
mod statement;
#[cfg(test)]
mod tests;
mod tree;
#[cfg(test)]
mod wycheproof;

use crate::Limits;
use crate::bundle::{MANIFEST_NAME, Manifest};
use crate::digest::{Algorithms, Digest, hash_files, read_bounded};
use crate::path::BundlePath;
use statement::{HashType, Statement};
use std::path::{Path, PathBuf};

pub use error::SignatureError;
pub use identity::{Signed, Signer, VerifiedIdentity, verify_identity};
pub use keys::{Algorithm, PrivateKey, PublicKey};
pub use tree::walk;

/// A directory (or one file) whose every byte is what a key's owner signed.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The name that the signer gave; informative only.
    pub name: String,
    /// SHA-256 over the files' digests in order: the identity of the whole.
    pub root: Digest,
    /// SHA-256 of the key's PEM: which key signed; none when it was the key of a certificate.
    pub key: Option<Digest>,
    /// The files, in order of path; empty for a model of one file.
    pub files: Vec<(BundlePath, Digest)>,
    /// Paths that the signer left out: nothing is known about what is there.
    pub ignored: Vec<BundlePath>,
}

/// What git keeps in a directory; left out of a signature by custom of the format.
const GIT_PATHS: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// Signs the directory or file `model`; answers the signature file's text.
///
/// `signature` is where the caller will write that text: when it lies inside `model` it is left out of what is signed.
///
/// # Errors
/// [`SignatureError`] for symbolic links, special files, refused names and unreadable files.
pub fn sign(
    model: &Path,
    signature: &Path,
    key: &PrivateKey,
    limits: &Limits,
) -> Result<String, SignatureError> {
    let mut ignored: Vec<BundlePath> = GIT_PATHS
        .iter()
        .filter_map(|path| BundlePath::parse(path).ok())
        .collect();
    ignored.extend(tree::inside(model, signature)?);
    ignored.sort();
    ignored.dedup();
    let (names, paths) = tree::files(model, &ignored, limits)?;
    let digests = hash_files(&paths, Algorithms::Sha256)?
        .into_iter()
        .map(|digest| digest.sha256);
    let name = tree::model_name(model);
    let payload =
        Statement::new(name, names.into_iter().zip(digests).collect(), &ignored).to_json();
    envelope::seal(payload.as_bytes(), key)
}

/// Verifies the directory or file `model` against the signature file `signature` and the key that made it.
///
/// # Errors
/// [`SignatureError`]; [`SignatureError::is_refusal`] tells an attack or damage from a file that cannot be read.
pub fn verify(
    model: &Path,
    signature: &Path,
    key: &PublicKey,
    limits: &Limits,
) -> Result<Verified, SignatureError> {
    let bytes = read_signature(signature, limits)?;
    let payload = envelope::open(&bytes, key)?;
    let statement = Statement::parse(&payload, limits)?;
    check_files(model, signature, &statement, limits)?;
    Ok(statement.verified(Some(key.hint())))
}

/// Verifies a signature over a bundle whose files are not here yet: the statement must list the manifest, `manifest_bytes`, and
/// exactly the files that the manifest lists, with the same SHA-256.
///
/// # Errors
/// [`SignatureError`].
pub fn verify_manifest(
    signature: &[u8],
    key: &PublicKey,
    manifest_bytes: &[u8],
    manifest: &Manifest,
    limits: &Limits,
) -> Result<Verified, SignatureError> {
    let payload = envelope::open(signature, key)?;
    let statement = Statement::parse(&payload, limits)?;
    if statement.hash_type != HashType::Sha256 {
        return Err(SignatureError::Statement(
            "its hashes are not SHA-256".into(),
        ));
    }
    let listed = manifest.files.iter().map(|file| (&file.path, file.sha256));
    let mut wanted: Vec<(String, Digest)> = listed
        .map(|(path, digest)| (path.to_string(), digest))
        .collect();
    wanted.push((MANIFEST_NAME.into(), Digest::sha256(manifest_bytes)));
    wanted.sort();
    let mut signed = statement.resources.clone();
    signed.sort();
    if let Some((name, _)) = wanted.iter().find(|file| !signed.contains(file)) {
        return Err(SignatureError::Changed(name.clone()));
    }
    if let Some((name, _)) = signed.iter().find(|file| !wanted.contains(file)) {
        return Err(SignatureError::Missing(name.clone()));
    }
    Ok(statement.verified(Some(key.hint())))
}

fn read_signature(path: &Path, limits: &Limits) -> Result<Vec<u8>, SignatureError> {
    read_bounded(path, limits.signature_bytes).map_err(|source| match source.kind() {
        std::io::ErrorKind::InvalidData => SignatureError::Envelope(source.to_string()),
        _ => SignatureError::Unreadable {
            path: path.display().to_string(),
            source,
        },
    })
}

fn check_files(
    model: &Path,
    signature: &Path,
    statement: &Statement,
    limits: &Limits,
) -> Result<(), SignatureError> {
    let mut ignored = statement.ignored.clone();
    if let Some(inside) = tree::inside(model, signature)? {
        if statement
            .resources
            .iter()
            .any(|(name, _)| name == inside.as_str())
        {
            return Err(SignatureError::Statement(
                "it lists the signature file itself".into(),
            ));
        }
        ignored.push(inside);
    }
    let (names, paths) = tree::files(model, &ignored, limits)?;
    compare_names(&names, statement)?;
    let algorithm = match statement.hash_type {
        HashType::Sha256 => Algorithms::Sha256,
        HashType::Blake3 => Algorithms::Blake3,
    };
    for (found, (name, signed)) in hash_all(&paths, algorithm)?
        .iter()
        .zip(&statement.resources)
    {
        if found != signed {
            return Err(SignatureError::Changed(name.clone()));
        }
    }
    Ok(())
}

fn hash_all(paths: &[PathBuf], algorithms: Algorithms) -> Result<Vec<Digest>, SignatureError> {
    let digests = hash_files(paths, algorithms)?;
    let pick = |digest: crate::digest::FileDigest| match algorithms {
        Algorithms::Blake3 => digest.blake3,
        _ => digest.sha256,
    };
    Ok(digests.into_iter().map(pick).collect())
}

/// Both lists are in order, so the first difference names the file.
fn compare_names(found: &[String], statement: &Statement) -> Result<(), SignatureError> {
    let signed: Vec<&String> = statement.resources.iter().map(|(name, _)| name).collect();
    if let Some(missing) = signed.iter().find(|name| !found.contains(name)) {
        return Err(SignatureError::Missing((*missing).clone()));
    }
    if let Some(added) = found.iter().find(|name| !signed.contains(name)) {
        return Err(SignatureError::Added(added.clone()));
    }
    if found.iter().ne(signed.iter().copied()) {
        return Err(SignatureError::Statement(
            "its files are in another order than the directory's".into(),
        ));
    }
    Ok(())
}
