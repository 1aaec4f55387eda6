//! Where a model's bytes come from: a mapped file, a memory buffer, or anything that can be read at
//! an offset (an encrypted bundle, a streamed layer).

mod mmap;
mod view;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use mmap::MappedFile;
pub use view::{Piece, Stitched, Transposed};

/// Random access to a fixed number of bytes.
pub trait ByteSource: Send + Sync {
    /// What to call this source in an error: a path, or "memory".
    fn name(&self) -> &str;

    /// Length in bytes; it does not change while the source lives.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the range passes the end; otherwise what the medium says.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// All bytes at once, where the source already has them in the address space.
    fn as_slice(&self) -> Option<&[u8]> {
        None
    }

    /// Tells the source that `range` will not be read again soon, so that a mapping can give its
    /// pages back. Never changes what a later read returns.
    fn release(&self, _range: Range<u64>) {}

    /// Which file this is, where it is one that may be remembered from one start to the next. What is secret or only in
    /// memory has none.
    fn identity(&self) -> Option<FileIdentity> {
        None
    }
}

/// A file as it was when it was opened: another size or time is another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// Absolute path without links.
    pub path: PathBuf,
    /// Length.
    pub bytes: u64,
    /// Last modification, nanoseconds since 1970.
    pub modified: u128,
}

/// A model that is already in memory.
pub struct Memory {
    name: String,
    bytes: Arc<[u8]>,
}

impl Memory {
    /// Wraps `bytes`; `name` is used in errors.
    pub fn new(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        Memory {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

impl ByteSource for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        copy_range(&self.bytes, offset, out)
    }

    fn as_slice(&self) -> Option<&[u8]> {
        Some(&self.bytes)
    }
}

/// Maps the file at `path`.
///
/// # Errors
/// What the operating system says when the file cannot be opened or mapped.
pub fn open(path: &Path) -> io::Result<Arc<dyn ByteSource>> {
    Ok(Arc::new(MappedFile::open(path)?))
}

fn copy_range(bytes: &[u8], offset: u64, out: &mut [u8]) -> io::Result<()> {
    let start = usize::try_from(offset).ok();
    let found = start.and_then(|start| bytes.get(start..start.checked_add(out.len())?));
    match found {
        Some(found) => {
            out.copy_from_slice(found);
            Ok(())
        }
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_refuses_reads_past_the_end() {
        let memory = Memory::new("memory", vec![1u8, 2, 3]);
        let mut out = [0u8; 2];
        memory.read_at(1, &mut out).unwrap();
        assert_eq!(out, [2, 3]);
        assert!(memory.read_at(2, &mut out).is_err());
        assert!(memory.read_at(u64::MAX, &mut out).is_err());
    }
}
