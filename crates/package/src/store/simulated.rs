//! A file system in memory that can lose, tear and reorder what was not synced.

use super::FileSystem;
use crate::Limits;
use crate::delta::DeltaError;
use crate::digest::{Algorithms, Digest, FileDigest};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A change that is not yet safe.
#[derive(Clone, Debug)]
enum Change {
    /// New bytes of a file.
    Bytes { file: usize, bytes: Vec<u8> },
    /// A name now means a file, or nothing.
    Name { path: PathBuf, file: Option<usize> },
    /// Both sides of a rename, which happen together.
    Rename { from: PathBuf, to: PathBuf },
}

/// Files by number, names by path; `disk_…` is what survives a crash.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    disk_files: Vec<Vec<u8>>,
    disk_names: BTreeMap<PathBuf, usize>,
    waiting: Vec<Change>,
    /// Operations left before the power fails.
    pub(crate) power: Option<usize>,
    pub(crate) operations: usize,
}

#[derive(Clone, Default)]
pub(crate) struct Simulated(pub(crate) Arc<Mutex<Memory>>);

impl Memory {
    /// Counts an operation; fails when the power is gone.
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match &mut self.power {
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn file(&self, path: &Path) -> io::Result<&Vec<u8>> {
        self.names
            .get(path)
            .map(|file| &self.files[*file])
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make_safe(&mut self, change: &Change) {
        match change {
            Change::Bytes { file, bytes } => self.disk_files[*file].clone_from(bytes),
            Change::Name {
                path,
                file: Some(file),
            } => drop(self.disk_names.insert(path.clone(), *file)),
            Change::Name { path, file: None } => drop(self.disk_names.remove(path)),
            Change::Rename { from, to } => {
                if let Some(file) = self.disk_names.remove(from) {
                    self.disk_names.insert(to.clone(), file);
                }
            }
        }
    }

    /// What is found after a crash: of the changes that were not safe, those that `keeps` are there, in order or not; bytes
    /// that were on their way may be torn.
    pub(crate) fn crash(&self, random: &mut Random) -> Memory {
        let mut after = self.clone();
        let mut waiting = self.waiting.clone();
        match random.below(4) {
            0 => waiting.clear(),
            1 => waiting.truncate(random.below(waiting.len() + 1)),
            2 => waiting.retain(|_| random.below(2) == 0),
            _ => {
                waiting.retain(|_| random.below(3) > 0);
                for i in (1..waiting.len()).rev() {
                    waiting.swap(i, random.below(i + 1));
                }
            }
        }
        for change in &mut waiting {
            if let Change::Bytes { bytes, .. } = change
                && random.below(2) == 0
                && !bytes.is_empty()
            {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes.truncate(at),
                    1 => bytes[at..].fill(0),
                    _ => bytes[at] ^= 0x55,
                }
            }
        }
        waiting.iter().for_each(|change| after.make_safe(change));
        after.files = after.disk_files.clone();
        after.names = after.disk_names.clone();
        after.waiting.clear();
        after.power = None;
        after
    }
}

impl FileSystem for Simulated {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        self.0.lock().unwrap().step()
    }

    fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().file(path).cloned()
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().file(path)?.len() as u64)
    }

    fn digest(&self, path: &Path, _: Algorithms) -> io::Result<FileDigest> {
        let memory = self.0.lock().unwrap();
        let bytes = memory.file(path)?;
        Ok(FileDigest {
            size: bytes.len() as u64,
            sha256: Digest::sha256(bytes),
            blake3: Digest::blake3(bytes),
        })
    }

    fn sealed_header(&self, _: &Path, _: &Limits) -> io::Result<Option<Digest>> {
        Ok(None)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let memory = self.0.lock().unwrap();
        let inside = memory
            .names
            .keys()
            .filter(|path| path.parent() == Some(directory));
        Ok(inside
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect())
    }

    fn write(&self, path: &Path, bytes: &mut dyn Read) -> io::Result<()> {
        let mut all = Vec::new();
        bytes.read_to_end(&mut all)?;
        let mut memory = self.0.lock().unwrap();
        // Three operations, so that the power can fail after any of them.
        memory.step()?;
        let file = match memory.names.get(path) {
            Some(file) => *file,
            None => {
                memory.files.push(Vec::new());
                memory.disk_files.push(Vec::new());
                let file = memory.files.len() - 1;
                memory.names.insert(path.to_owned(), file);
                memory.waiting.push(Change::Name {
                    path: path.to_owned(),
                    file: Some(file),
                });
                file
            }
        };
        for part in [all.len() / 2, all.len()] {
            memory.files[file] = all[..part].to_vec();
            memory.waiting.push(Change::Bytes {
                file,
                bytes: all[..part].to_vec(),
            });
            memory.step()?;
        }
        Ok(())
    }

    fn append(&self, path: &Path, bytes: &mut dyn Read) -> io::Result<()> {
        let mut all = self
            .0
            .lock()
            .unwrap()
            .file(path)
            .cloned()
            .unwrap_or_default();
        let result = bytes.read_to_end(&mut all);
        self.write(path, &mut all.as_slice())?;
        result.map(|_| ())
    }

    /// The real thing, on copies of the files.
    fn apply(
        &self,
        old: &Path,
        delta: &Path,
        out: &Path,
        limits: &Limits,
    ) -> Result<(), DeltaError> {
        let failed = |source| DeltaError::File {
            path: out.display().to_string(),
            source,
        };
        let directory = tempfile::tempdir().unwrap();
        let copy = |from: &Path, name: &str| -> io::Result<PathBuf> {
            let path = directory.path().join(name);
            std::fs::write(&path, self.0.lock().unwrap().file(from)?)?;
            Ok(path)
        };
        let old = copy(old, "old").map_err(failed)?;
        let delta = copy(delta, "delta").map_err(failed)?;
        let made = directory.path().join("made");
        crate::delta::apply(&old, &delta, &made, limits)?;
        let bytes = std::fs::read(&made).map_err(failed)?;
        self.write(out, &mut bytes.as_slice())
            .and_then(|()| self.sync_file(out))
            .map_err(failed)
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut memory = self.0.lock().unwrap();
        memory.step()?;
        let file = *memory.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let (safe, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut memory.waiting).into_iter().partition(
                |change| matches!(change, Change::Bytes { file: found, .. } if *found == file),
            );
        safe.iter().for_each(|change| memory.make_safe(change));
        memory.waiting = waiting;
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut memory = self.0.lock().unwrap();
        memory.step()?;
        let inside = |found: &Path| found.parent() == Some(path);
        let (safe, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut memory.waiting)
            .into_iter()
            .partition(|change| match change {
                Change::Bytes { .. } => false,
                Change::Name { path, .. } => inside(path),
                Change::Rename { to, .. } => inside(to),
            });
        safe.iter().for_each(|change| memory.make_safe(change));
        memory.waiting = waiting;
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut memory = self.0.lock().unwrap();
        memory.step()?;
        let file = memory.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        memory.names.insert(to.to_owned(), file);
        memory.waiting.push(Change::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut memory = self.0.lock().unwrap();
        memory.step()?;
        memory.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        memory.waiting.push(Change::Name {
            path: path.to_owned(),
            file: None,
        });
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Send>> {
        Ok(Box::new(()))
    }
}

/// The same disk, on which power fails after `power` more operations.
pub(crate) fn resumed(memory: &Memory, power: Option<usize>) -> Simulated {
    Simulated(Arc::new(Mutex::new(Memory {
        power,
        operations: 0,
        ..memory.clone()
    })))
}

/// Numbers that are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}
