//! Llama 2 and 3, Mistral (with its window, where declared), SmolLM2, TinyLlama; Mixtral with its
//! experts.
//!
//! Touvron et al. 2023 (arXiv 2302.13971); Llama 3.1's frequency factors come as `rope_freqs`.

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.rms_norm("output_norm", model.embedding)?;
    model.model(output_norm, |layer| {
        let mut attention = layer.attention()?;
        let mut rope = layer.rope(RopeStyle::Adjacent)?;
        rope.factors = layer.rope_factors(rope.dimensions)?;
        attention.rope = Some(rope);
        attention.window = model
            .optional("attention.sliding_window", u64::from(u32::MAX))?
            .filter(|&window| window > 0);
        if let Some(scale) = model.float("attention.scale")? {
            attention.scale = scale;
        }
        let feed_forward = if model.has(&layer.name("ffn_gate_inp.weight")) {
            FeedForward::Experts(layer.experts(true)?)
        } else {
            FeedForward::Gated(layer.gated(Activation::Silu)?)
        };
        Ok(layer.layer(
            layer.rms_norm("attn_norm")?,
            Mixer::Attention(attention),
            layer.rms_norm("ffn_norm")?,
            feed_forward,
        ))
    })
}
