//! The CPU backend: packed weights, paged keys and values, one thread pool.

mod attention;
mod convolution;
mod experts;
mod feed_forward;
mod head;
mod layer;
mod loader;
mod pace;
mod scratch;
mod streaming;
mod weights;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ondine_kernels::{Context, Isa, KvShape, KvType, PAGE_TOKENS, ThreadPool};

use super::{
    Backend, BackendError, Decoder, DeviceReport, Fit, HeadReport, LoadOptions, MemoryBudget,
    MemoryReport, Observer, Run, Scored, Scores, SequenceId, StreamingReport, Unavailable, Wanted,
};
use crate::backend::rope::RopeTables;
use crate::gguf::ModelFile;
use crate::kv_cache::{History, LayerState, PageList, SequenceState};
use crate::model::{Attention, Linear, Mixer, ModelSpec};
use head::{Head, RowScores};
use loader::Loaded;
pub(super) use loader::read_vector;
use scratch::Scratch;
use weights::Weights;

/// Rows whose logits are computed together: enough to read the head's weights rarely, few enough
/// that a large vocabulary's logits stay small.
const HEAD_ROWS: usize = 16;

/// Bytes of working buffers that the length of a chunk is chosen for.
const SCRATCH_BYTES: usize = 24 << 20;

/// Runs models on the processor's cores.
#[derive(Debug, Clone)]
pub struct CpuBackend {
    isa: Isa,
}

impl CpuBackend {
    /// The best instruction set of this processor, or the one that `ONDINE_ISA` names.
    ///
    /// # Errors
    /// When `ONDINE_ISA` names something unknown or absent.
    pub fn from_environment() -> Result<Self, Unavailable> {
        match std::env::var("ONDINE_ISA") {
            Ok(name) if !name.is_empty() => Isa::from_name(&name)
                .map(CpuBackend::with_isa)
                .map_err(|error| Unavailable::NotPresent(format!("ONDINE_ISA: {error}"))),
            _ => Ok(CpuBackend::with_isa(Isa::detect())),
        }
    }

    /// A backend that uses `isa`.
    pub fn with_isa(isa: Isa) -> Self {
        CpuBackend { isa }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn report(&self, threads: usize) -> DeviceReport {
        DeviceReport {
            backend: "cpu".into(),
            device: self.isa.name().into(),
            threads,
        }
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        "cpu"
    }

    fn probe(&self) -> Result<DeviceReport, Unavailable> {
        Ok(self.report(available_threads()))
    }

    fn needs_watching(&self) -> bool {
        false
    }

    fn fits(&self, spec: &ModelSpec, options: &LoadOptions) -> Result<Fit, Unavailable> {
        let context = options.context.unwrap_or(spec.context_length) as u64;
        Ok(Fit {
            weights: 0,
            kv: kv_bytes_per_position(spec, options.kv_type) * context,
        })
    }

    fn load(
        &self,
        file: &ModelFile,
        spec: &Arc<ModelSpec>,
        options: &LoadOptions,
    ) -> Result<Box<dyn Decoder>, BackendError> {
        let threads = options.threads.unwrap_or_else(available_threads).max(1);
        let pool = ThreadPool::new(threads);
        let mut context = options.context.unwrap_or(spec.context_length).max(1);
        if let Some(positions) = &spec.position_embedding {
            context = context.min(positions.rows);
        }
        let chunk = options
            .chunk
            .map_or_else(|| chunk_for(spec), |chunk| chunk.max(1));
        let budget = match options.memory_budget {
            None => None,
            Some(MemoryBudget::Weights(bytes)) => Some(bytes),
            Some(MemoryBudget::Process(bytes)) => {
                let per_position = kv_bytes_per_position(spec, options.kv_type).max(1);
                if options.context.is_none() {
                    let most = bytes / KV_SHARE / per_position;
                    context = context.min((most as usize).max(LEAST_CONTEXT));
                }
                let others = working_bytes(spec, context, chunk, per_position);
                Some(bytes.saturating_sub(others))
            }
        };
        let Loaded { weights, notes } = loader::load(file, spec, &pool, options, budget)?;
        let ropes = RopeTables::new(file, spec, context)?;
        let mut scratch = Scratch::default();
        for input in [&mut scratch.input, &mut scratch.inner_input] {
            input.read_only_by(weights.readers.iter().copied());
        }
        let head = Head::new(&weights.output.packed);
        Ok(Box::new(CpuDecoder {
            device: self.report(pool.threads()),
            engine: Engine {
                spec: spec.clone(),
                weights,
                ropes,
                isa: self.isa,
                pool,
                observer: options.observer.clone(),
            },
            context,
            chunk,
            notes,
            kv_type: options.kv_type,
            sequences: BTreeMap::new(),
            next_sequence: 0,
            scratch,
            head,
        }))
    }
}

/// Part of a memory budget that keys and values take at most where no context was asked for, as a divisor.
const KV_SHARE: u64 = 6;

/// Context that a memory budget leaves at least.
const LEAST_CONTEXT: usize = 256;

/// Bytes, beside the weights, that the process takes when it computes: what it takes already, keys and values of one
/// sequence, working buffers, and a margin for what is small.
fn working_bytes(spec: &ModelSpec, context: usize, chunk: usize, kv_per_position: u64) -> u64 {
    const MARGIN: u64 = 16 << 20;
    let scratch = Scratch::bytes_per_row(spec) * chunk;
    let logits = HEAD_ROWS * spec.vocabulary * size_of::<f32>();
    let rotations = spec.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => attention.key_dim * size_of::<f32>(),
        Mixer::ShortConvolution(_) => 0,
    });
    let rotations = rotations.max().unwrap_or(0) * context;
    let held = resident_bytes().unwrap_or(0);
    held + kv_per_position * context as u64 + (scratch + logits + rotations) as u64 + MARGIN
}

