//! A decoder as a graph, written once: each format of export says how its operations look.

use ondine_runtime::model::{
    Activation, Attention, FeedForward, GatedFeedForward, Layer, Linear, Mixer, ModelSpec, Norm,
};

use super::ExportError;

/// The operations of one format. Values are activations of shape [1, tokens, width].
pub(super) trait Graph {
    /// A value in the graph.
    type Value: Clone;

    /// The embeddings of the tokens, as the table holds them.
    fn embedding(&mut self, table: &Linear) -> Result<Self::Value, ExportError>;

    /// Learnt absolute positions of the tokens.
    fn positions(&mut self, table: &Linear) -> Result<Self::Value, ExportError>;

    /// `matrix × x`, without the bias.
    fn matrix(&mut self, x: &Self::Value, matrix: &Linear) -> Result<Self::Value, ExportError>;

    /// The vector that `norm` or a bias names: elements `first..first + length`, as a value that broadcasts.
    fn vector(
        &mut self,
        tensor: &str,
        first: usize,
        length: usize,
    ) -> Result<Self::Value, ExportError>;

    /// `x` normalised, without weights; each of `heads` parts by itself.
    fn normalised(
        &mut self,
        x: &Self::Value,
        norm: &Norm,
        weight: &Self::Value,
        heads: usize,
    ) -> Result<Self::Value, ExportError>;

    /// Attention of layer `index`; queries and keys are not rotated yet.
    fn attention(
        &mut self,
        index: usize,
        attention: &Attention,
        query: Self::Value,
        key: Self::Value,
        value: Self::Value,
    ) -> Result<Self::Value, ExportError>;

    /// `a + b`.
    fn add(&mut self, a: &Self::Value, b: &Self::Value) -> Self::Value;

    /// `a × b`.
    fn multiply(&mut self, a: &Self::Value, b: &Self::Value) -> Self::Value;

    /// `factor × x`.
    fn scale(&mut self, x: &Self::Value, factor: f32) -> Self::Value;

    /// `x` within ±`limit`.
    fn clamp(&mut self, x: &Self::Value, limit: f32) -> Self::Value;

    /// `tanh(x)`.
    fn tanh(&mut self, x: &Self::Value) -> Self::Value;

    /// The activation function.
    fn activation(&mut self, x: &Self::Value, activation: Activation) -> Self::Value;

    /// The tokens whose scores are wanted.
    fn wanted(&mut self, x: &Self::Value) -> Result<Self::Value, ExportError>;

    /// Makes `x` the graph's scores.
    fn logits(&mut self, x: &Self::Value) -> Result<(), ExportError>;
}

/// Writes the whole decoder into `graph`.
///
/// # Errors
/// [`ExportError::Unsupported`] for experts and convolutions; what the graph says of a tensor.
pub(super) fn write<G: Graph>(spec: &ModelSpec, graph: &mut G) -> Result<(), ExportError> {
    let mut hidden = graph.embedding(&spec.token_embedding)?;
    if spec.embedding_scale != 1.0 {
        hidden = graph.scale(&hidden, spec.embedding_scale);
    }
    if let Some(table) = &spec.position_embedding {
        let positions = graph.positions(table)?;
        hidden = graph.add(&hidden, &positions);
    }
    if let Some(norm) = &spec.embedding_norm {
        hidden = normed(graph, &hidden, norm, 1)?;
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        hidden = write_layer(graph, index, layer, hidden)?;
    }
    let wanted = graph.wanted(&hidden)?;
    let normed = normed(graph, &wanted, &spec.output_norm, 1)?;
    let mut logits = linear(graph, &normed, &spec.output)?;
    if spec.logit_scale != 1.0 {
        logits = graph.scale(&logits, spec.logit_scale);
    }
    if let Some(cap) = spec.logit_softcap {
        logits = softcap(graph, &logits, cap);
    }
    graph.logits(&logits)
}

/// `cap × tanh(x / cap)`.
pub(super) fn softcap<G: Graph>(graph: &mut G, x: &G::Value, cap: f32) -> G::Value {
    let scaled = graph.scale(x, 1.0 / cap);
    let bent = graph.tanh(&scaled);
    graph.scale(&bent, cap)
}

