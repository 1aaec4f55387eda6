//! Attention for many rows: blocked matrix products of all rows with one page at a time.
//!
//! Vectors run along the rows, so that everything that belongs to a row (largest score, sum, factors) is a lane and no
//! step needs a sum across lanes; keys and values are broadcast. A page is converted once per tile.
//!
//! Half-precision and byte pages are multiplied as pairs of 16-bit integers: queries and keys are scaled to a length of
//! [`LENGTH`], so that no dot product can overflow an i32 (Cauchy and Schwarz), and come out more exactly than with
//! bf16 at the same speed. Weights get 13 bits relative to the page's largest, values 12 bits relative to the largest of
//! their dimension in the page; 64 of their products fit an i32 too.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use super::numeric::{UNSEEN, Vector, exp2, exp2_coarse, softcap};
use super::page::{HeadView, PAGE_TOKENS};
use super::plan::{Item, Record};
use super::stored::{KEY_VECTORS, Stored, key_scale, load_value, value_scales};
use crate::arch::wide::{WIDE, Wide, WideKernel};

/// Euclidean length of integer queries and keys. Rounding each element adds less than `sqrt(head_dim) / 2`.
const LENGTH: f32 = 32_000.0;

/// log2 of the integer weight of the page's largest score.
const WEIGHT_BITS: f32 = 13.0;

/// Largest integer value: `64 * (2^13 + 1) * 4000` is below `2^31`.
const VALUE_MAX: f32 = 4000.0;

/// Lengths and values below this are taken for zero.
const TINY: f32 = 1e-30;

/// How rows and pages are multiplied.
pub(super) trait Products: Copy + Send + Sync {
    /// A vector of operands or sums.
    type Register<W: Wide>: Copy;
    /// Elements of the inner dimension that one step takes.
    const STEP: usize;

    fn zero<W: Wide>(w: W) -> Self::Register<W>;
    fn load<W: Wide>(w: W, source: &Vector) -> Self::Register<W>;
    fn broadcast<W: Wide>(w: W, source: f32) -> Self::Register<W>;
    fn add_product<W: Wide>(
        w: W,
        a: Self::Register<W>,
        b: Self::Register<W>,
        sum: Self::Register<W>,
    ) -> Self::Register<W>;
    fn to_float<W: Wide>(w: W, sum: Self::Register<W>) -> W::Float;
    /// Writes [`Self::STEP`] consecutive elements of the inner dimension.
    fn store<W: Wide>(w: W, elements: [W::Float; 2], target: &mut Vector);
    /// Factor that brings keys of this squared length, or queries, to their length, and its inverse.
    fn key_factors<W: Wide>(w: W, squares: W::Float) -> [W::Float; 2];
    /// The same for values of this largest size.
    fn value_factors<W: Wide>(w: W, largest: W::Float) -> [W::Float; 2];
    /// `2^(x * factor - largest)` for [`Self::STEP`] scores, times what [`Self::value_factors`] allow; the weights go
    /// to `target`, their sum is added to `total`.
    fn weights<W: Wide>(
        w: W,
        scores: [W::Float; 2],
        factor: W::Float,
        largest: W::Float,
        total: Self::Register<W>,
        target: &mut Vector,
    ) -> Self::Register<W>;
}

/// Single precision throughout.
#[derive(Clone, Copy)]
pub(super) struct FloatProducts;

/// Pairs of 16-bit integers.
#[derive(Clone, Copy)]
pub(super) struct PairProducts;

impl Products for FloatProducts {
    type Register<W: Wide> = W::Float;
    const STEP: usize = 1;

