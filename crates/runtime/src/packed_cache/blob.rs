//! A file of packed matrices.
//!
//! ```text
//! magic (8) | version u32 | packed form u32 | bytes of the table u64 | BLAKE3 of all of the header but this (32)
//! table: key of the model (32) | label | number of entries u64 | entries
//! entry: tensor | first row u64 | rows u64 | columns u64 | type u32 | form u32 | offset u64 | bytes u64
//! matrices, each at its offset, a multiple of 4096
//! ```
//!
//! Integers are little-endian; texts have their length (u32) in front.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ondine_kernels::{PackedForm, PackedMatrix, TensorType};

use super::disk::{DISK_BLOCK, read_exact_at};

const MAGIC: &[u8; 8] = b"ONDPACKD";
const VERSION: u32 = 2;
/// Bytes before the table.
const FIXED: usize = 8 + 4 + 4 + 8 + 32;
/// Largest table that is read.
const MOST_TABLE_BYTES: u64 = 256 << 20;

/// One packed matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The tensor that it is of.
    pub(crate) tensor: String,
    /// First row of the tensor that it holds.
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) tensor_type: TensorType,
    pub(crate) form: PackedForm,
    /// Where it begins in the file; a multiple of [`DISK_BLOCK`].
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// What a file of packed matrices says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Names the model and everything else that the matrices depend on.
    pub(crate) key: [u8; 32],
    /// The model's path, for people.
    pub(crate) label: String,
    pub(crate) entries: Vec<Entry>,
}

/// Why a file of packed matrices is not used.
#[derive(Debug)]
pub(crate) enum BlobError {
    /// It cannot be read.
    Io,
    /// It is of another version or model, or damaged.
    Unusable,
}

impl Header {
    /// Gives each entry its place, after the header and in order, and returns the length of the file.
    pub(crate) fn place(&mut self) -> u64 {
        let mut offset = self.to_bytes().len().next_multiple_of(DISK_BLOCK) as u64;
        for entry in &mut self.entries {
            entry.offset = offset;
            offset += entry.bytes.next_multiple_of(DISK_BLOCK as u64);
        }
        offset
    }

    /// Length of the file.
    pub(crate) fn file_bytes(&self) -> u64 {
        let ends = self.entries.iter().map(|entry| entry.offset + entry.bytes);
        let end = ends.max().unwrap_or(FIXED as u64);
        end.next_multiple_of(DISK_BLOCK as u64)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut table = self.key.to_vec();
        put_text(&mut table, &self.label);
        table.extend((self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            put_text(&mut table, &entry.tensor);
            for number in [entry.first_row, entry.rows, entry.columns] {
                table.extend((number as u64).to_le_bytes());
            }
            table.extend((entry.tensor_type as u32).to_le_bytes());
            table.extend(form_code(entry.form).to_le_bytes());
            table.extend(entry.offset.to_le_bytes());
            table.extend(entry.bytes.to_le_bytes());
        }
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(PackedMatrix::FORM.to_le_bytes());
        out.extend((table.len() as u64).to_le_bytes());
        let checksum = checksum(&out, &table);
        out.extend(checksum);
        out.extend(table);
        out
    }

    /// Reads and checks the header of `file`.
    pub(crate) fn read(file: &File) -> Result<Self, BlobError> {
        let length = file.metadata().map_err(|_| BlobError::Io)?.len();
        let mut fixed = [0; FIXED];
        read(file, &mut fixed, 0)?;
        let mut rest = &fixed[..];
        let own = take(&mut rest, 8)? == MAGIC
            && take_u32(&mut rest)? == VERSION
            && take_u32(&mut rest)? == PackedMatrix::FORM;
        if !own {
            return Err(BlobError::Unusable);
        }
        let table_bytes = take_u64(&mut rest)?;
        if table_bytes > MOST_TABLE_BYTES.min(length) {
            return Err(BlobError::Unusable);
        }
        let mut table = vec![0; table_bytes as usize];
        read(file, &mut table, FIXED as u64)?;
        if checksum(&fixed[..FIXED - 32], &table) != rest {
            return Err(BlobError::Unusable);
        }
        let header = Header::parse(&table)?;
        if header.file_bytes() != length {
            return Err(BlobError::Unusable);
        }
        Ok(header)
    }

    fn parse(mut table: &[u8]) -> Result<Self, BlobError> {
        let rest = &mut table;
        let key = take(rest, 32)?
            .try_into()
            .map_err(|_| BlobError::Unusable)?;
        let label = take_text(rest)?;
        let count = take_u64(rest)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let tensor = take_text(rest)?;
            let mut number = || take_u64(rest).and_then(to_usize);
            let (first_row, rows, columns) = (number()?, number()?, number()?);
            let tensor_type = TensorType::from_ggml(take_u32(rest)?).ok_or(BlobError::Unusable)?;
            let form = take_u32(rest)?;
            let form = FORMS.into_iter().find(|known| form_code(*known) == form);
            let form = form.ok_or(BlobError::Unusable)?;
            let (offset, bytes) = (take_u64(rest)?, take_u64(rest)?);
            let end = offset.checked_add(bytes).filter(|&end| end <= 1 << 62);
            if end.is_none() || !offset.is_multiple_of(DISK_BLOCK as u64) {
                return Err(BlobError::Unusable);
            }
            entries.push(Entry {
                tensor,
                first_row,
                rows,
                columns,
                tensor_type,
                form,
                offset,
                bytes,
            });
        }
        Ok(Header {
            key,
            label,
            entries,
        })
    }
}

