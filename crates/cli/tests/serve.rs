//! `ondine serve` as its users meet it: the official clients, and a browser. Skipped, and said so, without a real model, Python
//! packages or a browser.

mod support;

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::{ondine, real_model, run, tiny_model};

/// A server that ends with the test.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn start(arguments: &[&str]) -> Self {
        let mut command = ondine(&["serve", "--listen", "127.0.0.1:0", "--json"]);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        let told: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        Served {
            url: told["url"].as_str().expect("a URL").to_owned(),
            child,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_official_clients_run_their_features() {
    let Some(model) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let Some(python) = python() else { return };
    let server = Served::start(&["-m", &model.display().to_string()]);
    for client in ["openai_client", "ollama_client", "langchain_client"] {
        let script = here("clients").join(format!("{client}.py"));
        let output = Command::new(&python)
            .arg(script)
            .args([server.url.as_str(), "smollm2-135m-instruct"])
            .env("LANGSMITH_TRACING", "false")
            .output()
            .expect("Python starts");
        assert!(
            output.status.success(),
            "{client}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(model) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let place = target().join("serve-page");
    let output = Command::new("bash")
        .arg(here("page/prepare.sh"))
        .arg(&place)
        .output();
    let prepared = output.as_ref().is_ok_and(|output| output.status.success());
    if !prepared {
        skipped("the page was not tried: npm's playwright-core and chromium are needed");
        return;
    }
    let model = model.display().to_string();
    let directory = tempfile::tempdir().expect("a place");
    let other = tiny_model(directory.path(), "llama");
    let server = Served::start(&["-m", &model, "-m", &other]);
    let output = Command::new("node")
        .arg(here("page/page.mjs"))
        .arg(&server.url)
        .arg(&place)
        .output()
        .expect("Node starts");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn who_must_not_listen_is_refused() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    run(&["serve", "-m", &model, "--listen", "0.0.0.0:0"]).assert_fails_with(3, "--token");
    run(&["serve", "-m", &model, "--token", " "]).assert_fails_with(2, "token");
    run(&["serve", "-m", &model, "-m", &model]).assert_fails_with(2, "two models");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    run(&["serve", "-m", &model, "--listen", &address]).assert_fails_with(1, "taken");
}

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// Where this build puts what it makes.
fn target() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_ondine"));
    binary
        .parent()
        .and_then(Path::parent)
        .expect("a directory")
        .to_owned()
}

/// The Python that has the clients.
fn python() -> Option<PathBuf> {
    let output = Command::new("bash")
        .arg(here("clients/venv.sh"))
        .arg(target())
        .output()
        .ok()?;
    if !output.status.success() {
        skipped(
            "the clients were not tried: Python and its packages of tests/clients/requirements.txt are needed",
        );
        return None;
    }
    Some(PathBuf::from(
        String::from_utf8_lossy(&output.stdout).trim(),
    ))
}

fn skipped(what: &str) {
    // Standard error itself: the harness holds back what a passing test prints with `println!`.
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}