    #[inline(always)]
    fn zero<W: Wide>(w: W) -> W::Float {
        w.splat(0.0)
    }
    #[inline(always)]
    fn load<W: Wide>(w: W, source: &Vector) -> W::Float {
        w.load(&source.0)
    }
    #[inline(always)]
    fn broadcast<W: Wide>(w: W, source: f32) -> W::Float {
        w.splat(source)
    }
    #[inline(always)]
    fn add_product<W: Wide>(w: W, a: W::Float, b: W::Float, sum: W::Float) -> W::Float {
        w.mul_add(a, b, sum)
    }
    #[inline(always)]
    fn to_float<W: Wide>(_: W, sum: W::Float) -> W::Float {
        sum
    }
    #[inline(always)]
    fn store<W: Wide>(w: W, elements: [W::Float; 2], target: &mut Vector) {
        w.store(elements[0], &mut target.0);
    }
    #[inline(always)]
    fn key_factors<W: Wide>(w: W, _: W::Float) -> [W::Float; 2] {
        [w.splat(1.0); 2]
    }
    #[inline(always)]
    fn value_factors<W: Wide>(w: W, _: W::Float) -> [W::Float; 2] {
        [w.splat(1.0); 2]
    }
    #[inline(always)]
    fn weights<W: Wide>(
        w: W,
        scores: [W::Float; 2],
        factor: W::Float,
        largest: W::Float,
        total: W::Float,
        target: &mut Vector,
    ) -> W::Float {
        let weights = exp2(w, w.sub(w.mul(scores[0], factor), largest));
        w.store(weights, &mut target.0);
        w.add(total, weights)
    }
}

impl Products for PairProducts {
    type Register<W: Wide> = W::Int;
    const STEP: usize = 2;

    #[inline(always)]
    fn zero<W: Wide>(w: W) -> W::Int {
        w.splat_int(0)
    }
    #[inline(always)]
    fn load<W: Wide>(w: W, source: &Vector) -> W::Int {
        w.load_int(source.ints())
    }
    #[inline(always)]
    fn broadcast<W: Wide>(w: W, source: f32) -> W::Int {
        w.splat_int(source.to_bits() as i32)
    }
    #[inline(always)]
    fn add_product<W: Wide>(w: W, a: W::Int, b: W::Int, sum: W::Int) -> W::Int {
        w.dot_pairs(a, b, sum)
    }
    #[inline(always)]
    fn to_float<W: Wide>(w: W, sum: W::Int) -> W::Float {
        w.to_float(sum)
    }
    #[inline(always)]
    fn store<W: Wide>(w: W, elements: [W::Float; 2], target: &mut Vector) {
        let (low, high) = (w.to_int(elements[0]), w.to_int(elements[1]));
        w.store_int(w.pair(low, high), target.ints_mut());
    }
    #[inline(always)]
    fn key_factors<W: Wide>(w: W, squares: W::Float) -> [W::Float; 2] {
        factors(w, w.sqrt(squares), LENGTH)
    }
    #[inline(always)]
    fn value_factors<W: Wide>(w: W, largest: W::Float) -> [W::Float; 2] {
        factors(w, largest, VALUE_MAX)
    }
    #[inline(always)]
    fn weights<W: Wide>(
        w: W,
        scores: [W::Float; 2],
        factor: W::Float,
        largest: W::Float,
        total: W::Int,
        target: &mut Vector,
    ) -> W::Int {
        let shift = w.sub(w.splat(WEIGHT_BITS), largest);
        let low = w.to_int(exp2_coarse(w, w.mul_add(scores[0], factor, shift)));
        let high = w.to_int(exp2_coarse(w, w.mul_add(scores[1], factor, shift)));
        w.store_int(w.pair(low, high), target.ints_mut());
        w.add_int(total, w.add_int(low, high))
    }
}

/// `[wanted / size, size / wanted]`, zeros for a size near zero.
#[inline(always)]
fn factors<W: Wide>(w: W, size: W::Float, wanted: f32) -> [W::Float; 2] {
    let zero = w.splat(0.0);
    let tiny = w.splat(TINY);
    let up = w.select_less(tiny, size, w.div(w.splat(wanted), size), zero);
    [up, w.mul(size, w.splat(1.0 / wanted))]
}

/// Attention of an item's rows into its record.
pub(super) struct Tile<'a, S, P> {
    item: &'a Item<'a>,
    record: &'a mut [Vector],
    kinds: PhantomData<(S, P)>,
}

impl<'a, S: Stored, P: Products> Tile<'a, S, P> {
    pub(super) fn new(
        item: &'a Item<'a>,
        record: &'a mut [Vector],
        _stored: S,
        _products: P,
    ) -> Self {
        Tile {
            item,
            record,
            kinds: PhantomData,
        }
    }
}

