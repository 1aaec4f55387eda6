//! The one writer that every download goes through: a `.part` file, its running hash, its bound, and what a later run must
//! know to go on with it.

use crate::cache::replace_file;
use crate::digest::{Hasher, Sha256Digest};
use crate::error::{HubError, SourceError};
use crate::progress::{Event, Phase, Progress};
use crate::registry::read_bounded;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes moved between two looks at the cancel flag.
const CHUNK: usize = 128 * 1024;
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// What names the version of a remote file, so that two halves of different versions are never joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validator {
    /// The source, as text.
    pub source: String,
    /// A strong entity tag (RFC 9110, section 8.8.3), quotes included.
    pub etag: Option<String>,
    /// The Last-Modified date, for servers without entity tags.
    pub last_modified: Option<String>,
    /// Length of the whole file, in bytes.
    pub total: Option<u64>,
}

/// A download under way: every byte in the file has been through the hash.
pub(crate) struct PartialFile {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
    validator: Validator,
}

impl PartialFile {
    /// Opens `path`, keeping what is there if it belongs to `source`; otherwise starts empty.
    pub(crate) fn open(
        path: &Path,
        source: &str,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<Self, HubError> {
        let validator = read_bounded(&validator_path(path), 1 << 16)
            .ok()
            .and_then(|text| serde_json::from_str::<Validator>(&text).ok());
        let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let keep = validator
            .filter(|validator| validator.source == source && length > 0 && length <= limit);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(HubError::io("open", path))?;
        let empty = Validator {
            source: source.to_string(),
            ..Validator::default()
        };
        let mut partial = Self {
            path: path.to_path_buf(),
            file,
            hasher: Hasher::new(),
            written: 0,
            validator: empty,
        };
        match keep {
            None => partial.restart()?,
            Some(validator) => {
                partial.validator = validator;
                partial.hash_existing(length, progress)?;
            }
        }
        Ok(partial)
    }

    /// Bytes in the file.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn validator(&self) -> &Validator {
        &self.validator
    }

    /// Empties the file.
    pub(crate) fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .map_err(HubError::io("empty", &self.path))?;
        self.hasher = Hasher::new();
        self.written = 0;
        self.validator = Validator {
            source: self.validator.source.clone(),
            ..Validator::default()
        };
        Ok(())
    }

    /// Notes which version the bytes to come belong to; must precede them, so that even a killed process leaves a file that can be continued.
    pub(crate) fn set_validator(&mut self, validator: Validator) -> Result<(), HubError> {
        if validator != self.validator || self.written == 0 {
            let text = serde_json::to_vec(&validator)
                .map_err(std::io::Error::from)
                .map_err(HubError::io("write", &self.path))?;
            replace_file(&validator_path(&self.path), &text)?;
            self.validator = validator;
        }
        Ok(())
    }

    /// Appends until the reader ends; more than `limit` bytes in the whole file is an error.
    pub(crate) fn append(
        &mut self,
        reader: &mut dyn Read,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<(), SourceError> {
        let result = copy_checked(
            reader,
            &mut self.file,
            &mut self.hasher,
            &mut self.written,
            limit,
            progress,
        );
        result.map_err(|error| match error {
            CopyError::Read(why) => SourceError::Connection { why },
            CopyError::TooLong => SourceError::TooLarge { limit },
            CopyError::Cancelled => HubError::Cancelled.into(),
            CopyError::Write(source) => write_error(&self.path, source).into(),
        })
    }

    /// The hash of the whole file, with every byte on the disk.
    pub(crate) fn finish(&self) -> Result<Sha256Digest, HubError> {
        self.file
            .sync_all()
            .map_err(|source| write_error(&self.path, source))?;
        Ok(self.hasher.clone().finish())
    }

    /// Removes the file and what was noted about it.
    pub(crate) fn discard(self) {
        remove(&self.path);
    }

    fn hash_existing(&mut self, length: u64, progress: &dyn Progress) -> Result<(), HubError> {
        progress.event(Event::Started {
            phase: Phase::Verify,
            total: Some(length),
            done: 0,
        });
        let mut reader = File::open(&self.path).map_err(HubError::io("open", &self.path))?;
        let mut nowhere = std::io::sink();
        match copy_checked(
            &mut reader,
            &mut nowhere,
            &mut self.hasher,
            &mut self.written,
            length,
            progress,
        ) {
            Ok(()) => Ok(()),
            Err(CopyError::Cancelled) => Err(HubError::Cancelled),
            Err(_) => self.restart(),
        }
    }
}

/// Removes a partial file and its validator, if they are there.
pub(crate) fn remove(part: &Path) {
    let _ = std::fs::remove_file(part);
    let _ = std::fs::remove_file(validator_path(part));
}

