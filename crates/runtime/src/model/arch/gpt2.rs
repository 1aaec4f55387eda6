//! GPT-2: learnt positions, LayerNorm with biases, fused QKV.
//!
//! Radford et al. 2019.

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.layer_norm("output_norm", model.embedding)?;
    let mut spec = model.model(output_norm, |layer| {
        Ok(layer.layer(
            layer.layer_norm("attn_norm")?,
            Mixer::Attention(layer.attention()?),
            layer.layer_norm("ffn_norm")?,
            layer.plain(Activation::GeluTanh)?,
        ))
    })?;
    let positions = model.rows_in("position_embd.weight").unwrap_or(0);
    spec.position_embedding = Some(model.linear("position_embd", positions, model.embedding)?);
    Ok(spec)
}
