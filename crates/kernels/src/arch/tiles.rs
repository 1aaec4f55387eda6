//! A matrix cut into rectangles that threads take, each at most once.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::memory::prefetch;
use crate::Isa;

/// A row-major matrix [tokens, rows], cut into rectangles of `row_step` x `token_step`.
pub struct DisjointTiles<'a> {
    start: *mut f32,
    rows: usize,
    tokens: usize,
    row_step: usize,
    token_step: usize,
    /// One flag per rectangle, `flag_step` apart: few flags lie in different cache lines, so that threads do not
    /// disturb each other.
    taken: Vec<AtomicBool>,
    flag_step: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: it hands out disjoint parts of a `&mut [f32]`.
unsafe impl Sync for DisjointTiles<'_> {}
// SAFETY: it is a `&mut [f32]` in parts.
unsafe impl Send for DisjointTiles<'_> {}

impl<'a> DisjointTiles<'a> {
    /// Cuts `data`, [tokens, rows].
    ///
    /// # Panics
    /// If the length of `data` is not a multiple of `rows`, or a step is 0.
    pub fn new(data: &'a mut [f32], rows: usize, row_step: usize, token_step: usize) -> Self {
        let tokens = data.len().checked_div(rows).unwrap_or(0);
        assert_eq!(tokens * rows, data.len(), "whole tokens");
        let count = rows.div_ceil(row_step) * tokens.div_ceil(token_step);
        let flag_step = if count <= 32 { 64 } else { 1 };
        DisjointTiles {
            start: data.as_mut_ptr(),
            rows,
            tokens,
            row_step,
            token_step,
            taken: (0..count * flag_step)
                .map(|_| AtomicBool::new(false))
                .collect(),
            flag_step,
            owner: PhantomData,
        }
    }

    /// The rectangle of row step `row_index` and token step `token_index`.
    ///
    /// # Panics
    /// If it was taken before, or there is no such rectangle.
    pub fn take(&self, row_index: usize, token_index: usize) -> Tile<'_> {
        let across = self.rows.div_ceil(self.row_step);
        assert!(row_index < across && token_index < self.tokens.div_ceil(self.token_step));
        let index = token_index * across + row_index;
        let before = self.taken[index * self.flag_step].swap(true, Relaxed);
        assert!(!before, "rectangle {index} is taken twice");
        let first_row = row_index * self.row_step;
        let first_token = token_index * self.token_step;
        Tile {
            start: self.start,
            stride: self.rows,
            rows: first_row..self.rows.min(first_row + self.row_step),
            tokens: first_token..self.tokens.min(first_token + self.token_step),
            owner: PhantomData,
        }
    }
}

/// A rectangle of a matrix [tokens, rows].
pub struct Tile<'a> {
    start: *mut f32,
    stride: usize,
    rows: Range<usize>,
    tokens: Range<usize>,
    owner: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// Rows of the rectangle.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Tokens of the rectangle.
    pub fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// What belongs to one token and some rows.
    ///
    /// # Panics
    /// If they lie outside the rectangle.
    pub fn part(&mut self, token: usize, rows: Range<usize>) -> &mut [f32] {
        assert!(self.tokens.contains(&token), "token {token}");
        assert!(
            self.rows.start <= rows.start && rows.start <= rows.end && rows.end <= self.rows.end,
            "rows {rows:?}"
        );
        // SAFETY: the range lies in this rectangle, which lies in the matrix; nobody else has it, and `self` is
        // borrowed mutably.
        unsafe {
            let first = self.start.add(token * self.stride + rows.start);
            std::slice::from_raw_parts_mut(first, rows.len())
        }
    }
}

/// Panels of quantised inputs, one after the other, cut into runs of blocks that threads take, each at most once.
pub(crate) struct DisjointPanels<'a> {
    start: *mut i32,
    /// Where each panel begins and how many words a block of it has.
    panels: Vec<(usize, usize)>,
    blocks: usize,
    block_step: usize,
    taken: Vec<AtomicBool>,
    owner: PhantomData<&'a mut [i32]>,
}

// SAFETY: it hands out disjoint parts of a `&mut [i32]`.
unsafe impl Sync for DisjointPanels<'_> {}
// SAFETY: it is a `&mut [i32]` in parts.
unsafe impl Send for DisjointPanels<'_> {}

