//! The input of matrix products.

use std::ops::Range;

use half::{bf16, f16};

use crate::arch::product::quantize_rows;
use crate::arch::threads::DisjointPieces;
use crate::packed::layout::BLOCK;
use crate::{Context, TensorType};

/// Tokens of a full tile.
pub(crate) const TILE: usize = 16;
/// Words of one token in one block: 8 of codes, the scale, the negated sum of the codes, that of the first 16, and the
/// scale times the negated sum as f32.
pub(crate) const WORDS: usize = 12;
/// From this many elements on, quantising is worth all threads.
const PARALLEL: usize = 1 << 15;

/// A batch of inputs in the forms that the weights need; reused from step to step.
///
/// Quantised weights take blocks of 32 signed bytes with an f32 scale (the largest size / 127, codes rounded to the
/// nearest even) and the sum of their codes; float weights take the numbers rounded to their own type, as other engines
/// do, so that results compare. A block with a number that is not finite becomes NaN as a whole; one whose numbers are
/// all below 1e-30 becomes zero.
#[derive(Clone, Debug)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    /// Tiles of up to 16 tokens: [block][codes: [token, 8], then four words for each token];
    /// empty where rows do not
    /// fill whole blocks.
    panels: Vec<Line>,
    /// The types of float weights that will read this, and the inputs rounded to each, [tokens, cols].
    floats: Vec<(TensorType, Vec<f32>)>,
}

impl Default for Activations {
    /// For weights of any type.
    fn default() -> Self {
        let mut activations = Activations {
            tokens: 0,
            cols: 0,
            panels: Vec::new(),
            floats: Vec::new(),
        };
        activations.set_float_types(&[TensorType::F32, TensorType::F16, TensorType::BF16]);
        activations
    }
}

/// A cache line.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([i32; 16]);

/// Tokens that a kernel takes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenTile {
    /// The first token.
    pub(crate) first: usize,
    /// Tokens, at most `width`.
    pub(crate) tokens: usize,
    /// Tokens in the panel, a power of two; the ones above `tokens` are zero.
    pub(crate) width: usize,
}

impl Activations {
    /// Keeps the forms for these types of float weights from now on, besides the one for quantised weights: saves copies
    /// where a model has no such matrices.
    pub fn set_float_types(&mut self, types: &[TensorType]) {
        self.floats = types.iter().map(|&ty| (ty, Vec::new())).collect();
    }

    /// Takes `x`, [tokens, cols].
    ///
    /// # Panics
    /// If `x` has another length than `tokens * cols`.
    pub fn quantize(&mut self, context: &Context<'_>, x: &[f32], tokens: usize, cols: usize) {
        let len = tokens
            .checked_mul(cols)
            .expect("inputs that fit into memory");
        assert_eq!(x.len(), len, "inputs of {tokens} tokens of {cols}");
        (self.tokens, self.cols) = (tokens, cols);
        let blocks = if cols.is_multiple_of(BLOCK) {
            cols / BLOCK
        } else {
            0
        };
        for (_, floats) in &mut self.floats {
            floats.resize(len, 0.0);
        }
        let words = panel_start(tokens) * blocks * WORDS;
        self.panels.resize(words.div_ceil(16), Line::default());
        if len == 0 {
            return;
        }

        let panels = &mut bytemuck::cast_slice_mut::<Line, i32>(&mut self.panels)[..words];
        let panels = DisjointPieces::new(panels, (TILE * blocks * WORDS).max(1));
        let floats: Vec<_> = self
            .floats
            .iter_mut()
            .map(|(ty, floats)| (*ty, DisjointPieces::new(floats, TILE * cols)))
            .collect();
        let work = |index: usize| {
            let range = index * TILE..tokens.min((index + 1) * TILE);
            let x = &x[range.start * cols..range.end * cols];
            for (ty, floats) in &floats {
                round_to(*ty, x, floats.take(index));
            }
            if blocks > 0 {
                let mut rest = panels.take(index);
                for tile in tiles(range.clone(), tokens) {
                    let (panel, later) = rest.split_at_mut(tile.width * blocks * WORDS);
                    rest = later;
                    let x = &x[(tile.first - range.start) * cols..][..tile.tokens * cols];
                    quantize_rows(context.isa, x, cols, tile.width, panel);
                }
            }
        };
        let pieces = tokens.div_ceil(TILE);
        if len < PARALLEL {
            (0..pieces).for_each(work);
        } else {
            context.pool.run(pieces, &work);
        }
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Length of each token's input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        let floats = self.floats.iter().map(|(_, floats)| floats.capacity() * 4);
        self.panels.capacity() * size_of::<Line>() + floats.sum::<usize>()
    }

