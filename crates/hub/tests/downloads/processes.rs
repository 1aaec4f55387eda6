//! Several processes with one cache. The other processes are this test program again, told to run `child` alone.

use crate::machine::{Log, Machine, model_lines, noise, settings_in};
use crate::server::{Response, Server};
use ondine_hub::{Hub, HubError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DIRECTORY: &str = "ONDINE_TEST_CHILD_DIRECTORY";
const LENGTH: usize = 600_000;

/// What another process does: pull `m` in the directory that the environment names. Run by the tests below only; by hand,
/// `cargo test -p ondine-hub --test downloads -- --ignored --exact processes::child` does nothing without that variable.
#[test]
#[ignore = "run by other tests in a process of its own"]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let hub = Hub::new(settings_in(&directory)).expect("the registry is right");
    if let Err(error) = hub.pull("m", false, &Log::default()) {
        // Not `println!`, which the harness would hold back.
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "child: {error}");
        std::process::exit(1);
    }
}

/// The command that runs `child` for the machine in `directory`.
pub fn child_command(directory: &Path) -> Vec<String> {
    let program = std::env::current_exe().expect("this program has a path");
    let variable = format!("{DIRECTORY}={}", directory.display());
    let words = ["--ignored", "--exact", "--nocapture", "processes::child"];
    let mut command = vec!["env".to_string(), variable, program.display().to_string()];
    command.extend(words.map(str::to_string));
    command
}

fn spawn(machine: &Machine) -> Child {
    let command = child_command(machine.directory.path());
    Command::new(&command[0])
        .args(&command[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts")
}

#[cfg(unix)]
#[test]
fn two_processes_fetch_one_model_once() {
    let content = noise(LENGTH, 1);
    let body = content.clone();
    let server = Server::start(move |request, _| {
        Response::ranged(request, &body, "\"x\"").pausing_at(100_000, Duration::from_millis(500))
    });
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    let mut children = [spawn(&machine), spawn(&machine)];
    for child in &mut children {
        assert!(child.wait().expect("the child ends").success());
    }
    assert_eq!(server.requests().len(), 1);
    assert!(machine.pull(&content).0.was_here);
}

#[cfg(unix)]
#[test]
fn a_killed_process_leaves_what_the_next_one_needs() {
    let content = noise(LENGTH, 2);
    let body = content.clone();
    let server = Server::start(move |request, before| {
        let answer = Response::ranged(request, &body, "\"x\"");
        if before == 0 {
            answer.pausing_at(400_000, Duration::from_secs(30))
        } else {
            answer
        }
    });
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    let mut child = spawn(&machine);
    let start = Instant::now();
    while !machine.files().iter().any(|name| name.ends_with(".part"))
        || std::fs::metadata(machine.part()).map_or(0, |metadata| metadata.len()) < 200_000
    {
        assert!(start.elapsed().as_secs() < 60, "the child fetches nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("the child can be ended");
    child.wait().expect("the child ends");
    // No lock is left behind, and the bytes that came are not fetched again.
    machine.pull(&content);
    let start = server.requests()[1].range_start();
    assert!(start.is_some_and(|start| start >= 200_000), "{start:?}");
}

#[test]
fn a_lock_that_is_never_given_back_is_reported() {
    let content = noise(LENGTH, 3);
    let body = content.clone();
    let server =
        Server::start(move |_, _| Response::whole(&body).pausing_at(1000, Duration::from_secs(2)));
    let mut machine = Machine::with_content(&content, &[server.url("/m")]);
    let slow = machine.hub();
    let worker = std::thread::spawn(move || slow.pull("m", false, &Log::default()).is_ok());
    let start = Instant::now();
    while server.requests().is_empty() {
        assert!(start.elapsed().as_secs() < 60, "nothing is fetched");
        std::thread::sleep(Duration::from_millis(5));
    }
    machine.settings.timeouts.lock = Duration::from_millis(200);
    let (result, log) = machine.try_pull();
    assert!(matches!(result, Err(HubError::Locked { .. })), "{result:?}");
    assert!(log.has("waiting"));
    assert!(worker.join().expect("no panic"));
}

#[test]
fn a_name_with_other_lines_is_another_model() {
    let machine = Machine::new();
    let file = machine.directory.path().join("a");
    std::fs::write(&file, b"one").unwrap();
    let source = [format!("file:{}", file.display())];
    machine.set_model(&model_lines(b"one", &source));
    machine.pull(b"one");
    std::fs::write(&file, b"two").unwrap();
    machine.set_model(&model_lines(b"two", &source));
    assert!(!machine.pull(b"two").0.was_here);
}
