//! Size of the delta between two files, how quickly it is made and applied, and the most memory that the process took.
//!
//! `cargo run --release -p ondine-package --example delta_speed -- OLD NEW`; `--apply-only DELTA` after the two applies a delta that is
//! there already, so that the memory is that of applying alone.

use ondine_package::Limits;
use ondine_package::delta::{apply, diff};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (old, new, given) = match &arguments[..] {
        [old, new] => (old, new, None),
        [old, new, flag, delta] if flag == "--apply-only" => (old, new, Some(delta)),
        _ => return Err("usage: delta_speed OLD NEW [--apply-only DELTA]".into()),
    };
    let directory = std::env::temp_dir().join(format!("ondine-delta-speed-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let (made, out) = (directory.join("delta"), directory.join("out"));
    let (old, new, limits) = (Path::new(old), Path::new(new), Limits::default());
    let length = std::fs::metadata(new)?.len();
    let rate = |start: Instant| length as f64 / start.elapsed().as_secs_f64() / 1e6;
    let delta = match given {
        Some(delta) => delta.into(),
        None => {
            let start = Instant::now();
            diff(old, new, &made, &limits)?;
            println!("made at {:.1} MB/s", rate(start));
            made
        }
    };
    println!("{} bytes", std::fs::metadata(&delta)?.len());
    let start = Instant::now();
    apply(old, &delta, &out, &limits)?;
    println!("applied at {:.1} MB/s", rate(start));
    let hash = ondine_package::digest::hash_file;
    let blake3 = ondine_package::digest::Algorithms::Blake3;
    assert_eq!(
        hash(&out, blake3)?.blake3,
        hash(new, blake3)?.blake3,
        "the result differs"
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(peak) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("{peak}");
    }
    std::fs::remove_dir_all(directory)?;
    Ok(())
}
