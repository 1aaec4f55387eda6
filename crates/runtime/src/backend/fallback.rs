//! Several backends, one conversation: when one fails, the next goes on.
//!
//! Tokens are the truth. The decoder here keeps those of every sequence; when a backend fails, at load or in the
//! middle of a generation, the next one is loaded, computes the keys and values of the tokens again, and the step
//! that failed is done there. Every step down has a typed reason.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use super::watchdog::{Deadlines, WatchedDecoder};
use super::{
    Backend, BackendError, Decoder, DeviceReport, HeadReport, LoadOptions, MemoryReport, Run,
    Scored, Select, SequenceId, StreamingReport, Unavailable, Wanted,
};
use crate::model::ModelSpec;
use crate::model_file::Model;

/// A backend that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepDown {
    /// Its name.
    pub backend: String,
    /// Why.
    pub reason: Unavailable,
    /// When.
    pub moment: Moment,
}

/// When a backend was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before anything was loaded.
    Probe,
    /// When the model was loaded.
    Load,
    /// After so many tokens of a conversation.
    Generation {
        /// Tokens that its longest sequence held.
        tokens: usize,
    },
}

impl Moment {
    /// Short name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Moment::Probe => "probe",
            Moment::Load => "load",
            Moment::Generation { .. } => "generation",
        }
    }
}

impl StepDown {
    /// The one line for people.
    pub fn sentence(&self) -> String {
        let moment = match self.moment {
            Moment::Probe | Moment::Load => String::new(),
            Moment::Generation { tokens } => format!(" after {tokens} tokens"),
        };
        let kind = self.reason.kind();
        format!(
            "{} is not used{moment} ({kind}: {})",
            self.backend, self.reason
        )
    }
}

/// Hears of every step down when it happens.
pub type OnStepDown = Box<dyn FnMut(&StepDown) + Send>;

/// A decoder that moves to the next backend when the present one fails.
pub struct FallbackDecoder {
    model: Arc<Model>,
    options: LoadOptions,
    deadlines: Deadlines,
    /// What can still be tried, best first.
    candidates: VecDeque<Arc<dyn Backend>>,
    active: Box<dyn Decoder>,
    name: String,
    sequences: BTreeMap<SequenceId, Held>,
    next_sequence: u64,
    step_downs: Vec<StepDown>,
    on_step_down: OnStepDown,
}

/// A sequence: its tokens, and where the active backend has it, if it does.
#[derive(Debug, Clone, Default)]
struct Held {
    tokens: Vec<u32>,
    inner: Option<SequenceId>,
}

impl FallbackDecoder {
    /// Loads `model` on the first of `candidates` that can. `on_step_down` hears of every one that cannot, now and
    /// later.
    ///
    /// # Errors
    /// What the last candidate said, or an error that no other backend could mend (a damaged model file).
    pub fn load(
        model: &Arc<Model>,
        candidates: Vec<Arc<dyn Backend>>,
        options: &LoadOptions,
        deadlines: Deadlines,
        mut on_step_down: OnStepDown,
    ) -> Result<Self, BackendError> {
        let mut candidates = VecDeque::from(candidates);
        let mut step_downs = Vec::new();
        let (name, active) = load_next(
            model,
            &mut candidates,
            options,
            deadlines,
            &mut step_downs,
            &mut on_step_down,
            None,
        )?;
        Ok(FallbackDecoder {
            model: model.clone(),
            options: options.clone(),
            deadlines,
            candidates,
            active,
            name,
            sequences: BTreeMap::new(),
            next_sequence: 0,
            step_downs,
            on_step_down,
        })
    }

    /// Gives up the active backend for `reason` and loads the next; fails with `reason` when there is none.
    fn step_down(&mut self, reason: Unavailable) -> Result<(), BackendError> {
        let longest = self.sequences.values().map(|held| held.tokens.len()).max();
        let failed = StepDown {
            backend: self.name.clone(),
            reason,
            moment: Moment::Generation {
                tokens: longest.unwrap_or(0),
            },
        };
        for held in self.sequences.values_mut() {
            held.inner = None;
        }
        (self.name, self.active) = load_next(
            &self.model,
            &mut self.candidates,
            &self.options,
            self.deadlines,
            &mut self.step_downs,
            &mut self.on_step_down,
            Some(failed),
        )?;
        Ok(())
    }

    /// What `error` means for the active backend: a reason to give it up, or an error for the caller.
    fn judge(&self, error: BackendError) -> Result<Unavailable, BackendError> {
        match error {
            BackendError::Unavailable(reason) => Ok(reason),
            BackendError::ContextFull { wanted, context }
                if !self.candidates.is_empty() && wanted <= self.context_length() =>
            {
                Ok(Unavailable::ContextTooLong {
                    wanted,
                    limit: context,
                })
            }
            other => Err(other),
        }
    }

    /// The sequence in the active backend, its tokens computed there again if they are not held.
    fn inner(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        let held = self
            .sequences
            .get_mut(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?;
        if let Some(inner) = held.inner {
            return Ok(inner);
        }
        let inner = self.active.start();
        for tokens in held.tokens.chunks(self.active.chunk().max(1)) {
            let run = Run {
                sequence: inner,
                tokens,
                wanted: Wanted::Nothing,
                select: Select::All,
            };
            self.active.forward(&[run], &mut |_| ())?;
        }
        held.inner = Some(inner);
        Ok(inner)
    }

    fn attempt(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        let mut inner = Vec::with_capacity(batch.len());
        for run in batch {
            inner.push(Run {
                sequence: self.inner(run.sequence)?,
                ..*run
            });
        }
        self.active.forward(&inner, scores)
    }

    fn insert(&mut self, held: Held) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, held);
        id
    }
}

