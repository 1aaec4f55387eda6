//! The decoding loop: prompt tokens in, text out, one token at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backend::{BackendError, Scored, Scores, Wanted};
use crate::constraint::Constraint;
use crate::continuation::{Continuation, GenerateError, GenerationStats, Piece, StopReason};
use crate::sample::{SampleError, SamplingOptions};
use crate::session::{ContextOverflow, Session, shifted};
use crate::speculate::{Drafter, Governor, MOST_GUESSES, PromptLookup};

/// Bytes that the scores of guesses may take, once in the decoder and once here: memory stays near the file's size for
/// large vocabularies too.
const SCORE_BYTES: usize = 8 << 20;

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
    /// Where guesses at the next tokens come from; they change the speed only.
    pub speculation: Speculation,
    /// Set from anywhere to stop before the next token.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// Where guesses at the next tokens come from.
#[derive(Default)]
pub enum Speculation {
    /// From the text so far ([`PromptLookup`]).
    #[default]
    Lookup,
    /// From elsewhere, such as a [`DraftModel`](crate::speculate::DraftModel).
    Drafter(Box<dyn Drafter>),
    /// There are none.
    Off,
}

/// A running generation: an iterator over the pieces of the answer.
pub struct Generation<'s> {
    session: &'s mut Session,
    answer: Continuation,
    overflow: ContextOverflow,
    cancel: Option<Arc<AtomicBool>>,
    /// Prompt and answer.
    text: Vec<u32>,
    /// Tokens still to be computed: the prompt at first, then the last token.
    pending: Vec<u32>,
    /// Scores that the next choices are made from, the first one's first: one more than there are guesses.
    scores: VecDeque<Kept>,
    /// Guesses that were computed and not yet compared with a choice.
    guesses: VecDeque<u32>,
    /// Tokens of the session that belong to the text; guesses may follow them.
    held: usize,
    drafter: Option<Box<dyn Drafter>>,
    governor: Governor,
    /// Time and number of guesses of the step that `scores` are from, and how many were right so far.
    round: Option<(Duration, usize, usize)>,
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
        mut options: GenerateOptions,
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
        let drafter: Option<Box<dyn Drafter>> = match std::mem::take(&mut options.speculation) {
            Speculation::Lookup => Some(Box::<PromptLookup>::default()),
            Speculation::Drafter(drafter) => Some(drafter),
            Speculation::Off => None,
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
            held: prompt.len() - computed,
            text: prompt,
            scores: VecDeque::new(),
            guesses: VecDeque::new(),
            drafter,
            governor: Governor::new(),
            round: None,
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

/// What the session holds of guesses that did not become text is taken back.
impl Drop for Generation<'_> {
    fn drop(&mut self) {
        self.session.rewind(self.held);
    }
}

