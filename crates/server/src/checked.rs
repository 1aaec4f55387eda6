//! Answers that are judged before they are given.
//!
//! A grammar cannot enforce all that a JSON schema may ask for, and an answer may be cut off. So an answer is held back until a
//! validator took it; one that does not conform is followed by an attempt in the shape of a known instance, and that by the
//! instance itself.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ondine_runtime::constraint::{
    Constraint, ConstraintError, ConstraintFactory, ConstraintSpec, Instance, self_contained,
};
use ondine_runtime::sample::SamplingOptions;
use ondine_runtime::tokenizer::EncodeOptions;
use ondine_runtime::{Continuation, GenerateOptions, GenerationStats, Model, Piece};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::engine::{Engine, EngineError, Event, Job, Outcome, Priority, Stopped, Ticket, Work};
use crate::error::{ApiError, constraint_error};

/// What comes of checked answers: as from a [`crate::engine::Ticket`], or why there is none.
pub(crate) type News = Result<(usize, Event), ApiError>;

/// A schema, what the grammar makes of it, and who judges.
pub(crate) struct Checked {
    schema: String,
    /// The field of the request that asks for it.
    param: &'static str,
    validator: Option<jsonschema::Validator>,
    /// What the model is held to first; none when the engine has no room for it.
    first: Result<ConstraintSpec, ConstraintError>,
    left_out: Vec<&'static str>,
    instance: OnceLock<Option<Instance>>,
}

impl Checked {
    /// Compiles `schema`.
    ///
    /// # Errors
    /// When it is no schema.
    pub(crate) fn new(
        param: &'static str,
        schema: &str,
        factory: &ConstraintFactory,
    ) -> Result<Self, ApiError> {
        let strict = ConstraintSpec::JsonSchema(schema.to_owned());
        let loose = ConstraintSpec::LooseJsonSchema(schema.to_owned());
        let (first, left_out) = match factory.build(&strict) {
            Ok(_) => (Ok(strict), Vec::new()),
            Err(_) => match factory.build(&loose) {
                Ok(constraint) => (Ok(loose), constraint.left_out().to_vec()),
                Err(error) => (Err(error), Vec::new()),
            },
        };
        let value: Value = serde_json::from_str(schema)
            .map_err(|error| ApiError::invalid(param, error.to_string()))?;
        let validator = |portable_patterns| {
            let schema = self_contained(&value, portable_patterns);
            let options = jsonschema::options().should_validate_formats(true);
            options.build(&schema).ok()
        };
        let checked = Checked {
            schema: schema.to_owned(),
            param,
            validator: validator(false).or_else(|| validator(true)),
            first,
            left_out,
            instance: OnceLock::new(),
        };
        if checked.validator.is_none() && !checked.is_exact() {
            return Err(checked.refusal());
        }
        // What is known to have no answer is refused before the model begins.
        if checked.first.is_err() && checked.instance(factory).is_none() {
            return Err(checked.refusal());
        }
        Ok(checked)
    }

    /// Whether the grammar enforces all of it.
    pub(crate) fn is_exact(&self) -> bool {
        self.first.is_ok() && self.left_out.is_empty()
    }

    fn instance(&self, factory: &ConstraintFactory) -> Option<&Instance> {
        let find = || {
            let validator = self.validator.as_ref()?;
            factory.instance(&self.schema, &mut |value| validator.is_valid(value))
        };
        self.instance.get_or_init(find).as_ref()
    }

    fn conforms(&self, text: &str) -> bool {
        match (&self.validator, serde_json::from_str::<Value>(text)) {
            (Some(validator), Ok(value)) => validator.is_valid(&value),
            // Without a validator the grammar alone has its say.
            (None, Ok(_)) => true,
            (_, Err(_)) => false,
        }
    }

    fn refusal(&self) -> ApiError {
        let message = match &self.first {
            Err(error) => return constraint_error(self.param, error),
            Ok(_) if self.left_out.is_empty() => {
                "no answer that conforms to the JSON schema was found; simplify it".to_owned()
            }
            Ok(_) => format!(
                "no answer that conforms to the JSON schema was found: a grammar cannot enforce {} as it is used there; simplify it",
                self.left_out.join(", ")
            ),
        };
        ApiError::invalid(self.param, message).with_code("unsupported_constraint")
    }
}

/// One answer to make: everything but the constraint.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampling: SamplingOptions,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) wind_down: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
}

impl Wanted {
    /// The job under a constraint, if there is one.
    pub(crate) fn job(
        &self,
        model: &Model,
        constraint: Option<Constraint>,
    ) -> Result<Job, ApiError> {
        let options = GenerateOptions {
            max_tokens: self.max_tokens,
            wind_down: self.wind_down,
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            constraint,
            ..GenerateOptions::default()
        };
        let work = Continuation::new(model.tokenizer(), &self.prompt, options)?;
        Ok(Job {
            work: Work::Generate(Box::new(work)),
            prompt: self.prompt.clone(),
            priority: self.priority,
            deadline: self.deadline,
        })
    }
}

