//! The simulator against the CPU backend, on tiny random models of every dense architecture.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ondine_fixtures::{ARCHITECTURES, Random, Tiny};
use ondine_npu::sim::{SimBackend, SimStatistics};
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{
    Backend, BackendError, Deadlines, Decoder, FallbackDecoder, KvType, LoadOptions, Run, Scores,
    Select, SequenceId, Wanted,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::source::Memory;
use ondine_runtime::{Limits, Model};

const TOKENS: usize = 40;

/// Bounds on the normalised mean square error of logits against the CPU backend's on 32-bit weights. Half precision
/// rounds the residual stream to 11 bits a dozen times per layer, bfloat16 to 8 bits; int8 activations and 8-bit
/// rows lose 1/254 of a row's range twice per product.
const HALF_ERROR: f64 = 2e-5;
const BRAIN_ERROR: f64 = 3e-3;
const INT8_ERROR: f64 = 5e-3;

#[test]
fn every_dense_architecture_gives_the_cpu_backends_logits() {
    let mut failures = Vec::new();
    let mut seen = 0;
    for architecture in ARCHITECTURES {
        let model = open(&Tiny::new(architecture, 7));
        let expected = logits(
            &CpuBackend::with_isa(ondine_kernels::Isa::detect()),
            &model,
            &[TOKENS],
        );
        for (device, bound) in [
            ("intel-npu-4000,dtype=w16a16", HALF_ERROR),
            ("ethos-u85,dtype=w8a16", INT8_ERROR),
            ("rk3588", INT8_ERROR),
            ("xdna2,dtype=w8a16", BRAIN_ERROR),
            ("snapdragon-x-elite,dtype=w8a16", INT8_ERROR),
        ] {
            let backend = SimBackend::parse(device).unwrap();
            if backend.fits(model.spec(), &options()).is_err() {
                continue;
            }
            seen += 1;
            let actual = logits(&backend, &model, &[TOKENS]);
            let error = normalised_error(&expected, &actual);
            println!("{architecture:<10} {device:<32} {error:.2e}");
            if error.is_nan() || error > bound {
                failures.push(format!(
                    "{architecture} {device}: {error:.2e} > {bound:.0e}"
                ));
            }
        }
    }
    assert!(seen >= 50, "{seen}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// How the tokens are cut into steps, how large the chip is and how many buffers it has change nothing but rounding.
#[test]
fn tiling_does_not_change_the_result() {
    let model = open(&Tiny::new("gemma3", 3));
    let one_by_one = vec![1; TOKENS];
    let whole = run_with("intel-npu-4000,dtype=w8a16,sram=8MiB", &model, &[TOKENS]).0;
    for (device, steps) in [
        ("intel-npu-4000,dtype=w8a16,sram=8MiB", &one_by_one[..]),
        ("intel-npu-4000,dtype=w8a16,sram=16KiB", &[TOKENS][..]),
        (
            "intel-npu-4000,dtype=w8a16,sram=24KiB,buffers=1",
            &[17, TOKENS - 17],
        ),
    ] {
        let (logits, statistics) = run_with(device, &model, steps);
        let error = normalised_error(&whole, &logits);
        assert!(error < 1e-5, "{device}: {error:.2e}");
        assert!(
            statistics.high_water_bytes <= statistics.sram_bytes,
            "{statistics:?}"
        );
        assert!(
            statistics.high_water_bytes > statistics.sram_bytes / 16,
            "{statistics:?}"
        );
    }
}

/// A small chip streams keys and values in many blocks; a large one keeps them.
#[test]
fn keys_and_values_stay_or_stream() {
    let model = open(&Tiny::new("llama", 5));
    let (small, small_statistics) = run_with("ethos-u85,dtype=w8a16,sram=16KiB", &model, &[TOKENS]);
    let (large, large_statistics) = run_with("ethos-u85,dtype=w8a16,sram=4MiB", &model, &[TOKENS]);
    assert!(normalised_error(&large, &small) < 1e-5);
    assert!(small_statistics.tiles > large_statistics.tiles);
    assert!(small_statistics.bytes > large_statistics.bytes);
}

#[test]
fn a_chip_that_is_too_small_is_refused() {
    let model = open(&Tiny {
        embedding: 512,
        feed_forward: 1024,
        ..Tiny::new("llama", 5)
    });
    let backend = SimBackend::parse("intel-npu-4000,dtype=w8a16,sram=8KiB").unwrap();
    let error = model.load(&backend, &options()).err().unwrap().to_string();
    assert!(
        error.contains("on-chip memory") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn mixtures_and_convolutions_are_refused_in_one_sentence() {
    for architecture in ["olmoe", "qwen3moe", "lfm2"] {
        let model = open(&Tiny::new(architecture, 1));
        let backend = SimBackend::parse("rk3588").unwrap();
        let error = model.load(&backend, &options()).err().unwrap().to_string();
        assert!(
            error.contains(architecture) && !error.contains('\n'),
            "{error}"
        );
    }
}

/// Sequences do not disturb each other, also where the chip keeps the keys and values of one.
#[test]
fn sequences_fork_shorten_and_come_back() {
    let model = open(&Tiny::new("llama", 9));
    let backend = SimBackend::parse("intel-npu-4000,dtype=w8a16,sram=4MiB").unwrap();
    let mut decoder = model.load(&backend, &options()).unwrap();
    let first = decoder.start();
    let mut random = Random::new(5);
    let tokens: Vec<u32> = (0..24).map(|_| random.below(256) as u32).collect();
    step(decoder.as_mut(), first, &tokens).unwrap();
    let second = decoder.fork(first).unwrap();
    let a = step(decoder.as_mut(), first, &[1]).unwrap();
    let b = step(decoder.as_mut(), second, &[2]).unwrap();
    assert_ne!(a, b);
    assert_eq!(decoder.truncate(second, 24), 24);
    assert_eq!(step(decoder.as_mut(), second, &[1]).unwrap(), a);
    let mut saved = Vec::new();
    assert_eq!(decoder.truncate(first, 24), 24);
    decoder.save(first, &mut saved).unwrap();
    let restored = decoder.restore(24, &mut saved.as_slice()).unwrap();
    assert_eq!(step(decoder.as_mut(), restored, &[1]).unwrap(), a);
    assert!(decoder.restore(24, &mut &saved[1..]).is_err());
}

/// Every fault comes when it was told to, is what it was told to be, and lost devices stay lost.
#[test]
fn faults_come_when_they_were_told_to() {
    let model = open(&Tiny::new("llama", 2));
    for (kind, name) in [
        ("device-lost", "DeviceLost"),
        ("out-of-memory", "OutOfMemory"),
        ("driver-too-old", "DriverTooOld"),
        ("compile-failed", "CompileFailed"),
    ] {
        for at in [0, 1, 5] {
            let backend = SimBackend::parse(&format!("rk3588,fault={kind}@{at}")).unwrap();
            let mut decoder = model.load(&backend, &options()).unwrap();
            let sequence = decoder.start();
            for _ in 0..at {
                step(decoder.as_mut(), sequence, &[1]).unwrap();
            }
            for _ in 0..2 {
                let error = step(decoder.as_mut(), sequence, &[1]).unwrap_err();
                assert_eq!(error.reason().unwrap().kind(), name);
                assert_eq!(decoder.length(sequence), at);
            }
        }
        let backend = SimBackend::parse(&format!("rk3588,fault={kind}")).unwrap();
        let error = model.load(&backend, &options()).err().unwrap();
        assert_eq!(error.reason().unwrap().kind(), name);
    }
    let backend = SimBackend::parse("rk3588,fault=nan@1").unwrap();
    let mut decoder = model.load(&backend, &options()).unwrap();
    let sequence = decoder.start();
    assert!(step(decoder.as_mut(), sequence, &[1]).unwrap()[0].is_finite());
    assert!(step(decoder.as_mut(), sequence, &[1]).unwrap()[0].is_nan());
    let backend = SimBackend::parse("rk3588,fault=hang@0,hang=300").unwrap();
    let mut decoder = model.load(&backend, &options()).unwrap();
    let sequence = decoder.start();
    let before = std::time::Instant::now();
    step(decoder.as_mut(), sequence, &[1]).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(300));
}

/// At every token of a generation, for each fault: the conversation goes on elsewhere with the same text, and the
/// reason is right. The text without a fault is the processor's, so the device that fails computes the same tokens.
#[test]
fn a_conversation_outlives_every_fault() {
    const STEPS: u64 = 64;
    let model = Arc::new(open(&Tiny::new("llama", 2)));
    let cpu: Arc<dyn Backend> = Arc::new(CpuBackend::with_isa(ondine_kernels::Isa::detect()));
    let whole = LoadOptions {
        context: Some(128),
        ..options()
    };
    let generate = |decoder: &mut dyn Decoder| {
        let sequence = decoder.start();
        let mut tokens = vec![3u32, 1, 4, 1, 5];
        let mut next = step(decoder, sequence, &tokens).unwrap();
        for _ in 0..STEPS {
            let best = ondine_kernels::ops::argmax(&next).unwrap() as u32;
            tokens.push(best);
            next = step(decoder, sequence, &[best]).unwrap();
        }
        tokens
    };
    let expected = generate(model.load(cpu.as_ref(), &whole).unwrap().as_mut());
    for (kind, name) in [
        ("device-lost", "DeviceLost"),
        ("out-of-memory", "OutOfMemory"),
        ("driver-too-old", "DriverTooOld"),
        ("compile-failed", "CompileFailed"),
        ("nan", "BadResult"),
        ("hang", "Timeout"),
    ] {
        // A hang costs its deadline each time.
        let stride = if kind == "hang" { 16 } else { 1 };
        for at in (0..=STEPS).step_by(stride) {
            let text = format!("intel-npu-4000,dtype=w16a16,fault={kind}@{at},hang=3000");
            let failing: Arc<dyn Backend> = Arc::new(SimBackend::parse(&text).unwrap());
            let deadlines = Deadlines {
                // Others must never run into it, however slow the machine.
                step: Duration::from_secs(if kind == "hang" { 1 } else { 300 }),
                ..Deadlines::default()
            };
            let mut decoder = FallbackDecoder::load(
                &model,
                vec![failing, cpu.clone()],
                &whole,
                deadlines,
                Box::new(|_| {}),
            )
            .unwrap();
            assert_eq!(generate(&mut decoder), expected, "{text}");
            let kinds: Vec<_> = decoder
                .step_downs()
                .iter()
                .map(|step| step.reason.kind())
                .collect();
            assert_eq!(kinds, [name], "{text}");
        }
    }
}

/// The comparison can fail: weights of another seed, or a precision of 4 bits where 16 are promised.
#[test]
fn a_planted_fault_is_seen() {
    let model = open(&Tiny::new("llama", 7));
    let expected = logits(
        &CpuBackend::with_isa(ondine_kernels::Isa::detect()),
        &model,
        &[TOKENS],
    );
    let other = open(&Tiny::new("llama", 8));
    let wrong = run_with("intel-npu-4000,dtype=w16a16", &other, &[TOKENS]).0;
    assert!(normalised_error(&expected, &wrong) > BRAIN_ERROR);
    let coarse = run_with("intel-npu-4000,dtype=w4a16", &model, &[TOKENS]).0;
    assert!(normalised_error(&expected, &coarse) > HALF_ERROR);
}

fn options() -> LoadOptions {
    LoadOptions {
        kv_type: KvType::F32,
        threads: Some(1),
        context: Some(64),
        ..LoadOptions::default()
    }
}

fn open(tiny: &Tiny) -> Model {
    let limits = Limits::default();
    let source = Arc::new(Memory::new(tiny.architecture, tiny.gguf()));
    let file = ModelFile::from_source(source, &limits).unwrap();
    Model::from_file(Path::new(tiny.architecture), file, &limits).unwrap()
}

fn run_with(device: &str, model: &Model, steps: &[usize]) -> (Vec<f32>, SimStatistics) {
    let backend = SimBackend::parse(device).unwrap();
    let logits = logits(&backend, model, steps);
    (logits, backend.statistics())
}

/// Logits of all tokens when they are given in `steps`.
fn logits(backend: &dyn Backend, model: &Model, steps: &[usize]) -> Vec<f32> {
    let mut decoder = model.load(backend, &options()).unwrap();
    let sequence = decoder.start();
    let mut random = Random::new(77);
    let tokens: Vec<u32> = (0..TOKENS).map(|_| random.below(256) as u32).collect();
    let mut all = Vec::new();
    let mut start = 0;
    for &length in steps {
        let run = Run {
            sequence,
            tokens: &tokens[start..start + length],
            wanted: Wanted::From(0),
            select: Select::All,
        };
        decoder
            .forward(&[run], &mut |scored| {
                if let Scores::All(logits) = scored.scores {
                    all.extend_from_slice(logits);
                }
            })
            .unwrap();
        start += length;
    }
    all
}

fn step(
    decoder: &mut dyn Decoder,
    sequence: SequenceId,
    tokens: &[u32],
) -> Result<Vec<f32>, BackendError> {
    let mut last = Vec::new();
    let run = Run {
        sequence,
        tokens,
        wanted: Wanted::Last,
        select: Select::All,
    };
    decoder.forward(&[run], &mut |scored| {
        if let Scores::All(logits) = scored.scores {
            last = logits.to_vec();
        }
    })?;
    Ok(last)
}

/// Σ (a - b)² / Σ a²
fn normalised_error(expected: &[f32], actual: &[f32]) -> f64 {
    assert_eq!(expected.len(), actual.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let pairs = expected.iter().zip(actual);
    let difference: f64 = pairs.map(|(a, b)| square(a - b)).sum();
    difference / expected.iter().map(|&a| square(a)).sum::<f64>()
}
