//! The header of a sealed file.

use super::age::{self, FileKey, Identity, UnwrapError, derive};
use super::cipher::{ChunkKey, Cipher};
use super::{CHUNK_BYTES, Recipient, SealError, TAG_BYTES};
use crate::Limits;
use crate::digest::Digest;
use crate::path::BundlePath;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// Starts every sealed file.
pub(super) const MAGIC: &[u8; 16] = b"ondine-sealed/1\n";
/// Magic and the length of the rest.
pub(super) const PREFIX_BYTES: usize = MAGIC.len() + 4;
const SALT_BYTES: usize = 32;
const HEADER_TAG_BYTES: usize = 32;

/// What the header says, after its tag was checked.
pub(super) struct Header {
    pub name: BundlePath,
    pub cipher: Cipher,
    /// Bytes of the plain file.
    pub length: u64,
    /// Where the first chunk begins.
    pub chunks_at: u64,
    pub key: ChunkKey,
    /// BLAKE3 of the header's bytes.
    pub digest: Digest,
}

impl Header {
    /// Makes a header for a new file; answers it and its bytes.
    pub fn create(
        name: &BundlePath,
        length: u64,
        cipher: Cipher,
        recipients: &[Recipient],
    ) -> Option<(Self, Vec<u8>)> {
        let random = SystemRandom::new();
        let mut file_key: FileKey = Zeroizing::new([0; age::FILE_KEY_BYTES]);
        let mut salt = [0; SALT_BYTES];
        random.fill(file_key.as_mut()).ok()?;
        random.fill(&mut salt).ok()?;
        let wrapped = age::wrap(&file_key, recipients)?;

        let mut bytes = MAGIC.to_vec();
        let context = context(cipher, length, name);
        let rest = 2 + wrapped.len() + context.len() + SALT_BYTES + HEADER_TAG_BYTES;
        bytes.extend_from_slice(&u32::try_from(rest).ok()?.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(wrapped.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(wrapped.as_bytes());
        bytes.extend_from_slice(&salt);
        bytes.extend_from_slice(&context);
        let tag = hmac::sign(&tag_key(&file_key, &salt)?, &bytes);
        bytes.extend_from_slice(tag.as_ref());
        let header = Header {
            name: name.clone(),
            cipher,
            length,
            chunks_at: bytes.len() as u64,
            digest: Digest::blake3(&bytes),
            key: ChunkKey::derive(cipher, file_key.as_ref(), &salt, &context)?,
        };
        Some((header, bytes))
    }

    /// Bytes of a header whose first [`PREFIX_BYTES`] are `prefix`.
    pub fn length_of(prefix: &[u8; PREFIX_BYTES], limits: &Limits) -> Option<usize> {
        let (magic, length) = prefix.split_at(MAGIC.len());
        let length = u32::from_le_bytes(length.try_into().ok()?);
        (magic == MAGIC && length <= limits.sealed_header_bytes)
            .then_some(PREFIX_BYTES + length as usize)
    }

    /// Reads a whole header.
    pub fn parse(
        bytes: &[u8],
        identities: &[Identity],
        limits: &Limits,
        path: &str,
    ) -> Result<Self, SealError> {
        let refused = |reason: &str| SealError::Header {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let short = || refused("it is too short");
        let (signed, tag) = bytes
            .split_at_checked(bytes.len().wrapping_sub(HEADER_TAG_BYTES))
            .ok_or_else(short)?;
        let rest = signed.get(PREFIX_BYTES..).ok_or_else(short)?;
        let (wrapped_length, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
        let (wrapped, rest) = rest
            .split_at_checked(u16::from_le_bytes(*wrapped_length).into())
            .ok_or_else(short)?;
        let (salt, context_bytes) = rest.split_first_chunk::<SALT_BYTES>().ok_or_else(short)?;

        let wrapped =
            std::str::from_utf8(wrapped).map_err(|_| refused("the wrapped key is not text"))?;
        let file_key =
            age::unwrap(wrapped, identities, limits.recipients).map_err(|error| match error {
                UnwrapError::Malformed(reason) => refused(reason),
                UnwrapError::NoIdentity => SealError::NoIdentity(path.to_owned()),
            })?;
        let tag_key = tag_key(&file_key, salt).ok_or_else(short)?;
        hmac::verify(&tag_key, signed, tag).map_err(|_| refused("it was changed"))?;

        let (&[cipher, chunk_bits], rest) =
            context_bytes.split_first_chunk::<2>().ok_or_else(short)?;
        let (length, name) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        let cipher =
            Cipher::from_number(cipher).ok_or_else(|| refused("the cipher is not known"))?;
        let name = std::str::from_utf8(name)
            .ok()
            .and_then(|name| BundlePath::parse(name).ok());
        let name = name.ok_or_else(|| refused("the name is not a safe path"))?;
        let length = u64::from_le_bytes(*length);
        if 1_usize.checked_shl(chunk_bits.into()) != Some(CHUNK_BYTES) || length > limits.file_bytes
        {
            return Err(refused("the chunk size or the length is not supported"));
        }
        let key =
            ChunkKey::derive(cipher, file_key.as_ref(), salt, context_bytes).ok_or_else(short)?;
        Ok(Header {
            name,
            cipher,
            length,
            chunks_at: bytes.len() as u64,
            digest: Digest::blake3(bytes),
            key,
        })
    }

    /// Chunks of the file; an empty file has one, whose tag says that it is empty.
    pub fn chunks(&self) -> u64 {
        self.length.div_ceil(CHUNK_BYTES as u64).max(1)
    }

    /// Bytes of the whole sealed file.
    pub fn sealed_length(&self) -> u64 {
        self.chunks_at + self.length + self.chunks() * TAG_BYTES as u64
    }

    /// Plain bytes of a chunk.
    pub fn chunk_length(&self, chunk: u64) -> usize {
        (self.length - chunk * CHUNK_BYTES as u64).min(CHUNK_BYTES as u64) as usize
    }
}

/// What chunks are bound to: cipher, chunk size, length and name.
fn context(cipher: Cipher, length: u64, name: &BundlePath) -> Vec<u8> {
    let mut out = vec![cipher.number(), CHUNK_BYTES.trailing_zeros() as u8];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(name.as_str().as_bytes());
    out
}

fn tag_key(file_key: &FileKey, salt: &[u8; SALT_BYTES]) -> Option<hmac::Key> {
    let mut key = Zeroizing::new([0; 32]);
    derive(
        salt,
        file_key.as_ref(),
        &[b"ondine-seal/1 header"],
        &mut key,
    )?;
    Some(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
}
