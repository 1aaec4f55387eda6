//! A matrix cut into rectangles that threads take, each at most once.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

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
