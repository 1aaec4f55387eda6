//! Repositories as publishers make them, devices that update from them, and whoever stands between.

mod download;
mod power_cut;
mod rollout;
mod trust;

use super::*;
use crate::Limits;
use crate::bundle::{Input, Role, RuntimeVersion, pack};
use crate::path::BundlePath;
use crate::signature::{Algorithm, PrivateKey, sign};
use crate::store::simulated::{Random, Simulated, resumed};
use crate::store::{Disk, FileSystem, Store};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const RUNTIME: RuntimeVersion = RuntimeVersion(0, 1, 0);

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

/// A publisher: keys, bundles of some releases, and a repository.
struct Publisher {
    place: tempfile::TempDir,
    root: PrivateKey,
    release: PrivateKey,
}

fn key() -> PrivateKey {
    PrivateKey::generate(Algorithm::Ed25519).unwrap().0
}

impl Publisher {
    fn new() -> Self {
        Publisher {
            place: tempfile::tempdir().unwrap(),
            root: key(),
            release: key(),
        }
    }

    fn repository(&self) -> PathBuf {
        self.place.path().join("repository")
    }

    /// Some kilobytes that change a little from release to release.
    fn weights(number: u64) -> Vec<u8> {
        let mut random = Random(7);
        let mut bytes: Vec<u8> = (0..6000).map(|_| random.below(256) as u8).collect();
        for i in 0..number as usize * 3 {
            bytes[i * 137] ^= 0x21;
        }
        bytes
    }

    /// A signed bundle of the model `name`.
    fn bundle(&self, name: &str, number: u64, signers: &[&PrivateKey]) -> (PathBuf, Vec<PathBuf>) {
        let at = |what: &str| {
            let folder = name.replace('/', "-");
            self.place.path().join(format!("{folder}-{number}-{what}"))
        };
        let model = at("model.gguf");
        fs::write(&model, Self::weights(number)).unwrap();
        fs::write(at("LICENCE"), "free").unwrap();
        let inputs =
            [("model.gguf", Role::Model), ("LICENCE", Role::Licence)].map(|(path, role)| Input {
                from: at(path),
                path: BundlePath::parse(path).unwrap(),
                role,
            });
        let out = at("bundle");
        let _ = fs::remove_dir_all(&out);
        let limits = Limits::default();
        pack(&inputs, name, number, RUNTIME, &[], &out, &limits).unwrap();
        let mut signatures = Vec::new();
        for (i, signer) in signers.iter().enumerate() {
            let path = at(&format!("{i}.sig"));
            fs::write(&path, sign(&out, &path, signer, &limits).unwrap()).unwrap();
            signatures.push(path);
        }
        (out, signatures)
    }

    fn keys(&self) -> Keys<'_> {
        Keys {
            root: std::slice::from_ref(&self.root),
            release: std::slice::from_ref(&self.release),
            ..Keys::default()
        }
    }

    /// Publishes with what `change` sets.
    fn publish(
        &self,
        change: impl for<'a> FnOnce(&mut Publication<'a>),
    ) -> Result<Published, ReleaseError> {
        let to = self.repository();
        let limits = Limits::default();
        let mut publication = Publication {
            to: &to,
            keys: self.keys(),
            rotate: None,
            bundle: None,
            delta_from: &[],
            name: None,
            rollout: None,
            withdraw: None,
            halt: None,
            trust: None,
            expires_days: [700, 300, 30],
            now: now(),
            limits: &limits,
        };
        change(&mut publication);
        publish(&publication)
    }

    /// Publishes a release with deltas from those before.
    fn release(&self, number: u64) -> Published {
        let (bundle, signatures) = self.bundle("acme/helper", number, &[&self.release]);
        let olds: Vec<PathBuf> = (1..number)
            .map(|old| self.place.path().join(format!("acme-helper-{old}-bundle")))
            .filter(|old| old.exists())
            .collect();
        let to = self.repository();
        let limits = Limits::default();
        publish(&Publication {
            to: &to,
            keys: self.keys(),
            rotate: None,
            bundle: Some((&bundle, &signatures)),
            delta_from: &olds,
            name: None,
            rollout: None,
            withdraw: None,
            halt: None,
            trust: None,
            expires_days: [700, 300, 30],
            now: now(),
            limits: &limits,
        })
        .unwrap()
    }

    fn root(&self) -> Vec<u8> {
        fs::read(self.repository().join("metadata/1.root.json")).unwrap()
    }
}

