//! LFM2: gated short convolutions, with attention in the layers that have key/value heads.
//!
//! Liquid AI 2025 (arXiv 2511.23404). The output norm is stored as `token_embd_norm`.

use super::super::builder::{Builder, LayerBuilder};
use super::super::spec::*;
use crate::gguf::ModelFileError;

const MOST_TAPS: u64 = 64;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.rms_norm("token_embd_norm", model.embedding)?;
    model.model(output_norm, |layer| {
        let kv_heads = model.per_layer("attention.head_count_kv", layer.index, 1 << 22)?;
        let mixer = if kv_heads == Some(0) {
            Mixer::ShortConvolution(convolution(model, layer)?)
        } else {
            let mut attention = layer.attention()?;
            attention.rope = Some(layer.rope(RopeStyle::Halves)?);
            attention.query_key_norm = Some(layer.query_key_norm(true)?);
            attention.window = model
                .optional("attention.sliding_window", u64::from(u32::MAX))?
                .filter(|&window| window > 0);
            Mixer::Attention(attention)
        };
        Ok(layer.layer(
            layer.rms_norm("attn_norm")?,
            mixer,
            layer.rms_norm("ffn_norm")?,
            FeedForward::Gated(layer.gated(Activation::Silu)?),
        ))
    })
}

fn convolution(
    model: &Builder<'_>,
    layer: LayerBuilder<'_, '_>,
) -> Result<ShortConvolution, ModelFileError> {
    let taps = model.required("shortconv.l_cache", MOST_TAPS)?;
    if taps < 2 {
        return Err(model.wrong("shortconv.l_cache", "is less than two"));
    }
    let embedding = model.embedding;
    let kernel = layer.name("shortconv.conv.weight");
    model.check_shape(&kernel, embedding, taps)?;
    Ok(ShortConvolution {
        taps,
        input: layer.linear("shortconv.in_proj", 3 * embedding, embedding)?,
        kernel,
        output: layer.linear("shortconv.out_proj", embedding, embedding)?,
    })
}
