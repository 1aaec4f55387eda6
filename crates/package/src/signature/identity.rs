//! Signatures of a person or a workflow: a certificate for an identity, valid for minutes, and an entry in a public log.
//!
//! Format: Sigstore bundle v0.1 to v0.3; the checks are those of the Sigstore client specification, made by `sigstore-verify`:
//! certificate chain and its log, identity and issuer, inclusion proof, checkpoint, timestamps, signature, and that the log's entry
//! is about this signature. A model signed that way (OpenSSF Model Signing v1, method `sigstore`) is then checked file by
//! file, as with keys.

use super::statement::Statement;
use super::{PublicKey, SignatureError, Verified, check_files, read_signature};
use crate::Limits;
use crate::digest::Digest;
use crate::text::one_line;
use sigstore_verify::trust_root::{SIGSTORE_PRODUCTION_TRUSTED_ROOT, TrustedRoot};
use sigstore_verify::types::{Bundle, DerPublicKey, Sha256Hash, SignatureContent};
use sigstore_verify::{Policy, PublicKeyVerificationPolicy, VerificationPolicy, Verifier};
use std::fs::File;
use std::path::Path;

/// Who must have signed.
#[derive(Clone, Copy, Debug)]
pub enum Signer<'a> {
    /// The identity in the certificate (an e-mail address or a workflow's URI), and who vouched for it.
    Identity {
        /// The certificate's subject alternative name.
        identity: &'a str,
        /// Address of the OpenID Connect provider.
        issuer: &'a str,
    },
    /// A key; the signature must be in the log all the same.
    Key(&'a PublicKey),
}

/// What is verified.
#[derive(Clone, Copy, Debug)]
pub enum Signed<'a> {
    /// A model (every file of it), or any other file.
    Path(&'a Path),
    /// The SHA-256 of a file that is not here.
    Digest(Digest),
}

/// What a signature by identity vouches for.
#[derive(Clone, Debug)]
pub struct VerifiedIdentity {
    /// The files, when the signature is that of a model.
    pub model: Option<Verified>,
    /// The certificate's identity; none when a key signed.
    pub identity: Option<String>,
    /// Who vouched for it.
    pub issuer: Option<String>,
}

/// Verifies `signed` against the Sigstore bundle in the file `signature`.
///
/// `trusted_root` is the JSON of the certificate authorities and logs that are believed; the public good instance's as of this
/// version's release without it.
///
/// # Errors
/// [`SignatureError`].
pub fn verify_identity(
    signed: Signed<'_>,
    signature: &Path,
    signer: Signer<'_>,
    trusted_root: Option<&str>,
    limits: &Limits,
) -> Result<VerifiedIdentity, SignatureError> {
    let unreadable = |path: &Path, source| SignatureError::Unreadable {
        path: path.display().to_string(),
        source,
    };
    let bytes = read_signature(signature, limits)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| refused("it is not text"))?;
    let bundle = Bundle::from_json(text).map_err(|error| {
        refused(format!(
            "it is not a Sigstore bundle ({})",
            one_line(&error)
        ))
    })?;
    let root = TrustedRoot::from_json(trusted_root.unwrap_or(SIGSTORE_PRODUCTION_TRUSTED_ROOT))
        .map_err(|error| SignatureError::TrustedRoot(one_line(&error)))?;
    let root =
        Verifier::new(&root).map_err(|error| SignatureError::TrustedRoot(one_line(&error)))?;
    let policy: Box<dyn Policy> = match signer {
        Signer::Identity { identity, issuer } => {
            Box::new(VerificationPolicy::new(identity, issuer))
        }
        Signer::Key(key) => Box::new(PublicKeyVerificationPolicy::new(
            DerPublicKey::from_pem(&key.to_pem())
                .map_err(|error| SignatureError::Key(one_line(&error)))?,
        )),
    };
    let statement = match signed {
        Signed::Path(path) => model_statement(path, &bundle, limits)?,
        Signed::Digest(_) => None,
    };
    let result = match (signed, &statement) {
        (_, Some(statement)) => {
            root.verify(Sha256Hash::from(statement.root.0), &bundle, policy.as_ref())
        }
        (Signed::Digest(digest), None) => {
            root.verify(Sha256Hash::from(digest.0), &bundle, policy.as_ref())
        }
        (Signed::Path(path), None) => {
            let file = File::open(path).map_err(|source| unreadable(path, source))?;
            root.verify_reader(file, &bundle, policy.as_ref())
        }
    }
    .map_err(|error| SignatureError::Identity(one_line(&error)))?;
    let model = match (signed, statement) {
        (Signed::Path(path), Some(statement)) => {
            check_files(path, signature, &statement, limits)?;
            let key = match signer {
                Signer::Key(key) => Some(key.hint()),
                Signer::Identity { .. } => None,
            };
            Some(statement.verified(key))
        }
        _ => None,
    };
    Ok(VerifiedIdentity {
        model,
        identity: result
            .identity()
            .map(|identity| identity.as_str().to_owned()),
        issuer: result.issuer().map(str::to_owned),
    })
}

/// The statement of a model's files; a directory must have one, a file may have been signed in another way.
fn model_statement(
    path: &Path,
    bundle: &Bundle,
    limits: &Limits,
) -> Result<Option<Statement>, SignatureError> {
    let payload = match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => Some(envelope.payload.as_bytes()),
        _ => None,
    };
    match payload {
        Some(payload) if path.is_dir() || Statement::is_of_model(payload) => {
            Statement::parse(payload, limits).map(Some)
        }
        None if path.is_dir() => Err(refused("it is the signature of one file, not of a model")),
        _ => Ok(None),
    }
}

fn refused(reason: impl Into<String>) -> SignatureError {
    SignatureError::Envelope(reason.into())
}
