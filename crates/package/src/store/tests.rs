//! Every crash of an installation, and what the store refuses.

use super::simulated::{Random, Simulated, resumed};
use super::*;
use crate::bundle::{Parent, Role};
use crate::path::BundlePath;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

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
            sealed_header: None,
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
        key: Some(Digest([0; 32])),
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
    let whole = resumed(&before, None);
    update(whole.clone(), &two).unwrap();
    let operations = whole.0.lock().unwrap().operations;
    assert!(operations > 25, "{operations}");

    let mut random = Random(1);
    let mut states = 0;
    let mut seen = [0; 4];
    for power in 0..=operations {
        let running = resumed(&before, Some(power));
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
