//! Positions: rotary embedding with its scaling variants, and ALiBi slopes.

use std::f64::consts::PI;
use std::sync::OnceLock;

use crate::Isa;
use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch};

/// Positions whose angles are computed together.
const BLOCK_POSITIONS: usize = 64;

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Adjacent pairs: `(0, 1), (2, 3), …` (Llama files in GGUF).
    Norm,
    /// The two halves of the rotated part: `(0, n/2), (1, n/2 + 1), …` (GPT-NeoX, Qwen, Gemma).
    Neox,
}

/// YaRN's interpolation between frequencies (Peng et al. 2023), in ggml's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct YarnParams {
    /// Share of the correction that is applied; 0 switches it off and leaves linear scaling.
    pub ext_factor: f32,
    /// Factor on cosine and sine. With `ext_factor` other than 0 they are also multiplied by
    /// `1 + 0.1 ln(1 / frequency_scale)`.
    pub attn_factor: f32,
    /// Rotations within the original context above which a dimension is left alone (usually 32).
    pub beta_fast: f32,
    /// Rotations within the original context below which a dimension is fully scaled (usually 1).
    pub beta_slow: f32,
    /// Context length of the original training, in tokens.
    pub original_context: usize,
}

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeParams {
    /// Which elements are rotated together.
    pub style: RopeStyle,
    /// Leading elements of each head that are rotated: even, at most the head's size.
    pub rotary_dims: usize,
    /// Base of the frequencies (10,000 in the first models).
    pub frequency_base: f32,
    /// Linear scaling: positions are multiplied by it (1 / context extension factor; 1 for none).
    pub frequency_scale: f32,
    /// Divisors of the frequencies, one for each pair (Llama 3, LongRoPE); shape `[rotary_dims / 2]`.
    pub frequency_factors: Option<Vec<f32>>,
    /// YaRN, if the model uses it. `attn_factor` also serves LongRoPE's magnitude factor, with `ext_factor` 0.
    pub yarn: Option<YarnParams>,
}

impl RopeParams {
    /// Plain rotary embedding.
    pub fn new(style: RopeStyle, rotary_dims: usize, frequency_base: f32) -> RopeParams {
        RopeParams {
            style,
            rotary_dims,
            frequency_base,
            frequency_scale: 1.0,
            frequency_factors: None,
            yarn: None,
        }
    }
}

/// Cosines and sines of all positions, computed when first needed (Su et al. 2021).
///
/// Angles are computed in f64 and rounded once, so errors do not grow with the position.
#[derive(Debug)]
pub struct RopeTable {
    style: RopeStyle,
    rotary_dims: usize,
    /// Angle per position of each pair; shape `[rotary_dims / 2]`.
    frequencies: Vec<f64>,
    /// Factor on cosine and sine.
    magnitude: f64,
    /// For each [`BLOCK_POSITIONS`] positions: `[position][row]`, a row being what `fill_row` writes.
    blocks: Vec<OnceLock<Box<[f32]>>>,
}

