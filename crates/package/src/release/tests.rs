//! Repositories as publishers make them, devices that update from them, and whoever stands between.

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

#[test]
fn a_device_follows_releases_by_the_cheapest_way() {
    let publisher = Publisher::new();
    publisher.release(1);
    let (_place, store) = device();
    assert!(matches!(
        run(&store, &Server::of(&publisher.repository()), None, |_| {}),
        Err(ReleaseError::NoRoot)
    ));
    assert_eq!(installed(plain(&store, &publisher)), (1, 6004));
    assert_eq!(model(&store), Publisher::weights(1));
    store.mark_healthy().unwrap();
    assert!(matches!(
        plain(&store, &publisher).unwrap(),
        Outcome::Current {
            version: 1,
            waiting: None,
            halted: false
        }
    ));
    let made = publisher.release(2);
    assert_eq!(made.deltas.len(), 1);
    let (version, received) = installed(plain(&store, &publisher));
    assert_eq!((version, received), (2, made.deltas[0].1));
    store.mark_healthy().unwrap();
    assert_eq!(model(&store), Publisher::weights(2));
    assert_eq!(store.collect_garbage().unwrap(), 0);
    // Another device skips a release, and one starts late.
    publisher.release(3);
    let made = publisher.release(4);
    let (version, received) = installed(plain(&store, &publisher));
    assert!(version == 4 && received <= made.deltas[1].1, "{received}");
    assert_eq!(model(&store), Publisher::weights(4));
    let (_place, late) = device();
    assert_eq!(installed(plain(&late, &publisher)), (4, 6004));
}

#[test]
fn a_download_goes_on_at_any_byte() {
    let publisher = Publisher::new();
    publisher.release(1);
    let server = Server::of(&publisher.repository());
    let root = publisher.root();
    for no_ranges in [false, true] {
        let (_place, store) = device();
        let cut = Server {
            // The metadata comes whole; of the weights only a part each time.
            cut: Some(4099),
            no_ranges,
            ..server.clone()
        };
        let first = run(&store, &cut, Some(&root), |_| {});
        match no_ranges {
            false => assert_eq!(installed(first), (1, 6004)),
            true => {
                let error = first.unwrap_err();
                assert!(error.to_string().contains("4099 of 6000"), "{error}");
                assert!(!error.is_refusal());
                assert_eq!(installed(run(&store, &server, None, |_| {})).0, 1);
            }
        }
        assert_eq!(model(&store), Publisher::weights(1));
    }
    // What an earlier run left behind may be wrong anywhere.
    let (place, store) = device();
    let blob = crate::digest::Digest::sha256(&Publisher::weights(1));
    let part = place
        .path()
        .join("work")
        .join(format!("{}.blob", blob.to_hex()));
    for left in [vec![0; 100], vec![0; 6000], vec![0; 9000], Vec::new()] {
        fs::write(&part, left).unwrap();
        let _ = run(&store, &server, Some(&root), |update| {
            update.self_test = &|_| Err("no".into())
        });
        assert!(!part.exists());
        let objects = place.path().join("objects");
        fs::remove_dir_all(&objects).unwrap();
        fs::create_dir(&objects).unwrap();
    }
    assert_eq!(installed(run(&store, &server, None, |_| {})).0, 1);
}

#[test]
fn bad_servers_are_told_from_bad_luck() {
    let publisher = Publisher::new();
    publisher.release(1);
    let root = publisher.root();
    let good = Server::of(&publisher.repository());
    let change_blobs = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut server = good.clone();
        for (path, bytes) in &mut server.files {
            if path.starts_with("blobs/") && bytes.len() == 6000 {
                change(bytes);
            }
        }
        server
    };
    let flipped = change_blobs(&|bytes| bytes[5000] ^= 1);
    let longer = change_blobs(&|bytes| bytes.push(0));
    let shorter = change_blobs(&|bytes| bytes.truncate(5999));
    let mut gone = good.clone();
    gone.files.retain(|_, bytes| bytes.len() != 6000);
    let mut silent = good.clone();
    silent.files.remove("metadata/timestamp.json");
    let (_place, store) = device();
    for (server, refusal, part) in [
        (flipped, true, "hash"),
        (longer, true, "6001 bytes long where 6000"),
        (shorter, true, "5999 bytes long where 6000"),
        (gone, false, "not there"),
        (silent, false, "timestamp.json not found"),
        (
            Server {
                cut: Some(10),
                ..good.clone()
            },
            false,
            "ended after 10 of",
        ),
        (
            Server {
                lie: 1 << 40,
                ..good.clone()
            },
            false,
            "longer than",
        ),
        (
            Server {
                endless: true,
                ..good.clone()
            },
            false,
            "longer than",
        ),
    ] {
        let error = run(&store, &server, Some(&root), |_| {}).unwrap_err();
        assert_eq!(error.is_refusal(), refusal, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(store.status().unwrap().current.is_none());
    }
    assert_eq!(installed(run(&store, &good, None, |_| {})).0, 1);
}

