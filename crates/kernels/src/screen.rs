//! The highest products of a matrix without reading all of it.
//!
//! A matrix in the split form (`packed/split.rs`) is screened by its high nibbles. For each row `i` the product is
//! within `norm[i] ‖x‖` of the screen, rounding included. In language models a few columns hold most of `‖x‖`: the
//! blocks of 32 columns with the largest `x` are screened with all their bits, as many as pay, and count no longer. Then:
//!
//! 1. the best rows by the screen are computed exactly, which gives a lower bound `θ` of the result's smallest product;
//! 2. only rows whose screen plus bound reaches `θ` can be in the result; the rest of their low nibbles is read, which
//!    leaves nothing but rounding between the estimate and the product;
//! 3. those that still can be in the result are computed exactly, by the kernels that a full product uses.
//!
//! So the result is that of the full product, bit by bit.

use std::cell::RefCell;
use std::ops::Range;

use crate::activations::{Scaling, TILE, TokenTile, WORDS};
use crate::arch::product::{SplitGroup, SplitRow, Sums, screen_bundle};
use crate::arch::threads::DisjointPieces;
use crate::arch::tiles::{DisjointTiles, Tile};
use crate::matmul::product;
use crate::packed::layout::{BLOCK, GROUP};
use crate::packed::split::{BUNDLE, ROUNDING_INPUT, rounding_share, size_per_scale};
use crate::schedule::run_in_streams;
use crate::{Activations, Context, Isa, PackedMatrix};

/// Bytes of a piece of work of the screen.
const CHUNK_BYTES: Range<usize> = 32 << 10..256 << 10;
/// Rows of a piece of work of the second step.
const REFINED_ROWS: usize = 64;
/// The second step pays up to this share of the rows: it reads them in small pieces.
const MOST_SURVIVORS: usize = 32;
/// Blocks that are screened with all bits: at most one in so many, and only those with this multiple of the mean of
/// `‖x‖²`.
const FEWEST_OTHERS: usize = 2;
const LEAST_ENERGY: f64 = 1.3;
/// Bytes read ahead in a row that a row's lonely bytes are worth.
const ROW_COST: usize = 128;
/// Rows whose product is within this share of the smallest in the result belong to it, so that neither a monotone
/// function of the products nor its rounding changes which are the highest.
const MARGIN: f32 = 1.0 / (1 << 20) as f32;
/// Inputs longer than this are not screened: sums stay finite below it.
const LONGEST: f64 = 1e25;

/// Which products are wanted of one token.
#[derive(Clone, Copy, Debug)]
pub struct Best<'a> {
    /// The highest so many, at least 1.
    pub count: usize,
    /// And those of these rows. Unknown ones are ignored.
    pub also: &'a [u32],
}

/// Hears a token's index and its highest products as (row, product), if they were found.
pub type Found<'a> = &'a mut dyn FnMut(usize, Option<&[(u32, f32)]>);

/// Finds the highest products of a matrix in the split form. Kept from use to use for its buffers.
#[derive(Debug, Default)]
pub struct Screen {
    /// Screen of each row, [tokens, rows].
    estimates: Vec<f32>,
    /// The highest screen of each group of 16 rows.
    peaks: Vec<f32>,
    /// Groups with a high screen, and which of all are computed exactly.
    order: Vec<u32>,
    is_exact: Vec<bool>,
    /// Products of whole groups, [group, 16], and their rows.
    sums: Vec<f32>,
    exact: Vec<(u32, f32)>,
    survivors: Vec<u32>,
    /// Of each survivor: the estimate of the second step and its largest error.
    refined: Vec<[f32; 2]>,
    bounds: Vec<f32>,
    /// Whether a block is screened with all its bits, and how many are to be.
    whole: Vec<bool>,
    depth: usize,
    /// Whether even blocks without much of `‖x‖` are to be.
    is_hard: bool,
    bytes_read: u64,
}

