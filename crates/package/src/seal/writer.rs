//! Plain → sealed, and back to a plain file.

use super::age::Identity;
use super::header::Header;
use super::{CHUNK_BYTES, Cipher, Recipient, SealError, SealedFile, file_error};
use crate::path::BundlePath;
use crate::source::ByteSource;
use crate::{Limits, digest};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes that are sealed or opened at a time.
const BATCH_BYTES: usize = 16 * CHUNK_BYTES;

/// Seals `length` bytes of `plain` into `out`, under the name `name`.
///
/// # Errors
/// [`SealError`] when there are no recipients, `plain` ends early or something cannot be written.
pub fn seal(
    plain: &mut dyn Read,
    length: u64,
    name: &BundlePath,
    recipients: &[Recipient],
    cipher: Cipher,
    out: &mut dyn Write,
) -> Result<(), SealError> {
    if recipients.is_empty() || recipients.len() > Limits::default().recipients {
        return Err(SealError::Key {
            what: "recipient",
            reason: "there must be from 1 to 64",
        });
    }
    let failed = || SealError::Key {
        what: "recipient",
        reason: "the key could not be wrapped for it",
    };
    let wrong = file_error(name.as_str());
    let (header, bytes) = Header::create(name, length, cipher, recipients).ok_or_else(failed)?;
    out.write_all(&bytes).map_err(&wrong)?;
    let mut buffer = Zeroizing::new(vec![0; CHUNK_BYTES]);
    let chunks = header.chunks();
    for index in 0..chunks {
        let chunk = &mut buffer[..header.chunk_length(index)];
        plain.read_exact(chunk).map_err(&wrong)?;
        let tag = header
            .key
            .seal(index, index + 1 == chunks, chunk)
            .ok_or_else(failed)?;
        out.write_all(chunk)
            .and_then(|()| out.write_all(&tag))
            .map_err(&wrong)?;
    }
    Ok(())
}

/// Seals the file `from` as the new file `to`; `to` appears only when it is complete.
///
/// # Errors
/// [`SealError`].
pub fn seal_file(
    from: &Path,
    to: &Path,
    name: &BundlePath,
    recipients: &[Recipient],
    cipher: Cipher,
) -> Result<(), SealError> {
    let wrong = file_error(name.as_str());
    let mut plain = File::open(from).map_err(&wrong)?;
    let length = plain.metadata().map_err(&wrong)?.len();
    write_new(to, |out| {
        seal(&mut plain, length, name, recipients, cipher, out)
    })
}

/// Opens the sealed file `from` as the new plain file `to`; `to` appears only when every chunk was right.
/// Answers the name it was sealed under and the plain file's BLAKE3.
///
/// # Errors
/// [`SealError`].
pub fn unseal_file(
    from: &Path,
    to: &Path,
    identities: &[Identity],
    limits: &Limits,
) -> Result<(BundlePath, digest::Digest), SealError> {
    let sealed = SealedFile::open(from, identities, limits)?;
    let mut hasher = blake3::Hasher::new();
    write_new(to, |out| {
        let mut buffer = Zeroizing::new(vec![0; BATCH_BYTES.min(sealed.len() as usize)]);
        let mut at = 0;
        while at < sealed.len() {
            let count = (sealed.len() - at).min(buffer.len() as u64) as usize;
            sealed.read_plain(at, &mut buffer[..count])?;
            hasher.update(&buffer[..count]);
            out.write_all(&buffer[..count])
                .map_err(file_error(sealed.name()))?;
            at += count as u64;
        }
        // An empty file has a chunk too, whose tag has not been read yet.
        sealed.check_chunk(sealed.chunks() - 1)
    })?;
    Ok((
        sealed.sealed_name().clone(),
        digest::Digest(*hasher.finalize().as_bytes()),
    ))
}

fn write_new(
    to: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), SealError>,
) -> Result<(), SealError> {
    let name = to.display().to_string();
    let wrong = file_error(&name);
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = std::path::PathBuf::from(part);
    let written = (|| {
        let mut out = BufWriter::with_capacity(BATCH_BYTES, File::create(&part).map_err(&wrong)?);
        fill(&mut out)?;
        let file = out
            .into_inner()
            .map_err(|error| wrong(error.into_error()))?;
        file.sync_all().map_err(&wrong)?;
        std::fs::rename(&part, to).map_err(&wrong)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}