/// The scores of a position.
enum Kept {
    All(Vec<f32>),
    Best(Vec<(u32, f32)>),
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
        if self.scores.is_empty()
            && let Some(reason) = self.compute_pending()?
        {
            return Ok(self.answer.end(reason, None));
        }
        let vocabulary = self.session.decoder().spec().vocabulary;
        let piece = match self.scores.pop_front() {
            Some(Kept::All(mut logits)) => self.answer.choose(&mut logits)?,
            Some(Kept::Best(best)) => self.answer.choose_among(&best, vocabulary)?,
            None => return Err(SampleError::NothingAllowed.into()),
        };
        if let Some(sampled) = &piece.token {
            self.compare(sampled.token);
        }
        Ok(piece)
    }

    /// Compares the choice with the guess: either its scores are there already, or what was guessed is void.
    fn compare(&mut self, token: u32) {
        self.text.push(token);
        if self.guesses.pop_front() == Some(token) {
            self.held += 1;
            self.answer.stats_mut().speculation.accepted += 1;
            if let Some((_, _, accepted)) = &mut self.round {
                *accepted += 1;
            }
        } else {
            self.scores.clear();
            self.guesses.clear();
            self.pending = vec![token];
        }
        if self.guesses.is_empty()
            && let Some((time, guessed, accepted)) = self.round.take()
        {
            let pauses = self.governor.note_round(time, guessed, accepted);
            self.answer.stats_mut().speculation.pauses += usize::from(pauses);
        }
    }

    /// Computes the pending tokens and some guesses, and keeps the scores that the next choices need. Answers why the
    /// generation ends here, if it does.
    fn compute_pending(&mut self) -> Result<Option<StopReason>, GenerateError> {
        let begun = Instant::now();
        let is_first = self.stats().generated_tokens == 0;
        let mut pending = self.session.rewind(self.held);
        if !pending.is_empty() {
            // Taking guesses back costs more here than they can save.
            self.drafter = None;
        }
        self.held -= pending.len();
        pending.append(&mut self.pending);
        let step = self.session.decoder().chunk();
        let mut computed = 0;
        while computed < pending.len() {
            if self.is_cancelled() {
                return Ok(Some(StopReason::Cancelled));
            }
            let end = pending.len().min(computed + step);
            let is_last = end == pending.len();
            let mut tokens = pending[computed..end].to_vec();
            if self.overflow == ContextOverflow::Shift {
                let shifted = self.session.make_room(tokens.len())?;
                self.answer.stats_mut().shifts += usize::from(shifted);
            }
            let guesses = match is_last {
                true => self.guess(tokens.len())?,
                false => Vec::new(),
            };
            let wanted = match is_last {
                true => Wanted::From(tokens.len() - 1),
                false => Wanted::Nothing,
            };
            tokens.extend_from_slice(&guesses);
            let needs = self.answer.needs(&guesses);
            let kept = &mut self.scores;
            let receive = &mut |scored: Scored<'_>| match scored.scores {
                Scores::All(logits) => kept.push_back(Kept::All(logits.to_vec())),
                Scores::Candidates(best) => kept.push_back(Kept::Best(best.to_vec())),
                Scores::Hidden(_) => (),
            };
            let select = needs.select();
            let result = self.session.append_for(&tokens, wanted, select, receive);
            match result {
                Err(BackendError::ContextFull { .. }) if !is_first => {
                    return Ok(Some(StopReason::ContextFull));
                }
                other => other?,
            }
            self.held = self.session.tokens().len() - guesses.len();
            self.note_guesses(guesses);
            computed = end;
        }
        self.note_time(is_first, pending.len(), begun.elapsed());
        Ok(None)
    }

    /// Guesses at what follows `pending` tokens, as many as pay and have room.
    fn guess(&mut self, pending: usize) -> Result<Vec<u32>, GenerateError> {
        let mut guesses = Vec::new();
        let Some(drafter) = &mut self.drafter else {
            return Ok(guesses);
        };
        let decoder = self.session.decoder();
        let used = self.session.tokens().len() + pending;
        let room = decoder.context_length().saturating_sub(used);
        let left = self.answer.tokens_left().saturating_sub(1);
        let affordable = (SCORE_BYTES / (8 * decoder.spec().vocabulary).max(1)).saturating_sub(1);
        let most = MOST_GUESSES.min(affordable);
        let count = self.governor.wanted().min(room).min(left).min(most);
        if count > 0 {
            drafter.draft(&self.text, count, &mut guesses)?;
        }
        Ok(guesses)
    }

    fn note_guesses(&mut self, guesses: Vec<u32>) {
        if guesses.is_empty() {
            return;
        }
        let stats = &mut self.answer.stats_mut().speculation;
        stats.source = self.drafter.as_ref().map(|drafter| drafter.name());
        stats.rounds += 1;
        stats.guessed += guesses.len();
        self.guesses = guesses.into();
    }

    /// Notes how long a step of `pending` tokens and the guesses took.
    fn note_time(&mut self, is_first: bool, pending: usize, time: Duration) {
        let guessed = self.guesses.len();
        if is_first {
            self.answer.stats_mut().prefill = time;
        } else if guessed > 0 {
            self.round = Some((time, guessed, 0));
        } else if pending == 1 {
            self.governor.note_plain(time);
        }
    }

    fn is_cancelled(&self) -> bool {
        let cancel = self.cancel.as_ref();
        cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}