impl RopeTable {
    /// A table that keeps the angles of positions below `positions`; those beyond are computed at each use.
    ///
    /// # Panics
    /// If `rotary_dims` is odd or `frequency_factors` has another length than `rotary_dims / 2`.
    pub fn new(params: &RopeParams, positions: usize) -> RopeTable {
        assert!(
            params.rotary_dims.is_multiple_of(2),
            "odd number of rotated elements: {}",
            params.rotary_dims
        );
        let pairs = params.rotary_dims / 2;
        if let Some(factors) = &params.frequency_factors {
            assert_eq!(factors.len(), pairs, "one frequency factor for each pair");
        }
        let (frequencies, magnitude) = frequencies(params);
        RopeTable {
            style: params.style,
            rotary_dims: params.rotary_dims,
            frequencies,
            magnitude,
            blocks: (0..positions.div_ceil(BLOCK_POSITIONS))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    /// Rotates heads in place. `heads` has shape `[heads][head_dim]`, all of the token at `position`.
    ///
    /// # Panics
    /// If `head_dim` is smaller than the rotated part or does not divide the length of `heads`.
    pub fn apply(&self, isa: Isa, position: usize, heads: &mut [f32], head_dim: usize) {
        assert!(head_dim >= self.rotary_dims && heads.len().is_multiple_of(head_dim));
        if self.rotary_dims == 0 {
            return;
        }
        let row_len = self.row_len();
        let computed;
        let row = match self.blocks.get(position / BLOCK_POSITIONS) {
            Some(block) => {
                let rows =
                    block.get_or_init(|| self.block(position / BLOCK_POSITIONS * BLOCK_POSITIONS));
                &rows[position % BLOCK_POSITIONS * row_len..][..row_len]
            }
            None => {
                let mut row = vec![0.0; row_len];
                self.fill_row(position, &mut row);
                computed = row;
                &computed
            }
        };
        let (cosines, sines) = row.split_at(row_len / 2);
        for head in heads.chunks_exact_mut(head_dim) {
            let rotated = &mut head[..self.rotary_dims];
            match self.style {
                RopeStyle::Norm => dispatch(
                    isa,
                    RotatePairs {
                        x: rotated,
                        cosines,
                        sines,
                    },
                ),
                RopeStyle::Neox => {
                    let (first, second) = rotated.split_at_mut(self.rotary_dims / 2);
                    dispatch(
                        isa,
                        RotateHalves {
                            first,
                            second,
                            cosines,
                            sines,
                        },
                    );
                }
            }
        }
    }

    /// Radians per position of each rotated pair.
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Factor on sines and cosines.
    pub fn magnitude(&self) -> f64 {
        self.magnitude
    }

    fn row_len(&self) -> usize {
        match self.style {
            RopeStyle::Norm => 2 * self.rotary_dims,
            RopeStyle::Neox => self.rotary_dims,
        }
    }

    fn block(&self, first: usize) -> Box<[f32]> {
        let row_len = self.row_len();
        let mut rows = vec![0.0; BLOCK_POSITIONS * row_len];
        for (index, row) in rows.chunks_exact_mut(row_len).enumerate() {
            self.fill_row(first + index, row);
        }
        rows.into()
    }

    /// Halves style: `[cosine of each pair][sine of each pair]`. Pairs style: both with each pair's value twice, and
    /// the first of the two sines negated.
    fn fill_row(&self, position: usize, row: &mut [f32]) {
        let (cosines, sines) = row.split_at_mut(row.len() / 2);
        for (pair, frequency) in self.frequencies.iter().enumerate() {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            let (sine, cosine) = (
                (sine * self.magnitude) as f32,
                (cosine * self.magnitude) as f32,
            );
            match self.style {
                RopeStyle::Norm => {
                    cosines[2 * pair..2 * pair + 2].fill(cosine);
                    sines[2 * pair..2 * pair + 2].copy_from_slice(&[-sine, sine]);
                }
                RopeStyle::Neox => (cosines[pair], sines[pair]) = (cosine, sine),
            }
        }
    }
}

/// Angle per position of each pair, and the factor on cosine and sine.
fn frequencies(params: &RopeParams) -> (Vec<f64>, f64) {
    let dims = params.rotary_dims as f64;
    let base = f64::from(params.frequency_base);
    let scale = f64::from(params.frequency_scale);
    let ext_factor = params.yarn.map_or(0.0, |yarn| f64::from(yarn.ext_factor));
    let ramp = params.yarn.map(|yarn| {
        // The (fractional) pair that turns `rotations` times within the original context.
        let pair = |rotations: f32| {
            dims * (yarn.original_context as f64 / (f64::from(rotations) * 2.0 * PI)).ln()
                / (2.0 * base.ln())
        };
        (
            pair(yarn.beta_fast).floor().max(0.0),
            pair(yarn.beta_slow).ceil().min(dims - 1.0),
        )
    });
    let frequencies = (0..params.rotary_dims / 2)
        .map(|pair| {
            let factor = params
                .frequency_factors
                .as_ref()
                .map_or(1.0, |factors| f64::from(factors[pair]));
            let plain = base.powf(-2.0 * pair as f64 / dims) / factor;
            let mix = ramp.map_or(0.0, |(low, high)| {
                let place = (pair as f64 - low) / (high - low).max(0.001);
                (1.0 - place.clamp(0.0, 1.0)) * ext_factor
            });
            plain * scale * (1.0 - mix) + plain * mix
        })
        .collect();
    let correction = if ext_factor == 0.0 {
        1.0
    } else {
        1.0 + 0.1 * (1.0 / scale).ln()
    };
    let magnitude = params.yarn.map_or(1.0, |yarn| f64::from(yarn.attn_factor)) * correction;
    (frequencies, magnitude)
}

struct RotatePairs<'a> {
    x: &'a mut [f32],
    cosines: &'a [f32],
    sines: &'a [f32],
}

impl Kernel for RotatePairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (blocks, rest) = self.x.as_chunks_mut::<LANES>();
        let (cosines, cosines_rest) = self.cosines.as_chunks::<LANES>();
        let (sines, sines_rest) = self.sines.as_chunks::<LANES>();
        for ((block, cosine), sine) in blocks.iter_mut().zip(cosines).zip(sines) {
            let x = lanes.load(block);
            let crossed = lanes.mul(lanes.swap_pairs(x), lanes.load(sine));
            lanes.store(lanes.mul_add(x, lanes.load(cosine), crossed), block);
        }
        let (pairs, _) = rest.as_chunks_mut::<2>();
        let cosines_rest = cosines_rest.as_chunks::<2>().0;
        let sines_rest = sines_rest.as_chunks::<2>().0;
        for ((pair, cosine), sine) in pairs.iter_mut().zip(cosines_rest).zip(sines_rest) {
            let [a, b] = *pair;
            *pair = [
                a.mul_add(cosine[0], b * sine[0]),
                b.mul_add(cosine[1], a * sine[1]),
            ];
        }
    }
}

