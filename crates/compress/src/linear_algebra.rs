//! Dense symmetric matrices: Gram matrices and their Cholesky factors, in f32.

use ondine_kernels::arch::threads::DisjointPieces;
use ondine_kernels::{Isa, ThreadPool, Work, compiled_for};

/// Columns that are factored together.
const PANEL: usize = 64;

/// Columns of a panel: of each token, these lie together.
const WIDE: usize = 16;
/// Rows of a Gram matrix that are computed together; a panel holds whole groups of them.
const ROWS: usize = 8;

/// `gram += xᵀ x`; `x` is [tokens, columns], `gram` is [columns, columns] of which only `j >= i / 8 * 8` is kept.
pub(crate) fn add_gram(isa: Isa, pool: &ThreadPool, x: &[f32], columns: usize, gram: &mut [f32]) {
    let tokens = x.len() / columns.max(1);
    // [panels][tokens][WIDE]: tiles then read memory in straight lines.
    let mut panels = vec![0.0f32; columns.div_ceil(WIDE) * tokens * WIDE];
    if panels.is_empty() {
        return;
    }
    pool.for_each_chunk_mut(&mut panels, tokens * WIDE, |panel, out| {
        let first = panel * WIDE;
        let width = WIDE.min(columns - first);
        for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(WIDE)) {
            out[..width].copy_from_slice(&x[first..first + width]);
        }
    });
    pool.for_each_chunk_mut(gram, ROWS * columns, |index, rows| {
        compiled_for(
            isa,
            GramRows {
                panels: &panels,
                tokens,
                columns,
                first: index * ROWS,
                rows,
            },
        );
    });
}

struct GramRows<'a> {
    /// [panels][tokens][WIDE].
    panels: &'a [f32],
    tokens: usize,
    columns: usize,
    first: usize,
    rows: &'a mut [f32],
}

impl Work for GramRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let columns = self.columns;
        let panel = |index: usize| {
            let length = self.tokens * WIDE;
            self.panels[index * length..(index + 1) * length]
                .as_chunks::<WIDE>()
                .0
        };
        let left = panel(self.first / WIDE);
        let offset = self.first % WIDE;
        for index in self.first / WIDE..columns.div_ceil(WIDE) {
            let mut sums = [[0.0f32; WIDE]; ROWS];
            for (left, right) in left.iter().zip(panel(index)) {
                let left: &[f32; ROWS] = left[offset..offset + ROWS].try_into().expect("8 long");
                for (sums, left) in sums.iter_mut().zip(left) {
                    for lane in 0..WIDE {
                        sums[lane] += left * right[lane];
                    }
                }
            }
            let at = index * WIDE;
            let width = WIDE.min(columns - at);
            for (row, sums) in self.rows.chunks_exact_mut(columns).zip(&sums) {
                for (out, sum) in row[at..at + width].iter_mut().zip(sums) {
                    *out += sum;
                }
            }
        }
    }
}

/// The upper factor R of a positive definite matrix H = R Rᵀ, its columns divided by their diagonal.
///
/// Rounding errors E of a row of weights cost E H Eᵀ = Σ_k d_k² (E_k + Σ_{i<k} E_i s_ki)²: each column can make good
/// what was lost in those before it.
pub(crate) struct Factor {
    pub(crate) columns: usize,
    /// `s_ki`, [columns, columns]; zero for i >= k.
    pub(crate) lower: Vec<f32>,
    /// `d_k²`, [columns].
    pub(crate) diagonal: Vec<f32>,
}

