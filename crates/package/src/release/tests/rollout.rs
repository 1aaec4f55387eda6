//! Releases that grow, fail, are withdrawn, or meet another update.

use super::*;

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
