//! The checked description of a decoder-only model.
//!
//! Every architecture is expressed in these terms, and everything else (the CPU backend, exporters,
//! planners) reads only this. All sizes were checked against the file's tensors and against
//! [`crate::Limits`] when the description was made.

/// A decoder-only language model.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// `general.architecture`, such as `llama`.
    pub architecture: String,
    /// `general.name`, for people.
    pub name: String,
    /// Number of tokens in the vocabulary (rows of the embedding).
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Tokens of context the model was trained for.
    pub context_length: usize,
    /// Token embedding table, [vocabulary, embedding].
    pub token_embedding: Linear,
    /// Factor on the looked-up embedding.
    pub embedding_scale: f32,
    /// Learnt absolute positions, [positions, embedding].
    pub position_embedding: Option<Linear>,
    /// Norm directly after the embedding.
    pub embedding_norm: Option<Norm>,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// Norm before the output head.
    pub output_norm: Norm,
    /// Output head, [vocabulary, embedding]; the embedding table itself when it is tied.
    pub output: Linear,
    /// Whether `output` is the embedding table.
    pub tied_output: bool,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// Logits become `cap * tanh(logits / cap)`.
    pub logit_softcap: Option<f32>,
}

/// One block: a mixer over positions, then a feed-forward network, both on the residual stream.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Norm of the mixer's input.
    pub mixer_norm: Norm,
    /// What exchanges information between positions.
    pub mixer: Mixer,
    /// Norm of the mixer's output, before it is added (Gemma's sandwich norm).
    pub mixer_post_norm: Option<Norm>,
    /// Norm of the feed-forward network's input.
    pub feed_forward_norm: Norm,
    /// The feed-forward network.
    pub feed_forward: FeedForward,
    /// Norm of the feed-forward network's output, before it is added.
    pub feed_forward_post_norm: Option<Norm>,
    /// Factor on what is added to the residual stream.
    pub residual_scale: f32,
}

/// What exchanges information between positions.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per layer, read far more often than moved"
)]
pub enum Mixer {
    /// Causal attention.
    Attention(Attention),
    /// Gated short convolution (LFM2).
    ShortConvolution(ShortConvolution),
}

/// Causal multi-head attention with grouped keys and values.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a query or key head.
    pub key_dim: usize,
    /// Elements of a value head.
    pub value_dim: usize,
    /// Query projection, [heads × key_dim, embedding].
    pub query: Linear,
    /// Key projection, [kv_heads × key_dim, embedding].
    pub key: Linear,
    /// Value projection, [kv_heads × value_dim, embedding].
    pub value: Linear,
    /// Output projection, [embedding, heads × value_dim].
    pub output: Linear,
    /// Norms of queries and keys before the rotation.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// Projections are clamped to ±this (MPT).
    pub clamp: Option<f32>,
    /// Rotary positions; none for layers without positions or with ALiBi.
    pub rope: Option<Rope>,
    /// Factor on the dot products.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A query at p sees keys k with p - k < window.
    pub window: Option<usize>,
    /// ALiBi's largest bias (Press et al. 2021); a slope per head follows from it.
    pub alibi_max_bias: Option<f32>,
}

/// Norms of queries and keys.
#[derive(Debug, Clone)]
pub struct QueryKeyNorm {
    /// Norm of the queries.
    pub query: Norm,
    /// Norm of the keys.
    pub key: Norm,
    /// Over each head by itself, or over all heads together.
    pub per_head: bool,
}

/// Rotary position embedding (Su et al. 2021) with its scaling variants.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Leading elements of a head that are rotated.
    pub dimensions: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Positions are multiplied by this (linear scaling, and YaRN's interpolation).
    pub frequency_scale: f32,
    /// YaRN's mix of extrapolation (Peng et al. 2023): 0 is off, 1 is on.
    pub extrapolation: f32,
    /// Factor on sine and cosine.
    pub attention_factor: f32,
    /// YaRN: rotations above which a dimension is not interpolated.
    pub beta_fast: f32,
    /// YaRN: rotations below which a dimension is fully interpolated.
    pub beta_slow: f32,
    /// Context length before scaling.
    pub original_context: usize,
    /// Per-dimension divisors of the frequencies.
    pub factors: RopeFactors,
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Elements 2i and 2i+1.
    Adjacent,
    /// Elements i and i + dimensions/2 (GPT-NeoX).
    Halves,
}

/// Per-dimension divisors of the rotary frequencies: tensors of dimensions/2 elements.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeFactors {
    /// None.
    None,
    /// One set (Llama 3.1).
    Always(String),
    /// One set up to the original context and another beyond (long-rope, Phi-3).
    ByContext {
        /// Up to the original context.
        short: String,
        /// Beyond it.
        long: String,
    },
}

