//! A decoder that drives stateful OpenVINO models: one request per sequence, whose variables are its keys and values.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

use ondine_runtime::backend::{
    BackendError, Decoder, DeviceReport, MemoryReport, Run, Scored, Scores, Select, SequenceId,
    Unavailable, Wanted,
};
use ondine_runtime::model::{Mixer, ModelSpec};

use super::ffi::{CallError, Compiled, Request};
use super::{Stage, reason};

/// Tokens computed together.
const CHUNK: usize = 128;

/// How the compiled model takes its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any number at any time; `wanted` says whose scores are computed.
    Stateful,
    /// Intel's NPU pipeline: a prompt, whose last token is scored, then tokens one by one.
    Pipeline,
}

pub(super) struct OpenVinoDecoder {
    spec: Arc<ModelSpec>,
    device: DeviceReport,
    compiled: Arc<Compiled>,
    kind: Kind,
    context: usize,
    weights_bytes: u64,
    /// Whether attention depends on how far keys lie from a query, so that no gap may be left in a cache.
    distances_matter: bool,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_sequence: u64,
    scores: Vec<f32>,
    notes: Vec<String>,
}

#[derive(Default)]
struct Sequence {
    tokens: Vec<u32>,
    /// How many of the tokens the request has computed.
    computed: usize,
    /// One for each place in the request's cache: 1 for a token of the sequence, 0 for one that was taken back.
    places: Vec<i64>,
    request: Option<Request>,
}

impl OpenVinoDecoder {
    pub(super) fn new(
        spec: Arc<ModelSpec>,
        device: DeviceReport,
        compiled: Arc<Compiled>,
        kind: Kind,
        context: usize,
        weights_bytes: u64,
        note: Option<String>,
    ) -> Self {
        let distances_matter = spec.layers.iter().any(|layer| match &layer.mixer {
            Mixer::Attention(attention) => {
                attention.window.is_some() || attention.alibi_max_bias.is_some()
            }
            Mixer::ShortConvolution(_) => true,
        });
        OpenVinoDecoder {
            spec,
            device,
            compiled,
            kind,
            context,
            weights_bytes,
            distances_matter,
            sequences: BTreeMap::new(),
            next_sequence: 0,
            scores: Vec::new(),
            notes: note.into_iter().collect(),
        }
    }

