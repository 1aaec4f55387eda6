//! LFM2's gated short convolution.

use ondine_kernels::{matmul_group, ops};

use super::attention::job;
use super::layer::{Projection, Source};
use super::scratch::Scratch;
use super::weights::MixerWeights;
use super::{Engine, Part};
use crate::kv_cache::LayerState;

/// `mixed = c × conv(b × x)` with `b, c, x = input(normed)`.
pub(super) fn short_convolution<'e>(
    engine: &Engine,
    weights: &'e MixerWeights,
    index: usize,
    parts: &mut [Part],
    scratch: &mut Scratch,
) -> Projection<'e> {
    let MixerWeights::ShortConvolution {
        input,
        kernel,
        output,
    } = weights
    else {
        unreachable!("weights are loaded from the same description");
    };
    let width = engine.spec.embedding;
    let isa = engine.isa;
    matmul_group(
        &engine.context(),
        &mut [job(input, &mut scratch.query[..scratch.rows * 3 * width])],
        &scratch.input,
    );
    for part in parts {
        let LayerState::History(history) = &mut part.state.layers[index] else {
            continue;
        };
        let mut gated = vec![0.0; part.rows.len() * width];
        for (row, gated) in part.rows.clone().zip(gated.chunks_exact_mut(width)) {
            let bcx = &scratch.query[row * 3 * width..(row + 1) * 3 * width];
            ops::mul(isa, &bcx[..width], &bcx[2 * width..], gated);
        }
        let mut state = kernel.initial_state();
        state.rows_mut().copy_from_slice(&history.state());
        let mixed = &mut scratch.mixed[part.rows.start * width..part.rows.end * width];
        kernel.run(isa, &mut state, &gated, mixed);
        history.push(&gated);
        for (row, mixed) in part.rows.clone().zip(mixed.chunks_exact_mut(width)) {
            let c = &scratch.query[row * 3 * width + width..][..width];
            ops::mul_assign(isa, mixed, c);
        }
    }
    Projection {
        matrix: output,
        from: Source::Mixed,
    }
}
