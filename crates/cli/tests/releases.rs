//! Publishing releases and updating a device, as users do.
//!
//! Long, since every story begins with the same publisher and device.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use support::{Ran, ondine, run};

/// A publisher with keys and bundles of some releases of one tiny model, and a device.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place {
            directory: tempfile::tempdir().expect("a place"),
        };
        for key in ["root", "release"] {
            assert_eq!(run(&["keygen", "-o", &place.at(key)]).code, 0);
        }
        place
    }

    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A signed bundle of release `number`: other weights, or the same with another template.
    fn bundle(&self, number: u64) -> String {
        let model = self.at("model.gguf");
        let seed = if number < 3 { 1 } else { number };
        let tiny = ondine_fixtures::Tiny::new("llama", seed);
        let mut bytes = tiny.gguf();
        // Releases 1 and 2 differ in one weight only.
        if number == 2 {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        fs::write(&model, bytes).expect("written");
        let bundle = self.at(&format!("helper-{number}"));
        let release = number.to_string();
        ok(&[
            "pack",
            &model,
            "--name",
            "acme/helper",
            "--release",
            &release,
            "-o",
            &bundle,
        ]);
        let signature = format!("{bundle}.sig");
        ok(&[
            "sign",
            &bundle,
            "--private-key",
            &self.at("release.key"),
            "--signature",
            &signature,
        ]);
        bundle
    }

    fn publish(&self, number: u64) {
        let bundle = self.bundle(number);
        let signature = format!("{bundle}.sig");
        let (to, root, release) = (self.at("site"), self.at("root.key"), self.at("release.key"));
        let mut arguments = vec!["publish", &bundle, "--signature", &signature, "--to", &to];
        arguments.extend(["--root-key", &root, "--release-key", &release]);
        let olds: Vec<String> = (1..number)
            .map(|old| self.at(&format!("helper-{old}")))
            .collect();
        for old in olds.iter().filter(|old| Path::new(old).exists()) {
            arguments.extend(["--delta-from", old]);
        }
        ok(&arguments);
    }

    fn change(&self, arguments: &[&str]) {
        let (to, release) = (self.at("site"), self.at("release.key"));
        let mut all = vec!["publish", "--to", &to, "--release-key", &release];
        all.extend(arguments);
        ok(&all);
    }

    fn update(&self, from: &str) -> Ran {
        let root = self.at("site/metadata/1.root.json");
        run(&[
            "update",
            "--from",
            from,
            "--root",
            &root,
            "--store",
            &self.at("store"),
            "--json",
        ])
    }

    fn update_command(&self, from: &str, store: &str) -> std::process::Command {
        let root = self.at("site/metadata/1.root.json");
        ondine(&["update", "--from", from, "--root", &root, "--store", store])
    }

    fn version(&self) -> u64 {
        let status = ok(&["status", "--check", "--store", &self.at("store"), "--json"]).json();
        status["current"]["version"].as_u64().unwrap_or(0)
    }

    /// Asks the installed model.
    fn ask(&self) -> Ran {
        let store = self.at("store");
        run(&[
            "run", "-m", &store, "Hi", "--raw", "-n", "3", "--temp", "0", "--ctx", "64", "--json",
        ])
    }
}