#[test]
fn old_frozen_and_mixed_metadata_are_refused() {
    let publisher = Publisher::new();
    publisher.release(1);
    let one = Server::of(&publisher.repository());
    publisher.release(2);
    let two = Server::of(&publisher.repository());
    let root = publisher.root();
    let (_place, store) = device();
    assert_eq!(installed(run(&store, &two, Some(&root), |_| {})).0, 2);
    store.mark_healthy().unwrap();
    // Rollback: the repository of yesterday.
    refused(run(&store, &one, None, |_| {}), "rollback");
    // Freeze: nothing new for longer than was promised.
    let later = now()
        .checked_add(SignedDuration::from_hours(24 * 31))
        .unwrap();
    refused(
        run(&store, &two, None, |update| update.now = later),
        "expired",
    );
    // Mix and match: parts of both.
    for (path, bytes) in [
        (
            "metadata/2.snapshot.json",
            &one.files["metadata/1.snapshot.json"],
        ),
        (
            "metadata/2.targets.json",
            &one.files["metadata/1.targets.json"],
        ),
    ] {
        let mut mixed = two.clone();
        mixed.files.insert(path.into(), bytes.clone());
        let (_place, fresh) = device();
        let error = run(&fresh, &mixed, Some(&root), |_| {}).unwrap_err();
        assert!(error.is_refusal(), "{error}");
    }
    let index = |server: &Server| {
        let found = server
            .files
            .iter()
            .filter(|(path, _)| path.ends_with(".index.json"));
        found
            .map(|(path, bytes)| (path.clone(), bytes.clone()))
            .collect::<Vec<_>>()
    };
    let mut mixed = two.clone();
    for (path, _) in index(&two) {
        mixed.files.insert(path, index(&one)[0].1.clone());
    }
    let (_place, fresh) = device();
    let error = run(&fresh, &mixed, Some(&root), |_| {}).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    // A stranger's repository, whole and well signed.
    let stranger = Publisher::new();
    stranger.release(3);
    let error = plain(&store, &stranger).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert_eq!(store.current().unwrap().manifest.version, 2);
    assert!(matches!(
        run(&store, &two, None, |_| {}).unwrap(),
        Outcome::Current { version: 2, .. }
    ));
}

#[test]
fn another_model_is_refused() {
    let publisher = Publisher::new();
    publisher.release(1);
    let (other, signatures) = publisher.bundle("acme/other", 5, &[&publisher.release]);
    publisher
        .publish(|publication| publication.bundle = Some((leak(other), leak_all(signatures))))
        .unwrap();
    let (_place, store) = device();
    let root = publisher.root();
    let server = Server::of(&publisher.repository());
    let error = run(&store, &server, Some(&root), |_| {}).unwrap_err();
    assert!(error.to_string().contains("name one of them"), "{error}");
    assert_eq!(
        installed(run(&store, &server, None, |update| update.name =
            Some("acme/helper")))
        .0,
        1
    );
    refused(
        run(&store, &server, None, |update| {
            update.name = Some("acme/other")
        }),
        "this store holds",
    );
    let error = run(&store, &server, None, |update| {
        update.name = Some("acme/none")
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("acme/helper, acme/other"),
        "{error}"
    );
}

fn leak(path: PathBuf) -> &'static Path {
    Box::leak(path.into_boxed_path())
}

fn leak_all(paths: Vec<PathBuf>) -> &'static [PathBuf] {
    Box::leak(paths.into_boxed_slice())
}

