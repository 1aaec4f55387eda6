//! Cutting attention into items, running them, and joining what was computed of one row in several stretches.

use std::cell::Cell;
use std::ops::Range;

use super::few::Few;
use super::numeric::{UNSEEN, Vector, exp2};
use super::page::{KvShape, KvType, PAGE_TOKENS};
use super::products::{FloatProducts, PairProducts};
use super::stored::{StoredF16, StoredF32, StoredQ8};
use super::tile::Tile;
use super::{AttentionJob, AttentionParams};
use crate::arch::threads::DisjointPieces;
use crate::arch::wide::{WIDE, Wide, WideKernel, dispatch_wide};
use crate::{Context, Isa};

/// Up to this many rows of one head of keys go through [`Few`], more through [`Tile`]: above it, converting a page for
/// the matrix product costs less than it saves.
pub(super) const FEW_ROWS: usize = 12;

/// Rows of a tile: enough that the conversion of a page is a small part of the work, few enough for the second cache.
const TILE_ROWS: usize = 192;

/// Pages of a stretch, where the sequence is cut.
const STRETCH_PAGES: usize = 8;

/// A sequence is cut into stretches if it would give fewer items than this otherwise.
const ENOUGH_ITEMS: usize = 12;

/// Below this many multiplications waking the other threads costs more than they save.
const INLINE_WORK: usize = 100_000;

/// Rows of one head of keys, and the pages that they are to look at.
#[derive(Clone)]
pub(super) struct Item<'a> {
    pub(super) params: &'a AttentionParams<'a>,
    pub(super) job: &'a AttentionJob<'a>,
    pub(super) q: &'a [f32],
    pub(super) kv_head: usize,
    /// Rows of the job, counted from its first.
    pub(super) tokens: Range<usize>,
    /// Indexes into the job's pages.
    pub(super) pages: Range<usize>,
}

impl<'a> Item<'a> {
    /// Query heads that share a head of keys.
    pub(super) fn group(&self) -> usize {
        self.params.heads / self.params.kv_heads
    }

    /// Rows: tokens times the heads that share.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len() * self.group()
    }

    /// The query head of a row.
    pub(super) fn head(&self, row: usize) -> usize {
        self.kv_head * self.group() + row % self.group()
    }

    /// The query of a row, shape `[head_dim_k]`.
    pub(super) fn query(&self, row: usize) -> &'a [f32] {
        let token = self.job.rows.start + self.tokens.start + row / self.group();
        let dims = self.params.head_dim_k;
        &self.q[(token * self.params.heads + self.head(row)) * dims..][..dims]
    }

    /// The position of a row.
    pub(super) fn position(&self, row: usize) -> usize {
        self.job.first_position + self.tokens.start + row / self.group()
    }

    /// The positions that a row sees.
    pub(super) fn visible(&self, row: usize) -> Range<usize> {
        visible(self.params, self.job, self.position(row))
    }

    /// The position of the first slot of a page.
    pub(super) fn page_position(&self, page: usize) -> usize {
        self.job.pages_start + page * PAGE_TOKENS
    }

    /// The shape of its pages.
    pub(super) fn shape(&self) -> KvShape {
        self.job.pages[self.pages.start].shape()
    }

    fn work(&self) -> usize {
        self.rows()
            * self.pages.len()
            * PAGE_TOKENS
            * (self.params.head_dim_k + self.params.head_dim_v)
    }
}

/// The result of an item: `[rows]` times [`Record::vectors`]. In each, first `Σ weight * value`, shape
/// `[padded head_dim_v]`, then a vector with the largest score (in units of log2) and the sum of the weights, which are
/// `2^(score - largest)` times any factor that all of a job's items share.
pub(super) struct Record;

impl Record {
    /// Vectors of a row.
    pub(super) fn vectors(params: &AttentionParams<'_>) -> usize {
        params.head_dim_v.div_ceil(WIDE) + 1
    }
}

fn visible(params: &AttentionParams<'_>, job: &AttentionJob<'_>, position: usize) -> Range<usize> {
    let first = params
        .window
        .map_or(0, |window| (position + 1).saturating_sub(window.max(1)));
    first.max(job.pages_start)..position + 1
}

/// Rows of one job and head whose stretches are in consecutive items.
struct Joint {
    items: Range<usize>,
    /// Vectors of one item in the records.
    vectors: usize,
    /// First vector of the first item in the records.
    first: usize,
}

