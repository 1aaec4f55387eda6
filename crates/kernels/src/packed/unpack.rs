//! The packed form → codes and scales, in portable code: the twin of what the vector kernels do in registers.

use half::f16;

use super::layout::{Codes, GROUP, Scales, Spec, VECTOR};
use crate::formats::{e8m0_half, scale_k3};

/// A block of 16 rows x 32 columns.
pub(crate) struct UnpackedBlock {
    /// Code of row `r`, column `4 j + q` at `64 j + 4 r + q`.
    pub(crate) codes: [u8; 8 * VECTOR],
    /// Scale of each row; the second set is for the columns 16 to 31 where the format has one.
    pub(crate) scales: [[f32; GROUP]; 2],
    /// What is subtracted, likewise.
    pub(crate) minima: [[f32; GROUP]; 2],
    /// What scales and minima are multiples of where the format has spans, else 1.
    pub(crate) units: [[f32; GROUP]; 2],
    /// The multiples, or scales and minima themselves: `[scales, minima][half][row]`.
    pub(crate) multiples: [[[f32; GROUP]; 2]; 2],
}

impl UnpackedBlock {
    pub(crate) fn new() -> Self {
        UnpackedBlock {
            codes: [0; 8 * VECTOR],
            scales: [[0.0; GROUP]; 2],
            minima: [[0.0; GROUP]; 2],
            units: [[0.0; GROUP]; 2],
            multiples: [[[0.0; GROUP]; 2]; 2],
        }
    }

    /// Reads block `index` of a span of `blocks` blocks.
    pub(crate) fn read(&mut self, spec: &Spec, span: &[u8], blocks: usize, index: usize) {
        self.read_codes(spec, span, blocks, index);
        if let Some(book) = &spec.book {
            for code in &mut self.codes {
                *code = book[usize::from(*code)];
            }
        }
        for lane in 0..GROUP {
            self.read_scales(spec, span, index, lane);
        }
    }

    fn read_codes(&mut self, spec: &Spec, span: &[u8], blocks: usize, index: usize) {
        let planes = &span[spec.codes_at(blocks) + index * spec.code_bytes()..];
        for j in 0..8 {
            let codes = &mut self.codes[VECTOR * j..][..VECTOR];
            for (at, code) in codes.iter_mut().enumerate() {
                let plane = |first: usize, vectors: usize, bits: usize| {
                    let byte = planes[VECTOR * (first + j % vectors) + at];
                    let mask = ((1u16 << bits) - 1) as u8;
                    byte >> (j / vectors * bits) & mask
                };
                *code = match spec.codes {
                    Codes::Bytes => plane(0, 8, 8),
                    Codes::Nibbles => plane(0, 4, 4),
                    Codes::NibblesBits => plane(0, 4, 4) | plane(4, 1, 1) << 4,
                    Codes::NibblesPairs => plane(0, 4, 4) | plane(4, 2, 2) << 4,
                    Codes::Pairs => plane(0, 2, 2),
                    Codes::PairsBits => plane(0, 2, 2) | plane(2, 1, 1) << 2,
                    Codes::Ternary => ternary(&span[spec.scale_header()..], 8 * index + j, at),
                };
            }
        }
    }

    fn read_scales(&mut self, spec: &Spec, span: &[u8], index: usize, lane: usize) {
        let half =
            |at: usize| f16::from_le_bytes([span[at + 2 * lane], span[at + 2 * lane + 1]]).to_f32();
        let meta = spec.header() + index * spec.meta();
        let byte = |place: usize| span[meta + place * GROUP + lane];
        let units = match spec.scales {
            Scales::Half | Scales::HalfAdd | Scales::Exponent => [1.0, 1.0],
            Scales::SpanMinimum | Scales::HalvesNibbles => [half(0), half(32)],
            _ => [half(0), 0.0],
        };
        let number = |place: usize| f32::from(byte(place));
        let (scales, minima) = match spec.scales {
            Scales::Half => ([half(meta), 0.0], [0.0; 2]),
            Scales::HalfAdd => ([half(meta), 0.0], [-half(meta + 32), 0.0]),
            Scales::Exponent => ([e8m0_half(byte(0)), 0.0], [0.0; 2]),
            Scales::Span => ([1.0, 0.0], [0.0; 2]),
            Scales::SpanSix => ([number(0) - 32.0, 0.0], [0.0; 2]),
            Scales::SpanMinimum => ([number(0), 0.0], [number(1), 0.0]),
            Scales::HalvesNibbles => (
                [0, 1].map(|place| f32::from(byte(place) & 15)),
                [0, 1].map(|place| f32::from(byte(place) >> 4)),
            ),
            Scales::HalvesSix => {
                let bytes: [u8; 12] = std::array::from_fn(|i| span[32 + i * GROUP + lane]);
                let scale = |place| f32::from(scale_k3(&bytes, 2 * index + place)) - 32.0;
                ([0, 1].map(scale), [0.0; 2])
            }
            Scales::HalvesSigned => ([0, 1].map(|place| f32::from(byte(place) as i8)), [0.0; 2]),
        };
        for place in 0..2 {
            self.units[place][lane] = units[place];
            self.multiples[0][place][lane] = scales[place];
            self.multiples[1][place][lane] = minima[place];
            self.scales[place][lane] = units[0] * scales[place];
            // Formats without minima have no unit for them.
            self.minima[place][lane] = if spec.minima() > 0 {
                units[1] * minima[place]
            } else {
                0.0
            };
        }
    }
}

/// A ternary digit: group `group` of the span's 64.
fn ternary(digits: &[u8], group: usize, at: usize) -> u8 {
    let (vector, place) = if group < 60 {
        (group % 12, group / 12)
    } else {
        (12, group - 60)
    };
    let rest = digits[VECTOR * vector + at].wrapping_mul([1, 3, 9, 27, 81][place]);
    ((u16::from(rest) * 3) >> 8) as u8
}