fn ok(arguments: &[&str]) -> Ran {
    let ran = run(arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
    ran
}

/// The last line: notes come before it.
fn refused(ran: &Ran, code: i32, part: &str) {
    assert_eq!(ran.code, code, "{}", ran.err);
    assert!(
        ran.err.lines().last().unwrap_or_default().contains(part),
        "{}",
        ran.err
    );
}

#[test]
fn a_device_follows_its_publisher() {
    let place = Place::new();
    place.publish(1);
    let site = place.at("site");
    refused(
        &run(&["status", "--store", &place.at("store")]),
        1,
        "no model is installed",
    );
    let first = place.update(&site);
    assert_eq!(first.code, 0, "{}", first.err);
    assert_eq!(first.json()["outcome"], "installed");
    let answer = place.ask();
    assert_eq!(answer.code, 0, "{}", answer.err);
    let status = ok(&["status", "--store", &place.at("store"), "--json"]).json();
    assert_eq!(status["state"], "healthy");
    assert_eq!(status["source"], site.as_str());

    place.publish(2);
    let second = ok(&["update", "--store", &place.at("store"), "--json"]).json();
    assert_eq!(second["version"], 2);
    assert!(second["received_bytes"].as_u64() < Some(300), "{second}");
    assert_eq!(place.ask().code, 0);
    assert_eq!(place.version(), 2);
    ok(&["rollback", "--store", &place.at("store")]);
    assert_eq!(place.version(), 1);
    refused(
        &run(&["rollback", "--store", &place.at("store")]),
        1,
        "no earlier version",
    );
    ok(&["gc", "--store", &place.at("store")]);

    place.publish(3);
    place.change(&["--rollout", "0"]);
    let waiting = place.update(&site).json();
    assert_eq!(
        (waiting["version"].as_u64(), waiting["waiting"].as_u64()),
        (Some(1), Some(3))
    );
    place.change(&["--rollout", "100"]);
    assert_eq!(place.update(&site).json()["version"], 3);
    assert_eq!(place.ask().code, 0);
    place.change(&["--withdraw", "3"]);
    assert_eq!(place.update(&site).json()["outcome"], "rolled_back");
    assert_eq!(place.version(), 1);
    // A stranger's repository is not believed.
    let stranger = Place::new();
    stranger.publish(4);
    refused(
        &run(&[
            "update",
            "--from",
            &stranger.at("site"),
            "--store",
            &place.at("store"),
        ]),
        3,
        "refused",
    );
    assert_eq!(place.ask().code, 0);
}

#[test]
fn a_release_that_never_answers_is_undone() {
    let place = Place::new();
    place.publish(1);
    let site = place.at("site");
    assert_eq!(place.update(&site).code, 0);
    assert_eq!(place.ask().code, 0);
    place.publish(2);
    assert_eq!(place.update(&site).code, 0);
    // It starts, and fails before it answers; twice.
    let store = place.at("store");
    let broken = || {
        run(&[
            "run",
            "-m",
            &store,
            "Hi",
            "--raw",
            "--json-schema",
            "/nowhere",
        ])
    };
    assert_eq!(broken().code, 1);
    assert_eq!(place.version(), 2);
    assert_eq!(broken().code, 1);
    assert_eq!(place.version(), 1);
    let again = place.update(&site).json();
    assert_eq!(
        again["outcome"], "current",
        "a release that failed is not offered again"
    );
}

#[test]
fn sealed_releases_run_and_stay_sealed() {
    let place = Place::new();
    ok(&["keygen", "--kind", "seal", "-o", &place.at("device")]);
    ok(&["keygen", "--kind", "seal", "-o", &place.at("stranger")]);
    let plain = support::tiny_model(place.directory.path(), "llama");
    let sealed = place.at("model.gguf.sealed");
    ok(&[
        "seal",
        &plain,
        "--recipients-file",
        &place.at("device.pub"),
        "-o",
        &sealed,
    ]);
    let ask = |model: &str, identity: &str| {
        run(&[
            "run",
            "-m",
            model,
            "--identity",
            &place.at(identity),
            "Hi",
            "--raw",
            "-n",
            "3",
            "--temp",
            "0",
            "--ctx",
            "64",
            "--json",
        ])
    };
    let wanted = run(&[
        "run", "-m", &plain, "Hi", "--raw", "-n", "3", "--temp", "0", "--ctx", "64", "--json",
    ])
    .json();
    assert_eq!(ask(&sealed, "device.key").json()["text"], wanted["text"]);
    refused(&ask(&sealed, "stranger.key"), 3, "identities");
    refused(&run(&["run", "-m", &sealed, "Hi"]), 2, "--identity");

    // As a bundle, and installed.
    let bundle = place.at("helper-1");
    ok(&[
        "pack",
        &sealed,
        "--name",
        "acme/helper",
        "--release",
        "1",
        "-o",
        &bundle,
    ]);
    let signature = place.at("helper-1.sig");
    ok(&[
        "sign",
        &bundle,
        "--private-key",
        &place.at("release.key"),
        "--signature",
        &signature,
    ]);
    assert_eq!(ask(&bundle, "device.key").json()["text"], wanted["text"]);
    ok(&[
        "publish",
        &bundle,
        "--signature",
        &signature,
        "--to",
        &place.at("site"),
        "--root-key",
        &place.at("root.key"),
        "--release-key",
        &place.at("release.key"),
    ]);
    let update = |identity: &str| {
        run(&[
            "update",
            "--from",
            &place.at("site"),
            "--root",
            &place.at("site/metadata/1.root.json"),
            "--store",
            &place.at("store"),
            "-i",
            &place.at(identity),
        ])
    };
    refused(&update("stranger.key"), 3, "identities");
    assert_eq!(update("device.key").code, 0);
    assert_eq!(
        ask(&place.at("store"), "device.key").json()["text"],
        wanted["text"]
    );
    // Sealed again for the same recipient, by anybody: another header than the one that was signed.
    let forged = place.at("forged");
    ok(&[
        "seal",
        &plain,
        "--recipients-file",
        &place.at("device.pub"),
        "-o",
        &forged,
    ]);
    fs::copy(&forged, place.at("helper-1/model.gguf.sealed")).expect("copied");
    refused(&ask(&bundle, "device.key"), 3, "manifest");
    // One flipped bit in the weights.
    let mut bytes = fs::read(&sealed).expect("there");
    let middle = bytes.len() - 40;
    bytes[middle] ^= 1;
    fs::write(&sealed, bytes).expect("written");
    refused(&ask(&sealed, "device.key"), 3, "was changed");
}

/// A web server on this machine that serves `root`, each answer as `behave` likes.
fn serve(
    root: PathBuf,
    behave: impl Fn(&str, usize, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (behave, count) = (Arc::new(behave), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (root, behave, count) = (root.clone(), behave.clone(), count.clone());
            thread::spawn(move || answer(stream, &root, &*behave, &count));
        }
    });
    address
}

