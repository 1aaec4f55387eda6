//! Running the command as a user does.
#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A command `ondine` that finds its models only where the test put them.
pub fn ondine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ondine"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What a command printed and how it ended.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// Exit code `code`, nothing on stdout, one line on stderr.
    pub fn assert_fails_with(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{}", self.err);
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.contains(part), "{}", self.err);
    }
}

pub fn run(arguments: &[&str]) -> Ran {
    ran(ondine(arguments).output().expect("it starts"))
}

pub fn run_with_input(arguments: &[&str], input: &str) -> Ran {
    let mut child = ondine(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A child that fails early does not read all.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("written");
    ran(output)
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// A real model of the directory that `ONDINE_TEST_MODELS` names; says what is skipped without it.
pub fn real_model(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("ONDINE_TEST_MODELS").map(PathBuf::from);
    let path = directory.map(|directory| directory.join(format!("{name}.gguf")));
    match path {
        Some(path) if path.is_file() => Some(path),
        _ => {
            // Standard error itself: the harness holds back what a passing test prints with `println!`.
            let _ = writeln!(
                std::io::stderr(),
                "skipped: {name}.gguf is not in the directory that ONDINE_TEST_MODELS names; ./test.sh gets it"
            );
            None
        }
    }
}

/// Writes a tiny model into `directory`.
pub fn tiny_model(directory: &Path, architecture: &'static str) -> String {
    let path = directory.join(format!("{architecture}.gguf"));
    std::fs::write(&path, ondine_fixtures::Tiny::new(architecture, 1).gguf()).expect("written");
    path.display().to_string()
}
