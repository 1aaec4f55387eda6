//! Guessing tokens ahead, so that one step of the model checks several (Leviathan et al., "Fast inference from
//! transformers via speculative decoding", 2023; Saxena, "Prompt lookup decoding", 2023).
//!
//! A guess is one token per position. The model computes all positions in one step; then tokens are chosen one after
//! the other exactly as without guesses, each from the scores of the model itself, for as long as the choice is the
//! guess. With a guess as the whole of the proposal's distribution that is speculative sampling: a guess `g` is kept with
//! probability `p(g)`, and otherwise the token comes from `p` without `g`. So the distribution is the model's, and with
//! the same seed the text is the same, too.

use std::collections::HashMap;
use std::time::Duration;

use crate::backend::{BackendError, Scores, Select, Wanted};
use crate::session::Session;

/// Where guesses come from.
pub trait Drafter: Send {
    /// Short name for reports.
    fn name(&self) -> &'static str;

    /// Appends up to `count` tokens that may follow `tokens` to `guesses`; none where there is no good guess.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn draft(
        &mut self,
        tokens: &[u32],
        count: usize,
        guesses: &mut Vec<u32>,
    ) -> Result<(), BackendError>;
}

/// Guesses ahead, and at most so many at once; two per tile of the kernels.
pub const MOST_GUESSES: usize = 15;

/// Tokens that have to be the same for what follows them to be a guess.
const GRAM: usize = 3;

/// Guesses that the text goes on as it did after the last occurrence of its last three tokens.
#[derive(Debug, Default)]
pub struct PromptLookup {
    /// Where each sequence of [`GRAM`] tokens ended last.
    ends: HashMap<[u32; GRAM], usize, foldhash::fast::FixedState>,
    /// Tokens that are in the table.
    indexed: usize,
}

impl Drafter for PromptLookup {
    fn name(&self) -> &'static str {
        "lookup"
    }

    fn draft(
        &mut self,
        tokens: &[u32],
        count: usize,
        guesses: &mut Vec<u32>,
    ) -> Result<(), BackendError> {
        let length = tokens.len();
        if self.indexed > length {
            *self = PromptLookup::default();
        }
        // The last tokens themselves are looked up, not found.
        for end in (self.indexed + 1).max(GRAM)..length {
            self.ends.insert(gram(tokens, end), end);
        }
        self.indexed = self.indexed.max(length.saturating_sub(1));
        if length < GRAM {
            return Ok(());
        }
        if let Some(&end) = self.ends.get(&gram(tokens, length)) {
            // Past the end, the guess is its own continuation.
            let period = length - end;
            for place in 0..count {
                guesses.push(tokens[end + place % period]);
            }
        }
        Ok(())
    }
}

fn gram(tokens: &[u32], end: usize) -> [u32; GRAM] {
    std::array::from_fn(|i| tokens[end - GRAM + i])
}

/// Guesses what a smaller model of the same vocabulary finds likeliest.
pub struct DraftModel {
    session: Session,
}

impl DraftModel {
    /// A draft model with its own conversation.
    pub fn new(session: Session) -> Self {
        DraftModel { session }
    }

    /// Why the tokens of this model are not those of `other`, if so.
    pub fn mismatch(&self, other: &Session) -> Option<String> {
        let sizes = [&self.session, other].map(|session| session.decoder().spec().vocabulary);
        let [own, theirs] = [&self.session, other].map(|session| session.model().tokenizer());
        if sizes[0] != sizes[1] {
            return Some(format!(
                "the draft model has {} tokens, the model {}; choose a draft model of the same family",
                sizes[0], sizes[1]
            ));
        }
        let differs =
            (0..sizes[0] as u32).find(|&token| own.token_bytes(token) != theirs.token_bytes(token));
        differs.map(|token| {
            format!(
                "token {token} of the draft model is not the model's; choose a draft model of the same family"
            )
        })
    }
}

impl Drafter for DraftModel {
    fn name(&self) -> &'static str {
        "model"
    }

    fn draft(
        &mut self,
        tokens: &[u32],
        count: usize,
        guesses: &mut Vec<u32>,
    ) -> Result<(), BackendError> {
        if tokens.len() + count > self.session.decoder().context_length() {
            return Ok(());
        }
        let rest = self.session.align(tokens);
        let mut next = tokens[tokens.len() - rest..].to_vec();
        for _ in 0..count {
            let mut likeliest = None;
            let select = Select::Best {
                count: 1,
                also: &[],
            };
            self.session
                .append_for(&next, Wanted::Last, select, &mut |scored| {
                    likeliest = match scored.scores {
                        Scores::All(logits) => {
                            ondine_kernels::ops::argmax(logits).map(|token| token as u32)
                        }
                        Scores::Candidates(best) => best.first().map(|&(token, _)| token),
                        Scores::Hidden(_) => None,
                    };
                })?;
            let Some(token) = likeliest else { break };
            guesses.push(token);
            next = vec![token];
        }
        Ok(())
    }
}

/// What guessing did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SpeculationStats {
    /// Where guesses came from; none if nothing was guessed.
    pub source: Option<&'static str>,
    /// Steps with guesses.
    pub rounds: usize,
    /// Tokens guessed.
    pub guessed: usize,
    /// Guesses that were right and used.
    pub accepted: usize,
    /// How often guessing was stopped for a while because it did not pay.
    pub pauses: usize,
}