#[test]
fn the_policy_asks_for_several_keys_and_forgets_revoked_ones() {
    let publisher = Publisher::new();
    let keys = [key(), key(), key()];
    let policy = |revoked: usize, expires: Option<&str>| {
        let keys: serde_json::Map<String, serde_json::Value> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| {
                let mut value =
                    serde_json::json!({ "public": key.public().to_pem(), "revoked": i == revoked });
                if let (1, Some(expires)) = (i, expires) {
                    value["expires"] = expires.into();
                }
                (format!("k{i}"), value)
            })
            .collect();
        let text = serde_json::json!({
            "format": "ondine-trust-1",
            "keys": keys,
            "rules": [{ "models": "acme/*", "keys": ["k0", "k1", "k2"], "threshold": 2 }],
        });
        Trust::parse(text.to_string().as_bytes()).unwrap()
    };
    let release = |number: u64, signers: &[usize], trust: Option<Trust>| {
        let signers: Vec<&PrivateKey> = signers.iter().map(|i| &keys[*i]).collect();
        let (bundle, signatures) = publisher.bundle("acme/helper", number, &signers);
        publisher.publish(|publication| {
            publication.bundle = Some((leak(bundle), leak_all(signatures)));
            publication.trust = trust;
        })
    };
    let (_place, store) = device();
    assert!(
        release(1, &[0], Some(policy(9, None))).is_err(),
        "one of two is not enough"
    );
    assert!(
        release(1, &[0, 0], Some(policy(9, None))).is_err(),
        "one key twice is not two"
    );
    release(1, &[0, 2], Some(policy(9, None))).unwrap();
    assert_eq!(installed(plain(&store, &publisher)).0, 1);
    store.mark_healthy().unwrap();
    release(2, &[0, 2], None).unwrap();
    // The publisher revokes a key after it has signed: the release is no longer installed.
    publisher
        .publish(|publication| publication.trust = Some(policy(2, None)))
        .unwrap();
    refused(plain(&store, &publisher), "key \"k2\" was revoked");
    release(3, &[0, 1], None).unwrap();
    publisher
        .publish(|publication| publication.trust = Some(policy(2, Some("2026-01-01T00:00:00Z"))))
        .unwrap();
    refused(plain(&store, &publisher), "key \"k1\" has expired");
    publisher
        .publish(|publication| publication.trust = Some(policy(2, None)))
        .unwrap();
    assert_eq!(installed(plain(&store, &publisher)).0, 3);
}

#[test]
fn keys_are_rotated_by_the_root() {
    let publisher = Publisher::new();
    publisher.release(1);
    let first_root = publisher.root();
    let (_place, store) = device();
    assert_eq!(installed(plain(&store, &publisher)).0, 1);
    store.mark_healthy().unwrap();
    let (new_root, new_release) = (key(), key());
    publisher
        .publish(|publication| {
            publication.rotate = Some(Keys {
                root: Box::leak(Box::new([new_root])),
                release: Box::leak(Box::new([new_release])),
                ..Keys::default()
            });
        })
        .unwrap();
    assert!(publisher.repository().join("metadata/2.root.json").exists());
    let stolen = Server::of(&publisher.repository());
    assert!(matches!(
        plain(&store, &publisher).unwrap(),
        Outcome::Current { version: 1, .. }
    ));
    // The old keys no longer sign anything.
    let (bundle, signatures) = publisher.bundle("acme/helper", 2, &[&publisher.release]);
    let error = publisher
        .publish(|publication| publication.bundle = Some((leak(bundle), leak_all(signatures))))
        .unwrap_err();
    assert!(
        error.to_string().contains("devices would refuse"),
        "{error}"
    );
    // Metadata signed by the revoked key, put in by hand.
    let forger = Publisher {
        place: tempfile::tempdir().unwrap(),
        ..publisher
    };
    forger.release(2);
    let mut forged = Server::of(&forger.repository());
    forged.files.insert(
        "metadata/2.root.json".into(),
        stolen.files["metadata/2.root.json"].clone(),
    );
    forged
        .files
        .insert("metadata/1.root.json".into(), first_root.clone());
    let (_place, fresh) = device();
    refused(run(&fresh, &forged, Some(&first_root), |_| {}), "threshold");
    refused(run(&store, &forged, None, |_| {}), "threshold");
}