/// Bytes that this process holds in memory, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Tokens whose working buffers stay within [`SCRATCH_BYTES`]: many, so that each weight is unpacked rarely.
fn chunk_for(spec: &ModelSpec) -> usize {
    let fit = SCRATCH_BYTES / Scratch::bytes_per_row(spec).max(1);
    fit.clamp(64, 512) / 64 * 64
}

fn kv_shape(attention: &Attention, kv_type: KvType) -> KvShape {
    KvShape {
        kv_heads: attention.kv_heads,
        head_dim_k: attention.key_dim,
        head_dim_v: attention.value_dim,
        kv_type,
    }
}

/// Bytes of keys and values of one position in all layers.
fn kv_bytes_per_position(spec: &ModelSpec, kv_type: KvType) -> u64 {
    let layers = spec.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => kv_shape(attention, kv_type).page_bytes() / PAGE_TOKENS,
        Mixer::ShortConvolution(_) => 0,
    });
    layers.sum::<usize>() as u64
}

/// One thread per core that this process may use.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What does not change while a model runs.
struct Engine {
    spec: Arc<ModelSpec>,
    weights: Weights,
    ropes: RopeTables,
    isa: Isa,
    pool: ThreadPool,
    observer: Option<Arc<dyn Observer>>,
}

impl Engine {
    /// Shows the observer, if there is one, the input of the matrices that `matrices` names.
    fn observe<'a>(&self, matrices: impl FnOnce() -> Vec<&'a Linear>, x: &[f32], columns: usize) {
        if let Some(observer) = &self.observer {
            observer.observe(&matrices(), x, columns);
        }
    }

    /// Whether somebody sees the inputs of products, which must exist as floats then.
    fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    fn context(&self) -> Context<'_> {
        Context {
            isa: self.isa,
            pool: &self.pool,
        }
    }
}

/// A part of a chunk: consecutive tokens of one sequence.
struct Part {
    state: SequenceState,
    /// Rows of the chunk's buffers.
    rows: Range<usize>,
    /// Position of the first row.
    first_position: usize,
}

struct CpuDecoder {
    device: DeviceReport,
    engine: Engine,
    context: usize,
    chunk: usize,
    notes: Vec<String>,
    kv_type: KvType,
    sequences: BTreeMap<SequenceId, SequenceState>,
    next_sequence: u64,
    scratch: Scratch,
    head: Head,
}

impl Decoder for CpuDecoder {
    fn spec(&self) -> &Arc<ModelSpec> {
        &self.engine.spec
    }

