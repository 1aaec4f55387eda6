//! Tables of the rotary positions, shared by the backends that compute on the processor.

use std::collections::HashMap;

use ondine_kernels::ops::{self, RopeParams, RopeTable, YarnParams};

use super::cpu::read_vector;
use crate::gguf::{ModelFile, ModelFileError};
use crate::model::{Mixer, ModelSpec, Rope, RopeFactors, RopeStyle};

/// The rotation tables of all layers; layers that rotate alike share one.
pub struct RopeTables {
    tables: Vec<RopeTable>,
    of_layer: Vec<Option<usize>>,
    by_context: bool,
}

impl RopeTables {
    /// Tables for positions up to `context`.
    ///
    /// # Errors
    /// When the file's frequency factors are missing or of no use.
    pub fn new(file: &ModelFile, spec: &ModelSpec, context: usize) -> Result<Self, ModelFileError> {
        let mut known: Vec<Rope> = Vec::new();
        let mut tables = Vec::new();
        let mut of_layer = Vec::new();
        let mut vectors = HashMap::new();
        for layer in &spec.layers {
            let rope = match &layer.mixer {
                Mixer::Attention(attention) => attention.rope.as_ref(),
                Mixer::ShortConvolution(_) => None,
            };
            let Some(rope) = rope else {
                of_layer.push(None);
                continue;
            };
            let index = match known.iter().position(|other| other == rope) {
                Some(index) => index,
                None => {
                    known.push(rope.clone());
                    tables.push(table(file, rope, context, &mut vectors)?);
                    known.len() - 1
                }
            };
            of_layer.push(Some(index));
        }
        let by_context = known
            .iter()
            .any(|rope| matches!(rope.factors, RopeFactors::ByContext { .. }));
        Ok(RopeTables {
            tables,
            of_layer,
            by_context,
        })
    }

    /// Whether another context length would rotate differently.
    pub fn depend_on_context(&self) -> bool {
        self.by_context
    }

    /// The table of `layer`, if it rotates.
    pub fn of(&self, layer: usize) -> Option<&RopeTable> {
        self.of_layer[layer].map(|index| &self.tables[index])
    }
}

/// The table of one rotation, for whoever rotates elsewhere.
///
/// # Errors
/// When the model's frequency factors cannot be read.
pub fn rope_table(
    file: &ModelFile,
    rope: &Rope,
    context: usize,
) -> Result<RopeTable, ModelFileError> {
    table(file, rope, context, &mut HashMap::new())
}

fn table(
    file: &ModelFile,
    rope: &Rope,
    context: usize,
    vectors: &mut HashMap<String, Vec<f32>>,
) -> Result<RopeTable, ModelFileError> {
    let name = match &rope.factors {
        RopeFactors::None => None,
        RopeFactors::Always(name) => Some(name),
        RopeFactors::ByContext { short, long } => Some(if context > rope.original_context {
            long
        } else {
            short
        }),
    };
    let factors = match name {
        None => None,
        Some(name) => {
            let factors = match vectors.get(name) {
                Some(factors) => factors.clone(),
                None => read_vector(file, name, rope.dimensions / 2)?,
            };
            if factors
                .iter()
                .any(|&factor| factor == 0.0 || !factor.is_finite())
            {
                return Err(ModelFileError::Tensor {
                    tensor: name.clone(),
                    what: "holds a frequency factor that is zero or not finite".into(),
                });
            }
            vectors.insert(name.clone(), factors.clone());
            Some(factors)
        }
    };
    let params = RopeParams {
        style: match rope.style {
            RopeStyle::Adjacent => ops::RopeStyle::Norm,
            RopeStyle::Halves => ops::RopeStyle::Neox,
        },
        rotary_dims: rope.dimensions,
        frequency_base: rope.base,
        frequency_scale: rope.frequency_scale,
        frequency_factors: factors,
        yarn: Some(YarnParams {
            ext_factor: rope.extrapolation,
            attn_factor: rope.attention_factor,
            beta_fast: rope.beta_fast,
            beta_slow: rope.beta_slow,
            original_context: rope.original_context,
        }),
    };
    Ok(RopeTable::new(&params, context))
}
