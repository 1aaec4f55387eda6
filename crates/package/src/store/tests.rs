//! A file system in memory that can lose what was not synced, and every crash of an update on it.

use super::*;
use crate::bundle::{Parent, Role};
use crate::digest::FileDigest;
use crate::path::BundlePath;
use std::collections::BTreeMap;
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
struct Memory {
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    disk_files: Vec<Vec<u8>>,
    disk_names: BTreeMap<PathBuf, usize>,
    waiting: Vec<Change>,
    /// Operations left before the power fails.
    power: Option<usize>,
    operations: usize,
}

#[derive(Clone, Default)]
struct Simulated(Arc<Mutex<Memory>>);

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
    fn crash(&self, random: &mut Random) -> Memory {
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

    fn digest(&self, path: &Path) -> io::Result<FileDigest> {
        let memory = self.0.lock().unwrap();
        let bytes = memory.file(path)?;
        Ok(FileDigest {
            size: bytes.len() as u64,
            sha256: Digest::sha256(bytes),
            blake3: Digest::blake3(bytes),
        })
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

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

/// A version with two files: one that all versions share and one of its own.
struct Version {
    manifest: Vec<u8>,
    verified: Verified,
    files: BTreeMap<String, Vec<u8>>,
}

fn version(name: &str, number: u64) -> Version {
    let files: BTreeMap<String, Vec<u8>> = [
        ("LICENCE".to_owned(), b"free".to_vec()),
        (
            "model.gguf".to_owned(),
            format!("weights of version {number}").into_bytes(),
        ),
    ]
    .into();
    let entries = files
        .iter()
        .map(|(path, bytes)| FileEntry {
            path: BundlePath::parse(path).unwrap(),
            role: Role::Model,
            size: bytes.len() as u64,
            blake3: Digest::blake3(bytes),
            sha256: Digest::sha256(bytes),
        })
        .collect();
    let parents = (number > 1).then(|| Parent {
        manifest: Digest::sha256(b"parent"),
        version: number - 1,
    });
    let manifest = Manifest {
        name: name.into(),
        version: number,
        minimum_runtime: RuntimeVersion(0, 1, 0),
        files: entries,
        parents: parents.into_iter().collect(),
    };
    let manifest = manifest.checked(&Limits::default()).unwrap().to_json();
    let verified = Verified {
        name: name.into(),
        root: Digest([0; 32]),
        key: Digest([0; 32]),
        files: vec![(
            BundlePath::parse(MANIFEST_NAME).unwrap(),
            Digest::sha256(&manifest),
        )],
        ignored: Vec::new(),
    };
    Version {
        manifest,
        verified,
        files,
    }
}

fn open<F: FileSystem>(files: F, root: &Path) -> Result<Store<F>, StoreError> {
    Store::open(files, root, &Limits::default())
}

fn install<F: FileSystem>(store: &Store<F>, version: &Version) -> Result<Installed, StoreError> {
    let reader = |file: &FileEntry| -> io::Result<Box<dyn Read>> {
        Ok(Box::new(io::Cursor::new(
            version.files[file.path.as_str()].clone(),
        )))
    };
    store.install(
        &version.manifest,
        &version.verified,
        RuntimeVersion(0, 1, 0),
        &reader,
        &|_| Ok(()),
    )
}

/// The version that starts, after every one of its bytes was checked.
fn started<F: FileSystem>(store: &Store<F>) -> Result<u64, StoreError> {
    let installed = store.start()?;
    for file in &installed.manifest.files {
        assert!(
            store.is_right(&store.object(file), file),
            "{} is damaged",
            file.path
        );
    }
    Ok(installed.manifest.version)
}

#[test]
fn no_crash_leaves_a_device_without_a_working_model() {
    let root = Path::new("/store");
    let (one, two, three) = (version("m", 1), version("m", 2), version("m", 3));
    let base = Simulated::default();
    let store = open(base.clone(), root).unwrap();
    install(&store, &one).unwrap();
    store.mark_healthy().unwrap();
    let before = base.0.lock().unwrap().clone();
    // An update, as an application does it: install, start, say that all is well, tidy up.
    let update = |files: Simulated, version: &Version| -> Result<(), StoreError> {
        let store = open(files, root)?;
        install(&store, version)?;
        started(&store)?;
        store.mark_healthy()?;
        store.collect_garbage()?;
        Ok(())
    };
    let whole = Simulated(Arc::new(Mutex::new(Memory {
        operations: 0,
        ..before.clone()
    })));
    update(whole.clone(), &two).unwrap();
    let operations = whole.0.lock().unwrap().operations;
    assert!(operations > 25, "{operations}");

    let mut random = Random(1);
    let mut states = 0;
    let mut seen = [0; 4];
    for power in 0..=operations {
        let running = Simulated(Arc::new(Mutex::new(Memory {
            power: Some(power),
            ..before.clone()
        })));
        assert_eq!(update(running.clone(), &two).is_err(), power < operations);
        for _ in 0..12_000 / operations {
            let crashed = running.0.lock().unwrap().crash(&mut random);
            let files = Simulated(Arc::new(Mutex::new(crashed)));
            let store = open(files.clone(), root).unwrap();
            let found = started(&store).unwrap();
            assert!(found == 1 || found == 2, "{found}");
            seen[found as usize] += 1;
            // Started again without a word that it works, the old one comes back, or is still there.
            let again = started(&store).unwrap();
            assert!(again == found || again == 1);
            // The next update completes.
            update(files.clone(), &three).unwrap();
            assert_eq!(started(&open(files, root).unwrap()).unwrap(), 3);
            states += 1;
        }
    }
    assert!(states >= 10_000, "{states}");
    assert!(seen[1] > 1000 && seen[2] > 1000, "{seen:?}");
}

#[test]
fn a_version_that_does_not_prove_itself_is_undone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Disk, directory.path()).unwrap();
    install(&store, &version("m", 1)).unwrap();
    assert_eq!(started(&store).unwrap(), 1);
    assert_eq!(started(&store).unwrap(), 1, "there is nothing before it");
    store.mark_healthy().unwrap();
    install(&store, &version("m", 2)).unwrap();
    assert_eq!(started(&store).unwrap(), 2);
    assert_eq!(started(&store).unwrap(), 1);
    assert!(store.status().unwrap().healthy);
    assert!(matches!(
        install(&store, &version("m", 2)),
        Err(StoreError::FailedBefore)
    ));
    install(&store, &version("m", 3)).unwrap();
    store.mark_healthy().unwrap();
    assert_eq!(started(&store).unwrap(), 3);
    assert_eq!(store.rollback().unwrap().manifest.version, 1);
    assert_eq!(started(&store).unwrap(), 1);
    assert!(matches!(store.rollback(), Err(StoreError::NothingBefore)));
    assert!(store.collect_garbage().unwrap() >= 2);
    assert_eq!(started(&store).unwrap(), 1);
}

