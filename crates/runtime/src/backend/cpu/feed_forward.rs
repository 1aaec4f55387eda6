//! The feed-forward networks: gated, plain, and sparse mixtures of experts.

use ondine_kernels::{Epilogue, matmul, matmul_gated, matmul_gated_quantized, ops};

use super::Engine;
use super::attention::job;
use super::layer::{Projection, Source};
use super::scratch::Scratch;
use super::weights::{FeedForwardWeights, GatedWeights, Matrix};
use crate::model::{Activation, Experts, FeedForward, GatedFeedForward};

/// Leaves the network's inner activations in `inner` and says which matrix finishes it; or, for
/// experts, leaves the finished sum in `branch`.
pub(super) fn feed_forward<'e>(
    engine: &Engine,
    weights: &'e FeedForwardWeights,
    index: usize,
    scratch: &mut Scratch,
) -> Option<Projection<'e>> {
    let spec = &engine.spec.layers[index].feed_forward;
    let rows = scratch.rows;
    match (spec, weights) {
        (FeedForward::Gated(spec), FeedForwardWeights::Gated(weights)) => {
            if gated_quantized(engine, weights, spec.activation, scratch) {
                return Some(Projection {
                    matrix: &weights.down,
                    from: Source::Quantized,
                });
            }
            let inner = &mut scratch.inner[..rows * spec.gate.rows];
            gated(engine, weights, spec.activation, &scratch.input, inner);
            Some(inner_projection(&weights.down))
        }
        (FeedForward::Plain { activation, .. }, FeedForwardWeights::Plain { up, down }) => {
            let inner = &mut scratch.inner[..rows * up.packed.rows()];
            ondine_kernels::matmul_group(&engine.context(), &mut [job(up, inner)], &scratch.input);
            ops::activate(engine.isa, kernel_activation(*activation), inner);
            Some(inner_projection(down))
        }
        (
            FeedForward::Experts(spec),
            FeedForwardWeights::Experts {
                router,
                experts,
                shared,
            },
        ) => {
            let routed = route(engine, spec, router, scratch);
            mixture(engine, spec, index, &routed, experts, scratch);
            everyone(engine, spec, shared.as_ref(), scratch);
            None
        }
        _ => unreachable!("weights are loaded from the same description"),
    }
}

fn inner_projection(down: &Matrix) -> Projection<'_> {
    Projection {
        matrix: down,
        from: Source::Inner,
    }
}

/// Leaves the inner activations in `inner_input`, ready for the next product, if that is possible.
fn gated_quantized(
    engine: &Engine,
    weights: &GatedWeights,
    activation: Activation,
    scratch: &mut Scratch,
) -> bool {
    if weights.gate.bias.is_some() || weights.up.bias.is_some() || engine.is_observed() {
        return false;
    }
    matmul_gated_quantized(
        &engine.context(),
        &weights.gate.packed,
        &weights.up.packed,
        &scratch.input,
        kernel_activation(activation),
        &mut scratch.inner_input,
    )
}

fn gated(
    engine: &Engine,
    weights: &GatedWeights,
    activation: Activation,
    input: &ondine_kernels::Activations,
    inner: &mut [f32],
) {
    let context = engine.context();
    let activation = kernel_activation(activation);
    if weights.gate.bias.is_none() && weights.up.bias.is_none() {
        let (gate, up) = (&weights.gate.packed, &weights.up.packed);
        matmul_gated(&context, gate, up, input, activation, inner);
        return;
    }
    let mut up = vec![0.0; inner.len()];
    ondine_kernels::matmul_group(
        &context,
        &mut [job(&weights.gate, inner), job(&weights.up, &mut up)],
        input,
    );
    let gate = inner.to_vec();
    ops::gated_product(engine.isa, activation, &gate, &up, inner);
}

