//! The store on a device: versions of one model, one of them current, and a switch between them that no cut of power can tear.
//!
//! ```text
//! objects/<BLAKE3>      files of all versions, each written once, named by content
//! manifests/<SHA-256>   manifests of the versions that are installed
//! work/                 what an update has fetched so far; it goes on from there
//! trust/                the signed metadata of the repository, as far as it was verified
//! state.json            which version is current, which was before, and whether the current one has proved itself
//! lock                  held for the moment in which the state is changed
//! update.lock           held during a whole update
//! trial.lock            held by the program that tries a new version, until it ends
//! ```
//!
//! An installation writes objects, then the manifest, then the state; each is written beside its place, brought to the disk,
//! checked, and renamed into its place, and the directory is brought to the disk before the next step begins. Whatever is lost
//! in a crash, the state therefore names a version all of whose files are there.
//!
//! A new version is on trial: when it is started a second time without having been called healthy in between, the version before
//! it comes back by itself and the failed one is not offered again.

mod disk;
#[cfg(test)]
pub(crate) mod simulated;
mod state;
#[cfg(test)]
mod tests;

use crate::Limits;
use crate::bundle::{FileEntry, MANIFEST_NAME, Manifest, ManifestError, RuntimeVersion};
use crate::digest::{Algorithms, Digest};
use crate::signature::Verified;
pub(crate) use state::State;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

pub use disk::{Disk, FileSystem};

/// The versions of one model on one device.
pub struct Store<F: FileSystem = Disk> {
    pub(crate) files: F,
    pub(crate) root: PathBuf,
    pub(crate) limits: Limits,
    /// Held while this program tries a version; tells a version that failed from one that two programs start at once.
    trial: Mutex<Option<Box<dyn Send>>>,
}

/// A version whose files are all in the store.
#[derive(Clone, Debug)]
pub struct Installed {
    /// SHA-256 of its manifest.
    pub identity: Digest,
    /// What it is.
    pub manifest: Manifest,
}

/// What the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Name of the model, once one was installed.
    pub name: Option<String>,
    /// The version that runs, by its manifest's SHA-256.
    pub current: Option<Digest>,
    /// The version that a rollback returns to.
    pub previous: Option<Digest>,
    /// Whether the current version has proved itself.
    pub healthy: bool,
    /// The highest version that was ever current; no lower one is installed.
    pub highest_version: u64,
}

/// Why the store did not do what it was asked for. What was current before still is.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The signature does not cover this manifest.
    #[error(
        "the signature does not cover this manifest; verify the bundle that is to be installed"
    )]
    NotSigned,
    /// A version that is not higher than one that was current before.
    #[error(
        "version {offered} is not above {highest}, which was already here; an old version is refused"
    )]
    Rollback {
        /// The version that was offered.
        offered: u64,
        /// The highest version so far.
        highest: u64,
    },
    /// Another model.
    #[error("this store holds {held:?}, not {offered:?}; use another store")]
    OtherModel {
        /// The model of the store.
        held: String,
        /// The model that was offered.
        offered: String,
    },
    /// The runtime is too old.
    #[error("the model needs runtime {0} or later; update the application first")]
    Runtime(RuntimeVersion),
    /// This version failed here before.
    #[error("this version failed on this device before; wait for the next one")]
    FailedBefore,
    /// A file is not what the manifest says.
    #[error("{0} is not the file of the manifest; fetch the bundle again")]
    Differs(String),
    /// The new version did not pass its test.
    #[error("the new version failed its test ({0}); the old one stays")]
    SelfTest(String),
    /// Nothing was installed yet.
    #[error("no version is installed; run ondine update first")]
    Empty,
    /// The store's own files are damaged.
    #[error("the store is damaged: {0}; install the model again")]
    Damaged(String),
    /// There is no version to go back to.
    #[error("there is no earlier version to go back to")]
    NothingBefore,
    /// Somebody else is changing the store.
    #[error("another update is running; wait until it has ended")]
    Busy,
}

impl StoreError {
    /// Whether something is not what it should be (rather than a file that cannot be read or written).
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            StoreError::File { .. }
                | StoreError::Busy
                | StoreError::NothingBefore
                | StoreError::Empty
        )
    }

    /// Whether the store cannot be written, by anybody or by this user.
    fn is_closed(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, StoreError::File { source, .. } if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }

    pub(crate) fn from_io(path: &Path, source: io::Error) -> Self {
        at(path)(source)
    }
}

/// Where the bytes of a file come from while it is installed.
pub type FileReader<'a> = dyn Fn(&FileEntry) -> io::Result<Box<dyn Read>> + 'a;
/// Loads a version and tries it; the text says what went wrong.
pub type SelfTest<'a> = dyn Fn(&Installed) -> Result<(), String> + 'a;

