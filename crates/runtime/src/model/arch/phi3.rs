//! Phi-3 and Phi-4-mini: fused QKV and gate/up, long-rope.
//!
//! Microsoft 2024 (arXiv 2404.14219); long-rope: Ding et al. 2024 (arXiv 2402.13753). The sliding
//! window that some files declare is not applied, as in llama.cpp: the converted values are unreliable.

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.rms_norm("output_norm", model.embedding)?;
    model.model(output_norm, |layer| {
        let mut attention = layer.attention()?;
        let mut rope = layer.rope(RopeStyle::Halves)?;
        rope.factors = layer.rope_factors(rope.dimensions)?;
        attention.rope = Some(rope);
        let (width, embedding) = (layer.feed_forward_width()?, model.embedding);
        let gate_up = layer.name("ffn_up");
        let feed_forward = FeedForward::Gated(GatedFeedForward {
            gate: model.rows_of(&gate_up, 2 * width, 0, width, embedding)?,
            up: model.rows_of(&gate_up, 2 * width, width, width, embedding)?,
            down: layer.linear("ffn_down", embedding, width)?,
            activation: Activation::Silu,
        });
        Ok(layer.layer(
            layer.rms_norm("attn_norm")?,
            Mixer::Attention(attention),
            layer.rms_norm("ffn_norm")?,
            feed_forward,
        ))
    })
}
