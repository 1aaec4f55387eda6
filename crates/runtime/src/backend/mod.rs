//! Where a model computes.
//!
//! The seam is the whole decoder, not single operations: accelerators run compiled graphs. A
//! [`Backend`] says what is there and loads a model; the [`Decoder`] it gives keeps the keys and
//! values of several sequences. Tokens are the truth: whatever a decoder loses can be computed again
//! from them, on this backend or on another.

pub mod cpu;
mod fallback;
mod observe;
mod reason;
pub mod rope;
mod watchdog;

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::Limits;
use crate::gguf::{ModelFile, ModelFileError};
use crate::model::ModelSpec;
use crate::packed_cache::PackedCache;

pub use fallback::{FallbackDecoder, Moment, OnStepDown, StepDown};
pub use observe::Observer;
pub use ondine_kernels::KvType;
pub use reason::Unavailable;
pub use watchdog::{Deadlines, WatchedDecoder};

/// A place where models can run.
pub trait Backend: Send + Sync {
    /// Short name, such as `cpu`.
    fn name(&self) -> &str;

    /// What the device is, or why it cannot be used.
    ///
    /// # Errors
    /// A typed reason.
    fn probe(&self) -> Result<DeviceReport, Unavailable>;

    /// Whether and how `spec` fits, before anything is loaded.
    ///
    /// # Errors
    /// What the device lacks.
    fn fits(&self, spec: &ModelSpec, options: &LoadOptions) -> Result<Fit, Unavailable>;

    /// Prepares the model's weights and gives a decoder without sequences.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn load(
        &self,
        file: &ModelFile,
        spec: &Arc<ModelSpec>,
        options: &LoadOptions,
    ) -> Result<Box<dyn Decoder>, BackendError>;

    /// Whether a driver or a foreign library computes, which may hang or fail in the middle: such a backend is
    /// watched ([`WatchedDecoder`]).
    fn needs_watching(&self) -> bool {
        true
    }
}

/// A loaded model that owns the keys and values of its sequences.
pub trait Decoder: Send {
    /// The model.
    fn spec(&self) -> &Arc<ModelSpec>;

    /// What it runs on, for reports: backend and instruction set.
    fn device(&self) -> &DeviceReport;

    /// Tokens that one sequence can hold.
    fn context_length(&self) -> usize;

    /// Tokens that are computed together at most. Who wants to look up during a long prompt hands over so many at a
    /// time.
    fn chunk(&self) -> usize;

    /// Begins an empty sequence.
    fn start(&mut self) -> SequenceId;

    /// Forgets a sequence; unknown ones are ignored.
    fn stop(&mut self, sequence: SequenceId);

    /// Tokens the sequence holds.
    fn length(&self, sequence: SequenceId) -> usize;

    /// Appends tokens to sequences and hands the scores that were asked for to `scores`, in order.
    ///
    /// # Errors
    /// [`BackendError::ContextFull`] before anything is changed when a sequence would grow beyond
    /// the context; otherwise see [`BackendError`].
    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError>;

    /// Shortens a sequence to at most `length` tokens and returns how many it now holds: fewer than
    /// asked for when what it needs to go on from there was already dropped (a sliding window, a
    /// convolution's state). The caller then computes the difference again.
    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize;

    /// Begins a sequence that shares the whole content of another one.
    ///
    /// # Errors
    /// [`BackendError::UnknownSequence`].
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError>;

    /// What, besides the model, the bytes of [`Decoder::save`] depend on.
    fn state_form(&self) -> String;

    /// Writes a sequence's state, so that [`Decoder::restore`] continues from it.
    ///
    /// # Errors
    /// When the sequence is unknown or the writer fails.
    fn save(&self, sequence: SequenceId, out: &mut dyn io::Write) -> Result<(), BackendError>;

    /// Reads what [`Decoder::save`] wrote, as a new sequence of `length` tokens.
    ///
    /// # Errors
    /// When the state is not of this model and these options, or damaged.
    fn restore(
        &mut self,
        length: usize,
        input: &mut dyn io::Read,
    ) -> Result<SequenceId, BackendError>;