/// Removes only the note, once the file itself was renamed away.
pub(crate) fn remove_validator(part: &Path) {
    let _ = std::fs::remove_file(validator_path(part));
}

fn validator_path(part: &Path) -> PathBuf {
    let mut name = part.as_os_str().to_os_string();
    name.push(".json");
    PathBuf::from(name)
}

#[derive(Debug)]
enum CopyError {
    Read(String),
    Write(std::io::Error),
    TooLong,
    Cancelled,
}

/// Moves bytes from `reader` to `writer` and through `hasher`, never more than `limit` in all. What was written is counted and hashed
/// even when the call ends in an error.
fn copy_checked(
    reader: &mut dyn Read,
    writer: &mut dyn Write,
    hasher: &mut Hasher,
    written: &mut u64,
    limit: u64,
    progress: &dyn Progress,
) -> Result<(), CopyError> {
    let mut buffer = vec![0u8; CHUNK];
    let mut reported = Instant::now();
    loop {
        if progress.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(CopyError::Read(format!(
                    "the transfer broke off after {written} bytes ({error})"
                )));
            }
        };
        if count as u64 > limit - *written {
            return Err(CopyError::TooLong);
        }
        writer
            .write_all(&buffer[..count])
            .map_err(CopyError::Write)?;
        hasher.update(&buffer[..count]);
        *written += count as u64;
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            progress.event(Event::Advanced { done: *written });
        }
    }
    progress.event(Event::Advanced { done: *written });
    Ok(())
}

fn write_error(path: &Path, source: std::io::Error) -> HubError {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            let directory = path.parent().unwrap_or(path);
            HubError::NotEnoughSpace {
                path: directory.to_path_buf(),
                needed: CHUNK as u64,
                available: 0,
            }
        }
        _ => HubError::Io {
            action: "write",
            path: path.to_path_buf(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    /// Takes `room` bytes, then answers as a full disk does.
    struct SmallDisk {
        room: usize,
        held: Vec<u8>,
    }

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let count = bytes.len().min(self.room - self.held.len());
            if count == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.held.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_ends_the_copy_with_its_own_error() {
        let content = vec![7u8; CHUNK * 3];
        let mut disk = SmallDisk {
            room: CHUNK * 2 + 5,
            held: Vec::new(),
        };
        let mut written = 0;
        let result = copy_checked(
            &mut &content[..],
            &mut disk,
            &mut Hasher::new(),
            &mut written,
            u64::MAX,
            &Silent,
        );
        let Err(CopyError::Write(error)) = result else {
            panic!("{result:?}")
        };
        assert_eq!(written, CHUNK as u64 * 2);
        let error = write_error(Path::new("cache/a.part"), error);
        assert!(
            error.to_string().starts_with("not enough space in cache"),
            "{error}"
        );
    }

    #[test]
    fn more_than_the_limit_is_never_written() {
        let mut held = Vec::new();
        let mut written = 0;
        let result = copy_checked(
            &mut std::io::repeat(1),
            &mut held,
            &mut Hasher::new(),
            &mut written,
            1_000_000,
            &Silent,
        );
        assert!(matches!(result, Err(CopyError::TooLong)));
        assert!(held.len() <= 1_000_000);
        assert!(
            copy_checked(
                &mut &[1u8; 10][..],
                &mut held,
                &mut Hasher::new(),
                &mut 0,
                10,
                &Silent
            )
            .is_ok()
        );
    }

    #[test]
    fn a_part_of_another_source_or_with_a_broken_note_is_started_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.part");
        let mut partial = PartialFile::open(&path, "one", 1000, &Silent).unwrap();
        partial
            .set_validator(Validator {
                source: "one".into(),
                etag: Some("\"x\"".into()),
                ..Validator::default()
            })
            .unwrap();
        partial.append(&mut &b"abc"[..], 1000, &Silent).unwrap();
        assert_eq!(
            PartialFile::open(&path, "one", 1000, &Silent)
                .unwrap()
                .written(),
            3
        );
        assert_eq!(
            PartialFile::open(&path, "one", 2, &Silent)
                .unwrap()
                .written(),
            0
        );
        partial = PartialFile::open(&path, "one", 1000, &Silent).unwrap();
        partial.append(&mut &b"abc"[..], 1000, &Silent).unwrap();
        assert_eq!(
            PartialFile::open(&path, "two", 1000, &Silent)
                .unwrap()
                .written(),
            0
        );
        std::fs::write(validator_path(&path), "{").unwrap();
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            PartialFile::open(&path, "one", 1000, &Silent)
                .unwrap()
                .written(),
            0
        );
    }
}
