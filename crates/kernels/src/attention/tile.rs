//! Attention for many rows: blocked matrix products of all rows with one page at a time.
//!
//! Vectors run along the rows, so that everything that belongs to a row (largest score, sum, factors) is a lane and no
//! step needs a sum across lanes; keys and values are broadcast. A page is converted once per tile.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use super::convert::{convert_keys, convert_values, load_queries, store_record};
use super::numeric::{UNSEEN, Vector, exp2, softcap};
use super::page::PAGE_TOKENS;
use super::plan::Item;
use super::products::Products;
use super::stored::{KEY_VECTORS, Stored};
use crate::arch::wide::{WIDE, Wide, WideKernel};

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
pub(super) struct Memory<'a> {
    /// `[sets][key steps][groups of the set]`.
    pub(super) queries: &'a mut [Vector],
    /// Factor on each row's scores, `[groups]`.
    pub(super) factors: &'a mut [Vector],
    /// Token of each row, counted from the item's first, `[groups]`.
    pub(super) tokens: &'a mut [Vector],
    /// ALiBi's slope of each row, in units of log2, `[groups]`.
    pub(super) slopes: &'a mut [Vector],
    /// Largest score of each row, in units of log2, `[groups]`.
    pub(super) largest: &'a mut [Vector],
    /// `[groups]`.
    pub(super) totals: &'a mut [Vector],
    /// `[sets][value dims, padded][groups of the set]`.
    pub(super) sums: &'a mut [Vector],
    /// The page's keys, `[vectors of keys][key steps]`.
    pub(super) keys: &'a mut [Vector],
    /// Factor on each key's scores, `[vectors of keys]`.
    pub(super) key_factors: &'a mut [Vector],
    /// The page's values, `[vectors of dims][value steps]`.
    pub(super) values: &'a mut [Vector],
    /// Factor on each dimension, `[vectors of dims]`.
    pub(super) value_factors: &'a mut [Vector],
    /// `[PAGE_TOKENS][groups of a set]`.
    pub(super) scores: &'a mut [Vector],
    /// `[value steps][groups of a set]`.
    pub(super) weights: &'a mut [Vector],
    /// Elements of the queries of one group, `[key steps * STEP]`.
    pub(super) columns: &'a mut [Vector],
}

/// Shapes of a tile.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) groups: usize,
    /// Groups of a set; the last may have fewer.
    pub(super) side: usize,
    pub(super) key_steps: usize,
    pub(super) value_steps: usize,
    pub(super) value_vectors: usize,
    /// Elements of a query, padded to whole steps.
    pub(super) columns: usize,
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
            groups,
            groups,
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
            tokens: part(12),
            slopes: part(13),
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
        let mut row = 0;
        let last = item.rows() - 1;
        for (tokens, slopes) in memory.tokens.iter_mut().zip(memory.slopes.iter_mut()) {
            for lane in 0..WIDE {
                // Lanes beyond the last row repeat it.
                let row_here = row.min(last);
                tokens.0[lane] = (row_here / item.group()) as f32;
                if let Some(of_heads) = item.params.alibi_slopes {
                    slopes.0[lane] = of_heads[item.head(row_here)] * std::f32::consts::LOG2_E;
                }
                row += 1;
            }
        }
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
        let adjusted = self.adjust(all);

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
                for (g, largest) in page_largest.iter_mut().enumerate() {
                    let score = &mut memory.scores[slot * G + g].0;
                    let row = Rows {
                        factor: w.load(&memory.factors[self.first + g].0),
                        token: w.load(&memory.tokens[self.first + g].0),
                        slope: w.load(&memory.slopes[self.first + g].0),
                    };
                    let x = adjust.apply(w, w.load(score), row, slot);
                    *largest = w.max(x, *largest);
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
    fn adjust(&self, all: bool) -> Option<Adjust> {
        let params = self.item.params;
        if all && params.softcap.is_none() && params.alibi_slopes.is_none() {
            return None;
        }
        // Differences of positions are small enough for f32 where positions may not be.
        let first = self.item.position(0) as i64 - self.page_position as i64;
        Some(Adjust {
            first_slot: first as f32,
            masked: !all,
            window: params.window.map(|window| window.max(1) as f32),
            softcap: params.softcap.map(|cap| cap * std::f32::consts::LOG2_E),
            biased: params.alibi_slopes.is_some(),
        })
    }
}

/// Softcap, bias and mask of a set and a page.
struct Adjust {
    /// The slot that the item's first token would have if the page went on in both directions.
    first_slot: f32,
    masked: bool,
    window: Option<f32>,
    softcap: Option<f32>,
    biased: bool,
}

/// What adjusting needs of a group's rows.
struct Rows<F> {
    factor: F,
    token: F,
    slope: F,
}

impl Adjust {
    /// Whether scores have their rows' factor in them afterwards.
    fn scales(&self) -> bool {
        self.softcap.is_some() || self.biased
    }

    #[inline(always)]
    fn apply<W: Wide>(&self, w: W, mut x: W::Float, rows: Rows<W::Float>, slot: usize) -> W::Float {
        if self.scales() {
            x = w.mul(x, rows.factor);
        }
        if let Some(cap) = self.softcap {
            x = softcap(w, x, cap);
        }
        // How far after the query the key is.
        let distance = w.sub(w.splat(slot as f32 - self.first_slot), rows.token);
        if self.biased {
            x = w.mul_add(distance, rows.slope, x);
        }
        if self.masked {
            let unseen = w.splat(UNSEEN);
            x = w.select_less(w.splat(0.0), distance, unseen, x);
            if let Some(window) = self.window {
                x = w.select_less(distance, w.splat(0.5 - window), unseen, x);
            }
        }
        x
    }
}
