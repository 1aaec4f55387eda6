//! Causal attention over the pages of every sequence of the chunk.

use ondine_kernels::{
    AttentionJob, AttentionParams, Epilogue, MatmulJob, matmul_group,
    ops::{self, alibi_slopes},
};

use super::layer::{Projection, Source, for_each_row, normalise};
use super::scratch::Scratch;
use super::weights::{Matrix, MixerWeights};
use super::{Engine, Part};
use crate::kv_cache::LayerState;
use crate::model::Attention;

/// `mixed = softmax(scale × q kᵀ) v` with the keys and values of the chunk appended to the pages.
pub(super) fn attention<'e>(
    engine: &Engine,
    weights: &'e MixerWeights,
    index: usize,
    spec: &Attention,
    parts: &mut [Part],
    scratch: &mut Scratch,
) -> Projection<'e> {
    let MixerWeights::Attention {
        query,
        key,
        value,
        output,
        query_norm,
        key_norm,
    } = weights
    else {
        unreachable!("weights are loaded from the same description");
    };
    let rows = scratch.rows;
    let query_width = spec.heads * spec.key_dim;
    let key_width = spec.kv_heads * spec.key_dim;
    let value_width = spec.kv_heads * spec.value_dim;
    for part in parts.iter() {
        if let (LayerState::Pages(pages), 1) = (&part.state.layers[index], part.rows.len()) {
            pages.prepare(part.first_position);
        }
    }
    matmul_group(
        &engine.context(),
        &mut [
            job(query, &mut scratch.query[..rows * query_width]),
            job(key, &mut scratch.key[..rows * key_width]),
            job(value, &mut scratch.value[..rows * value_width]),
        ],
        &scratch.input,
    );
    if let Some(limit) = spec.clamp {
        for buffer in [&mut scratch.query, &mut scratch.key, &mut scratch.value] {
            ops::clamp(engine.isa, buffer, -limit, limit);
        }
    }
    if let (Some(norms), Some(query_weights), Some(key_weights)) =
        (&spec.query_key_norm, query_norm, key_norm)
    {
        for (norm, weights, buffer, width) in [
            (&norms.query, query_weights, &mut scratch.query, query_width),
            (&norms.key, key_weights, &mut scratch.key, key_width),
        ] {
            let source = buffer[..rows * width].to_vec();
            normalise(engine, norm, weights, &source, &mut buffer[..rows * width]);
        }
    }
    if let Some(table) = engine.ropes.of(index) {
        let positions = positions(parts, rows);
        let isa = engine.isa;
        for (buffer, width) in [
            (&mut scratch.query, query_width),
            (&mut scratch.key, key_width),
        ] {
            for_each_row(engine, &mut buffer[..rows * width], width, |row, heads| {
                table.apply(isa, positions[row], heads, spec.key_dim);
            });
        }
    }
    for part in parts.iter_mut() {
        let LayerState::Pages(pages) = &mut part.state.layers[index] else {
            continue;
        };
        let rows = part.rows.clone();
        let keys = &scratch.key[rows.start * key_width..rows.end * key_width];
        let values = &scratch.value[rows.start * value_width..rows.end * value_width];
        if rows.len() == 1 {
            pages.write(part.first_position, keys, values);
        } else {
            pages.write_all(&engine.pool, part.first_position, keys, values);
        }
    }
    attend(engine, index, spec, parts, scratch);
    Projection {
        matrix: output,
        from: Source::Mixed,
    }
}

/// Up to this many rows of a sequence are computed as if they came one by one, so that the scores of tokens that were
/// guessed ahead are, bit by bit, those that they would have had: many rows at once round differently.
const ONE_BY_ONE: usize = 16;

fn attend(engine: &Engine, index: usize, spec: &Attention, parts: &[Part], scratch: &mut Scratch) {
    let slopes = spec
        .alibi_max_bias
        .map(|max_bias| alibi_slopes(spec.heads, max_bias));
    let params = AttentionParams {
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim_k: spec.key_dim,
        head_dim_v: spec.value_dim,
        scale: spec.scale,
        softcap: spec.softcap,
        window: spec.window,
        alibi_slopes: slopes.as_deref(),
    };
    let views: Vec<_> = parts
        .iter()
        .filter_map(|part| match &part.state.layers[index] {
            LayerState::Pages(pages) => Some((part, pages.view())),
            LayerState::History(_) => None,
        })
        .collect();
    let jobs: Vec<AttentionJob<'_>> = views
        .iter()
        .flat_map(|(part, (pages, pages_start))| {
            let step = match part.rows.len() {
                0..=ONE_BY_ONE => 1,
                rows => rows,
            };
            part.rows.clone().step_by(step).map(move |first| {
                let first_position = part.first_position + first - part.rows.start;
                AttentionJob {
                    rows: first..first + step,
                    first_position,
                    pages,
                    pages_start: *pages_start,
                    len: first_position + step,
                }
            })
        })
        .collect();
    let rows = scratch.rows;
    ondine_kernels::attention(
        &engine.context(),
        &params,
        &jobs,
        &scratch.query[..rows * spec.heads * spec.key_dim],
        &mut scratch.mixed[..rows * spec.heads * spec.value_dim],
    );
}

pub(super) fn job<'a>(matrix: &'a Matrix, out: &'a mut [f32]) -> MatmulJob<'a> {
    MatmulJob {
        w: &matrix.packed,
        out,
        epilogue: Epilogue {
            bias: matrix.bias.as_deref(),
            scale: 1.0,
            accumulate: false,
        },
    }
}

fn positions(parts: &[Part], rows: usize) -> Vec<usize> {
    let mut positions = vec![0; rows];
    for part in parts {
        for (offset, row) in part.rows.clone().enumerate() {
            positions[row] = part.first_position + offset;
        }
    }
    positions
}