    /// Tells the tokens of a sequence that [`Decoder::restore`] made, to decoders that may have to compute them
    /// again elsewhere.
    fn adopt(&mut self, _sequence: SequenceId, _tokens: &[u32]) {}

    /// Bytes held at present.
    fn memory(&self) -> MemoryReport;

    /// Backends that were given up on the way to the present one, and why.
    fn step_downs(&self) -> &[StepDown] {
        &[]
    }

    /// What loading had to say, a sentence each.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// What was read from the disk while computing, where the weights are larger than the memory they may take.
    fn streaming(&self) -> Option<StreamingReport> {
        None
    }

    /// Bytes per second that the disk reads streamed weights at, in order and without computing: measured now, for about
    /// half a second. `None` where nothing is streamed or the disk cannot be read.
    fn disk_bytes_per_second(&self) -> Option<f64> {
        None
    }

    /// What the output head did so far.
    fn head(&self) -> HeadReport {
        HeadReport::default()
    }
}

/// Tokens to append to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Which sequence.
    pub sequence: SequenceId,
    /// What to append.
    pub tokens: &'a [u32],
    /// For which of these tokens the scores of the next one are wanted.
    pub wanted: Wanted,
    /// Which of those scores.
    pub select: Select<'a>,
}

/// Which scores of a token are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Select<'a> {
    /// Those of the whole vocabulary.
    #[default]
    All,
    /// The highest; a decoder may give [`Scores::All`] nevertheless.
    Best {
        /// How many, at least 1.
        count: usize,
        /// Tokens whose scores are wanted besides. Unknown ones are ignored.
        also: &'a [u32],
    },
}

/// For which tokens of a [`Run`] scores are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// None: only keys and values are kept.
    Nothing,
    /// The last one.
    Last,
    /// Those from this index on.
    From(usize),
    /// Not scores but the hidden states after the last layer and its norm, of every token: for embeddings.
    Hidden,
}

impl Wanted {
    /// Whether the scores after token `index` of `length` are wanted.
    pub fn includes(self, index: usize, length: usize) -> bool {
        match self {
            Wanted::Nothing | Wanted::Hidden => false,
            Wanted::Last => index + 1 == length,
            Wanted::From(first) => index >= first,
        }
    }
}

/// Scores of the token that follows.
#[derive(Debug)]
pub struct Scored<'a> {
    /// Index of the run in the batch.
    pub run: usize,
    /// Index of the token in the run.
    pub token: usize,
    /// Logits.
    pub scores: Scores<'a>,
}

impl BackendError {
    /// The reason, when another backend could do what this one could not.
    pub fn reason(&self) -> Option<&Unavailable> {
        match self {
            BackendError::Unavailable(reason) => Some(reason),
            _ => None,
        }
    }
}

/// Logits of all tokens, or of the best ones.
#[derive(Debug)]
pub enum Scores<'a> {
    /// One logit per token of the vocabulary. May be changed by the receiver.
    All(&'a mut [f32]),
    /// What [`Select::Best`] asked for and maybe more, as (token, logit), highest first, of equal ones the smaller
    /// token. The logits are those that [`Scores::All`] would have.
    Candidates(&'a [(u32, f32)]),
    /// The token's hidden state, shape `[embedding]`, where [`Wanted::Hidden`] asked for it.
    Hidden(&'a [f32]),
}

/// Names a sequence of a [`Decoder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Tokens a sequence can hold; `None` is the model's own length.
    pub context: Option<usize>,
    /// Threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Element type of keys and values.
    pub kv_type: KvType,
    /// Tokens computed together at most; `None` lets the backend choose by the model's widths.
    pub chunk: Option<usize>,
    /// Where packed weights are kept from one start to the next; `None` packs them at every start.
    pub packed_cache: Option<PackedCache>,
    /// Most memory to use; weights that do not fit are read from the packed cache as they are needed.
    pub memory_budget: Option<MemoryBudget>,
    /// Lay the output head out so that the highest scores are found reading little more than half of it, where its type
    /// allows; all scores take longer then. Not with a memory budget.
    pub screened_head: bool,
    /// Bounds for everything read from files.
    pub limits: Limits,
    /// Who sees the inputs of all matrix products. Only the CPU backend shows them.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Most memory to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    /// Bytes of the whole process: what it held before, keys and values and working buffers included.
    Process(u64),
    /// Bytes of weights alone.
    Weights(u64),
}

/// Weights that were read from the disk while computing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamingReport {
    /// Bytes of weights that stay in memory.
    pub resident_bytes: u64,
    /// Bytes of the buffers that weights are read into.
    pub buffer_bytes: u64,
    /// Bytes that were read and used.
    pub bytes: u64,
    /// Passes through the model, of one or more tokens each.
    pub passes: u64,
    /// Seconds that the passes took.
    pub seconds: f64,
    /// Experts that tokens were routed to, counted once per pass and layer.
    pub experts_used: u64,
    /// Of these, those that were in memory.
    pub experts_kept: u64,
}