#[test]
fn rollouts_grow_and_releases_can_be_withdrawn() {
    let publisher = Publisher::new();
    publisher.release(1);
    publisher.release(2);
    publisher
        .publish(|publication| publication.rollout = Some((2, 3000)))
        .unwrap();
    let server = Server::of(&publisher.repository());
    let root = publisher.root();
    let share = (0..1000)
        .filter(|i| bucket(&format!("device {i}"), "acme/helper", 2) < 3000)
        .count();
    assert!((250..350).contains(&share), "{share}");
    let outside = (0..)
        .map(|i| format!("device {i}"))
        .find(|device| (3000..4000).contains(&bucket(device, "acme/helper", 2)))
        .unwrap();
    let (_place, store) = device();
    let mine = |store: &Store<Disk>, server: &Server| {
        run(store, server, Some(&root), |update| {
            update.device = Some(&outside)
        })
    };
    assert_eq!(installed(mine(&store, &server)).0, 1);
    store.mark_healthy().unwrap();
    assert!(matches!(
        mine(&store, &server).unwrap(),
        Outcome::Current {
            version: 1,
            waiting: Some(2),
            ..
        }
    ));
    // The kill switch holds back what the rollout would let through.
    publisher
        .publish(|publication| publication.rollout = Some((0, 10_000)))
        .unwrap();
    publisher
        .publish(|publication| publication.halt = Some(true))
        .unwrap();
    let server = Server::of(&publisher.repository());
    assert!(matches!(
        mine(&store, &server).unwrap(),
        Outcome::Current {
            version: 1,
            halted: true,
            ..
        }
    ));
    publisher
        .publish(|publication| publication.halt = Some(false))
        .unwrap();
    let server = Server::of(&publisher.repository());
    assert_eq!(installed(mine(&store, &server)).0, 2);
    store.mark_healthy().unwrap();
    publisher
        .publish(|publication| publication.withdraw = Some(2))
        .unwrap();
    let server = Server::of(&publisher.repository());
    assert!(matches!(
        mine(&store, &server).unwrap(),
        Outcome::RolledBack { from: 2, to: 1 }
    ));
    assert_eq!(model(&store), Publisher::weights(1));
    publisher
        .publish(|publication| publication.withdraw = Some(1))
        .unwrap();
    let server = Server::of(&publisher.repository());
    refused(mine(&store, &server), "withdrawn");
    assert_eq!(
        model(&store),
        Publisher::weights(1),
        "a device is never left without a model"
    );
    publisher.release(3);
    let server = Server::of(&publisher.repository());
    assert_eq!(installed(mine(&store, &server)).0, 3);
}

#[test]
fn a_failed_self_test_and_damage_leave_a_working_model() {
    let publisher = Publisher::new();
    publisher.release(1);
    let (place, store) = device();
    assert_eq!(installed(plain(&store, &publisher)).0, 1);
    store.mark_healthy().unwrap();
    publisher.release(2);
    let server = Server::of(&publisher.repository());
    refused(
        run(&store, &server, None, |update| {
            update.self_test = &|_| Err("slow".into())
        }),
        "slow",
    );
    assert_eq!(model(&store), Publisher::weights(1));
    // What was fetched is here: nothing is fetched again.
    server.log.lock().unwrap().clear();
    assert_eq!(installed(run(&store, &server, None, |_| {})), (2, 0));
    store.mark_healthy().unwrap();
    assert!(server.blobs() < 6000);
    // Bits rot: the older one runs, and the next update mends the newer.
    let current = store.current().unwrap();
    let file = current
        .manifest
        .files
        .iter()
        .find(|file| file.role == Role::Model)
        .unwrap();
    let path = place.path().join("objects").join(file.blake3.to_hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[17] ^= 4;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(model(&store), Publisher::weights(1));
    assert_eq!(installed(run(&store, &server, None, |_| {})).0, 2);
    assert_eq!(model(&store), Publisher::weights(2));
}

#[test]
fn a_wrong_delta_is_not_the_end() {
    let publisher = Publisher::new();
    publisher.release(1);
    let (_place, store) = device();
    assert_eq!(installed(plain(&store, &publisher)).0, 1);
    store.mark_healthy().unwrap();
    let before = Server::of(&publisher.repository());
    publisher.release(2);
    let mut server = Server::of(&publisher.repository());
    for (path, bytes) in &mut server.files {
        let is_new = path.starts_with("blobs/") && !before.files.contains_key(path);
        if is_new && bytes.len() < 6000 && !bytes.starts_with(b"{") {
            bytes[40] ^= 1;
        }
    }
    let failed = std::cell::Cell::new(false);
    let happening = |happening: Happening<'_>| {
        if matches!(happening, Happening::DeltaFailed(_)) {
            failed.set(true);
        }
    };
    assert_eq!(
        installed(run(&store, &server, None, |update| update.happening =
            &happening))
        .0,
        2
    );
    assert!(failed.get());
    assert_eq!(model(&store), Publisher::weights(2));
}

