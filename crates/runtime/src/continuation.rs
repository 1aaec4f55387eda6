//! One answer in the making: scores in, text out, whatever computes the scores.
//!
//! [`crate::Session::generate`] drives one of these; a server that computes several conversations together drives many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::backend::BackendError;
use crate::constraint::{Constraint, ConstraintError};
use crate::generate::GenerateOptions;
use crate::sample::{Needs, SampleError, Sampled, Sampler, StopMatcher};
use crate::speculate::SpeculationStats;
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// One answer in the making. It takes the scores after the last token and gives a [`Piece`]; while [`Continuation::stop_reason`]
/// is none, the piece's token is the one to compute next.
pub struct Continuation {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    max_tokens: Option<usize>,
    wind_down: usize,
    ignore_end: bool,
    text: StreamDecoder<Arc<Tokenizer>>,
    stops: StopMatcher,
    started: Instant,
    first_token: Option<Instant>,
    stats: GenerationStats,
    ended: Option<StopReason>,
}

impl Continuation {
    /// An answer to `prompt`, which the penalties look back on. `options.overflow` and `options.cancel` are for who computes.
    ///
    /// # Errors
    /// When the prompt is empty or the sampling options are nonsense.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let mut sampler = Sampler::new(options.sampling)?;
        for &token in prompt {
            sampler.accept(token);
        }
        Ok(Continuation {
            text: tokenizer.shared_stream_decoder(false),
            stops: StopMatcher::new(&options.stop),
            tokenizer: tokenizer.clone(),
            sampler,
            constraint: options.constraint,
            max_tokens: options.max_tokens,
            wind_down: options.wind_down,
            ignore_end: options.ignore_end,
            started: Instant::now(),
            first_token: None,
            stats: GenerationStats {
                prompt_tokens: prompt.len(),
                ..GenerationStats::default()
            },
            ended: None,
        })
    }

    /// The last piece, when the answer is at its end without another token: as long as allowed, or all that the constraint
    /// allows. To be asked before scores are computed.
    pub fn finish_early(&mut self) -> Option<Piece> {
        let is_last = self.max_tokens == Some(self.stats.generated_tokens);
        // A text that conforms is whole even where it may not become longer.
        let is_whole = |constraint: &mut Constraint| {
            constraint.must_stop() || is_last && constraint.is_complete()
        };
        if self.constraint.as_mut().is_some_and(is_whole) {
            Some(self.end(StopReason::Complete, None))
        } else if is_last {
            Some(self.end(StopReason::Length, None))
        } else {
            None
        }
    }

    /// Which scores the choice of the next token depends on, if `ahead` are chosen before it.
    pub fn needs(&self, ahead: &[u32]) -> Needs {
        match self.constraint {
            // A mask may leave nothing of the highest.
            Some(_) => Needs::All,
            None => self.sampler.needs(ahead),
        }
    }

    /// Tokens that may still be generated.
    pub(crate) fn tokens_left(&self) -> usize {
        self.max_tokens
            .map_or(usize::MAX, |most| most - self.stats.generated_tokens)
    }

    /// Chooses the next token by the scores after the last one, shape `[vocabulary]`, which are changed.
    ///
    /// # Errors
    /// When no token can be chosen.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<Piece, GenerateError> {
        let left = self.tokens_left();
        let mask = match &mut self.constraint {
            Some(constraint) => Some(constraint.mask_within(left, self.wind_down)?),
            None => None,
        };
        let sampled = self.sampler.sample(logits, mask)?;
        self.take(sampled)
    }

    /// As [`choose`](Self::choose), by the scores that [`needs`](Self::needs) told, as (token, logit), of a `vocabulary`.
    /// The choice is the same.
    ///
    /// # Errors
    /// When no token can be chosen.
    pub fn choose_among(
        &mut self,
        best: &[(u32, f32)],
        vocabulary: usize,
    ) -> Result<Piece, GenerateError> {
        let sampled = self.sampler.sample_among(best, vocabulary)?;
        self.take(sampled)
    }

    /// Goes on with the chosen token.
    fn take(&mut self, sampled: Sampled) -> Result<Piece, GenerateError> {
        self.sampler.accept(sampled.token);
        self.note_time();
        if self.tokenizer.is_end_of_generation(sampled.token) && !self.ignore_end {
            let reason = match self.constraint {
                Some(_) => StopReason::Complete,
                None => StopReason::EndOfTurn,
            };
            return Ok(self.end(reason, Some(sampled)));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.commit(sampled.token)?;
        }
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

    /// Ends the answer and gives its last piece: what the stream decoder and the stop texts still held back.
    pub fn end(&mut self, reason: StopReason, token: Option<Sampled>) -> Piece {
        self.ended = Some(reason);
        let tail = self.text.finish();
        let pushed = self.stops.push(&tail);
        let mut text = pushed.text;
        if !pushed.stopped {
            text.push_str(&self.stops.finish());
        }
        Piece { text, token }
    }

    /// Why it ended; none while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.ended
    }

    /// Whether the text is whole: the model ended it by itself or, under a constraint, it conforms.
    pub fn is_complete(&mut self) -> bool {
        match (&self.ended, &mut self.constraint) {
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

    /// The figures that are known to who computes: reuse, the time of the prompt, shifts.
    pub fn stats_mut(&mut self) -> &mut GenerationStats {
        &mut self.stats
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
    /// Guesses at the next tokens.
    pub speculation: SpeculationStats,
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
