//! Causal attention over keys and values that are kept in pages.

mod page;

use std::ops::Range;

pub use page::{KvError, KvPage, KvShape, KvType, PAGE_TOKENS};

use crate::{Isa, ThreadPool};

/// What attention runs on.
#[derive(Clone, Copy, Debug)]
pub struct AttentionContext<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// The threads.
    pub pool: &'a ThreadPool,
}

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
    /// A query sees this many positions, its own included.
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

/// `out = softmax(scale * q kᵀ) v`, where a query at position `p` sees positions up to `p`, and with a window `w` only
/// those after `p - w`. `q` has shape `[rows][heads][head_dim_k]`, `out` `[rows][heads][head_dim_v]`; rows of no job
/// are left alone.
///
/// # Panics
/// If lengths, pages and params do not belong together, or two jobs have a row in common.
pub fn attention(
    context: &AttentionContext<'_>,
    params: &AttentionParams<'_>,
    jobs: &[AttentionJob<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    let _ = context;
    let group = params.heads / params.kv_heads;
    for job in jobs {
        for row in job.rows.clone() {
            let position = job.first_position + row - job.rows.start;
            let first = params
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window))
                .max(job.pages_start);
            for head in 0..params.heads {
                let query =
                    &q[(row * params.heads + head) * params.head_dim_k..][..params.head_dim_k];
                let out = &mut out[(row * params.heads + head) * params.head_dim_v..]
                    [..params.head_dim_v];
                let kv_head = head / group;
                let mut scores = Vec::new();
                for key in first..=position {
                    let page = job.pages[(key - job.pages_start) / PAGE_TOKENS];
                    let keys = page.read_k((key - job.pages_start) % PAGE_TOKENS);
                    let keys = &keys[kv_head * params.head_dim_k..];
                    let mut score =
                        query.iter().zip(keys).map(|(q, k)| q * k).sum::<f32>() * params.scale;
                    if let Some(cap) = params.softcap {
                        score = cap * (score / cap).tanh();
                    }
                    if let Some(slopes) = params.alibi_slopes {
                        score -= slopes[head] * (position - key) as f32;
                    }
                    scores.push(score);
                }
                crate::ops::softmax(Isa::Scalar, &mut scores);
                out.fill(0.0);
                for (key, weight) in (first..=position).zip(scores) {
                    let page = job.pages[(key - job.pages_start) / PAGE_TOKENS];
                    let values = page.read_v((key - job.pages_start) % PAGE_TOKENS);
                    let values = &values[kv_head * params.head_dim_v..];
                    for (out, value) in out.iter_mut().zip(values) {
                        *out += weight * value;
                    }
                }
            }
        }
    }
}