impl<'a> DisjointPanels<'a> {
    /// Cuts panels of `blocks` blocks each, whose blocks have so many `words`, into runs of `block_step` blocks.
    ///
    /// # Panics
    /// If `data` has another length than the panels together, or the step is 0.
    pub(crate) fn new(
        data: &'a mut [i32],
        words: impl Iterator<Item = usize>,
        blocks: usize,
        block_step: usize,
    ) -> Self {
        let mut end = 0;
        let panels: Vec<_> = words
            .map(|words| {
                let start = end;
                end += words * blocks;
                (start, words)
            })
            .collect();
        assert_eq!(data.len(), end, "panels that fill their memory");
        let count = panels.len() * blocks.div_ceil(block_step);
        DisjointPanels {
            start: data.as_mut_ptr(),
            panels,
            blocks,
            block_step,
            taken: (0..count).map(|_| AtomicBool::new(false)).collect(),
            owner: PhantomData,
        }
    }

    /// Run `step` of the blocks of panel `panel`.
    ///
    /// # Panics
    /// If it was taken before, or there is no such run.
    pub(crate) fn take(&self, panel: usize, step: usize) -> &'a mut [i32] {
        let across = self.blocks.div_ceil(self.block_step);
        assert!(step < across, "run {step} of {across}");
        let (start, words) = self.panels[panel];
        let before = self.taken[panel * across + step].swap(true, Relaxed);
        assert!(!before, "run {step} of panel {panel} is taken twice");
        let first = step * self.block_step;
        let count = self.block_step.min(self.blocks - first);
        // SAFETY: the run lies in its panel, which lies in the data; nobody else has it, as it is taken once.
        unsafe {
            let first = self.start.add(start + first * words);
            std::slice::from_raw_parts_mut(first, count * words)
        }
    }
}

/// Rows that [`Tile::write`] takes.
const LANES: usize = 16;

impl Tile<'_> {
    /// Asks for the memory of `tokens` and 16 rows from `first_row` on, which will be added to.
    ///
    /// # Panics
    /// If they lie outside the rectangle.
    pub(crate) fn fetch(&self, tokens: Range<usize>, first_row: usize) {
        let start = self.start_of(&tokens, first_row).cast_const();
        for token in 0..tokens.len() {
            prefetch(start.wrapping_add(token * self.stride).addr());
        }
    }

    /// `out = (accumulate ? out : 0) + (sums + bias)` for `tokens` and 16 rows from `first_row` on.
    ///
    /// # Panics
    /// If they lie outside the rectangle, or there are fewer sums than tokens.
    pub(crate) fn write(
        &mut self,
        isa: Isa,
        tokens: Range<usize>,
        first_row: usize,
        sums: &[[f32; LANES]],
        bias: Option<&[f32; LANES]>,
        accumulate: bool,
    ) {
        let start = self.start_of(&tokens, first_row);
        let sums = &sums[..tokens.len()];
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if Isa::Avx512.is_available() => {
                // SAFETY: AVX-512 was found; `start_of` has checked that every token's rows lie in this rectangle, which
                // `self` has alone.
                unsafe { write_avx512(start, self.stride, sums, bias, accumulate) }
            }
            _ => {
                for (token, sums) in tokens.zip(sums) {
                    let out = self.part(token, first_row..first_row + LANES);
                    let bias = bias.unwrap_or(&[0.0; LANES]);
                    for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                        let y = sum + bias;
                        *out = if accumulate { *out + y } else { y };
                    }
                }
            }
        }
    }

    /// Where the first of `tokens` has 16 rows from `first_row` on.
    fn start_of(&self, tokens: &Range<usize>, first_row: usize) -> *mut f32 {
        assert!(
            self.tokens.start <= tokens.start && tokens.end <= self.tokens.end,
            "tokens {tokens:?}"
        );
        assert!(
            self.rows.start <= first_row && first_row + LANES <= self.rows.end,
            "16 rows from {first_row}"
        );
        self.start
            .wrapping_add(tokens.start * self.stride + first_row)
    }
}

