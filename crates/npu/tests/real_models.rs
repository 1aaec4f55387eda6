//! The simulator on real weights. Skipped, and said so, without them.

use std::io::Write;
use std::path::PathBuf;

use ondine_npu::sim::SimBackend;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{Backend, LoadOptions, Run, Scores, Select, Wanted};
use ondine_runtime::{Limits, Model};

/// From the beginning of wikitext-2's validation text (CC BY-SA 3.0).
const TEXT: &str = "Homarus gammarus, known as the European lobster or common lobster, is a species of clawed \
    lobster from the eastern Atlantic Ocean, Mediterranean Sea and parts of the Black Sea. It is closely related to the \
    American lobster, H. americanus. It may grow to a length of 60 cm and a mass of 6 kilograms, and bears a conspicuous \
    pair of claws. In life, the lobsters are blue, only becoming red on cooking. Mating occurs in the summer, producing \
    eggs which are carried by the females for up to a year before hatching into planktonic larvae.";

/// SmolLM2 through 2 MiB of on-chip memory: the most likely next token agrees with the CPU backend's for so many of the
/// text's tokens, whose own 8-bit activations have a scale for every 32 elements where these devices have one for a
/// whole row.
#[test]
fn smollm2_runs_through_two_mebibytes() {
    let Some(path) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let model = Model::open(&path, &Limits::default()).unwrap();
    let mut tokens = model.encode_rendered(TEXT);
    tokens.truncate(80);
    let cpu = CpuBackend::from_environment().unwrap();
    let expected = logits(&cpu, &model, &tokens);
    for (device, least_agreement, most_divergence) in [
        ("intel-npu-4000,dtype=w8a16,sram=2MiB", 0.95, 0.02),
        ("rk3588,sram=2MiB", 0.87, 0.07),
    ] {
        let backend = SimBackend::parse(device).unwrap();
        let actual = logits(&backend, &model, &tokens);
        let (agreement, divergence) = compare(&expected, &actual);
        let statistics = backend.statistics();
        println!(
            "{device}: agreement {:.1} %, mean KL {divergence:.4}, on chip {} of {} bytes, {} tiles, predicted {:.1} ms, {:.2} times as fast as with one buffer",
            100.0 * agreement,
            statistics.high_water_bytes,
            statistics.sram_bytes,
            statistics.tiles,
            1e3 * statistics.predicted_seconds,
            statistics.single_buffer_seconds / statistics.predicted_seconds,
        );
        assert!(agreement >= least_agreement, "{device}: {agreement}");
        assert!(divergence <= most_divergence, "{device}: {divergence}");
        assert_eq!(statistics.sram_bytes, 2 << 20);
        assert!(statistics.high_water_bytes <= statistics.sram_bytes);
    }
}

fn logits(backend: &dyn Backend, model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let options = LoadOptions {
        context: Some(256),
        ..LoadOptions::default()
    };
    let mut decoder = model.load(backend, &options).unwrap();
    let sequence = decoder.start();
    let mut rows = Vec::new();
    let run = Run {
        sequence,
        tokens,
        wanted: Wanted::From(0),
        select: Select::All,
    };
    decoder
        .forward(&[run], &mut |scored| {
            if let Scores::All(logits) = scored.scores {
                rows.push(logits.to_vec());
            }
        })
        .unwrap();
    rows
}

/// (share of rows with the same best token, mean Kullback-Leibler divergence in nats).
fn compare(expected: &[Vec<f32>], actual: &[Vec<f32>]) -> (f64, f64) {
    assert_eq!(expected.len(), actual.len());
    let best = |row: &[f32]| {
        let pairs = row.iter().enumerate();
        pairs
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map(|(index, _)| index)
    };
    let mut same = 0;
    let mut divergence = 0.0;
    for (expected, actual) in expected.iter().zip(actual) {
        same += usize::from(best(expected) == best(actual));
        let (p, q) = (log_softmax(expected), log_softmax(actual));
        let terms = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q));
        divergence += terms.sum::<f64>();
    }
    let rows = expected.len() as f64;
    (same as f64 / rows, divergence / rows)
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
    let all = f64::from(most) + sum.ln();
    row.iter().map(|x| f64::from(*x) - all).collect()
}

/// The model's file in the directory that `ONDINE_TEST_MODELS` names.
fn real_model(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("ONDINE_TEST_MODELS").map(PathBuf::from);
    let path = directory.map(|directory| directory.join(format!("{name}.gguf")));
    let found = path.filter(|path| path.is_file());
    if found.is_none() {
        // Standard error itself: the harness holds back what a passing test prints with `println!`.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {name}.gguf is not in the directory that ONDINE_TEST_MODELS names; ./test.sh gets it"
        );
    }
    found
}