pub(super) fn run(
    context: &Context<'_>,
    params: &AttentionParams<'_>,
    jobs: &[AttentionJob<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    let mut items = Vec::new();
    let mut joints = Vec::new();
    let mut record_vectors = 0;
    for job in jobs.iter().filter(|job| !job.rows.is_empty()) {
        cut(params, job, q, &mut items, &mut joints, &mut record_vectors);
    }
    let work: usize = items.iter().map(Item::work).sum();
    let group_dims = params.heads / params.kv_heads * params.head_dim_v;
    let out = DisjointPieces::new(out, group_dims);
    let mut records = vec![Vector::ZERO; record_vectors];
    // Where each item of a joint writes; the others write to `out`.
    let mut places: Vec<Option<std::sync::Mutex<&mut [Vector]>>> = Vec::new();
    places.resize_with(items.len(), || None);
    let mut rest = records.as_mut_slice();
    for joint in &joints {
        for item in joint.items.clone() {
            let (place, after) = rest.split_at_mut(joint.vectors);
            places[item] = Some(std::sync::Mutex::new(place));
            rest = after;
        }
    }
    let chunk = |index: usize| {
        let item = &items[index];
        // Items are handed out in falling order, in turn.
        let follower = index.checked_sub(context.pool.threads());
        let follower = follower.map(|index| &items[index]);
        match &places[index] {
            Some(place) => {
                let mut place = place.lock().unwrap_or_else(|error| error.into_inner());
                compute(context.isa, item, follower, &mut place);
            }
            None => with_scratch(|scratch| {
                let vectors = item.rows() * Record::vectors(params);
                if scratch.len() < vectors {
                    scratch.resize(vectors, Vector::ZERO);
                }
                compute(context.isa, item, follower, &mut scratch[..vectors]);
                write(context.isa, item, &[&scratch[..vectors]], &out);
            }),
        }
    };
    // The last items see the longest part of their sequence: they go first.
    let last = items.len().wrapping_sub(1);
    if work <= INLINE_WORK {
        (0..items.len()).rev().for_each(chunk);
    } else {
        context.pool.run(items.len(), &|index| chunk(last - index));
    }
    drop(places);
    let join = |index: usize| {
        let joint = &joints[index];
        let parts: Vec<&[Vector]> = records[joint.first..][..joint.vectors * joint.items.len()]
            .chunks_exact(joint.vectors)
            .collect();
        write(context.isa, &items[joint.items.start], &parts, &out);
    };
    if records.len() * WIDE <= INLINE_WORK {
        (0..joints.len()).for_each(join);
    } else {
        context.pool.run(joints.len(), &join);
    }
}

thread_local! {
    /// Memory for the records of items that are not joined, kept from call to call.
    static SCRATCH: Cell<Vec<Vector>> = const { Cell::new(Vec::new()) };
}

fn with_scratch(f: impl FnOnce(&mut Vec<Vector>)) {
    let mut scratch = SCRATCH.take();
    f(&mut scratch);
    SCRATCH.set(scratch);
}

fn cut<'a>(
    params: &'a AttentionParams<'a>,
    job: &'a AttentionJob<'a>,
    q: &'a [f32],
    items: &mut Vec<Item<'a>>,
    joints: &mut Vec<Joint>,
    record_vectors: &mut usize,
) {
    let group = params.heads / params.kv_heads;
    let few = job.rows.len() * group <= FEW_ROWS;
    let block = if few {
        job.rows.len()
    } else {
        (TILE_ROWS / group).max(1)
    };
    let blocks = job.rows.len().div_ceil(block);
    let stretches = few || blocks * params.kv_heads < ENOUGH_ITEMS;
    for index in 0..blocks {
        let tokens = index * block..((index + 1) * block).min(job.rows.len());
        let first = visible(params, job, job.first_position + tokens.start).start;
        let end = job.first_position + tokens.end;
        let pages =
            (first - job.pages_start) / PAGE_TOKENS..(end - job.pages_start).div_ceil(PAGE_TOKENS);
        // Stretches begin at fixed positions of the sequence, whatever pages were dropped.
        let offset = job.pages_start / PAGE_TOKENS;
        let stretch = |page: usize| (page + offset) / STRETCH_PAGES;
        let count = if stretches {
            stretch(pages.end - 1) - stretch(pages.start) + 1
        } else {
            1
        };
        for kv_head in 0..params.kv_heads {
            let item = Item {
                params,
                job,
                q,
                kv_head,
                tokens: tokens.clone(),
                pages: pages.clone(),
            };
            if count == 1 {
                items.push(item);
                continue;
            }
            let vectors = item.rows() * Record::vectors(params);
            joints.push(Joint {
                items: items.len()..items.len() + count,
                vectors,
                first: *record_vectors,
            });
            *record_vectors += count * vectors;
            let mut start = pages.start;
            while start < pages.end {
                let end = ((stretch(start) + 1) * STRETCH_PAGES - offset).min(pages.end);
                items.push(Item {
                    pages: start..end,
                    ..item.clone()
                });
                start = end;
            }
        }
    }
}

