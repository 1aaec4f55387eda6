//! One layer, as the papers write it, and the embedding before.

use ondine_kernels::{Epilogue, matmul, ops};

use super::attention::attention;
use super::convolution::short_convolution;
use super::feed_forward::feed_forward;
use super::scratch::Scratch;
use super::weights::{LayerWeights, Matrix, MixerWeights, NormWeights};
use super::{Engine, Part};
use crate::model::{Linear, Norm, NormKind};

/// `hidden = scale × embedding[token] (+ positions), normed where the model says so`.
pub(super) fn embed(engine: &Engine, tokens: &[u32], parts: &[Part], scratch: &mut Scratch) {
    let width = engine.spec.embedding;
    let weights = &engine.weights;
    let mut row_position = vec![0; tokens.len()];
    for part in parts {
        for (offset, row) in part.rows.clone().enumerate() {
            row_position[row] = part.first_position + offset;
        }
    }
    let hidden = &mut scratch.hidden[..tokens.len() * width];
    for_each_row(engine, hidden, width, |row, hidden| {
        lookup(&weights.token_embedding, tokens[row] as usize, hidden);
        if engine.spec.embedding_scale != 1.0 {
            ops::scale(engine.isa, hidden, engine.spec.embedding_scale);
        }
        if let Some(positions) = &weights.position_embedding {
            let mut position = vec![0.0; width];
            lookup(&positions.packed, row_position[row], &mut position);
            ops::add_assign(engine.isa, hidden, &position);
        }
    });
    if let (Some(norm), Some(norm_weights)) = (&engine.spec.embedding_norm, &weights.embedding_norm)
    {
        normalise(
            engine,
            norm,
            norm_weights,
            &scratch.hidden,
            &mut scratch.normed,
        );
        std::mem::swap(&mut scratch.hidden, &mut scratch.normed);
    }
}

/// `hidden += mixer(norm(hidden)); hidden += feed_forward(norm(hidden))`, each output normed and
/// scaled where the model says so.
pub(super) fn layer(
    engine: &Engine,
    weights: &LayerWeights,
    index: usize,
    parts: &mut [Part],
    scratch: &mut Scratch,
) {
    let spec = &engine.spec.layers[index];

    norm_input(engine, &spec.mixer_norm, &weights.mixer_norm, scratch);
    let width = engine.spec.embedding;
    engine.observe(|| spec.mixer.inputs(), &scratch.normed, width);
    let output = mixer(engine, &weights.mixer, index, parts, scratch);
    let post = spec
        .mixer_post_norm
        .as_ref()
        .zip(weights.mixer_post_norm.as_ref());
    let last = spec.mixer.output();
    project_and_add(engine, output, last, post, spec.residual_scale, scratch);

    norm_input(
        engine,
        &spec.feed_forward_norm,
        &weights.feed_forward_norm,
        scratch,
    );
    engine.observe(|| spec.feed_forward.inputs(), &scratch.normed, width);
    let post = spec
        .feed_forward_post_norm
        .as_ref()
        .zip(weights.feed_forward_post_norm.as_ref());
    let last = spec.feed_forward.output();
    match feed_forward(engine, &weights.feed_forward, index, scratch).zip(last) {
        Some((output, last)) => {
            project_and_add(engine, output, last, post, spec.residual_scale, scratch);
        }
        None => add_branch(engine, post, spec.residual_scale, scratch),
    }
}

/// The rows `rows` of the residual stream after the last norm, shape `[rows, embedding]`.
pub(super) fn final_hidden(
    engine: &Engine,
    rows: std::ops::Range<usize>,
    scratch: &Scratch,
) -> Vec<f32> {
    let width = engine.spec.embedding;
    let hidden = &scratch.hidden[rows.start * width..rows.end * width];
    let mut normed = vec![0.0; hidden.len()];
    let weights = &engine.weights.output_norm;
    normalise(
        engine,
        &engine.spec.output_norm,
        weights,
        hidden,
        &mut normed,
    );
    normed
}

/// Which matrix finishes a branch, and which buffer it reads.
pub(super) struct Projection<'e> {
    pub(super) matrix: &'e Matrix,
    pub(super) from: Source,
}

pub(super) enum Source {
    /// `scratch.mixed`
    Mixed,
    /// `scratch.inner`
    Inner,
    /// `scratch.inner_input`, as it is.
    Quantized,
}

fn mixer<'e>(
    engine: &Engine,
    weights: &'e MixerWeights,
    index: usize,
    parts: &mut [Part],
    scratch: &mut Scratch,
) -> Projection<'e> {
    use crate::model::Mixer;
    match &engine.spec.layers[index].mixer {
        Mixer::Attention(spec) => attention(engine, weights, index, spec, parts, scratch),
        Mixer::ShortConvolution(_) => short_convolution(engine, weights, index, parts, scratch),
    }
}

