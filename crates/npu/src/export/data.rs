//! The file that holds the weights of all graphs of an export.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{ExportError, io_error};

/// Tensors begin at multiples of this, so that runtimes can map them.
const ALIGNMENT: u64 = 64;

pub(super) struct DataFile {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
    known: HashMap<String, Placed>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl DataFile {
    pub(super) fn create(path: &Path) -> Result<Self, ExportError> {
        let file = File::create(path).map_err(|error| io_error(path, error))?;
        Ok(DataFile {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            length: 0,
            known: HashMap::new(),
        })
    }

    /// Where the tensor `key` was written, if it was.
    pub(super) fn placed(&self, key: &str) -> Option<Placed> {
        self.known.get(key).copied()
    }

    /// Begins a tensor.
    pub(super) fn begin(&mut self) -> Result<u64, ExportError> {
        let padding = self.length.next_multiple_of(ALIGNMENT) - self.length;
        self.write(&[0; ALIGNMENT as usize][..padding as usize])?;
        Ok(self.length)
    }

    /// Adds to the tensor that was begun.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| io_error(&self.path, error))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Ends the tensor that began at `offset`; it is known as `key` from now on.
    pub(super) fn end(&mut self, key: &str, offset: u64) -> Placed {
        let placed = Placed {
            offset,
            length: self.length - offset,
        };
        self.known.insert(key.to_owned(), placed);
        placed
    }

    /// A tensor that is at hand as floats.
    pub(super) fn floats(&mut self, key: &str, floats: &[f32]) -> Result<Placed, ExportError> {
        let offset = self.begin()?;
        let bytes: Vec<u8> = floats
            .iter()
            .flat_map(|float| float.to_le_bytes())
            .collect();
        self.write(&bytes)?;
        Ok(self.end(key, offset))
    }

    /// Bytes written in all.
    pub(super) fn finish(mut self) -> Result<u64, ExportError> {
        let flushed = self.file.flush();
        flushed.map_err(|error| io_error(&self.path, error))?;
        Ok(self.length)
    }
}
