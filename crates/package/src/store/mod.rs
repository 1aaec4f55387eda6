//! The store on a device: versions of one model, one of them current, and a switch between them that no cut of power can tear.
//!
//! ```text
//! objects/<BLAKE3>      files of all versions, each written once, named by content
//! manifests/<SHA-256>   manifests of the versions that are installed
//! state.json            which version is current, which was before, and whether the current one has proved itself
//! lock                  held while something is changed
//! ```
//!
//! An installation writes objects, then the manifest, then the state; each is written beside its place, brought to the disk,
//! checked, and renamed into its place, and the directory is brought to the disk before the next step begins. Whatever is lost
//! in a crash, the state therefore names a version all of whose files are there.
//!
//! A new version is on trial: when it is started a second time without having been called healthy in between, the version before
//! it comes back by itself and the failed one is not offered again.

mod disk;
mod state;
#[cfg(test)]
mod tests;

use crate::Limits;
use crate::bundle::{FileEntry, MANIFEST_NAME, Manifest, ManifestError, RuntimeVersion};
use crate::digest::Digest;
use crate::signature::Verified;
use state::State;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use disk::{Disk, FileSystem};

/// The versions of one model on one device.
pub struct Store<F: FileSystem = Disk> {
    files: F,
    root: PathBuf,
    limits: Limits,
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
        };
        for directory in [
            store.root.clone(),
            store.root.join("objects"),
            store.root.join("manifests"),
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
            current: state.current,
            previous: state.previous,
            healthy: state.healthy,
            highest_version: state.highest_version,
        })
    }

    /// The version to run now. A version on trial gets one start; at the second the one before it comes back.
    ///
    /// # Errors
    /// [`StoreError`] when there is none, or its files are damaged.
    pub fn start(&self) -> Result<Installed, StoreError> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        if !state.healthy {
            if state.started && state.previous.is_some() {
                state.give_up();
            } else {
                state.started = true;
            }
            self.write_state(&state)?;
        }
        let identity = state
            .current
            .ok_or_else(|| StoreError::Damaged("no version is installed".into()))?;
        self.installed(identity)
    }

    /// Says that the version that is running has proved itself.
    ///
    /// # Errors
    /// [`StoreError`] when the state cannot be written.
    pub fn mark_healthy(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
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
        let installed = self.installed(previous)?;
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
        let _lock = self.lock()?;
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
        let mut state = self.state()?;
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
        state.switch_to(&installed);
        self.write_state(&state)?;
        Ok(installed)
    }

    /// Removes what neither the current nor the previous version needs; answers how many files went.
    ///
    /// # Errors
    /// [`StoreError`] when a file cannot be removed.
    pub fn collect_garbage(&self) -> Result<usize, StoreError> {
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
        for directory in ["objects", "manifests"].map(|name| self.root.join(name)) {
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

    fn manifest_path(&self, identity: Digest) -> PathBuf {
        self.root.join("manifests").join(identity.to_hex())
    }

    /// Writes a file of the new version unless it is already here and right.
    fn write_object(&self, file: &FileEntry, reader: &FileReader<'_>) -> Result<(), StoreError> {
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

    fn is_right(&self, path: &Path, file: &FileEntry) -> bool {
        self.files.digest(path).is_ok_and(|found| {
            found.size == file.size && found.blake3 == file.blake3 && found.sha256 == file.sha256
        })
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let part = part_of(path);
        let directory = path.parent().unwrap_or(&self.root);
        self.files
            .write(&part, &mut { bytes })
            .and_then(|()| self.files.sync_file(&part))
            .and_then(|()| self.files.rename(&part, path))
            .and_then(|()| self.files.sync_directory(directory))
            .map_err(at(path))
    }

    fn state(&self) -> Result<State, StoreError> {
        let path = self.root.join("state.json");
        match self.files.read(&path, self.limits.manifest_bytes) {
            Ok(bytes) => State::parse(&bytes)
                .ok_or_else(|| StoreError::Damaged("its state cannot be read".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn write_state(&self, state: &State) -> Result<(), StoreError> {
        self.write_file(&self.root.join("state.json"), &state.to_json())
    }

    fn lock(&self) -> Result<Box<dyn Send>, StoreError> {
        let path = self.root.join("lock");
        self.files.lock(&path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => StoreError::Busy,
            _ => at(&path)(error),
        })
    }
}

fn check_offer(
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
    if manifest.version <= state.highest_version {
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
    path.with_extension("part")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.display().to_string();
    move |source| StoreError::File { path, source }
}