impl<F: FileSystem> Store<F> {
    /// Opens the store in the directory `root`, which is made if need be.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn open(files: F, root: &Path, limits: &Limits) -> Result<Self, StoreError> {
        let store = Store {
            files,
            root: root.to_owned(),
            limits: limits.clone(),
            trial: Mutex::new(None),
        };
        for directory in [
            store.root.clone(),
            store.root.join("objects"),
            store.root.join("manifests"),
            store.root.join("work"),
            store.root.join("trust"),
        ] {
            store
                .files
                .create_dir_all(&directory)
                .map_err(at(&directory))?;
        }
        store
            .files
            .sync_directory(&store.root)
            .map_err(at(&store.root))?;
        Ok(store)
    }

    /// What the store holds.
    ///
    /// # Errors
    /// [`StoreError`] when the state cannot be read.
    pub fn status(&self) -> Result<Status, StoreError> {
        let state = self.state()?;
        Ok(Status {
            name: state.name,
            current: state.current,
            previous: state.previous,
            healthy: state.healthy,
            highest_version: state.highest_version,
        })
    }

    /// The version to run now, after its files were checked. A version on trial gets one start; when that has ended without a word
    /// that it works, the one before it comes back. So it does when the current version's files are damaged. From a store that cannot
    /// be written, by a read-only disk or for lack of permission, a version starts that is healthy already.
    ///
    /// # Errors
    /// [`StoreError`] when there is none, or no version's files are whole.
    pub fn start(&self) -> Result<Installed, StoreError> {
        let lock = match self.lock() {
            Err(error) if error.is_closed() && self.state()?.healthy => None,
            lock => Some(lock?),
        };
        let mut state = self.state()?;
        if !state.healthy && state.current.is_some() {
            let mut trial = self
                .trial
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            drop(trial.take());
            let path = self.root.join("trial.lock");
            match self.files.lock(&path) {
                Ok(held) => {
                    *trial = Some(held);
                    if state.started && state.previous.is_some() {
                        state.give_up();
                    } else {
                        state.started = true;
                    }
                    self.write_state(&state)?;
                }
                // Another program tries it at this moment: it has not failed yet.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(at(&path)(error)),
            }
        }
        let identity = state.current.ok_or(StoreError::Empty)?;
        match self.checked(identity) {
            Err(StoreError::Damaged(_) | StoreError::File { .. }) if state.previous.is_some() => {
                state.fall_back();
                let identity = state.current.ok_or(StoreError::Empty)?;
                let installed = self.checked(identity)?;
                if lock.is_some() {
                    self.write_state(&state)?;
                }
                Ok(installed)
            }
            other => other,
        }
    }

    /// The current version, without starting it and without reading its files.
    ///
    /// # Errors
    /// [`StoreError`] when there is none, or a file is missing.
    pub fn current(&self) -> Result<Installed, StoreError> {
        self.installed(self.state()?.current.ok_or(StoreError::Empty)?)
    }

    /// Reads every file of the current version and checks it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with the first file that was changed.
    pub fn check(&self) -> Result<Installed, StoreError> {
        self.checked(self.state()?.current.ok_or(StoreError::Empty)?)
    }

    /// What is known of a version that is in the store.
    ///
    /// # Errors
    /// [`StoreError`] when it is not, or its manifest is damaged.
    pub fn version(&self, identity: Digest) -> Result<Manifest, StoreError> {
        self.manifest(identity)
    }

    /// Says that the version that is running has proved itself.
    ///
    /// # Errors
    /// [`StoreError`] when the state cannot be written.
    pub fn mark_healthy(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        if state.healthy || state.current.is_none() {
            return Ok(());
        }
        state.healthy = true;
        self.write_state(&state)
    }

    /// Returns to the version before the current one.
    ///
    /// # Errors
    /// [`StoreError::NothingBefore`].
    pub fn rollback(&self) -> Result<Installed, StoreError> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        let previous = state.previous.ok_or(StoreError::NothingBefore)?;
        let installed = self.checked(previous)?;
        state.give_up();
        self.write_state(&state)?;
        Ok(installed)
    }

    /// Installs the version that `manifest` describes and makes it current, on trial.
    ///
    /// `verified` is the signature check of the bundle that holds `manifest`; `reader` gives the files' bytes, which are checked
    /// against the manifest whatever they are; `self_test` is asked before the switch.
    ///
    /// # Errors
    /// [`StoreError`]; what was current before still is.
    pub fn install(
        &self,
        manifest: &[u8],
        verified: &Verified,
        runtime: RuntimeVersion,
        reader: &FileReader<'_>,
        self_test: &SelfTest<'_>,
    ) -> Result<Installed, StoreError> {
        let _lock = self.lock_updates()?;
        let identity = Digest::sha256(manifest);
        let signed = verified
            .files
            .iter()
            .any(|(path, digest)| path.as_str() == MANIFEST_NAME && *digest == identity);
        if !signed {
            return Err(StoreError::NotSigned);
        }
        let installed = Installed {
            identity,
            manifest: Manifest::parse(manifest, &self.limits)?,
        };
        let state = self.state()?;
        if state.current == Some(identity) {
            return self.installed(identity);
        }
        check_offer(&state, &installed, runtime)?;
        for file in &installed.manifest.files {
            self.write_object(file, reader)?;
        }
        let objects = self.root.join("objects");
        self.files.sync_directory(&objects).map_err(at(&objects))?;
        self.write_file(&self.manifest_path(identity), manifest)?;
        self_test(&installed).map_err(StoreError::SelfTest)?;
        self.switch(&installed, runtime)?;
        Ok(installed)
    }

    /// Makes a version current whose files and manifest are all on the disk.
    pub(crate) fn switch(
        &self,
        installed: &Installed,
        runtime: RuntimeVersion,
    ) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        // Read again: the version that ran may have been given up in the meantime.
        let mut state = self.state()?;
        check_offer(&state, installed, runtime)?;
        state.switch_to(installed);
        self.write_state(&state)
    }

    /// Removes what neither the current nor the previous version needs; answers how many files went.
    ///
    /// # Errors
    /// [`StoreError`] when a file cannot be removed.
    pub fn collect_garbage(&self) -> Result<usize, StoreError> {
        let _updates = self.lock_updates()?;
        let _lock = self.lock()?;
        let state = self.state()?;
        let mut needed = BTreeSet::new();
        for identity in [state.current, state.previous].into_iter().flatten() {
            needed.insert(identity.to_hex());
            needed.extend(
                self.manifest(identity)?
                    .files
                    .iter()
                    .map(|file| file.blake3.to_hex()),
            );
        }
        let mut removed = 0;
        for directory in ["objects", "manifests", "work"].map(|name| self.root.join(name)) {
            for name in self.files.list(&directory).map_err(at(&directory))? {
                if !needed.contains(&name) {
                    let path = directory.join(name);
                    self.files.remove(&path).map_err(at(&path))?;
                    removed += 1;
                }
            }
            self.files
                .sync_directory(&directory)
                .map_err(at(&directory))?;
        }
        Ok(removed)
    }

    /// Where the bytes of a file of an installed version are.
    pub fn object(&self, file: &FileEntry) -> PathBuf {
        self.root.join("objects").join(file.blake3.to_hex())
    }

    /// Reads an installed version and checks that its files are there with the right sizes.
    fn installed(&self, identity: Digest) -> Result<Installed, StoreError> {
        let manifest = self.manifest(identity)?;
        for file in &manifest.files {
            let path = self.object(file);
            let length = self.files.length(&path).map_err(at(&path))?;
            if length != file.size {
                return Err(StoreError::Damaged(format!(
                    "{} has another size",
                    file.path
                )));
            }
        }
        Ok(Installed { identity, manifest })
    }

    /// Reads an installed version and checks its files: plain ones by their BLAKE3 tree, sealed ones by their header, to which every
    /// chunk is bound that opens later.
    fn checked(&self, identity: Digest) -> Result<Installed, StoreError> {
        let installed = self.installed(identity)?;
        for file in &installed.manifest.files {
            if !self.is_whole(file)? {
                return Err(StoreError::Damaged(format!("{} was changed", file.path)));
            }
        }
        Ok(installed)
    }

    /// Whether a file of an installed version is what it was when it was installed.
    pub(crate) fn is_whole(&self, file: &FileEntry) -> Result<bool, StoreError> {
        let path = self.object(file);
        if let Some(header) = file.sealed_header {
            let found = self.files.sealed_header(&path, &self.limits);
            return Ok(found.map_err(at(&path))? == Some(header));
        }
        let found = self.files.digest(&path, Algorithms::Blake3);
        let found = found.map_err(at(&path))?;
        Ok(found.size == file.size && found.blake3 == file.blake3)
    }

    fn manifest(&self, identity: Digest) -> Result<Manifest, StoreError> {
        let path = self.manifest_path(identity);
        let bytes = self
            .files
            .read(&path, self.limits.manifest_bytes)
            .map_err(at(&path))?;
        if Digest::sha256(&bytes) != identity {
            return Err(StoreError::Damaged("a manifest was changed".into()));
        }
        Ok(Manifest::parse(&bytes, &self.limits)?)
    }

    pub(crate) fn manifest_path(&self, identity: Digest) -> PathBuf {
        self.root.join("manifests").join(identity.to_hex())
    }

    /// Writes a file of the new version unless it is already here and right.
    pub(crate) fn write_object(
        &self,
        file: &FileEntry,
        reader: &FileReader<'_>,
    ) -> Result<(), StoreError> {
        let path = self.object(file);
        if self.is_right(&path, file) {
            return Ok(());
        }
        let part = part_of(&path);
        let mut bytes = reader(file)
            .map_err(at(Path::new(file.path.as_str())))?
            .take(file.size.saturating_add(1));
        self.files
            .write(&part, &mut bytes)
            .and_then(|()| self.files.sync_file(&part))
            .map_err(at(&part))?;
        if !self.is_right(&part, file) {
            let _ = self.files.remove(&part);
            return Err(StoreError::Differs(file.path.to_string()));
        }
        self.files.rename(&part, &path).map_err(at(&path))
    }

    pub(crate) fn is_right(&self, path: &Path, file: &FileEntry) -> bool {
        self.files
            .digest(path, Algorithms::Both)
            .is_ok_and(|found| {
                found.size == file.size
                    && found.blake3 == file.blake3
                    && found.sha256 == file.sha256
            })
    }

    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let part = part_of(path);
        let directory = path.parent().unwrap_or(&self.root);
        self.files
            .write(&part, &mut { bytes })
            .and_then(|()| self.files.sync_file(&part))
            .and_then(|()| self.files.rename(&part, path))
            .and_then(|()| self.files.sync_directory(directory))
            .map_err(at(path))
    }

    pub(crate) fn state(&self) -> Result<State, StoreError> {
        let path = self.root.join("state.json");
        match self.files.read(&path, self.limits.manifest_bytes) {
            Ok(bytes) => State::parse(&bytes)
                .ok_or_else(|| StoreError::Damaged("its state cannot be read".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(at(&path)(error)),
        }
    }

    pub(crate) fn write_state(&self, state: &State) -> Result<(), StoreError> {
        self.write_file(&self.root.join("state.json"), &state.to_json())
    }

    /// Held for the moment in which the state is changed.
    fn lock(&self) -> Result<Box<dyn Send>, StoreError> {
        let mut result = self.try_lock("lock");
        for _ in 0..LOCK_TRIES {
            if !matches!(result, Err(StoreError::Busy)) {
                break;
            }
            std::thread::sleep(LOCK_PAUSE);
            result = self.try_lock("lock");
        }
        result
    }

    /// Held during a whole update or clean-up, in which versions can still be started.
    pub(crate) fn lock_updates(&self) -> Result<Box<dyn Send>, StoreError> {
        self.try_lock("update.lock")
    }

    fn try_lock(&self, name: &str) -> Result<Box<dyn Send>, StoreError> {
        let path = self.root.join(name);
        self.files.lock(&path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => StoreError::Busy,
            _ => at(&path)(error),
        })
    }

    /// Where updates come from, as [`Store::set_source`] noted it.
    pub fn source(&self) -> Option<String> {
        let bytes = self.files.read(&self.root.join("source"), 4096).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// Notes where updates come from.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn set_source(&self, source: &str) -> Result<(), StoreError> {
        if self.source().as_deref() == Some(source) {
            return Ok(());
        }
        self.write_file(&self.root.join("source"), source.as_bytes())
    }
}

/// How long the lock of a moment is waited for: longer than the files of a large version take to check.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

pub(crate) fn check_offer(
    state: &State,
    offered: &Installed,
    runtime: RuntimeVersion,
) -> Result<(), StoreError> {
    let manifest = &offered.manifest;
    if state.failed.contains(&offered.identity) {
        return Err(StoreError::FailedBefore);
    }
    if let Some(held) = state.name.as_ref().filter(|held| **held != manifest.name) {
        return Err(StoreError::OtherModel {
            held: held.clone(),
            offered: manifest.name.clone(),
        });
    }
    let again = state.newest == Some(offered.identity) && state.current != state.newest;
    if manifest.version <= state.highest_version && !again {
        return Err(StoreError::Rollback {
            offered: manifest.version,
            highest: state.highest_version,
        });
    }
    if manifest.minimum_runtime > runtime {
        return Err(StoreError::Runtime(manifest.minimum_runtime));
    }
    Ok(())
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.display().to_string();
    move |source| StoreError::File { path, source }
}