fn write_layer<G: Graph>(
    graph: &mut G,
    index: usize,
    layer: &Layer,
    hidden: G::Value,
) -> Result<G::Value, ExportError> {
    let Mixer::Attention(attention) = &layer.mixer else {
        return Err(ExportError::Unsupported("short convolutions".into()));
    };
    let input = normed(graph, &hidden, &layer.mixer_norm, 1)?;
    let mixed = write_attention(graph, index, attention, &input)?;
    let branch = linear(graph, &mixed, &attention.output)?;
    let hidden = add_branch(
        graph,
        &hidden,
        branch,
        layer.mixer_post_norm.as_ref(),
        layer,
    )?;

    let input = normed(graph, &hidden, &layer.feed_forward_norm, 1)?;
    let branch = feed_forward(graph, &input, &layer.feed_forward)?;
    let post = layer.feed_forward_post_norm.as_ref();
    add_branch(graph, &hidden, branch, post, layer)
}

fn write_attention<G: Graph>(
    graph: &mut G,
    index: usize,
    attention: &Attention,
    input: &G::Value,
) -> Result<G::Value, ExportError> {
    let mut query = linear(graph, input, &attention.query)?;
    let mut key = linear(graph, input, &attention.key)?;
    let mut value = linear(graph, input, &attention.value)?;
    if let Some(limit) = attention.clamp {
        query = graph.clamp(&query, limit);
        key = graph.clamp(&key, limit);
        value = graph.clamp(&value, limit);
    }
    if let Some(norms) = &attention.query_key_norm {
        let parts = |heads| if norms.per_head { heads } else { 1 };
        query = normed(graph, &query, &norms.query, parts(attention.heads))?;
        key = normed(graph, &key, &norms.key, parts(attention.kv_heads))?;
    }
    graph.attention(index, attention, query, key, value)
}

fn feed_forward<G: Graph>(
    graph: &mut G,
    input: &G::Value,
    feed_forward: &FeedForward,
) -> Result<G::Value, ExportError> {
    match feed_forward {
        FeedForward::Gated(GatedFeedForward {
            gate,
            up,
            down,
            activation,
        }) => {
            let gate = linear(graph, input, gate)?;
            let gate = graph.activation(&gate, *activation);
            let up = linear(graph, input, up)?;
            let inner = graph.multiply(&gate, &up);
            linear(graph, &inner, down)
        }
        FeedForward::Plain {
            up,
            down,
            activation,
        } => {
            let inner = linear(graph, input, up)?;
            let inner = graph.activation(&inner, *activation);
            linear(graph, &inner, down)
        }
        FeedForward::Experts(_) => Err(ExportError::Unsupported("mixtures of experts".into())),
    }
}

fn add_branch<G: Graph>(
    graph: &mut G,
    hidden: &G::Value,
    branch: G::Value,
    post: Option<&Norm>,
    layer: &Layer,
) -> Result<G::Value, ExportError> {
    let mut branch = branch;
    if let Some(norm) = post {
        branch = normed(graph, &branch, norm, 1)?;
    }
    if layer.residual_scale != 1.0 {
        branch = graph.scale(&branch, layer.residual_scale);
    }
    Ok(graph.add(hidden, &branch))
}

fn linear<G: Graph>(graph: &mut G, x: &G::Value, matrix: &Linear) -> Result<G::Value, ExportError> {
    let mut out = graph.matrix(x, matrix)?;
    if let Some(bias) = &matrix.bias {
        let bias = graph.vector(bias, matrix.first_row, matrix.rows)?;
        out = graph.add(&out, &bias);
    }
    Ok(out)
}

fn normed<G: Graph>(
    graph: &mut G,
    x: &G::Value,
    norm: &Norm,
    heads: usize,
) -> Result<G::Value, ExportError> {
    let weight = graph.vector(&norm.weight, 0, norm.length)?;
    let mut out = graph.normalised(x, norm, &weight, heads)?;
    if let Some(bias) = &norm.bias {
        let bias = graph.vector(bias, 0, norm.length)?;
        out = graph.add(&out, &bias);
    }
    Ok(out)
}
