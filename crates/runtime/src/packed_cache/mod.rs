//! Packed weights on disk: written at a model's first start, mapped at the next ones.
//!
//! A file of the cache holds the packed matrices of one model (see `blob`). Its name tells the model's path and, apart,
//! everything else it depends on (the files' sizes and times, the packed form), so that a file whose model changed is
//! found and removed. Files appear under their name only when they are whole and on the disk.

mod blob;
pub(crate) mod disk;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use ondine_kernels::PackedMatrix;

use crate::source::{ByteSource, FileIdentity, MappedFile};
pub use blob::PackedFile;
pub(crate) use blob::{BlobError, Entry, Header};

/// Extension of the cache's files.
const EXTENSION: &str = "packed";
/// In the name of a file that is being written.
const PARTIAL: &str = "partial";
/// A file that was being written for so long was left behind.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Bytes that stay free on the disk.
const SPARED: u64 = 1 << 30;
/// What is written before the disk is waited for, where little memory is to be used.
const WRITTEN_AT_ONCE: u64 = 32 << 20;

/// A directory of packed weights, bounded in size.
#[derive(Debug, Clone)]
pub struct PackedCache {
    directory: PathBuf,
    /// Most bytes of all files together.
    limit: u64,
    /// Fewest bytes of a file.
    least: u64,
}

/// A model's packed matrices in a mapped file.
pub(crate) struct Blob {
    pub(crate) header: Header,
    pub(crate) map: Arc<MappedFile>,
    pub(crate) path: PathBuf,
    /// Brings a file that was just written safely under its name.
    finishing: Option<JoinHandle<()>>,
}

/// What the cache had for a model.
pub(crate) enum Found {
    Whole(Blob),
    Nothing,
    /// A file that cannot be used; it was removed.
    Damaged,
}

impl PackedCache {
    /// Bytes that the cache takes at most unless told otherwise.
    pub const DEFAULT_LIMIT: u64 = 16 << 30;
    /// Bytes below which a model is not worth a file: packing them takes a few milliseconds.
    pub const DEFAULT_LEAST: u64 = 16 << 20;

    /// The cache in `directory`, which need not exist, of at most `limit` bytes.
    pub fn new(directory: impl Into<PathBuf>, limit: u64) -> Self {
        PackedCache {
            directory: directory.into(),
            limit,
            least: Self::DEFAULT_LEAST,
        }
    }

    /// Keeps models from `least` bytes on.
    #[must_use]
    pub fn with_least(mut self, least: u64) -> Self {
        self.least = least;
        self
    }

