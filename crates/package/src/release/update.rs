//! A device and a repository → the device has the release it should have.

use super::download::Downloader;
use super::index::{Blob, DeltaEntry, Index, Release, bucket};
use super::metadata::{Client, Files, MemoryCache};
use super::policy::Trust;
use super::remote::{Remote, read_small};
use super::route::cheapest;
use super::{ReleaseError, blob_path};
use crate::Limits;
use crate::bundle::{FileEntry, Manifest, RuntimeVersion};
use crate::digest::Digest;
use crate::store::{FileSystem, Installed, SelfTest, State, Store, StoreError, at, check_offer};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use jiff::Timestamp;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What an update needs to know.
pub struct Update<'a> {
    /// The repository.
    pub remote: Arc<dyn Remote>,
    /// The root of trust; a device that was updated before has its own.
    pub root: Option<&'a [u8]>,
    /// Which model; may be left out where the device has one, or the repository only one.
    pub name: Option<&'a str>,
    /// What a staged rollout knows the device by; otherwise a random text that the store keeps. It never leaves the device.
    pub device: Option<&'a str>,
    /// The runtime that would run the release.
    pub runtime: RuntimeVersion,
    /// Now.
    pub now: Timestamp,
    /// The first pause after a broken connection; it doubles while nothing arrives.
    pub pause: Duration,
    /// Loads the new release and tries it.
    pub self_test: &'a SelfTest<'a>,
    /// Told what happens.
    pub happening: &'a dyn Fn(Happening<'_>),
    /// Asked now and then whether to stop.
    pub is_cancelled: &'a dyn Fn() -> bool,
}

/// What happens during an update.
#[derive(Clone, Copy, Debug)]
pub enum Happening<'a> {
    /// A file is fetched whole, or by deltas.
    Fetching {
        /// Its path in the bundle.
        path: &'a str,
        /// Bytes of the file.
        size: u64,
        /// Bytes that are fetched for it.
        transfer: u64,
        /// How many deltas; 0 when it is fetched whole.
        deltas: usize,
    },
    /// So many bytes of what is being fetched are here.
    Progress(u64),
    /// A delta did not work; the file is fetched whole.
    DeltaFailed(&'a str),
    /// The new release is tried.
    Testing,
}

/// How an update ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A release was installed and is on trial.
    Installed {
        /// The release.
        installed: Installed,
        /// Number of the release before.
        from: Option<u64>,
        /// Bytes that came over the network for its files.
        received: u64,
    },
    /// The device has what it should have.
    Current {
        /// Its release.
        version: u64,
        /// A newer release that is not yet rolled out to this device.
        waiting: Option<u64>,
        /// The publisher has stopped all installations.
        halted: bool,
    },
    /// The release was withdrawn, and the device went back.
    RolledBack {
        /// From that release.
        from: u64,
        /// To that one.
        to: u64,
    },
}

/// Brings the store up to date.
///
/// # Errors
/// [`ReleaseError`]; what was current before still is, and what has arrived so far is kept for the next try.
pub fn update<F: FileSystem>(
    store: &Store<F>,
    update: &Update<'_>,
) -> Result<Outcome, ReleaseError> {
    let _lock = store.lock_updates()?;
    let state = store.state()?;
    let root = pinned_root(store, update.root)?;
    let cache = load_trust(store)?;
    let before = snapshot(&cache);
    let made = Client::new(
        update.remote.clone(),
        &root,
        MemoryCache(cache.clone()),
        update.now,
    );
    let mut client = made?;
    let refreshed = client.refresh();
    // Even when a later step fails: what was verified keeps older metadata from being believed again.
    save_trust(store, &before, &snapshot(&cache))?;
    refreshed?;
    if let Some(given) = update.root
        && given != root
        && given != client.root()
    {
        return Err(ReleaseError::OtherRoot);
    }

    let name = model_name(update, &state, &client)?;
    let index = fetch_index(store, update, &mut client, &name)?;
    let trust = fetch_trust(store, update, &mut client)?;
    let job = Job {
        store,
        update,
        index: &index,
        trust: &trust,
    };
    job.run(&state)
}

