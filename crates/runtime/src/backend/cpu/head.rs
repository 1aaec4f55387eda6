//! The output head: the last norm, and the scores that are wanted of each row.
//!
//! Where only the highest scores are wanted and the head is packed in the split form, a [`Screen`] finds them reading
//! little more than half of it. The scores are those of the full product, bit by bit; where the screen's bound leaves
//! too many rows, the full product is computed. Which of the two is quicker depends on how fast memory is: the screen
//! reads less and computes more, so positions that come one by one take what was quicker of late.

use std::io;
use std::time::Instant;

use ondine_kernels::{Activations, Best, Epilogue, PackedMatrix, Screen, matmul, ops};

use super::Engine;
use super::layer::normalise;
use super::pace::Pace;
use super::scratch::Scratch;
use super::streaming::HeadSlab;
use crate::backend::{HeadReport, Select};

/// Undecided screens in a row after which the next ones are left out.
const PATIENCE: u32 = 4;
/// Positions that are left out, at first and at most.
const PAUSE: std::ops::Range<u32> = 16..512;

/// What the head keeps from step to step.
#[derive(Default)]
pub(super) struct Head {
    screen: Screen,
    /// Inputs of the rows that the full product is computed for.
    input: Activations,
    pub(super) report: HeadReport,
    /// Undecided screens in a row.
    undecided: u32,
    /// Positions for which no screen is tried, and how many the last pause had.
    pause: u32,
    last_pause: u32,
    /// Times of the screen and of the full product for one position.
    pace: Pace,
}

/// The scores of one row.
pub(super) enum RowScores {
    /// Row of `scratch.logits`.
    Full(usize),
    /// The highest, as (token, logit), highest first.
    Best(Vec<(u32, f32)>),
}

impl Head {
    /// The head of a model with the output matrix `output`.
    pub(super) fn new(output: &PackedMatrix) -> Self {
        let mut head = Head::default();
        head.input
            .read_only_by([(output.tensor_type(), output.cols())]);
        head
    }