    /// Whether a model of `bytes` bytes is worth a file.
    pub(crate) fn is_worth(&self, bytes: u64) -> bool {
        bytes >= self.least
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its files, the one used last first.
    ///
    /// # Errors
    /// When the directory exists and cannot be read.
    pub fn files(&self) -> io::Result<Vec<PackedFile>> {
        let mut files: Vec<_> = self
            .paths(EXTENSION)?
            .iter()
            .filter_map(|path| PackedFile::read(path).ok())
            .collect();
        files.sort_by_key(|file| std::cmp::Reverse(file.used));
        Ok(files)
    }

    /// Removes all files and returns how many bytes that freed. Processes that use them go on undisturbed.
    ///
    /// # Errors
    /// When the directory cannot be read or a file not removed.
    pub fn clear(&self) -> io::Result<u64> {
        let mut freed = 0;
        for path in self.paths(EXTENSION)?.iter().chain(&self.paths(PARTIAL)?) {
            let bytes = fs::metadata(path).map_or(0, |status| status.len());
            fs::remove_file(path)?;
            freed += bytes;
        }
        Ok(freed)
    }

    /// The file of the model that consists of `sources`, if there is a usable one.
    pub fn file_of(&self, sources: &[Arc<dyn ByteSource>]) -> Option<PackedFile> {
        let key = Key::of(sources)?;
        let split = key.with_split_head();
        [key, split].iter().find_map(|key| {
            let file = PackedFile::read(&self.path_of(key)).ok()?;
            file.model.is_some().then_some(file)
        })
    }

    /// Opens the file of a model.
    pub(crate) fn open(&self, key: &Key) -> Found {
        let path = self.path_of(key);
        let Ok(file) = File::open(&path) else {
            return Found::Nothing;
        };
        let header = match Header::read(&file) {
            Ok(header) if header.key == key.whole => header,
            Err(BlobError::Io) => return Found::Nothing,
            _ => {
                let _ = fs::remove_file(&path);
                return Found::Damaged;
            }
        };
        // The time of last use; a cache that cannot be written can still be read.
        let _ = File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        match MappedFile::of_file(&file, &path) {
            Ok(map) => Found::Whole(Blob {
                header,
                map: Arc::new(map),
                path,
                finishing: None,
            }),
            Err(_) => Found::Nothing,
        }
    }

    /// Writes the file of a model: `fill` appends the bytes of each entry in turn. `sparing` keeps what was written out
    /// of memory, and is slower.
    ///
    /// # Errors
    /// What the system says, or what `fill` returns.
    pub(crate) fn write<E: From<io::Error>>(
        &self,
        key: &Key,
        mut entries: Vec<Entry>,
        sparing: bool,
        mut fill: impl FnMut(&Entry, &mut dyn Write) -> Result<(), E>,
    ) -> Result<Blob, E> {
        for entry in &mut entries {
            entry.offset = 0;
        }
        let mut header = Header {
            key: key.whole,
            label: key.label.clone(),
            entries,
        };
        header.place();
        let bytes = header.file_bytes();
        fs::create_dir_all(&self.directory)?;
        self.make_room(key, bytes)?;
        let partial =
            self.directory
                .join(format!("{}.{}.{PARTIAL}", key.name(), std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&partial)?;
        let filled = (|| -> Result<MappedFile, E> {
            let mut out = Appender {
                file: &file,
                written: 0,
                safe: 0,
                sparing,
            };
            out.write_all(&header.to_bytes())?;
            for entry in &header.entries {
                out.pad_to(entry.offset)?;
                fill(entry, &mut out)?;
                debug_assert_eq!(out.written, entry.offset + entry.bytes);
            }
            out.pad_to(bytes)?;
            out.settle()?;
            Ok(MappedFile::of_file(&file, &partial)?)
        })();
        let map = match filled {
            Ok(map) => Arc::new(map),
            Err(error) => {
                let _ = fs::remove_file(&partial);
                return Err(error);
            }
        };
        let path = self.path_of(key);
        let target = path.clone();
        let finish = move || {
            if file.sync_all().is_err() || fs::rename(&partial, &target).is_err() {
                let _ = fs::remove_file(&partial);
            }
        };
        let finishing = match sparing {
            // Its path is opened at once.
            true => {
                finish();
                None
            }
            false => Some(std::thread::spawn(finish)),
        };
        Ok(Blob {
            header,
            map,
            path,
            finishing,
        })
    }

    /// Removes what is stale or abandoned, then what was not used for longest, until `bytes` more fit.
    fn make_room(&self, key: &Key, bytes: u64) -> io::Result<()> {
        let stale = format!("{}-", key.model);
        let now = SystemTime::now();
        for path in self.paths(PARTIAL)? {
            let modified = fs::metadata(&path).and_then(|status| status.modified());
            let age = modified.map(|time| now.duration_since(time).unwrap_or_default());
            if age.is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(path);
            }
        }
        let mut files = self.files()?;
        files.retain(|file| {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            let keep = !name.starts_with(&stale) && file.model.is_some();
            keep || fs::remove_file(&file.path).is_err()
        });
        let mut held: u64 = files.iter().map(|file| file.bytes).sum();
        while held.saturating_add(bytes) > self.limit {
            let Some(oldest) = files.pop() else {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!(
                        "{bytes} bytes are more than the cache may hold, {}",
                        self.limit
                    ),
                ));
            };
            fs::remove_file(&oldest.path)?;
            held -= oldest.bytes;
        }
        match free_bytes(&self.directory) {
            Some(free) if free < bytes.saturating_add(SPARED) => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "{free} bytes are free on its disk where {bytes} are needed and 1 GiB is left to others"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn path_of(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{}.{EXTENSION}", key.name()))
    }

    /// Files with this extension.
    fn paths(&self, extension: &str) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(paths
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .collect())
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if let Some(finishing) = self.finishing.take() {
            let _ = finishing.join();
        }
    }
}

/// Names a model's file in the cache.
pub(crate) struct Key {
    /// Hash of the model's path.
    model: String,
    /// Hash of all that the packed matrices depend on.
    whole: [u8; 32],
    label: String,
}

impl Key {
    /// The key of the model that consists of `sources`; `None` where one of them must not be remembered.
    pub(crate) fn of(sources: &[Arc<dyn ByteSource>]) -> Option<Self> {
        let identities: Option<Vec<FileIdentity>> =
            sources.iter().map(|source| source.identity()).collect();
        let identities = identities.filter(|identities| !identities.is_empty())?;
        let mut whole = blake3::Hasher::new();
        whole.update(&PackedMatrix::FORM.to_le_bytes());
        whole.update(env!("CARGO_PKG_VERSION").as_bytes());
        for file in &identities {
            let path = file.path.as_os_str().as_encoded_bytes();
            whole.update(&(path.len() as u64).to_le_bytes());
            whole.update(path);
            whole.update(&file.bytes.to_le_bytes());
            whole.update(&file.modified.to_le_bytes());
        }
        let first = &identities[0].path;
        let model = blake3::hash(first.as_os_str().as_encoded_bytes());
        Some(Key {
            model: model.to_hex()[..16].to_owned(),
            whole: *whole.finalize().as_bytes(),
            label: first.display().to_string(),
        })
    }

