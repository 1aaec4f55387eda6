//! Sessions over the public interface: several sequences, forks, cuts, saved prefixes, shifts, cancellation.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ondine_fixtures::{ARCHITECTURES, Tiny};
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{
    BackendError, Decoder, KvType, LoadOptions, Run, Scores, Select, SequenceId, Wanted,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::sample::SamplingOptions;
use ondine_runtime::source::Memory;
use ondine_runtime::{
    ContextOverflow, GenerateOptions, Limits, Model, PrefixError, PrefixUse, Session, StopReason,
};

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

#[test]
fn interleaved_sequences_do_not_disturb_each_other() {
    for architecture in ARCHITECTURES {
        let model = model(architecture, 7);
        let alone = |tokens: &[u32]| {
            let mut decoder = decoder(&model, KvType::F16, None);
            let sequence = decoder.start();
            last_logits(decoder.as_mut(), sequence, tokens)
        };
        let (first, second) = (tokens(1, 30), tokens(2, 25));
        let mut decoder = decoder(&model, KvType::F16, None);
        let (a, b) = (decoder.start(), decoder.start());
        let mut last = [Vec::new(), Vec::new()];
        for step in 0..5 {
            let batch = [
                Run {
                    sequence: a,
                    tokens: &first[step * 6..step * 6 + 6],
                    wanted: Wanted::Last,
                    select: Select::All,
                },
                Run {
                    sequence: b,
                    tokens: &second[step * 5..step * 5 + 5],
                    wanted: Wanted::Last,
                    select: Select::All,
                },
            ];
            decoder
                .forward(&batch, &mut |scored| {
                    if let Scores::All(logits) = scored.scores {
                        last[scored.run] = logits.to_vec();
                    }
                })
                .expect("it computes");
        }
        assert_close(&last[0], &alone(&first), architecture);
        assert_close(&last[1], &alone(&second), architecture);
    }
}

#[test]
fn forks_and_cuts_equal_a_fresh_start() {
    for architecture in ARCHITECTURES {
        for kv_type in KV_TYPES {
            let model = model(architecture, 8);
            let mut decoder = decoder(&model, kv_type, None);
            let shared = tokens(3, 90);
            let root = decoder.start();
            last_logits(decoder.as_mut(), root, &shared);
            let fork = decoder.fork(root).expect("it exists");
            // The fork goes on, the root is cut in the middle of a page and goes another way.
            let tail = tokens(4, 10);
            let forked = last_logits(decoder.as_mut(), fork, &tail);
            let kept = decoder.truncate(root, 70);
            assert!(kept <= 70, "{architecture}");
            let other: Vec<u32> = shared[kept..70]
                .iter()
                .chain(&tokens(5, 9))
                .copied()
                .collect();
            let cut = last_logits(decoder.as_mut(), root, &other);

            let fresh = |tokens: Vec<u32>| {
                let mut decoder = self::decoder(&model, kv_type, None);
                let sequence = decoder.start();
                last_logits(decoder.as_mut(), sequence, &tokens)
            };
            assert_close(
                &forked,
                &fresh([shared.clone(), tail].concat()),
                architecture,
            );
            assert_close(
                &cut,
                &fresh([&shared[..70], &tokens(5, 9)].concat()),
                architecture,
            );
        }
    }
}

#[test]
fn a_saved_prefix_is_restored_to_the_bit() {
    let directory = tempfile::tempdir().expect("a place for files");
    for architecture in ARCHITECTURES {
        for kv_type in KV_TYPES {
            let path = directory.path().join(format!("{architecture}-{kv_type:?}"));
            let model = model(architecture, 9);
            let prefix = tokens(6, 80);
            let mut saver = session(&model, kv_type, None);
            let used = saver.use_prefix_file(&path, &prefix).expect("saved");
            assert!(matches!(used, PrefixUse::Saved(None)));
            let mut restorer = session(&model, kv_type, None);
            let used = restorer.use_prefix_file(&path, &prefix).expect("restored");
            assert!(matches!(used, PrefixUse::Restored), "{architecture}");
            let tail = tokens(7, 5);
            assert_eq!(
                append(&mut saver, &tail),
                append(&mut restorer, &tail),
                "{architecture} {kv_type:?}"
            );
        }
    }
}

#[test]
fn foreign_and_damaged_prefixes_are_refused_with_a_reason() {
    let directory = tempfile::tempdir().expect("a place for files");
    let path = directory.path().join("prefix");
    let model = model("llama", 10);
    let mut saver = session(&model, KvType::F16, None);
    saver.use_prefix_file(&path, &tokens(8, 40)).expect("saved");
    let whole = std::fs::read(&path).expect("it is there");

    let other = self::model("llama", 11);
    let error = session(&other, KvType::F16, None)
        .restore_prefix(&path)
        .expect_err("another model");
    assert!(error.to_string().contains("another model"), "{error}");
    let error = session(&model, KvType::F32, None)
        .restore_prefix(&path)
        .expect_err("another type");
    assert!(matches!(error, PrefixError::Foreign { .. }), "{error}");

    for length in [0, 1, 31, 32, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).expect("written");
        let error = session(&model, KvType::F16, None)
            .restore_prefix(&path)
            .expect_err("cut");
        assert!(
            matches!(error, PrefixError::Damaged { .. }),
            "{length}: {error}"
        );
    }
    for position in (0..whole.len()).step_by(whole.len() / 200 + 1) {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x10;
        std::fs::write(&path, &damaged).expect("written");
        let error = session(&model, KvType::F16, None)
            .restore_prefix(&path)
            .expect_err("damaged");
        assert!(
            matches!(error, PrefixError::Damaged { .. }),
            "{position}: {error}"
        );
    }
    // A refused file is replaced, and the reason is told.
    let used = session(&model, KvType::F16, None)
        .use_prefix_file(&path, &tokens(8, 40))
        .expect("saved again");
    assert!(matches!(
        used,
        PrefixUse::Saved(Some(PrefixError::Damaged { .. }))
    ));
    assert_eq!(std::fs::read(&path).expect("it is there"), whole);
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let model = model("qwen3", 12);
    let run = |seed, threads| {
        let options = SamplingOptions {
            temperature: 1.5,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            ..SamplingOptions::default()
        };
        let mut session = session(&model, KvType::F16, Some(threads));
        generate(
            &mut session,
            &tokens(9, 8),
            options,
            ContextOverflow::Error,
            Some(40),
        )
        .0
    };
    assert_eq!(run(5, 1), run(5, 1));
    assert_eq!(run(5, 1), run(5, 3));
    assert_ne!(run(5, 1), run(6, 1));
}

