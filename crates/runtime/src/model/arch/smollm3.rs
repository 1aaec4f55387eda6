//! SmolLM3: Llama with layers without positions (NoPE), every fourth unless the file lists them.
//!
//! Hugging Face 2025; NoPE layers: Yang et al. 2025 (arXiv 2501.18795).

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

const LAYERS_PER_NOPE: usize = 4;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.rms_norm("output_norm", model.embedding)?;
    model.model(output_norm, |layer| {
        let mut attention = layer.attention()?;
        let rotated = model
            .flag_of_layer("attention.rope_pattern", layer.index)
            .unwrap_or((layer.index + 1) % LAYERS_PER_NOPE != 0);
        if rotated {
            let mut rope = layer.rope(RopeStyle::Adjacent)?;
            rope.factors = layer.rope_factors(rope.dimensions)?;
            attention.rope = Some(rope);
        }
        Ok(layer.layer(
            layer.rms_norm("attn_norm")?,
            Mixer::Attention(attention),
            layer.rms_norm("ffn_norm")?,
            FeedForward::Gated(layer.gated(Activation::Silu)?),
        ))
    })
}
