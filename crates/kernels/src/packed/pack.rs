//! Bytes of a file → the packed form.

use super::layout::{BLOCK, Codes, GROUP, SPAN, Scales, Spec, VECTOR, spec};
use crate::TensorType;
use crate::formats::{RawBlock, raw_codes, raw_scales};

/// Writes rows into a group: `rows[i]` becomes row `first + i`.
///
/// `group` has the group's bytes, each row the row's bytes of the file.
pub(crate) fn pack_rows(
    ty: TensorType,
    cols: usize,
    rows: &[&[u8]],
    first: usize,
    group: &mut [u8],
) {
    match ty {
        TensorType::F32 => pack_elements::<4>(rows, first, group),
        TensorType::F16 | TensorType::BF16 => pack_elements::<2>(rows, first, group),
        _ => pack_quantised(ty, cols / BLOCK, rows, first, group),
    }
}

fn pack_elements<const BYTES: usize>(rows: &[&[u8]], first: usize, group: &mut [u8]) {
    for (offset, row) in rows.iter().enumerate() {
        let columns = group.chunks_exact_mut(GROUP * BYTES);
        for (element, column) in row.chunks_exact(BYTES).zip(columns) {
            column[(first + offset) * BYTES..][..BYTES].copy_from_slice(element);
        }
    }
}

fn pack_quantised(ty: TensorType, blocks: usize, rows: &[&[u8]], first: usize, group: &mut [u8]) {
    let spec = spec(ty);
    let mut raw = RawBlock::new();
    let mut rest = group;
    let raw_len = ty.block_len() / BLOCK;
    for span in 0..blocks.div_ceil(SPAN) {
        let count = SPAN.min(blocks - span * SPAN);
        let (bytes, later) = rest.split_at_mut(spec.span_bytes(count));
        rest = later;
        let in_file = count / raw_len * ty.block_bytes();
        let at = span * (SPAN / raw_len) * ty.block_bytes();
        for (offset, row) in rows.iter().enumerate() {
            let row = &row[at..at + in_file];
            let target = Target {
                spec: &spec,
                lane: first + offset,
                blocks: count,
            };
            for (index, block) in row.chunks_exact(ty.block_bytes()).enumerate() {
                raw_scales(ty, block, &mut raw.scales);
                target.write_scales(index, &raw.scales, bytes);
                if raw_len == 1 && spec.codes == Codes::Nibbles {
                    // The file's order: element `j` and `j + 16` in one byte.
                    let nibbles = &block[block.len() - 16..];
                    target.write_nibbles(index, nibbles, bytes);
                    continue;
                }
                raw_codes(ty, block, &mut raw.codes);
                target.write_codes(index * raw_len, raw_len, &raw.codes, bytes);
            }
        }
    }
}

/// One row of a span.
struct Target<'a> {
    spec: &'a Spec,
    lane: usize,
    blocks: usize,
}

