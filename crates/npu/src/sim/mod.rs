//! A device that is not here: executes the tile program of a profile, tile by tile through a bounded on-chip memory, in
//! the device's precisions, and keeps the time that the schedule predicts.
//!
//! Tiling, double buffering, streamed keys and values and limits of precision are tested with real models this way.
//! Faults can be injected, to test what happens when a device fails ([`Fault`]).

mod cache;
mod chip;
mod execute;
mod options;
mod product;
mod store;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use ondine_kernels::{Isa, ThreadPool};
use ondine_runtime::backend::cpu::available_threads;
use ondine_runtime::backend::rope::RopeTables;
use ondine_runtime::backend::{
    Backend, BackendError, Decoder, DeviceReport, Fit, LoadOptions, MemoryReport, Run, Scored,
    Scores, SequenceId, Unavailable,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::model::{FeedForward, Mixer, ModelSpec};

use crate::profile::Activations;
use crate::program::{Program, Step, cache_bytes, chunk_rows, lower, schedule};
use cache::Sequence;
use chip::Chip;
use execute::{Engine, Execution};
pub use options::{Fault, FaultKind, SimOptions, SimOptionsError};
use store::Store;

/// A simulated device.
#[derive(Debug, Clone)]
pub struct SimBackend {
    name: String,
    options: SimOptions,
    statistics: Arc<Mutex<SimStatistics>>,
}

/// What the simulated device did so far, all decoders together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SimStatistics {
    /// Bytes of on-chip memory.
    pub sram_bytes: u64,
    /// End of the highest byte of it that was ever touched.
    pub high_water_bytes: u64,
    /// Steps executed.
    pub steps: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Tiles executed.
    pub tiles: u64,
    /// Bytes moved to and from memory.
    pub bytes: u64,
    /// Seconds that the device would have taken.
    pub predicted_seconds: f64,
    /// Seconds that it would have taken with one stream buffer.
    pub single_buffer_seconds: f64,
}

impl SimBackend {
    /// The device that `text` describes (what follows `sim:`).
    ///
    /// # Errors
    /// [`SimOptionsError`].
    pub fn parse(text: &str) -> Result<Self, SimOptionsError> {
        Ok(SimBackend::new(SimOptions::parse(text)?))
    }

    /// A device.
    pub fn new(options: SimOptions) -> Self {
        SimBackend {
            name: format!("sim:{}", options.profile.name),
            options,
            statistics: Arc::default(),
        }
    }

