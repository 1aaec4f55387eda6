//! OLMoE: sparse mixture of experts, norms over all query and key heads together.
//!
//! Muennighoff et al. 2024 (arXiv 2409.02060).

use super::super::builder::Builder;
use super::super::spec::*;
use crate::gguf::ModelFileError;

pub(super) fn describe(model: &Builder<'_>) -> Result<ModelSpec, ModelFileError> {
    let output_norm = model.rms_norm("output_norm", model.embedding)?;
    model.model(output_norm, |layer| {
        let mut attention = layer.attention()?;
        attention.rope = Some(layer.rope(RopeStyle::Halves)?);
        attention.query_key_norm = Some(layer.query_key_norm(false)?);
        Ok(layer.layer(
            layer.rms_norm("attn_norm")?,
            Mixer::Attention(attention),
            layer.rms_norm("ffn_norm")?,
            FeedForward::Experts(layer.experts(false)?),
        ))
    })
}