#[test]
fn wrong_offers_are_refused_and_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Disk, directory.path()).unwrap();
    let two = version("m", 2);
    install(&store, &two).unwrap();
    store.mark_healthy().unwrap();
    let before = store.status().unwrap();
    assert!(
        install(&store, &two).is_ok(),
        "what is current can be installed again"
    );
    assert!(matches!(
        install(&store, &version("m", 1)),
        Err(StoreError::Rollback {
            offered: 1,
            highest: 2
        })
    ));
    assert!(matches!(
        install(&store, &version("other", 3)),
        Err(StoreError::OtherModel { .. })
    ));
    let three = version("m", 3);
    let unsigned = Version {
        verified: two.verified.clone(),
        ..version("m", 3)
    };
    assert!(matches!(
        install(&store, &unsigned),
        Err(StoreError::NotSigned)
    ));
    let mut damaged = version("m", 3);
    damaged
        .files
        .insert("model.gguf".into(), b"weights of version 4".to_vec());
    assert!(matches!(
        install(&store, &damaged),
        Err(StoreError::Differs(_))
    ));
    damaged.files.insert("model.gguf".into(), vec![0; 1000]);
    assert!(matches!(
        install(&store, &damaged),
        Err(StoreError::Differs(_))
    ));
    let reader = |file: &FileEntry| -> io::Result<Box<dyn Read>> {
        Ok(Box::new(io::Cursor::new(
            three.files[file.path.as_str()].clone(),
        )))
    };
    let old_runtime = store.install(
        &three.manifest,
        &three.verified,
        RuntimeVersion(0, 0, 9),
        &reader,
        &|_| Ok(()),
    );
    assert!(matches!(old_runtime, Err(StoreError::Runtime(_))));
    let failing = store.install(
        &three.manifest,
        &three.verified,
        RuntimeVersion(1, 0, 0),
        &reader,
        &|_| Err("nonsense".into()),
    );
    assert!(matches!(failing, Err(StoreError::SelfTest(_))));
    let _held = Disk.lock(&directory.path().join("lock")).unwrap();
    assert!(matches!(install(&store, &three), Err(StoreError::Busy)));
    drop(_held);
    assert_eq!(store.status().unwrap(), before);
    install(&store, &three).unwrap();
}