    /// Inputs as float weights of type `ty` take them, [tokens, cols].
    ///
    /// # Panics
    /// If `ty` was left out by [`set_float_types`](Self::set_float_types).
    pub(crate) fn floats(&self, ty: TensorType) -> &[f32] {
        let kept = self.floats.iter().find(|(kept, _)| *kept == ty);
        &kept.expect("activations that keep this type").1
    }

    /// The tiles of some tokens; `range` starts at a multiple of [`TILE`] and ends at one or at the last token.
    pub(crate) fn tiles(&self, range: Range<usize>) -> impl Iterator<Item = TokenTile> + use<> {
        tiles(range, self.tokens)
    }

    /// The panel of a tile, [block][[`WORDS`] * width].
    pub(crate) fn panel(&self, tile: TokenTile) -> &[i32] {
        let words = self.cols / BLOCK * WORDS;
        let in_tail = tile.first - tile.first / TILE * TILE;
        let start = if in_tail == 0 {
            tile.first
        } else {
            // Tiles of the tail are padded, so count what lies before.
            let tail = tile.first - in_tail;
            tail + tiles(tail..self.tokens, self.tokens)
                .take_while(|before| before.first < tile.first)
                .map(|before| before.width)
                .sum::<usize>()
        };
        &bytemuck::cast_slice(&self.panels)[start * words..(start + tile.width) * words]
    }
}

/// Numbers of type `ty` next to `x`; beyond its range the largest, so that a product stays finite.
fn round_to(ty: TensorType, x: &[f32], out: &mut [f32]) {
    let largest = f16::MAX.to_f32();
    match ty {
        TensorType::F16 => {
            for (out, x) in out.iter_mut().zip(x) {
                *out = f16::from_f32(x.clamp(-largest, largest)).to_f32();
            }
        }
        TensorType::BF16 => {
            for (out, x) in out.iter_mut().zip(x) {
                *out = bf16::from_f32(*x).to_f32();
            }
        }
        _ => out.copy_from_slice(x),
    }
}

/// Tokens in the panels of `tokens` tokens, padding included.
fn panel_start(tokens: usize) -> usize {
    let tail = tokens / TILE * TILE;
    tail + tiles(tail..tokens, tokens)
        .map(|tile| tile.width)
        .sum::<usize>()
}

/// Widths of the tiles for 0 to 15 tokens: wide enough that weights are unpacked rarely, with little padding.
const TAILS: [&[usize]; TILE] = [
    &[],
    &[1],
    &[2],
    &[4],
    &[4],
    &[4, 1],
    &[4, 2],
    &[8],
    &[8],
    &[8, 1],
    &[8, 2],
    &[8, 4],
    &[8, 4],
    &[16],
    &[16],
    &[16],
];

