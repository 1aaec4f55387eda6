//! Nothing of a sealed model is ever on the disk in plain: every byte that the command writes while it answers from one is traced, and
//! every file that is there afterwards is read. Skipped, and said so, without `strace`.
#![cfg(all(feature = "package", target_os = "linux"))]

mod support;

use ondine_fixtures::Tiny;
use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::run;

/// Bytes of the weights that are looked for, short enough to survive a change of their order.
const PIECE: usize = 8;
/// How far apart the pieces are that are looked for.
const APART: usize = 1024;
/// Everything that can put bytes into a file or another process.
const CALLS: &str = "write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,splice,vmsplice,sendto,sendmsg,mmap,io_uring_enter";

#[test]
fn no_plain_byte_of_a_sealed_model_is_written() {
    let works = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status();
    if !works.is_ok_and(|status| status.success()) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: strace is not installed, or may not trace here"
        );
        return;
    }
    let place = Place::new();
    place.run(&["keygen", "--kind", "seal", "-o", &place.at("reader")]);
    let (sealed, key) = (place.at("model.gguf.sealed"), place.at("reader.key"));
    let recipient = place.at("reader.pub");
    place.run(&[
        "seal",
        &place.at("model.gguf"),
        "--recipients-file",
        &recipient,
        "-o",
        &sealed,
    ]);
    let ask = |model: &str| {
        let more = ["Hello", "--raw", "-n", "4", "--temp", "0"];
        [&["run", "-m", model, "--identity", &key], &more[..]]
            .concat()
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let plain = fs::read(place.at("model.gguf")).expect("readable");
    let pieces = Pieces::of(&plain);

    // Whoever answers from the plain file keeps its packed weights on the disk, in another order.
    place.traced(&ask(&place.at("model.gguf")));
    assert!(
        files_of(&place.home(), "packed") > 0,
        "the model is too small to be kept in packed form"
    );
    fs::remove_dir_all(place.home()).expect("removed");
    // Whoever writes the plain file is found, too.
    let unseal = [
        "unseal",
        &sealed,
        "--identity",
        &key,
        "-o",
        &place.at("out"),
    ];
    let unseal: Vec<String> = unseal.iter().map(|word| (*word).to_owned()).collect();
    let written = place.traced(&unseal);
    assert!(
        pieces.in_bytes(&written.bytes) > 0,
        "written weights are not recognised"
    );
    fs::remove_file(place.at("out")).expect("removed");
    fs::remove_file(place.at("model.gguf")).expect("removed");

    let written = place.traced(&ask(&sealed));
    assert!(!written.bytes.is_empty(), "the answer itself is written");
    assert_eq!(pieces.in_bytes(&written.bytes), 0, "weights were written");
    assert_eq!(
        files_of(place.directory.path(), "packed"),
        0,
        "packed weights are on the disk"
    );
    assert_eq!(written.shared_mappings, 0, "a file was mapped for writing");
    assert_eq!(written.opaque, 0, "bytes were moved unseen");
    assert_eq!(
        pieces.in_directory(place.directory.path()),
        0,
        "weights are on the disk"
    );
}

/// A directory with a model that is large enough for its packed form to be worth keeping, and a home below it.
struct Place {
    directory: tempfile::TempDir,
}

/// What a traced command gave to the operating system.
struct Written {
    bytes: Vec<u8>,
    /// Mappings through which a file can be changed.
    shared_mappings: usize,
    /// Calls that move bytes without showing them.
    opaque: usize,
}

impl Place {
    fn new() -> Self {
        let place = Place {
            directory: tempfile::tempdir().expect("a place"),
        };
        let model = Tiny {
            embedding: 512,
            heads: 8,
            kv_heads: 8,
            head_dim: 64,
            feed_forward: 1536,
            layers: 2,
            ..Tiny::new("llama", 11)
        };
        fs::write(place.at("model.gguf"), model.gguf()).expect("written");
        place
    }

    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    fn run(&self, words: &[&str]) {
        let ran = run(words);
        assert_eq!(ran.code, 0, "{}", ran.err);
    }

    fn traced(&self, words: &[String]) -> Written {
        let log = self.at("log");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-xx", "-s", "100000000", "-o", &log, "-e"])
            .arg(format!("trace={CALLS}"))
            .arg(env!("CARGO_BIN_EXE_ondine"))
            .args(words)
            .env("ONDINE_HOME", self.home())
            .env("HOME", self.home())
            .env("XDG_CACHE_HOME", self.home())
            .env("TMPDIR", self.directory.path());
        let ran = command.output().expect("it starts");
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        let text = fs::read_to_string(&log).expect("a log");
        fs::remove_file(&log).expect("removed");
        let mut written = Written {
            bytes: Vec::new(),
            shared_mappings: 0,
            opaque: 0,
        };
        for line in text.lines() {
            let is = |call: &str| line.contains(&format!(" {call}("));
            if is("mmap") {
                let shared = line.contains("MAP_SHARED") && line.contains("PROT_WRITE");
                written.shared_mappings += usize::from(shared && !line.contains("MAP_ANONYMOUS"));
            } else if [
                "sendfile",
                "copy_file_range",
                "splice",
                "vmsplice",
                "io_uring_enter",
            ]
            .iter()
            .any(|call| is(call))
            {
                written.opaque += 1;
            } else {
                for part in line.split('"').skip(1).step_by(2) {
                    written.bytes.extend(unhex(part));
                    // A piece never runs from one call into the next.
                    written.bytes.extend([0; PIECE]);
                }
            }
        }
        written
    }
}

/// How many files below a directory have that extension.
fn files_of(directory: &Path, extension: &str) -> usize {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let count = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_of(&path, extension)
        } else {
            usize::from(path.extension().is_some_and(|found| found == extension))
        }
    };
    entries.map(count).sum()
}

/// The bytes of `\x01\x02…`.
fn unhex(text: &str) -> impl Iterator<Item = u8> {
    text.split("\\x")
        .skip(1)
        .filter_map(|digits| u8::from_str_radix(digits.get(..2)?, 16).ok())
}

/// Pieces of the weights; the header's texts are left out, since answers consist of them.
struct Pieces(HashSet<[u8; PIECE]>);

impl Pieces {
    fn of(plain: &[u8]) -> Self {
        let weights = &plain[plain.len() / 4..];
        let all = weights.chunks_exact(APART);
        let pieces: HashSet<_> = all.filter_map(|part| part.first_chunk().copied()).collect();
        assert!(pieces.len() > 10_000, "{}", pieces.len());
        Pieces(pieces)
    }

    fn in_bytes(&self, bytes: &[u8]) -> usize {
        let is_piece = |part: &&[u8]| part.first_chunk().is_some_and(|part| self.0.contains(part));
        bytes.windows(PIECE).filter(is_piece).count()
    }

    fn in_directory(&self, directory: &Path) -> usize {
        let entries = fs::read_dir(directory).expect("a directory");
        let count = |entry: std::io::Result<fs::DirEntry>| {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                self.in_directory(&path)
            } else {
                self.in_bytes(&fs::read(path).expect("readable"))
            }
        };
        entries.map(count).sum()
    }
}
