//! Attention for a few rows: one pass over keys and values as they are stored.
//!
//! A page is read once for up to four rows at a time. Vectors run along positions in the keys and along dimensions in the
//! values, so neither product needs a sum across lanes.

use std::cell::Cell;

use super::numeric::{UNSEEN, Vector, exp2, softcap};
use super::page::{HeadView, PAGE_TOKENS, SCALE_BLOCK};
use super::plan::{FEW_ROWS, Item, Record};
use super::stored::{KEY_VECTORS, Stored, key_scale};
use crate::arch::wide::{WIDE, Wide, WideKernel};

const LANE_NUMBERS: [f32; WIDE] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
];

/// Rows that are computed together.
const MOST_ROWS: usize = 4;

/// Attention of an item's rows into its record.
pub(super) struct Few<'a, S> {
    item: &'a Item<'a>,
    record: &'a mut [Vector],
    /// What this thread will probably compute next.
    follower: Option<&'a Item<'a>>,
    stored: std::marker::PhantomData<S>,
}

impl<'a, S: Stored> Few<'a, S> {
    pub(super) fn new(
        item: &'a Item<'a>,
        follower: Option<&'a Item<'a>>,
        record: &'a mut [Vector],
        _stored: S,
    ) -> Self {
        Few {
            item,
            record,
            follower,
            stored: std::marker::PhantomData,
        }
    }

    /// What is read after `page`.
    fn next(&self, page: usize) -> HeadView<'a, S::Value> {
        let item = match self.follower {
            _ if page + 1 < self.item.pages.end => {
                return self.item.job.pages[page + 1].head(self.item.kv_head);
            }
            Some(item) if item.shape() == self.item.shape() => item,
            _ => return self.item.job.pages[page].head(self.item.kv_head),
        };
        item.job.pages[item.pages.start].head(item.kv_head)
    }
}

thread_local! {
    /// Memory for scaled queries, kept from call to call.
    static QUERIES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// Memory for the scales of a page's values, kept from call to call.
    static SCALES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A row's state.
#[derive(Clone, Copy)]
struct Row {
    /// Largest score so far, in units of log2.
    largest: f32,
    /// Sums of the weights, by lane.
    total: Vector,
}

/// `[rows]` vectors for each vector of a page's positions: scores, then weights.
type Scores<const R: usize> = [[Vector; KEY_VECTORS]; R];

impl<S: Stored> WideKernel for Few<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let rows = self.item.rows();
        let dims = self.item.params.head_dim_k;
        let vectors = Record::vectors(self.item.params);
        // Scores in units of log2 save a multiplication per weight.
        let scale = self.item.params.scale * std::f32::consts::LOG2_E;
        let mut queries = QUERIES.take();
        let mut scales = SCALES.take();
        queries.clear();
        for row in 0..rows {
            queries.extend(self.item.query(row).iter().map(|x| x * scale));
        }
        self.record.fill(Vector::ZERO);
        let blocks = rows.div_ceil(MOST_ROWS);
        let block = rows.div_ceil(blocks);
        let mut states = [Row {
            largest: UNSEEN,
            total: Vector::ZERO,
        }; FEW_ROWS];
        for page in self.item.pages.clone() {
            let view = self.item.job.pages[page].head::<S::Value>(self.item.kv_head);
            let next = self.next(page);
            if S::SCALED {
                scales.resize(view.value_scales.len(), 0.0);
                let stored = view.value_scales.as_chunks::<WIDE>().0;
                for (target, stored) in scales.as_chunks_mut::<WIDE>().0.iter_mut().zip(stored) {
                    w.store(w.load_f16(stored), target);
                }
            }
            let mut first = 0;
            while first < rows {
                let count = block.min(rows - first);
                let work = PageWork {
                    item: self.item,
                    page,
                    view,
                    next,
                    first,
                    queries: &queries[first * dims..(first + count) * dims],
                    scales: &scales,
                };
                let states = &mut states[first..first + count];
                let record = &mut self.record[first * vectors..(first + count) * vectors];
                match count {
                    1 => work.step::<W, S, 1>(w, states, record),
                    2 => work.step::<W, S, 2>(w, states, record),
                    3 => work.step::<W, S, 3>(w, states, record),
                    _ => work.step::<W, S, 4>(w, states, record),
                }
                first += count;
            }
        }
        for (record, state) in self.record.chunks_exact_mut(vectors).zip(&states) {
            let last = &mut record[vectors - 1].0;
            last[0] = state.largest;
            last[1] = w.reduce_add(w.load(&state.total.0));
        }
        QUERIES.set(queries);
        SCALES.set(scales);
    }
}

