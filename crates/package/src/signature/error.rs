//! Why a signature was not made, or is refused.

use crate::digest::DigestError;
use crate::path::PathError;
use std::io;

/// Why a signature was not made, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A file could not be read.
    #[error("{path} could not be read: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file could not be hashed.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A key file is not a key that can be used here.
    #[error("the key is refused: {0}")]
    Key(String),
    /// A private key is protected and no passphrase, or another one, was given.
    #[error(
        "the private key is protected and this passphrase does not open it; give the right one"
    )]
    Passphrase,
    /// The signature file is not the JSON that the format asks for.
    #[error("the signature file is refused: {0}; sign the model again")]
    Envelope(String),
    /// The signature was made by another key.
    #[error(
        "the signature was made by another key (its hint is {0}); verify with that key's public half"
    )]
    OtherKey(String),
    /// The signature does not belong to what it signs.
    #[error("the signature does not match its content; the signature file was changed")]
    Invalid,
    /// A signature by identity does not hold.
    #[error("the signature is refused: {0}")]
    Identity(String),
    /// The trusted root cannot be used.
    #[error("the trusted root is refused: {0}; fetch it again")]
    TrustedRoot(String),
    /// What was signed breaks a rule.
    #[error("the signed statement is refused: {0}; sign the model again")]
    Statement(String),
    /// A name is refused.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file was added.
    #[error(
        "{0} is not in the signature: it was added or renamed; remove it or fetch the model again"
    )]
    Added(String),
    /// A file is missing.
    #[error(
        "{0} is in the signature but not there: it was removed or renamed; fetch the model again"
    )]
    Missing(String),
    /// A file has other bytes.
    #[error("{0} is not the file that was signed; fetch the model again")]
    Changed(String),
    /// A symbolic link.
    #[error(
        "{0} is a symbolic link, which could lead out of the model; replace it by the file itself"
    )]
    SymbolicLink(String),
    /// A socket, pipe or device.
    #[error("{0} is neither a file nor a directory; remove it")]
    Special(String),
    /// Too many files, or directories too deep.
    #[error("{0} holds more than {1} files; it is not a model")]
    TooMany(String, usize),
}

impl SignatureError {
    /// Whether the model, the signature or the key is not what it should be (rather than a file that cannot be read).
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            SignatureError::Unreadable { .. }
                | SignatureError::Digest(_)
                | SignatureError::Passphrase
        )
    }
}