fn answer(
    mut stream: TcpStream,
    root: &Path,
    behave: &dyn Fn(&str, usize, &mut TcpStream) -> bool,
    count: &AtomicUsize,
) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 || head.len() > 8192 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    if behave(&path, count.fetch_add(1, Ordering::Relaxed), &mut stream) {
        return None;
    }
    let Ok(bytes) = fs::read(root.join(&path)) else {
        return stream
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .ok();
    };
    let range = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("range: bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    let (status, from) = match range {
        Some(from) if from < bytes.len() => (
            format!(
                "206 Partial Content\r\ncontent-range: bytes {from}-{}/{}",
                bytes.len() - 1,
                bytes.len()
            ),
            from,
        ),
        _ => ("200 OK".into(), 0),
    };
    let body = &bytes[from..];
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}

#[test]
fn web_servers_good_and_bad() {
    let place = Place::new();
    place.publish(1);
    let site = PathBuf::from(place.at("site"));
    let say = |stream: &mut TcpStream, text: &str| {
        let _ = stream.write_all(text.as_bytes());
        true
    };
    // It redirects in a circle, says too much, sends too little, or breaks off every blob after some bytes.
    let circle = serve(site.clone(), move |path, _, stream| {
        say(
            stream,
            &format!(
                "HTTP/1.1 302 Found\r\nlocation: /{path}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            ),
        )
    });
    refused(&place.update(&circle), 1, "redirects in a row");
    let liar = serve(site.clone(), move |path, _, stream| {
        path.starts_with("blobs/")
            && say(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\nconnection: close\r\n\r\nabc",
            )
    });
    refused(&place.update(&liar), 1, "longer than");
    let old_tls = serve(site.clone(), move |_, _, stream| {
        say(
            stream,
            "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        )
    });
    refused(&place.update(&old_tls), 1, "500");
    assert!(run(&["status", "--store", &place.at("store"), "--json"]).json()["current"].is_null());
    let root = site.clone();
    let breaking = serve(site.clone(), move |path, count, stream| {
        let bytes = fs::read(root.join(path)).unwrap_or_default();
        // The first answer for each large file ends early; the next go on from there.
        if !path.starts_with("blobs/") || bytes.len() < 20_000 || count % 2 == 1 {
            return false;
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            bytes.len()
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&bytes[..bytes.len() / 3]);
        true
    });
    let through = place.update(&breaking);
    assert_eq!(through.code, 0, "{}", through.err);
    assert_eq!(place.version(), 1);
    assert_eq!(place.ask().code, 0);
    // Nobody is there any more: what is installed stays.
    refused(&place.update("http://127.0.0.1:9"), 1, "connection");
    assert_eq!(place.ask().code, 0);
    let mut offline = ondine(&["update", "--from", &breaking, "--store", &place.at("store")]);
    let output = offline
        .env("ONDINE_OFFLINE", "1")
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(1));
}

#[cfg(unix)]
#[test]
fn disks_that_are_full_or_closed() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.publish(1);
    assert_eq!(place.update(&place.at("site")).code, 0);
    assert_eq!(place.ask().code, 0);
    place.publish(3);
    // A limit on the size of files stands for a full disk: the write fails in the middle.
    let store = place.at("store");
    let script = format!(
        "ulimit -f 8; trap '' XFSZ; exec '{}' update --from '{}' --store '{store}'",
        env!("CARGO_BIN_EXE_ondine"),
        place.at("site")
    );
    let full = std::process::Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("it starts");
    let error = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(1), "{error}");
    assert!(
        error.contains("large") || error.contains("space"),
        "{error}"
    );
    assert_eq!(place.version(), 1);
    // Whoever may not write there is told so. Root may write anywhere, and is another user for this.
    let closed = fs::Permissions::from_mode(0o555);
    fs::set_permissions(place.at("store/work"), closed).expect("closed");
    let opened = fs::Permissions::from_mode(0o755);
    let _ = fs::set_permissions(place.directory.path(), opened.clone());
    let mut command = place.update_command(&place.at("site"), &store);
    if fs::write(format!("{}/can-write", place.at("store/work")), "").is_ok() {
        use std::os::unix::process::CommandExt;
        command.uid(65_534).gid(65_534);
    }
    // That user may not be allowed to run what was built here.
    match command.output() {
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{error}");
            assert!(error.contains("ermission"), "{error}");
        }
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: another user may not run the command ({error})"
            );
        }
    }
    fs::set_permissions(place.at("store/work"), opened).expect("opened");
    let _ = fs::remove_file(format!("{}/can-write", place.at("store/work")));
    assert_eq!(place.ask().code, 0);
    let after = place.update(&place.at("site"));
    assert_eq!(after.code, 0, "{}", after.err);
    assert_eq!(place.version(), 3);
}

