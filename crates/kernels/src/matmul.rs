//! Matrix products: packed weights times activations.

use crate::arch::threads::DisjointPieces;
use crate::ops::{self, Activation};
use crate::{Activations, Isa, PackedMatrix, ThreadPool};

/// Where a kernel runs.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// The threads.
    pub pool: &'a ThreadPool,
}

/// What is done with a product `W x`: `out = (accumulate ? out : 0) + scale * (W x + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// [rows]
    pub bias: Option<&'a [f32]>,
    /// Factor of the product and the bias.
    pub scale: f32,
    /// Whether the result is added to what `out` holds.
    pub accumulate: bool,
}

impl Default for Epilogue<'_> {
    /// `out = W x`.
    fn default() -> Self {
        Epilogue {
            bias: None,
            scale: 1.0,
            accumulate: false,
        }
    }
}

/// One matrix of a [`matmul_group`].
#[derive(Debug)]
pub struct MatmulJob<'a> {
    /// The weights, [rows, columns].
    pub w: &'a PackedMatrix,
    /// [tokens, rows]
    pub out: &'a mut [f32],
    /// What is done with the product.
    pub epilogue: Epilogue<'a>,
}

/// `out = epilogue(W x)` for every token; `out` is [tokens, rows].
///
/// # Panics
/// If the shapes disagree.
pub fn matmul(
    context: &Context<'_>,
    w: &PackedMatrix,
    x: &Activations,
    out: &mut [f32],
    epilogue: &Epilogue<'_>,
) {
    let job = MatmulJob {
        w,
        out,
        epilogue: *epilogue,
    };
    matmul_group(context, &mut [job], x);
}

/// Several matrices times the same activations, as one job of the pool.
///
/// # Panics
/// If the shapes disagree.
pub fn matmul_group(context: &Context<'_>, jobs: &mut [MatmulJob<'_>], x: &Activations) {
    for job in jobs {
        check(job.w, x, job.out, job.epilogue.bias);
        let product = product(context, job.w, x);
        for (token, out) in job.out.chunks_exact_mut(job.w.rows()).enumerate() {
            for (row, out) in out.iter_mut().enumerate() {
                let y =
                    product[row * x.tokens() + token] + job.epilogue.bias.map_or(0.0, |b| b[row]);
                let before = if job.epilogue.accumulate { *out } else { 0.0 };
                *out = y.mul_add(job.epilogue.scale, before);
            }
        }
    }
}

/// `out = activation(G x) * (U x)` for every token, as one job of the pool; `out` is [tokens, rows].
///
/// # Panics
/// If the shapes disagree.
pub fn matmul_gated(
    context: &Context<'_>,
    gate: &PackedMatrix,
    up: &PackedMatrix,
    x: &Activations,
    activation: Activation,
    out: &mut [f32],
) {
    assert_eq!(gate.rows(), up.rows(), "gate and up differ in rows");
    let mut gated = vec![0.0; out.len()];
    matmul(context, gate, x, &mut gated, &Epilogue::default());
    let mut upped = vec![0.0; out.len()];
    matmul(context, up, x, &mut upped, &Epilogue::default());
    ops::gated_product(context.isa, activation, &gated, &upped, out);
}

fn check(w: &PackedMatrix, x: &Activations, out: &[f32], bias: Option<&[f32]>) {
    assert_eq!(
        w.cols(),
        x.cols(),
        "a matrix's columns and its input's length"
    );
    assert_eq!(
        out.len(),
        w.rows() * x.tokens(),
        "the output of a matrix of {} rows for {} tokens",
        w.rows(),
        x.tokens()
    );
    if let Some(bias) = bias {
        assert_eq!(
            bias.len(),
            w.rows(),
            "a bias's length and its matrix's rows"
        );
    }
}

/// [rows, tokens]
fn product(context: &Context<'_>, w: &PackedMatrix, x: &Activations) -> Vec<f32> {
    let tokens = x.tokens();
    let mut out = vec![0.0; w.rows() * tokens];
    if out.is_empty() {
        return out;
    }
    let pieces = DisjointPieces::new(&mut out, 16 * tokens);
    context.pool.run(pieces.len(), &|index| {
        let mut row = vec![0.0; w.cols()];
        for (offset, out) in pieces.take(index).chunks_exact_mut(tokens).enumerate() {
            let found = w.dequantize_row(index * 16 + offset, &mut row);
            debug_assert!(found.is_ok());
            for (token, out) in out.iter_mut().enumerate() {
                let x = &x.floats()[token * w.cols()..][..w.cols()];
                *out = dot(&row, x);
            }
        }
    });
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        sums[index % 16] = a.mul_add(*b, sums[index % 16]);
    }
    sums.iter().sum()
}