/// `normed = norm(hidden)`, and its quantised form.
fn norm_input(engine: &Engine, norm: &Norm, weights: &NormWeights, scratch: &mut Scratch) {
    normalise(engine, norm, weights, &scratch.hidden, &mut scratch.normed);
    let width = engine.spec.embedding;
    let context = engine.context();
    scratch
        .input
        .quantize(&context, &scratch.normed, scratch.rows, width);
}

/// `hidden += scale × norm(matrix × buffer)`; without a norm in one pass.
fn project_and_add(
    engine: &Engine,
    projection: Projection<'_>,
    described: &Linear,
    post: Option<(&Norm, &NormWeights)>,
    scale: f32,
    scratch: &mut Scratch,
) {
    let matrix = projection.matrix;
    let columns = matrix.packed.cols();
    let context = engine.context();
    let from = match projection.from {
        Source::Mixed => Some(&scratch.mixed),
        Source::Inner => Some(&scratch.inner),
        Source::Quantized => None,
    };
    if let Some(from) = from {
        let from = &from[..scratch.rows * columns];
        engine.observe(|| vec![described], from, columns);
        scratch
            .inner_input
            .quantize(&context, from, scratch.rows, columns);
    }
    let out = match post {
        None => &mut scratch.hidden,
        Some(_) => &mut scratch.branch,
    };
    matmul(
        &context,
        &matrix.packed,
        &scratch.inner_input,
        out,
        &Epilogue {
            bias: matrix.bias.as_deref(),
            scale: if post.is_none() { scale } else { 1.0 },
            accumulate: post.is_none(),
        },
    );
    if post.is_some() {
        add_branch(engine, post, scale, scratch);
    }
}

/// `hidden += scale × norm(branch)`.
fn add_branch(
    engine: &Engine,
    post: Option<(&Norm, &NormWeights)>,
    scale: f32,
    scratch: &mut Scratch,
) {
    if let Some((norm, weights)) = post {
        normalise(engine, norm, weights, &scratch.branch, &mut scratch.normed);
        std::mem::swap(&mut scratch.branch, &mut scratch.normed);
    }
    let width = engine.spec.embedding;
    let isa = engine.isa;
    let branch = &scratch.branch;
    for_each_row(engine, &mut scratch.hidden, width, |row, hidden| {
        let branch = &branch[row * width..(row + 1) * width];
        if scale == 1.0 {
            ops::add_assign(isa, hidden, branch);
        } else {
            ops::scale_add(isa, hidden, branch, scale);
        }
    });
}

/// Normalises every row of `x`, [rows, length].
pub(super) fn normalise(
    engine: &Engine,
    norm: &Norm,
    weights: &NormWeights,
    x: &[f32],
    out: &mut [f32],
) {
    let (isa, length) = (engine.isa, norm.length);
    for_each_row(engine, out, length, |row, out| {
        let x = &x[row * length..(row + 1) * length];
        match norm.kind {
            NormKind::RootMeanSquare => {
                ops::rms_norm(isa, x, &weights.weight, norm.epsilon, out);
                if let Some(bias) = &weights.bias {
                    ops::add_assign(isa, out, bias);
                }
            }
            NormKind::MeanAndVariance => ops::layer_norm(
                isa,
                x,
                &weights.weight,
                weights.bias.as_deref(),
                norm.epsilon,
                out,
            ),
        }
    });
}

/// Rows that are handed to a thread together.
const ROWS_PER_CHUNK: usize = 8;

/// Calls `f` with the index and content of every row of `buffer`, on all threads when there are
/// several.
pub(super) fn for_each_row(
    engine: &Engine,
    buffer: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    if buffer.len() <= ROWS_PER_CHUNK * width {
        for (row, content) in buffer.chunks_exact_mut(width).enumerate() {
            f(row, content);
        }
        return;
    }
    engine
        .pool
        .for_each_chunk_mut(buffer, ROWS_PER_CHUNK * width, |chunk, rows| {
            for (offset, content) in rows.chunks_exact_mut(width).enumerate() {
                f(chunk * ROWS_PER_CHUNK + offset, content);
            }
        });
}

fn lookup(matrix: &ondine_kernels::PackedMatrix, row: usize, out: &mut [f32]) {
    // Rows were checked against the vocabulary and the context before.
    let found = matrix.dequantize_row(row, out);
    debug_assert!(found.is_ok());
}
