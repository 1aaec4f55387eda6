//! One conversation: the tokens so far and the decoder that holds their keys and values.

use std::path::Path;
use std::sync::Arc;

use crate::backend::{BackendError, Decoder, Run, Scored, Select, SequenceId, Wanted};
use crate::model_file::Model;
use crate::prefix::{self, PrefixError};

/// What to do when a conversation outgrows the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextOverflow {
    /// Stop with an error.
    #[default]
    Error,
    /// Forget the oldest tokens but the first few, on which attention leans (attention sinks, Xiao
    /// et al. 2023, arXiv 2309.17453), and compute the rest again.
    Shift,
}

/// Tokens at the beginning that a shift keeps.
pub const SINK_TOKENS: usize = 4;

/// A loaded model with the state of one conversation.
///
/// The tokens are the truth: what the decoder holds is brought in line with them before each step, so
/// that a conversation can be edited, cut, or moved to another decoder at any token.
pub struct Session {
    model: Arc<Model>,
    decoder: Box<dyn Decoder>,
    sequence: SequenceId,
    /// Tokens whose keys and values the decoder holds.
    tokens: Vec<u32>,
    shifted: bool,
}

impl Session {
    /// An empty conversation on `decoder`, which must have been loaded from `model`.
    pub fn new(model: Arc<Model>, mut decoder: Box<dyn Decoder>) -> Self {
        let sequence = decoder.start();
        Session {
            model,
            decoder,
            sequence,
            tokens: Vec::new(),
            shifted: false,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The decoder.
    pub fn decoder(&self) -> &dyn Decoder {
        self.decoder.as_ref()
    }

    /// The tokens that are held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether tokens were ever dropped to stay within the context.
    pub fn was_shifted(&self) -> bool {
        self.shifted
    }

    /// Makes the held tokens a prefix of `prompt` and returns how many of it remain to be computed.
    /// At least one does, since the scores after the last one are not kept.
    pub fn align(&mut self, prompt: &[u32]) -> usize {
        let common = self
            .tokens
            .iter()
            .zip(prompt)
            .take_while(|(held, wanted)| held == wanted)
            .count()
            .min(prompt.len().saturating_sub(1));
        let kept = self.decoder.truncate(self.sequence, common);
        self.tokens.truncate(kept);
        prompt.len() - kept
    }

    /// Appends tokens; the logits after the last one go to `receive` when `wanted`.
    ///
    /// # Errors
    /// See [`BackendError`]; nothing was appended then.
    pub fn append(
        &mut self,
        tokens: &[u32],
        wanted: Wanted,
        receive: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        self.append_for(tokens, wanted, Select::All, receive)
    }

    /// [`append`](Self::append) where only some scores are wanted.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_for(
        &mut self,
        tokens: &[u32],
        wanted: Wanted,
        select: Select<'_>,
        receive: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        let run = Run {
            sequence: self.sequence,
            tokens,
            wanted,
            select,
        };
        self.decoder.forward(&[run], receive)?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Takes back all but the first `length` tokens. Gives those of the first `length` that were lost with them and must
    /// be appended again.
    pub fn rewind(&mut self, length: usize) -> Vec<u32> {
        if length >= self.tokens.len() {
            return Vec::new();
        }
        let kept = self.decoder.truncate(self.sequence, length);
        let lost = self.tokens[kept.min(length)..length].to_vec();
        self.tokens.truncate(kept);
        lost
    }

    /// Makes room for `tokens` more by dropping the oldest but [`SINK_TOKENS`], and computes again
    /// what remains. Returns whether anything had to be done.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn make_room(&mut self, tokens: usize) -> Result<bool, BackendError> {
        let context = self.decoder.context_length();
        if self.tokens.len() + tokens <= context {
            return Ok(false);
        }
        let kept = shifted(&self.tokens, context.saturating_sub(tokens) / 2 + 1);
        self.align(&kept);
        let rest = kept[self.tokens.len()..].to_vec();
        self.append(&rest, Wanted::Nothing, &mut |_| ())?;
        self.shifted = true;
        Ok(true)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.decoder.stop(self.sequence);
        self.sequence = self.decoder.start();
        self.tokens.clear();
        self.shifted = false;
    }

    /// Writes the state of the tokens held to `path`, so that they need not be computed again.
    ///
    /// # Errors
    /// See [`PrefixError`].
    pub fn save_prefix(&self, path: &Path) -> Result<(), PrefixError> {
        prefix::save(
            path,
            &self.model,
            self.decoder.as_ref(),
            self.sequence,
            &self.tokens,
        )
    }

    /// Goes on from what [`Session::save_prefix`] wrote, in place of what is held now.
    ///
    /// # Errors
    /// See [`PrefixError`]; the session is unchanged then.
    pub fn restore_prefix(&mut self, path: &Path) -> Result<(), PrefixError> {
        let (sequence, tokens) = prefix::restore(path, &self.model, self.decoder.as_mut())?;
        self.decoder.adopt(sequence, &tokens);
        self.decoder.stop(self.sequence);
        self.sequence = sequence;
        self.tokens = tokens;
        Ok(())
    }
}

/// What [`Session::use_prefix_file`] did.
#[derive(Debug)]
pub enum PrefixUse {
    /// The file held the tokens, and they are held now.
    Restored,
    /// The tokens were computed and the file was written; why an older file was not used, if there
    /// was one.
    Saved(Option<PrefixError>),
}

impl Session {
    /// Holds `tokens` afterwards: from the file at `path` if it was saved for them, else computed now
    /// and saved there. A file that cannot be used is replaced.
    ///
    /// # Errors
    /// When the tokens cannot be computed or the file cannot be written.
    pub fn use_prefix_file(
        &mut self,
        path: &Path,
        tokens: &[u32],
    ) -> Result<PrefixUse, PrefixError> {
        let mut refused = None;
        if path.exists() {
            match self.restore_prefix(path) {
                Ok(()) if self.tokens == tokens => return Ok(PrefixUse::Restored),
                Ok(()) => refused = Some(PrefixError::other_tokens(path)),
                Err(error @ PrefixError::Io { .. }) => return Err(error),
                Err(error) => refused = Some(error),
            }
        }
        self.align(tokens);
        let rest = tokens[self.tokens.len()..].to_vec();
        self.append(&rest, Wanted::Nothing, &mut |_| ())?;
        self.save_prefix(path)?;
        Ok(PrefixUse::Saved(refused))
    }
}

/// The first [`SINK_TOKENS`] and the last tokens, `length` in all.
pub(crate) fn shifted(tokens: &[u32], length: usize) -> Vec<u32> {
    if tokens.len() <= length {
        return tokens.to_vec();
    }
    let sinks = SINK_TOKENS.min(length / 2);
    let recent = length - sinks;
    let mut kept = tokens[..sinks].to_vec();
    kept.extend_from_slice(&tokens[tokens.len() - recent..]);
    kept
}
