//! The cache on disk: `home/models/<name>/<file>` with a `record.json` beside it that says where the file came from.

use crate::digest::Sha256Digest;
use crate::error::HubError;
use crate::registry::{ModelEntry, read_bounded};
use crate::settings::Settings;
use serde::{Deserialize, Serialize};
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// File name of a record; no model file may have it.
pub(crate) const RECORD: &str = "record.json";

/// Where a cached file came from and how its content is known to be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// File name, in the same directory.
    pub file: String,
    /// Hash of the whole file.
    pub sha256: Sha256Digest,
    /// Bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970: a file that still has this time and size is not hashed again.
    pub modified: u64,
    /// The source it came from.
    pub source: String,
    /// Who vouches for the hash.
    pub trust: Trust,
}

/// Who vouches for a file's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// The registry states it.
    Registry,
    /// The repository announced it with the download.
    Announced,
    /// Nobody: the first download was remembered, later ones must equal it.
    FirstUse,
}

/// A place in the cache for one model.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    /// For messages.
    pub name: String,
    pub directory: PathBuf,
    pub file: String,
    pub sha256: Option<Sha256Digest>,
    pub size: Option<u64>,
}

impl Slot {
    pub(crate) fn of_entry(settings: &Settings, entry: &ModelEntry) -> Self {
        Self {
            name: entry.name.clone(),
            directory: settings.home.join("models").join(&entry.name),
            file: entry.file.clone(),
            sha256: entry.sha256,
            size: entry.size,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(&self.file)
    }

    /// The record of the file, if file and record are there and agree; hashes the file only if it was touched since.
    pub(crate) fn cached(&self, limit: u64) -> Result<Option<Record>, HubError> {
        let path = self.path();
        let Ok(metadata) = std::fs::metadata(&path) else {
            return Ok(None);
        };
        if !metadata.is_file() || self.size.is_some_and(|size| size != metadata.len()) {
            return Ok(None);
        }
        let record = self.record(limit);
        let expected = self.sha256.or(record.as_ref().map(|record| record.sha256));
        let Some(expected) = expected else {
            return Ok(None);
        };
        if let Some(record) = record
            && record.sha256 == expected
            && record.size == metadata.len()
            && record.modified == modified(&metadata)
        {
            return Ok(Some(record));
        }
        let found = Sha256Digest::of_file(&path).map_err(HubError::io("read", &path))?;
        if found != expected {
            return Ok(None);
        }
        let trust = if self.sha256.is_some() {
            Trust::Registry
        } else {
            Trust::FirstUse
        };
        let source = self.record(limit).map_or_else(
            || format!("file:{}", path.display()),
            |record| record.source,
        );
        let record = Record {
            file: self.file.clone(),
            sha256: found,
            size: metadata.len(),
            modified: modified(&metadata),
            source,
            trust,
        };
        // A cache that cannot be written is still a cache that can be read.
        let _ = self.write_record(&record);
        Ok(Some(record))
    }

    /// What was noted at the last download, even if the file is gone.
    pub(crate) fn record(&self, limit: u64) -> Option<Record> {
        let text = read_bounded(&self.directory.join(RECORD), limit).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        (record.file == self.file).then_some(record)
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<(), HubError> {
        let path = self.directory.join(RECORD);
        let text = serde_json::to_vec_pretty(record)
            .map_err(std::io::Error::from)
            .map_err(HubError::io("write", &path))?;
        replace_file(&path, &text)
    }
}

/// Nanoseconds since 1970, 0 if the file system keeps no time.
pub(crate) fn modified(metadata: &Metadata) -> u64 {
    let time = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Writes a small file so that a reader sees the old or the new content and nothing between.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), HubError> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, content).map_err(HubError::io("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(HubError::io("rename", &temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(directory: &Path, content: &[u8]) -> Slot {
        let mut hasher = crate::digest::Hasher::new();
        hasher.update(content);
        Slot {
            name: "a".into(),
            directory: directory.to_path_buf(),
            file: "a.gguf".into(),
            sha256: Some(hasher.finish()),
            size: Some(content.len() as u64),
        }
    }

    #[test]
    fn a_file_put_there_by_hand_counts_if_its_hash_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let slot = slot(directory.path(), b"model");
        assert_eq!(slot.cached(1000).unwrap(), None);
        std::fs::write(slot.path(), b"model").unwrap();
        assert_eq!(slot.cached(1000).unwrap().unwrap().trust, Trust::Registry);
        assert_eq!(slot.record(1000).unwrap().size, 5);
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let slot = slot(directory.path(), b"model");
        std::fs::write(slot.path(), b"model").unwrap();
        assert!(slot.cached(1000).unwrap().is_some());
        std::fs::write(slot.path(), b"mOdel").unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(slot.path())
            .unwrap();
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5))
            .unwrap();
        assert_eq!(slot.cached(1000).unwrap(), None);
    }

    #[test]
    fn a_damaged_record_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let slot = slot(directory.path(), b"model");
        std::fs::write(slot.path(), b"model").unwrap();
        for damaged in ["", "{", "{\"file\":\"a.gguf\"}", &"x".repeat(2000)] {
            std::fs::write(directory.path().join(RECORD), damaged).unwrap();
            assert!(slot.record(1000).is_none());
            assert!(slot.cached(1000).unwrap().is_some());
        }
    }
}
