//! IBM Granite 3 and its mixture of experts: Llama with scales on embedding, attention, residual
//! and logits.
//!
//! IBM 2024, "Granite 3.0 Language Models".

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let rotated = model
        .metadata()
        .boolean(&format!("{}.rope.scaling.finetuned", model.architecture))?
        .unwrap_or(true);
    let residual_scale = nonzero(model.float("residual_scale")?).unwrap_or(1.0);
    let output_norm = model.rms_norm("output_norm", model.embedding)?;
    let mut spec = model.model(output_norm, |layer| {
        let mut attention = layer.attention()?;
        if rotated {
            let mut rope = layer.rope(RopeStyle::Adjacent)?;
            rope.factors = layer.rope_factors(rope.dimensions)?;
            attention.rope = Some(rope);
        }
        if let Some(scale) = nonzero(model.float("attention.scale")?) {
            attention.scale = scale;
        }
        let feed_forward = if model.has(&layer.name("ffn_gate_inp.weight")) {
            let mut experts = layer.experts(true)?;
            let shared = model.optional("expert_shared_feed_forward_length", 1 << 22)?;
            if let Some(width) = shared.filter(|&width| width > 0) {
                experts.shared = Some(layer.gated_named("_shexp", width, Activation::Silu)?);
            }
            FeedForward::Experts(experts)
        } else {
            FeedForward::Gated(layer.gated(Activation::Silu)?)
        };
        let mut described = layer.layer(
            layer.rms_norm("attn_norm")?,
            Mixer::Attention(attention),
            layer.rms_norm("ffn_norm")?,
            feed_forward,
        );
        described.residual_scale = residual_scale;
        Ok(described)
    })?;
    spec.embedding_scale = nonzero(model.float("embedding_scale")?).unwrap_or(1.0);
    spec.logit_scale = match nonzero(model.float("logit_scale")?) {
        Some(scale) => 1.0 / scale,
        None => return Err(model.wrong("logit_scale", "is missing or zero")),
    };
    Ok(spec)
}

fn nonzero(value: Option<f32>) -> Option<f32> {
    value.filter(|&value| value != 0.0)
}