    /// What was done so far.
    pub fn statistics(&self) -> SimStatistics {
        *self
            .statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> DeviceReport {
        DeviceReport {
            backend: self.name.clone(),
            device: format!(
                "{}, {}, simulated",
                self.options.profile.title, self.options.precision.dtype
            ),
            threads: available_threads(),
        }
    }

    fn fault_while_loading(&self) -> Result<(), Unavailable> {
        match self.options.fault {
            Some(Fault {
                kind, step: None, ..
            }) => reason(kind, &self.name).map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }
}

/// What a fault is to those who use the backend; a hang and a NaN they must notice themselves.
fn reason(kind: FaultKind, name: &str) -> Option<Unavailable> {
    let text = |what: &str| format!("{name}: {what} (injected)");
    match kind {
        FaultKind::DeviceLost => Some(Unavailable::DeviceLost(text("the device was lost"))),
        FaultKind::OutOfMemory => Some(Unavailable::OutOfMemory(text(
            "the device's memory is full",
        ))),
        FaultKind::DriverTooOld => Some(Unavailable::DriverTooOld(text(
            "the driver is 1.0 where 2.0 is needed; update it",
        ))),
        FaultKind::CompileFailed => Some(Unavailable::CompileFailed(text(
            "the device's compiler refused the model",
        ))),
        FaultKind::Nan | FaultKind::Hang => None,
    }
}

impl Backend for SimBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn probe(&self) -> Result<DeviceReport, Unavailable> {
        match self.options.fault {
            Some(Fault {
                kind: kind @ (FaultKind::DriverTooOld | FaultKind::DeviceLost),
                step: None,
                ..
            }) => reason(kind, &self.name).map_or_else(|| Ok(self.report()), Err),
            _ => Ok(self.report()),
        }
    }

    fn fits(&self, spec: &ModelSpec, options: &LoadOptions) -> Result<Fit, Unavailable> {
        supported(spec, &self.name)?;
        let context = context_of(spec, &self.options, options);
        Ok(Fit {
            weights: 0,
            kv: cache_bytes(spec, &self.options.profile) * context as u64,
        })
    }

    fn load(
        &self,
        file: &ModelFile,
        spec: &Arc<ModelSpec>,
        options: &LoadOptions,
    ) -> Result<Box<dyn Decoder>, BackendError> {
        self.fault_while_loading()?;
        supported(spec, &self.name)?;
        let SimOptions {
            profile,
            precision,
            buffers,
            ..
        } = &self.options;
        let context = context_of(spec, &self.options, options);
        let brain = precision.activations == Activations::Bf16;
        let Some(forms) = cache::forms(spec, profile, brain) else {
            return Err(supported(spec, &self.name).err().map_or_else(
                || BackendError::State("cannot be kept".into()),
                BackendError::from,
            ));
        };
        let compile = |rows| {
            lower(&Step {
                spec,
                profile,
                precision,
                rows,
                position: 0,
                context,
                wanted: 1,
                buffers: *buffers,
            })
        };
        let mut chunk = chunk_rows(spec, profile, options.chunk.unwrap_or(usize::MAX).max(1));
        while chunk > 1 && compile(chunk).is_err() {
            chunk /= 2;
        }
        let program =
            compile(chunk).map_err(|error| Unavailable::Unsupported(error.to_string()))?;
        let pool = ThreadPool::new(options.threads.unwrap_or_else(available_threads).max(1));
        let store = Store::load(file, spec, precision, &pool)?;
        let ropes = RopeTables::new(file, spec, context)?;
        let sram = program.layout.sram;
        let mut statistics = self
            .statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        statistics.sram_bytes = sram as u64;
        drop(statistics);
        Ok(Box::new(SimDecoder {
            backend: self.clone(),
            report: self.report(),
            chip: Chip::new(sram, brain),
            engine: Engine {
                spec: spec.clone(),
                store,
                ropes,
                forms,
                activations: precision.activations,
                pool,
                isa: Isa::detect(),
            },
            context,
            chunk,
            sequences: BTreeMap::new(),
            next_sequence: 0,
            on_chip: None,
            scored_steps: 0,
            lost: None,
        }))
    }
}

fn context_of(spec: &ModelSpec, sim: &SimOptions, options: &LoadOptions) -> usize {
    let mut context = options.context.unwrap_or(spec.context_length).max(1);
    if let Some(limit) = sim.profile.context_limit {
        context = context.min(limit);
    }
    if let Some(positions) = &spec.position_embedding {
        context = context.min(positions.rows);
    }
    context
}

/// What the simulator executes: dense models with attention in every layer.
fn supported(spec: &ModelSpec, name: &str) -> Result<(), Unavailable> {
    for layer in &spec.layers {
        let what = match (&layer.mixer, &layer.feed_forward) {
            (Mixer::ShortConvolution(_), _) => "short convolutions",
            (_, FeedForward::Experts(_)) => "mixtures of experts",
            _ => continue,
        };
        return Err(Unavailable::Unsupported(format!(
            "{name}: {} has {what}, which the simulator does not execute; take --backend cpu",
            spec.architecture
        )));
    }
    Ok(())
}

struct SimDecoder {
    backend: SimBackend,
    report: DeviceReport,
    engine: Engine,
    chip: Chip,
    context: usize,
    chunk: usize,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_sequence: u64,
    /// Whose keys and values are on the chip, where they stay there.
    on_chip: Option<SequenceId>,
    /// Calls so far that gave scores.
    scored_steps: u64,
    /// A fault that stays.
    lost: Option<FaultKind>,
}

impl Decoder for SimDecoder {
    fn spec(&self) -> &Arc<ModelSpec> {
        &self.engine.spec
    }

