//! A delta, applied to two bases: a model and plain bytes. What it makes is bounded by the limit that the caller gives.

use crate::Target;
use crate::directory::Directory;
use ondine_fixtures::Tiny;
use ondine_package::Limits;
use ondine_package::delta::{DeltaError, apply, diff};

/// Bytes of a result.
const MOST: u64 = 4 << 20;

pub(super) const TARGET: Target = Target {
    name: "delta",
    run,
    words: &[],
    seeds,
};

thread_local! {
    static DIRECTORY: Directory = bases();
}

fn run(bytes: &[u8]) {
    let limits = Limits {
        file_bytes: MOST,
        ..Limits::default()
    };
    DIRECTORY.with(|directory| {
        let delta = directory.put("delta", bytes);
        for base in ["model", "text"] {
            let out = directory.path().join("out");
            match apply(&directory.path().join(base), &delta, &out, &limits) {
                Ok(applied) => {
                    assert!(applied.size <= MOST);
                    assert_eq!(out.metadata().expect("it is there").len(), applied.size);
                    std::fs::remove_file(&out).expect("it can be removed");
                }
                Err(error) => {
                    assert!(!error.to_string().contains('\n'), "{error}");
                    assert!(!out.exists(), "a refused delta left a result");
                    assert!(!matches!(error, DeltaError::File { .. }), "{error}");
                }
            }
        }
    });
}

fn bases() -> Directory {
    let directory = Directory::new("delta");
    directory.put("model", &Tiny::new("llama", 1).gguf());
    directory.put("text", &text());
    directory
}

fn text() -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..2000_u32 {
        bytes
            .extend_from_slice(format!("{} ", number.wrapping_mul(2_654_435_761) >> 20).as_bytes());
    }
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let model = Tiny::new("llama", 1).gguf();
    let mut moved = model.clone();
    for at in (model.len() / 3..model.len()).step_by(37) {
        moved[at] = moved[at].wrapping_add(1);
    }
    let mut edited = text();
    edited.splice(500..520, *b"something else");
    edited.rotate_left(4000);
    DIRECTORY.with(|directory| {
        let made = |base: &str, new: &[u8]| {
            let new = directory.put("new", new);
            let delta = directory.path().join("made");
            diff(
                &directory.path().join(base),
                &new,
                &delta,
                &Limits::default(),
            )
            .expect("a delta");
            std::fs::read(delta).expect("it is there")
        };
        vec![
            made("model", &model),
            made("model", &moved),
            made("model", &Tiny::new("llama", 2).gguf()),
            made("text", &edited),
            made("text", b""),
        ]
    })
}
