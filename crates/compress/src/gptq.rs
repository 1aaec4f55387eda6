//! Error-compensating rounding (GPTQ, Frantar et al. 2022) into the block formats.
//!
//! Columns are rounded in order; what each one's error does to the output is made good by those after it, by the factor
//! of the inputs' Gram matrix ([`Factor`]). A block's scales are chosen when its first column is reached, for the
//! numbers as they are by then. Sixteen rows are computed together, one in each lane.

use ondine_kernels::Work;

use crate::format::{BLOCK, Encoder, Format, Levels, Scales};
use crate::linear_algebra::Factor;

/// Rows that are rounded together.
pub(crate) const ROWS: usize = 16;
/// Columns whose errors are handed on together.
const COLUMNS: usize = 32;

type Lanes = [f32; ROWS];

/// Rounds up to 16 rows: `x` is [rows, columns], `out` their blocks. Returns what the rounding costs: the sum over the
/// rows of E H Eᵀ.
pub(crate) fn round_rows(encoder: &Encoder, factor: &Factor, x: &[f32], out: &mut [u8]) -> f64 {
    let columns = factor.columns;
    let rows = x.len() / columns;
    let format = encoder.format().expect("a quantised type");
    let mut state = State {
        weights: vec![[0.0; ROWS]; columns],
        targets: vec![[0.0; ROWS]; columns],
        errors: vec![[0.0; ROWS]; COLUMNS],
        cost: [0.0; ROWS],
    };
    for (row, x) in x.chunks_exact(columns).enumerate() {
        for (weights, x) in state.weights.iter_mut().zip(x) {
            weights[row] = *x;
        }
    }
    state.targets.copy_from_slice(&state.weights);
    let row_bytes = out.len() / rows.max(1);
    let mut scales = vec![Scales::new(); ROWS];
    let mut codes = vec![[0u8; BLOCK]; ROWS];
    let mut x = [0.0; BLOCK];
    for block in (0..columns).step_by(format.block) {
        let range = block..block + format.block;
        for (row, scales) in scales.iter_mut().enumerate().take(rows) {
            for (x, target) in x.iter_mut().zip(&state.targets[range.clone()]) {
                *x = target[row];
            }
            *scales = encoder.scales(&x[..format.block], &factor.diagonal[range.clone()]);
        }
        for first in range.step_by(COLUMNS) {
            let work = (
                &mut state,
                factor,
                format,
                &scales[..],
                first,
                block,
                &mut codes[..],
            );
            round_columns(encoder, work);
        }
        let bytes = format.ty.block_bytes();
        let at = block / format.block * bytes;
        for row in 0..rows {
            let out = &mut out[row * row_bytes + at..row * row_bytes + at + bytes];
            encoder.pack(&scales[row], &codes[row], out);
        }
    }
    state.cost[..rows].iter().map(|cost| f64::from(*cost)).sum()
}

/// Sixteen rows in the middle of their rounding.
struct State {
    /// The numbers, [columns][rows].
    weights: Vec<Lanes>,
    /// The numbers, corrected by the errors of the columns before.
    targets: Vec<Lanes>,
    /// Errors of the present columns.
    errors: Vec<Lanes>,
    cost: Lanes,
}

type Columns<'a> = (
    &'a mut State,
    &'a Factor,
    &'a Format,
    &'a [Scales],
    usize,
    usize,
    &'a mut [[u8; BLOCK]],
);

fn round_columns(encoder: &Encoder, columns: Columns<'_>) {
    let format = *columns.2;
    match format.book() {
        Some(levels) => {
            ondine_kernels::compiled_for(encoder.isa(), RoundColumns { columns, levels })
        }
        None => {
            let levels = format.uniform();
            ondine_kernels::compiled_for(encoder.isa(), RoundColumns { columns, levels });
        }
    }
}

struct RoundColumns<'a, L> {
    columns: Columns<'a>,
    levels: L,
}

impl<L: Levels> Work for RoundColumns<'_, L> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let (state, factor, format, scales, first, block, codes) = self.columns;
        let levels = self.levels;
        let columns = factor.columns;
        let end = columns.min(first + COLUMNS);
        let mut part = usize::MAX;
        let (mut scale, mut minimum, mut inverse) =
            ([0.0f32; ROWS], [0.0f32; ROWS], [0.0f32; ROWS]);
        for column in first..end {
            let within = column - block;
            if within / format.part != part {
                part = within / format.part;
                for row in 0..ROWS {
                    let of = &scales[row];
                    scale[row] = of.scales[part];
                    minimum[row] = of.minima[part];
                    inverse[row] = match scale[row].abs() < f32::MIN_POSITIVE {
                        true => 0.0,
                        false => 1.0 / scale[row],
                    };
                }
            }
            let target = state.targets[column];
            let weight = &state.weights[column];
            let diagonal = factor.diagonal[column];
            let mut error = [0.0f32; ROWS];
            for row in 0..ROWS {
                let shifted = (target[row] + minimum[row]) * inverse[row];
                let value = scale[row] * levels.nearest(shifted) - minimum[row];
                error[row] = weight[row] - value;
                let rest = target[row] - value;
                state.cost[row] += diagonal * rest * rest;
            }
            for row in 0..ROWS {
                codes[row][within] = levels.code((target[row] + minimum[row]) * inverse[row]);
            }
            state.errors[column - first] = error;
            for later in column + 1..end {
                let s = factor.lower[later * columns + column];
                for row in 0..ROWS {
                    state.targets[later][row] += s * error[row];
                }
            }
        }
        let errors: &[Lanes] = &state.errors[..end - first];
        for (index, targets) in state.targets[end..].chunks_mut(4).enumerate() {
            let column = end + 4 * index;
            if let [a, b, c, d] = targets {
                let rows: [&[f32]; 4] = std::array::from_fn(|i| {
                    &factor.lower[(column + i) * columns + first..][..end - first]
                });
                let mut sums = [[0.0f32; ROWS]; 4];
                for (at, error) in errors.iter().enumerate() {
                    for (sums, s) in sums.iter_mut().zip(&rows) {
                        let s = s[at];
                        for row in 0..ROWS {
                            sums[row] += s * error[row];
                        }
                    }
                }
                for (target, sums) in [a, b, c, d].into_iter().zip(&sums) {
                    for row in 0..ROWS {
                        target[row] += sums[row];
                    }
                }
            } else {
                for (i, target) in targets.iter_mut().enumerate() {
                    let s = &factor.lower[(column + i) * columns + first..][..end - first];
                    for (s, error) in s.iter().zip(errors) {
                        for row in 0..ROWS {
                            target[row] += s * error[row];
                        }
                    }
                }
            }
        }
    }
}
