//! What can be asked of the engine, and what it answers.

use std::time::{Duration, Instant};

use ondine_runtime::{Continuation, GenerationStats, Piece, StopReason};

use super::EngineError;

/// One piece of work.
pub struct Job {
    /// The prompt; shorter than the context, not empty.
    pub prompt: Vec<u32>,
    /// What to do with it.
    pub work: Work,
    /// Who is served first.
    pub priority: Priority,
    /// When the answer must be there.
    pub deadline: Option<Instant>,
}

/// What to do with a prompt.
pub enum Work {
    /// Go on from it.
    Generate(Box<Continuation>),
    /// The mean of its tokens' final hidden states.
    Embed,
}

/// Who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It runs where it does not slow the others down much.
    Background,
}

/// What happens to a job.
#[derive(Debug)]
pub enum Event {
    /// It left the queue.
    Started {
        /// How long it waited.
        queued: Duration,
    },
    /// A piece of the answer.
    Piece(Piece),
    /// The answer is at its end.
    Done(Outcome),
    /// The embedding, shape `[embedding]`, of length 1.
    Embedding(Vec<f32>),
    /// It failed.
    Failed(EngineError),
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why.
    pub stopped: Stopped,
    /// The figures.
    pub stats: GenerationStats,
    /// Time in the queue.
    pub queued: Duration,
    /// Whether a constraint, if there was one, is fulfilled.
    pub is_complete: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// By itself or by its bounds.
    By(StopReason),
    /// The deadline passed.
    Deadline,
    /// The model's own answers did not conform to a schema; this is an instance of it that was made without the model.
    Made,
}

impl Stopped {
    /// Short name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Stopped::By(reason) => reason.name(),
            Stopped::Deadline => "deadline",
            Stopped::Made => "made",
        }
    }

    /// Whether something cut the answer off.
    pub fn is_cut(self) -> bool {
        match self {
            Stopped::By(StopReason::EndOfTurn | StopReason::StopText | StopReason::Complete)
            | Stopped::Made => false,
            Stopped::By(_) | Stopped::Deadline => true,
        }
    }
}