fn tiles(range: Range<usize>, tokens: usize) -> impl Iterator<Item = TokenTile> {
    let tail = (tokens / TILE * TILE).max(range.start);
    let full = (range.start..range.end.min(tail))
        .step_by(TILE)
        .map(|first| TokenTile {
            first,
            tokens: TILE,
            width: TILE,
        });
    let rest = range.end.saturating_sub(tail);
    let tail = TAILS[rest].iter().scan(tail, move |first, &width| {
        let tile = TokenTile {
            first: *first,
            tokens: width.min(range.end - *first),
            width,
        };
        *first += width;
        Some(tile)
    });
    full.chain(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, numbers};
    use crate::{Isa, ThreadPool};

    #[test]
    fn tiles_cover_tokens_once() {
        for tokens in 0..100 {
            let mut next = 0;
            for tile in tiles(0..tokens, tokens) {
                assert_eq!(tile.first, next);
                assert!(tile.tokens > 0 && tile.tokens <= tile.width && tile.width <= TILE);
                next += tile.tokens;
            }
            assert_eq!(next, tokens);
        }
    }

    /// (codes, scale) of every block of every token.
    fn read(x: &Activations) -> Vec<(Vec<i8>, f32)> {
        let mut out = Vec::new();
        for tile in x.tiles(0..x.tokens()) {
            let panel = x.panel(tile);
            for token in 0..tile.tokens {
                for block in panel.chunks_exact(WORDS * tile.width) {
                    let codes: Vec<i8> = block[8 * token..8 * token + 8]
                        .iter()
                        .flat_map(|word| word.to_le_bytes().map(|byte| byte as i8))
                        .collect();
                    let sum = |codes: &[i8]| -codes.iter().map(|&x| i32::from(x)).sum::<i32>();
                    assert_eq!(block[9 * tile.width + token], sum(&codes));
                    assert_eq!(block[10 * tile.width + token], sum(&codes[..16]));
                    out.push((codes, f32::from_bits(block[8 * tile.width + token] as u32)));
                }
            }
        }
        out
    }

    #[test]
    fn blocks_are_near_their_numbers_on_each_isa() {
        let pool = ThreadPool::new(2);
        for tokens in [1, 2, 3, 5, 13, 16, 33, 40] {
            let cols = 96;
            let mut x = numbers(tokens * cols, tokens as u64, 3.0);
            x[..32].fill(0.0);
            x[40] = 1e-20;
            let run = |isa| {
                let mut activations = Activations::default();
                activations.quantize(&Context { isa, pool: &pool }, &x, tokens, cols);
                assert_eq!(activations.floats(TensorType::F32), x);
                read(&activations)
            };
            let expected = run(Isa::Scalar);
            for (x, (codes, scale)) in x.chunks_exact(32).zip(&expected) {
                let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
                assert!((scale - largest / 127.0).abs() <= largest / 127.0 / 2048.0);
                for (x, &code) in x.iter().zip(codes) {
                    assert!((x - f32::from(code) * scale).abs() <= 0.57 * scale);
                }
            }
            for isa in each_isa() {
                assert_eq!(run(isa), expected, "{isa:?}");
            }
        }
    }

    #[test]
    fn float_weights_take_inputs_of_their_own_type() {
        let pool = ThreadPool::new(1);
        let context = Context {
            isa: Isa::Scalar,
            pool: &pool,
        };
        let x = [1.0, 1.0 + 2f32.powi(-12), 1e9, -f32::INFINITY, 0.1];
        let mut activations = Activations::default();
        activations.quantize(&context, &x, 1, x.len());
        let halves = activations.floats(TensorType::F16);
        assert_eq!(halves[..4], [1.0, 1.0, 65504.0, -65504.0]);
        assert_eq!(halves[4].to_bits(), 0x3dcc_c000);
        let short = activations.floats(TensorType::BF16);
        assert_eq!(short[..2], [1.0, 1.0]);
        assert_eq!(short[4].to_bits(), 0x3dcd_0000);
        assert_eq!(activations.floats(TensorType::F32), x);
    }

    #[test]
    fn numbers_that_are_not_finite_stay_in_their_block() {
        let pool = ThreadPool::new(1);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for isa in each_isa() {
                let mut x = numbers(64, 1, 1e30);
                x[37] = bad;
                x[0] = 1e-40;
                let mut activations = Activations::default();
                activations.quantize(&Context { isa, pool: &pool }, &x, 1, 64);
                let blocks = read(&activations);
                assert!(blocks[0].1.is_finite());
                assert!(blocks[1].1.is_nan() && blocks[1].0 == [0; 32], "{isa:?}");
                activations.quantize(&Context { isa, pool: &pool }, &[1e-31; 64], 1, 64);
                assert_eq!(read(&activations)[1], (vec![0; 32], 0.0));
            }
        }
    }
}
