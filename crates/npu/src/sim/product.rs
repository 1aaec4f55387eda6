//! The multipliers: a tile of quantised rows times the chunk's activations.

use ondine_kernels::ThreadPool;

use super::store::{Stored, half_at};
use crate::profile::Activations;

/// Rows of a tile that a thread multiplies together.
const ROWS: usize = 8;

/// Activations as the multipliers take them.
pub(super) struct Input {
    rows: usize,
    columns: usize,
    /// 8-bit codes, [rows, columns], where the device multiplies integers.
    codes: Vec<i16>,
    /// A scale per row, with the codes.
    scales: Vec<f32>,
    /// [rows, columns], where it multiplies floats, or integers of 16 bits.
    floats: Vec<f32>,
}

impl Input {
    /// Converts `values`, [rows, columns].
    pub(super) fn new(mut values: Vec<f32>, columns: usize, activations: Activations) -> Self {
        let rows = values.len() / columns.max(1);
        let mut input = Input {
            rows,
            columns,
            codes: Vec::new(),
            scales: Vec::new(),
            floats: Vec::new(),
        };
        match activations {
            Activations::Int8 => {
                for row in values.chunks_exact(columns) {
                    let (scale, inverse) = grid(row, 127.0);
                    input.scales.push(scale);
                    let codes = row.iter().map(|x| (x * inverse).round() as i16);
                    input.codes.extend(codes);
                }
            }
            Activations::Int16 => {
                for row in values.chunks_exact_mut(columns) {
                    let (scale, inverse) = grid(row, 32767.0);
                    for x in row {
                        *x = (*x * inverse).round() * scale;
                    }
                }
                input.floats = values;
            }
            // They lie in on-chip memory in this form already.
            Activations::F16 | Activations::Bf16 => input.floats = values,
        }
        input
    }
}

/// `[tile rows, input rows]`: every row in `bytes` times every row of `input`, bias added. Integer products are summed
/// exactly within a group; groups are summed as floats.
pub(super) fn multiply(
    pool: &ThreadPool,
    stored: &Stored,
    bytes: &[u8],
    input: &Input,
) -> Vec<f32> {
    let rows = bytes.len() / stored.row_bytes.max(1);
    let mut out = vec![0.0; rows * input.rows];
    pool.for_each_chunk_mut(&mut out, ROWS * input.rows.max(1), |chunk, out| {
        let mut codes = vec![0i16; stored.columns];
        let mut floats = vec![0.0; stored.columns];
        for (offset, out) in out.chunks_exact_mut(input.rows).enumerate() {
            let at = (chunk * ROWS + offset) * stored.row_bytes;
            let row = &bytes[at..at + stored.row_bytes];
            if input.codes.is_empty() || stored.bits == 16 {
                stored.floats(row, &mut floats);
                let (.., bias) = stored.parts(row);
                for (token, out) in out.iter_mut().enumerate() {
                    *out = bias + input.dot(token, &floats);
                }
            } else {
                let (scales, smallest, packed, bias) = stored.parts(row);
                stored.codes(packed, &mut codes);
                for (token, out) in out.iter_mut().enumerate() {
                    *out = bias + input.dot_codes(token, stored, scales, smallest, &codes);
                }
            }
        }
    });
    out
}

impl Input {
    fn dot(&self, token: usize, weights: &[f32]) -> f32 {
        let range = token * self.columns..(token + 1) * self.columns;
        if self.floats.is_empty() {
            let scale = self.scales[token];
            let codes = self.codes[range]
                .iter()
                .map(|&code| f32::from(code) * scale);
            return codes.zip(weights).map(|(x, w)| x * w).sum();
        }
        dot(&self.floats[range], weights)
    }

    fn dot_codes(
        &self,
        token: usize,
        stored: &Stored,
        scales: &[u8],
        smallest: &[u8],
        weights: &[i16],
    ) -> f32 {
        let codes = &self.codes[token * self.columns..(token + 1) * self.columns];
        let groups = codes.chunks(stored.group).zip(weights.chunks(stored.group));
        let mut sum = 0.0;
        for (group, (codes, weights)) in groups.enumerate() {
            sum += half_at(scales, group) * dot_integers(codes, weights) as f32;
            if stored.offset {
                let all: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                sum += half_at(smallest, group) * all as f32;
            }
        }
        sum * self.scales[token]
    }
}

/// (scale, its inverse) that bring a row into ±`most`.
fn grid(row: &[f32], most: f32) -> (f32, f32) {
    let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    match largest {
        0.0 => (0.0, 0.0),
        largest => (largest / most, most / largest),
    }
}

/// Products of 8-bit codes: at most 127 × 255 each, so that 65,000 of them fit 32 bits.
fn dot_integers(a: &[i16], b: &[i16]) -> i32 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| i32::from(a) * i32::from(b))
        .sum()
}

/// Sums in eight lanes, so that vector units can be used.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a_whole, b_whole) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a_whole
        .remainder()
        .iter()
        .zip(b_whole.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_whole.zip(b_whole) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + tail
}