    /// The key of the same model's matrices with a split output head. The two files do not replace each other.
    pub(crate) fn with_split_head(&self) -> Self {
        let split = |bytes: &[u8]| blake3::hash(&[bytes, b" split head"].concat());
        Key {
            model: split(self.model.as_bytes()).to_hex()[..16].to_owned(),
            whole: *split(&self.whole).as_bytes(),
            label: self.label.clone(),
        }
    }

    fn name(&self) -> String {
        let whole = blake3::Hash::from_bytes(self.whole).to_hex();
        format!("{}-{}", self.model, &whole[..16])
    }
}

/// Writes a file from beginning to end.
struct Appender<'f> {
    file: &'f File,
    written: u64,
    /// Bytes that are on the disk for sure.
    safe: u64,
    sparing: bool,
}

impl Appender<'_> {
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let zeros = [0; disk::DISK_BLOCK];
        let missing = offset.saturating_sub(self.written) as usize;
        self.write_all(&zeros[..missing])
    }

    /// Sparing: what was written leaves memory.
    fn settle(&mut self) -> io::Result<()> {
        if self.sparing && self.written > self.safe {
            self.file.sync_data()?;
            disk::forget(self.file, self.safe..self.written);
            self.safe = self.written;
        }
        Ok(())
    }
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = match self.sparing {
            true => bytes.len().min(WRITTEN_AT_ONCE as usize),
            false => bytes.len(),
        };
        let written = (&mut &*self.file).write(&bytes[..most])?;
        self.written += written as u64;
        if self.written - self.safe >= WRITTEN_AT_ONCE {
            self.settle()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(unix)]
fn free_bytes(directory: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(directory).ok()?;
    status.f_bavail.checked_mul(status.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use ondine_kernels::TensorType;

    fn entry(tensor: &str, bytes: u64) -> Entry {
        Entry {
            tensor: tensor.into(),
            first_row: 0,
            rows: 1,
            columns: 32,
            tensor_type: TensorType::F32,
            form: ondine_kernels::PackedForm::Interleaved,
            offset: 0,
            bytes,
        }
    }

    fn key(directory: &Path, name: &str, content: &[u8]) -> Key {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        Key::of(&[crate::source::open(&path).unwrap()]).unwrap()
    }

    fn write(cache: &PackedCache, key: &Key, sparing: bool) -> io::Result<Blob> {
        let entries = vec![entry("a", 5000), entry("b", 100)];
        cache.write(key, entries, sparing, |entry, out| {
            out.write_all(&vec![entry.tensor.as_bytes()[0]; entry.bytes as usize])
        })
    }

    #[test]
    fn what_was_written_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let cache = PackedCache::new(directory.path().join("packed"), 1 << 30);
        let key = key(directory.path(), "model", b"one");
        assert!(matches!(cache.open(&key), Found::Nothing));
        for sparing in [false, true] {
            drop(write(&cache, &key, sparing).unwrap());
            let Found::Whole(blob) = cache.open(&key) else {
                panic!("it was written");
            };
            let b = &blob.header.entries[1];
            let bytes = (*blob.map).as_ref();
            assert_eq!(bytes[b.offset as usize..][..100], [b'b'; 100]);
        }
        assert_eq!(cache.files().unwrap().len(), 1);
        assert!(cache.clear().unwrap() > 0);
        assert!(cache.files().unwrap().is_empty());
    }

    #[test]
    fn damage_is_removed_and_a_changed_model_replaces_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let cache = PackedCache::new(directory.path().join("packed"), 1 << 30);
        let old = key(directory.path(), "model", b"one");
        drop(write(&cache, &old, false).unwrap());
        let new = key(directory.path(), "model", b"another");
        assert!(matches!(cache.open(&new), Found::Nothing));
        drop(write(&cache, &new, false).unwrap());
        assert!(matches!(cache.open(&old), Found::Nothing));
        let path = cache.path_of(&new);
        let mut bytes = fs::read(&path).unwrap();
        bytes[80] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(cache.open(&new), Found::Damaged));
        assert!(!path.exists());
    }

    #[test]
    fn the_bound_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let cache = PackedCache::new(directory.path().join("packed"), 30_000);
        for name in ["one", "two", "three"] {
            let key = key(directory.path(), name, b"content");
            drop(write(&cache, &key, false).unwrap());
            assert!(matches!(cache.open(&key), Found::Whole(_)), "{name}");
        }
        assert_eq!(cache.files().unwrap().len(), 1);
        let tight = PackedCache::new(directory.path().join("packed"), 10_000);
        let key = key(directory.path(), "four", b"content");
        assert!(write(&tight, &key, false).is_err());
    }

    #[test]
    fn a_model_in_memory_has_no_key() {
        let source: Arc<dyn ByteSource> = Arc::new(crate::source::Memory::new("memory", vec![1u8]));
        assert!(Key::of(&[source]).is_none());
    }
}
