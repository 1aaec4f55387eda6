//! One suite that every backend passes, over models of every dense architecture; each backend keeps its exceptions.
//!
//! The vendor runtimes are found where their variables or Python say; `test.sh` installs them. What is not there is
//! skipped, and said so.

use std::io::Write;
use std::sync::Arc;

use ondine_fixtures::{ARCHITECTURES, Tiny};
use ondine_kernels::TensorType;
use ondine_npu::choose::{Settings, named};
use ondine_npu::sim::SimBackend;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{
    Backend, BackendError, Decoder, LoadOptions, Run, Scores, Select, SequenceId, Wanted,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::source::Memory;
use ondine_runtime::{Limits, Model};

const CONTEXT: usize = 64;

/// Largest difference of two scores, relative to the largest score: both sides round activations to 8 bits, each in
/// its own way. The next position's scores differ by ten times as much ([`Case::compare`] checks that).
const TOLERANCE: f32 = 0.06;

/// What a backend does not do as the CPU backend does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exception {
    /// State is not saved: the runtime's interface does not give it out.
    NoState,
}

struct Case<'a> {
    what: String,
    reference: Vec<Vec<f32>>,
    backend: &'a dyn Backend,
    model: &'a Model,
    exceptions: &'a [Exception],
}

#[test]
fn cpu() {
    let backend = CpuBackend::from_environment().expect("a processor");
    // Without experts: near ties of a router fall the other way with the last bit of its scores, and another expert
    // answers.
    let mut all = dense();
    all.push("lfm2");
    run(&all, TensorType::Q8_0, |_| Arc::new(backend.clone()), &[]);
}

#[test]
#[cfg(feature = "onnx")]
fn onnx() {
    let Some((_directory, settings)) = settings("onnx:cpu") else {
        return;
    };
    // Fused attention where it fits, and the fixed form with which NPU providers are fed.
    for form in ["fused", "fixed"] {
        for ty in [TensorType::Q8_0, TensorType::Q4_1] {
            run(
                &dense(),
                ty,
                |model| {
                    let mut settings = settings.clone();
                    settings.model = Some(model);
                    settings.options.push(("FORM".into(), form.into()));
                    named("onnx:cpu", &settings).expect("a backend")
                },
                &[],
            );
        }
    }
}

#[test]
#[cfg(feature = "openvino")]
fn openvino() {
    let Some((_directory, settings)) = settings("openvino:CPU") else {
        return;
    };
    // Compiling takes a second each: with minima all architectures, without them one.
    for (architectures, ty) in [
        (vec!["llama"], TensorType::Q8_0),
        (dense(), TensorType::Q4_1),
    ] {
        run(
            &architectures,
            ty,
            |model| {
                let mut settings = settings.clone();
                settings.model = Some(model);
                named("openvino:CPU", &settings).expect("a backend")
            },
            &[Exception::NoState],
        );
    }
}

/// The simulator, through 2 MiB of on-chip memory. Its devices keep weights in 8 bits with one scale per row, where the
/// model has one per 32 columns, and activations in 16 bits or, on the RK3588, in 8 with one scale per token.
#[test]
fn sim() {
    for device in [
        "intel-npu-4000,dtype=w8a16,sram=2MiB",
        "rk3588,dtype=w8a8,sram=2MiB",
        "xdna2,dtype=w8a16,sram=2MiB",
    ] {
        let backend = SimBackend::parse(device).expect("a device");
        let make = |_| -> Arc<dyn Backend> { Arc::new(backend.clone()) };
        run(&dense(), TensorType::Q8_0, make, &[]);
        let statistics = backend.statistics();
        assert!(statistics.high_water_bytes > 0);
        assert!(statistics.high_water_bytes <= 2 << 20, "{statistics:?}");
    }
}

/// Those that the exports express: no experts, no short convolutions.
fn dense() -> Vec<&'static str> {
    let others = ["olmoe", "qwen3moe", "granitemoe", "lfm2"];
    let all = ARCHITECTURES.iter().copied();
    all.filter(|name| !others.contains(name)).collect()
}

