//! Where the parts of a packed matrix lie.
//!
//! A quantised matrix is a sequence of groups of 16 rows (zeros fill the last group up), a group a sequence of spans of
//! 256 columns (the last may be shorter where blocks have 32 elements), and a span is
//!
//! ```text
//! header | meta of block 0, 1, … 7 | padding | codes of block 0, 1, … 7       (blocks of 32 columns)
//! ```
//!
//! Everything is stored for 16 rows side by side. Header and meta hold the scales. The codes of a block are vectors of
//! 64 bytes, byte `4 r + q` belonging to row `r`. Group `j` of a block is the columns `4 j + q`; its codes are spread
//! over planes:
//!
//! - bytes: vector `j` holds group `j`;
//! - nibbles: vector `j % 4` holds group `j` in the low (`j < 4`) or high half of its bytes;
//! - pairs: vector `j % 2` holds group `j` in bits `2 (j / 2)` and up;
//! - bits: one vector holds group `j` in bit `j`;
//! - ternary digits: 13 vectors for a whole span; vector `v < 12` holds groups `v`, `12 + v`, … `48 + v` of the span's
//!   64 as five digits, vector 12 groups 60 to 63 as four.
//!
//! A matrix of floats is a sequence of groups of 16 rows, column by column.

use crate::TensorType;

/// Rows of a group.
pub(crate) const GROUP: usize = 16;
/// Columns of a block.
pub(crate) const BLOCK: usize = 32;
/// Blocks of a full span.
pub(crate) const SPAN: usize = 8;
/// Bytes of a vector of codes.
pub(crate) const VECTOR: usize = 64;

/// How a block's codes are spread over vectors; high bits follow the low ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codes {
    Bytes,
    Nibbles,
    /// Nibbles, then the fifth bits.
    NibblesBits,
    /// Nibbles, then bits 4 and 5 as pairs.
    NibblesPairs,
    Pairs,
    /// Pairs, then the third bits.
    PairsBits,
    /// In the header.
    Ternary,
}

/// How the scales are stored; `f16` is a little-endian half-precision number, and each item is for 16 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Meta: f16 scale.
    Half,
    /// Meta: f16 scale, f16 number that is added.
    HalfAdd,
    /// Meta: E8M0 exponent.
    Exponent,
    /// Header: f16 scale. Nothing else.
    Span,
    /// Header: f16 scale. Meta: 6 bits, 32 standing for zero.
    SpanSix,
    /// Header: f16 scale, f16 minimum. Meta: scale, minimum.
    SpanMinimum,
    /// Header: f16 scale, f16 minimum. Meta: for each 16 columns scale (low nibble) and minimum.
    HalvesNibbles,
    /// Header: f16 scale, then 12 bytes with a 6-bit scale for each 16 columns as in Q3_K.
    HalvesSix,
    /// Header: f16 scale. Meta: for each 16 columns a signed scale.
    HalvesSigned,
}

/// What is particular to a quantised format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) codes: Codes,
    pub(crate) scales: Scales,
    /// Codes stand for these, where there is a codebook.
    pub(crate) book: Option<[u8; 16]>,
    /// `2^shift` is subtracted from each code, if any.
    pub(crate) zero_shift: Option<u32>,
    /// The largest code (after the codebook).
    pub(crate) largest_code: u8,
    /// Whether spans start at multiples of 64 bytes.
    pub(crate) aligned: bool,
}

/// The form of a quantised format.
pub(crate) const fn spec(ty: TensorType) -> Spec {
    use TensorType as T;
    const fn of(codes: Codes, scales: Scales, zero_shift: Option<u32>, largest_code: u8) -> Spec {
        Spec {
            codes,
            scales,
            book: None,
            zero_shift,
            largest_code,
            aligned: true,
        }
    }
    match ty {
        T::Q4_0 => of(Codes::Nibbles, Scales::Half, Some(3), 15),
        T::Q4_1 => of(Codes::Nibbles, Scales::HalfAdd, None, 15),
        T::Q5_0 => of(Codes::NibblesBits, Scales::Half, Some(4), 31),
        T::Q5_1 => of(Codes::NibblesBits, Scales::HalfAdd, None, 31),
        T::Q8_0 => of(Codes::Bytes, Scales::Half, Some(7), 255),
        T::Q2_K => of(Codes::Pairs, Scales::HalvesNibbles, None, 3),
        T::Q3_K => of(Codes::PairsBits, Scales::HalvesSix, Some(2), 7),
        T::Q4_K => of(Codes::Nibbles, Scales::SpanMinimum, None, 15),
        T::Q5_K => of(Codes::NibblesBits, Scales::SpanMinimum, None, 31),
        T::Q6_K => of(Codes::NibblesPairs, Scales::HalvesSigned, Some(5), 63),
        T::IQ4_NL => Spec {
            book: Some(crate::formats::IQ4_CODES),
            ..of(Codes::Nibbles, Scales::Half, Some(7), 255)
        },
        T::IQ4_XS => Spec {
            book: Some(crate::formats::IQ4_CODES),
            ..of(Codes::Nibbles, Scales::SpanSix, Some(7), 255)
        },
        T::MXFP4 => Spec {
            book: Some(crate::formats::MXFP4_CODES),
            ..of(Codes::Nibbles, Scales::Exponent, Some(4), 28)
        },
        // Padding would cost more than it brings.
        T::TQ1_0 => Spec {
            aligned: false,
            ..of(Codes::Ternary, Scales::Span, Some(0), 2)
        },
        T::TQ2_0 => Spec {
            aligned: false,
            ..of(Codes::Pairs, Scales::Span, Some(0), 2)
        },
        T::F32 | T::F16 | T::BF16 => panic!("floats are not quantised"),
    }
}

