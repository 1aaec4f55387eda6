//! Faults at every token of a generation: the conversation goes on elsewhere, to the token, with the right reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ondine_fixtures::Tiny;
use ondine_kernels::Isa;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{
    Backend, BackendError, Deadlines, Decoder, DeviceReport, FallbackDecoder, Fit, LoadOptions,
    MemoryReport, Moment, Run, Scored, Scores, SequenceId, Unavailable,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::model::ModelSpec;
use ondine_runtime::sample::SamplingOptions;
use ondine_runtime::source::Memory;
use ondine_runtime::{GenerateOptions, Limits, Model, Session, Speculation};

const TOKENS: usize = 64;

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Never,
    DeviceLost,
    OutOfMemory,
    NotANumber,
    Hang,
    Panic,
    /// At probe and at load.
    DriverTooOld,
    CompileFailed,
    LoadHangs,
}

/// The CPU backend, failing at its step number `at`.
#[derive(Clone)]
struct Faulty {
    inner: CpuBackend,
    fault: Fault,
    at: usize,
    context: usize,
}

impl Faulty {
    fn new(fault: Fault, at: usize) -> Self {
        Faulty {
            inner: CpuBackend::with_isa(Isa::detect()),
            fault,
            at,
            context: usize::MAX,
        }
    }
}

impl Backend for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn probe(&self) -> Result<DeviceReport, Unavailable> {
        match self.fault {
            Fault::DriverTooOld => Err(Unavailable::DriverTooOld("driver 1, needs 2".into())),
            _ => self.inner.probe(),
        }
    }

    fn fits(&self, spec: &ModelSpec, options: &LoadOptions) -> Result<Fit, Unavailable> {
        self.inner.fits(spec, options)
    }

    fn load(
        &self,
        file: &ModelFile,
        spec: &Arc<ModelSpec>,
        options: &LoadOptions,
    ) -> Result<Box<dyn Decoder>, BackendError> {
        match self.fault {
            Fault::CompileFailed => {
                return Err(Unavailable::CompileFailed("too many layers".into()).into());
            }
            Fault::LoadHangs => std::thread::sleep(Duration::from_secs(20)),
            _ => (),
        }
        Ok(Box::new(FaultyDecoder {
            inner: self.inner.load(file, spec, options)?,
            fault: self.fault,
            at: self.at,
            steps: AtomicUsize::new(0),
            context: self.context,
        }))
    }
}

struct FaultyDecoder {
    inner: Box<dyn Decoder>,
    fault: Fault,
    at: usize,
    steps: AtomicUsize,
    context: usize,
}

impl Decoder for FaultyDecoder {
    fn spec(&self) -> &Arc<ModelSpec> {
        self.inner.spec()
    }

    fn device(&self) -> &DeviceReport {
        self.inner.device()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length().min(self.context)
    }

    fn chunk(&self) -> usize {
        self.inner.chunk()
    }

    fn start(&mut self) -> SequenceId {
        self.inner.start()
    }

    fn stop(&mut self, sequence: SequenceId) {
        self.inner.stop(sequence);
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.inner.length(sequence)
    }

    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        let fault = match self.steps.fetch_add(1, Ordering::Relaxed) == self.at {
            true => self.fault,
            false => Fault::Never,
        };
        match fault {
            Fault::DeviceLost => Err(Unavailable::DeviceLost("unplugged".into()).into()),
            Fault::OutOfMemory => Err(Unavailable::OutOfMemory("4 GiB wanted".into()).into()),
            Fault::Hang => {
                std::thread::sleep(Duration::from_secs(20));
                Ok(())
            }
            Fault::Panic => panic!("a planted fault; the line above is expected"),
            Fault::NotANumber => self.inner.forward(batch, &mut |scored| {
                if let Scores::All(logits) = scored.scores {
                    logits[3] = f32::NAN;
                    scores(Scored {
                        run: scored.run,
                        token: scored.token,
                        scores: Scores::All(logits),
                    });
                }
            }),
            _ => self.inner.forward(batch, scores),
        }
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize {
        self.inner.truncate(sequence, length)
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        self.inner.fork(sequence)
    }

    fn state_form(&self) -> String {
        self.inner.state_form()
    }

    fn save(&self, sequence: SequenceId, out: &mut dyn std::io::Write) -> Result<(), BackendError> {
        self.inner.save(sequence, out)
    }

    fn restore(
        &mut self,
        length: usize,
        input: &mut dyn std::io::Read,
    ) -> Result<SequenceId, BackendError> {
        self.inner.restore(length, input)
    }

    fn memory(&self) -> MemoryReport {
        self.inner.memory()
    }
}

fn model() -> Arc<Model> {
    let bytes = Tiny::new("llama", 11).gguf();
    let limits = Limits::default();
    let file = ModelFile::from_source(Arc::new(Memory::new("tiny", bytes)), &limits)
        .expect("a whole file");
    Arc::new(Model::from_file("tiny.gguf".as_ref(), file, &limits).expect("a model"))
}

fn options() -> LoadOptions {
    LoadOptions {
        context: Some(128),
        threads: Some(1),
        ..LoadOptions::default()
    }
}