impl Screen {
    /// Gives `found`, for each token of `x`, its index and the highest products of `w`'s rows as (row, product): at
    /// least what `wanted` asks for, the highest first, of equal ones the smaller row. `None` where the bound does not
    /// leave few enough rows; a full product is the way then.
    ///
    /// # Panics
    /// If `w` [cannot be screened](PackedMatrix::can_screen), or the shapes disagree.
    pub fn search(
        &mut self,
        context: &Context<'_>,
        w: &PackedMatrix,
        x: &Activations,
        wanted: &[Best<'_>],
        found: Found<'_>,
    ) {
        assert!(w.can_screen(), "a matrix that can be screened");
        assert_eq!(
            w.cols(),
            x.cols(),
            "a matrix's columns and its input's length"
        );
        assert_eq!(wanted.len(), x.tokens(), "a wish for each token");
        self.choose_blocks(x);
        self.estimate(context, w, x);
        let mut most_survivors = Some(0);
        for tile in x.tiles(0..x.tokens()) {
            let tokens = wanted.iter().enumerate().skip(tile.first);
            for (token, wish) in tokens.take(tile.tokens) {
                let one = OneToken {
                    context,
                    w,
                    x,
                    tile,
                    token,
                    input: InputNorm::of(
                        x.panel(Scaling::Blocks, tile),
                        tile.width,
                        token - tile.first,
                        &self.whole,
                    ),
                };
                let decided = self.search_one(&one, wish);
                let survivors = decided.then_some(self.survivors.len());
                most_survivors = most_survivors.zip(survivors).map(|(a, b)| a.max(b));
                found(token, decided.then_some(&self.exact));
            }
        }
        self.adapt(w, most_survivors);
    }

    /// Bytes of weights read since the last call of this function.
    pub fn take_bytes_read(&mut self) -> u64 {
        std::mem::take(&mut self.bytes_read)
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        let floats = self.estimates.capacity() + self.peaks.capacity() + self.sums.capacity();
        4 * (floats + self.order.capacity() + self.survivors.capacity() + self.bounds.capacity())
            + self.is_exact.capacity()
            + 8 * (self.exact.capacity() + self.refined.capacity())
    }

    /// Chooses the blocks that are screened with all their bits: where the tokens have the most.
    fn choose_blocks(&mut self, x: &Activations) {
        let blocks = x.cols() / BLOCK;
        self.whole.clear();
        self.whole.resize(blocks, false);
        let mut shares = vec![0.0f64; blocks];
        for tile in x.tiles(0..x.tokens()) {
            for token in 0..tile.tokens {
                let energies = || input_energy(x.panel(Scaling::Blocks, tile), tile.width, token);
                let mean = energies().sum::<f64>() / blocks as f64;
                for (share, energy) in shares.iter_mut().zip(energies()) {
                    *share = share.max(energy / mean);
                }
            }
        }
        let mut order: Vec<usize> = (0..blocks).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        let most = self.depth.min(blocks / FEWEST_OTHERS);
        for &block in order.iter().take(most) {
            self.whole[block] = shares[block] >= LEAST_ENERGY || self.is_hard;
        }
    }

    /// Learns how many blocks pay, from the most survivors of a token; none if one was not decided.
    fn adapt(&mut self, w: &PackedMatrix, survivors: Option<usize>) {
        let chosen = self.whole.iter().filter(|&&whole| whole).count();
        let blocks = self.whole.len();
        let block_cost = w.rows() * BLOCK / 2;
        match survivors {
            None => {
                self.is_hard = chosen < self.depth;
                self.depth = (self.depth + 2).min(blocks / FEWEST_OTHERS);
            }
            Some(survivors) => {
                let cost = survivors * blocks * ROW_COST;
                if cost > 2 * block_cost && chosen == self.depth {
                    self.depth = (self.depth + 1).min(blocks / FEWEST_OTHERS);
                } else if 8 * cost < block_cost {
                    self.depth = self.depth.saturating_sub(1);
                }
            }
        }
    }

    /// Screens all rows for all tokens.
    fn estimate(&mut self, context: &Context<'_>, w: &PackedMatrix, x: &Activations) {
        let rows = w.rows();
        let whole = self.whole.as_slice();
        self.estimates.resize(x.tokens() * rows, 0.0);
        let high = w.high_part();
        let group_bytes = high.len() / rows.div_ceil(GROUP).max(1);
        let piece = high.len() / (2 * context.pool.threads());
        let piece = piece.clamp(CHUNK_BYTES.start, CHUNK_BYTES.end) / group_bytes.max(1);
        // Whole bundles, so that their low nibbles are read in straight runs.
        let row_step = piece.next_multiple_of(BUNDLE).max(BUNDLE) * GROUP;
        let whole_blocks: Vec<usize> = (0..whole.len()).filter(|&block| whole[block]).collect();
        let tiles = DisjointTiles::new(&mut self.estimates, rows, row_step, x.tokens().max(1));
        run_in_streams(context.pool, rows.div_ceil(row_step), &|index| {
            let mut out = tiles.take(index, 0);
            for first in out.rows().step_by(BUNDLE * GROUP) {
                let rows = first..out.rows().end.min(first + BUNDLE * GROUP);
                for tile in x.tiles(0..x.tokens()) {
                    let inputs = (x.panel(Scaling::Blocks, tile), tile);
                    estimate_bundle(
                        context.isa,
                        w,
                        inputs,
                        &whole_blocks,
                        rows.clone(),
                        &mut out,
                    );
                }
            }
        });
        let chosen = whole.iter().filter(|&&whole| whole).count();
        self.bytes_read += (high.len() + chosen * rows * BLOCK / 2) as u64;
    }

    /// Leaves the result in `exact`; false if the bound does not decide.
    fn search_one(&mut self, one: &OneToken<'_>, wanted: &Best<'_>) -> bool {
        let rows = one.w.rows();
        let count = wanted.count.clamp(1, rows.max(1));
        let groups = rows.div_ceil(GROUP);
        if one.input.whole.is_nan() || one.input.whole > LONGEST || 4 * count > groups {
            return false;
        }
        let x_norm = one.input.factor();
        self.exact.clear();
        self.survivors.clear();
        self.is_exact.clear();
        self.is_exact.resize(groups, false);

        self.find_peaks(one, count);
        let also = wanted.also.iter().filter(|&&row| (row as usize) < rows);
        self.order.extend(also.map(|row| row / GROUP as u32));
        self.compute_order(one);
        let threshold = lowered(self.nth_exact(count));

        let estimates = &self.estimates[one.token * rows..][..rows];
        let norms = one.w.norms();
        let most = rows / MOST_SURVIVORS;
        for (group, (estimates, norms)) in estimates.chunks(GROUP).zip(norms).enumerate() {
            if self.is_exact[group] || !reaches(estimates, norms, x_norm, threshold) {
                continue;
            }
            for (lane, (estimate, norm)) in estimates.iter().zip(norms).enumerate() {
                if estimate + norm * x_norm >= threshold {
                    self.survivors.push((GROUP * group + lane) as u32);
                }
            }
            if self.survivors.len() > most {
                return false;
            }
        }
        self.refine(one);
        // The highest lower bounds of all rows that were looked at.
        self.bounds.clear();
        self.bounds
            .extend(self.exact.iter().map(|&(_, product)| product));
        let lower = self
            .refined
            .iter()
            .map(|[estimate, error]| estimate - error);
        self.bounds.extend(lower);
        let threshold = lowered(nth_highest(&mut self.bounds, count)).max(threshold);
        self.order.clear();
        for (&row, [estimate, error]) in self.survivors.iter().zip(&self.refined) {
            if estimate + error >= threshold {
                self.order.push(row / GROUP as u32);
            }
        }
        self.compute_order(one);
        let threshold = lowered(self.nth_exact(count));
        self.exact
            .retain(|(row, product)| *product >= threshold || wanted.also.contains(row));
        self.exact
            .sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        true
    }

    /// Puts the `count` groups with the highest screens into `order`.
    fn find_peaks(&mut self, one: &OneToken<'_>, count: usize) {
        let rows = one.w.rows();
        let estimates = &self.estimates[one.token * rows..][..rows];
        let peak = |group: &[f32]| group.iter().copied().fold(f32::NEG_INFINITY, larger);
        self.peaks.clear();
        let (whole, rest) = estimates.as_chunks::<GROUP>();
        self.peaks.extend(whole.iter().map(|group| peak(group)));
        if !rest.is_empty() {
            self.peaks.push(peak(rest));
        }
        self.bounds.clone_from(&self.peaks);
        let bound = nth_highest(&mut self.bounds, count);
        self.order.clear();
        let high = self
            .peaks
            .iter()
            .enumerate()
            .filter(|(_, peak)| **peak >= bound);
        self.order
            .extend(high.take(2 * count).map(|(group, _)| group as u32));
    }

    /// Computes the groups in `order` exactly and appends their products to `exact`.
    fn compute_order(&mut self, one: &OneToken<'_>) {
        self.order.sort_unstable();
        self.order.dedup();
        let is_exact = &mut self.is_exact;
        self.order
            .retain(|&group| !std::mem::replace(&mut is_exact[group as usize], true));
        self.sums.clear();
        self.sums.resize(self.order.len() * GROUP, 0.0);
        let out = DisjointPieces::new(&mut self.sums, GROUP);
        let order = &self.order;
        run_in_streams(one.context.pool, order.len(), &|index| {
            let mut sums = Sums([[0.0; GROUP]; 16]);
            let group = order[index] as usize;
            product(one.context.isa, one.w, one.x, group, one.tile, &mut sums);
            out.take(index)
                .copy_from_slice(&sums.0[one.token - one.tile.first]);
        });
        drop(out);
        for (&group, sums) in self.order.iter().zip(self.sums.chunks_exact(GROUP)) {
            let first = group * GROUP as u32;
            let rows = (first..one.w.rows() as u32).zip(sums);
            self.exact
                .extend(rows.map(|(row, &product)| (row, product)));
        }
        let groups = one.w.rows().div_ceil(GROUP).max(1);
        self.bytes_read += (self.order.len() * (one.w.bytes() / groups)) as u64;
    }

    /// Estimates the survivors again, their low nibbles included.
    fn refine(&mut self, one: &OneToken<'_>) {
        let rows = one.w.rows();
        let estimates = &self.estimates[one.token * rows..][..rows];
        let survivors = &self.survivors;
        let share = rounding_share(one.w.cols() / BLOCK) * size_per_scale() * one.input.whole;
        let panel = one.x.panel(Scaling::Blocks, one.tile);
        let whole = self.whole.as_slice();
        let split_row = |row: u32| {
            let (high, low) = one.w.group_parts(row as usize / GROUP);
            SplitRow {
                group: SplitGroup { high, low },
                lane: row as usize % GROUP,
            }
        };
        self.refined.resize(survivors.len(), [0.0; 2]);
        let out = DisjointPieces::new(&mut self.refined, REFINED_ROWS);
        run_in_streams(
            one.context.pool,
            survivors.len().div_ceil(REFINED_ROWS),
            &|piece| {
                let survivors = &survivors[piece * REFINED_ROWS..];
                for (index, out) in out.take(piece).iter_mut().enumerate() {
                    if let Some(&next) = survivors.get(index + 1) {
                        split_row(next).fetch(whole);
                    }
                    let row = survivors[index];
                    let (residual, squares) = split_row(row).residual_product(
                        one.context.isa,
                        whole,
                        panel,
                        one.tile.width,
                        one.token - one.tile.first,
                    );
                    // Rounding to f32 at the end: once more the share, which is generous.
                    *out = [
                        (f64::from(estimates[row as usize]) + residual) as f32,
                        (share * squares.sqrt() * 1.001) as f32,
                    ];
                }
            },
        );
        drop(out);
        // The cache lines that hold a row's low nibbles and scales.
        let row_bytes = one.w.cols() / BLOCK * (4 * 64 + 32);
        self.bytes_read += (self.survivors.len() * row_bytes) as u64;
    }

    /// The `count`-th highest of the exact products.
    fn nth_exact(&mut self, count: usize) -> f32 {
        self.bounds.clear();
        self.bounds
            .extend(self.exact.iter().map(|&(_, product)| product));
        nth_highest(&mut self.bounds, count)
    }
}

/// Screens the rows `rows`, those of one bundle.
fn estimate_bundle(
    isa: Isa,
    w: &PackedMatrix,
    (panel, tile): (&[i32], TokenTile),
    whole: &[usize],
    rows: Range<usize>,
    out: &mut Tile<'_>,
) {
    let bundle = w.bundle(rows.start / (BUNDLE * GROUP));
    SUMS.with_borrow_mut(|sums| {
        sums.resize(BUNDLE, Sums([[0.0; GROUP]; TILE]));
        screen_bundle(isa, bundle, whole, panel, tile.width, sums);
        for (first, sums) in rows.clone().step_by(GROUP).zip(sums) {
            let rows = first..rows.end.min(first + GROUP);
            for (token, sums) in sums.0[..tile.tokens].iter().enumerate() {
                let out = out.part(tile.first + token, rows.clone());
                out.copy_from_slice(&sums[..rows.len()]);
            }
        }
    });
}

thread_local! {
    /// Sums of the groups of a bundle.
    static SUMS: RefCell<Vec<Sums>> = const { RefCell::new(Vec::new()) };
}

/// A token and what it is multiplied with.
struct OneToken<'a> {
    context: &'a Context<'a>,
    w: &'a PackedMatrix,
    x: &'a Activations,
    tile: TokenTile,
    token: usize,
    input: InputNorm,
}