impl Spec {
    /// Whether scales are small integers with a common factor for 256 columns: then the inputs are quantised in blocks
    /// of 256 columns too, so that the factors are applied once per span.
    pub(crate) const fn by_spans(&self) -> bool {
        !matches!(
            self.scales,
            Scales::Half | Scales::HalfAdd | Scales::Exponent
        )
    }

    /// Scales per block: one for each 16 columns, or one for all 32.
    pub(crate) const fn halves(&self) -> usize {
        match self.scales {
            Scales::HalvesNibbles | Scales::HalvesSix | Scales::HalvesSigned => 2,
            _ => 1,
        }
    }

    /// Minima per block.
    pub(crate) const fn minima(&self) -> usize {
        match self.scales {
            Scales::HalfAdd | Scales::SpanMinimum => 1,
            Scales::HalvesNibbles => 2,
            _ => 0,
        }
    }

    /// Bytes of a span's header, before the digits of ternary codes.
    pub(crate) const fn scale_header(&self) -> usize {
        match self.scales {
            Scales::Half | Scales::HalfAdd | Scales::Exponent => 0,
            Scales::Span | Scales::SpanSix | Scales::HalvesSigned => 32,
            Scales::SpanMinimum | Scales::HalvesNibbles => 64,
            Scales::HalvesSix => 32 + 12 * GROUP,
        }
    }

    /// Bytes of a span's header.
    pub(crate) const fn header(&self) -> usize {
        let digits = match self.codes {
            Codes::Ternary => 13 * VECTOR,
            _ => 0,
        };
        self.scale_header() + digits
    }

    /// Bytes of a block's meta.
    pub(crate) const fn meta(&self) -> usize {
        match self.scales {
            Scales::Half => 32,
            Scales::HalfAdd => 64,
            Scales::Exponent | Scales::SpanSix => GROUP,
            Scales::Span | Scales::HalvesSix => 0,
            Scales::SpanMinimum | Scales::HalvesNibbles | Scales::HalvesSigned => 2 * GROUP,
        }
    }

    /// Bytes of a block's codes.
    pub(crate) const fn code_bytes(&self) -> usize {
        VECTOR
            * match self.codes {
                Codes::Bytes => 8,
                Codes::Nibbles => 4,
                Codes::NibblesBits => 5,
                Codes::NibblesPairs => 6,
                Codes::Pairs => 2,
                Codes::PairsBits => 3,
                Codes::Ternary => 0,
            }
    }

    /// Where the codes of a span of `blocks` blocks begin.
    pub(crate) const fn codes_at(&self, blocks: usize) -> usize {
        let end = self.header() + blocks * self.meta();
        if self.aligned {
            end.next_multiple_of(VECTOR)
        } else {
            end
        }
    }

    /// Bytes of a span of `blocks` blocks.
    pub(crate) const fn span_bytes(&self, blocks: usize) -> usize {
        self.codes_at(blocks) + blocks * self.code_bytes()
    }

    /// Bytes of a group of 16 rows of `blocks` blocks.
    pub(crate) const fn group_bytes(&self, blocks: usize) -> usize {
        let full = (blocks / SPAN) * self.span_bytes(SPAN);
        match blocks % SPAN {
            0 => full,
            rest => full + self.span_bytes(rest),
        }
    }
}

/// Bytes of a group of 16 rows of any format; `None` if they do not fit into an address space.
pub(crate) fn group_bytes(ty: TensorType, cols: usize) -> Option<usize> {
    // No packed form is larger than 4 bytes an element and a header.
    cols.checked_mul(4 * GROUP)?.checked_add(1 << 12)?;
    Some(match ty {
        TensorType::F32 => cols * GROUP * 4,
        TensorType::F16 | TensorType::BF16 => cols * GROUP * 2,
        _ => spec(ty).group_bytes(cols / BLOCK),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_forms_are_hardly_larger_than_files() {
        for ty in TensorType::ALL {
            for cols in [256, 512, 576, 1536, 2048, 8192] {
                let Some(row) = ty.row_bytes(cols) else {
                    continue;
                };
                let packed = group_bytes(ty, cols).unwrap() as f64;
                assert!(
                    packed <= 1.03 * (row * GROUP) as f64,
                    "{ty} {cols}: {packed}"
                );
            }
        }
    }
}