#[test]
fn overflow_is_an_error_or_a_shift_as_asked() {
    let model = model("llama", 13);
    let options = LoadOptions {
        context: Some(64),
        ..LoadOptions::default()
    };
    let start = || {
        let decoder = model.load(&backend(), &options).expect("it fits");
        Session::new(model.clone(), decoder)
    };
    let greedy = SamplingOptions::greedy();
    let (generated, reason) = generate(
        &mut start(),
        &tokens(10, 30),
        greedy.clone(),
        ContextOverflow::Error,
        Some(100),
    );
    assert_eq!(reason, StopReason::ContextFull);
    assert_eq!(generated.len(), 64 - 30 + 1);
    let mut shifting = start();
    let (generated, reason) = generate(
        &mut shifting,
        &tokens(10, 30),
        greedy.clone(),
        ContextOverflow::Shift,
        Some(100),
    );
    assert_eq!(reason, StopReason::Length);
    assert_eq!(generated.len(), 100);
    assert!(shifting.was_shifted());
    // Sinks stay: the first tokens are the prompt's.
    assert_eq!(shifting.tokens()[..4], tokens(10, 30)[..4]);

    let error = start()
        .generate(
            &tokens(11, 70),
            GenerateOptions {
                sampling: greedy,
                ..GenerateOptions::default()
            },
        )
        .err()
        .expect("too long");
    assert!(
        error.to_string().contains("70") || error.to_string().contains("71"),
        "{error}"
    );
}

#[test]
fn cancellation_stops_before_the_next_token() {
    let model = model("gemma3", 14);
    let mut session = session(&model, KvType::F16, None);
    let cancel = Arc::new(AtomicBool::new(false));
    let options = GenerateOptions {
        ignore_end: true,
        cancel: Some(cancel.clone()),
        ..GenerateOptions::default()
    };
    let mut generation = session
        .generate(&tokens(12, 5), options)
        .expect("it begins");
    for _ in 0..3 {
        generation.next().expect("a piece").expect("computed");
    }
    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    generation
        .next()
        .expect("the last piece")
        .expect("computed");
    assert_eq!(generation.stop_reason(), Some(StopReason::Cancelled));
    assert!(generation.next().is_none());
}