/// `branch = Σ weight(token, expert) × expert(normed)`, each expert computing its tokens together.
fn mixture(
    engine: &Engine,
    spec: &Experts,
    index: usize,
    routed: &[(usize, usize, f32)],
    experts: &[GatedWeights],
    scratch: &mut Scratch,
) {
    scratch.branch.fill(0.0);
    let mut wanted: Vec<usize> = routed.iter().map(|(_, expert, _)| *expert).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let weights = &engine.weights;
    weights.with_experts(index, &wanted, experts, &mut |position, weights| {
        let expert = wanted[position];
        let mine: Vec<(usize, f32)> = routed
            .iter()
            .filter(|(_, chosen, _)| *chosen == expert)
            .map(|(row, _, weight)| (*row, *weight))
            .collect();
        let expert = &spec.experts[expert];
        run_expert(engine, expert, weights, &mine, scratch);
    });
}

/// `branch += shared(normed)` where the model has an expert for every token.
fn everyone(engine: &Engine, spec: &Experts, shared: Option<&GatedWeights>, scratch: &mut Scratch) {
    if let (Some(shared), Some(shared_spec)) = (shared, &spec.shared) {
        let everyone: Vec<(usize, f32)> = (0..scratch.rows).map(|row| (row, 1.0)).collect();
        run_expert(engine, shared_spec, shared, &everyone, scratch);
    }
}

/// The chosen experts as (row, expert, weight), row by row.
fn route(
    engine: &Engine,
    spec: &Experts,
    router: &Matrix,
    scratch: &mut Scratch,
) -> Vec<(usize, usize, f32)> {
    let count = spec.router.rows;
    let mut scores = vec![0.0; scratch.rows * count];
    matmul(
        &engine.context(),
        &router.packed,
        &scratch.input,
        &mut scores,
        &Epilogue {
            bias: router.bias.as_deref(),
            scale: 1.0,
            accumulate: false,
        },
    );
    let mut routed = Vec::with_capacity(scratch.rows * spec.used);
    let mut chosen = vec![0; spec.used];
    for (row, scores) in scores.chunks_exact_mut(count).enumerate() {
        ops::softmax(engine.isa, scores);
        ops::top_k(scores, &mut chosen);
        let sum: f32 = chosen.iter().map(|&expert| scores[expert]).sum();
        // The smallest normal f16 keeps a sum of zeros from dividing, as the reference does.
        let divisor = if spec.normalise {
            sum.max(6.103_515_6e-5)
        } else {
            1.0
        };
        for &expert in &chosen {
            routed.push((row, expert, scores[expert] / divisor * spec.weight_scale));
        }
    }
    routed
}

/// Adds `weight × expert(normed[row])` to the branch of every (row, weight).
fn run_expert(
    engine: &Engine,
    spec: &GatedFeedForward,
    weights: &GatedWeights,
    mine: &[(usize, f32)],
    scratch: &mut Scratch,
) {
    let width = engine.spec.embedding;
    let inner_width = weights.gate.packed.rows();
    let context = engine.context();
    let mut picked = Vec::with_capacity(mine.len() * width);
    for &(row, _) in mine {
        picked.extend_from_slice(&scratch.normed[row * width..(row + 1) * width]);
    }
    engine.observe(|| vec![&spec.gate, &spec.up], &picked, width);
    scratch
        .inner_input
        .quantize(&context, &picked, mine.len(), width);
    let mut inner = vec![0.0; mine.len() * inner_width];
    gated(
        engine,
        weights,
        spec.activation,
        &scratch.inner_input,
        &mut inner,
    );
    engine.observe(|| vec![&spec.down], &inner, inner_width);
    scratch
        .inner_input
        .quantize(&context, &inner, mine.len(), inner_width);
    let mut out = picked;
    ondine_kernels::matmul_group(
        &context,
        &mut [job(&weights.down, &mut out)],
        &scratch.inner_input,
    );
    for (&(row, weight), out) in mine.iter().zip(out.chunks_exact(width)) {
        let branch = &mut scratch.branch[row * width..(row + 1) * width];
        ops::scale_add(engine.isa, branch, out, weight);
    }
}

fn kernel_activation(activation: Activation) -> ops::Activation {
    match activation {
        Activation::Silu => ops::Activation::Silu,
        Activation::GeluTanh => ops::Activation::GeluTanh,
    }
}
