//! Every point at which the power can fail.

use super::*;

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
        for _ in 0..each {
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
            all(files.clone(), &three).unwrap();
            assert_eq!(model(&open(files)), Publisher::weights(3));
        }
    }
    assert!(states >= wanted, "{states}");
    assert!(seen[1] > states / 10 && seen[2] > states / 20, "{seen:?}");
}