impl StreamingReport {
    /// Bytes of a pass.
    pub fn bytes_per_pass(&self) -> f64 {
        self.bytes as f64 / self.passes.max(1) as f64
    }

    /// Bytes per second while computing.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            context: None,
            threads: None,
            kv_type: KvType::F16,
            chunk: None,
            packed_cache: None,
            memory_budget: None,
            screened_head: false,
            limits: Limits::default(),
            observer: None,
        }
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// Backend name.
    pub backend: String,
    /// Instruction set or device name.
    pub device: String,
    /// Threads it uses.
    pub threads: usize,
}

/// What loading a model will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of keys and values of one sequence at full length.
    pub kv: u64,
}

/// Bytes held by a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryReport {
    /// Packed weights.
    pub weights: u64,
    /// Weights that one token reads: the head and all layers, of experts only the used ones.
    pub read_per_token: u64,
    /// Keys and values of all sequences.
    pub kv: u64,
    /// Keys and values of one position, windows not counted.
    pub kv_per_position: u64,
    /// Working buffers.
    pub scratch: u64,
}

/// What the output head did since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadReport {
    /// Bytes of the head's matrix.
    pub bytes: u64,
    /// Positions that scores were computed for.
    pub rows: u64,
    /// Bytes of the head that were read for them.
    pub bytes_read: u64,
    /// Positions for which only the highest scores were looked for.
    pub screened: u64,
    /// Those of them that needed the whole head in the end.
    pub undecided: u64,
}

impl HeadReport {
    /// Bytes read per position; those of the whole head before anything was computed.
    pub fn bytes_per_row(&self) -> f64 {
        match self.rows {
            0 => self.bytes as f64,
            rows => self.bytes_read as f64 / rows as f64,
        }
    }

    /// Share of the screened positions that needed the whole head; zero if there were none.
    pub fn fallback_rate(&self) -> f64 {
        self.undecided as f64 / self.screened.max(1) as f64
    }

    /// What was done after `before`.
    pub fn since(&self, before: &HeadReport) -> HeadReport {
        HeadReport {
            bytes: self.bytes,
            rows: self.rows - before.rows,
            bytes_read: self.bytes_read - before.bytes_read,
            screened: self.screened - before.screened,
            undecided: self.undecided - before.undecided,
        }
    }
}

/// Why a backend failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend cannot be used at all.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The model file is at fault.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// The sequence would grow beyond the context.
    #[error(
        "{wanted} tokens do not fit into the context of {context}; raise --ctx, shorten the prompt or choose --context-overflow shift"
    )]
    ContextFull {
        /// Tokens it would hold.
        wanted: usize,
        /// Tokens it can hold.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error("token {token} is not in the vocabulary of {vocabulary} tokens")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// No such sequence.
    #[error("sequence {0:?} does not exist")]
    UnknownSequence(SequenceId),
    /// Saved state that does not belong here.
    #[error("saved state {0}")]
    State(String),
    /// Reading or writing saved state failed.
    #[error("weights or saved state cannot be read or written: {0}")]
    Io(#[from] io::Error),
}