    /// Scores of some rows of the residual stream, in their order; full ones are in `scratch.logits`, [row, vocabulary].
    pub(super) fn score(
        &mut self,
        engine: &Engine,
        rows: &[usize],
        selects: &[Select<'_>],
        scratch: &mut Scratch,
    ) -> Vec<RowScores> {
        let width = engine.spec.embedding;
        let normed = normed(engine, rows, scratch);
        engine.observe(|| vec![&engine.spec.output], &normed, width);
        let context = engine.context();
        let mut scores: Vec<Option<RowScores>> = rows.iter().map(|_| None).collect();
        let wishes: Option<Vec<Best<'_>>> = selects.iter().map(|select| best(*select)).collect();
        self.report.rows += rows.len() as u64;
        self.report.bytes = engine.weights.output.packed.bytes() as u64;
        let is_timed = wishes.is_some() && rows.len() == 1;
        let started = Instant::now();
        let wishes = wishes.filter(|_| self.may_screen(engine, rows.len()));
        let is_screened = wishes.is_some();
        if let Some(wishes) = wishes {
            let output = &engine.weights.output.packed;
            scratch.input.quantize(&context, &normed, rows.len(), width);
            let found = &mut |row: usize, found: Option<&[(u32, f32)]>| {
                let scaled = found.map(|found| scaled(found, engine.spec.logit_scale));
                scores[row] = scaled.map(RowScores::Best);
            };
            self.screen
                .search(&context, output, &scratch.input, &wishes, found);
            self.report.bytes_read += self.screen.take_bytes_read();
            self.note(&scores);
        }

        let missing: Vec<usize> = (0..rows.len())
            .filter(|&row| scores[row].is_none())
            .collect();
        if !missing.is_empty() {
            let mut inputs = Vec::with_capacity(missing.len() * width);
            for (place, &row) in missing.iter().enumerate() {
                inputs.extend_from_slice(&normed[row * width..(row + 1) * width]);
                scores[row] = Some(RowScores::Full(place));
            }
            self.input.quantize(&context, &inputs, missing.len(), width);
            self.full(engine, missing.len(), scratch);
        }
        if is_timed {
            self.pace.note(is_screened, started.elapsed().as_secs_f64());
        }
        scores.into_iter().flatten().collect()
    }

    /// Logits of the rows in `input`.
    fn full(&mut self, engine: &Engine, rows: usize, scratch: &mut Scratch) {
        let spec = &engine.spec;
        let output = &engine.weights.output;
        scratch.logits.resize(rows * spec.vocabulary, 0.0);
        match engine.weights.head_slabs() {
            None => matmul(
                &engine.context(),
                &output.packed,
                &self.input,
                &mut scratch.logits,
                &Epilogue {
                    bias: output.bias.as_deref(),
                    scale: spec.logit_scale,
                    accumulate: false,
                },
            ),
            Some(slabs) => self.streamed(engine, slabs, rows, scratch),
        }
        if let Some(cap) = spec.logit_softcap {
            ops::softcap(engine.isa, &mut scratch.logits, cap);
        }
        self.report.bytes_read += output.packed.bytes() as u64;
    }

    /// The product with an output head that is read part by part.
    fn streamed(
        &self,
        engine: &Engine,
        slabs: impl Iterator<Item = io::Result<HeadSlab>>,
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let (spec, head) = (&engine.spec, &engine.weights.output);
        let mut part = Vec::new();
        for slab in slabs {
            let slab = match slab {
                Ok(slab) => slab,
                Err(error) => return engine.weights.fail(error),
            };
            let columns = slab.first_row..slab.first_row + slab.matrix().rows();
            part.resize(rows * columns.len(), 0.0);
            let epilogue = Epilogue {
                bias: head.bias.as_deref().map(|bias| &bias[columns.clone()]),
                scale: spec.logit_scale,
                accumulate: false,
            };
            let context = engine.context();
            matmul(&context, slab.matrix(), &self.input, &mut part, &epilogue);
            let logits = scratch.logits.chunks_exact_mut(spec.vocabulary);
            for (logits, part) in logits.zip(part.chunks_exact(columns.len())) {
                logits[columns.clone()].copy_from_slice(part);
            }
        }
    }

    /// Whether the screen's result would be the full product's, and it is likely to pay.
    fn may_screen(&mut self, engine: &Engine, rows: usize) -> bool {
        let output = &engine.weights.output;
        let spec = &engine.spec;
        let can = output.packed.can_screen()
            && output.bias.is_none()
            && spec.logit_softcap.is_none()
            && spec.logit_scale > 0.0
            && spec.logit_scale.is_finite();
        if can && self.pause > 0 {
            self.pause = self.pause.saturating_sub(rows as u32);
            return false;
        }
        can && (rows > 1 || self.pace.takes_first())
    }

    /// Keeps count of what screens decide.
    fn note(&mut self, scores: &[Option<RowScores>]) {
        for score in scores {
            self.report.screened += 1;
            if score.is_some() {
                self.undecided = 0;
                self.last_pause = 0;
                continue;
            }
            self.report.undecided += 1;
            self.undecided += 1;
            if self.undecided >= PATIENCE {
                self.last_pause = (2 * self.last_pause).clamp(PAUSE.start, PAUSE.end);
                self.pause = self.last_pause;
                self.undecided = 0;
            }
        }
    }

    /// Bytes of the buffers.
    pub(super) fn buffer_bytes(&self) -> u64 {
        (self.screen.bytes() + self.input.bytes()) as u64
    }
}

/// The last norm of some rows, [rows, embedding].
fn normed(engine: &Engine, rows: &[usize], scratch: &Scratch) -> Vec<f32> {
    let width = engine.spec.embedding;
    let mut picked = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        picked.extend_from_slice(&scratch.hidden[row * width..(row + 1) * width]);
    }
    let mut normed = vec![0.0; picked.len()];
    let (norm, weights) = (&engine.spec.output_norm, &engine.weights.output_norm);
    normalise(engine, norm, weights, &picked, &mut normed);
    normed
}

fn best(select: Select<'_>) -> Option<Best<'_>> {
    match select {
        Select::All => None,
        Select::Best { count, also } => Some(Best { count, also }),
    }
}

/// Products as logits, ordered again: scaling may make different ones equal.
fn scaled(found: &[(u32, f32)], scale: f32) -> Vec<(u32, f32)> {
    let scaled = found
        .iter()
        .map(|&(token, product)| (token, scale * product));
    let mut scaled: Vec<_> = scaled.collect();
    scaled.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scaled
}