#[test]
fn hidden_states_do_not_depend_on_the_batch() {
    for architecture in ARCHITECTURES {
        let model = model(architecture, 16);
        let mut decoder = decoder(&model, KvType::F16, None);
        let (wanted, other) = (tokens(5, 20), tokens(6, 7));
        let width = model.spec().embedding;
        let mut together = vec![Vec::new(); wanted.len()];
        let (a, b) = (decoder.start(), decoder.start());
        let batch = [
            Run {
                sequence: a,
                tokens: &other,
                wanted: Wanted::Last,
                select: Select::All,
            },
            Run {
                sequence: b,
                tokens: &wanted,
                wanted: Wanted::Hidden,
                select: Select::All,
            },
        ];
        decoder
            .forward(&batch, &mut |scored| match scored.scores {
                Scores::Hidden(hidden) => together[scored.token] = hidden.to_vec(),
                _ => assert_eq!((scored.run, scored.token), (0, other.len() - 1)),
            })
            .expect("it computes");
        let alone = decoder.start();
        for (index, token) in wanted.iter().enumerate() {
            let run = Run {
                sequence: alone,
                tokens: std::slice::from_ref(token),
                wanted: Wanted::Hidden,
                select: Select::All,
            };
            let mut seen = 0;
            decoder
                .forward(&[run], &mut |scored| {
                    if let Scores::Hidden(hidden) = scored.scores {
                        assert_eq!(hidden.len(), width, "{architecture}");
                        assert_close(hidden, &together[index], architecture);
                        seen += 1;
                    }
                })
                .expect("it computes");
            assert_eq!(seen, 1, "{architecture}");
        }
    }
}

#[test]
fn wrong_requests_get_typed_errors() {
    let model = model("llama", 15);
    let mut decoder = decoder(&model, KvType::F16, None);
    let sequence = decoder.start();
    let run = |sequence, tokens| Run {
        sequence,
        tokens,
        wanted: Wanted::Last,
        select: Select::All,
    };
    let result = decoder.forward(&[run(sequence, &[1, u32::MAX])], &mut |_| ());
    assert!(matches!(result, Err(BackendError::UnknownToken { .. })));
    let result = decoder.forward(&[run(SequenceId(999), &[1])], &mut |_| ());
    assert!(matches!(result, Err(BackendError::UnknownSequence(_))));
    let long = vec![1; 600];
    let result = decoder.forward(&[run(sequence, &long)], &mut |_| ());
    assert!(matches!(result, Err(BackendError::ContextFull { .. })));
    assert_eq!(decoder.length(sequence), 0);
}

fn model(architecture: &'static str, seed: u64) -> Arc<Model> {
    let limits = Limits::default();
    let source = Memory::new(architecture, Tiny::new(architecture, seed).gguf());
    let file = ModelFile::from_source(Arc::new(source), &limits).expect("a whole file");
    Arc::new(Model::from_file(Path::new(architecture), file, &limits).expect("a whole model"))
}

fn backend() -> CpuBackend {
    CpuBackend::from_environment().expect("a processor")
}

fn decoder(model: &Model, kv_type: KvType, threads: Option<usize>) -> Box<dyn Decoder> {
    let options = LoadOptions {
        kv_type,
        threads,
        ..LoadOptions::default()
    };
    model.load(&backend(), &options).expect("it fits")
}

fn session(model: &Arc<Model>, kv_type: KvType, threads: Option<usize>) -> Session {
    Session::new(model.clone(), decoder(model, kv_type, threads))
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = ondine_fixtures::Random::new(seed);
    (0..count).map(|_| random.below(256) as u32).collect()
}

fn last_logits(decoder: &mut dyn Decoder, sequence: SequenceId, tokens: &[u32]) -> Vec<f32> {
    let mut last = Vec::new();
    let run = Run {
        sequence,
        tokens,
        wanted: Wanted::Last,
        select: Select::All,
    };
    decoder
        .forward(&[run], &mut |scored| {
            if let Scores::All(logits) = scored.scores {
                last = logits.to_vec();
            }
        })
        .expect("it computes");
    last
}

fn append(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    let mut last = Vec::new();
    session
        .append(tokens, Wanted::Last, &mut |scored| {
            if let Scores::All(logits) = scored.scores {
                last = logits.to_vec();
            }
        })
        .expect("it computes");
    last
}

fn generate(
    session: &mut Session,
    prompt: &[u32],
    sampling: SamplingOptions,
    overflow: ContextOverflow,
    max_tokens: Option<usize>,
) -> (Vec<u32>, StopReason) {
    let options = GenerateOptions {
        max_tokens,
        sampling,
        overflow,
        ignore_end: true,
        ..GenerateOptions::default()
    };
    let mut generation = session.generate(prompt, options).expect("it begins");
    let mut generated = Vec::new();
    for piece in generation.by_ref() {
        generated.extend(piece.expect("computed").token.map(|sampled| sampled.token));
    }
    (generated, generation.stop_reason().expect("it ended"))
}

/// The same but for rounding: attention computes one query and many in different ways, over keys and values
/// of 16 bits or less.
fn assert_close(actual: &[f32], expected: &[f32], name: &str) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = actual
        .iter()
        .zip(expected)
        .map(|(a, b)| square(a - b))
        .sum();
    let error = difference / expected.iter().map(|&x| square(x)).sum::<f64>();
    assert!(error < 1e-5, "{name}: {error:.2e}");
}