/// A repository in memory, and what a bad server does with it.
#[derive(Clone, Default)]
struct Server {
    files: BTreeMap<String, Vec<u8>>,
    /// Every answer ends after so many bytes.
    cut: Option<usize>,
    /// Whole files only.
    no_ranges: bool,
    /// Adds this to every length that is said.
    lie: u64,
    /// Adds bytes without end.
    endless: bool,
    /// Paths that were opened, with their offsets.
    log: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Server {
    fn of(directory: &Path) -> Self {
        let mut server = Server::default();
        let mut stack = vec![directory.to_owned()];
        while let Some(at) = stack.pop() {
            for entry in fs::read_dir(&at).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    stack.push(path);
                    continue;
                }
                let name = path.strip_prefix(directory).unwrap().display().to_string();
                server.files.insert(name, fs::read(&path).unwrap());
            }
        }
        server
    }

    fn blobs(&self) -> u64 {
        let log = self.log.lock().unwrap();
        let blobs = log.iter().filter(|(path, _)| path.starts_with("blobs/"));
        blobs.map(|(path, _)| self.files[path].len() as u64).sum()
    }
}

struct Endless(std::io::Cursor<Vec<u8>>);

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(out)? {
            0 => {
                out.fill(b' ');
                Ok(out.len())
            }
            count => Ok(count),
        }
    }
}

impl Remote for Server {
    fn name(&self) -> &str {
        "the test"
    }

    fn open(&self, path: &str, offset: u64) -> Result<Option<Opened>, RemoteError> {
        self.log.lock().unwrap().push((path.to_owned(), offset));
        let Some(bytes) = self.files.get(path) else {
            return Ok(None);
        };
        let start = if self.no_ranges { 0 } else { offset };
        let mut body = bytes[(start as usize).min(bytes.len())..].to_vec();
        body.truncate(self.cut.unwrap_or(usize::MAX));
        let body: Box<dyn Read + Send> = match self.endless {
            true => Box::new(Endless(std::io::Cursor::new(body))),
            false => Box::new(std::io::Cursor::new(body)),
        };
        Ok(Some(Opened {
            start,
            length: (!self.endless).then_some(bytes.len() as u64 + self.lie),
            body,
        }))
    }
}

fn run<'a, F: FileSystem>(
    store: &Store<F>,
    server: &Server,
    root: Option<&'a [u8]>,
    change: impl FnOnce(&mut Update<'a>),
) -> Result<Outcome, ReleaseError> {
    let mut wanted = Update {
        remote: Arc::new(server.clone()),
        root,
        name: None,
        device: Some("device"),
        runtime: RUNTIME,
        now: now(),
        pause: Duration::ZERO,
        self_test: &|_| Ok(()),
        happening: &|_| {},
        is_cancelled: &|| false,
    };
    change(&mut wanted);
    update(store, &wanted)
}

fn plain<F: FileSystem>(store: &Store<F>, publisher: &Publisher) -> Result<Outcome, ReleaseError> {
    let server = Server::of(&publisher.repository());
    run(store, &server, Some(&publisher.root()), |_| {})
}

fn installed(outcome: Result<Outcome, ReleaseError>) -> (u64, u64) {
    match outcome.unwrap() {
        Outcome::Installed {
            installed,
            received,
            ..
        } => (installed.manifest.version, received),
        other => panic!("{other:?}"),
    }
}

fn refused(outcome: Result<Outcome, ReleaseError>, part: &str) {
    let error = outcome.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

fn device() -> (tempfile::TempDir, Store<Disk>) {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(Disk, place.path(), &Limits::default()).unwrap();
    (place, store)
}

fn model<F: FileSystem>(store: &Store<F>) -> Vec<u8> {
    let current = store.start().unwrap();
    let file = &current.manifest.files;
    let file = file.iter().find(|file| file.role == Role::Model).unwrap();
    store.files.read(&store.object(file), 1 << 20).unwrap()
}
