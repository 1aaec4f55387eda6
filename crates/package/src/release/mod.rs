//! Releases: what a repository offers, and how a device comes to have it.
//!
//! ```text
//! repository (any static web server, directory or registry)
//!   metadata/   root, timestamp, snapshot, targets of The Update Framework: who may sign, what is the newest, until when
//!   targets/    NAME/….index.json: releases and deltas of one model · ….trust.json: who may sign bundles
//!   blobs/      manifests, signatures, files and deltas, each named by its SHA-256
//! ```
//!
//! Everything hangs on the root's keys: root → timestamp → snapshot → targets → index → manifest → files; each link states the
//! size and the hash of the next, so that nothing is read further than what was signed. The checks of the metadata (thresholds,
//! versions that never fall, expiry, rotation) are those of the crate `sigstore-tuf`; see The Update Framework's specification 1.0.
//!
//! [`publish`] writes a repository, [`update`] brings a [`crate::store::Store`] to the right release.

mod download;
mod index;
mod metadata;
mod policy;
mod publish;
mod remote;
mod route;
#[cfg(test)]
mod tests;
mod update;

pub use index::{Blob, DeltaEntry, Index, Release, bucket};
pub use metadata::{Client, DirectoryCache};
pub use policy::{Trust, TrustRule, TrustedKey};
pub use publish::{Keys, Publication, Published, publish};
pub use remote::{Directory, Opened, Remote, RemoteError};
pub use update::{Happening, Outcome, Update, update};

use crate::bundle::ManifestError;
use crate::delta::DeltaError;
use crate::digest::Digest;
use crate::store::StoreError;
use std::io;

/// Path below the repository of a blob.
pub(crate) fn blob_path(sha256: Digest) -> String {
    format!("blobs/{}", sha256.to_hex())
}

/// Why nothing was published or installed. On a device, what was current before still is.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The signed metadata is refused.
    #[error("the repository's {what} is refused: {reason}; nothing was changed")]
    Metadata {
        /// Which part.
        what: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// The bundle's signatures are not those that the trust policy asks for.
    #[error("release {version} is refused: {reason}")]
    Untrusted {
        /// Which release.
        version: u64,
        /// What is missing.
        reason: String,
    },
    /// The repository does not have this model.
    #[error("the repository does not offer {0:?}; it offers {1}")]
    NotOffered(String, String),
    /// Something that was signed is not there, or cannot be fetched.
    #[error(
        "{what} cannot be fetched from {from}: {reason}; the same command goes on where it stopped"
    )]
    Remote {
        /// Which file.
        what: String,
        /// Which repository.
        from: String,
        /// What went wrong.
        reason: String,
    },
    /// What arrived is not what was signed.
    #[error("{what} from {from} is not what was signed: {reason}; it was thrown away")]
    Differs {
        /// Which file.
        what: String,
        /// Which repository.
        from: String,
        /// What is different.
        reason: String,
    },
    /// The disk cannot hold the release.
    #[error(
        "not enough space in {path}: {needed} bytes are needed and {available} are free; free some and update again"
    )]
    Space {
        /// The store.
        path: String,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The current release was withdrawn and there is nothing to go to.
    #[error(
        "release {0} was withdrawn by its publisher and there is no other to go to; ask the publisher for a new release"
    )]
    Withdrawn(u64),
    /// A device without a root of trust.
    #[error("this device trusts no repository yet; give the repository's root with --root")]
    NoRoot,
    /// Another root than the one that was pinned.
    #[error(
        "this device already trusts another root than the one given; remove the store to trust a new one"
    )]
    OtherRoot,
    /// A file could not be read or written while publishing.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A key cannot be used here, or does not fit the repository.
    #[error("the repository was not changed: {0}")]
    Keys(String),
    /// A manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A delta could not be made.
    #[error(transparent)]
    Delta(#[from] DeltaError),
}

impl ReleaseError {
    /// Whether something is not what it should be (rather than one that could not be read or reached).
    pub fn is_refusal(&self) -> bool {
        match self {
            ReleaseError::Remote { .. }
            | ReleaseError::Space { .. }
            | ReleaseError::NoRoot
            | ReleaseError::NotOffered(..)
            | ReleaseError::Keys(_)
            | ReleaseError::File { .. } => false,
            ReleaseError::Store(error) => error.is_refusal(),
            ReleaseError::Delta(error) => error.is_refusal(),
            _ => true,
        }
    }
}

/// The time of this machine.
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
