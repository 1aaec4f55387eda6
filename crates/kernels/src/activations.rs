//! The input of matrix products.

use std::ops::Range;

use half::{bf16, f16};

use crate::arch::product::{quantize_rows, quantize_span_rows};
use crate::arch::threads::DisjointPieces;
use crate::arch::tiles::DisjointPanels;
use crate::packed::layout::{BLOCK, SPAN, spec};
use crate::{Context, Isa, TensorType};

/// Tokens of a full tile.
pub(crate) const TILE: usize = 16;
/// Words of one token in one block: 8 of codes and the scale, then, where each block has its own scale, the negated sum of
/// the codes, that of the first 16, and the scale times the negated sum as f32; where a span shares the scale, the negated
/// sums of the first and the last 16 codes, and in blocks of even index that of this and that of the next block as a pair
/// of 16 bits each.
pub(crate) const WORDS: usize = 12;
/// From this many elements on, quantising is worth all threads.
const PARALLEL: usize = 1 << 15;

/// A batch of inputs in the forms that the weights need; reused from step to step.
///
/// Quantised weights take blocks of 32 signed bytes with an f32 scale (the largest size / 127, codes rounded to the
/// nearest even) and the sums of their codes; where the format's own scales have a common unit for 256 columns, one scale
/// for 256 codes. Float weights take the numbers rounded to their own type. Other engines do the same, so that results
/// compare. A block with a number that is not finite becomes NaN as a whole; one whose numbers are all below 1e-30
/// becomes zero.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    /// Types and columns of the matrices that will read this; any if unknown.
    readers: Option<Vec<(TensorType, usize)>>,
    /// Tiles of up to 16 tokens: [block][codes: [token, 8], then four words for each token]; empty where no matrix needs
    /// them or rows do not fill whole blocks. First with a scale for each block, then with one for each span.
    panels: [Vec<Line>; 2],
    /// Words of each that are in use: memory is kept for the largest inputs.
    words: [usize; 2],
    /// Inputs rounded to each type of float weights that will read this, [tokens, cols].
    floats: [Vec<f32>; FLOATS.len()],
}

/// The types of float weights.
const FLOATS: [TensorType; 3] = [TensorType::F32, TensorType::F16, TensorType::BF16];

/// How inputs are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// One scale for each block.
    Blocks = 0,
    /// One scale for [`SPAN`] blocks.
    Spans = 1,
}