thread_local! {
    /// Memory for a tile, kept from call to call.
    static MEMORY: Cell<Vec<Vector>> = const { Cell::new(Vec::new()) };
}

/// What a tile works on. A group is a vector of rows; a set is up to `SIDE` groups that are computed together.
struct Memory<'a> {
    /// `[sets][key steps][groups of the set]`.
    queries: &'a mut [Vector],
    /// Factor on each row's scores, `[groups]`.
    factors: &'a mut [Vector],
    /// Largest score of each row, in units of log2, `[groups]`.
    largest: &'a mut [Vector],
    /// `[groups]`.
    totals: &'a mut [Vector],
    /// `[sets][value dims, padded][groups of the set]`.
    sums: &'a mut [Vector],
    /// The page's keys, `[vectors of keys][key steps]`.
    keys: &'a mut [Vector],
    /// Factor on each key's scores, `[vectors of keys]`.
    key_factors: &'a mut [Vector],
    /// The page's values, `[vectors of dims][value steps]`.
    values: &'a mut [Vector],
    /// Factor on each dimension, `[vectors of dims]`.
    value_factors: &'a mut [Vector],
    /// `[PAGE_TOKENS][groups of a set]`.
    scores: &'a mut [Vector],
    /// `[value steps][groups of a set]`.
    weights: &'a mut [Vector],
    /// Elements of the queries of one group, `[key steps * STEP]`.
    columns: &'a mut [Vector],
}

/// Shapes of a tile.
#[derive(Clone, Copy)]
struct Sizes {
    groups: usize,
    /// Groups of a set; the last may have fewer.
    side: usize,
    key_steps: usize,
    value_steps: usize,
    value_vectors: usize,
    /// Elements of a query, padded to whole steps.
    columns: usize,
}

impl Memory<'_> {
    fn carve(memory: &mut Vec<Vector>, sizes: Sizes) -> Memory<'_> {
        let Sizes {
            groups,
            side,
            key_steps,
            value_steps,
            value_vectors,
            columns,
        } = sizes;
        let lengths = [
            groups * key_steps,
            groups,
            groups,
            groups,
            groups * value_vectors * WIDE,
            KEY_VECTORS * key_steps,
            KEY_VECTORS,
            value_vectors * value_steps,
            value_vectors,
            PAGE_TOKENS * side,
            value_steps * side,
            columns,
        ];
        let total: usize = lengths.iter().sum();
        if memory.len() < total {
            memory.resize(total, Vector::ZERO);
        }
        let mut rest = &mut memory[..total];
        let mut parts = lengths.map(|length| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            part
        });
        let mut part = |index: usize| std::mem::take(&mut parts[index]);
        Memory {
            queries: part(0),
            factors: part(1),
            largest: part(2),
            totals: part(3),
            sums: part(4),
            keys: part(5),
            key_factors: part(6),
            values: part(7),
            value_factors: part(8),
            scores: part(9),
            weights: part(10),
            columns: part(11),
        }
    }
}

impl<S: Stored, P: Products> WideKernel for Tile<'_, S, P> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let item = self.item;
        let groups = item.rows().div_ceil(WIDE);
        let sets = groups.div_ceil(W::SIDE);
        let sizes = Sizes {
            groups,
            side: groups.div_ceil(sets),
            key_steps: item.params.head_dim_k.div_ceil(P::STEP),
            value_steps: PAGE_TOKENS / P::STEP,
            value_vectors: item.params.head_dim_v.div_ceil(WIDE),
            columns: item.params.head_dim_k.next_multiple_of(P::STEP),
        };
        let mut buffer = MEMORY.take();
        let mut memory = Memory::carve(&mut buffer, sizes);
        load_queries::<W, P>(w, item, sizes, &mut memory);
        memory.largest.fill(Vector([UNSEEN; WIDE]));
        memory.totals.fill(Vector::ZERO);
        memory.sums.fill(Vector::ZERO);
        for page in item.pages.clone() {
            let view = item.job.pages[page].head::<S::Value>(item.kv_head);
            let start = item.page_position(page);
            let written = (item.job.len - start).min(PAGE_TOKENS);
            convert_keys::<W, S, P>(w, &view, item.params.head_dim_k, &mut memory);
            convert_values::<W, S, P>(w, &view, written, sizes, &mut memory);
            let mut first = 0;
            while first < groups {
                let count = sizes.side.min(groups - first);
                let set = Set {
                    item,
                    sizes,
                    page_position: start,
                    first,
                };
                match count {
                    1 => set.step::<W, P, 1>(w, &mut memory),
                    2 => set.step::<W, P, 2>(w, &mut memory),
                    _ => set.step::<W, P, 3>(w, &mut memory),
                }
                first += count;
            }
        }
        store_record(item, sizes, &memory, self.record);
        MEMORY.set(buffer);
    }
}

