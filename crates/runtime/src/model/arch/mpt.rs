//! MPT: ALiBi positions, clamped projections, LayerNorm without biases.
//!
//! MosaicML 2023.

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let clamp = model.float("attention.clamp_kqv")?;
    let max_bias = model.float("attention.max_alibi_bias")?;
    let output_norm = model.layer_norm("output_norm", model.embedding)?;
    let mut spec = model.model(output_norm, |layer| {
        if model.has(&layer.name("attn_q_norm.weight")) || model.has(&layer.name("ffn_act.scales"))
        {
            return Err(model.wrong(
                "attention",
                "has query/key norms or activation scales, which are not supported for mpt",
            ));
        }
        let mut attention = layer.attention()?;
        attention.clamp = clamp.filter(|&clamp| clamp > 0.0);
        attention.alibi_max_bias = max_bias.filter(|&bias| bias > 0.0);
        Ok(layer.layer(
            layer.layer_norm("attn_norm")?,
            Mixer::Attention(attention),
            layer.layer_norm("ffn_norm")?,
            layer.plain(Activation::GeluTanh)?,
        ))
    })?;
    if let Some(positions) = model.rows_in("position_embd.weight") {
        spec.position_embedding =
            Some(model.linear("position_embd", positions, model.embedding)?);
    }
    Ok(spec)
}