impl Target<'_> {
    /// Writes the scales of block `index` of the file.
    fn write_scales(&self, index: usize, scales: &[u8], span: &mut [u8]) {
        let (spec, lane) = (self.spec, self.lane);
        let mut half = |at: usize, from: usize| {
            span[at + 2 * lane..][..2].copy_from_slice(&scales[from..from + 2]);
        };
        let meta = spec.header() + index * spec.meta();
        match spec.scales {
            Scales::Half => half(meta, 0),
            Scales::HalfAdd => {
                half(meta, 0);
                half(meta + 32, 2);
            }
            Scales::Exponent => span[meta + lane] = scales[0],
            Scales::Span => half(0, 0),
            Scales::SpanSix => {
                half(0, 0);
                spread(&scales[2..10], &mut span[32..], lane);
            }
            Scales::SpanMinimum | Scales::HalvesNibbles => {
                half(0, 0);
                half(32, 2);
                spread(&scales[4..20], &mut span[64..], lane);
            }
            Scales::HalvesSix => {
                half(0, 0);
                spread(&scales[2..14], &mut span[32..], lane);
            }
            Scales::HalvesSigned => {
                half(0, 0);
                spread(&scales[2..18], &mut span[32..], lane);
            }
        }
    }

    /// Writes 32 codes whose nibbles are in pairs already.
    fn write_nibbles(&self, block: usize, nibbles: &[u8], span: &mut [u8]) {
        let at = self.spec.codes_at(self.blocks) + block * self.spec.code_bytes();
        let vectors = span[at..at + 4 * VECTOR].chunks_exact_mut(VECTOR);
        for (vector, word) in vectors.zip(nibbles.chunks_exact(4)) {
            vector[4 * self.lane..][..4].copy_from_slice(word);
        }
    }

    /// Writes the codes of `count` blocks from block `first` of the span.
    fn write_codes(&self, first: usize, count: usize, codes: &[u8; 256], span: &mut [u8]) {
        if self.spec.codes == Codes::Ternary {
            return self.write_ternary(codes, span);
        }
        let bytes = self.spec.code_bytes();
        let at = self.spec.codes_at(self.blocks) + first * bytes;
        let targets = span[at..at + count * bytes].chunks_exact_mut(bytes);
        for (codes, target) in codes.as_chunks::<BLOCK>().0.iter().zip(targets) {
            let words: &[[u8; 4]; 8] = codes.as_chunks().0.try_into().expect("32 codes");
            let words = words.map(u32::from_le_bytes);
            let at = 4 * self.lane;
            match self.spec.codes {
                Codes::Bytes => planes(&words, 8, 8, 0, target, at),
                Codes::Nibbles => planes(&words, 4, 4, 0, target, at),
                Codes::NibblesBits => {
                    planes(&words, 4, 4, 0, target, at);
                    planes(&words, 1, 1, 4, &mut target[4 * VECTOR..], at);
                }
                Codes::NibblesPairs => {
                    planes(&words, 4, 4, 0, target, at);
                    planes(&words, 2, 2, 4, &mut target[4 * VECTOR..], at);
                }
                Codes::Pairs => planes(&words, 2, 2, 0, target, at),
                Codes::PairsBits => {
                    planes(&words, 2, 2, 0, target, at);
                    planes(&words, 1, 1, 2, &mut target[2 * VECTOR..], at);
                }
                Codes::Ternary => unreachable!("written above"),
            }
        }
    }

    fn write_ternary(&self, codes: &[u8; 256], span: &mut [u8]) {
        let digits = &mut span[self.spec.scale_header()..];
        for vector in 0..13 {
            for q in 0..4 {
                let number = (0..5).fold(0, |number, place| {
                    let group = match (vector, place) {
                        (12, 4) => return number * 3,
                        (12, _) => 60 + place,
                        _ => 12 * place + vector,
                    };
                    number * 3 + u32::from(codes[4 * group + q])
                });
                // The digits come out again as the high bytes of repeated multiplication by 3.
                digits[VECTOR * vector + 4 * self.lane + q] = (number * 256).div_ceil(243) as u8;
            }
        }
    }
}

/// Byte `i` of `items` goes to column `lane` of row `i` of `target`, [items, 16].
fn spread(items: &[u8], target: &mut [u8], lane: usize) {
    for (item, target) in items.iter().zip(target.chunks_exact_mut(GROUP)) {
        target[lane] = *item;
    }
}

/// Writes `bits` bits from bit `low` of every code to `vectors` vectors, byte `at` and up of each.
#[inline(always)]
fn planes(words: &[u32; 8], vectors: usize, bits: usize, low: u32, target: &mut [u8], at: usize) {
    let mask = 0x0101_0101 * ((1u32 << bits) - 1);
    for vector in 0..vectors {
        let mut word = 0;
        for (place, j) in (vector..8).step_by(vectors).enumerate() {
            word |= (words[j] >> low & mask) << (place * bits);
        }
        target[VECTOR * vector + at..][..4].copy_from_slice(&word.to_le_bytes());
    }
}
