//! Sealed file → plain bytes, at any offset, never through a plain file.

use super::age::Identity;
use super::header::{Header, PREFIX_BYTES};
use super::{CHUNK_BYTES, Cipher, SealError, TAG_BYTES, file_error};
use crate::Limits;
use crate::digest::Digest;
use crate::path::BundlePath;
use crate::source::{ByteSource, read_exact_at};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use zeroize::Zeroizing;

const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + TAG_BYTES;
/// Chunks that are read from the file at a time: enough to hide the call, few enough for a core's cache.
const READ_CHUNKS: usize = 8;
/// Reads of at least this many bytes are spread over the cores.
const PARALLEL_BYTES: usize = 4 << 20;

/// A sealed file that can be read at any offset. Every byte that comes out has passed its chunk's tag.
pub struct SealedFile {
    path: String,
    file: File,
    header: Header,
    /// The chunk that a small read opened last: readers of headers take a few bytes at a time.
    recent: Mutex<Option<(u64, Zeroizing<Vec<u8>>)>>,
}

/// Whether the file at `path` begins like a sealed one.
///
/// # Errors
/// What the operating system says.
pub fn is_sealed(path: &Path) -> io::Result<bool> {
    let mut found = [0; super::header::MAGIC.len()];
    match read_exact_at(&File::open(path)?, 0, &mut found) {
        Ok(()) => Ok(&found == super::header::MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// BLAKE3 of the header of the sealed file at `path`; nothing when it is not sealed. The header fixes the file key, and with it
/// every chunk that can open: whoever signs this digest vouches for the whole file.
///
/// # Errors
/// What the operating system says.
pub fn header_digest(path: &Path, limits: &Limits) -> io::Result<Option<Digest>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut prefix = [0; PREFIX_BYTES];
    if length < PREFIX_BYTES as u64 {
        return Ok(None);
    }
    read_exact_at(&file, 0, &mut prefix)?;
    match Header::length_of(&prefix, limits) {
        Some(header) if header as u64 <= length => {
            let mut bytes = vec![0; header];
            read_exact_at(&file, 0, &mut bytes)?;
            Ok(Some(Digest::blake3(&bytes)))
        }
        _ => Ok(None),
    }
}

impl SealedFile {
    /// BLAKE3 of the header, as [`header_digest`] gives it.
    pub fn header_digest(&self) -> Digest {
        self.header.digest
    }

    /// Opens the sealed file at `path` with one of `identities`.
    ///
    /// # Errors
    /// [`SealError`] when it is not sealed for them, was changed, or is longer or shorter than its header says.
    pub fn open(path: &Path, identities: &[Identity], limits: &Limits) -> Result<Self, SealError> {
        let name = path.display().to_string();
        let not_sealed = || SealError::NotSealed(name.clone());
        let file = File::open(path).map_err(file_error(&name))?;
        let mut prefix = [0; PREFIX_BYTES];
        read_exact_at(&file, 0, &mut prefix).map_err(|_| not_sealed())?;
        let mut bytes = vec![0; Header::length_of(&prefix, limits).ok_or_else(not_sealed)?];
        read_exact_at(&file, 0, &mut bytes).map_err(|_| not_sealed())?;
        let header = Header::parse(&bytes, identities, limits, &name)?;
        if file.metadata().map_err(file_error(&name))?.len() != header.sealed_length() {
            return Err(SealError::Header {
                path: name,
                reason: "the file is longer or shorter than it says".into(),
            });
        }
        Ok(SealedFile {
            path: name,
            file,
            header,
            recent: Mutex::new(None),
        })
    }

    /// Refuses a file that was sealed under another name than `wanted`.
    ///
    /// # Errors
    /// [`SealError::Name`].
    pub fn expect_name(self, wanted: &BundlePath) -> Result<Self, SealError> {
        if self.sealed_name() == wanted {
            return Ok(self);
        }
        Err(SealError::Name {
            path: self.path,
            found: self.header.name.to_string(),
            wanted: wanted.to_string(),
        })
    }

    /// The name it was sealed under.
    pub fn sealed_name(&self) -> &BundlePath {
        &self.header.name
    }

    /// How its chunks are encrypted.
    pub fn cipher(&self) -> Cipher {
        self.header.cipher
    }

    pub(super) fn chunks(&self) -> u64 {
        self.header.chunks()
    }

    /// Fills `out` from `offset` of the plain bytes.
    ///
    /// # Errors
    /// [`SealError::Chunk`] for a chunk that was changed; [`SealError::File`] past the end.
    pub fn read_plain(&self, offset: u64, out: &mut [u8]) -> Result<(), SealError> {
        if offset
            .checked_add(out.len() as u64)
            .is_none_or(|end| end > self.header.length)
        {
            return Err(file_error(&self.path)(io::ErrorKind::UnexpectedEof.into()));
        }
        let threads = thread::available_parallelism().map_or(1, usize::from);
        if out.len() < PARALLEL_BYTES || threads == 1 {
            return self.read_range(offset, out);
        }
        // Parts begin where chunks do, except the first.
        let to_boundary = (offset as usize).wrapping_neg() % CHUNK_BYTES;
        let part = (out.len() / threads).next_multiple_of(CHUNK_BYTES) + to_boundary;
        thread::scope(|scope| {
            let mut workers = Vec::new();
            let (first, mut rest) = out.split_at_mut(part.min(out.len()));
            let mut at = offset + first.len() as u64;
            while !rest.is_empty() {
                let length = (out_part(rest.len(), part - to_boundary)).max(1);
                let (mine, later) = rest.split_at_mut(length);
                let start = at;
                workers.push(scope.spawn(move || self.read_range(start, mine)));
                at += length as u64;
                rest = later;
            }
            let mut result = self.read_range(offset, first);
            for worker in workers {
                let ended = || file_error(&self.path)(io::Error::other("a reading thread ended"));
                result = result.and(worker.join().unwrap_or_else(|_| Err(ended())));
            }
            result
        })
    }

    /// Reads the chunk `index` and drops it.
    pub(super) fn check_chunk(&self, index: u64) -> Result<(), SealError> {
        let length = self.header.chunk_length(index);
        let mut sealed = vec![0; length + TAG_BYTES];
        self.read_sealed(index, &mut sealed)?;
        self.open_chunk(index, &sealed, &mut Zeroizing::new(vec![0; length]))
    }

    fn read_range(&self, mut offset: u64, mut out: &mut [u8]) -> Result<(), SealError> {
        let mut sealed = Vec::new();
        while !out.is_empty() {
            let index = offset / CHUNK_BYTES as u64;
            let start = (offset % CHUNK_BYTES as u64) as usize;
            let length = self.header.chunk_length(index);
            if start > 0 || out.len() < length {
                let (mine, rest) = out.split_at_mut(out.len().min(length - start));
                self.read_part(index, start, mine)?;
                offset += mine.len() as u64;
                out = rest;
                continue;
            }
            let whole = (out.len() / CHUNK_BYTES).clamp(1, READ_CHUNKS);
            let plain: usize = (0..whole as u64)
                .map(|i| self.header.chunk_length(index + i))
                .sum();
            sealed.resize(plain + whole * TAG_BYTES, 0);
            self.read_sealed(index, &mut sealed)?;
            let (mine, rest) = out.split_at_mut(plain);
            let chunks = sealed
                .chunks(SEALED_CHUNK_BYTES)
                .zip(mine.chunks_mut(CHUNK_BYTES));
            for (i, (sealed, plain)) in chunks.enumerate() {
                self.open_chunk(index + i as u64, sealed, plain)?;
            }
            offset += plain as u64;
            out = rest;
        }
        Ok(())
    }

    fn read_part(&self, index: u64, start: usize, out: &mut [u8]) -> Result<(), SealError> {
        let mut recent = self
            .recent
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if recent.as_ref().is_none_or(|(at, _)| *at != index) {
            let length = self.header.chunk_length(index);
            let mut sealed = vec![0; length + TAG_BYTES];
            self.read_sealed(index, &mut sealed)?;
            let mut plain = Zeroizing::new(vec![0; length]);
            self.open_chunk(index, &sealed, &mut plain)?;
            *recent = Some((index, plain));
        }
        if let Some((_, plain)) = recent.as_ref() {
            out.copy_from_slice(&plain[start..start + out.len()]);
        }
        Ok(())
    }

    fn read_sealed(&self, index: u64, out: &mut [u8]) -> Result<(), SealError> {
        let at = self.header.chunks_at + index * SEALED_CHUNK_BYTES as u64;
        read_exact_at(&self.file, at, out).map_err(file_error(&self.path))
    }

    fn open_chunk(&self, index: u64, sealed: &[u8], out: &mut [u8]) -> Result<(), SealError> {
        let (sealed, tag) = sealed.split_at(out.len());
        let last = index + 1 == self.header.chunks();
        let opened = self.header.key.open(index, last, sealed, tag, out);
        opened.ok_or_else(|| SealError::Chunk {
            path: self.path.clone(),
            chunk: index,
        })
    }
}

fn out_part(left: usize, part: usize) -> usize {
    left.min(part)
}

impl ByteSource for SealedFile {
    fn name(&self) -> &str {
        &self.path
    }

    fn len(&self) -> u64 {
        self.header.length
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_plain(offset, out).map_err(|error| match error {
            SealError::File { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        })
    }
}
