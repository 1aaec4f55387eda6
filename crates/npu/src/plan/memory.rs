//! Bytes of memory that a model takes on a device.

use ondine_runtime::model::{FeedForward, GatedFeedForward, Linear, Mixer, ModelSpec};

use crate::profile::{Precision, Profile};
use crate::program::cache_bytes;

/// Bytes that a tokenizer keeps per token of the vocabulary: text, hash entry, merge and score.
const VOCABULARY_BYTES: u64 = 200;

/// Bytes of memory by use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) weights: u64,
    pub(super) kv: u64,
    /// Runtime and tokenizer.
    pub(super) other: u64,
}

impl Memory {
    pub(super) fn total(&self) -> u64 {
        self.weights + self.kv + self.other
    }
}

/// What `spec` takes at a context of `context` tokens.
pub(super) fn of(
    spec: &ModelSpec,
    profile: &Profile,
    precision: &Precision,
    context: usize,
) -> Memory {
    Memory {
        weights: weights(spec, profile, precision),
        kv: cache_bytes(spec, profile) * context as u64,
        other: profile.runtime_bytes + VOCABULARY_BYTES * spec.vocabulary as u64,
    }
}

fn weights(spec: &ModelSpec, profile: &Profile, precision: &Precision) -> u64 {
    let bytes =
        |linear: &Linear, bits: u32| linear.rows as u64 * precision.row_bytes(bits, linear.columns);
    let matrix = |linear: &Linear| bytes(linear, precision.weight_bits);
    let gated =
        |gated: &GatedFeedForward| matrix(&gated.gate) + matrix(&gated.up) + matrix(&gated.down);
    let layers = spec.layers.iter().map(|layer| {
        let mixer = match &layer.mixer {
            Mixer::Attention(attention) => {
                matrix(&attention.query)
                    + matrix(&attention.key)
                    + matrix(&attention.value)
                    + matrix(&attention.output)
            }
            Mixer::ShortConvolution(convolution) => {
                matrix(&convolution.input) + matrix(&convolution.output)
            }
        };
        let feed_forward = match &layer.feed_forward {
            FeedForward::Gated(network) => gated(network),
            FeedForward::Plain { up, down, .. } => matrix(up) + matrix(down),
            FeedForward::Experts(experts) => {
                matrix(&experts.router)
                    + experts.experts.iter().map(gated).sum::<u64>()
                    + experts.shared.as_ref().map_or(0, gated)
            }
        };
        mixer + feed_forward + 4 * spec.embedding as u64
    });
    let embedding = bytes(&spec.token_embedding, precision.embedding_bits);
    let head = bytes(&spec.output, precision.head_bits);
    // One table serves both only where it is stored once and in one form.
    let shared = spec.tied_output
        && !profile.copies_tied_embedding
        && precision.embedding_bits == precision.head_bits;
    layers.sum::<u64>() + head + if shared { 0 } else { embedding }
}
