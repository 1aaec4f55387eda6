//! The decoding loop: prompt tokens in, text out, one token at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::backend::{BackendError, Scored, Scores, Wanted};
use crate::constraint::{Constraint, ConstraintError};
use crate::sample::{SampleError, Sampled, Sampler, SamplingOptions, StopMatcher};
use crate::session::{ContextOverflow, Session, shifted};
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Prompt tokens computed between two looks at whether the caller wants to stop.
const PREFILL_STEP: usize = 256;

/// How to generate.
#[derive(Default)]
pub struct GenerateOptions {
    /// Tokens to generate at most; until the end of the turn or of the context unless given.
    pub max_tokens: Option<usize>,
    /// How a token is chosen.
    pub sampling: SamplingOptions,
    /// Texts that end the generation; they are not part of the result.
    pub stop: Vec<String>,
    /// What to do when the context is full.
    pub overflow: ContextOverflow,
    /// What the text must conform to.
    pub constraint: Option<Constraint>,
    /// Go on after the end of the turn (for measurements).
    pub ignore_end: bool,
    /// Set from anywhere to stop before the next token.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Text that is certain by now: whole characters, and no beginning of a stop text.
    pub text: String,
    /// The token that was chosen; none for the last piece, which flushes what was held back.
    pub token: Option<Sampled>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text appeared.
    StopText,
    /// The constraint is fulfilled and allows nothing more.
    Complete,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    ContextFull,
    /// The caller cancelled.
    Cancelled,
}

impl StopReason {
    /// Short name for reports.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::EndOfTurn => "end_of_turn",
            StopReason::StopText => "stop_text",
            StopReason::Complete => "complete",
            StopReason::Length => "length",
            StopReason::ContextFull => "context_full",
            StopReason::Cancelled => "cancelled",
        }
    }
}

/// Figures of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GenerationStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were held from before.
    pub reused_tokens: usize,
    /// Tokens generated, the one that ended the turn included.
    pub generated_tokens: usize,
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// Computing the prompt.
    pub prefill: Duration,
    /// All tokens after the first.
    pub decode: Duration,
    /// How often the oldest tokens were dropped to go on.
    pub shifts: usize,
}

impl GenerationStats {
    /// Prompt tokens computed per second.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        let computed = self.prompt_tokens - self.reused_tokens;
        computed as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// Tokens generated per second after the first; zero when there was only one.
    pub fn decode_tokens_per_second(&self) -> f64 {
        match self.generated_tokens {
            0 | 1 => 0.0,
            tokens => (tokens - 1) as f64 / self.decode.as_secs_f64().max(1e-9),
        }
    }
}

/// Why a generation failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// There is nothing to go on from.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The scores cannot be sampled from.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The constraint failed.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

/// A running generation: an iterator over the pieces of the answer.
pub struct Generation<'s> {
    session: &'s mut Session,
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    options: GenerateOptions,
    text: StreamDecoder<Arc<Tokenizer>>,
    stops: StopMatcher,
    /// Tokens still to be computed: the prompt at first, then the last token.
    pending: Vec<u32>,
    logits: Vec<f32>,
    started: Instant,
    first_token: Option<Instant>,
    stats: GenerationStats,
    ended: Option<StopReason>,
    done: bool,
}

impl Session {
    /// Begins to generate after `prompt`. What the session already holds of it is not computed
    /// again.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit into the context and `options.overflow` does not
    /// allow to shorten it; when the options are nonsense.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Generation<'_>, GenerateError> {
        let started = Instant::now();
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let context = self.decoder().context_length();
        let prompt = if prompt.len() < context {
            prompt.to_vec()
        } else if options.overflow == ContextOverflow::Shift {
            shifted(prompt, (context / 2).max(1))
        } else {
            return Err(BackendError::ContextFull {
                wanted: prompt.len() + 1,
                context,
            }
            .into());
        };
        let mut sampler = Sampler::new(options.sampling.clone())?;
        for &token in &prompt {
            sampler.accept(token);
        }
        let computed = self.align(&prompt);
        let tokenizer = self.model().tokenizer().clone();
        Ok(Generation {
            text: tokenizer.shared_stream_decoder(false),
            stops: StopMatcher::new(&options.stop),
            pending: prompt[prompt.len() - computed..].to_vec(),
            stats: GenerationStats {
                prompt_tokens: prompt.len(),
                reused_tokens: prompt.len() - computed,
                ..GenerationStats::default()
            },
            session: self,
            tokenizer,
            sampler,
            options,
            logits: Vec::new(),
            started,
            first_token: None,
            ended: None,
            done: false,
        })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, GenerateError>;

