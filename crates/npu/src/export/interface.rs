//! What a compiled graph takes besides tokens: rotations and masks, one for each kind that the layers have.

use ondine_kernels::ops::{RopeTable, alibi_slopes};
use ondine_runtime::backend::rope::rope_table;
use ondine_runtime::gguf::{ModelFile, ModelFileError};
use ondine_runtime::model::{Attention, Mixer, ModelSpec, Rope};

/// Added to the scores of keys that a query must not see: far below any score, and within f16.
pub const HIDDEN: f32 = -30_000.0;

/// The rotations and masks of a model, and which layer takes which.
#[derive(Debug, Clone)]
pub struct Interface {
    /// The different rotations.
    pub ropes: Vec<Rope>,
    /// Which rotation a layer takes.
    pub rope_of_layer: Vec<Option<usize>>,
    /// The different masks.
    pub masks: Vec<MaskKind>,
    /// Which mask a layer takes.
    pub mask_of_layer: Vec<usize>,
}

/// What decides a mask's content and shape, [1, kv_heads or 1, group × tokens, context + tokens].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskKind {
    /// A query sees so many keys.
    pub window: Option<usize>,
    /// Query heads that share a key head.
    pub group: usize,
    /// Key heads, and ALiBi's largest bias: masks differ by head then.
    pub alibi: Option<(usize, f32)>,
}

impl MaskKind {
    /// Of an attention.
    pub fn of(attention: &Attention) -> Self {
        MaskKind {
            window: attention.window,
            group: attention.heads / attention.kv_heads,
            alibi: attention
                .alibi_max_bias
                .map(|largest| (attention.kv_heads, largest)),
        }
    }

    /// Length of the second dimension.
    pub fn heads(&self) -> usize {
        self.alibi.map_or(1, |(kv_heads, _)| kv_heads)
    }

    /// Writes the mask of `tokens` queries of which `used` count, after `past` keys in a buffer of `context`; the
    /// queries' own keys lie behind the buffer.
    pub fn fill(&self, past: usize, used: usize, tokens: usize, context: usize, out: &mut [f32]) {
        let width = context + tokens;
        let slopes = self
            .alibi
            .map(|(kv_heads, largest)| alibi_slopes(kv_heads * self.group, largest));
        out.fill(HIDDEN);
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let token = row % tokens;
            if token >= used {
                // Rows that nobody reads still need one key, or the softmax divides by zero.
                out[context + token] = 0.0;
                continue;
            }
            let position = past + token;
            let first = self
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window));
            out[first.min(past)..past].fill(0.0);
            out[context + first.saturating_sub(past)..=context + token].fill(0.0);
            if let Some(slopes) = &slopes {
                let slope = slopes[row / tokens];
                for (key, score) in out[..past].iter_mut().enumerate() {
                    *score -= slope * (position - key) as f32;
                }
                for (key, score) in out[context..=context + token].iter_mut().enumerate() {
                    *score -= slope * (token - key) as f32;
                }
            }
        }
    }
}

impl Interface {
    /// Of a model; layers without attention take the first mask, which they do not use.
    pub fn of(spec: &ModelSpec) -> Self {
        let mut interface = Interface {
            ropes: Vec::new(),
            rope_of_layer: Vec::new(),
            masks: Vec::new(),
            mask_of_layer: Vec::new(),
        };
        for layer in &spec.layers {
            let Mixer::Attention(attention) = &layer.mixer else {
                interface.rope_of_layer.push(None);
                interface.mask_of_layer.push(0);
                continue;
            };
            let rope = attention
                .rope
                .as_ref()
                .map(|rope| index_of(&mut interface.ropes, rope));
            interface.rope_of_layer.push(rope);
            let mask = index_of(&mut interface.masks, &MaskKind::of(attention));
            interface.mask_of_layer.push(mask);
        }
        interface
    }

    /// The tables of the rotations.
    ///
    /// # Errors
    /// When the model's frequency factors cannot be read.
    pub fn tables(
        &self,
        file: &ModelFile,
        context: usize,
    ) -> Result<Vec<Rotation>, ModelFileError> {
        self.ropes
            .iter()
            .map(|rope| Ok(Rotation::of(&rope_table(file, rope, context)?)))
            .collect()
    }
}

fn index_of<T: PartialEq + Clone>(known: &mut Vec<T>, item: &T) -> usize {
    known
        .iter()
        .position(|other| other == item)
        .unwrap_or_else(|| {
            known.push(item.clone());
            known.len() - 1
        })
}

/// Angles of a rotation.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Radians per position of each pair.
    pub frequencies: Vec<f64>,
    /// Factor on sines and cosines.
    pub magnitude: f64,
}

impl Rotation {
    fn of(table: &RopeTable) -> Self {
        Rotation {
            frequencies: table.frequencies().to_vec(),
            magnitude: table.magnitude(),
        }
    }

    /// Appends the cosines and the sines of a position, `[pairs]` each.
    pub fn angles(&self, position: usize, cosines: &mut Vec<f32>, sines: &mut Vec<f32>) {
        for frequency in &self.frequencies {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            cosines.push((cosine * self.magnitude) as f32);
            sines.push((sine * self.magnitude) as f32);
        }
    }
}
