//! BLOOM: ALiBi positions, LayerNorm with biases, fused QKV.
//!
//! BigScience 2022 (arXiv 2211.05100).

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

/// Press et al. 2021 give slopes from 2^-8; the file does not repeat it.
const ALIBI_MAX_BIAS: f32 = 8.0;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.layer_norm("output_norm", model.embedding)?;
    let mut spec = model.model(output_norm, |layer| {
        let mut attention = layer.attention()?;
        attention.alibi_max_bias = Some(ALIBI_MAX_BIAS);
        Ok(layer.layer(
            layer.layer_norm("attn_norm")?,
            Mixer::Attention(attention),
            layer.layer_norm("ffn_norm")?,
            layer.plain(Activation::GeluTanh)?,
        ))
    })?;
    spec.embedding_norm = Some(model.layer_norm("token_embd_norm", model.embedding)?);
    Ok(spec)
}