/// A file of packed matrices in a cache, for reports.
#[derive(Debug, Clone)]
pub struct PackedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The model that it was made of; `None` where the file cannot be used any more.
    pub model: Option<String>,
    /// When it was last used.
    pub used: std::time::SystemTime,
}

impl PackedFile {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let status = file.metadata()?;
        Ok(PackedFile {
            path: path.to_owned(),
            bytes: status.len(),
            model: Header::read(&file).ok().map(|header| header.label),
            used: status.modified()?,
        })
    }
}

/// All forms.
const FORMS: [PackedForm; 2] = [PackedForm::Interleaved, PackedForm::Split];

/// How a form is written.
fn form_code(form: PackedForm) -> u32 {
    match form {
        PackedForm::Interleaved => 0,
        PackedForm::Split => 1,
    }
}

fn checksum(fixed: &[u8], table: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(fixed).update(table);
    *hasher.finalize().as_bytes()
}

fn read(file: &File, out: &mut [u8], offset: u64) -> Result<(), BlobError> {
    read_exact_at(file, out, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BlobError::Unusable,
        _ => BlobError::Io,
    })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], BlobError> {
    let (head, tail) = rest.split_at_checked(count).ok_or(BlobError::Unusable)?;
    *rest = tail;
    Ok(head)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, BlobError> {
    let bytes = take(rest, 4)?.try_into();
    bytes
        .map(u32::from_le_bytes)
        .map_err(|_| BlobError::Unusable)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, BlobError> {
    let bytes = take(rest, 8)?.try_into();
    bytes
        .map(u64::from_le_bytes)
        .map_err(|_| BlobError::Unusable)
}

fn take_text(rest: &mut &[u8]) -> Result<String, BlobError> {
    let length = take_u32(rest)?;
    let text = std::str::from_utf8(take(rest, length as usize)?);
    text.map(str::to_owned).map_err(|_| BlobError::Unusable)
}

fn to_usize(number: u64) -> Result<usize, BlobError> {
    usize::try_from(number).map_err(|_| BlobError::Unusable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn header() -> Header {
        let entry = |tensor: &str, bytes| Entry {
            tensor: tensor.into(),
            first_row: 0,
            rows: 16,
            columns: 32,
            tensor_type: TensorType::Q8_0,
            form: match tensor {
                "b" => PackedForm::Split,
                _ => PackedForm::Interleaved,
            },
            offset: 0,
            bytes,
        };
        let mut header = Header {
            key: [7; 32],
            label: "model.gguf".into(),
            entries: vec![entry("a", 5000), entry("b", 0), entry("c", 4096)],
        };
        header.place();
        header
    }

    fn file_of(bytes: &[u8], length: u64) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.set_len(length).unwrap();
        file
    }

    #[test]
    fn headers_are_read_as_written() {
        let header = header();
        let length = header.file_bytes();
        let read = Header::read(&file_of(&header.to_bytes(), length)).unwrap();
        assert_eq!(read, header);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let header = header();
        let (bytes, length) = (header.to_bytes(), header.file_bytes());
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1 << (index % 8);
            assert!(Header::read(&file_of(&damaged, length)).is_err(), "{index}");
        }
        for cut in [0, 1, 60, length - 4096, length - 1, length + 4096] {
            assert!(Header::read(&file_of(&bytes, cut)).is_err(), "{cut}");
        }
    }
}