/// Begins to make the answers. Whoever drops the receiver cancels them.
///
/// # Errors
/// When the engine takes no work.
pub(crate) fn begin(
    engine: &Arc<Engine>,
    checked: Checked,
    wanted: Vec<Wanted>,
) -> Result<UnboundedReceiver<News>, ApiError> {
    let checked = Arc::new(checked);
    let (sender, receiver) = unbounded_channel();
    for (choice, wanted) in wanted.into_iter().enumerate() {
        let attempts = Attempts {
            engine: engine.clone(),
            checked: checked.clone(),
            sender: sender.clone(),
            choice,
            wanted,
        };
        // The first attempt is submitted here, so that a full queue is refused at once.
        let first = match &checked.first {
            Ok(spec) => Some(engine.submit(vec![attempts.job(spec)?])?),
            Err(_) => None,
        };
        tokio::runtime::Handle::current().spawn(attempts.run(first));
    }
    Ok(receiver)
}

/// The attempts at one answer.
#[derive(Clone)]
struct Attempts {
    engine: Arc<Engine>,
    checked: Arc<Checked>,
    sender: UnboundedSender<News>,
    choice: usize,
    wanted: Wanted,
}

/// What came of an attempt.
#[derive(Clone)]
struct Attempt {
    pieces: Vec<Piece>,
    outcome: Outcome,
}

impl Attempts {
    async fn run(self, first: Option<Ticket>) {
        let news = tokio::select! {
            news = self.answer(first) => news,
            () = self.sender.closed() => return,
        };
        let choice = self.choice;
        let _ = match news {
            Ok(attempt) => {
                for piece in attempt.pieces {
                    let _ = self.sender.send(Ok((choice, Event::Piece(piece))));
                }
                self.sender.send(Ok((choice, Event::Done(attempt.outcome))))
            }
            Err(error) => self.sender.send(Err(error)),
        };
    }

    async fn answer(&self, first: Option<Ticket>) -> Result<Attempt, ApiError> {
        let first = match first {
            Some(ticket) => self.follow(ticket).await?,
            None => None,
        };
        let is_final = |attempt: &&Attempt| {
            attempt.outcome.stopped == Stopped::Deadline || self.checked.conforms(&attempt.text())
        };
        if let Some(attempt) = first.as_ref().filter(is_final) {
            return Ok(attempt.clone());
        }
        let this = self.clone();
        let built = tokio::task::spawn_blocking(move || this.second()).await;
        let Some((instance, job)) = built.map_err(|_| EngineError::ShuttingDown)? else {
            // A grammar that enforces everything was cut off, which the answer says.
            return match first {
                Some(attempt) if self.checked.is_exact() => Ok(attempt),
                _ => Err(self.checked.refusal()),
            };
        };
        let second = match job {
            Some(job) => self.follow(self.engine.submit(vec![job])?).await?,
            None => None,
        };
        if let Some(attempt) = second.filter(|attempt| is_final(&attempt)) {
            return Ok(attempt);
        }
        let (text, tokens) = instance;
        let room = self.wanted.max_tokens.unwrap_or(usize::MAX);
        match first {
            Some(attempt) if tokens > room && self.checked.is_exact() => Ok(attempt),
            first => Ok(Attempt::made(text, first)),
        }
    }

    /// The instance and its length in tokens, and the job of an answer in its shape. Blocks.
    fn second(&self) -> Option<((String, usize), Option<Job>)> {
        let model = self.engine.model();
        let instance = self.checked.instance(model.constraints().ok()?)?;
        let tokens = model
            .tokenizer()
            .encode(&instance.text, EncodeOptions::default());
        let text = (instance.text.clone(), tokens.len());
        Some((text, self.job(&instance.shape).ok()))
    }

    fn job(&self, spec: &ConstraintSpec) -> Result<Job, ApiError> {
        let model: &Arc<Model> = self.engine.model();
        let built = model.constraints().and_then(|factory| factory.build(spec));
        let built = built.map_err(|error| constraint_error(self.checked.param, &error))?;
        self.wanted.job(model, Some(built))
    }

    /// Waits for the end of an attempt. None when its constraint could not be followed.
    async fn follow(&self, mut ticket: Ticket) -> Result<Option<Attempt>, ApiError> {
        let mut pieces = Vec::new();
        loop {
            match ticket.next().await {
                Some((_, Event::Piece(piece))) => pieces.push(piece),
                Some((_, Event::Done(outcome))) => return Ok(Some(Attempt { pieces, outcome })),
                Some((_, Event::Failed(EngineError::Failed(_)))) => return Ok(None),
                Some((_, Event::Failed(error))) => return Err(error.into()),
                Some((_, Event::Started { .. } | Event::Embedding(_))) => (),
                None => return Err(EngineError::ShuttingDown.into()),
            }
        }
    }
}

impl Attempt {
    fn text(&self) -> String {
        self.pieces
            .iter()
            .map(|piece| piece.text.as_str())
            .collect()
    }

    /// The instance itself, with the figures of the attempt before.
    fn made(text: String, before: Option<Attempt>) -> Self {
        let outcome = before.map(|attempt| attempt.outcome);
        Attempt {
            pieces: vec![Piece { text, token: None }],
            outcome: Outcome {
                stopped: Stopped::Made,
                stats: outcome
                    .as_ref()
                    .map_or_else(GenerationStats::default, |outcome| outcome.stats),
                queued: outcome.map_or(Duration::ZERO, |outcome| outcome.queued),
                is_complete: true,
            },
        }
    }
}