/// Norms of an input as quantised.
#[derive(Clone, Copy, Debug)]
struct InputNorm {
    whole: f64,
    /// That of the blocks that are screened by high nibbles.
    high_only: f64,
}

impl InputNorm {
    /// Of token `token` of a panel.
    fn of(panel: &[i32], width: usize, token: usize, whole: &[bool]) -> InputNorm {
        let (mut all, mut high_only) = (0.0, 0.0);
        for (energy, whole) in input_energy(panel, width, token).zip(whole) {
            all += energy;
            high_only += if *whole { 0.0 } else { energy };
        }
        InputNorm {
            whole: all.sqrt(),
            high_only: high_only.sqrt(),
        }
    }

    /// What a row's norm is multiplied with, rounded up.
    fn factor(&self) -> f32 {
        let factor = self.high_only + ROUNDING_INPUT * self.whole;
        (factor * (1.0 + f64::from(f32::EPSILON))) as f32
    }
}

/// `‖x‖²` of each block of token `token` of a panel.
fn input_energy(panel: &[i32], width: usize, token: usize) -> impl Iterator<Item = f64> {
    panel.chunks_exact(WORDS * width).map(move |block| {
        let words = &block[8 * token..8 * token + 8];
        let squares = words.iter().flat_map(|word| word.to_le_bytes());
        let sum: i32 = squares.map(|byte| i32::from(byte as i8).pow(2)).sum();
        let scale = f64::from(f32::from_bits(block[8 * width + token] as u32));
        f64::from(sum) * scale * scale
    })
}

/// Whether any of 16 rows can have a product of at least `threshold`.
#[inline(always)]
fn reaches(estimates: &[f32], norms: &[f32; GROUP], x_norm: f32, threshold: f32) -> bool {
    let Ok(estimates) = <&[f32; GROUP]>::try_from(estimates) else {
        return true;
    };
    let mut any = 0;
    for lane in 0..GROUP {
        any |= u32::from(estimates[lane] + norms[lane] * x_norm >= threshold);
    }
    any != 0
}

fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The `count`-th highest; the lowest if there are fewer.
fn nth_highest(values: &mut [f32], count: usize) -> f32 {
    if values.is_empty() {
        return f32::NEG_INFINITY;
    }
    let place = count.min(values.len()) - 1;
    *values
        .select_nth_unstable_by(place, |a, b| b.total_cmp(a))
        .1
}

/// A little less, by the margin.
fn lowered(threshold: f32) -> f32 {
    threshold - threshold.abs() * MARGIN - f32::MIN_POSITIVE
}

#[cfg(test)]
mod tests;