struct RotateHalves<'a> {
    first: &'a mut [f32],
    second: &'a mut [f32],
    cosines: &'a [f32],
    sines: &'a [f32],
}

impl Kernel for RotateHalves<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (first, first_rest) = self.first.as_chunks_mut::<LANES>();
        let (second, second_rest) = self.second.as_chunks_mut::<LANES>();
        let (cosines, cosines_rest) = self.cosines.as_chunks::<LANES>();
        let (sines, sines_rest) = self.sines.as_chunks::<LANES>();
        for (((a_block, b_block), cosine), sine) in
            first.iter_mut().zip(second).zip(cosines).zip(sines)
        {
            let (a, b) = (lanes.load(a_block), lanes.load(b_block));
            let (cosine, sine) = (lanes.load(cosine), lanes.load(sine));
            let negative = lanes.sub(lanes.splat(0.0), sine);
            lanes.store(lanes.mul_add(a, cosine, lanes.mul(b, negative)), a_block);
            lanes.store(lanes.mul_add(b, cosine, lanes.mul(a, sine)), b_block);
        }
        for (((a, b), cosine), sine) in first_rest
            .iter_mut()
            .zip(second_rest)
            .zip(cosines_rest)
            .zip(sines_rest)
        {
            (*a, *b) = (
                a.mul_add(*cosine, *b * -sine),
                b.mul_add(*cosine, *a * sine),
            );
        }
    }
}

