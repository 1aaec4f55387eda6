//! What the architectures share when they describe themselves: checked access to metadata and
//! tensors.

use super::spec::*;
use crate::Limits;
use crate::gguf::{Metadata, ModelFile, ModelFileError, Value};

/// Reads metadata under the architecture's prefix and checks tensors as they are named.
pub(super) struct Builder<'a> {
    file: &'a ModelFile,
    limits: &'a Limits,
    pub(super) architecture: String,
    pub(super) embedding: usize,
    pub(super) layers: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        file: &'a ModelFile,
        architecture: &str,
        limits: &'a Limits,
    ) -> Result<Self, ModelFileError> {
        let mut builder = Builder {
            file,
            limits,
            architecture: architecture.to_owned(),
            embedding: 0,
            layers: 0,
        };
        builder.embedding = builder.required("embedding_length", limits.width)?;
        builder.layers = builder.required("block_count", limits.layers.into())?;
        Ok(builder)
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.file.metadata
    }

    /// A positive integer that must be there.
    pub(super) fn required(&self, key: &str, most: u64) -> Result<usize, ModelFileError> {
        match self.optional(key, most)? {
            Some(value) if value > 0 => Ok(value),
            Some(_) => Err(self.wrong(key, "is zero")),
            None => Err(self.wrong(key, "is missing")),
        }
    }

    /// A non-negative integer.
    pub(super) fn optional(&self, key: &str, most: u64) -> Result<Option<usize>, ModelFileError> {
        let value = self.metadata().unsigned(&self.key(key))?;
        value
            .map(|value| self.bounded(key, value, most))
            .transpose()
    }

    /// An integer that may differ by layer: a scalar or an array with an element per layer.
    pub(super) fn per_layer(
        &self,
        key: &str,
        layer: usize,
        most: u64,
    ) -> Result<Option<usize>, ModelFileError> {
        let full = self.key(key);
        let Some(Value::Array(array)) = self.metadata().value(&full) else {
            return self.optional(key, most);
        };
        let value = array.integers().and_then(|mut values| values.nth(layer));
        let value = value
            .and_then(|value| u64::try_from(value).ok())
            .ok_or_else(|| self.wrong(key, "has no proper element for every layer"))?;
        self.bounded(key, value, most).map(Some)
    }

    /// A bool per layer, where the entry is an array.
    pub(super) fn flag_of_layer(&self, key: &str, layer: usize) -> Option<bool> {
        match self.metadata().value(&self.key(key))? {
            Value::Array(array) => array.integers()?.nth(layer).map(|flag| flag != 0),
            _ => None,
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>, ModelFileError> {
        let value = self.metadata().float(&self.key(key))?;
        match value {
            Some(value) if !value.is_finite() => Err(self.wrong(key, "is not a finite number")),
            other => Ok(other),
        }
    }

    pub(super) fn float_or(&self, key: &str, default: f32) -> Result<f32, ModelFileError> {
        Ok(self.float(key)?.unwrap_or(default))
    }

    fn bounded(&self, key: &str, value: u64, most: u64) -> Result<usize, ModelFileError> {
        if value > most {
            return Err(self.wrong(key, &format!("is {value}, more than the {most} allowed")));
        }
        Ok(value as usize)
    }

    pub(super) fn wrong(&self, key: &str, what: &str) -> ModelFileError {
        ModelFileError::Metadata {
            key: self.key(key),
            what: what.to_owned(),
        }
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        match self.file.weightless() {
            Some(promise) if tensor == "output.weight" => !promise.tied,
            Some(promise) if tensor.ends_with("ffn_gate_inp.weight") => promise.experts,
            Some(_) => false,
            None => self.file.tensor(tensor).is_some(),
        }
    }

    /// The matrix `name.weight`, with `name.bias` where the file has one.
    pub(super) fn linear(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Linear, ModelFileError> {
        self.rows_of(name, rows, 0, rows, columns)
    }

    /// `rows` rows of `name.weight` from `first_row`, the whole having `all_rows`.
    pub(super) fn rows_of(
        &self,
        name: &str,
        all_rows: usize,
        first_row: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Linear, ModelFileError> {
        let weight = format!("{name}.weight");
        self.check_shape(&weight, all_rows, columns)?;
        let bias = self.vector_if_there(&format!("{name}.bias"), all_rows)?;
        Ok(Linear {
            weight,
            first_row,
            rows,
            columns,
            bias,
        })
    }

    /// RMSNorm with the weights `name.weight`.
    pub(super) fn rms_norm(&self, name: &str, length: usize) -> Result<Norm, ModelFileError> {
        let epsilon = self
            .float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| self.wrong("attention.layer_norm_rms_epsilon", "is missing"))?;
        self.norm(name, length, NormKind::RootMeanSquare, epsilon)
    }

    /// LayerNorm with the weights `name.weight` and, where there is one, `name.bias`.
    pub(super) fn layer_norm(&self, name: &str, length: usize) -> Result<Norm, ModelFileError> {
        let epsilon = self
            .float("attention.layer_norm_epsilon")?
            .ok_or_else(|| self.wrong("attention.layer_norm_epsilon", "is missing"))?;
        self.norm(name, length, NormKind::MeanAndVariance, epsilon)
    }

    fn norm(
        &self,
        name: &str,
        length: usize,
        kind: NormKind,
        epsilon: f32,
    ) -> Result<Norm, ModelFileError> {
        let weight = format!("{name}.weight");
        self.vector_if_there(&weight, length)?
            .ok_or_else(|| missing(&weight))?;
        Ok(Norm {
            kind,
            epsilon,
            length,
            weight,
            bias: self.vector_if_there(&format!("{name}.bias"), length)?,
        })
    }

    /// A vector tensor of exactly `length` elements, if the file has it.
    pub(super) fn vector_if_there(
        &self,
        name: &str,
        length: usize,
    ) -> Result<Option<String>, ModelFileError> {
        if self.file.weightless().is_some() {
            // Norms must be there; biases and tables of factors weigh next to nothing.
            let norm = name.ends_with(".weight") && !name.starts_with("rope_");
            return Ok(norm.then(|| name.to_owned()));
        }
        let Some(tensor) = self.file.tensor(name) else {
            return Ok(None);
        };
        let elements: u64 = tensor.shape.iter().product();
        if elements != length as u64 {
            return Err(wrong_shape(name, &tensor.shape, &format!("[{length}]")));
        }
        Ok(Some(name.to_owned()))
    }

    pub(super) fn check_shape(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<(), ModelFileError> {
        if self.file.weightless().is_some() {
            return Ok(());
        }
        let tensor = self.file.tensor(name).ok_or_else(|| missing(name))?;
        if tensor.columns() != columns as u64 || tensor.rows() != rows as u64 {
            return Err(wrong_shape(
                name,
                &tensor.shape,
                &format!("[{columns}, {rows}]"),
            ));
        }
        Ok(())
    }

    /// Rows of a tensor, if the file has it.
    pub(super) fn rows_in(&self, name: &str) -> Option<usize> {
        if let Some(promise) = self.file.weightless() {
            let rows = match name {
                "token_embd.weight" => promise.vocabulary,
                _ => promise.positions,
            };
            return usize::try_from(rows).ok();
        }
        usize::try_from(self.file.tensor(name)?.rows()).ok()
    }

    /// The whole model around its layers: embedding, output norm, head.
    pub(super) fn model(
        &self,
        output_norm: Norm,
        layer: impl Fn(LayerBuilder<'_, 'a>) -> Result<Layer, ModelFileError>,
    ) -> Result<ModelSpec, ModelFileError> {
        let embedding = self.embedding;
        let vocabulary = self
            .rows_in("token_embd.weight")
            .ok_or_else(|| missing("token_embd.weight"))?;
        if vocabulary as u64 > self.limits.vocabulary {
            return Err(ModelFileError::Tensor {
                tensor: "token_embd.weight".into(),
                what: format!("has {vocabulary} rows, more than a vocabulary may have"),
            });
        }
        let token_embedding = self.linear("token_embd", vocabulary, embedding)?;
        let tied_output = !self.has("output.weight");
        let output = if tied_output {
            token_embedding.clone()
        } else {
            self.linear("output", vocabulary, embedding)?
        };
        let layers = (0..self.layers)
            .map(|index| layer(LayerBuilder { model: self, index }))
            .collect::<Result<Vec<_>, _>>()?;
        let name = self.metadata().string("general.name").ok().flatten();
        Ok(ModelSpec {
            architecture: self.architecture.clone(),
            name: name.unwrap_or(&self.architecture).to_owned(),
            vocabulary,
            embedding,
            context_length: self.required("context_length", self.limits.context)?,
            token_embedding,
            embedding_scale: 1.0,
            position_embedding: None,
            embedding_norm: None,
            layers,
            output_norm,
            output,
            tied_output,
            logit_scale: 1.0,
            logit_softcap: None,
        })
    }
}

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) kv: usize,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
}

/// A [`Builder`] at one layer.
#[derive(Clone, Copy)]
pub(super) struct LayerBuilder<'b, 'a> {
    pub(super) model: &'b Builder<'a>,
    pub(super) index: usize,
}

impl LayerBuilder<'_, '_> {
    pub(super) fn name(&self, tensor: &str) -> String {
        format!("blk.{}.{tensor}", self.index)
    }

    pub(super) fn rms_norm(&self, tensor: &str) -> Result<Norm, ModelFileError> {
        self.model
            .rms_norm(&self.name(tensor), self.model.embedding)
    }

    pub(super) fn layer_norm(&self, tensor: &str) -> Result<Norm, ModelFileError> {
        self.model
            .layer_norm(&self.name(tensor), self.model.embedding)
    }

    pub(super) fn linear(
        &self,
        tensor: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Linear, ModelFileError> {
        self.model.linear(&self.name(tensor), rows, columns)
    }

    pub(super) fn heads(&self) -> Result<Heads, ModelFileError> {
        let model = self.model;
        let width = model.limits.width;
        let query = model
            .per_layer("attention.head_count", self.index, width)?
            .filter(|&heads| heads > 0)
            .ok_or_else(|| model.wrong("attention.head_count", "is missing or zero"))?;
        let kv = model
            .per_layer("attention.head_count_kv", self.index, width)?
            .unwrap_or(query);
        if kv == 0 || query % kv != 0 {
            return Err(model.wrong(
                "attention.head_count_kv",
                &format!("is {kv}, which does not divide the {query} query heads"),
            ));
        }
        let default_dim = model.embedding / query;
        let key_dim = model
            .optional("attention.key_length", width)?
            .unwrap_or(default_dim);
        let value_dim = model
            .optional("attention.value_length", width)?
            .unwrap_or(default_dim);
        let wide =
            |dim: usize| dim == 0 || query.checked_mul(dim).is_none_or(|all| all as u64 > width);
        if wide(key_dim) || wide(value_dim) {
            return Err(model.wrong(
                "attention.head_count",
                "and the head size do not fit together",
            ));
        }
        Ok(Heads {
            query,
            kv,
            key_dim,
            value_dim,
        })
    }

    /// Attention whose projections are `attn_q`, `attn_k`, `attn_v` or one `attn_qkv`, and
    /// `attn_output`; scaled by 1/sqrt(head size), without positions.
    pub(super) fn attention(&self) -> Result<Attention, ModelFileError> {
        let heads = self.heads()?;
        let embedding = self.model.embedding;
        let query_rows = heads.query * heads.key_dim;
        let key_rows = heads.kv * heads.key_dim;
        let value_rows = heads.kv * heads.value_dim;
        let (query, key, value) = if self.model.has(&self.name("attn_qkv.weight")) {
            let all = query_rows + key_rows + value_rows;
            let name = self.name("attn_qkv");
            let part = |first, rows| self.model.rows_of(&name, all, first, rows, embedding);
            (
                part(0, query_rows)?,
                part(query_rows, key_rows)?,
                part(query_rows + key_rows, value_rows)?,
            )
        } else {
            (
                self.linear("attn_q", query_rows, embedding)?,
                self.linear("attn_k", key_rows, embedding)?,
                self.linear("attn_v", value_rows, embedding)?,
            )
        };
        Ok(Attention {
            heads: heads.query,
            kv_heads: heads.kv,
            key_dim: heads.key_dim,
            value_dim: heads.value_dim,
            query,
            key,
            value,
            output: self.linear("attn_output", embedding, heads.query * heads.value_dim)?,
            query_key_norm: None,
            clamp: None,
            rope: None,
            scale: 1.0 / (heads.key_dim as f32).sqrt(),
            softcap: None,
            window: None,
            alibi_max_bias: None,
        })
    }

    /// RMS norms `attn_q_norm` and `attn_k_norm`, over each head or over all together.
    pub(super) fn query_key_norm(&self, per_head: bool) -> Result<QueryKeyNorm, ModelFileError> {
        let heads = self.heads()?;
        let (query, key) = if per_head {
            (heads.key_dim, heads.key_dim)
        } else {
            (heads.query * heads.key_dim, heads.kv * heads.key_dim)
        };
        Ok(QueryKeyNorm {
            query: self.model.rms_norm(&self.name("attn_q_norm"), query)?,
            key: self.model.rms_norm(&self.name("attn_k_norm"), key)?,
            per_head,
        })
    }

    /// Rotary positions as the metadata under `rope.` say, frequency factors left out.
    pub(super) fn rope(&self, style: RopeStyle) -> Result<Rope, ModelFileError> {
        let model = self.model;
        let heads = self.heads()?;
        let dimensions = model
            .optional("rope.dimension_count", model.limits.width)?
            .unwrap_or(heads.key_dim);
        if dimensions == 0 || dimensions % 2 != 0 || dimensions > heads.key_dim {
            return Err(model.wrong(
                "rope.dimension_count",
                &format!(
                    "is {dimensions}, which is not an even number up to the head size {}",
                    heads.key_dim
                ),
            ));
        }
        let style = match model.metadata().string("ondine.rope.style")? {
            Some("halves") => RopeStyle::Halves,
            _ => style,
        };
        let scaling = model
            .metadata()
            .string(&model.key("rope.scaling.type"))?
            .unwrap_or("linear")
            .to_owned();
        let factor = match model.float("rope.scaling.factor")? {
            None | Some(0.0) => model.float_or("rope.scale_linear", 1.0)?,
            Some(factor) => factor,
        };
        if !(factor.is_finite() && factor > 0.0) {
            return Err(model.wrong("rope.scaling.factor", "is not a positive number"));
        }
        let known = ["none", "linear", "yarn", "longrope"];
        if !known.contains(&scaling.as_str()) {
            return Err(model.wrong(
                "rope.scaling.type",
                &format!("is `{scaling}`, which is not supported"),
            ));
        }
        let base = model.float_or("rope.freq_base", 10_000.0)?;
        if base <= 0.0 {
            return Err(model.wrong("rope.freq_base", "is not a positive number"));
        }
        let yarn = scaling == "yarn";
        let context = model.required("context_length", model.limits.context)?;
        Ok(Rope {
            style,
            dimensions,
            base,
            frequency_scale: if scaling == "none" { 1.0 } else { 1.0 / factor },
            extrapolation: if yarn {
                model.float_or("rope.scaling.yarn_ext_factor", 1.0)?
            } else {
                0.0
            },
            attention_factor: model.float_or("rope.scaling.attn_factor", 1.0)?,
            beta_fast: model.float_or("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: model.float_or("rope.scaling.yarn_beta_slow", 1.0)?,
            original_context: model
                .optional("rope.scaling.original_context_length", model.limits.context)?
                .filter(|&context| context > 0)
                .unwrap_or(context),
            factors: RopeFactors::None,
        })
    }

    /// The frequency factors `rope_freqs`, or `rope_factors_short` and `rope_factors_long`, where
    /// the file has them.
    pub(super) fn rope_factors(&self, dimensions: usize) -> Result<RopeFactors, ModelFileError> {
        let vector = |name: &str| self.model.vector_if_there(name, dimensions / 2);
        if let Some(always) = vector("rope_freqs.weight")? {
            return Ok(RopeFactors::Always(always));
        }
        match (
            vector("rope_factors_short.weight")?,
            vector("rope_factors_long.weight")?,
        ) {
            (Some(short), Some(long)) => Ok(RopeFactors::ByContext { short, long }),
            _ => Ok(RopeFactors::None),
        }
    }

    pub(super) fn feed_forward_width(&self) -> Result<usize, ModelFileError> {
        self.model
            .per_layer("feed_forward_length", self.index, self.model.limits.width)?
            .filter(|&width| width > 0)
            .ok_or_else(|| {
                self.model
                    .wrong("feed_forward_length", "is missing or zero")
            })
    }

    /// `ffn_gate`, `ffn_up`, `ffn_down`.
    pub(super) fn gated(&self, activation: Activation) -> Result<GatedFeedForward, ModelFileError> {
        self.gated_named("", self.feed_forward_width()?, activation)
    }

    /// `ffn_gate{suffix}`, `ffn_up{suffix}`, `ffn_down{suffix}`.
    pub(super) fn gated_named(
        &self,
        suffix: &str,
        width: usize,
        activation: Activation,
    ) -> Result<GatedFeedForward, ModelFileError> {
        let embedding = self.model.embedding;
        Ok(GatedFeedForward {
            gate: self.linear(&format!("ffn_gate{suffix}"), width, embedding)?,
            up: self.linear(&format!("ffn_up{suffix}"), width, embedding)?,
            down: self.linear(&format!("ffn_down{suffix}"), embedding, width)?,
            activation,
        })
    }

    /// `ffn_up` and `ffn_down` with a function between them.
    pub(super) fn plain(&self, activation: Activation) -> Result<FeedForward, ModelFileError> {
        let (width, embedding) = (self.feed_forward_width()?, self.model.embedding);
        Ok(FeedForward::Plain {
            up: self.linear("ffn_up", width, embedding)?,
            down: self.linear("ffn_down", embedding, width)?,
            activation,
        })
    }

    /// Router `ffn_gate_inp` and the experts in `ffn_{gate,up,down}_exps`. `normalise` is the
    /// architecture's custom, which the file may contradict.
    pub(super) fn experts(&self, normalise: bool) -> Result<Experts, ModelFileError> {
        let model = self.model;
        let embedding = model.embedding;
        let count = model.required("expert_count", model.limits.experts.into())?;
        let used = model.required("expert_used_count", count as u64)?;
        let width =
            match model.per_layer("expert_feed_forward_length", self.index, model.limits.width)? {
                Some(width) if width > 0 => width,
                _ => self.feed_forward_width()?,
            };
        let part = |kind: &str, index: usize, rows: usize, columns: usize| {
            let name = self.name(&format!("ffn_{kind}_exps"));
            model.rows_of(&name, count * rows, index * rows, rows, columns)
        };
        let experts = (0..count)
            .map(|index| {
                Ok(GatedFeedForward {
                    gate: part("gate", index, width, embedding)?,
                    up: part("up", index, width, embedding)?,
                    down: part("down", index, embedding, width)?,
                    activation: Activation::Silu,
                })
            })
            .collect::<Result<Vec<_>, ModelFileError>>()?;
        let declared = model
            .metadata()
            .boolean(&model.key("expert_weights_norm"))?;
        let weight_scale = match model.float("expert_weights_scale")? {
            None | Some(0.0) => 1.0,
            Some(scale) => scale,
        };
        Ok(Experts {
            router: self.linear("ffn_gate_inp", count, embedding)?,
            experts,
            used,
            normalise: declared.unwrap_or(normalise),
            weight_scale,
            shared: None,
        })
    }

    /// A layer of norm, mixer, norm, feed-forward network, without the optional parts.
    pub(super) fn layer(
        &self,
        mixer_norm: Norm,
        mixer: Mixer,
        feed_forward_norm: Norm,
        feed_forward: FeedForward,
    ) -> Layer {
        Layer {
            mixer_norm,
            mixer,
            mixer_post_norm: None,
            feed_forward_norm,
            feed_forward,
            feed_forward_post_norm: None,
            residual_scale: 1.0,
        }
    }

    /// The window of this layer: `attention.sliding_window` where the pattern (every `period`-th
    /// layer is global unless the file says otherwise) makes it local.
    pub(super) fn window(&self, period: usize) -> Result<Option<usize>, ModelFileError> {
        let model = self.model;
        let key = "attention.sliding_window_pattern";
        let local = match self.flag_of_layer(key) {
            Some(local) => local,
            None => {
                let period = match model.metadata().value(&model.key(key)) {
                    Some(Value::Integer(_)) => model
                        .optional(key, model.limits.layers.into())?
                        .unwrap_or(period),
                    _ => period,
                };
                period == 0 || self.index % period < period - 1
            }
        };
        let window = model.optional("attention.sliding_window", u64::from(u32::MAX))?;
        Ok(window.filter(|&window| local && window > 0))
    }

    fn flag_of_layer(&self, key: &str) -> Option<bool> {
        self.model.flag_of_layer(key, self.index)
    }
}

fn missing(tensor: &str) -> ModelFileError {
    ModelFileError::Tensor {
        tensor: tensor.to_owned(),
        what: "is missing; convert the model again".into(),
    }
}

fn wrong_shape(tensor: &str, shape: &[u64], expected: &str) -> ModelFileError {
    ModelFileError::Tensor {
        tensor: tensor.to_owned(),
        what: format!("has the shape {shape:?} where {expected} is needed"),
    }
}