fn compute<'a>(
    isa: Isa,
    item: &'a Item<'a>,
    follower: Option<&'a Item<'a>>,
    record: &'a mut [Vector],
) {
    let kv_type = item.shape().kv_type;
    if item.rows() <= FEW_ROWS {
        match kv_type {
            KvType::F32 => dispatch_wide(isa, Few::new(item, follower, record, StoredF32)),
            KvType::F16 => dispatch_wide(isa, Few::new(item, follower, record, StoredF16)),
            KvType::Q8_0 => dispatch_wide(isa, Few::new(item, follower, record, StoredQ8)),
        }
    } else {
        match kv_type {
            KvType::F32 => dispatch_wide(isa, Tile::new(item, record, StoredF32, FloatProducts)),
            KvType::F16 => dispatch_wide(isa, Tile::new(item, record, StoredF16, PairProducts)),
            KvType::Q8_0 => dispatch_wide(isa, Tile::new(item, record, StoredQ8, PairProducts)),
        }
    }
}

/// Joins the records of the item's rows and writes the result.
fn write(isa: Isa, item: &Item<'_>, parts: &[&[Vector]], out: &DisjointPieces<'_, f32>) {
    let group = item.group();
    for token in 0..item.tokens.len() {
        let row = item.job.rows.start + item.tokens.start + token;
        let out = out.take(row * item.params.kv_heads + item.kv_head);
        dispatch_wide(
            isa,
            Join {
                parts,
                rows: token * group..(token + 1) * group,
                vectors: Record::vectors(item.params),
                out,
            },
        );
    }
}

struct Join<'a> {
    parts: &'a [&'a [Vector]],
    rows: Range<usize>,
    /// Vectors of a row.
    vectors: usize,
    /// `[rows][head_dim_v]`.
    out: &'a mut [f32],
}

impl WideKernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(mut self, w: W) {
        let dims = self.out.len() / self.rows.len();
        let state = self.vectors - 1;
        let (rows, out) = (self.rows.clone(), std::mem::take(&mut self.out));
        for (row, out) in rows.zip(out.chunks_exact_mut(dims)) {
            let at = row * self.vectors;
            let mut largest = UNSEEN;
            for part in self.parts {
                largest = largest.max(part[at + state].0[0]);
            }
            let mut total = w.splat(0.0);
            for part in self.parts {
                let [part_largest, part_total, ..] = part[at + state].0;
                let weight = exp2(w, w.splat(part_largest - largest));
                total = w.mul_add(weight, w.splat(part_total), total);
            }
            let factor = w.div(w.splat(1.0), total);
            // Whole vectors are written as such: a copy of unknown length is a call.
            let (whole, rest) = out.as_chunks_mut::<WIDE>();
            for (vector, out) in whole.iter_mut().enumerate() {
                w.store(w.mul(self.sum(w, at, vector, largest), factor), out);
            }
            if !rest.is_empty() {
                let mut block = Vector::ZERO;
                w.store(
                    w.mul(self.sum(w, at, whole.len(), largest), factor),
                    &mut block.0,
                );
                rest.copy_from_slice(&block.0[..rest.len()]);
            }
        }
    }
}

impl Join<'_> {
    /// Vector `vector` of the row whose records begin at `at`: the parts' sums, weighted by their largest scores.
    #[inline(always)]
    fn sum<W: Wide>(&self, w: W, at: usize, vector: usize, largest: f32) -> W::Float {
        let mut sum = w.splat(0.0);
        if let [part] = self.parts {
            // Its weight is 1.
            return w.add(w.load(&part[at + vector].0), sum);
        }
        for part in self.parts {
            let weight = exp2(w, w.splat(part[at + self.vectors - 1].0[0] - largest));
            sum = w.mul_add(weight, w.load(&part[at + vector].0), sum);
        }
        sum
    }
}
