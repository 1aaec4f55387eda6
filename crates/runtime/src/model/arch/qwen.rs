//! Qwen2 and Qwen2.5 (biases on Q, K, V), Qwen3 (norms on queries and keys), Qwen3-MoE.
//!
//! Qwen Team 2024 (arXiv 2412.15115) and 2025 (arXiv 2505.09388).

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe_qwen2(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    describe(model, false)
}

pub(super) fn describe_qwen3(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    describe(model, true)
}

fn describe(model: &Builder<'_>, normed: bool) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.rms_norm("output_norm", model.embedding)?;
    model.model(output_norm, |layer| {
        let mut attention = layer.attention()?;
        attention.rope = Some(layer.rope(RopeStyle::Halves)?);
        if normed {
            attention.query_key_norm = Some(layer.query_key_norm(true)?);
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