/// Where a group is within its set: (first group of the set, groups of the set, index within).
#[inline(always)]
fn place(sizes: Sizes, group: usize) -> (usize, usize, usize) {
    let first = group / sizes.side * sizes.side;
    (first, sizes.side.min(sizes.groups - first), group - first)
}

#[inline(always)]
fn load_queries<W: Wide, P: Products>(
    w: W,
    item: &Item<'_>,
    sizes: Sizes,
    memory: &mut Memory<'_>,
) {
    // Scores in units of log2 save a multiplication per weight.
    let scale = item.params.scale * std::f32::consts::LOG2_E;
    let steps = sizes.key_steps;
    memory.columns.fill(Vector::ZERO);
    for group in 0..sizes.groups {
        let (first, side, index) = place(sizes, group);
        let rows = WIDE.min(item.rows() - group * WIDE);
        for lane in 0..rows {
            let query = item.query(group * WIDE + lane);
            for (column, x) in memory.columns.iter_mut().zip(query) {
                column.0[lane] = x * scale;
            }
        }
        for column in memory.columns.iter_mut() {
            column.0[rows..].fill(0.0);
        }
        let mut squares = w.splat(0.0);
        for column in memory.columns.iter() {
            let x = w.load(&column.0);
            squares = w.mul_add(x, x, squares);
        }
        let [up, down] = P::key_factors(w, squares);
        // A factor of zero would turn scores of unseen positions into those of seen ones.
        let down = w.max(down, w.splat(1e-20));
        w.store(down, &mut memory.factors[group].0);
        for (step, columns) in memory.columns.chunks_exact(P::STEP).enumerate() {
            let low = w.mul(w.load(&columns[0].0), up);
            let high = w.mul(w.load(&columns[P::STEP - 1].0), up);
            let target = &mut memory.queries[first * steps + step * side + index];
            P::store(w, [low, high], target);
        }
    }
}

/// Element `d` of the keys of vector `vector`.
#[inline(always)]
fn load_key<W: Wide, S: Stored>(
    w: W,
    view: &HeadView<'_, S::Value>,
    d: usize,
    vector: usize,
) -> W::Float {
    let (keys, _) = view.keys.as_chunks::<WIDE>();
    let keys = S::load(w, &keys[d * KEY_VECTORS + vector]);
    if S::SCALED {
        w.mul(keys, key_scale::<S, W>(w, view, d, vector))
    } else {
        keys
    }
}

#[inline(always)]
fn convert_keys<W: Wide, S: Stored, P: Products>(
    w: W,
    view: &HeadView<'_, S::Value>,
    dims: usize,
    memory: &mut Memory<'_>,
) {
    let steps = dims.div_ceil(P::STEP);
    for vector in 0..KEY_VECTORS {
        let mut squares = w.splat(0.0);
        if P::STEP == 2 {
            for d in 0..dims {
                let x = load_key::<W, S>(w, view, d, vector);
                squares = w.mul_add(x, x, squares);
            }
        }
        let [up, down] = P::key_factors(w, squares);
        w.store(down, &mut memory.key_factors[vector].0);
        let target = &mut memory.keys[vector * steps..][..steps];
        for (step, target) in target.iter_mut().enumerate() {
            let d = step * P::STEP;
            let low = w.mul(load_key::<W, S>(w, view, d, vector), up);
            let mut high = w.splat(0.0);
            if P::STEP == 2 && d + 1 < dims {
                high = w.mul(load_key::<W, S>(w, view, d + 1, vector), up);
            }
            P::store(w, [low, high], target);
        }
    }
}

