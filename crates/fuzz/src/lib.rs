//! Everything that reads outside bytes, as fuzz targets. A target takes any bytes and returns; a panic, a second of work or
//! a gigabyte of memory is a finding.
//!
//! Three things run them: `fuzz/` at the root, with libFuzzer; this crate's own program, which mutates the corpus without
//! feedback on any stable compiler; and this crate's test, which replays the corpus.
#![deny(unsafe_code)]

mod directory;
pub mod mutate;
mod targets;

use std::path::{Path, PathBuf};

pub use targets::TARGETS;

/// One parser, reached as a user's data reaches it.
pub struct Target {
    /// Name on the command line and of the folder in `corpus/`.
    pub name: &'static str,
    /// Reads the bytes and everything that can be asked of the result.
    pub run: fn(&[u8]),
    /// Words that mean something to the parser, for mutations.
    pub words: &'static [&'static str],
    /// Inputs that are right, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Runs the target of that name.
///
/// # Panics
/// If there is none of that name, or if the bytes are a finding.
pub fn run(name: &str, bytes: &[u8]) {
    let target = target(name).expect("a target of that name");
    (target.run)(bytes);
}

/// The committed inputs of a target.
pub fn corpus_directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

/// Every input in a directory, in the order of their names; nothing if it is not there.
///
/// # Errors
/// What reading a file answers.
pub fn read_inputs(directory: &Path) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    let read = |path: PathBuf| std::fs::read(&path).map(|bytes| (path, bytes));
    paths.into_iter().map(read).collect()
}
