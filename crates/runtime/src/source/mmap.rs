//! Memory-mapped files: the runtime's only unsafe module.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use super::{ByteSource, copy_range};

/// A file mapped for reading.
pub struct MappedFile {
    name: String,
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`. An empty file gives an empty source.
    ///
    /// # Errors
    /// What the operating system says; a directory is `InvalidInput`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let status = file.metadata()?;
        if !status.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let map = if status.len() == 0 {
            None
        } else {
            // SAFETY: the mapping is read-only and private to this value. A process that shrinks
            // the file under us raises SIGBUS, as for every program that maps its input; model
            // files are replaced by renaming, never rewritten in place.
            Some(unsafe { Mmap::map(&file)? })
        };
        Ok(MappedFile {
            name: path.display().to_string(),
            map,
        })
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

impl ByteSource for MappedFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        copy_range(self.bytes(), offset, out)
    }

    fn as_slice(&self) -> Option<&[u8]> {
        Some(self.bytes())
    }

    fn release(&self, range: Range<u64>) {
        let Some(map) = &self.map else { return };
        let length = map.len() as u64;
        let (start, end) = (range.start.min(length), range.end.min(length));
        if start < end {
            // SAFETY: DontNeed on a read-only file mapping only drops resident pages; the next
            // access reads the same bytes from the file again.
            let _ = unsafe {
                map.unchecked_advise_range(
                    UncheckedAdvice::DontNeed,
                    start as usize,
                    (end - start) as usize,
                )
            };
        }
    }
}
