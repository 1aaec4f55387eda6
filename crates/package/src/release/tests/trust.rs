//! Metadata that is not what it should be, and who may sign.

use super::*;

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