/// The text of a sampled generation that any lost or doubled token would change, and the step downs.
fn generate(
    model: &Arc<Model>,
    decoder: Box<dyn Decoder>,
) -> (String, Vec<(String, &'static str, Moment)>) {
    let mut session = Session::new(model.clone(), decoder);
    let generation = session
        .generate(
            &[1, 5, 9],
            GenerateOptions {
                max_tokens: Some(TOKENS),
                sampling: SamplingOptions {
                    temperature: 1.0,
                    seed: 7,
                    ..SamplingOptions::default()
                },
                ignore_end: true,
                // One token per step, so that faults strike at known tokens.
                speculation: Speculation::Off,
                ..GenerateOptions::default()
            },
        )
        .expect("a generation");
    let tokens: Vec<String> = generation
        .filter_map(|piece| piece.expect("a piece").token)
        .map(|sampled| sampled.token.to_string())
        .collect();
    assert_eq!(tokens.len(), TOKENS);
    let step_downs = session.decoder().step_downs().iter();
    let step_downs = step_downs
        .map(|step| (step.backend.clone(), step.reason.kind(), step.moment))
        .collect();
    (tokens.join(" "), step_downs)
}

fn with_fault(model: &Arc<Model>, backend: Faulty, deadlines: Deadlines) -> Box<dyn Decoder> {
    let cpu = CpuBackend::with_isa(Isa::detect());
    let candidates: Vec<Arc<dyn Backend>> = vec![Arc::new(backend), Arc::new(cpu)];
    let decoder = FallbackDecoder::load(model, candidates, &options(), deadlines, Box::new(|_| ()));
    Box::new(decoder.expect("a decoder"))
}

#[test]
fn a_fault_at_any_token_changes_nothing_but_the_backend() {
    let model = model();
    let (expected, none) = generate(
        &model,
        with_fault(&model, Faulty::new(Fault::Never, 0), Deadlines::default()),
    );
    assert!(none.is_empty());
    for (fault, kind) in [
        (Fault::DeviceLost, "DeviceLost"),
        (Fault::OutOfMemory, "OutOfMemory"),
        (Fault::NotANumber, "BadResult"),
        (Fault::Panic, "DeviceLost"),
    ] {
        for at in 0..TOKENS {
            let decoder = with_fault(&model, Faulty::new(fault, at), Deadlines::default());
            let (text, step_downs) = generate(&model, decoder);
            assert_eq!(text, expected, "{fault:?} at {at}");
            // The prompt of three tokens is the first step.
            let tokens = if at == 0 { 0 } else { 3 + at - 1 };
            let moment = Moment::Generation { tokens };
            assert_eq!(step_downs, [("faulty".to_owned(), kind, moment)], "{at}");
        }
    }
}

#[test]
fn a_hang_at_any_token_ends_at_its_deadline() {
    let model = model();
    let (expected, _) = generate(
        &model,
        with_fault(&model, Faulty::new(Fault::Never, 0), Deadlines::default()),
    );
    let deadlines = Deadlines {
        step: Duration::from_millis(60),
        ..Deadlines::default()
    };
    for at in 0..TOKENS {
        let begun = Instant::now();
        let decoder = with_fault(&model, Faulty::new(Fault::Hang, at), deadlines);
        let (text, step_downs) = generate(&model, decoder);
        assert_eq!(text, expected, "at {at}");
        assert_eq!(step_downs.len(), 1);
        assert_eq!(step_downs[0].1, "Timeout");
        // The planted hang lasts 20 s: whoever waits for its end is far beyond this.
        assert!(begun.elapsed() < Duration::from_secs(15));
    }
}

#[test]
fn what_cannot_be_loaded_is_passed_over() {
    let model = model();
    let (expected, _) = generate(
        &model,
        with_fault(&model, Faulty::new(Fault::Never, 0), Deadlines::default()),
    );
    let deadlines = Deadlines {
        load: Duration::from_millis(500),
        ..Deadlines::default()
    };
    for (fault, kind, moment) in [
        (Fault::DriverTooOld, "DriverTooOld", Moment::Probe),
        (Fault::CompileFailed, "CompileFailed", Moment::Load),
        (Fault::LoadHangs, "Timeout", Moment::Load),
    ] {
        let (text, step_downs) =
            generate(&model, with_fault(&model, Faulty::new(fault, 0), deadlines));
        assert_eq!(text, expected);
        assert_eq!(step_downs, [("faulty".to_owned(), kind, moment)]);
    }
}

#[test]
fn a_conversation_that_outgrows_a_device_moves_on() {
    let model = model();
    let (expected, _) = generate(
        &model,
        with_fault(&model, Faulty::new(Fault::Never, 0), Deadlines::default()),
    );
    let mut small = Faulty::new(Fault::Never, 0);
    small.context = 20;
    let (text, step_downs) = generate(&model, with_fault(&model, small, Deadlines::default()));
    assert_eq!(text, expected);
    let moment = Moment::Generation { tokens: 20 };
    assert_eq!(
        step_downs,
        [("faulty".to_owned(), "ContextTooLong", moment)]
    );
}

#[test]
fn the_last_backends_reason_is_the_error() {
    let model = model();
    let candidates: Vec<Arc<dyn Backend>> = vec![Arc::new(Faulty::new(Fault::DriverTooOld, 0))];
    let result = FallbackDecoder::load(
        &model,
        candidates,
        &options(),
        Deadlines::default(),
        Box::new(|_| ()),
    );
    let error = result.err().expect("nothing is left");
    assert_eq!(error.reason().map(Unavailable::kind), Some("DriverTooOld"));
}