impl Decoder for FallbackDecoder {
    fn spec(&self) -> &Arc<ModelSpec> {
        self.model.spec()
    }

    fn device(&self) -> &DeviceReport {
        self.active.device()
    }

    /// Of whichever backend is to come: a conversation that outgrows a device moves on.
    fn context_length(&self) -> usize {
        let active = self.active.context_length();
        if self.candidates.is_empty() {
            return active;
        }
        let wanted = self.options.context;
        active.max(wanted.unwrap_or(self.spec().context_length))
    }

    fn chunk(&self) -> usize {
        self.active.chunk()
    }

    fn start(&mut self) -> SequenceId {
        self.insert(Held::default())
    }

    fn stop(&mut self, sequence: SequenceId) {
        if let Some(inner) = self.sequences.remove(&sequence).and_then(|held| held.inner) {
            self.active.stop(inner);
        }
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences
            .get(&sequence)
            .map_or(0, |held| held.tokens.len())
    }

    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        // Scores come in order: those that were handed on before a failure are not handed on again.
        let mut handed_on = 0;
        loop {
            let mut seen = 0;
            let result = self.attempt(batch, &mut |scored| {
                seen += 1;
                if seen > handed_on {
                    handed_on = seen;
                    scores(scored);
                }
            });
            match result {
                Ok(()) => break,
                Err(error) => {
                    let reason = self.judge(error)?;
                    self.step_down(reason)?;
                }
            }
        }
        for run in batch {
            if let Some(held) = self.sequences.get_mut(&run.sequence) {
                held.tokens.extend_from_slice(run.tokens);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize {
        let Some(held) = self.sequences.get_mut(&sequence) else {
            return 0;
        };
        let kept = match held.inner {
            Some(inner) => self.active.truncate(inner, length),
            None => length,
        };
        held.tokens.truncate(kept);
        held.tokens.len()
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        let held = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?;
        let tokens = held.tokens.clone();
        let inner = held.inner.and_then(|inner| self.active.fork(inner).ok());
        Ok(self.insert(Held { tokens, inner }))
    }

    fn state_form(&self) -> String {
        self.active.state_form()
    }

    fn save(&self, sequence: SequenceId, out: &mut dyn io::Write) -> Result<(), BackendError> {
        let held = self.sequences.get(&sequence);
        match held.and_then(|held| held.inner) {
            Some(inner) => self.active.save(inner, out),
            None => Err(BackendError::UnknownSequence(sequence)),
        }
    }

    fn restore(
        &mut self,
        length: usize,
        input: &mut dyn io::Read,
    ) -> Result<SequenceId, BackendError> {
        let inner = self.active.restore(length, input)?;
        Ok(self.insert(Held {
            tokens: Vec::new(),
            inner: Some(inner),
        }))
    }

    fn adopt(&mut self, sequence: SequenceId, tokens: &[u32]) {
        if let Some(held) = self.sequences.get_mut(&sequence) {
            held.tokens = tokens.to_vec();
        }
    }

    fn memory(&self) -> MemoryReport {
        self.active.memory()
    }

    fn notes(&self) -> &[String] {
        self.active.notes()
    }

    fn head(&self) -> HeadReport {
        self.active.head()
    }

    fn streaming(&self) -> Option<StreamingReport> {
        self.active.streaming()
    }

    fn disk_bytes_per_second(&self) -> Option<f64> {
        self.active.disk_bytes_per_second()
    }

    fn step_downs(&self) -> &[StepDown] {
        &self.step_downs
    }
}

/// Loads the next candidate that can be loaded; `failed` was given up just before.
fn load_next(
    model: &Arc<Model>,
    candidates: &mut VecDeque<Arc<dyn Backend>>,
    options: &LoadOptions,
    deadlines: Deadlines,
    step_downs: &mut Vec<StepDown>,
    on_step_down: &mut OnStepDown,
    failed: Option<StepDown>,
) -> Result<(String, Box<dyn Decoder>), BackendError> {
    let mut failed = failed;
    loop {
        let next = candidates.pop_front();
        if let Some(given_up) = failed.take() {
            on_step_down(&given_up);
            let reason = given_up.reason.clone();
            step_downs.push(given_up);
            if next.is_none() {
                return Err(reason.into());
            }
        }
        let Some(backend) = next else {
            let nothing = "no backend is left to try; name one with --backend";
            return Err(Unavailable::NotPresent(nothing.into()).into());
        };
        let name = backend.name().to_owned();
        let (moment, error) = match try_load(model, &backend, options, deadlines) {
            Ok(decoder) => return Ok((name, decoder)),
            Err(failure) => failure,
        };
        failed = Some(StepDown {
            backend: name,
            reason: match error {
                BackendError::Unavailable(reason) => reason,
                other => return Err(other),
            },
            moment,
        });
    }
}

fn try_load(
    model: &Arc<Model>,
    backend: &Arc<dyn Backend>,
    options: &LoadOptions,
    deadlines: Deadlines,
) -> Result<Box<dyn Decoder>, (Moment, BackendError)> {
    let at_probe = |reason| (Moment::Probe, BackendError::Unavailable(reason));
    backend.probe().map_err(at_probe)?;
    backend.fits(model.spec(), options).map_err(at_probe)?;
    let loaded = match backend.needs_watching() {
        false => model.load(backend.as_ref(), options),
        true => WatchedDecoder::load(model, backend, options, deadlines)
            .map(|decoder| Box::new(decoder) as Box<dyn Decoder>),
    };
    loaded.map_err(|error| (Moment::Load, error))
}