fn run(
    architectures: &[&'static str],
    ty: TensorType,
    backend: impl Fn(Arc<Model>) -> Arc<dyn Backend>,
    exceptions: &[Exception],
) {
    let mut failures = Vec::new();
    for architecture in architectures {
        let model = Arc::new(tiny(architecture, ty));
        let backend = backend(model.clone());
        let case = Case {
            what: format!("{} on {architecture} of {ty}", backend.name()),
            reference: reference(&model),
            backend: backend.as_ref(),
            model: &model,
            exceptions,
        };
        failures.extend(case.run().err());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Settings with a cache that is the test's own; none, and a word about it, when the runtime is not there.
#[cfg(any(feature = "onnx", feature = "openvino"))]
fn settings(name: &str) -> Option<(tempfile::TempDir, Settings)> {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = Settings {
        cache: Some(directory.path().to_owned()),
        ..Settings::default()
    };
    match named(name, &settings).expect("a backend").probe() {
        Ok(_) => Some((directory, settings)),
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "skipped: {name}: {reason}");
            None
        }
    }
}

const TOKENS: [u32; 24] = [
    1, 7, 30, 12, 44, 9, 3, 21, 5, 60, 17, 2, 33, 8, 40, 11, 26, 6, 50, 19, 4, 37, 10, 28,
];

fn tiny(architecture: &'static str, tensor_type: TensorType) -> Model {
    let tiny = Tiny {
        tensor_type,
        // Rows that fill blocks of 32, as real models have them.
        ..Tiny::new(architecture, 5)
    };
    let limits = Limits::default();
    let name = format!("{architecture}.gguf");
    let file = ModelFile::from_source(Arc::new(Memory::new(name.as_str(), tiny.gguf())), &limits)
        .expect("a whole file");
    Model::from_file(name.as_ref(), file, &limits).expect("a model")
}

fn options() -> LoadOptions {
    LoadOptions {
        context: Some(CONTEXT),
        threads: Some(1),
        ..LoadOptions::default()
    }
}

/// Scores of the CPU backend after each token.
fn reference(model: &Model) -> Vec<Vec<f32>> {
    let backend = CpuBackend::from_environment().expect("a processor");
    let mut decoder = model.load(&backend, &options()).expect("a decoder");
    let sequence = decoder.start();
    scores(decoder.as_mut(), sequence, &TOKENS, Wanted::From(0)).expect("scores")
}

fn scores(
    decoder: &mut dyn Decoder,
    sequence: SequenceId,
    tokens: &[u32],
    wanted: Wanted,
) -> Result<Vec<Vec<f32>>, BackendError> {
    let mut all = Vec::new();
    let run = Run {
        sequence,
        tokens,
        wanted,
        select: Select::All,
    };
    decoder.forward(&[run], &mut |scored| {
        if let Scores::All(logits) = scored.scores {
            all.push(logits.to_vec());
        }
    })?;
    Ok(all)
}

impl Case<'_> {
    fn run(&self) -> Result<(), String> {
        let failed = |error: BackendError| format!("{}: {error}", self.what);
        let mut decoder = self.model.load(self.backend, &options()).map_err(failed)?;
        let decoder = decoder.as_mut();

        // All at once, then in parts of any length.
        let whole = decoder.start();
        let all = scores(decoder, whole, &TOKENS, Wanted::From(0)).map_err(failed)?;
        for (position, scores) in all.iter().enumerate() {
            self.compare(position, scores)?;
        }
        let parts = decoder.start();
        let mut first = 0;
        for length in [5, 1, 1, 9, 8] {
            let tokens = &TOKENS[first..first + length];
            let last = scores(decoder, parts, tokens, Wanted::Last).map_err(failed)?;
            first += length;
            self.equal(last.len(), 1, "scores of a part")?;
            self.compare(first - 1, &last[0])?;
        }
        self.equal(decoder.length(parts), TOKENS.len(), "tokens held")?;

        // What is taken back may be more than was asked for, never less.
        let kept = decoder.truncate(whole, 10);
        if kept > 10 {
            return Err(format!("{}: holds {kept} tokens of 10", self.what));
        }
        let again = scores(decoder, whole, &TOKENS[kept..], Wanted::Last).map_err(failed)?;
        self.compare(TOKENS.len() - 1, &again[0])?;

        // A fork goes its own way.
        let short = decoder.start();
        scores(decoder, short, &TOKENS[..12], Wanted::Nothing).map_err(failed)?;
        let fork = decoder.fork(short).map_err(failed)?;
        scores(decoder, short, &[55, 56, 57], Wanted::Last).map_err(failed)?;
        let own = scores(decoder, fork, &TOKENS[12..], Wanted::Last).map_err(failed)?;
        self.compare(TOKENS.len() - 1, &own[0])?;

        // What cannot be done changes nothing.
        let many = vec![1; CONTEXT];
        match scores(decoder, fork, &many, Wanted::Last) {
            Err(BackendError::ContextFull { .. }) => (),
            other => {
                return Err(format!(
                    "{}: {:?} beyond the context",
                    self.what,
                    other.err()
                ));
            }
        }
        self.equal(decoder.length(fork), TOKENS.len(), "tokens held")?;
        let unknown = self.model.spec().vocabulary as u32;
        match scores(decoder, fork, &[unknown], Wanted::Last) {
            Err(BackendError::UnknownToken { .. }) => (),
            other => return Err(format!("{}: {:?} of no token", self.what, other.err())),
        }

        let mut saved = Vec::new();
        let result = decoder.save(parts, &mut saved);
        if self.exceptions.contains(&Exception::NoState) {
            return match result {
                Err(BackendError::State(_)) => Ok(()),
                other => Err(format!("{}: {other:?} for a saved state", self.what)),
            };
        }
        result.map_err(failed)?;
        let restored = decoder
            .restore(TOKENS.len(), &mut saved.as_slice())
            .map_err(failed)?;
        let kept = decoder.truncate(restored, 20);
        let last = scores(decoder, restored, &TOKENS[kept..], Wanted::Last).map_err(failed)?;
        self.compare(TOKENS.len() - 1, &last[0])
    }

    /// `scores` are those after the token at `position`, and not those after its neighbour.
    fn compare(&self, position: usize, scores: &[f32]) -> Result<(), String> {
        let distance = |other: usize| {
            let expected = &self.reference[other];
            let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let differences = expected.iter().zip(scores).map(|(a, b)| (a - b).abs());
            differences.fold(0.0f32, f32::max) / largest
        };
        let own = distance(position);
        if own.is_nan() || own > TOLERANCE {
            return Err(format!("{}: {own} after token {position}", self.what));
        }
        let neighbour = if position == 0 { 1 } else { position - 1 };
        match distance(neighbour) > TOLERANCE {
            true => Ok(()),
            false => Err(format!(
                "{}: the tolerance passes the scores of another position",
                self.what
            )),
        }
    }

    fn equal(&self, found: usize, expected: usize, what: &str) -> Result<(), String> {
        match found == expected {
            true => Ok(()),
            false => Err(format!("{}: {found} {what}, not {expected}", self.what)),
        }
    }
}
