//! Sealing: a file encrypted so that any part of it can be read, and no part can be changed, moved or cut off unnoticed.
//!
//! ```text
//! magic · header (wrapped key, cipher, plain length, name, salt) · header tag · chunk 0 · chunk 1 · … · last chunk
//! ```
//!
//! - The file key is 16 random bytes, wrapped for each recipient by an age v1 header (X25519), which is kept as it is: the
//!   usual tools for age keys make and keep the keys.
//! - The key of the chunks is derived from the file key, a random salt, the plain length, the name, the cipher and the chunk
//!   size. A chunk of another file, another version or another length therefore never opens.
//! - Each chunk of 64 KiB has its own tag. Its nonce is its index and whether it is the last, as in STREAM (Hoang, Reyhanitabar,
//!   Rogaway and Vizár, 2015); the key is used for one file only, so no nonce comes twice.
//! - The header tag (HMAC-SHA256 under the file key) makes the header fail before the first chunk does.
//!
//! Who holds the file key can forge chunks: recipients are trusted not to. What a signer vouches for is the manifest's hashes.

pub mod age;
mod cipher;
mod header;
mod reader;
#[cfg(test)]
mod tests;
mod writer;
#[cfg(test)]
mod wycheproof;

pub use age::{Identity, Recipient};
pub use cipher::Cipher;
pub use reader::{SealedFile, header_digest, is_sealed};
pub use writer::{seal, seal_file, unseal_file};

use std::io;

/// Plain bytes per chunk. 64 KiB: large enough to hide the tag (0.02 %), small enough to stay in a core's cache.
pub const CHUNK_BYTES: usize = 1 << 16;
/// Bytes of a chunk's tag.
pub const TAG_BYTES: usize = 16;

/// Why a file was not sealed, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not a sealed file.
    #[error("{0} is not a sealed file; give the file that ondine seal wrote")]
    NotSealed(String),
    /// The header breaks a rule, or was changed.
    #[error("the header of {path} is refused: {reason}; fetch the file again")]
    Header {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// No identity opens it.
    #[error("{0} is not sealed for any of these identities; give the right identity file")]
    NoIdentity(String),
    /// A chunk was changed, moved or replaced.
    #[error("chunk {chunk} of {path} was changed; fetch the file again")]
    Chunk {
        /// The file.
        path: String,
        /// Its index, from 0.
        chunk: u64,
    },
    /// It is sealed under another name.
    #[error("{path} is sealed as {found:?}, not as {wanted:?}; it is another file")]
    Name {
        /// The file.
        path: String,
        /// The name in its header.
        found: String,
        /// The name that was expected.
        wanted: String,
    },
    /// A key or recipient cannot be read.
    #[error("the {what} is refused: {reason}")]
    Key {
        /// "recipient" or "identity".
        what: &'static str,
        /// What is wrong; never any of the key.
        reason: &'static str,
    },
}

impl SealError {
    /// Whether the file is not what it should be (rather than one that cannot be read).
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            SealError::Header { .. }
                | SealError::Chunk { .. }
                | SealError::Name { .. }
                | SealError::NotSealed(_)
        )
    }
}

fn file_error(name: &str) -> impl Fn(io::Error) -> SealError + '_ {
    move |source| SealError::File {
        path: name.to_owned(),
        source,
    }
}