/// ALiBi's slope of each head (Press et al. 2021): powers of `2^(-max_bias / n)` for the first `n` heads, `n` being
/// the largest power of two within `heads`, and every other power of `2^(-max_bias / 2n)` for the others. The
/// bias of a key is `-slope * distance`.
pub fn alibi_slopes(heads: usize, max_bias: f32) -> Vec<f32> {
    let regular = if heads == 0 {
        1
    } else {
        1usize << heads.ilog2()
    };
    let step = -f64::from(max_bias) / regular as f64;
    (0..heads)
        .map(|head| {
            let exponent = if head < regular {
                step * (head + 1) as f64
            } else {
                step / 2.0 * (2 * (head - regular) + 1) as f64
            };
            exponent.exp2() as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, numbers};

    /// Allowed error relative to the largest element: two products and their sum in f32, of rounded factors.
    const TOLERANCE: f64 = 4e-7;

    /// ggml's formula, position by position, in f64.
    fn exact(params: &RopeParams, position: usize, head: &[f32]) -> Vec<f64> {
        let n = params.rotary_dims;
        let mut out: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
        for pair in 0..n / 2 {
            let factor = params
                .frequency_factors
                .as_ref()
                .map_or(1.0, |f| f64::from(f[pair]));
            let extrapolated = position as f64
                * f64::from(params.frequency_base).powf(-2.0 * pair as f64 / n as f64)
                / factor;
            let mut theta = extrapolated * f64::from(params.frequency_scale);
            let mut magnitude = 1.0;
            if let Some(yarn) = params.yarn {
                magnitude = f64::from(yarn.attn_factor);
                if yarn.ext_factor != 0.0 {
                    let place = |beta: f32| {
                        n as f64
                            * (yarn.original_context as f64 / (f64::from(beta) * 2.0 * PI)).ln()
                            / (2.0 * f64::from(params.frequency_base).ln())
                    };
                    let low = place(yarn.beta_fast).floor().max(0.0);
                    let high = place(yarn.beta_slow).ceil().min(n as f64 - 1.0);
                    let y = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    let mix = (1.0 - y) * f64::from(yarn.ext_factor);
                    theta = theta * (1.0 - mix) + extrapolated * mix;
                    magnitude *= 1.0 + 0.1 * (1.0 / f64::from(params.frequency_scale)).ln();
                }
            }
            let (i, j) = match params.style {
                RopeStyle::Norm => (2 * pair, 2 * pair + 1),
                RopeStyle::Neox => (pair, pair + n / 2),
            };
            let (a, b) = (f64::from(head[i]), f64::from(head[j]));
            out[i] = (a * theta.cos() - b * theta.sin()) * magnitude;
            out[j] = (a * theta.sin() + b * theta.cos()) * magnitude;
        }
        out
    }

    fn variants(style: RopeStyle, dims: usize) -> Vec<RopeParams> {
        let plain = RopeParams::new(style, dims, 10_000.0);
        let yarn = YarnParams {
            ext_factor: 1.0,
            attn_factor: 0.9,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096,
        };
        vec![
            RopeParams {
                frequency_scale: 0.125,
                ..plain.clone()
            },
            RopeParams {
                frequency_factors: Some((0..dims / 2).map(|i| 1.0 + i as f32 * 0.3).collect()),
                ..plain.clone()
            },
            RopeParams {
                frequency_scale: 0.25,
                yarn: Some(yarn),
                ..plain.clone()
            },
            RopeParams {
                yarn: Some(YarnParams {
                    ext_factor: 0.0,
                    ..yarn
                }),
                ..plain.clone()
            },
            plain,
        ]
    }

    #[test]
    fn rotation_matches_the_formula_for_all_variants() {
        for style in [RopeStyle::Norm, RopeStyle::Neox] {
            for (dims, head_dim) in [(64, 64), (20, 32), (6, 6), (2, 5), (0, 8), (128, 256)] {
                for params in variants(style, dims) {
                    let table = RopeTable::new(&params, 130);
                    for position in [0, 1, 63, 64, 129, 5000, 100_000] {
                        let x = numbers(3 * head_dim, position as u64, 2.0);
                        let expected: Vec<f64> = x
                            .chunks(head_dim)
                            .flat_map(|head| exact(&params, position, head))
                            .collect();
                        let mut first: Option<Vec<f32>> = None;
                        for isa in each_isa() {
                            let mut got = x.clone();
                            table.apply(isa, position, &mut got, head_dim);
                            for (got, expected) in got.iter().zip(&expected) {
                                let error = (f64::from(*got) - expected).abs();
                                assert!(
                                    error <= TOLERANCE * 3.0,
                                    "{params:?} at {position}: {got} {expected}"
                                );
                            }
                            assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{isa:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_two_styles_are_told_apart() {
        let x = numbers(64, 1, 2.0);
        let mut got = x.clone();
        RopeTable::new(&RopeParams::new(RopeStyle::Norm, 64, 10_000.0), 8).apply(
            Isa::detect(),
            3,
            &mut got,
            64,
        );
        let other = exact(&RopeParams::new(RopeStyle::Neox, 64, 10_000.0), 3, &x);
        assert!(
            got.iter()
                .zip(&other)
                .any(|(a, b)| (f64::from(*a) - b).abs() > TOLERANCE * 3.0)
        );
    }

    #[test]
    fn slopes_match_known_values() {
        assert_eq!(
            alibi_slopes(8, 8.0),
            (1..=8).map(|i| 0.5f32.powi(i)).collect::<Vec<_>>()
        );
        let twelve = alibi_slopes(12, 8.0);
        assert_eq!(twelve[..8], alibi_slopes(8, 8.0));
        for (head, slope) in twelve[8..].iter().enumerate() {
            let expected = 2f64.powf(-0.5 * (2 * head + 1) as f64);
            assert!((f64::from(*slope) - expected).abs() < 1e-7);
        }
        assert!(alibi_slopes(0, 8.0).is_empty());
    }
}
