//! Gemma 2 (soft caps, every second layer local) and Gemma 3 (norms on queries and keys, five of
//! six layers local with their own rotary base).
//!
//! Gemma Team 2024 (arXiv 2408.00118) and 2025 (arXiv 2503.19786). The norms' "1 +" is folded into
//! the weights by the converter.

use super::super::builder::{Builder, LayerBuilder};
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe_gemma2(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let mut spec = describe(model, |layer| {
        let mut attention = layer.attention()?;
        attention.rope = Some(layer.rope(RopeStyle::Halves)?);
        attention.softcap = positive(model.float("attn_logit_softcapping")?.or(Some(50.0)));
        attention.window = layer.window(2)?;
        attention.scale = attention_scale(model, &attention, 46)?;
        Ok(attention)
    })?;
    spec.logit_softcap = positive(model.float("final_logit_softcapping")?.or(Some(30.0)));
    Ok(spec)
}

pub(super) fn describe_gemma3(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let mut spec = describe(model, |layer| {
        let mut attention = layer.attention()?;
        let mut rope = layer.rope(RopeStyle::Halves)?;
        attention.window = layer.window(6)?;
        if attention.window.is_some() {
            rope.base = model.float_or("rope.freq_base_swa", 10_000.0)?;
            rope.frequency_scale = 1.0;
        }
        attention.rope = Some(rope);
        attention.query_key_norm = Some(layer.query_key_norm(true)?);
        attention.scale = attention_scale(model, &attention, 62)?;
        Ok(attention)
    })?;
    spec.logit_softcap = positive(model.float("final_logit_softcapping")?);
    Ok(spec)
}

fn describe(
    model: &Builder<'_>,
    attention: impl Fn(LayerBuilder<'_, '_>) -> Result<Attention, ModelFileError>,
) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.rms_norm("output_norm", model.embedding)?;
    let mut spec = model.model(output_norm, |layer| {
        let mut described = layer.layer(
            layer.rms_norm("attn_norm")?,
            Mixer::Attention(attention(layer)?),
            layer.rms_norm("ffn_norm")?,
            FeedForward::Gated(layer.gated(Activation::GeluTanh)?),
        );
        described.mixer_post_norm = Some(layer.rms_norm("post_attention_norm")?);
        described.feed_forward_post_norm = Some(layer.rms_norm("post_ffw_norm")?);
        Ok(described)
    })?;
    spec.embedding_scale = (model.embedding as f32).sqrt();
    Ok(spec)
}

/// The declared scale, else one over the root of the head size. The 27B models scale by the
/// embedding's share of a head instead; they are known by their number of layers.
fn attention_scale(
    model: &Builder<'_>,
    attention: &Attention,
    layers_of_27b: usize,
) -> Result<f32, ModelFileError> {
    if let Some(scale) = positive(model.float("attention.scale")?) {
        return Ok(scale);
    }
    let dim = if model.layers == layers_of_27b {
        model.embedding / attention.heads
    } else {
        attention.key_dim
    };
    Ok(1.0 / (dim as f32).sqrt())
}

fn positive(value: Option<f32>) -> Option<f32> {
    value.filter(|&value| value > 0.0)
}