    fn device(&self) -> &DeviceReport {
        &self.report
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn start(&mut self) -> SequenceId {
        let sequence = Sequence::new(&self.engine.forms);
        self.insert(sequence)
    }

    fn stop(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn length(&self, sequence: SequenceId) -> usize {
        let found = self.sequences.get(&sequence);
        found.map_or(0, |sequence| sequence.length)
    }

    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        self.check(batch)?;
        let poison = self.inject(batch)?;
        for (index, run) in batch.iter().enumerate() {
            let mut first = 0;
            while first < run.tokens.len() {
                let end = run.tokens.len().min(first + self.chunk);
                self.step(index, run, first..end, poison, scores)?;
                first = end;
            }
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize {
        let forms = &self.engine.forms;
        let Some(sequence) = self.sequences.get_mut(&sequence) else {
            return 0;
        };
        sequence.truncate(forms, length);
        sequence.length
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        let copy = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?
            .clone();
        Ok(self.insert(copy))
    }

    fn state_form(&self) -> String {
        let options = &self.backend.options;
        format!(
            "{} {} keys and values of {} bytes",
            self.backend.name, options.precision.dtype, options.profile.kv_bytes
        )
    }

    fn save(&self, sequence: SequenceId, out: &mut dyn Write) -> Result<(), BackendError> {
        let sequence = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?;
        for head in sequence.heads.iter().flatten() {
            out.write_all(head)?;
        }
        Ok(())
    }

    fn restore(&mut self, length: usize, input: &mut dyn Read) -> Result<SequenceId, BackendError> {
        if length > self.context {
            return Err(BackendError::ContextFull {
                wanted: length,
                context: self.context,
            });
        }
        let mut sequence = Sequence::new(&self.engine.forms);
        for (heads, form) in sequence.heads.iter_mut().zip(&self.engine.forms) {
            for head in heads {
                head.resize(length * form.position, 0);
                input.read_exact(head)?;
            }
        }
        sequence.length = length;
        Ok(self.insert(sequence))
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport {
            weights: self.engine.store.bytes,
            read_per_token: self.engine.store.bytes,
            kv: self.sequences.values().map(Sequence::bytes).sum(),
            kv_per_position: cache_bytes(&self.engine.spec, &self.backend.options.profile),
            scratch: self.backend.statistics().sram_bytes,
        }
    }
}

impl SimDecoder {
    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn check(&self, batch: &[Run<'_>]) -> Result<(), BackendError> {
        let vocabulary = self.engine.spec.vocabulary;
        let mut lengths = BTreeMap::new();
        for run in batch {
            let sequence = self
                .sequences
                .get(&run.sequence)
                .ok_or(BackendError::UnknownSequence(run.sequence))?;
            let length = lengths.entry(run.sequence).or_insert(sequence.length);
            *length += run.tokens.len();
            if *length > self.context {
                return Err(BackendError::ContextFull {
                    wanted: *length,
                    context: self.context,
                });
            }
            if let Some(&token) = run.tokens.iter().find(|&&t| t as usize >= vocabulary) {
                return Err(BackendError::UnknownToken { token, vocabulary });
            }
        }
        Ok(())
    }

    /// Lets the fault happen whose time has come; true when the scores of this call are to be spoilt.
    fn inject(&mut self, batch: &[Run<'_>]) -> Result<bool, BackendError> {
        let name = &self.backend.name;
        if let Some(reason) = self.lost.and_then(|kind| reason(kind, name)) {
            return Err(reason.into());
        }
        let scored = batch.iter().any(|run| {
            (0..run.tokens.len()).any(|index| run.wanted.includes(index, run.tokens.len()))
        });
        if !scored {
            return Ok(false);
        }
        let step = self.scored_steps;
        self.scored_steps += 1;
        let Some(fault) = self.backend.options.fault else {
            return Ok(false);
        };
        if step != fault.step.unwrap_or(0) {
            return Ok(false);
        }
        if let Some(reason) = reason(fault.kind, name) {
            self.lost = Some(fault.kind);
            return Err(reason.into());
        }
        if fault.kind == FaultKind::Hang {
            thread::sleep(fault.hang);
        }
        Ok(fault.kind == FaultKind::Nan)
    }

    /// Executes tokens `part` of a run, at most a chunk.
    fn step(
        &mut self,
        index: usize,
        run: &Run<'_>,
        part: std::ops::Range<usize>,
        poison: bool,
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        let wanted: Vec<usize> = part
            .clone()
            .filter(|&token| run.wanted.includes(token, run.tokens.len()))
            .map(|token| token - part.start)
            .collect();
        let Some(mut sequence) = self.sequences.remove(&run.sequence) else {
            return Err(BackendError::UnknownSequence(run.sequence));
        };
        let tokens = &run.tokens[part.clone()];
        let result = self.execute(run.sequence, &mut sequence, tokens, &wanted);
        // What a failed step had already appended is forgotten.
        let length = sequence.length;
        sequence.truncate(&self.engine.forms, length);
        self.sequences.insert(run.sequence, sequence);
        let mut logits = result?;
        let spec = &self.engine.spec;
        for (logits, row) in logits.chunks_exact_mut(spec.vocabulary).zip(&wanted) {
            for logit in logits.iter_mut() {
                *logit *= spec.logit_scale;
                if let Some(cap) = spec.logit_softcap {
                    *logit = cap * (*logit / cap).tanh();
                }
                if poison {
                    *logit = f32::NAN;
                }
            }
            scores(Scored {
                run: index,
                token: part.start + row,
                scores: Scores::All(logits),
            });
        }
        Ok(())
    }

    /// Lowers, executes and times one step; gives the logits.
    fn execute(
        &mut self,
        id: SequenceId,
        sequence: &mut Sequence,
        tokens: &[u32],
        wanted: &[usize],
    ) -> Result<Vec<f32>, BackendError> {
        let program = self.program(sequence.length, tokens.len(), wanted.len(), None)?;
        let single = self.program(sequence.length, tokens.len(), wanted.len(), Some(1))?;
        let mut execution = Execution::new(&self.engine, &mut self.chip, sequence, tokens, wanted);
        let overflow = |error: chip::Overflow| Unavailable::OutOfMemory(error.to_string());
        if program.layout.cache_stays && self.on_chip != Some(id) {
            execution.fill_cache(&program.layout).map_err(overflow)?;
        }
        execution.run(&program).map_err(overflow)?;
        let logits = std::mem::take(&mut execution.logits);
        self.on_chip = Some(id);
        let options = &self.backend.options;
        let time = |program| schedule(program, &options.profile, &options.precision, 1.0, false);
        let timeline = time(&program);
        let mut statistics = self
            .backend
            .statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        statistics.high_water_bytes = statistics.high_water_bytes.max(self.chip.high_water as u64);
        statistics.steps += 1;
        statistics.tokens += tokens.len() as u64;
        statistics.tiles += program.tiles.len() as u64;
        statistics.bytes += timeline.bytes;
        statistics.predicted_seconds += timeline.seconds;
        statistics.single_buffer_seconds += time(&single).seconds;
        Ok(logits)
    }

    fn program(
        &self,
        position: usize,
        rows: usize,
        wanted: usize,
        buffers: Option<usize>,
    ) -> Result<Program, Unavailable> {
        let options = &self.backend.options;
        lower(&Step {
            spec: &self.engine.spec,
            profile: &options.profile,
            precision: &options.precision,
            rows,
            position,
            context: self.context,
            wanted,
            buffers: buffers.unwrap_or(options.buffers),
        })
        .map_err(|error| Unavailable::OutOfMemory(error.to_string()))
    }
}
