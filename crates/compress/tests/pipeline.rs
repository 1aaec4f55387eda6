//! A whole model: quantised, calibrated, compensated; and read again by the runtime.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ondine_compress::calibrate::{Windows, calibrate};
use ondine_compress::imatrix::ImportanceMatrix;
use ondine_compress::{Method, QuantizeOptions, QuantizeReport, quantize};
use ondine_fixtures::{Random, Tiny};
use ondine_kernels::TensorType;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{LoadOptions, Run, Scores, Select, Wanted};
use ondine_runtime::{Limits, Model};

/// A model whose rows are blocks of 256.
fn tiny(architecture: &'static str) -> Tiny {
    Tiny {
        embedding: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        feed_forward: 512,
        layers: 2,
        ..Tiny::new(architecture, 11)
    }
}

fn write(directory: &Path, tiny: &Tiny) -> PathBuf {
    let path = directory.join(format!("{}.gguf", tiny.architecture));
    std::fs::write(&path, tiny.gguf()).unwrap();
    path
}

fn tokens(count: usize) -> Vec<u32> {
    let mut random = Random::new(5);
    (0..count).map(|_| 32 + random.below(90) as u32).collect()
}

fn options(tensor_type: TensorType, method: Method<'_>) -> QuantizeOptions<'_> {
    QuantizeOptions {
        tensor_type,
        pure: true,
        keep: Vec::new(),
        types: HashMap::new(),
        importance: None,
        method,
        threads: 2,
    }
}

fn run(model: &Path, out: &Path, options: &QuantizeOptions<'_>) -> QuantizeReport {
    let model = Model::open(model, &Limits::default()).unwrap();
    quantize(model.file(), out, options, &mut |_, _, _| true).unwrap()
}

/// Logits after each token.
fn logits(path: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let model = Model::open(path, &Limits::default()).unwrap();
    let backend = CpuBackend::from_environment().unwrap();
    let options = LoadOptions {
        context: Some(tokens.len()),
        ..LoadOptions::default()
    };
    let mut decoder = model.load(&backend, &options).unwrap();
    let sequence = decoder.start();
    let run = Run {
        sequence,
        tokens,
        wanted: Wanted::From(0),
        select: Select::All,
    };
    let mut out = Vec::new();
    decoder
        .forward(&[run], &mut |scored| {
            if let Scores::All(logits) = scored.scores {
                out.push(logits.to_vec());
            }
        })
        .unwrap();
    out
}

/// Mean KL divergence of the softmax of `found` from that of `expected`, nats.
fn divergence(expected: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    let softmax = |logits: &[f32]| -> Vec<f64> {
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let powers: Vec<f64> = logits.iter().map(|x| f64::from(x - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    };
    let each = expected.iter().zip(found).map(|(expected, found)| {
        let (p, q) = (softmax(expected), softmax(found));
        p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
    });
    each.sum::<f64>() / expected.len() as f64
}

#[test]
fn importance_is_measured_for_every_matrix_and_round_trips() {
    let directory = tempfile::tempdir().unwrap();
    for architecture in ["llama", "phi3", "olmoe", "lfm2"] {
        let path = write(directory.path(), &tiny(architecture));
        let model = Model::open(&path, &Limits::default()).unwrap();
        let windows = Windows {
            tokens: tokens(128),
            length: 32,
        };
        let matrix = calibrate(&model, &windows, &mut |_, _| true).unwrap();
        for (name, importance) in &matrix.tensors {
            let tensor = model.file().tensor(name).unwrap();
            assert_eq!(importance.columns as u64, tensor.columns(), "{name}");
            let seen: f32 = importance.counts.iter().sum();
            assert!(
                seen > 0.0 && importance.sums.iter().any(|sum| *sum > 0.0),
                "{name}"
            );
            // Each token goes once through every matrix, and through two of the experts.
            if !name.contains("exps")
                && !name.contains("output.weight")
                && !name.contains("token_embd")
            {
                assert_eq!(seen, 128.0, "{name}");
            }
        }
        let out = directory.path().join("imatrix.gguf");
        matrix.write(&out).unwrap();
        assert_eq!(ImportanceMatrix::read(&out).unwrap(), matrix);
    }
}

#[test]
fn compensation_loses_less_than_search() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), &tiny("llama"));
    let model = Model::open(&path, &Limits::default()).unwrap();
    let windows = Windows {
        tokens: tokens(2048),
        length: 64,
    };
    let tokens = tokens(64);
    let expected = logits(&path, &tokens);
    let out = directory.path().join("out.gguf");
    let mut found = Vec::new();
    let gptq = Method::Gptq {
        model: &model,
        windows: &windows,
        // One matrix at a time: the model is computed again for each group.
        memory: 1 << 20,
    };
    for method in [Method::Nearest, Method::Search, gptq] {
        run(&path, &out, &options(TensorType::Q3_K, method));
        found.push(divergence(&expected, &logits(&out, &tokens)));
    }
    // Without compensation, what random weights lose is much the same however scales are chosen.
    assert!(found[2] < 0.7 * found[0].min(found[1]), "{found:?}");
}

#[test]
fn a_number_that_is_not_finite_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), &tiny("llama"));
    let mut bytes = std::fs::read(&path).unwrap();
    let model = Model::open(&path, &Limits::default()).unwrap();
    let tensor = model.file().tensor("blk.1.ffn_down.weight").unwrap();
    let at = tensor.offset as usize + 4 * (512 * 3 + 7);
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let model = Model::open(&path, &Limits::default()).unwrap();
    let out = directory.path().join("out.gguf");
    let options = options(TensorType::Q4_K, Method::Search);
    let error = quantize(model.file(), &out, &options, &mut |_, _, _| true)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("blk.1.ffn_down.weight") && error.contains("row 3"),
        "{error}"
    );
    assert!(!out.exists());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