/// Some rows and one page.
struct PageWork<'a, T> {
    item: &'a Item<'a>,
    page: usize,
    view: HeadView<'a, T>,
    /// What will be read next.
    next: HeadView<'a, T>,
    /// The first of the rows.
    first: usize,
    /// `[rows][head_dim_k]`, scaled.
    queries: &'a [f32],
    /// Scales of the values, `[PAGE_TOKENS][head_dim_v / 32]`; empty for types without scales.
    scales: &'a [f32],
}

impl<T: bytemuck::Pod> PageWork<'_, T> {
    #[inline(always)]
    fn step<W: Wide, S: Stored<Value = T>, const R: usize>(
        &self,
        w: W,
        states: &mut [Row],
        record: &mut [Vector],
    ) {
        let states: &mut [Row; R] = states.try_into().expect("as many states as rows");
        let start = self.item.page_position(self.page);
        let mut scores: Scores<R> = [[Vector::ZERO; KEY_VECTORS]; R];
        if W::SIDE > 1 {
            self.scores::<W, S, R, KEY_VECTORS>(w, &mut scores);
        } else {
            self.scores::<W, S, R, 1>(w, &mut scores);
        }
        // The slots that any of the rows sees.
        let (mut first_slot, mut end_slot) = (PAGE_TOKENS, 0);
        let mut decay = [0.0; R];
        for row in 0..R {
            let visible = self.item.visible(self.first + row);
            let seen = visible.start.saturating_sub(start).min(PAGE_TOKENS)
                ..visible.end.saturating_sub(start).min(PAGE_TOKENS);
            first_slot = first_slot.min(seen.start);
            end_slot = end_slot.max(seen.end);
            self.adjust(w, self.first + row, seen, &mut scores[row]);
            decay[row] = weigh(w, &mut states[row], &mut scores[row]);
        }
        let slots = first_slot..end_slot;
        if W::SIDE > 1 {
            self.values::<W, S, R, 4>(w, &scores, &decay, slots, record);
        } else {
            self.values::<W, S, R, 1>(w, &scores, &decay, slots, record);
        }
    }

    /// Products of the queries and all keys of the page, `V` vectors of keys at a time.
    #[inline(always)]
    fn scores<W: Wide, S: Stored<Value = T>, const R: usize, const V: usize>(
        &self,
        w: W,
        scores: &mut Scores<R>,
    ) {
        let dims = self.queries.len() / R;
        let queries: [&[f32]; R] = std::array::from_fn(|row| &self.queries[row * dims..][..dims]);
        let (stored, _) = self.view.keys.as_chunks::<PAGE_TOKENS>();
        let block = if S::SCALED { SCALE_BLOCK } else { dims };
        for vector in (0..KEY_VECTORS).step_by(V) {
            let mut sums = [[w.splat(0.0); V]; R];
            for start in (0..dims).step_by(block) {
                let end = (start + block).min(dims);
                let mut scales = [w.splat(1.0); V];
                if S::SCALED {
                    for (v, scale) in scales.iter_mut().enumerate() {
                        *scale = key_scale::<S, W>(w, &self.view, start, vector + v);
                    }
                }
                for d in start..end {
                    let (row, _) = stored[d].as_chunks::<WIDE>();
                    if vector == 0 {
                        self.ahead(w, d, dims, self.view.values);
                    }
                    let mut keys = [w.splat(0.0); V];
                    for v in 0..V {
                        keys[v] = S::load(w, &row[vector + v]);
                        if S::SCALED {
                            keys[v] = w.mul(keys[v], scales[v]);
                        }
                    }
                    for r in 0..R {
                        let query = w.splat(queries[r][d]);
                        for v in 0..V {
                            sums[r][v] = w.mul_add(keys[v], query, sums[r][v]);
                        }
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    w.store(sums[r][v], &mut scores[r][vector + v].0);
                }
            }
        }
    }

    /// In step `step` of `steps`, fetches that share of what is read next.
    #[inline(always)]
    fn ahead<W: Wide>(&self, w: W, step: usize, steps: usize, next: &[T]) {
        if self.first > 0 {
            return;
        }
        let share = next.len() / steps;
        let line = 64 / size_of::<T>();
        for at in (step * share..(step + 1) * share).step_by(line) {
            w.prefetch(&next[at]);
        }
    }

    /// Softcap, bias and mask.
    #[inline(always)]
    fn adjust<W: Wide>(
        &self,
        w: W,
        row: usize,
        seen: std::ops::Range<usize>,
        scores: &mut [Vector; KEY_VECTORS],
    ) {
        let params = self.item.params;
        let all = seen == (0..PAGE_TOKENS);
        if all && params.softcap.is_none() && params.alibi_slopes.is_none() {
            return;
        }
        let log2 = std::f32::consts::LOG2_E;
        let slope = params
            .alibi_slopes
            .map_or(0.0, |slopes| slopes[self.item.head(row)] * log2);
        let start = self.item.page_position(self.page);
        let position = self.item.position(row) as f32 - start as f32;
        let before_first = w.splat(seen.start as f32 - 0.5);
        let end = w.splat(seen.end as f32 - 0.5);
        for (vector, scores) in scores.iter_mut().enumerate() {
            let mut x = w.load(&scores.0);
            let slots = w.add(w.load(&LANE_NUMBERS), w.splat((vector * WIDE) as f32));
            if let Some(cap) = params.softcap {
                x = softcap(w, x, cap * log2);
            }
            if slope != 0.0 {
                x = w.mul_add(w.sub(slots, w.splat(position)), w.splat(slope), x);
            }
            if !all {
                x = w.select_less(slots, before_first, w.splat(UNSEEN), x);
                x = w.select_less(slots, end, x, w.splat(UNSEEN));
            }
            w.store(x, &mut scores.0);
        }
    }

    /// `record = decay * record + weights * values`, `V` vectors of dimensions at a time.
    #[inline(always)]
    fn values<W: Wide, S: Stored<Value = T>, const R: usize, const V: usize>(
        &self,
        w: W,
        weights: &Scores<R>,
        decay: &[f32; R],
        slots: std::ops::Range<usize>,
        record: &mut [Vector],
    ) {
        let vectors = record.len() / R;
        let mut vector = 0;
        while vector + V < vectors {
            self.values_of::<W, S, R, V>(w, weights, decay, slots.clone(), record, vector);
            vector += V;
        }
        while vector + 1 < vectors {
            self.values_of::<W, S, R, 1>(w, weights, decay, slots.clone(), record, vector);
            vector += 1;
        }
    }

    #[inline(always)]
    fn values_of<W: Wide, S: Stored<Value = T>, const R: usize, const V: usize>(
        &self,
        w: W,
        weights: &Scores<R>,
        decay: &[f32; R],
        slots: std::ops::Range<usize>,
        record: &mut [Vector],
        vector: usize,
    ) {
        let vectors = record.len() / R;
        let (stored, _) = self.view.values.as_chunks::<WIDE>();
        let rows = stored.chunks_exact(vectors - 1).enumerate();
        let blocks = self.scales.len() / PAGE_TOKENS;
        let mut sums = [[w.splat(0.0); V]; R];
        for r in 0..R {
            for v in 0..V {
                let sum = w.load(&record[r * vectors + vector + v].0);
                sums[r][v] = w.mul(sum, w.splat(decay[r]));
            }
        }
        for (slot, row) in rows.take(slots.end).skip(slots.start) {
            if vector == 0 {
                self.ahead(w, slot, PAGE_TOKENS, self.next.keys);
            }
            let row: &[_; V] = row[vector..vector + V].try_into().expect("V vectors");
            let scales = &self.scales[slot * blocks..][..blocks];
            let mut values = [w.splat(0.0); V];
            for v in 0..V {
                values[v] = S::load(w, &row[v]);
                if S::SCALED {
                    let scale = scales[(vector + v) * WIDE / SCALE_BLOCK];
                    values[v] = w.mul(values[v], w.splat(scale));
                }
            }
            for r in 0..R {
                let weight = w.splat(weights[r][slot / WIDE].0[slot % WIDE]);
                for v in 0..V {
                    sums[r][v] = w.mul_add(values[v], weight, sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                w.store(sums[r][v], &mut record[r * vectors + vector + v].0);
            }
        }
    }
}

/// Turns scores into weights, takes them into the row's state and returns the factor on what was summed before.
#[inline(always)]
fn weigh<W: Wide>(w: W, state: &mut Row, scores: &mut [Vector; KEY_VECTORS]) -> f32 {
    let mut largest = w.load(&scores[0].0);
    for vector in &scores[1..] {
        largest = w.max(largest, w.load(&vector.0));
    }
    let largest = w.reduce_max(largest);
    let largest = if largest > state.largest {
        largest
    } else {
        state.largest
    };
    let decay = exp2(w, w.splat(state.largest - largest));
    let mut total = w.mul(w.load(&state.total.0), decay);
    for vector in scores.iter_mut() {
        let weights = exp2(w, w.sub(w.load(&vector.0), w.splat(largest)));
        total = w.add(total, weights);
        w.store(weights, &mut vector.0);
    }
    w.store(total, &mut state.total.0);
    state.largest = largest;
    let mut lanes = [0.0; WIDE];
    w.store(decay, &mut lanes);
    lanes[0]
}