/// # Safety
/// AVX-512 must be there, and for each of `sums` 16 floats that belong to the caller, `stride` apart from `start` on.
// Few arguments that fit into registers: what passes through memory waits for the outputs written before.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn write_avx512(
    start: *mut f32,
    stride: usize,
    sums: &[[f32; LANES]],
    bias: Option<&[f32; LANES]>,
    accumulate: bool,
) {
    use std::arch::x86_64::*;

    // SAFETY: 16 floats each.
    unsafe {
        let bias = bias.map(|bias| _mm512_loadu_ps(bias.as_ptr()));
        let mut out = start;
        for sums in sums {
            let mut y = _mm512_loadu_ps(sums.as_ptr());
            if let Some(bias) = bias {
                y = _mm512_add_ps(y, bias);
            }
            if accumulate {
                y = _mm512_add_ps(_mm512_loadu_ps(out), y);
            }
            _mm512_storeu_ps(out, y);
            out = out.wrapping_add(stride);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::ops::test_support::each_isa;

    #[test]
    fn rectangles_cover_a_matrix_once() {
        let (tokens, rows) = (7, 37);
        let mut data = vec![0.0; tokens * rows];
        let tiles = DisjointTiles::new(&mut data, rows, 16, 3);
        for row_index in 0..3 {
            for token_index in 0..3 {
                let mut tile = tiles.take(row_index, token_index);
                for token in tile.tokens() {
                    let rows = tile.rows();
                    tile.part(token, rows).iter_mut().for_each(|x| *x += 1.0);
                }
            }
        }
        assert!(catch_unwind(AssertUnwindSafe(|| tiles.take(0, 0).rows())).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| tiles.take(3, 0).rows())).is_err());
        assert!(data.iter().all(|&x| x == 1.0));
    }

    #[test]
    fn runs_cover_panels_once() {
        let (widths, blocks, step) = ([12, 12, 3], 7, 3);
        let mut data = vec![0; blocks * (12 + 12 + 3)];
        let panels = DisjointPanels::new(&mut data, widths.into_iter(), blocks, step);
        for (panel, width) in widths.into_iter().enumerate() {
            for run in 0..3 {
                let run = panels.take(panel, run);
                assert!(run.len() == 3 * width || run.len() == width);
                run.iter_mut().for_each(|x| *x += 1 + panel as i32);
            }
        }
        for (panel, run) in [(0, 0), (0, 3), (3, 0)] {
            assert!(catch_unwind(AssertUnwindSafe(|| panels.take(panel, run).len())).is_err());
        }
        let (first, rest) = data.split_at(12 * blocks);
        let (second, third) = rest.split_at(12 * blocks);
        for (part, value) in [(first, 1), (second, 2), (third, 3)] {
            assert!(part.iter().all(|&x| x == value));
        }
    }

    #[test]
    fn sums_go_where_they_belong_on_each_isa() {
        let (tokens, rows) = (7, 37);
        let sums: Vec<[f32; LANES]> = (0..tokens)
            .map(|token| std::array::from_fn(|row| (100 * token + row) as f32 / 3.0))
            .collect();
        let bias: [f32; LANES] = std::array::from_fn(|row| row as f32 / 7.0);
        for isa in each_isa() {
            for (bias, accumulate) in [
                (None, false),
                (None, true),
                (Some(&bias), false),
                (Some(&bias), true),
            ] {
                let mut data = vec![0.1; tokens * rows];
                let tiles = DisjointTiles::new(&mut data, rows, 32, tokens);
                let mut tile = tiles.take(0, 0);
                tile.fetch(2..7, 16);
                tile.write(isa, 2..7, 16, &sums, bias, accumulate);
                let outside = [(2..8, 16), (0..7, 17)];
                for (tokens, row) in outside {
                    let sums = &sums;
                    let write = AssertUnwindSafe(|| tile.write(isa, tokens, row, sums, None, true));
                    assert!(catch_unwind(write).is_err());
                }
                for (index, x) in data.iter().enumerate() {
                    let (token, row) = (index / rows, index % rows);
                    let expected = match (token, row) {
                        (2.., 16..32) => {
                            let y = sums[token - 2][row - 16] + bias.map_or(0.0, |b| b[row - 16]);
                            if accumulate { 0.1 + y } else { y }
                        }
                        _ => 0.1,
                    };
                    assert_eq!(x.to_bits(), expected.to_bits(), "{isa:?} {token} {row}");
                }
            }
        }
    }

    #[test]
    fn a_rectangle_gives_nothing_outside() {
        let mut data = vec![0.0; 4 * 32];
        let tiles = DisjointTiles::new(&mut data, 32, 16, 2);
        let mut tile = tiles.take(1, 0);
        assert_eq!(tile.part(1, 16..32).len(), 16);
        for (token, rows) in [(2, 16..32), (0, 15..32), (0, 16..33)] {
            assert!(
                catch_unwind(AssertUnwindSafe(|| tile.part(token, rows.clone()).len())).is_err()
            );
        }
    }
}