/// Slots from `written` on may hold what was there before: they count as zeros.
#[inline(always)]
fn convert_values<W: Wide, S: Stored, P: Products>(
    w: W,
    view: &HeadView<'_, S::Value>,
    written: usize,
    sizes: Sizes,
    memory: &mut Memory<'_>,
) {
    let stride = sizes.value_vectors;
    let (values, _) = view.values.as_chunks::<WIDE>();
    let zero = w.splat(0.0);
    for vector in 0..stride {
        let mut largest = zero;
        if P::STEP == 2 {
            for slot in 0..written {
                let row = &values[slot * stride..][..stride];
                let x = load_value::<S, W>(w, row, value_scales::<S>(view, slot), vector);
                largest = w.max(largest, w.max(x, w.sub(zero, x)));
            }
        }
        let [up, down] = P::value_factors(w, largest);
        w.store(down, &mut memory.value_factors[vector].0);
        let target = &mut memory.values[vector * sizes.value_steps..][..sizes.value_steps];
        for (step, target) in target.iter_mut().enumerate() {
            let mut elements = [zero; 2];
            for i in 0..P::STEP {
                let slot = step * P::STEP + i;
                if slot < written {
                    let row = &values[slot * stride..][..stride];
                    let x = load_value::<S, W>(w, row, value_scales::<S>(view, slot), vector);
                    elements[i] = w.mul(x, up);
                }
            }
            P::store(w, elements, target);
        }
    }
}

/// `J` columns of the product of rows and page: `left` has shape `[steps][G]`, `right` `[steps]`, of whose lanes those
/// from `first` on are the columns.
#[inline(always)]
fn product<W: Wide, P: Products, const G: usize, const J: usize>(
    w: W,
    left: &[Vector],
    right: &[Vector],
    first: usize,
) -> [[P::Register<W>; G]; J] {
    let mut sums = [[P::zero(w); G]; J];
    let (left, _) = left.as_chunks::<G>();
    for (left, right) in left.iter().zip(right) {
        let right: &[f32; J] = right.0[first..first + J].try_into().expect("J columns");
        let mut rows = [P::zero(w); G];
        for g in 0..G {
            rows[g] = P::load(w, &left[g]);
        }
        for j in 0..J {
            let right = P::broadcast(w, right[j]);
            for g in 0..G {
                sums[j][g] = P::add_product(w, rows[g], right, sums[j][g]);
            }
        }
    }
    sums
}

/// A set of groups and one page.
struct Set<'a> {
    item: &'a Item<'a>,
    sizes: Sizes,
    page_position: usize,
    /// The set's first group.
    first: usize,
}