#[test]
fn one_update_at_a_time() {
    let publisher = Publisher::new();
    publisher.release(1);
    let (place, store) = device();
    let other = Store::open(Disk, place.path(), &Limits::default()).unwrap();
    let root = publisher.root();
    let server = Server::of(&publisher.repository());
    let busy = |_: &crate::store::Installed| {
        let error = plain(&other, &publisher).unwrap_err();
        assert!(
            error.to_string().contains("another update is running"),
            "{error}"
        );
        // The state can be read all the while.
        assert!(other.status().unwrap().current.is_none());
        Ok(())
    };
    assert_eq!(
        installed(run(&store, &server, Some(&root), |update| update
            .self_test =
            &busy))
        .0,
        1
    );
}

/// Every point at which the power can fail during an update that fetches metadata and a delta, several times each with other
/// losses: dropped, torn and reordered writes.
#[test]
fn no_power_cut_during_an_update_costs_the_model() {
    let publisher = Publisher::new();
    publisher.release(1);
    let root = publisher.root();
    let place = Path::new("/store");
    let open = |files: Simulated| Store::open(files, place, &Limits::default()).unwrap();
    let base = Simulated::default();
    let store = open(base.clone());
    assert_eq!(installed(plain(&store, &publisher)).0, 1);
    store.mark_healthy().unwrap();
    let before = base.0.lock().unwrap().clone();
    publisher.release(2);
    let two = Server::of(&publisher.repository());
    publisher.release(3);
    let three = Server::of(&publisher.repository());

    let all = |files: Simulated, server: &Server| -> Result<(), ReleaseError> {
        let store = Store::open(files, place, &Limits::default())?;
        run(&store, server, Some(&root), |_| {})?;
        store.start()?;
        store.mark_healthy()?;
        store.collect_garbage()?;
        Ok(())
    };
    let whole = resumed(&before, None);
    all(whole.clone(), &two).unwrap();
    let operations = whole.0.lock().unwrap().operations;
    assert!(operations > 60, "{operations}");
    let wanted: usize = std::env::var("ONDINE_CRASH_STATES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000);
    let each = wanted.div_ceil(operations);
    let mut random = Random(3);
    let (mut states, mut seen) = (0, [0; 4]);
    for power in 0..=operations {
        let running = resumed(&before, Some(power));
        let ended = all(running.clone(), &two);
        assert_eq!(ended.is_err(), power < operations, "{power}: {ended:?}");
        for state in 0..each {
            let crashed = running.0.lock().unwrap().crash(&mut random);
            let files = Simulated(Arc::new(Mutex::new(crashed)));
            let store = open(files.clone());
            let version = store.current().unwrap().manifest.version;
            assert!(version == 1 || version == 2, "{version}");
            // Starting reads every byte.
            let bytes = model(&store);
            let version = store.current().unwrap().manifest.version;
            assert_eq!(bytes, Publisher::weights(version));
            seen[version as usize] += 1;
            states += 1;
            // The next update completes, from every point at which the power failed.
            if state % 16 == 0 {
                all(files.clone(), &three).unwrap();
                assert_eq!(model(&open(files)), Publisher::weights(3));
            }
        }
    }
    assert!(states >= wanted, "{states}");
    assert!(seen[1] > states / 10 && seen[2] > states / 20, "{seen:?}");
}