impl Scaling {
    /// What matrices of type `ty` take; `None` for floats.
    pub(crate) fn of(ty: TensorType) -> Option<Scaling> {
        if FLOATS.contains(&ty) {
            return None;
        }
        Some(if spec(ty).by_spans() {
            Scaling::Spans
        } else {
            Scaling::Blocks
        })
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

impl TokenTile {
    /// Its tokens.
    pub(crate) fn range(self) -> Range<usize> {
        self.first..self.first + self.tokens
    }
}

impl Activations {
    /// Makes only what matrices of these types and columns read from now on: saves copies where others do not occur.
    pub fn read_only_by(&mut self, matrices: impl IntoIterator<Item = (TensorType, usize)>) {
        let mut readers: Vec<_> = matrices.into_iter().collect();
        readers.sort_unstable_by_key(|&(ty, cols)| (ty as u32, cols));
        readers.dedup();
        self.readers = Some(readers);
    }

    /// Whether there is a reader of this many columns whose type is `wanted`.
    fn is_read(&self, cols: usize, wanted: impl Fn(TensorType) -> bool) -> bool {
        self.readers
            .as_ref()
            .is_none_or(|readers| readers.iter().any(|&(ty, of)| of == cols && wanted(ty)))
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
        let words = self.prepare(tokens, cols, len);
        if len == 0 {
            return;
        }
        let blocks = cols / BLOCK;
        let piece = (TILE * blocks * WORDS).max(1);
        let [by_block, by_span] = &mut self.panels;
        let panels = [(by_block, words[0]), (by_span, words[1])].map(|(panels, words)| {
            let panels = &mut bytemuck::cast_slice_mut::<Line, i32>(panels)[..words];
            (words > 0).then(|| DisjointPieces::new(panels, piece))
        });
        let floats: Vec<_> = FLOATS
            .into_iter()
            .zip(&mut self.floats)
            .filter(|(_, floats)| !floats.is_empty())
            .map(|(ty, floats)| (ty, DisjointPieces::new(floats, TILE * cols)))
            .collect();
        let work = |index: usize| {
            let range = index * TILE..tokens.min((index + 1) * TILE);
            let x = &x[range.start * cols..range.end * cols];
            for (ty, floats) in &floats {
                round_to(*ty, x, floats.take(index));
            }
            for (form, panels) in panels.iter().enumerate() {
                let Some(panels) = panels else { continue };
                let mut rest = panels.take(index);
                for tile in tiles(range.clone(), tokens) {
                    let (panel, later) = rest.split_at_mut(tile.width * blocks * WORDS);
                    rest = later;
                    let x = &x[(tile.first - range.start) * cols..][..tile.tokens * cols];
                    if form == Scaling::Blocks as usize {
                        quantize_rows(context.isa, x, cols, tile.width, panel);
                    } else {
                        quantize_span_rows(context.isa, x, cols, tile.width, panel);
                    }
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

    /// Makes room for `len` inputs, those of `tokens` tokens of `cols`, and says how many words each form of panels has.
    fn prepare(&mut self, tokens: usize, cols: usize, len: usize) -> [usize; 2] {
        (self.tokens, self.cols) = (tokens, cols);
        let panel_words = panel_start(tokens) * (cols / BLOCK) * WORDS;
        let words =
            [(Scaling::Blocks, BLOCK), (Scaling::Spans, SPAN * BLOCK)].map(|(form, whole)| {
                let wanted = cols.is_multiple_of(whole)
                    && self.is_read(cols, |ty| Scaling::of(ty) == Some(form));
                if wanted { panel_words } else { 0 }
            });
        for (ty, index) in FLOATS.into_iter().zip(0..) {
            let wanted = self.is_read(cols, |reader| reader == ty);
            self.floats[index].resize(if wanted { len } else { 0 }, 0.0);
        }
        for (panels, words) in self.panels.iter_mut().zip(words) {
            let lines = words.div_ceil(16);
            if panels.len() < lines {
                panels.resize(lines, Line::default());
            }
        }
        self.words = words;
        words
    }

    /// Becomes inputs of `tokens` tokens of `cols` columns that are still to be written run by run, in runs of at least
    /// `columns` columns; `None` if matrices read them in more than one form.
    pub(crate) fn in_runs(
        &mut self,
        tokens: usize,
        cols: usize,
        columns: usize,
    ) -> Option<Runs<'_>> {
        let words = self.prepare(tokens, cols, tokens.checked_mul(cols)?);
        let form = match words.map(|words| words > 0) {
            [true, false] => Scaling::Blocks,
            [false, true] => Scaling::Spans,
            _ => return None,
        };
        if self.floats.iter().any(|floats| !floats.is_empty()) {
            return None;
        }
        let unit = match form {
            Scaling::Blocks => 1,
            Scaling::Spans => SPAN,
        };
        let step = columns.div_ceil(BLOCK).next_multiple_of(unit);
        let panels = bytemuck::cast_slice_mut::<Line, i32>(&mut self.panels[form as usize]);
        let tiles: Vec<TokenTile> = tiles(0..tokens, tokens).collect();
        let of_tiles = tiles.iter().map(|tile| tile.width * WORDS);
        let panels = &mut panels[..words[form as usize]];
        Some(Runs {
            form,
            columns: step * BLOCK,
            panels: DisjointPanels::new(panels, of_tiles, cols / BLOCK, step),
            tiles,
        })
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
        let floats = self.floats.iter().map(|floats| floats.capacity() * 4);
        let panels = self
            .panels
            .iter()
            .map(|panels| panels.capacity() * size_of::<Line>());
        panels.chain(floats).sum()
    }

    /// Inputs as float weights of type `ty` take them, [tokens, cols].
    ///
    /// # Panics
    /// If no reader that was announced is of this type and size.
    pub(crate) fn floats(&self, ty: TensorType) -> &[f32] {
        let index = FLOATS.iter().position(|&of| of == ty);
        let floats = &self.floats[index.expect("a type of float weights")];
        assert_eq!(
            floats.len(),
            self.tokens * self.cols,
            "no reader of type {ty} was announced"
        );
        floats
    }

    /// The tiles of some tokens; `range` starts at a multiple of [`TILE`] and ends at one or at the last token.
    pub(crate) fn tiles(&self, range: Range<usize>) -> impl Iterator<Item = TokenTile> + use<> {
        tiles(range, self.tokens)
    }

    /// The panel of a tile, [block][[`WORDS`] * width].
    ///
    /// # Panics
    /// If no reader that was announced takes this form of this size.
    pub(crate) fn panel(&self, form: Scaling, tile: TokenTile) -> &[i32] {
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
        let panel: &[i32] = bytemuck::cast_slice(&self.panels[form as usize]);
        let panel = &panel[..self.words[form as usize]];
        &panel[start * words..(start + tile.width) * words]
    }
}

/// Inputs that are written run by run: some columns of the tokens of a tile at a time.
pub(crate) struct Runs<'a> {
    form: Scaling,
    /// Columns of a run; the last may be shorter.
    pub(crate) columns: usize,
    pub(crate) tiles: Vec<TokenTile>,
    panels: DisjointPanels<'a>,
}

impl Runs<'_> {
    /// Quantises run `run` of the tokens of tile `tile`: `x` is [tokens, columns of the run].
    ///
    /// # Panics
    /// If it was written before, there is no such run, or `x` has another length.
    pub(crate) fn write(&self, isa: Isa, tile: usize, run: usize, x: &[f32]) {
        let TokenTile { tokens, width, .. } = self.tiles[tile];
        let panel = self.panels.take(tile, run);
        let cols = panel.len() / (WORDS * width) * BLOCK;
        assert_eq!(x.len(), tokens * cols, "inputs of a run");
        match self.form {
            Scaling::Blocks => quantize_rows(isa, x, cols, width, panel),
            Scaling::Spans => quantize_span_rows(isa, x, cols, width, panel),
        }
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
    use crate::ThreadPool;
    use crate::ops::test_support::{each_isa, numbers};

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
            let panel = x.panel(Scaling::Blocks, tile);
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