impl Set<'_> {
    #[inline(always)]
    fn step<W: Wide, P: Products, const G: usize>(&self, w: W, memory: &mut Memory<'_>) {
        if W::SIDE > 1 {
            self.step_by::<W, P, G, 8>(w, memory);
        } else {
            self.step_by::<W, P, G, 4>(w, memory);
        }
    }

    #[inline(always)]
    fn step_by<W: Wide, P: Products, const G: usize, const J: usize>(
        &self,
        w: W,
        memory: &mut Memory<'_>,
    ) {
        let first_row = self.first * WIDE;
        let last_row = ((self.first + G) * WIDE).min(self.item.rows()) - 1;
        let (early, late) = (self.item.visible(first_row), self.item.visible(last_row));
        let slots = self.slots(&(early.start..late.end));
        if slots.is_empty() {
            return;
        }
        let all = self.slots(&(late.start..early.end)) == (0..PAGE_TOKENS);
        // Whole vectors of keys that any row sees.
        let vectors = slots.start / WIDE..slots.end.div_ceil(WIDE);
        let adjusted = self.adjust::<G>(all);

        let zero = w.splat(0.0);
        let mut page_largest = [w.splat(UNSEEN); G];
        let steps = self.sizes.key_steps;
        let queries = &memory.queries[self.first * steps..][..G * steps];
        for vector in vectors.clone() {
            let keys = &memory.keys[vector * steps..][..steps];
            let factors = &memory.key_factors[vector].0;
            for first in (0..WIDE).step_by(J) {
                let sums = product::<W, P, G, J>(w, queries, keys, first);
                let slot = vector * WIDE + first;
                // Slices of known lengths: the loops below run without checks.
                let factors: &[f32; J] = factors[first..first + J].try_into().expect("J keys");
                let scores = &mut memory.scores[slot * G..(slot + J) * G];
                let scores: &mut [[Vector; G]; J] =
                    scores.as_chunks_mut().0.try_into().expect("J keys");
                for j in 0..J {
                    let factor = w.splat(factors[j]);
                    for g in 0..G {
                        let x = w.mul(P::to_float(w, sums[j][g]), factor);
                        page_largest[g] = w.max(x, page_largest[g]);
                        w.store(x, &mut scores[j][g].0);
                    }
                }
            }
        }
        if let Some(adjust) = &adjusted {
            page_largest = [w.splat(UNSEEN); G];
            for slot in vectors.start * WIDE..vectors.end * WIDE {
                for g in 0..G {
                    let score = &mut memory.scores[slot * G + g].0;
                    let row_factor = w.load(&memory.factors[self.first + g].0);
                    let x = adjust.apply(w, w.load(score), row_factor, g, slot);
                    page_largest[g] = w.max(x, page_largest[g]);
                    w.store(x, score);
                }
            }
        }

        let scaled = adjusted.as_ref().is_some_and(|adjust| adjust.scales());
        let mut factors = [w.splat(1.0); G];
        let mut decays = [zero; G];
        let mut shares = [zero; G];
        for g in 0..G {
            if !scaled {
                factors[g] = w.load(&memory.factors[self.first + g].0);
            }
            let seen = page_largest[g];
            let scaled = w.mul(seen, factors[g]);
            // Rows that see nothing of the page: all weights become zero.
            let nothing = w.splat(UNSEEN / 2.0);
            page_largest[g] = w.select_less(seen, nothing, zero, scaled);
            let offered = w.select_less(seen, nothing, w.splat(UNSEEN), scaled);
            let largest = &mut memory.largest[self.first + g].0;
            let before = w.load(largest);
            let after = w.max(before, offered);
            decays[g] = exp2(w, w.sub(before, after));
            shares[g] = exp2(w, w.sub(offered, after));
            w.store(after, largest);
        }

        let steps = self.sizes.value_steps;
        let used = vectors.start * WIDE / P::STEP..vectors.end * WIDE / P::STEP;
        let mut totals = [P::zero(w); G];
        let (weights, _) = memory.weights[used.start * G..used.end * G].as_chunks_mut::<G>();
        let first_slot = used.start * P::STEP;
        let (scores, _) = memory.scores[first_slot * G..].as_chunks::<G>();
        for (weights, scores) in weights.iter_mut().zip(scores.chunks_exact(P::STEP)) {
            for g in 0..G {
                let low = w.load(&scores[0][g].0);
                let high = w.load(&scores[P::STEP - 1][g].0);
                totals[g] = P::weights(
                    w,
                    [low, high],
                    factors[g],
                    page_largest[g],
                    totals[g],
                    &mut weights[g],
                );
            }
        }
        for g in 0..G {
            let total = &mut memory.totals[self.first + g].0;
            let page = w.mul(P::to_float(w, totals[g]), shares[g]);
            w.store(w.mul_add(w.load(total), decays[g], page), total);
        }

        let dims = self.sizes.value_vectors * WIDE;
        let sums = &mut memory.sums[self.first * dims..][..G * dims];
        let weights = &memory.weights[used.start * G..used.end * G];
        for vector in 0..self.sizes.value_vectors {
            let values = &memory.values[vector * steps..][..steps][used.clone()];
            let factors = &memory.value_factors[vector].0;
            for first in (0..WIDE).step_by(J) {
                let page = product::<W, P, G, J>(w, weights, values, first);
                let d = vector * WIDE + first;
                let factors: &[f32; J] = factors[first..first + J].try_into().expect("J dims");
                let sums: &mut [[Vector; G]; J] = sums[d * G..(d + J) * G]
                    .as_chunks_mut()
                    .0
                    .try_into()
                    .expect("J dims");
                for j in 0..J {
                    let factor = w.splat(factors[j]);
                    for g in 0..G {
                        let sum = &mut sums[j][g].0;
                        let page = w.mul(P::to_float(w, page[j][g]), factor);
                        let before = w.mul(w.load(sum), decays[g]);
                        w.store(w.mul_add(page, shares[g], before), sum);
                    }
                }
            }
        }
    }

    /// Slots of the page with these positions.
    fn slots(&self, positions: &Range<usize>) -> Range<usize> {
        let slot = |position: usize| position.saturating_sub(self.page_position).min(PAGE_TOKENS);
        slot(positions.start)..slot(positions.end)
    }

    /// What happens to scores, if anything does.
    fn adjust<const G: usize>(&self, all: bool) -> Option<Adjust<G>> {
        let params = self.item.params;
        if all && params.softcap.is_none() && params.alibi_slopes.is_none() {
            return None;
        }
        let log2 = std::f32::consts::LOG2_E;
        let lanes = |f: &dyn Fn(usize) -> f32| -> [Vector; G] {
            std::array::from_fn(|g| {
                Vector(std::array::from_fn(|lane| {
                    let row = (self.first + g) * WIDE + lane;
                    f(row.min(self.item.rows() - 1))
                }))
            })
        };
        let page = self.page_position as f32;
        Some(Adjust {
            mask: (!all).then(|| {
                [
                    lanes(&|row| self.slots(&self.item.visible(row)).start as f32),
                    lanes(&|row| self.slots(&self.item.visible(row)).end as f32),
                ]
            }),
            softcap: params.softcap.map(|cap| cap * log2),
            bias: params.alibi_slopes.map(|slopes| {
                [
                    lanes(&|row| slopes[self.item.head(row)] * log2),
                    lanes(&|row| self.item.position(row) as f32 - page),
                ]
            }),
        })
    }
}

