//! Bringing queries and pages into the form in which a tile multiplies them, and its result out of it.

use super::numeric::Vector;
use super::page::HeadView;
use super::plan::{Item, Record};
use super::products::Products;
use super::stored::{KEY_VECTORS, Stored, key_scale, load_value, value_scales};
use super::tile::{Memory, Sizes};
use crate::arch::wide::{WIDE, Wide};

/// Where a group is within its set: (first group of the set, groups of the set, index within).
#[inline(always)]
fn place(sizes: Sizes, group: usize) -> (usize, usize, usize) {
    let first = group / sizes.side * sizes.side;
    (first, sizes.side.min(sizes.groups - first), group - first)
}

/// Scales and converts the queries.
#[inline(always)]
pub(super) fn load_queries<W: Wide, P: Products>(
    w: W,
    item: &Item<'_>,
    sizes: Sizes,
    memory: &mut Memory<'_>,
) {
    // Scores in units of log2 save a multiplication per weight.
    let scale = item.params.scale * std::f32::consts::LOG2_E;
    let steps = sizes.key_steps;
    let factor = w.splat(scale);
    for group in 0..sizes.groups {
        let (first, side, index) = place(sizes, group);
        for (block, columns) in memory.columns.chunks_mut(WIDE).enumerate() {
            let mut square = [[0.0; WIDE]; WIDE];
            for (lane, target) in square.iter_mut().enumerate() {
                let row = group * WIDE + lane;
                if row < item.rows() {
                    let query = &item.query(row)[block * WIDE..];
                    match query.first_chunk::<WIDE>() {
                        Some(chunk) => *target = *chunk,
                        None => target[..query.len()].copy_from_slice(query),
                    }
                }
            }
            let square = transposed(&square);
            for (column, elements) in columns.iter_mut().zip(&square) {
                w.store(w.mul(w.load(elements), factor), &mut column.0);
            }
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

#[inline(always)]
fn transposed(square: &[[f32; WIDE]; WIDE]) -> [[f32; WIDE]; WIDE] {
    let mut result = [[0.0; WIDE]; WIDE];
    for i in 0..WIDE {
        for j in 0..WIDE {
            result[i][j] = square[j][i];
        }
    }
    result
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

/// Converts a page's keys.
#[inline(always)]
pub(super) fn convert_keys<W: Wide, S: Stored, P: Products>(
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

/// Converts a page's values. Slots from `written` on may hold what was there before: they count as zeros.
#[inline(always)]
pub(super) fn convert_values<W: Wide, S: Stored, P: Products>(
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
            for (i, element) in elements.iter_mut().take(P::STEP).enumerate() {
                let slot = step * P::STEP + i;
                if slot < written {
                    let row = &values[slot * stride..][..stride];
                    let x = load_value::<S, W>(w, row, value_scales::<S>(view, slot), vector);
                    *element = w.mul(x, up);
                }
            }
            P::store(w, elements, target);
        }
    }
}

/// Writes the sums and states of all rows.
#[inline(always)]
pub(super) fn store_record(
    item: &Item<'_>,
    sizes: Sizes,
    memory: &Memory<'_>,
    record: &mut [Vector],
) {
    let vectors = Record::vectors(item.params);
    let dims = sizes.value_vectors * WIDE;
    for (group, record) in record.chunks_mut(WIDE * vectors).enumerate() {
        let (first, side, index) = place(sizes, group);
        let sums = &memory.sums[first * dims..][..side * dims];
        for vector in 0..vectors - 1 {
            let mut square = [[0.0; WIDE]; WIDE];
            let sums = sums[vector * WIDE * side..][..WIDE * side].chunks_exact(side);
            for (target, sums) in square.iter_mut().zip(sums) {
                *target = sums[index].0;
            }
            let square = transposed(&square);
            for (record, row) in record.chunks_exact_mut(vectors).zip(&square) {
                record[vector].0 = *row;
            }
        }
        for (lane, record) in record.chunks_exact_mut(vectors).enumerate() {
            let last = &mut record[vectors - 1].0;
            last[0] = memory.largest[group].0[lane];
            last[1] = memory.totals[group].0[lane];
        }
    }
}
