//! The few operations that the store asks of a file system, so that a test can put another one in its place.

use crate::Limits;
use crate::delta::{self, DeltaError};
use crate::digest::{Algorithms, Digest, FileDigest, hash_file, read_bounded};
use fs4::FileExt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// A file system. Nothing is safe from a crash before it was synced: the bytes of a file by [`FileSystem::sync_file`], its name by
/// [`FileSystem::sync_directory`].
pub trait FileSystem: Send + Sync {
    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// What the operating system says; so for all that follow.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Reads a file of at most `most` bytes.
    ///
    /// # Errors
    /// As above; `InvalidData` when it is longer.
    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>>;
    /// Length of a file in bytes.
    ///
    /// # Errors
    /// As above.
    fn length(&self, path: &Path) -> io::Result<u64>;
    /// Hashes of a file.
    ///
    /// # Errors
    /// As above.
    fn digest(&self, path: &Path, algorithms: Algorithms) -> io::Result<FileDigest>;
    /// BLAKE3 of the header of a sealed file; nothing for another file.
    ///
    /// # Errors
    /// As above.
    fn sealed_header(&self, path: &Path, limits: &Limits) -> io::Result<Option<Digest>>;
    /// Names in a directory.
    ///
    /// # Errors
    /// As above.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Makes or replaces a file with all of `bytes`.
    ///
    /// # Errors
    /// As above.
    fn write(&self, path: &Path, bytes: &mut dyn Read) -> io::Result<()>;
    /// Adds all of `bytes` at the end of a file, which is made if need be.
    ///
    /// # Errors
    /// As above; what was read before the error is in the file.
    fn append(&self, path: &Path, bytes: &mut dyn Read) -> io::Result<()>;
    /// Writes the file `out` that `delta` makes of `old`, and brings it to the disk.
    ///
    /// # Errors
    /// [`DeltaError`].
    fn apply(
        &self,
        old: &Path,
        delta: &Path,
        out: &Path,
        limits: &Limits,
    ) -> Result<(), DeltaError>;
    /// Bytes that can still be written below a directory.
    ///
    /// # Errors
    /// As above.
    fn free_space(&self, directory: &Path) -> io::Result<u64>;
    /// Brings a file's bytes to the disk.
    ///
    /// # Errors
    /// As above.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Brings a directory's names to the disk.
    ///
    /// # Errors
    /// As above.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Moves a file over another one, in one step.
    ///
    /// # Errors
    /// As above.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As above.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Holds a lock until the answer is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send>>;
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl FileSystem for Disk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        read_bounded(path, most)
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn digest(&self, path: &Path, algorithms: Algorithms) -> io::Result<FileDigest> {
        hash_file(path, algorithms).map_err(|error| error.source)
    }

    fn sealed_header(&self, path: &Path, limits: &Limits) -> io::Result<Option<Digest>> {
        crate::seal::header_digest(path, limits)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn write(&self, path: &Path, bytes: &mut dyn Read) -> io::Result<()> {
        io::copy(bytes, &mut File::create(path)?).map(|_| ())
    }

    fn append(&self, path: &Path, bytes: &mut dyn Read) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let mut block = vec![0; 128 << 10];
        loop {
            match bytes.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(count) => io::Write::write_all(&mut file, &block[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn apply(
        &self,
        old: &Path,
        delta: &Path,
        out: &Path,
        limits: &Limits,
    ) -> Result<(), DeltaError> {
        delta::apply(old, delta, out, limits).map(|_| ())
    }

    fn free_space(&self, directory: &Path) -> io::Result<u64> {
        fs4::available_space(directory)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::options().write(true).open(path)?.sync_all()
    }

    #[cfg(unix)]
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// Windows has no such call; its journal keeps renames in order.
    #[cfg(not(unix))]
    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        match FileExt::try_lock(&file) {
            Ok(()) => Ok(Box::new(file)),
            Err(fs4::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs4::TryLockError::Error(error)) => Err(error),
        }
    }
}