/// Decides from measured times whether guessing pays, and how far ahead.
#[derive(Debug)]
pub(crate) struct Governor {
    /// Guesses to ask for: one of [`LENGTHS`].
    length: usize,
    /// Seconds of a step without guesses, smoothed.
    plain: Option<f64>,
    plain_steps: usize,
    /// Seconds and tokens of the last rounds, older ones counting less.
    seconds: f64,
    tokens: f64,
    /// Rounds since the last pause, and since the last step without guesses.
    rounds: usize,
    since_plain: usize,
    /// Steps without guesses still to make, and how many the last pause had.
    pause: usize,
    last_pause: usize,
}

/// With the token before, they fill tiles of the kernels.
const LENGTHS: [usize; 4] = [1, 3, 7, MOST_GUESSES];
/// Share of the past that is kept each time.
const KEPT: f64 = 0.8;
/// Rounds before they are judged.
const TRIAL: usize = 2;
/// Gain below which guessing is not worth it.
const LEAST_GAIN: f64 = 1.03;
/// Steps of a pause, at first and at most.
const PAUSE: std::ops::Range<usize> = 48..1024;
/// Rounds after which a step without guesses is measured again.
const REMEASURE: usize = 48;

impl Governor {
    pub(crate) fn new() -> Self {
        Governor {
            length: 1,
            plain: None,
            plain_steps: 0,
            seconds: 0.0,
            tokens: 0.0,
            rounds: 0,
            since_plain: 0,
            pause: 0,
            last_pause: 0,
        }
    }

    /// How many tokens to guess now.
    pub(crate) fn wanted(&mut self) -> usize {
        if self.pause > 0 || self.plain_steps < 2 || self.since_plain >= REMEASURE {
            return 0;
        }
        LENGTHS[self.length]
    }

    /// Notes a step of one token.
    pub(crate) fn note_plain(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.plain_steps += 1;
        self.since_plain = 0;
        self.pause = self.pause.saturating_sub(1);
        // A step that was disturbed says little.
        let before = self.plain.unwrap_or(seconds);
        self.plain = Some(KEPT * before + (1.0 - KEPT) * seconds.min(2.0 * before));
    }

    /// Notes a step with `guessed` guesses of which `accepted` were right. Returns whether a pause begins.
    pub(crate) fn note_round(&mut self, time: Duration, guessed: usize, accepted: usize) -> bool {
        self.rounds += 1;
        self.since_plain += 1;
        self.seconds = KEPT * self.seconds + time.as_secs_f64();
        self.tokens = KEPT * self.tokens + 1.0 + accepted as f64;
        if accepted == guessed {
            self.length = (self.length + 1).min(LENGTHS.len() - 1);
        } else if 2 * accepted < guessed {
            self.length = self.length.saturating_sub(1);
        }
        let plain = self.plain.unwrap_or(f64::INFINITY);
        let pays = self.tokens * plain >= LEAST_GAIN * self.seconds;
        if self.rounds < TRIAL || pays {
            if self.rounds > 8 * TRIAL {
                self.last_pause = 0;
            }
            return false;
        }
        self.last_pause = (2 * self.last_pause).clamp(PAUSE.start, PAUSE.end);
        self.pause = self.last_pause;
        (self.seconds, self.tokens, self.rounds, self.length) = (0.0, 0.0, 0, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(tokens: &[u32], count: usize) -> Vec<u32> {
        let mut guesses = Vec::new();
        let mut lookup = PromptLookup::default();
        // Piecemeal and at once must be the same.
        for end in 1..tokens.len() {
            guesses.clear();
            lookup.draft(&tokens[..end], count, &mut guesses).unwrap();
        }
        guesses.clear();
        lookup.draft(tokens, count, &mut guesses).unwrap();
        let mut at_once = Vec::new();
        let mut fresh = PromptLookup::default();
        fresh.draft(tokens, count, &mut at_once).unwrap();
        assert_eq!(guesses, at_once);
        guesses
    }

    #[test]
    fn the_text_goes_on_as_it_did_before() {
        assert_eq!(lookup(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 3), [4, 5, 9]);
        assert_eq!(lookup(&[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1), [8]);
        assert_eq!(lookup(&[1, 2, 1, 2, 1], 5), [2, 1, 2, 1, 2]);
        assert_eq!(lookup(&[4, 4, 4, 4], 3), [4, 4, 4]);
        assert!(lookup(&[1, 2, 3, 4], 3).is_empty());
        assert!(lookup(&[1, 2], 3).is_empty());
        assert!(lookup(&[], 3).is_empty());
    }

    #[test]
    fn guessing_goes_on_while_it_pays() {
        let ms = Duration::from_millis;
        let mut governor = Governor::new();
        assert_eq!(governor.wanted(), 0);
        for _ in 0..3 {
            governor.note_plain(ms(10));
        }
        assert_eq!(governor.wanted(), 3);
        for _ in 0..10 {
            assert!(!governor.note_round(ms(12), governor.length, governor.length));
        }
        assert_eq!(governor.wanted(), MOST_GUESSES);
        // Wrong guesses that cost half a step each.
        let paused = (0..20).position(|_| governor.note_round(ms(15), MOST_GUESSES, 0));
        assert!(paused.is_some_and(|rounds| rounds < 12), "{paused:?}");
        assert_eq!(governor.wanted(), 0);
        for _ in 0..PAUSE.start {
            assert_eq!(governor.wanted(), 0);
            governor.note_plain(ms(10));
        }
        assert_eq!(governor.wanted(), 1);
        // The next pause is longer.
        assert!(!governor.note_round(ms(15), 1, 0));
        assert!(governor.note_round(ms(15), 1, 0));
        for _ in 0..2 * PAUSE.start {
            assert_eq!(governor.wanted(), 0);
            governor.note_plain(ms(10));
        }
        assert_eq!(governor.wanted(), 1);
    }
}