    /// Computes one token, so that what the runtime does at the first run is done at load.
    pub(super) fn warm_up(&mut self) -> Result<(), BackendError> {
        let sequence = self.start();
        let run = Run {
            sequence,
            tokens: &[0],
            wanted: Wanted::Last,
            select: Select::All,
        };
        let done = self.forward(&[run], &mut |_| ());
        self.stop(sequence);
        done
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn check(&self, batch: &[Run<'_>]) -> Result<(), BackendError> {
        let vocabulary = self.spec.vocabulary;
        let mut lengths = BTreeMap::new();
        for run in batch {
            if run.wanted == Wanted::Hidden {
                let what = format!("{} gives no hidden states", self.device.backend);
                return Err(Unavailable::Unsupported(what).into());
            }
            let sequence = self
                .sequences
                .get(&run.sequence)
                .ok_or(BackendError::UnknownSequence(run.sequence))?;
            let length = lengths.entry(run.sequence).or_insert(sequence.tokens.len());
            *length += run.tokens.len();
            if *length > self.context {
                return Err(BackendError::ContextFull {
                    wanted: *length,
                    context: self.context,
                });
            }
            if let Some(&token) = run.tokens.iter().find(|&&t| t as usize >= vocabulary) {
                return Err(BackendError::UnknownToken { token, vocabulary });
            }
        }
        Ok(())
    }

    /// Computes the next `count` tokens of a sequence; `wanted` are those of them whose scores are handed on.
    fn part(
        &mut self,
        id: SequenceId,
        count: usize,
        wanted: &[usize],
        give: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<(), BackendError> {
        let vocabulary = self.spec.vocabulary;
        let sequence = self
            .sequences
            .get_mut(&id)
            .ok_or(BackendError::UnknownSequence(id))?;
        let request = match &mut sequence.request {
            Some(request) => request,
            none => none.insert(self.compiled.request().map_err(step_error)?),
        };
        let first = sequence.computed;
        let tokens = &sequence.tokens[first..first + count];
        let mut places = sequence.places.clone();
        places.resize(places.len() + count, 1);
        let rows: Vec<i64> = match wanted {
            [] => vec![count as i64 - 1],
            wanted => wanted.iter().map(|&token| token as i64).collect(),
        };
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let positions: Vec<i64> = (first..first + count).map(|at| at as i64).collect();
        let shape = [1, count as i64];
        let scored = match self.kind {
            Kind::Stateful => rows.len(),
            Kind::Pipeline => 1,
        };
        let mut run = || -> Result<(), CallError> {
            request.set_i64("input_ids", &shape, &ids)?;
            request.set_i64("attention_mask", &[1, places.len() as i64], &places)?;
            request.set_i64("position_ids", &shape, &positions)?;
            if self.kind == Kind::Stateful {
                request.set_i32("beam_idx", &[1], &[0])?;
                request.set_i64("wanted", &[rows.len() as i64], &rows)?;
            }
            request.infer()?;
            match wanted {
                [] => Ok(()),
                _ => request.output("logits", scored * vocabulary, &mut self.scores),
            }
        };
        run().map_err(step_error)?;
        sequence.places = places;
        sequence.computed += count;
        let scores = self.scores.chunks_exact_mut(vocabulary);
        let wanted = match self.kind {
            Kind::Stateful => wanted,
            Kind::Pipeline => &wanted[wanted.len().saturating_sub(1)..],
        };
        for (&token, scores) in wanted.iter().zip(scores) {
            give(token, scores);
        }
        Ok(())
    }

    /// Lengths of the parts in which `tokens` are computed when `computed` are already; `first_wanted` is the first of
    /// them whose scores are wanted.
    fn parts(&self, computed: usize, tokens: usize, first_wanted: usize) -> Vec<usize> {
        match self.kind {
            Kind::Stateful => {
                let mut parts = vec![CHUNK; tokens / CHUNK];
                parts.extend((!tokens.is_multiple_of(CHUNK)).then_some(tokens % CHUNK));
                parts
            }
            // The pipeline begins anew at position 0 with a prompt of any length, whose last token is scored, and
            // takes single tokens from then on.
            Kind::Pipeline => {
                let together = match computed {
                    0 => (first_wanted + 1).min(tokens),
                    _ => 0,
                };
                let mut parts = Vec::new();
                parts.extend((together > 0).then_some(together));
                parts.extend(std::iter::repeat_n(1, tokens - together));
                parts
            }
        }
    }
}

impl Decoder for OpenVinoDecoder {
    fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    fn device(&self) -> &DeviceReport {
        &self.device
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn chunk(&self) -> usize {
        CHUNK
    }

    fn start(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    fn stop(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences
            .get(&sequence)
            .map_or(0, |sequence| sequence.tokens.len())
    }

    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        self.check(batch)?;
        for (index, run) in batch.iter().enumerate() {
            let Some(sequence) = self.sequences.get_mut(&run.sequence) else {
                continue;
            };
            sequence.tokens.extend_from_slice(run.tokens);
            let (computed, all) = (sequence.computed, sequence.tokens.len());
            if self.kind == Kind::Pipeline && computed == 0 && run.wanted == Wanted::Nothing {
                // The pipeline takes a prompt as a whole: its parts wait for the last one.
                continue;
            }
            // Tokens that waited, and those of a fork, come before the run's own.
            let waited = all - run.tokens.len() - computed;
            let includes = |token: usize| {
                token >= waited && run.wanted.includes(token - waited, run.tokens.len())
            };
            let tokens = all - computed;
            let first_wanted = (0..tokens).find(|&token| includes(token)).unwrap_or(tokens);
            let mut first = 0;
            for length in self.parts(computed, tokens, first_wanted) {
                let wanted: Vec<usize> = (0..length)
                    .filter(|token| includes(first + token))
                    .collect();
                self.part(run.sequence, length, &wanted, &mut |token, logits| {
                    scores(Scored {
                        run: index,
                        token: first + token - waited,
                        scores: Scores::All(logits),
                    });
                })?;
                first += length;
            }
        }
        Ok(())
    }

    /// Places of a cache cannot be taken back, only hidden; where distances matter, or the device's pipeline counts
    /// by itself, everything is computed again.
    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize {
        let hideable = self.kind == Kind::Stateful && !self.distances_matter;
        let Some(sequence) = self.sequences.get_mut(&sequence) else {
            return 0;
        };
        if length >= sequence.tokens.len() {
            return sequence.tokens.len();
        }
        let taken_back = sequence.computed.saturating_sub(length);
        let hidden = sequence.places.iter().filter(|&&place| place == 0).count();
        if length == 0 || !hideable || hidden + taken_back > self.context / 2 {
            *sequence = Sequence::default();
            return 0;
        }
        let mut left = taken_back;
        for place in sequence.places.iter_mut().rev() {
            if left == 0 {
                break;
            }
            left -= *place as usize;
            *place = 0;
        }
        sequence.computed -= taken_back;
        sequence.tokens.truncate(length);
        length
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        let from = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?;
        let tokens = from.tokens.clone();
        Ok(self.insert(Sequence {
            tokens,
            ..Sequence::default()
        }))
    }

    fn state_form(&self) -> String {
        "variables of OpenVINO".into()
    }

    fn save(&self, _: SequenceId, _: &mut dyn Write) -> Result<(), BackendError> {
        Err(not_saved())
    }

    fn restore(&mut self, _: usize, _: &mut dyn Read) -> Result<SequenceId, BackendError> {
        Err(not_saved())
    }

    fn memory(&self) -> MemoryReport {
        let per_position = (self.spec.kv_elements_per_position() * size_of::<f32>()) as u64;
        let held = self.sequences.values();
        MemoryReport {
            weights: self.weights_bytes,
            read_per_token: self.weights_bytes,
            kv: held
                .map(|sequence| sequence.places.len() as u64 * per_position)
                .sum(),
            kv_per_position: per_position,
            scratch: 0,
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

fn not_saved() -> BackendError {
    BackendError::State("is not offered by OpenVINO's C interface; leave out --prefix-cache".into())
}

fn step_error(error: CallError) -> BackendError {
    reason(error, Stage::Step).into()
}