/// Gated short convolution: `out(c * conv(b * x))` with `b, c, x = in(h)`.
#[derive(Debug, Clone)]
pub struct ShortConvolution {
    /// Taps of the kernel, the current position included.
    pub taps: usize,
    /// Input projection, [3 × embedding, embedding], rows b, c, x.
    pub input: Linear,
    /// Kernel tensor, [embedding, taps], oldest tap first.
    pub kernel: String,
    /// Output projection, [embedding, embedding].
    pub output: Linear,
}

/// The feed-forward network of a layer.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// `down(activation(gate(x)) * up(x))`.
    Gated(GatedFeedForward),
    /// `down(activation(up(x)))`.
    Plain {
        /// [width, embedding].
        up: Linear,
        /// [embedding, width].
        down: Linear,
        /// Between them.
        activation: Activation,
    },
    /// Sparse mixture of experts.
    Experts(Experts),
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct GatedFeedForward {
    /// [width, embedding].
    pub gate: Linear,
    /// [width, embedding].
    pub up: Linear,
    /// [embedding, width].
    pub down: Linear,
    /// On the gate.
    pub activation: Activation,
}

/// Each token goes through the `used` experts that the router scores highest.
#[derive(Debug, Clone)]
pub struct Experts {
    /// Router, [experts, embedding]; its scores go through a softmax over all experts.
    pub router: Linear,
    /// The experts.
    pub experts: Vec<GatedFeedForward>,
    /// Experts per token.
    pub used: usize,
    /// Whether the used experts' weights are scaled to sum to one.
    pub normalise: bool,
    /// Factor on the weights.
    pub weight_scale: f32,
    /// An expert that every token goes through as well.
    pub shared: Option<GatedFeedForward>,
}

/// A matrix, or a range of rows of a larger tensor (fused projections, one expert of many).
#[derive(Debug, Clone)]
pub struct Linear {
    /// Tensor name.
    pub weight: String,
    /// First row used, counted over all slower dimensions of the tensor.
    pub first_row: usize,
    /// Output elements.
    pub rows: usize,
    /// Input elements.
    pub columns: usize,
    /// Bias tensor; its elements `first_row..first_row + rows` are used.
    pub bias: Option<String>,
}

/// A normalisation with learnt weights.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Root mean square or mean and variance.
    pub kind: NormKind,
    /// Added under the root.
    pub epsilon: f32,
    /// Elements.
    pub length: usize,
    /// Weight tensor.
    pub weight: String,
    /// Bias tensor.
    pub bias: Option<String>,
}

/// How a vector is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm (Zhang and Sennrich 2019).
    RootMeanSquare,
    /// LayerNorm (Ba et al. 2016).
    MeanAndVariance,
}

/// An elementwise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x × sigmoid(x).
    Silu,
    /// GELU by its tanh approximation (Hendrycks and Gimpel 2016).
    GeluTanh,
}

impl Mixer {
    /// The matrices that read the mixer's normed input.
    pub fn inputs(&self) -> Vec<&Linear> {
        match self {
            Mixer::Attention(attention) => vec![&attention.query, &attention.key, &attention.value],
            Mixer::ShortConvolution(convolution) => vec![&convolution.input],
        }
    }

    /// The matrix that finishes the mixer.
    pub fn output(&self) -> &Linear {
        match self {
            Mixer::Attention(attention) => &attention.output,
            Mixer::ShortConvolution(convolution) => &convolution.output,
        }
    }
}

impl FeedForward {
    /// The matrices that read the network's normed input for every token.
    pub fn inputs(&self) -> Vec<&Linear> {
        match self {
            FeedForward::Gated(gated) => vec![&gated.gate, &gated.up],
            FeedForward::Plain { up, .. } => vec![up],
            FeedForward::Experts(experts) => vec![&experts.router],
        }
    }

    /// The matrix that finishes the network; experts have one each.
    pub fn output(&self) -> Option<&Linear> {
        match self {
            FeedForward::Gated(gated) => Some(&gated.down),
            FeedForward::Plain { down, .. } => Some(down),
            FeedForward::Experts(_) => None,
        }
    }
}

impl ModelSpec {
    /// Bytes of keys and values that one position adds over all layers, `bytes_per_element` each.
    pub fn kv_elements_per_position(&self) -> usize {
        self.layers
            .iter()
            .map(|layer| match &layer.mixer {
                Mixer::Attention(a) => a.kv_heads * (a.key_dim + a.value_dim),
                Mixer::ShortConvolution(_) => 0,
            })
            .sum()
    }
}
