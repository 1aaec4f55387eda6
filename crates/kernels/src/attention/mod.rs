//! Causal attention over keys and values that are kept in pages.
//!
//! Work is cut into items by sequence, head of keys, rows and, where that gives too few of them, stretches of the
//! sequence; all cuts depend on shapes alone, so the result does not depend on the number of threads. An item with few
//! rows ([`few`]) is bound by reading keys and values: one pass, each read once for all query heads that share it. An
//! item with many rows ([`tile`]) is bound by arithmetic: a matrix product of all its rows with each page. Both keep
//! a running maximum and sum per row (online softmax, Milakov and Gimelshein 2018; Dao et al. 2022).

mod convert;
mod few;
mod numeric;
mod page;
mod plan;
mod products;
mod stored;
mod tile;

#[cfg(test)]
mod tests;

use std::ops::Range;

pub use page::{KvError, KvPage, KvShape, KvType, PAGE_TOKENS};

use crate::Context;

/// The attention of one layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a> {
    /// Heads of queries; a multiple of `kv_heads`. Head `h` reads keys and values of head `h * kv_heads / heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a query or key.
    pub head_dim_k: usize,
    /// Elements of a value.
    pub head_dim_v: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`, after the scale and before bias and mask.
    pub softcap: Option<f32>,
    /// A query sees this many positions, its own included; 0 counts as 1.
    pub window: Option<usize>,
    /// ALiBi's slopes, shape `[heads]`: scores get `-slope * distance` added.
    pub alibi_slopes: Option<&'a [f32]>,
}

/// The queries of one sequence and the pages that they look at.
#[derive(Clone, Debug)]
pub struct AttentionJob<'a> {
    /// The sequence's rows of the queries and the result.
    pub rows: Range<usize>,
    /// Position of the first row; the others follow it.
    pub first_position: usize,
    /// The sequence's pages, in order, the positions of `rows` included.
    pub pages: &'a [&'a KvPage],
    /// Position of the first page's slot 0. What lies before it is not seen.
    pub pages_start: usize,
    /// Positions of the sequence: `first_position + rows.len()`.
    pub len: usize,
}

/// Bound on the normalised mean square error of [`attention`] against exact arithmetic on the stored keys and values,
/// for [`KvType::F32`].
pub const ATTENTION_ERROR_F32: f64 = 1e-10;

/// The same bound for [`KvType::F16`] and [`KvType::Q8_0`]. Items with many rows round queries, keys, values and
/// weights to 12 to 16 bits; products and sums of them are exact.
pub const ATTENTION_ERROR: f64 = 1e-6;

/// `out = softmax(scale * q kᵀ) v`, where a query at position `p` sees positions up to `p`, and with a window `w` only
/// those after `p - w`. `q` has shape `[rows][heads][head_dim_k]`, `out` `[rows][heads][head_dim_v]`; rows of no job
/// are left alone. The result has the same bits for any number of threads and on any instruction set.
///
/// # Panics
/// If lengths, pages and params do not belong together, or two jobs have a row in common.
pub fn attention(
    context: &Context<'_>,
    params: &AttentionParams<'_>,
    jobs: &[AttentionJob<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    check(params, jobs, q, out);
    plan::run(context, params, jobs, q, out);
}

fn check(params: &AttentionParams<'_>, jobs: &[AttentionJob<'_>], q: &[f32], out: &[f32]) {
    let AttentionParams {
        heads,
        kv_heads,
        head_dim_k,
        head_dim_v,
        ..
    } = *params;
    assert!(
        kv_heads > 0 && head_dim_k > 0 && head_dim_v > 0,
        "attention without heads"
    );
    assert!(
        heads > 0 && heads.is_multiple_of(kv_heads),
        "{heads} heads over {kv_heads}"
    );
    assert!(
        params
            .alibi_slopes
            .is_none_or(|slopes| slopes.len() == heads),
        "one slope for each head"
    );
    assert!(q.len().is_multiple_of(heads * head_dim_k), "queries");
    let rows = q.len() / (heads * head_dim_k);
    assert_eq!(out.len(), rows * heads * head_dim_v, "result");
    for job in jobs {
        assert!(
            job.rows.start <= job.rows.end && job.rows.end <= rows,
            "rows"
        );
        assert_eq!(job.len, job.first_position + job.rows.len(), "positions");
        assert!(
            job.rows.is_empty()
                || (job.pages_start <= job.first_position
                    && job.len <= job.pages_start + job.pages.len() * PAGE_TOKENS),
            "pages of all positions"
        );
        let first = job.pages.first().map(|page| page.shape());
        for page in job.pages {
            let shape = page.shape();
            assert!(
                Some(shape) == first
                    && (shape.kv_heads, shape.head_dim_k, shape.head_dim_v)
                        == (kv_heads, head_dim_k, head_dim_v),
                "pages of another shape"
            );
        }
    }
}