/// A file system of its own that is too small, and one that may only be read. Skipped, and said so, where none can be mounted.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_without_room_and_one_that_is_read_only() {
    let place = Place::new();
    place.publish(1);
    copy(Path::new(&place.at("site")), Path::new(&place.at("site-1")));
    place.publish(3);
    let disk = place.at("disk");
    fs::create_dir(&disk).expect("made");
    let mount = |options: &str| {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs", &disk];
        std::process::Command::new("mount").args(arguments).output()
    };
    if !mount("size=32m").is_ok_and(|output| output.status.success()) {
        let _ = writeln!(std::io::stderr(), "skipped: no file system can be mounted");
        return;
    }
    let disk = Mounted(disk);
    let store = format!("{}/store", disk.0);
    let update = || {
        let mut command = place.update_command(&place.at("site"), &store);
        let output = command.output().expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), error)
    };
    let version = || {
        let status = ok(&["status", "--check", "--store", &store, "--json"]).json();
        status["current"]["version"].as_u64()
    };
    let remount = |options: &str| {
        let arguments = ["-o", options, &disk.0];
        let mut command = std::process::Command::new("mount");
        assert!(command.args(arguments).status().expect("mount").success());
    };
    let ask = || {
        run(&[
            "run", "-m", &store, "Hi", "--raw", "-n", "3", "--temp", "0", "--ctx", "64",
        ])
    };
    let older = place.update_command(&place.at("site-1"), &store).output();
    let older = older.expect("it starts");
    assert!(
        older.status.success(),
        "{}",
        String::from_utf8_lossy(&older.stderr)
    );
    assert_eq!(ask().code, 0);
    assert_eq!(version(), Some(1));
    // Something else fills the disk to the last page.
    let filler = format!("{}/filler", disk.0);
    let mut file = fs::File::create(&filler).expect("made");
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let (code, error) = update();
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("space"), "{error}");
    assert_eq!(version(), Some(1));
    fs::remove_file(&filler).expect("removed");
    remount("remount,ro");
    let (code, error) = update();
    assert_eq!(code, Some(1), "{error}");
    assert!(error.to_lowercase().contains("read-only"), "{error}");
    assert_eq!(
        ask().code,
        0,
        "the model answers from a disk that is read-only"
    );
    remount("remount,rw");
    let (code, error) = update();
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(version(), Some(3));
    assert_eq!(ask().code, 0);
}

/// Unmounts when dropped.
#[cfg(target_os = "linux")]
struct Mounted(String);

#[cfg(target_os = "linux")]
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

