//! A saved prefix. The input is tried as it is, and once more with the hash at its end made right, since no mutation would
//! pass that gate otherwise.

use crate::Target;
use crate::directory::Directory;
use ondine_fixtures::Tiny;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{LoadOptions, Wanted};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::source::Memory;
use ondine_runtime::{Limits, Model, Session};
use std::path::Path;
use std::sync::Arc;

const HASH_BYTES: usize = 32;

pub(super) const TARGET: Target = Target {
    name: "prefix_file",
    run,
    words: &["ONDPREFX", "cpu", "f16"],
    seeds,
};

thread_local! {
    static DIRECTORY: Directory = Directory::new("prefix");
    static MODEL: Arc<Model> = model();
    static BACKEND: CpuBackend = CpuBackend::from_environment().expect("a processor");
}

fn run(bytes: &[u8]) {
    try_restore(bytes);
    if let Some(length) = bytes.len().checked_sub(HASH_BYTES) {
        let mut mended = bytes[..length].to_vec();
        mended.extend_from_slice(blake3::hash(&bytes[..length]).as_bytes());
        try_restore(&mended);
    }
}

fn try_restore(bytes: &[u8]) {
    DIRECTORY.with(|directory| {
        let path = directory.put("prefix", bytes);
        let mut session = session();
        match session.restore_prefix(&path) {
            // What was restored must carry a conversation.
            Ok(()) => {
                let _ = session.append(&[1, 2, 3], Wanted::Last, &mut |_| {});
                let _ = session.make_room(session.decoder().context_length() / 2);
                let _ = session.append(&[4], Wanted::Last, &mut |_| {});
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                let used = session.append(&[1, 2, 3], Wanted::Last, &mut |_| {});
                assert!(used.is_ok(), "a refused prefix spoiled the session");
            }
        }
    });
}

fn model() -> Arc<Model> {
    let tiny = Tiny {
        embedding: 16,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        feed_forward: 16,
        layers: 2,
        ..Tiny::new("gemma3", 1)
    };
    let limits = Limits::default();
    let file = ModelFile::from_source(Arc::new(Memory::new("tiny", tiny.gguf())), &limits);
    let file = file.expect("the fixture is a model file");
    let model = Model::from_file(Path::new("tiny.gguf"), file, &limits);
    Arc::new(model.expect("the fixture is a model"))
}

fn session() -> Session {
    let options = LoadOptions {
        context: Some(64),
        threads: Some(1),
        ..LoadOptions::default()
    };
    let model = MODEL.with(Arc::clone);
    let decoder = BACKEND.with(|backend| model.load(backend, &options));
    Session::new(model, decoder.expect("the fixture loads"))
}

fn seeds() -> Vec<Vec<u8>> {
    let saved = |tokens: &[u32]| {
        DIRECTORY.with(|directory| {
            let mut session = session();
            let used = session.append(tokens, Wanted::Last, &mut |_| {});
            used.expect("the fixture computes");
            let path = directory.path().join("seed");
            session.save_prefix(&path).expect("a prefix can be saved");
            std::fs::read(path).expect("it was saved")
        })
    };
    vec![saved(&[1]), saved(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])]
}
