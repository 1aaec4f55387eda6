//! Where bytes come from when they are read out of order: a plain file, a sealed file, memory.
//!
//! [`ByteSource`] has the shape of the runtime's trait of that name, so that an application can hand a sealed file to the
//! runtime with a few lines, while neither crate depends on the other.

use std::fs::File;
use std::io;
use std::path::Path;

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
}

/// A plain file, read at offsets without moving a cursor.
#[derive(Debug)]
pub struct FileSource {
    name: String,
    file: File,
    length: u64,
}

impl FileSource {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(FileSource {
            name: path.display().to_string(),
            file,
            length,
        })
    }
}

impl ByteSource for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact_at(&self.file, offset, out)
    }
}

impl ByteSource for Vec<u8> {
    fn name(&self) -> &str {
        "memory"
    }

    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(out.len())?));
        match found {
            Some(found) => {
                out.copy_from_slice(found);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Fills `out` from `offset` of `file`.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Fills `out` from `offset` of `file`.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut offset: u64, out: &mut [u8]) -> io::Result<()> {
    let mut rest = out;
    while !rest.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, rest, offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset += count as u64;
        rest = &mut rest[count..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_memory_refuse_reads_past_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, [1u8, 2, 3]).unwrap();
        let file = FileSource::open(&path).unwrap();
        let memory = vec![1u8, 2, 3];
        for source in [&file as &dyn ByteSource, &memory] {
            let mut out = [0; 2];
            source.read_at(1, &mut out).unwrap();
            assert_eq!(out, [2, 3]);
            assert!(source.read_at(2, &mut out).is_err());
            assert!(source.read_at(u64::MAX, &mut out).is_err());
        }
    }
}