    /// One token: compute what is pending, choose, end or go on.
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.step();
        if step.is_err() || self.ended.is_some() {
            self.done = true;
        }
        Some(step)
    }
}

impl Generation<'_> {
    /// Why it ended; none while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.ended
    }

    /// Whether the text is whole: the model ended it by itself or, under a constraint, it conforms.
    pub fn is_complete(&mut self) -> bool {
        match (&self.ended, &mut self.options.constraint) {
            (Some(StopReason::EndOfTurn | StopReason::Complete | StopReason::StopText), None) => {
                true
            }
            (Some(_), Some(constraint)) => constraint.is_complete(),
            _ => false,
        }
    }

    /// The figures so far.
    pub fn stats(&self) -> &GenerationStats {
        &self.stats
    }

    fn step(&mut self) -> Result<Piece, GenerateError> {
        if self.options.max_tokens == Some(self.stats.generated_tokens) {
            return Ok(self.end(StopReason::Length, None));
        }
        if !self.compute_pending()? {
            return Ok(self.end(self.ended.unwrap_or(StopReason::Cancelled), None));
        }
        let mask = match &mut self.options.constraint {
            Some(constraint) if constraint.must_stop() => {
                return Ok(self.end(StopReason::Complete, None));
            }
            Some(constraint) => Some(constraint.mask()?),
            None => None,
        };
        let sampled = self.sampler.sample(&mut self.logits, mask)?;
        self.sampler.accept(sampled.token);
        self.note_time();
        if self.tokenizer.is_end_of_generation(sampled.token) && !self.options.ignore_end {
            let reason = match self.options.constraint {
                Some(_) => StopReason::Complete,
                None => StopReason::EndOfTurn,
            };
            return Ok(self.end(reason, Some(sampled)));
        }
        if let Some(constraint) = &mut self.options.constraint {
            constraint.commit(sampled.token)?;
        }
        self.pending = vec![sampled.token];
        let text = self.text.push(sampled.token);
        let pushed = self.stops.push(&text);
        if pushed.stopped {
            self.ended = Some(StopReason::StopText);
        }
        Ok(Piece {
            text: pushed.text,
            token: Some(sampled),
        })
    }

    /// Computes the pending tokens and keeps the logits after the last. False when the caller
    /// cancelled or the context is full; `ended` says which.
    fn compute_pending(&mut self) -> Result<bool, GenerateError> {
        let begun = Instant::now();
        let pending = std::mem::take(&mut self.pending);
        let mut computed = 0;
        while computed < pending.len() {
            if self.is_cancelled() {
                self.ended = Some(StopReason::Cancelled);
                return Ok(false);
            }
            let end = pending.len().min(computed + PREFILL_STEP);
            let tokens = &pending[computed..end];
            if self.options.overflow == ContextOverflow::Shift {
                self.stats.shifts += usize::from(self.session.make_room(tokens.len())?);
            }
            let wanted = match end == pending.len() {
                true => Wanted::Last,
                false => Wanted::Nothing,
            };
            let logits = &mut self.logits;
            let result = self
                .session
                .append(tokens, wanted, &mut |scored: Scored<'_>| {
                    if let Scores::All(scores) = scored.scores {
                        logits.clear();
                        logits.extend_from_slice(scores);
                    }
                });
            match result {
                Err(BackendError::ContextFull { .. }) if self.stats.generated_tokens > 0 => {
                    self.ended = Some(StopReason::ContextFull);
                    return Ok(false);
                }
                other => other?,
            }
            computed = end;
        }
        if self.stats.generated_tokens == 0 {
            self.stats.prefill = begun.elapsed();
        }
        Ok(true)
    }

    fn note_time(&mut self) {
        self.stats.generated_tokens += 1;
        match self.first_token {
            None => {
                self.stats.time_to_first_token = self.started.elapsed();
                self.first_token = Some(Instant::now());
            }
            Some(first) => self.stats.decode = first.elapsed(),
        }
    }

    /// The last piece: what the stream decoder and the stop texts still held back.
    fn end(&mut self, reason: StopReason, token: Option<Sampled>) -> Piece {
        self.ended = Some(reason);
        let tail = self.text.finish();
        let pushed = self.stops.push(&tail);
        let mut text = pushed.text;
        if !pushed.stopped {
            text.push_str(&self.stops.finish());
        }
        Piece { text, token }
    }

    fn is_cancelled(&self) -> bool {
        let cancel = self.options.cancel.as_ref();
        cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}