/// The installer is killed at system calls of an update that a tracer counts; after each, the model answers, and the next update
/// completes. `ONDINE_KILL_EVERY` says how many calls apart (1 is every one); skipped, and said so, without `strace`.
#[cfg(target_os = "linux")]
#[test]
fn killed_at_any_system_call_a_device_still_answers() {
    let works = std::process::Command::new("strace")
        .args(["-o", "/dev/null", "-e", "trace=fsync", "true"])
        .status();
    if !works.is_ok_and(|status| status.success()) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: strace is not installed, or may not trace here"
        );
        return;
    }
    let place = Place::new();
    place.publish(1);
    assert_eq!(place.update(&place.at("site")).code, 0);
    assert_eq!(place.ask().code, 0);
    place.publish(2);
    let store = place.at("store");
    let before = place.at("before");
    copy(Path::new(&store), Path::new(&before));
    // Every call that can change the disk.
    let calls = "openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,flock";
    let log = place.at("log");
    let traced = |inject: Option<usize>| {
        let mut command = std::process::Command::new("strace");
        command.args(["-f", "-o", &log, "-e", &format!("trace={calls}")]);
        if let Some(number) = inject {
            command.args(["-e", &format!("inject={calls}:signal=KILL:when={number}")]);
        }
        command.args([
            env!("CARGO_BIN_EXE_ondine"),
            "update",
            "--from",
            &place.at("site"),
            "--store",
            &store,
        ]);
        command.output().expect("it starts")
    };
    assert!(traced(None).status.success());
    let all = fs::read_to_string(&log).expect("a log");
    let total = all.lines().filter(|line| line.contains('(')).count();
    assert!(total > 60, "{total}");
    let every = std::env::var("ONDINE_KILL_EVERY")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(total / 12);
    let (mut old, mut new, mut killed) = (0, 0, 0);
    for number in (1..=total).step_by(every) {
        fs::remove_dir_all(&store).expect("removed");
        copy(Path::new(&before), Path::new(&store));
        killed += usize::from(!traced(Some(number)).status.success());
        match place.version() {
            1 => old += 1,
            2 => new += 1,
            other => panic!("release {other} after call {number}"),
        }
        let answer = place.ask();
        assert_eq!(answer.code, 0, "after call {number}: {}", answer.err);
        let next = place.update(&place.at("site"));
        assert_eq!(next.code, 0, "after call {number}: {}", next.err);
        assert_eq!(place.version(), 2, "after call {number}");
    }
    assert!(killed > 5, "{killed}");
    let _ = writeln!(
        std::io::stderr(),
        "{total} system calls, killed {killed} times: {old} times the old release, {new} times the new"
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("there") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// The commands of docs/delivery.md, one after the other, on tiny models.
#[cfg(unix)]
#[test]
fn the_walk_of_the_documentation_works() {
    let page = include_str!("../../../docs/delivery.md");
    let walk = page
        .split("```sh\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a walk");
    assert!(walk.lines().count() <= 40);
    let directory = tempfile::tempdir().expect("a place");
    for number in [1, 2] {
        let bytes = ondine_fixtures::Tiny::new("llama", number).gguf();
        fs::write(directory.path().join(format!("model-{number}.gguf")), bytes).expect("written");
    }
    fs::write(directory.path().join("LICENCE"), "free").expect("written");
    let mut ran = 0;
    for line in walk.lines().filter(|line| line.starts_with("ondine ")) {
        let command = line.replacen("ondine", env!("CARGO_BIN_EXE_ondine"), 1);
        let output = std::process::Command::new("sh")
            .args(["-c", &command])
            .current_dir(directory.path())
            .env("ONDINE_DEVICE", "a device")
            .stdin(std::process::Stdio::null())
            .output()
            .expect("it starts");
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        ran += 1;
    }
    assert!(ran > 15, "{ran}");
}

/// A registry of the distribution project, started for this test; skipped, and said so, without it.
#[test]
fn a_registry_holds_a_repository() {
    let port = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address")
        .port();
    let place = Place::new();
    let configuration = place.at("registry.yml");
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        place.at("registry")
    );
    fs::write(&configuration, text).expect("written");
    let started = std::process::Command::new("docker-registry")
        .args(["serve", &configuration])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(mut registry) = started else {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: docker-registry is not installed"
        );
        return;
    };
    let up = (0..100).any(|_| {
        thread::sleep(std::time::Duration::from_millis(100));
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let target = format!("oci://127.0.0.1:{port}/acme/helper:stable");
    let checked = std::panic::catch_unwind(|| {
        assert!(up, "the registry does not answer");
        place.publish(1);
        place.change(&["--push", &target]);
        assert_eq!(place.update(&target).json()["version"], 1);
        assert_eq!(place.ask().code, 0);
        place.publish(2);
        let current = place.update(&target).json();
        assert_eq!(
            current["outcome"], "current",
            "nothing is visible before it is sent"
        );
        place.change(&["--push", &target]);
        let second = place.update(&target).json();
        assert_eq!(second["version"], 2);
        assert!(second["received_bytes"].as_u64() < Some(300), "{second}");
        refused(
            &place.update(&format!("oci://127.0.0.1:{port}/acme/other:stable")),
            1,
            "no such name",
        );
    });
    let _ = registry.kill();
    let _ = registry.wait();
    if let Err(panic) = checked {
        std::panic::resume_unwind(panic);
    }
}
