//! Working buffers, kept from one call to the next.

use ondine_kernels::Activations;

use crate::model::{FeedForward, Mixer, ModelSpec};

/// All buffers hold one row per token of the chunk.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) rows: usize,
    /// Residual stream, [rows, embedding].
    pub(super) hidden: Vec<f32>,
    /// Normed input of a mixer or feed-forward network, [rows, embedding].
    pub(super) normed: Vec<f32>,
    /// Output of a mixer or feed-forward network before it is added, [rows, embedding].
    pub(super) branch: Vec<f32>,
    /// Queries, [rows, heads × key_dim].
    pub(super) query: Vec<f32>,
    /// Keys, [rows, kv_heads × key_dim].
    pub(super) key: Vec<f32>,
    /// Values, [rows, kv_heads × value_dim].
    pub(super) value: Vec<f32>,
    /// Attention's output, or a convolution's, [rows, heads × value_dim].
    pub(super) mixed: Vec<f32>,
    /// Between the matrices of a feed-forward network, [rows, width].
    pub(super) inner: Vec<f32>,
    /// Logits, [rows asked for together, vocabulary].
    pub(super) logits: Vec<f32>,
    /// A layer input's quantised form, shared by the matrices that read it.
    pub(super) input: Activations,
    /// The quantised form of what `mixed` or `inner` hold.
    pub(super) inner_input: Activations,
}

impl Scratch {
    /// Makes every buffer long enough for `rows` tokens of `spec`.
    pub(super) fn resize(&mut self, spec: &ModelSpec, rows: usize) {
        let Widths {
            embedding,
            query,
            key,
            value,
            mixed,
            inner,
        } = Widths::of(spec);
        self.rows = rows;
        for (buffer, width) in [
            (&mut self.hidden, embedding),
            (&mut self.normed, embedding),
            (&mut self.branch, embedding),
            (&mut self.query, query),
            (&mut self.key, key),
            (&mut self.value, value),
            (&mut self.mixed, mixed),
            (&mut self.inner, inner),
        ] {
            // Exactly the length, so that a whole buffer is [rows, width] for its widest user.
            buffer.resize(rows * width, 0.0);
        }
    }

    /// Bytes of one row of all buffers, the quantised forms included.
    pub(super) fn bytes_per_row(spec: &ModelSpec) -> usize {
        let widths = Widths::of(spec);
        let inputs = widths.embedding + widths.inner.max(widths.mixed);
        let floats = 3 * widths.embedding
            + widths.query
            + widths.key
            + widths.value
            + widths.mixed
            + widths.inner;
        // A block of 32 quantised inputs takes 48 bytes.
        floats * size_of::<f32>() + inputs * 3 / 2
    }

    pub(super) fn bytes(&self) -> u64 {
        let floats = [
            &self.hidden,
            &self.normed,
            &self.branch,
            &self.query,
            &self.key,
            &self.value,
            &self.mixed,
            &self.inner,
            &self.logits,
        ];
        let floats: usize = floats.iter().map(|buffer| buffer.capacity()).sum();
        (floats * size_of::<f32>()) as u64
    }
}

/// Widths of the widest users of the buffers.
struct Widths {
    embedding: usize,
    query: usize,
    key: usize,
    value: usize,
    mixed: usize,
    inner: usize,
}

impl Widths {
    fn of(spec: &ModelSpec) -> Self {
        let mut query = 0;
        let mut key = 0;
        let mut value = 0;
        let mut mixed = 0;
        let mut inner = 0;
        for layer in &spec.layers {
            match &layer.mixer {
                Mixer::Attention(a) => {
                    query = query.max(a.heads * a.key_dim);
                    key = key.max(a.kv_heads * a.key_dim);
                    value = value.max(a.kv_heads * a.value_dim);
                    mixed = mixed.max(a.heads * a.value_dim);
                }
                Mixer::ShortConvolution(_) => {
                    query = query.max(3 * spec.embedding);
                    mixed = mixed.max(spec.embedding);
                }
            }
            inner = inner.max(match &layer.feed_forward {
                FeedForward::Gated(gated) => gated.gate.rows,
                FeedForward::Plain { up, .. } => up.rows,
                FeedForward::Experts(experts) => {
                    let all = experts.experts.iter().chain(&experts.shared);
                    let width = all.map(|expert| expert.gate.rows).max().unwrap_or(0);
                    width.max(experts.router.rows)
                }
            });
        }
        Widths {
            embedding: spec.embedding,
            query,
            key,
            value,
            mixed,
            inner,
        }
    }
}
