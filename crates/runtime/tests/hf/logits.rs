//! Logits of a checkpoint directory and of the model file made of it.

use std::sync::Arc;

use ondine_fixtures::{ARCHITECTURES, Random, Tiny};
use ondine_kernels::{Isa, TensorType};
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{Backend, KvType, LoadOptions, Run, Scores, Select, Wanted};
use ondine_runtime::gguf::ModelFile;
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, model_file, tiny};
use crate::{open, spec};

/// Bound on the normalised mean square error: the order of additions differs where rows of queries
/// and keys are in another order, nothing else.
const ERROR: f64 = 1e-10;
const TOKENS: usize = 24;

#[test]
fn logits_are_the_same() {
    let mut failures = Vec::new();
    for architecture in ARCHITECTURES {
        for tensor_type in [TensorType::F32, TensorType::BF16] {
            let tiny = Tiny {
                tensor_type,
                ..tiny(architecture, 9)
            };
            let error = error_between(&tiny, &Checkpoint::of(&tiny));
            println!("{architecture} {tensor_type}: {error:.1e}");
            if error.is_nan() || error > ERROR {
                failures.push(format!("{architecture} {tensor_type}: {error:.1e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A base of the rotary positions that is one percent off is enough to fail.
#[test]
fn a_planted_fault_is_seen() {
    let tiny = tiny("llama", 9);
    let mut checkpoint = Checkpoint::of(&tiny);
    checkpoint.set("rope_theta", 50500.0.into());
    assert!(error_between(&tiny, &checkpoint) > 100.0 * ERROR);
}

fn error_between(tiny: &Tiny, checkpoint: &Checkpoint) -> f64 {
    let directory = TempDir::new().expect("a directory");
    checkpoint.write(directory.path(), 1);
    let expected = logits(&model_file(tiny));
    let actual = logits(&open(&directory).expect("a whole checkpoint"));
    assert_eq!(expected.len(), actual.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let pairs = expected.iter().zip(&actual);
    let difference: f64 = pairs.map(|(a, b)| square(a - b)).sum();
    difference / expected.iter().map(|&a| square(a)).sum::<f64>()
}

/// All positions' logits for some tokens.
fn logits(file: &ModelFile) -> Vec<f32> {
    let spec = Arc::new(spec(file));
    let options = LoadOptions {
        kv_type: KvType::F32,
        threads: Some(1),
        ..LoadOptions::default()
    };
    let mut decoder = CpuBackend::with_isa(Isa::detect())
        .load(file, &spec, &options)
        .expect("a model that fits");
    let mut random = Random::new(1);
    let tokens: Vec<u32> = (0..TOKENS)
        .map(|_| random.below(spec.vocabulary) as u32)
        .collect();
    let run = Run {
        sequence: decoder.start(),
        tokens: &tokens,
        wanted: Wanted::From(0),
        select: Select::All,
    };
    let mut rows = Vec::new();
    decoder
        .forward(&[run], &mut |scored| {
            if let Scores::All(logits) = scored.scores {
                rows.extend_from_slice(logits);
            }
        })
        .expect("it computes");
    assert_eq!(rows.len(), TOKENS * spec.vocabulary);
    rows
}