impl Factor {
    /// Factors `gram` + `damping` × its mean diagonal on the diagonal; of `gram`, only `j >= i` is read. More damping is
    /// taken where the matrix is still not positive definite.
    pub(crate) fn new(
        isa: Isa,
        pool: &ThreadPool,
        gram: &[f32],
        columns: usize,
        damping: f32,
    ) -> Self {
        let trace: f64 = (0..columns).map(|i| f64::from(gram[i * columns + i])).sum();
        let mean = (trace / columns as f64) as f32;
        let mean = if mean.is_finite() && mean > 0.0 {
            mean
        } else {
            1.0
        };
        let mut damping = damping;
        loop {
            // The reversed matrix: its lower factor, reversed, is the upper one.
            let last = columns - 1;
            let mut lower = vec![0.0f32; columns * columns];
            for i in 0..columns {
                let row = &gram[(last - i) * columns..(last - i + 1) * columns];
                for j in 0..=i {
                    lower[i * columns + j] = row[last - j] / mean;
                }
                lower[i * columns + i] += damping;
            }
            if cholesky(isa, pool, &mut lower, columns) {
                return Factor::from_reversed(&lower, columns, mean);
            }
            damping = (damping * 10.0).max(1e-4);
            if !damping.is_finite() || damping > 1e6 {
                return Factor {
                    columns,
                    lower: vec![0.0; columns * columns],
                    diagonal: vec![1.0; columns],
                };
            }
        }
    }

    /// E H Eᵀ of one row of errors.
    pub(crate) fn power(&self, row: &[f32]) -> f64 {
        let mut sum = 0.0;
        for (k, (e, diagonal)) in row.iter().zip(&self.diagonal).enumerate() {
            let s = &self.lower[k * self.columns..k * self.columns + k];
            let (wide, rest) = s.as_chunks::<16>();
            let (wide_row, row_rest) = row[..k].as_chunks::<16>();
            let mut lanes = [0.0f32; 16];
            for (s, e) in wide.iter().zip(wide_row) {
                for lane in 0..16 {
                    lanes[lane] += s[lane] * e[lane];
                }
            }
            let tail: f32 = rest.iter().zip(row_rest).map(|(s, e)| s * e).sum();
            let at = e + lanes.iter().sum::<f32>() + tail;
            sum += f64::from(*diagonal) * f64::from(at) * f64::from(at);
        }
        sum
    }

    fn from_reversed(lower: &[f32], columns: usize, mean: f32) -> Self {
        let last = columns - 1;
        let mut out = vec![0.0; columns * columns];
        let mut diagonal = vec![0.0; columns];
        for k in 0..columns {
            let d = lower[(last - k) * columns + last - k];
            diagonal[k] = d * d * mean;
            for i in 0..k {
                out[k * columns + i] = lower[(last - i) * columns + last - k] / d;
            }
        }
        Factor {
            columns,
            lower: out,
            diagonal,
        }
    }
}

/// Replaces the lower triangle of `a`, [n, n], by its Cholesky factor; false if `a` is not positive definite.
fn cholesky(isa: Isa, pool: &ThreadPool, a: &mut [f32], n: usize) -> bool {
    let mut panel = Vec::new();
    for first in (0..n).step_by(PANEL) {
        let end = n.min(first + PANEL);
        let width = end - first;
        // What the columns before contribute, to all rows from `first` on.
        panel.clear();
        for row in first..end {
            panel.extend_from_slice(&a[row * n..row * n + first]);
        }
        if first > 0 {
            let rows = &mut a[first * n..];
            pool.for_each_chunk_mut(rows, 4 * n, |_, rows| {
                compiled_for(
                    isa,
                    Subtract {
                        rows,
                        n,
                        first,
                        width,
                        panel: &panel,
                    },
                );
            });
        }
        // The diagonal block.
        for j in first..end {
            for i in j..end {
                let mut sum = f64::from(a[i * n + j]);
                for m in first..j {
                    sum -= f64::from(a[i * n + m]) * f64::from(a[j * n + m]);
                }
                if i == j {
                    if sum.is_nan() || sum <= 1e-9 {
                        return false;
                    }
                    a[j * n + j] = sum.sqrt() as f32;
                } else {
                    a[i * n + j] = (sum / f64::from(a[j * n + j])) as f32;
                }
            }
        }
        // The rows below it.
        let mut block = Vec::with_capacity(width * width);
        for row in first..end {
            block.extend_from_slice(&a[row * n + first..row * n + end]);
        }
        let below = &mut a[end * n..];
        pool.for_each_chunk_mut(below, 8 * n, |_, rows| {
            for row in rows.chunks_exact_mut(n) {
                let row = &mut row[first..end];
                for j in 0..width {
                    let mut sum = row[j];
                    for m in 0..j {
                        sum -= row[m] * block[j * width + m];
                    }
                    row[j] = sum / block[j * width + j];
                }
            }
        });
    }
    true
}

