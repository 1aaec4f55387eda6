//! The split form: the high half of every code in one region, the low half in another, so that a screen reads half the
//! bytes.
//!
//! ```text
//! high part of group 0, 1, … | low part of bundle 0, 1, … | norms of group 0, 1, …
//! ```
//!
//! The high part is laid out as a matrix of nibbles (see [`layout`](super::layout)): spans of up to eight blocks, the
//! scales first. The low part is laid out by bundles of 16 groups, `[block][group][4 vectors]`, the last bundle with as
//! many groups as are left; its nibbles lie in the same order. So some blocks of it are read for all rows in straight
//! runs of 4 KiB. Norms are f32, `[group][row]`.
//!
//! With codes `c = 16 h + l` a weight is `d (c - 128) = d (16 h - 120) + d (l - 8)`. The screen computes the first part;
//! by Cauchy and Schwarz the second adds at most `‖d (l - 8)‖ ‖x‖`, and that norm is what is kept for each row. Blocks
//! of columns where `x` is large may be screened with all their bits; then only the rest of `x` counts.

use half::f16;

use super::layout::{BLOCK, GROUP, SPAN, VECTOR};
use crate::TensorType;

/// Bytes of a block's scales for 16 rows.
pub(crate) const SCALES: usize = 2 * GROUP;
/// Bytes of a block's high nibbles for 16 rows, and of its low ones.
pub(crate) const NIBBLES: usize = 4 * VECTOR;
/// Bytes of a block's high or low nibbles for one row.
const ROW_NIBBLES: usize = BLOCK / 2;
/// Bytes of a block in a file: f16 scale and 32 codes.
const FILE_BLOCK: usize = 2 + BLOCK;
/// Unit roundoff of f32.
const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Whether a format can be split.
pub(crate) fn can_split(ty: TensorType) -> bool {
    ty == TensorType::Q8_0
}

/// Where the high nibbles of a span of `blocks` blocks begin.
pub(crate) const fn nibbles_at(blocks: usize) -> usize {
    (SCALES * blocks).next_multiple_of(VECTOR)
}

/// Bytes of the high part of a span of `blocks` blocks.
pub(crate) const fn high_span_bytes(blocks: usize) -> usize {
    nibbles_at(blocks) + NIBBLES * blocks
}

/// Bytes of the high part of a group of `blocks` blocks.
pub(crate) const fn high_group_bytes(blocks: usize) -> usize {
    let full = blocks / SPAN * high_span_bytes(SPAN);
    match blocks % SPAN {
        0 => full,
        rest => full + high_span_bytes(rest),
    }
}

/// Bytes of the low part of a group of `blocks` blocks.
pub(crate) const fn low_group_bytes(blocks: usize) -> usize {
    NIBBLES * blocks
}

/// Groups of a bundle.
pub(crate) const BUNDLE: usize = 16;

/// The low part of a group: its blocks' nibbles lie in its bundle.
#[derive(Clone, Copy)]
pub(crate) struct LowPart<'a> {
    /// The bundle, `[block][group][NIBBLES]`.
    bundle: &'a [u8],
    /// Groups of the bundle, and which of them this is.
    groups: usize,
    group: usize,
}

impl<'a> LowPart<'a> {
    /// Group `group` of a matrix of `groups` groups of `blocks` blocks, whose low part is `lows`.
    pub(crate) fn new(lows: &'a [u8], groups: usize, blocks: usize, group: usize) -> Self {
        let first = group / BUNDLE * BUNDLE;
        let count = BUNDLE.min(groups - first);
        let bytes = low_group_bytes(blocks);
        LowPart {
            bundle: &lows[first * bytes..][..count * bytes],
            groups: count,
            group: group - first,
        }
    }

    /// Blocks of the group.
    pub(crate) fn blocks(&self) -> usize {
        self.bundle.len() / (NIBBLES * self.groups)
    }

    /// The nibbles of a block.
    #[inline(always)]
    pub(crate) fn block(&self, block: usize) -> &'a [u8; NIBBLES] {
        let place = block * self.groups + self.group;
        &self.bundle.as_chunks().0[place]
    }
}

/// Bytes of a group's norms.
pub(crate) const NORMS: usize = 4 * GROUP;

/// Largest error, as a share of `(‖w‖ + ‖residual‖) ‖x‖`, of a product of `blocks` blocks against its screen that is due
/// to rounding: each is a chain of one product and one fused sum per block, and the comparison adds a few roundings.
/// Twice what the standard bound `n u / (1 - n u)` needs (Higham, "Accuracy and stability of numerical algorithms",
/// 3.1).
pub(crate) fn rounding_share(blocks: usize) -> f64 {
    4.0 * UNIT * (blocks + 8) as f64
}

/// Norms are multiplied with the norm of that part of the input which is screened by high nibbles, plus this share of
/// the whole input's, on which rounding depends; so they hold so much more of it.
pub(crate) const ROUNDING_INPUT: f64 = 1.0 / 64.0;

/// `‖w‖ + ‖residual‖` is at most this times the norm of the scales: codes are at most 128 and residuals at most 8 large.
pub(crate) fn size_per_scale() -> f64 {
    136.0 * (BLOCK as f64).sqrt()
}

