//! Runs fuzz targets on any stable compiler: mutations of the corpus, without feedback.
//!
//! ```sh
//! cargo run --release -p ondine-fuzz -- gguf --seconds 300
//! cargo run --release -p ondine-fuzz -- all --seconds 60
//! cargo run --release -p ondine-fuzz -- gguf path/to/an/input …     # these inputs only, in the open
//! cargo run --release -p ondine-fuzz -- gguf --write-seeds folder   # the target's seeds, for another fuzzer
//! ```
//!
//! A worker process runs the inputs, so that one which ends the process (memory, stack) is kept as well; each input is
//! written down before it is run. Findings go to `fuzz/artifacts/<target>/`. Exit code 1 if there is one.
#![deny(unsafe_code)]

mod allocator;

use ondine_fuzz::mutate::Mutator;
use ondine_fuzz::{TARGETS, Target, corpus_directory, read_inputs, target};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, exit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Bytes that a target may hold at a time, the corpus included.
const MEMORY: usize = 1 << 30;
/// Longest time for one input. Findings of this kind are confirmed by a second run, since the machine may have been busy.
const PATIENCE: Duration = Duration::from_secs(1);
const PANICKED: i32 = 70;
const TOO_SLOW: i32 = 71;

#[global_allocator]
static ALLOCATOR: allocator::Bounded = allocator::Bounded::new(MEMORY);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["--worker", name, seed, seconds, note] => work(name, seed, seconds, Path::new(note)),
        ["all", "--seconds", seconds] => run_all(seconds),
        [name, "--seconds", seconds] => find(name).and_then(|target| run(target, seconds)),
        [name, "--write-seeds", folder] => {
            find(name).and_then(|target| write_seeds(target, Path::new(folder)))
        }
        [name, ref inputs @ ..] if !inputs.is_empty() => {
            find(name).and_then(|target| replay(target, inputs))
        }
        _ => Err(usage()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn usage() -> String {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    format!(
        "usage: ondine-fuzz TARGET --seconds N | TARGET INPUT… | TARGET --write-seeds FOLDER | all --seconds N; targets: {}",
        names.join(" ")
    )
}

fn find(name: &str) -> Result<&'static Target, String> {
    target(name).ok_or_else(usage)
}

fn run_all(seconds: &str) -> Result<bool, String> {
    let mut clean = true;
    for target in TARGETS {
        clean &= run(target, seconds)?;
    }
    Ok(clean)
}

/// Starts workers until the time is over; true if nothing was found.
fn run(target: &Target, seconds: &str) -> Result<bool, String> {
    let seconds: u64 = seconds
        .parse()
        .map_err(|_| format!("'{seconds}' is no number of seconds"))?;
    let artifacts = artifacts_directory(target);
    std::fs::create_dir_all(&artifacts).map_err(text)?;
    let note = artifacts.join(format!(".current-{}", std::process::id()));
    let program = std::env::current_exe().map_err(text)?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(1, |time| time.as_nanos() as u64);
    let mut findings = 0;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let status = Command::new(&program)
            .args(["--worker", target.name, &seed.to_string()])
            .arg(left.as_secs().to_string())
            .arg(&note)
            .status()
            .map_err(text)?;
        if status.success() {
            break;
        }
        let input = std::fs::read(&note).map_err(text)?;
        let kind = match status.code() {
            Some(PANICKED) => "panic",
            Some(TOO_SLOW) => "slow",
            _ => "crash",
        };
        let path = artifacts.join(format!("{kind}-{:016x}", fingerprint(&input)));
        std::fs::write(&path, &input).map_err(text)?;
        if kind != "slow" || is_slow_again(&program, target, &path)? {
            findings += 1;
            println!("{}: {kind}: {}", target.name, path.display());
        } else {
            let _ = std::fs::remove_file(&path);
        }
        seed = seed.wrapping_add(1);
    }
    let _ = std::fs::remove_file(&note);
    println!("{}: {findings} findings in {seconds} s", target.name);
    Ok(findings == 0)
}

fn is_slow_again(program: &Path, target: &Target, input: &Path) -> Result<bool, String> {
    let start = Instant::now();
    let mut command = Command::new(program);
    command.arg(target.name).arg(input);
    let status = command.status().map_err(text)?;
    Ok(!status.success() || start.elapsed() > PATIENCE)
}

/// Runs inputs one after the other, first the corpus as it is, then mutations; ends the process at the first finding.
fn work(name: &str, seed: &str, seconds: &str, note: &Path) -> Result<bool, String> {
    let target = find(name)?;
    let number = |word: &str| word.parse::<u64>().map_err(text);
    let end = Instant::now() + Duration::from_secs(number(seconds)?);
    let corpus = corpus(target).map_err(text)?;
    let mut mutator = Mutator::new(number(seed)?, target.words);
    let watch = Watch::start();
    let mut file = std::fs::File::create(note).map_err(text)?;
    // A panic is reported once, by its place; the rest is for the replay.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let mut count = 0u64;
    let mut fixed = corpus.clone().into_iter();
    while Instant::now() < end {
        let input = fixed.next().unwrap_or_else(|| mutator.next_input(&corpus));
        rewrite(&mut file, &input).map_err(text)?;
        watch.begin();
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        watch.end();
        if outcome.is_err() {
            exit(PANICKED);
        }
        count += 1;
    }
    println!("{name}: {count} inputs");
    Ok(true)
}

/// Runs inputs in this process, with whatever they do to it.
fn replay(target: &Target, inputs: &[&str]) -> Result<bool, String> {
    for input in inputs {
        let bytes = std::fs::read(input).map_err(|error| format!("{input}: {error}"))?;
        let start = Instant::now();
        (target.run)(&bytes);
        println!("{input}: {} ms", start.elapsed().as_millis());
    }
    Ok(true)
}

fn write_seeds(target: &Target, directory: &Path) -> Result<bool, String> {
    std::fs::create_dir_all(directory).map_err(text)?;
    for (index, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{index:02}")), seed).map_err(text)?;
    }
    Ok(true)
}

fn corpus(target: &Target) -> std::io::Result<Vec<Vec<u8>>> {
    let mut corpus = (target.seeds)();
    let inputs = read_inputs(&corpus_directory(target))?;
    corpus.extend(inputs.into_iter().map(|(_, bytes)| bytes));
    Ok(corpus)
}

fn artifacts_directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/artifacts")
        .join(target.name)
}

fn rewrite(file: &mut std::fs::File, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Seek;
    file.rewind()?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}

/// FNV-1a, for file names.
fn fingerprint(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Ends the process when one input takes too long.
struct Watch {
    /// Milliseconds since the start of the watch at which the present input began; 0 between inputs.
    began: &'static AtomicU64,
    start: Instant,
}

impl Watch {
    fn start() -> Self {
        let began: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let start = Instant::now();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(20));
                let at = began.load(Ordering::Relaxed);
                let now = start.elapsed().as_millis() as u64;
                if at > 0 && now.saturating_sub(at) > PATIENCE.as_millis() as u64 {
                    exit(TOO_SLOW);
                }
            }
        });
        Self { began, start }
    }

    fn begin(&self) {
        let now = self.start.elapsed().as_millis() as u64;
        self.began.store(now.max(1), Ordering::Relaxed);
    }

    fn end(&self) {
        self.began.store(0, Ordering::Relaxed);
    }
}
