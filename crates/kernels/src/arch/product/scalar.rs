//! The portable kernel: the fallback, and the oracle of the tests.

use super::{Group, Sums};
use crate::activations::{TILE, WORDS};
use crate::packed::layout::{GROUP, SPAN, VECTOR, spec};
use crate::packed::unpack::UnpackedBlock;

/// How the sums of products of codes with inputs are computed; they are exact, so that any way gives the same.
pub(super) trait Dots: Copy {
    /// `Σ code * a` of each row of a block over the first and the last 16 columns; `codes` as
    /// [`UnpackedBlock::codes`], `input` four signed bytes a word.
    fn dots(self, codes: &[u8; 8 * VECTOR], input: &[i32; 8]) -> [[i32; GROUP]; 2];
}

/// In portable code.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// Products of `group` with the `width` tokens of `panel`.
pub(super) fn tile<D: Dots>(
    way: D,
    group: Group<'_>,
    panel: &[i32],
    width: usize,
    sums: &mut Sums,
) {
    if spec(group.ty).by_spans() {
        return span_tile(way, group, panel, width, sums);
    }
    let spec = spec(group.ty);
    let sums = &mut sums.0[..width];
    sums.fill([0.0; GROUP]);
    let mut unpacked = UnpackedBlock::new();
    let mut panel = panel.chunks_exact(WORDS * width);
    let mut rest = group.bytes;
    for first in (0..group.blocks).step_by(SPAN) {
        let count = SPAN.min(group.blocks - first);
        let (bytes, later) = rest.split_at(spec.span_bytes(count));
        rest = later;
        for (index, input) in (0..count).zip(&mut panel) {
            unpacked.read(&spec, bytes, count, index);
            for (token, sums) in sums.iter_mut().enumerate() {
                let scale = f32::from_bits(input[8 * width + token] as u32);
                let factor = f32::from_bits(input[11 * width + token] as u32);
                let total = input[9 * width + token];
                let mut dots = way.dots(&unpacked.codes, codes(input, token));
                let start = spec.zero_shift.map_or(0, |shift| total << shift);
                dots[0].iter_mut().for_each(|dot| *dot += start);
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let dot = dots[0][lane] + dots[1][lane];
                    *sum = (dot as f32 * unpacked.scales[0][lane]).mul_add(scale, *sum);
                    if spec.minima() > 0 {
                        *sum = unpacked.minima[0][lane].mul_add(factor, *sum);
                    }
                }
            }
        }
    }
}

/// [`tile`] of formats with a common factor for 256 columns.
fn span_tile<D: Dots>(way: D, group: Group<'_>, panel: &[i32], width: usize, sums: &mut Sums) {
    let spec = spec(group.ty);
    let sums = &mut sums.0[..width];
    sums.fill([0.0; GROUP]);
    let mut unpacked = UnpackedBlock::new();
    let spans = group.bytes.chunks_exact(spec.span_bytes(SPAN));
    for (span, panel) in spans.zip(panel.chunks_exact(SPAN * WORDS * width)) {
        let mut scaled = [[0f32; GROUP]; TILE];
        let mut minima = [[0i32; GROUP]; TILE];
        for (index, input) in panel.chunks_exact(WORDS * width).enumerate() {
            unpacked.read(&spec, span, SPAN, index);
            let [scales, lows] = &unpacked.multiples;
            for token in 0..width {
                let halves = [input[9 * width + token], input[10 * width + token]];
                let mut dots = way.dots(&unpacked.codes, codes(input, token));
                for (dots, half) in dots.iter_mut().zip(halves) {
                    let start = spec.zero_shift.map_or(0, |shift| half << shift);
                    dots.iter_mut().for_each(|dot| *dot += start);
                }
                for lane in 0..GROUP {
                    let sum = &mut scaled[token][lane];
                    if spec.halves() == 2 {
                        *sum = (dots[0][lane] as f32).mul_add(scales[0][lane], *sum);
                        *sum = (dots[1][lane] as f32).mul_add(scales[1][lane], *sum);
                    } else {
                        let dot = dots[0][lane] + dots[1][lane];
                        *sum = (dot as f32).mul_add(scales[0][lane], *sum);
                    }
                    minima[token][lane] += match spec.minima() {
                        0 => 0,
                        1 => lows[0][lane] as i32 * (halves[0] + halves[1]),
                        _ => lows[0][lane] as i32 * halves[0] + lows[1][lane] as i32 * halves[1],
                    };
                }
            }
        }
        for (token, sums) in sums.iter_mut().enumerate() {
            let scale = f32::from_bits(panel[8 * width + token] as u32);
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut whole = scaled[token][lane] * unpacked.units[0][lane];
                if spec.minima() > 0 {
                    whole = (minima[token][lane] as f32).mul_add(unpacked.units[1][lane], whole);
                }
                *sum = whole.mul_add(scale, *sum);
            }
        }
    }
}

/// The words of a token.
#[inline(always)]
fn codes(input: &[i32], token: usize) -> &[i32; 8] {
    input[8 * token..].first_chunk().expect("words of a token")
}

impl Dots for Portable {
    #[inline(always)]
    fn dots(self, codes: &[u8; 8 * VECTOR], input: &[i32; 8]) -> [[i32; GROUP]; 2] {
        let mut dots = [[0; GROUP]; 2];
        for (j, (codes, word)) in codes.chunks_exact(VECTOR).zip(input).enumerate() {
            let a = word.to_le_bytes().map(|byte| i32::from(byte as i8));
            for (codes, dot) in codes.chunks_exact(4).zip(&mut dots[j / 4]) {
                *dot += i32::from(codes[0]) * a[0]
                    + i32::from(codes[1]) * a[1]
                    + i32::from(codes[2]) * a[2]
                    + i32::from(codes[3]) * a[3];
            }
        }
        dots
    }
}