    fn device(&self) -> &DeviceReport {
        &self.device
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn start(&mut self) -> SequenceId {
        let state = self.empty_state();
        self.insert(state)
    }

    fn stop(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences
            .get(&sequence)
            .map_or(0, |state| state.length)
    }

    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        self.check(batch)?;
        let mut chunk = Vec::new();
        let mut rows = 0;
        for (index, run) in batch.iter().enumerate() {
            let mut start = 0;
            while start < run.tokens.len() {
                let repeated = chunk.iter().any(|(other, _): &(usize, Range<usize>)| {
                    batch[*other].sequence == run.sequence
                });
                if rows == self.chunk || repeated {
                    self.forward_chunk(batch, &chunk, scores)?;
                    chunk.clear();
                    rows = 0;
                }
                let end = run.tokens.len().min(start + self.chunk - rows);
                chunk.push((index, start..end));
                rows += end - start;
                start = end;
            }
        }
        if rows > 0 {
            self.forward_chunk(batch, &chunk, scores)?;
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize {
        self.sequences
            .get_mut(&sequence)
            .map_or(0, |state| state.truncate(length))
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        let state = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?
            .clone();
        Ok(self.insert(state))
    }

    fn state_form(&self) -> String {
        // Long-rope chooses its factors by the context.
        let context = match self.engine.ropes.depend_on_context() {
            true => self.context,
            false => 0,
        };
        format!(
            "{:?} keys and values, pages of {PAGE_TOKENS}, context {context}",
            self.kv_type
        )
    }

    fn save(&self, sequence: SequenceId, out: &mut dyn Write) -> Result<(), BackendError> {
        let state = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?;
        Ok(state.save(out)?)
    }

    fn restore(&mut self, length: usize, input: &mut dyn Read) -> Result<SequenceId, BackendError> {
        if length > self.context {
            return Err(BackendError::ContextFull {
                wanted: length,
                context: self.context,
            });
        }
        let mut state = self.empty_state();
        state
            .load(length, input)
            .map_err(|error| BackendError::State(error.to_string()))?;
        Ok(self.insert(state))
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn streaming(&self) -> Option<StreamingReport> {
        let streaming = self.engine.weights.streaming.as_ref();
        streaming.map(|streaming| streaming.report())
    }

    fn disk_bytes_per_second(&self) -> Option<f64> {
        let streaming = self.engine.weights.streaming.as_ref()?;
        streaming.measure_disk().ok()
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport {
            weights: self.engine.weights.bytes(),
            read_per_token: self.engine.weights.bytes_per_token(&self.engine.spec),
            kv: self.sequences.values().map(SequenceState::bytes).sum(),
            kv_per_position: kv_bytes_per_position(&self.engine.spec, self.kv_type),
            scratch: self.scratch.bytes() + self.head.buffer_bytes(),
        }
    }

    fn head(&self) -> HeadReport {
        HeadReport {
            bytes: self.engine.weights.output.packed.bytes() as u64,
            ..self.head.report
        }
    }
}

impl CpuDecoder {
    fn insert(&mut self, state: SequenceState) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, state);
        id
    }

    fn empty_state(&self) -> SequenceState {
        let spec = &self.engine.spec;
        let layers = spec.layers.iter().map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => LayerState::Pages(PageList::new(
                kv_shape(attention, self.kv_type),
                attention.window,
            )),
            Mixer::ShortConvolution(convolution) => {
                LayerState::History(History::new(spec.embedding, convolution.taps))
            }
        });
        SequenceState {
            length: 0,
            layers: layers.collect(),
        }
    }

    /// Refuses a batch that cannot be computed, before anything is changed.
    fn check(&self, batch: &[Run<'_>]) -> Result<(), BackendError> {
        let vocabulary = self.engine.spec.vocabulary;
        let mut lengths = BTreeMap::new();
        for run in batch {
            let state = self
                .sequences
                .get(&run.sequence)
                .ok_or(BackendError::UnknownSequence(run.sequence))?;
            let length = lengths.entry(run.sequence).or_insert(state.length);
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

    /// Computes at most `self.chunk` tokens, given as (run, tokens of the run), each sequence once. Fails only where
    /// weights are streamed; the sequences are lost then, since some of their layers have seen the tokens.
    fn forward_chunk(
        &mut self,
        batch: &[Run<'_>],
        chunk: &[(usize, Range<usize>)],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        let started = Instant::now();
        let mut parts = Vec::with_capacity(chunk.len());
        let mut rows = 0;
        for (run, tokens) in chunk {
            let Some(state) = self.sequences.remove(&batch[*run].sequence) else {
                continue;
            };
            parts.push(Part {
                first_position: state.length,
                rows: rows..rows + tokens.len(),
                state,
            });
            rows += tokens.len();
        }
        let tokens: Vec<u32> = chunk
            .iter()
            .flat_map(|(run, tokens)| &batch[*run].tokens[tokens.clone()])
            .copied()
            .collect();

        self.scratch.resize(&self.engine.spec, rows);
        layer::embed(&self.engine, &tokens, &parts, &mut self.scratch);
        for index in 0..self.engine.spec.layers.len() {
            let weights = self.engine.weights.layer(index)?;
            layer::layer(&self.engine, &weights, index, &mut parts, &mut self.scratch);
        }
        if let Some(error) = self.engine.weights.take_failure() {
            return Err(error.into());
        }
        for part in &mut parts {
            part.state.length += part.rows.len();
            let length = part.state.length;
            for layer in &mut part.state.layers {
                if let LayerState::Pages(pages) = layer {
                    pages.drop_unseen(length);
                }
            }
        }
        for (part, (run, _)) in parts.into_iter().zip(chunk) {
            self.sequences.insert(batch[*run].sequence, part.state);
        }
        self.hand_over_hidden(batch, chunk, scores);
        self.score(batch, chunk, scores)?;
        if let Some(streaming) = &self.engine.weights.streaming {
            streaming.count_pass(started.elapsed());
        }
        Ok(())
    }

    /// Hidden states of the runs that want them.
    fn hand_over_hidden(
        &self,
        batch: &[Run<'_>],
        chunk: &[(usize, Range<usize>)],
        scores: &mut dyn FnMut(Scored<'_>),
    ) {
        let width = self.engine.spec.embedding;
        let mut row = 0;
        for (run, tokens) in chunk {
            let rows = row..row + tokens.len();
            row = rows.end;
            if batch[*run].wanted != Wanted::Hidden {
                continue;
            }
            let hidden = layer::final_hidden(&self.engine, rows, &self.scratch);
            for (token, hidden) in tokens.clone().zip(hidden.chunks_exact(width)) {
                scores(Scored {
                    run: *run,
                    token,
                    scores: Scores::Hidden(hidden),
                });
            }
        }
    }

    /// Logits of the rows that were asked for.
    fn score(
        &mut self,
        batch: &[Run<'_>],
        chunk: &[(usize, Range<usize>)],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        let wanted: Vec<(usize, usize, usize)> = chunk
            .iter()
            .flat_map(|(run, tokens)| tokens.clone().map(move |token| (*run, token)))
            .enumerate()
            .filter(|(_, (run, token))| {
                let run = &batch[*run];
                run.wanted.includes(*token, run.tokens.len())
            })
            .map(|(row, (run, token))| (row, run, token))
            .collect();
        for group in wanted.chunks(HEAD_ROWS) {
            let rows: Vec<usize> = group.iter().map(|(row, ..)| *row).collect();
            let selects: Vec<_> = group.iter().map(|(_, run, _)| batch[*run].select).collect();
            let found = self
                .head
                .score(&self.engine, &rows, &selects, &mut self.scratch);
            if let Some(error) = self.engine.weights.take_failure() {
                return Err(error.into());
            }
            let vocabulary = self.engine.spec.vocabulary;
            for ((_, run, token), found) in group.iter().zip(&found) {
                let found = match found {
                    RowScores::Full(row) => {
                        let logits = &mut self.scratch.logits[row * vocabulary..];
                        Scores::All(&mut logits[..vocabulary])
                    }
                    RowScores::Best(best) => Scores::Candidates(best),
                };
                scores(Scored {
                    run: *run,
                    token: *token,
                    scores: found,
                });
            }
        }
        Ok(())
    }
}
