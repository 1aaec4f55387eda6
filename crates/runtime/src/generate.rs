//! The decoding loop: prompt tokens in, text out, one token at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::backend::{BackendError, Scored, Scores, Wanted};
use crate::constraint::Constraint;
use crate::continuation::{Continuation, GenerateError, GenerationStats, Piece, StopReason};
use crate::sample::SamplingOptions;
use crate::session::{ContextOverflow, Session, shifted};

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
    /// Under a constraint, spend the last so many of `max_tokens` on coming to an end, so that the text is whole when they are
    /// used up; 0 cuts it off there.
    pub wind_down: usize,
    /// Go on after the end of the turn (for measurements).
    pub ignore_end: bool,
    /// Set from anywhere to stop before the next token.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// A running generation: an iterator over the pieces of the answer.
pub struct Generation<'s> {
    session: &'s mut Session,
    answer: Continuation,
    overflow: ContextOverflow,
    cancel: Option<Arc<AtomicBool>>,
    /// Tokens still to be computed: the prompt at first, then the last token.
    pending: Vec<u32>,
    logits: Vec<f32>,
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
        let (overflow, cancel) = (options.overflow, options.cancel.clone());
        let mut answer = Continuation::new(self.model().tokenizer(), &prompt, options)?;
        let computed = self.align(&prompt);
        answer.stats_mut().reused_tokens = prompt.len() - computed;
        Ok(Generation {
            pending: prompt[prompt.len() - computed..].to_vec(),
            session: self,
            answer,
            overflow,
            cancel,
            logits: Vec::new(),
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
        if step.is_err() || self.stop_reason().is_some() {
            self.done = true;
        }
        Some(step)
    }
}

impl Generation<'_> {
    /// Why it ended; none while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.answer.stop_reason()
    }

    /// Whether the text is whole: the model ended it by itself or, under a constraint, it conforms.
    pub fn is_complete(&mut self) -> bool {
        self.answer.is_complete()
    }

    /// The figures so far.
    pub fn stats(&self) -> &GenerationStats {
        self.answer.stats()
    }

    fn step(&mut self) -> Result<Piece, GenerateError> {
        if let Some(last) = self.answer.finish_early() {
            return Ok(last);
        }
        if let Some(reason) = self.compute_pending()? {
            return Ok(self.answer.end(reason, None));
        }
        let piece = self.answer.choose(&mut self.logits)?;
        self.pending = piece.token.iter().map(|sampled| sampled.token).collect();
        Ok(piece)
    }

    /// Computes the pending tokens and keeps the logits after the last. Answers why the generation ends here, if it does.
    fn compute_pending(&mut self) -> Result<Option<StopReason>, GenerateError> {
        let begun = Instant::now();
        let is_first = self.stats().generated_tokens == 0;
        let pending = std::mem::take(&mut self.pending);
        let step = self.session.decoder().chunk();
        let mut computed = 0;
        while computed < pending.len() {
            if self.is_cancelled() {
                return Ok(Some(StopReason::Cancelled));
            }
            let end = pending.len().min(computed + step);
            let tokens = &pending[computed..end];
            if self.overflow == ContextOverflow::Shift {
                let shifted = self.session.make_room(tokens.len())?;
                self.answer.stats_mut().shifts += usize::from(shifted);
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
                Err(BackendError::ContextFull { .. }) if !is_first => {
                    return Ok(Some(StopReason::ContextFull));
                }
                other => other?,
            }
            computed = end;
        }
        if is_first {
            self.answer.stats_mut().prefill = begun.elapsed();
        }
        Ok(None)
    }

    fn is_cancelled(&self) -> bool {
        let cancel = self.cancel.as_ref();
        cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}