struct Job<'a, F: FileSystem> {
    store: &'a Store<F>,
    update: &'a Update<'a>,
    index: &'a Index,
    trust: &'a Trust,
}

impl<F: FileSystem> Job<'_, F> {
    fn run(&self, state: &State) -> Result<Outcome, ReleaseError> {
        let current = match state.current {
            Some(identity) => Some((identity, self.store.version(identity)?)),
            None => None,
        };
        let device = device_id(self.store, self.update.device)?;
        let is_current = |release: &Release| Some(release.manifest.sha256) == state.current;
        let newer = |release: &&Release| {
            let again = Some(release.manifest.sha256) == state.newest && !is_current(release);
            let fits = release.minimum_runtime.parse::<RuntimeVersion>();
            !release.withdrawn
                && (release.version > state.highest_version || again)
                && !state.failed.contains(&release.manifest.sha256)
                && fits.is_ok_and(|minimum| minimum <= self.update.runtime)
        };
        let offered: Vec<&Release> = self.index.releases.iter().filter(newer).collect();
        let reached = |release: &&&Release| {
            let bucket = bucket(&device, &self.index.name, release.version);
            release.reaches(bucket)
        };
        let chosen = offered.iter().rev().find(reached).copied();
        if let Some(release) = chosen.filter(|_| !self.index.halted) {
            return self.install(release, current.map(|(_, manifest)| manifest.version));
        }
        let Some((identity, manifest)) = current else {
            return Err(self.nothing(&offered));
        };
        let withdrawn = |identity: Digest| {
            let mut releases = self.index.releases.iter();
            releases.any(|release| release.withdrawn && release.manifest.sha256 == identity)
        };
        if withdrawn(identity) {
            return match state.previous.filter(|previous| !withdrawn(*previous)) {
                Some(_) => {
                    let installed = self.store.rollback()?;
                    Ok(Outcome::RolledBack {
                        from: manifest.version,
                        to: installed.manifest.version,
                    })
                }
                None => Err(ReleaseError::Withdrawn(manifest.version)),
            };
        }
        self.mend(identity, &manifest)?;
        Ok(Outcome::Current {
            version: manifest.version,
            waiting: offered.last().map(|release| release.version),
            halted: self.index.halted,
        })
    }

    fn nothing(&self, offered: &[&Release]) -> ReleaseError {
        let reason = match offered.last() {
            _ if self.index.halted => "its publisher has halted it".to_owned(),
            Some(release) => format!(
                "release {} is not yet rolled out to this device",
                release.version
            ),
            None => "it has no release that this device can install".to_owned(),
        };
        ReleaseError::NotOffered(self.index.name.clone(), reason)
    }

    fn install(&self, release: &Release, from: Option<u64>) -> Result<Outcome, ReleaseError> {
        let store = self.store;
        let (manifest_bytes, manifest) = self.manifest(release)?;
        let installed = Installed {
            identity: release.manifest.sha256,
            manifest,
        };
        check_offer(&store.state()?, &installed, self.update.runtime)?;
        let received = self.files(&installed.manifest)?;
        store.write_file(&store.manifest_path(installed.identity), &manifest_bytes)?;
        (self.update.happening)(Happening::Testing);
        (self.update.self_test)(&installed).map_err(StoreError::SelfTest)?;
        store.switch(&installed, self.update.runtime)?;
        clear_work(store)?;
        Ok(Outcome::Installed {
            installed,
            from,
            received,
        })
    }

    /// Fetches and checks the manifest and its signatures.
    fn manifest(&self, release: &Release) -> Result<(Vec<u8>, Manifest), ReleaseError> {
        let limits = &self.store.limits;
        let what = |what: &str| format!("{what} of release {}", release.version);
        let bytes = self.small(release.manifest, &what("manifest"))?;
        let manifest = Manifest::parse(&bytes, limits)?;
        if manifest.name != self.index.name || manifest.version != release.version {
            return Err(ReleaseError::Metadata {
                what: what("manifest"),
                reason: format!(
                    "it describes {:?} release {}",
                    manifest.name, manifest.version
                ),
            });
        }
        let signatures = release
            .signatures
            .iter()
            .map(|blob| self.small(*blob, &what("signature")))
            .collect::<Result<Vec<_>, _>>()?;
        self.trust
            .check(&signatures, &bytes, &manifest, self.update.now, limits)?;
        Ok((bytes, manifest))
    }

    fn small(&self, blob: Blob, what: &str) -> Result<Vec<u8>, ReleaseError> {
        let remote = self.update.remote.as_ref();
        let from = remote.name().to_owned();
        let failed = |reason: String| ReleaseError::Remote {
            what: what.to_owned(),
            from: from.clone(),
            reason,
        };
        let bytes = read_small(remote, &blob_path(blob.sha256), blob.size)
            .map_err(|error| failed(error.why))?
            .ok_or_else(|| failed("it is not there".into()))?;
        if bytes.len() as u64 != blob.size || Digest::sha256(&bytes) != blob.sha256 {
            return Err(ReleaseError::Differs {
                what: what.to_owned(),
                from,
                reason: "its length or its hash is another one".into(),
            });
        }
        Ok(bytes)
    }

    /// Brings every file of the release into the store; answers how many bytes were fetched.
    fn files(&self, manifest: &Manifest) -> Result<u64, ReleaseError> {
        let store = self.store;
        let objects = store.root.join("objects");
        let here: BTreeSet<String> = store
            .files
            .list(&objects)
            .map_err(at(&objects))?
            .into_iter()
            .collect();
        let is_here = |digest: Digest| here.contains(&digest.to_hex());
        let mut missing: Vec<(&FileEntry, Option<Vec<&DeltaEntry>>)> = Vec::new();
        for file in &manifest.files {
            if !store.is_right(&store.object(file), file) {
                let route = cheapest(file.blake3, file.size, &self.index.deltas, &is_here);
                missing.push((file, route));
            }
        }
        self.check_space(&missing)?;
        let mut received = 0;
        for (file, route) in &missing {
            received += self.file(file, route.as_deref())?;
        }
        store.files.sync_directory(&objects).map_err(at(&objects))?;
        Ok(received)
    }

    fn check_space(
        &self,
        missing: &[(&FileEntry, Option<Vec<&DeltaEntry>>)],
    ) -> Result<(), ReleaseError> {
        let store = self.store;
        let mut needed = 0_u64;
        for (file, route) in missing {
            let bytes = match route {
                None => {
                    let part = store.files.length(&self.blob_file(file.sha256));
                    file.size.saturating_sub(part.unwrap_or(0))
                }
                Some(chain) => {
                    let results = chain.iter().map(|delta| delta.to_size + delta.delta.size);
                    results.fold(0, u64::saturating_add)
                }
            };
            needed = needed.saturating_add(bytes);
        }
        // A system that does not tell is tried; the write fails then, which loses nothing either.
        match store.files.free_space(&store.root) {
            Ok(available) if available < needed => Err(ReleaseError::Space {
                path: store.root.display().to_string(),
                needed,
                available,
            }),
            _ => Ok(()),
        }
    }

    fn file(&self, file: &FileEntry, route: Option<&[&DeltaEntry]>) -> Result<u64, ReleaseError> {
        if let Some(chain) = route {
            self.tell(
                file,
                chain.iter().map(|delta| delta.delta.size).sum(),
                chain.len(),
            );
            match self.by_deltas(file, chain) {
                Ok(received) => return Ok(received),
                // A wrong or missing delta is not the end: the whole file is signed too.
                Err(error)
                    if error.is_refusal() || matches!(error, ReleaseError::Remote { .. }) =>
                {
                    if (self.update.is_cancelled)() {
                        return Err(error);
                    }
                    (self.update.happening)(Happening::DeltaFailed(&error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        self.tell(file, file.size, 0);
        let path = self.blob_file(file.sha256);
        let blob = Blob {
            sha256: file.sha256,
            size: file.size,
        };
        let received = self.download(blob, file.path.as_str(), &path)?;
        self.place(file, &path)?;
        Ok(received)
    }

    fn by_deltas(&self, file: &FileEntry, chain: &[&DeltaEntry]) -> Result<u64, ReleaseError> {
        let store = self.store;
        let mut received = 0;
        let mut old: Option<PathBuf> = None;
        for step in chain {
            let delta = self.blob_file(step.delta.sha256);
            received += self.download(step.delta, file.path.as_str(), &delta)?;
            let base = match &old {
                Some(made) => made.clone(),
                None => store.root.join("objects").join(step.from.to_hex()),
            };
            let made = store
                .root
                .join("work")
                .join(format!("{}.made", step.to.to_hex()));
            // The signed size bounds what the delta may make.
            let limits = Limits {
                file_bytes: step.to_size,
                ..store.limits.clone()
            };
            store.files.apply(&base, &delta, &made, &limits)?;
            // Only what this update made is removed, never an object.
            if let Some(old) = old {
                store.files.remove(&old).map_err(at(&old))?;
            }
            store.files.remove(&delta).map_err(at(&delta))?;
            old = Some(made);
        }
        match old {
            Some(made) => self.place(file, &made).map(|()| received),
            None => Ok(received),
        }
    }

    /// Moves a complete file to where objects are, if it is right.
    fn place(&self, file: &FileEntry, from: &Path) -> Result<(), ReleaseError> {
        let store = self.store;
        if !store.is_right(from, file) {
            store.files.remove(from).map_err(at(from))?;
            return Err(StoreError::Differs(file.path.to_string()).into());
        }
        let path = store.object(file);
        // The old name first, so that the rename has something to move whatever is lost of the directory it comes from.
        let work = store.root.join("work");
        store.files.sync_directory(&work).map_err(at(&work))?;
        Ok(store.files.rename(from, &path).map_err(at(&path))?)
    }

    /// Fetches again what was damaged of the release that is here.
    fn mend(&self, identity: Digest, manifest: &Manifest) -> Result<(), ReleaseError> {
        let whole = |file: &FileEntry| matches!(self.store.is_whole(file), Ok(true));
        let is_offered = |release: &Release| release.manifest.sha256 == identity;
        if manifest.files.iter().all(whole) || !self.index.releases.iter().any(is_offered) {
            return Ok(());
        }
        self.files(manifest)?;
        clear_work(self.store)
    }

    fn download(&self, blob: Blob, what: &str, path: &Path) -> Result<u64, ReleaseError> {
        let shown = Cell::new(0_u64);
        let progress = |count: u64| {
            // Every 64 KiB is often enough for an eye.
            if count == blob.size || count >= shown.get() + (64 << 10) || count < shown.get() {
                shown.set(count);
                (self.update.happening)(Happening::Progress(count));
            }
        };
        Downloader {
            files: &self.store.files,
            remote: self.update.remote.as_ref(),
            pause: self.update.pause,
            progress: &progress,
            is_cancelled: self.update.is_cancelled,
        }
        .fetch(blob, what, path)
    }

    fn tell(&self, file: &FileEntry, transfer: u64, deltas: usize) {
        (self.update.happening)(Happening::Fetching {
            path: file.path.as_str(),
            size: file.size,
            transfer,
            deltas,
        });
    }

    fn blob_file(&self, sha256: Digest) -> PathBuf {
        let name = format!("{}.blob", sha256.to_hex());
        self.store.root.join("work").join(name)
    }
}

/// The root that the device was given first.
fn pinned_root<F: FileSystem>(
    store: &Store<F>,
    given: Option<&[u8]>,
) -> Result<Vec<u8>, ReleaseError> {
    let path = store.root.join("trust").join("pinned.json");
    match store.files.read(&path, store.limits.manifest_bytes) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let root = given.ok_or(ReleaseError::NoRoot)?;
            sigstore_tuf::TrustedMetadataSet::from_root(root).map_err(|error| {
                ReleaseError::Metadata {
                    what: "root".into(),
                    reason: error.to_string(),
                }
            })?;
            store.write_file(&path, root)?;
            Ok(root.to_vec())
        }
        Err(error) => Err(StoreError::from_io(&path, error).into()),
    }
}

/// The name of a metadata file on the disk; old roots have a folder of their own elsewhere.
fn trust_file(name: &str) -> String {
    name.replace('/', "+")
}

fn load_trust<F: FileSystem>(store: &Store<F>) -> Result<Files, ReleaseError> {
    let directory = store.root.join("trust");
    let mut found = BTreeMap::new();
    for name in store.files.list(&directory).map_err(at(&directory))? {
        let metadata = name.ends_with(".json") && name != "pinned.json";
        if metadata
            && let Ok(bytes) = store
                .files
                .read(&directory.join(&name), store.limits.manifest_bytes)
        {
            found.insert(name.replace('+', "/"), bytes);
        }
    }
    Ok(Arc::new(std::sync::Mutex::new(found)))
}

fn snapshot(files: &Files) -> BTreeMap<String, Vec<u8>> {
    let files = files
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    files.clone()
}

fn save_trust<F: FileSystem>(
    store: &Store<F>,
    before: &BTreeMap<String, Vec<u8>>,
    after: &BTreeMap<String, Vec<u8>>,
) -> Result<(), ReleaseError> {
    for (name, bytes) in after {
        if before.get(name) != Some(bytes) {
            let path = store.root.join("trust").join(trust_file(name));
            store.write_file(&path, bytes)?;
        }
    }
    Ok(())
}

fn model_name(update: &Update<'_>, state: &State, client: &Client) -> Result<String, ReleaseError> {
    if let Some(name) = update
        .name
        .map(str::to_owned)
        .or_else(|| state.name.clone())
    {
        return Ok(name);
    }
    let targets = client.targets();
    let names: Vec<&str> = targets
        .iter()
        .filter_map(|target| target.strip_suffix(super::publish::INDEX_SUFFIX))
        .collect();
    match names.as_slice() {
        [only] => Ok((*only).to_owned()),
        names => Err(ReleaseError::NotOffered(
            "a model without a name".into(),
            match names {
                [] => "none".into(),
                names => format!("{}; name one of them", names.join(", ")),
            },
        )),
    }
}

fn fetch_index<F: FileSystem>(
    store: &Store<F>,
    update: &Update<'_>,
    client: &mut Client,
    name: &str,
) -> Result<Index, ReleaseError> {
    let path = format!("{name}{}", super::publish::INDEX_SUFFIX);
    let Some(target) = client.target(&path)? else {
        let offered: Vec<String> = client
            .targets()
            .iter()
            .filter_map(|target| target.strip_suffix(super::publish::INDEX_SUFFIX))
            .map(str::to_owned)
            .collect();
        let offered = match offered.is_empty() {
            true => format!("nothing ({})", update.remote.name()),
            false => offered.join(", "),
        };
        return Err(ReleaseError::NotOffered(name.to_owned(), offered));
    };
    let bytes = client.fetch(&path, &target, store.limits.index_bytes)?;
    let index = Index::parse(&bytes, &store.limits)?;
    if index.name != name {
        return Err(ReleaseError::Metadata {
            what: format!("index of {name:?}"),
            reason: format!("it is that of {:?}", index.name),
        });
    }
    Ok(index)
}

fn fetch_trust<F: FileSystem>(
    store: &Store<F>,
    update: &Update<'_>,
    client: &mut Client,
) -> Result<Trust, ReleaseError> {
    let path = super::publish::TRUST_TARGET;
    let target = client.target(path)?.ok_or_else(|| ReleaseError::Remote {
        what: "the trust policy".into(),
        from: update.remote.name().to_owned(),
        reason: "it is not listed".into(),
    })?;
    Trust::parse(&client.fetch(path, &target, store.limits.index_bytes)?)
}

/// A text that stays the same for this device.
fn device_id<F: FileSystem>(store: &Store<F>, given: Option<&str>) -> Result<String, ReleaseError> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let path = store.root.join("device");
    if let Ok(bytes) = store.files.read(&path, 4096)
        && let Ok(text) = String::from_utf8(bytes)
    {
        return Ok(text);
    }
    let mut bytes = [0_u8; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ReleaseError::Keys("the system has no random numbers".into()))?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    store.write_file(&path, text.as_bytes())?;
    Ok(text)
}

fn clear_work<F: FileSystem>(store: &Store<F>) -> Result<(), ReleaseError> {
    let work = store.root.join("work");
    for name in store.files.list(&work).map_err(at(&work))? {
        let path = work.join(name);
        store.files.remove(&path).map_err(at(&path))?;
    }
    Ok(())
}
