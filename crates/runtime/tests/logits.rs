//! Logits of tiny models of every architecture and tensor type against another engine's.

use std::path::Path;
use std::sync::Arc;

use ondine_fixtures::{Case, EXPECTED, ROWS, cases};
use ondine_kernels::{Isa, TensorType};
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{KvType, LoadOptions, Run, Scores, Select, Wanted};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::source::Memory;
use ondine_runtime::{Limits, Model};

/// Bounds on the normalised mean square error, as the issue states them.
const FLOAT_ERROR: f64 = 1e-6;
const QUANTISED_ERROR: f64 = 1e-3;

#[test]
fn logits_equal_the_reference() {
    let mut failures = Vec::new();
    for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
        if !isa.is_available() {
            println!("skipped: this processor has no {}", isa.name());
            continue;
        }
        for (case, expected) in with_expected() {
            let options = LoadOptions {
                kv_type: KvType::F32,
                threads: Some(2),
                ..LoadOptions::default()
            };
            let actual = last_rows(&case, isa, options, &[case.tokens().len()]);
            let bound = match case.tiny.tensor_type {
                TensorType::F32 | TensorType::F16 => FLOAT_ERROR,
                // Inputs are rounded to bf16 as there, but the reference's products come from an instruction that
                // rounds its sums otherwise.
                TensorType::BF16 => 1e-5,
                _ => QUANTISED_ERROR,
            };
            let error = normalised_error(&expected, &actual);
            if error.is_nan() || error > bound {
                failures.push(format!(
                    "{} {}: {error:.2e} > {bound:.0e}",
                    isa.name(),
                    case.name
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// How the tokens are cut into calls changes nothing but rounding.
#[test]
fn token_by_token_equals_all_at_once() {
    for case in cases() {
        if !matches!(case.tiny.tensor_type, TensorType::F32 | TensorType::Q4_0) {
            continue;
        }
        let options = || LoadOptions {
            kv_type: KvType::F32,
            threads: Some(1),
            ..LoadOptions::default()
        };
        let whole = last_rows(&case, Isa::detect(), options(), &[case.tokens().len()]);
        let single = vec![1; case.tokens().len()];
        let stepwise = last_rows(&case, Isa::detect(), options(), &single);
        let error = normalised_error(&whole, &stepwise);
        assert!(error < 1e-9, "{}: {error:.2e}", case.name);
    }
}

/// Half-precision and 8-bit keys and values cost little.
#[test]
fn smaller_keys_and_values_cost_little() {
    for (case, expected) in with_expected() {
        if case.tiny.tensor_type != TensorType::F32 {
            continue;
        }
        for (kv_type, bound) in [(KvType::F16, 1e-4), (KvType::Q8_0, 5e-3)] {
            let options = LoadOptions {
                kv_type,
                ..LoadOptions::default()
            };
            let actual = last_rows(
                &case,
                Isa::detect(),
                options,
                &[TOKENS_AT_ONCE, 40 - TOKENS_AT_ONCE],
            );
            let error = normalised_error(&expected, &actual);
            assert!(error < bound, "{} {kv_type:?}: {error:.2e}", case.name);
        }
    }
}

const TOKENS_AT_ONCE: usize = 17;

/// Another seed's model misses the bound: the comparison looks at the figures. A coarse check, not a subtle fault.
#[test]
fn a_planted_fault_is_seen() {
    let (case, expected) = with_expected().remove(21);
    let mut other = case.clone();
    other.tiny.window += 1;
    other.tiny.seed += 1;
    let options = LoadOptions {
        kv_type: KvType::F32,
        ..LoadOptions::default()
    };
    let actual = last_rows(&other, Isa::detect(), options, &[case.tokens().len()]);
    assert!(normalised_error(&expected, &actual) > QUANTISED_ERROR);
}

/// Every case with the reference's last rows.
fn with_expected() -> Vec<(Case, Vec<f32>)> {
    let mut rest = EXPECTED;
    let cases: Vec<_> = cases()
        .into_iter()
        .map(|case| {
            let vocabulary = open(&case).spec().vocabulary;
            let (raw, others) = rest.split_at(vocabulary * ROWS * size_of::<f32>());
            rest = others;
            let floats = raw
                .chunks_exact(4)
                .map(|raw| [raw[0], raw[1], raw[2], raw[3]]);
            (case, floats.map(f32::from_le_bytes).collect())
        })
        .collect();
    assert!(rest.is_empty(), "figures left over");
    cases
}

fn open(case: &Case) -> Model {
    let limits = Limits::default();
    let source = Arc::new(Memory::new(&case.name, case.tiny.gguf()));
    let file = ModelFile::from_source(source, &limits).expect("a whole file");
    Model::from_file(Path::new(&case.name), file, &limits).expect("a whole model")
}

/// The last rows of logits when the tokens are given in `steps`.
fn last_rows(case: &Case, isa: Isa, options: LoadOptions, steps: &[usize]) -> Vec<f32> {
    let model = open(case);
    let mut decoder = model
        .load(&CpuBackend::with_isa(isa), &options)
        .expect("a model that fits");
    let sequence = decoder.start();
    let tokens = case.tokens();
    let mut rows = Vec::new();
    let mut start = 0;
    for &step in steps {
        let run = Run {
            sequence,
            tokens: &tokens[start..start + step],
            wanted: Wanted::From(0),
            select: Select::All,
        };
        decoder
            .forward(&[run], &mut |scored| {
                if let Scores::All(logits) = scored.scores {
                    rows.push(logits.to_vec());
                }
            })
            .expect("it computes");
        start += step;
    }
    rows.split_off(rows.len() - ROWS).concat()
}

/// Σ (a - b)² / Σ a²
fn normalised_error(expected: &[f32], actual: &[f32]) -> f64 {
    assert_eq!(expected.len(), actual.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = expected
        .iter()
        .zip(actual)
        .map(|(a, b)| square(a - b))
        .sum();
    difference / expected.iter().map(|&a| square(a)).sum::<f64>()
}