/// The parts of one group.
pub(crate) struct GroupParts<'a> {
    pub(crate) high: &'a mut [u8],
    /// The low part of its bundle, which has `groups` groups; this is number `group`.
    pub(crate) bundle: &'a mut [u8],
    pub(crate) groups: usize,
    pub(crate) group: usize,
    pub(crate) norms: &'a mut [u8],
}

/// Writes rows into a group: `rows[i]` becomes row `first + i`.
pub(crate) fn pack_rows(cols: usize, rows: &[&[u8]], first: usize, group: &mut GroupParts<'_>) {
    let blocks = cols / BLOCK;
    for (offset, row) in rows.iter().enumerate() {
        let lane = first + offset;
        let mut high = &mut *group.high;
        let (mut residual, mut scales) = (0.0f64, 0.0f64);
        for (index, span) in row.chunks(FILE_BLOCK * SPAN).enumerate() {
            let count = SPAN.min(blocks - index * SPAN);
            let (high_span, later) = high.split_at_mut(high_span_bytes(count));
            high = later;
            let (scale_bytes, nibbles) = high_span.split_at_mut(nibbles_at(count));
            for (block, raw) in span.as_chunks::<FILE_BLOCK>().0.iter().enumerate() {
                let scale = [raw[0], raw[1]];
                scale_bytes[SCALES * block + 2 * lane..][..2].copy_from_slice(&scale);
                let (front, back) = raw[2..].split_at(ROW_NIBBLES);
                let (front, back) = (front.as_chunks::<ROW_NIBBLES>().0, back.as_chunks().0);
                let parts = Nibbles::of(&front[0], &back[0]);
                let place = (index * SPAN + block) * group.groups + group.group;
                let low = &mut group.bundle[NIBBLES * place..][..NIBBLES];
                let high = &mut nibbles[NIBBLES * block..][..NIBBLES];
                for (target, bytes) in [(high, &parts.high), (low, &parts.low)] {
                    let words = bytes.as_chunks::<4>().0;
                    for (vector, word) in target.chunks_exact_mut(VECTOR).zip(words) {
                        vector[4 * lane..][..4].copy_from_slice(word);
                    }
                }
                let scale = f64::from(f16::from_le_bytes(scale).to_f32());
                residual += scale * scale * f64::from(parts.residual);
                scales += scale * scale;
            }
        }
        // Rounded up, with what rounding of the products may add.
        let rounding = rounding_share(blocks) * size_per_scale() * scales.sqrt();
        let norm = ((residual.sqrt() + rounding / ROUNDING_INPUT) * (1.0 + 4.0 * UNIT)) as f32;
        group.norms[4 * lane..][..4].copy_from_slice(&norm.to_le_bytes());
    }
}

/// One row's block, split.
struct Nibbles {
    high: [u8; ROW_NIBBLES],
    low: [u8; ROW_NIBBLES],
    /// `Σ (l - 8)²`
    residual: u32,
}

impl Nibbles {
    /// Of the signed codes of columns 0 to 15 and 16 to 31.
    #[inline(always)]
    fn of(front: &[u8; ROW_NIBBLES], back: &[u8; ROW_NIBBLES]) -> Nibbles {
        let (mut high, mut low) = ([0; ROW_NIBBLES], [0; ROW_NIBBLES]);
        let mut residual = 0;
        for j in 0..ROW_NIBBLES {
            let (a, b) = (front[j] ^ 0x80, back[j] ^ 0x80);
            high[j] = a >> 4 | (b & 0xf0);
            low[j] = (a & 15) | b << 4;
            let (a, b) = (i16::from(a & 15) - 8, i16::from(b & 15) - 8);
            residual += (a * a + b * b) as u32;
        }
        Nibbles {
            high,
            low,
            residual,
        }
    }
}

/// Writes one row's weights to `out`, whole blocks.
pub(crate) fn read_row(high: &[u8], low: LowPart<'_>, lane: usize, out: &mut [f32]) {
    let blocks = out.len() / BLOCK;
    let mut high = high;
    for (index, out) in out.chunks_mut(BLOCK * SPAN).enumerate() {
        let count = SPAN.min(blocks - index * SPAN);
        let (high_span, later) = high.split_at(high_span_bytes(count));
        high = later;
        for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let scale = scale(high_span, block, lane);
            let nibbles = &high_span[nibbles_at(count) + NIBBLES * block..];
            let low = low.block(index * SPAN + block);
            for j in 0..ROW_NIBBLES {
                let at = j / 4 * VECTOR + 4 * lane + j % 4;
                let (high, low) = (nibbles[at], low[at]);
                let code = |code: u8| scale * (i32::from(code) - 128) as f32;
                out[j] = code(high << 4 | (low & 15));
                out[j + ROW_NIBBLES] = code((high & 0xf0) | low >> 4);
            }
        }
    }
}

/// The scale of a row in block `block` of a span.
#[inline(always)]
pub(crate) fn scale(high_span: &[u8], block: usize, lane: usize) -> f32 {
    let at = SCALES * block + 2 * lane;
    f16::from_le_bytes([high_span[at], high_span[at + 1]]).to_f32()
}