/// `rows[.., first..first + width] -= rows[.., ..first] panelᵀ`.
struct Subtract<'a> {
    rows: &'a mut [f32],
    n: usize,
    first: usize,
    width: usize,
    panel: &'a [f32],
}

impl Work for Subtract<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for row in self.rows.chunks_exact_mut(self.n) {
            let (before, rest) = row.split_at_mut(self.first);
            let targets = &mut rest[..self.width];
            for (pair, targets) in targets.chunks_mut(4).enumerate() {
                let mut sums = [[0.0f32; 16]; 4];
                let panels: [&[f32]; 4] = std::array::from_fn(|i| {
                    let row = (4 * pair + i).min(self.width - 1);
                    &self.panel[row * self.first..(row + 1) * self.first]
                });
                // `first` is a multiple of the panel's width, so of 16.
                for (index, x) in before.as_chunks::<16>().0.iter().enumerate() {
                    for (sums, panel) in sums.iter_mut().zip(&panels) {
                        let y: &[f32; 16] = panel[16 * index..16 * index + 16]
                            .try_into()
                            .expect("16 long");
                        for lane in 0..16 {
                            sums[lane] += x[lane] * y[lane];
                        }
                    }
                }
                for (target, sums) in targets.iter_mut().zip(&sums) {
                    *target -= sums.iter().sum::<f32>();
                }
            }
        }
    }
}

/// Rows of `data` by index, for jobs that write several buffers.
pub(crate) fn pieces<T>(data: &mut [T], length: usize) -> DisjointPieces<'_, T> {
    DisjointPieces::new(data, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_gives_the_matrix_back() {
        let (n, tokens) = (150, 400);
        let mut random = ondine_fixtures::Random::new(7);
        let x: Vec<f32> = (0..n * tokens).map(|_| random.normal()).collect();
        let pool = ThreadPool::new(2);
        for isa in [Isa::Scalar, Isa::detect()] {
            let mut gram = vec![0.0; n * n];
            add_gram(isa, &pool, &x, n, &mut gram);
            for (i, j) in [(0, 0), (3, 77), (140, 149), (9, 8)] {
                let expected: f32 = x.chunks(n).map(|x| x[i] * x[j]).sum();
                let (i, j) = (i.min(j), i.max(j));
                assert!((gram[i * n + j] - expected).abs() < 1e-2, "{i} {j}");
            }
            let factor = Factor::new(isa, &pool, &gram, n, 0.0);
            // H_ij = Σ_k d_k² s_ki s_kj with s_kk = 1.
            let s = |k: usize, i: usize| if k == i { 1.0 } else { factor.lower[k * n + i] };
            for (i, j) in [(0, 0), (3, 77), (140, 149), (149, 149)] {
                let found: f32 = (0..n).map(|k| factor.diagonal[k] * s(k, i) * s(k, j)).sum();
                let expected = gram[i * n + j];
                assert!(
                    (found - expected).abs() < 0.05,
                    "{i} {j}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_singular_matrix_is_damped() {
        let pool = ThreadPool::new(1);
        let factor = Factor::new(Isa::Scalar, &pool, &[1.0; 64], 8, 0.0);
        assert!(factor.diagonal.iter().all(|d| d.is_finite() && *d > 0.0));
    }
}