/// Softcap, bias and mask of a set and a page.
struct Adjust<const G: usize> {
    /// First slot that each row sees, and the first after those.
    mask: Option<[[Vector; G]; 2]>,
    softcap: Option<f32>,
    /// Slope of each row, and its position counted from the page's first.
    bias: Option<[[Vector; G]; 2]>,
}

impl<const G: usize> Adjust<G> {
    /// Whether scores have their rows' factor in them afterwards.
    fn scales(&self) -> bool {
        self.softcap.is_some() || self.bias.is_some()
    }

    #[inline(always)]
    fn apply<W: Wide>(
        &self,
        w: W,
        mut x: W::Float,
        row_factor: W::Float,
        g: usize,
        slot: usize,
    ) -> W::Float {
        let slot = w.splat(slot as f32);
        if self.scales() {
            x = w.mul(x, row_factor);
        }
        if let Some(cap) = self.softcap {
            x = softcap(w, x, cap);
        }
        if let Some([slopes, positions]) = &self.bias {
            let distance = w.sub(slot, w.load(&positions[g].0));
            x = w.mul_add(distance, w.load(&slopes[g].0), x);
        }
        if let Some([starts, ends]) = &self.mask {
            let unseen = w.splat(UNSEEN);
            x = w.select_less(slot, w.load(&starts[g].0), unseen, x);
            x = w.select_less(slot, w.load(&ends[g].0), x, unseen);
        }
        x
    }
}

fn store_record(item: &Item<'_>, sizes: Sizes, memory: &Memory<'_>, record: &mut [Vector]) {
    let vectors = Record::vectors(item.params);
    let dims = sizes.value_vectors * WIDE;
    for (row, record) in record.chunks_exact_mut(vectors).enumerate() {
        let (group, lane) = (row / WIDE, row % WIDE);
        let (first, side, index) = place(sizes, group);
        let sums = &memory.sums[first * dims..][..side * dims];
        for (vector, target) in record[..vectors - 1].iter_mut().enumerate() {
            for (i, target) in target.0.iter_mut().enumerate() {
                *target = sums[(vector * WIDE + i) * side + index].0[lane];
            }
        }
        let last = &mut record[vectors - 1].0;
        last[0] = memory.largest[group].0[lane];
        last[1] = memory.totals[group].0[lane];
    }
}
