//! The cheapest way to a release, interrupted downloads, and bad servers.

use super::*;

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
