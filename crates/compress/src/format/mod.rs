//! The block formats as a quantiser sees them: levels, and scales that are chosen before the codes.
//!
//! Every format is, for each *part* of 16, 32 or 256 elements, `scale × level[code] - minimum`. Scales are a number of
//! their own, or an integer times the number of a block of 256.

mod pack;
mod search;

use half::f16;
use ondine_kernels::{IQ4_CODES, Isa, MXFP4_CODES, TensorType, Work, compiled_for};

use crate::CompressError;
use pack::pack;
pub(crate) use search::{Book, Levels, Uniform};

/// How much work goes into choosing scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// The scale that the extremes give: round to nearest.
    Nearest,
    /// The scales that minimise the weighted squared error among many candidates, refitted by least squares.
    Search,
}

/// The types that can be written.
pub fn writable(ty: TensorType) -> bool {
    ty != TensorType::TQ1_0
}

/// Elements of a block, at most.
pub(crate) const BLOCK: usize = 256;

/// The scales of one block and what they stand for.
#[derive(Debug, Clone)]
pub(crate) struct Scales {
    /// The block's own numbers: scale (for MXFP4 its exponent's value), and the minima's (Q4_1 and Q5_1: what is added).
    pub(crate) block: [f32; 2],
    /// Integer factors of each part's scale.
    pub(crate) factors: [i16; 16],
    /// Integer factors of each part's minimum.
    pub(crate) minimum_factors: [i16; 16],
    /// Scale of each part, as a reader computes it.
    pub(crate) scales: [f32; 16],
    /// What is subtracted from each part.
    pub(crate) minima: [f32; 16],
}

impl Scales {
    pub(crate) fn new() -> Self {
        Scales {
            block: [0.0; 2],
            factors: [0; 16],
            minimum_factors: [0; 16],
            scales: [0.0; 16],
            minima: [0.0; 16],
        }
    }
}

/// How a format's parts get their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaling {
    /// One f16 for the block, which is one part.
    Half,
    /// One power of two for the block.
    Exponent,
    /// Integers `low..=high` times the block's f16; minima `0..=high` times another.
    Factors { low: i16, high: i16 },
}

/// A block format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) ty: TensorType,
    /// Elements of a block.
    pub(crate) block: usize,
    /// Elements of a part.
    pub(crate) part: usize,
    /// Lowest and highest level; codes count from the lowest. Formats with a codebook have it in [`Format::book`].
    pub(crate) low: i32,
    pub(crate) high: i32,
    pub(crate) minimum: bool,
    pub(crate) scaling: Scaling,
}

impl Format {
    /// The format of a quantised type that can be written.
    pub(crate) fn of(ty: TensorType) -> Option<Format> {
        use TensorType::*;
        let factors = |low, high| Scaling::Factors { low, high };
        let (part, low, high, minimum, scaling) = match ty {
            Q4_0 => (32, -8, 7, false, Scaling::Half),
            Q5_0 => (32, -16, 15, false, Scaling::Half),
            Q8_0 => (32, -127, 127, false, Scaling::Half),
            Q4_1 => (32, 0, 15, true, Scaling::Half),
            Q5_1 => (32, 0, 31, true, Scaling::Half),
            IQ4_NL => (32, -127, 113, false, Scaling::Half),
            MXFP4 => (32, -12, 12, false, Scaling::Exponent),
            IQ4_XS => (32, -127, 113, false, factors(-32, 31)),
            Q2_K => (16, 0, 3, true, factors(0, 15)),
            Q3_K => (16, -4, 3, false, factors(-32, 31)),
            Q4_K => (32, 0, 15, true, factors(0, 63)),
            Q5_K => (32, 0, 31, true, factors(0, 63)),
            Q6_K => (16, -32, 31, false, factors(-128, 127)),
            TQ2_0 => (256, -1, 1, false, Scaling::Half),
            F32 | F16 | BF16 | TQ1_0 => return None,
        };
        Some(Format {
            ty,
            block: ty.block_len(),
            part,
            low,
            high,
            minimum,
            scaling,
        })
    }

    /// The codebook, ascending, and the code of each of its levels; `None` for even levels.
    pub(crate) fn book(&self) -> Option<Book> {
        let (codes, zero): (&[u8; 16], i32) = match self.ty {
            TensorType::IQ4_NL | TensorType::IQ4_XS => (&IQ4_CODES, 128),
            TensorType::MXFP4 => (&MXFP4_CODES, 16),
            _ => return None,
        };
        Some(Book::new(codes.map(|code| (i32::from(code) - zero) as f32)))
    }

    pub(crate) fn uniform(&self) -> Uniform {
        Uniform {
            low: self.low as f32,
            high: self.high as f32,
        }
    }
}

/// Turns rows of numbers into blocks of one type.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    ty: TensorType,
    format: Option<Format>,
    effort: Effort,
    isa: Isa,
}

impl Encoder {
    /// An encoder for `ty`.
    ///
    /// # Errors
    /// [`CompressError::NotWritable`].
    pub fn new(ty: TensorType, effort: Effort, isa: Isa) -> Result<Self, CompressError> {
        if !writable(ty) {
            return Err(CompressError::NotWritable(ty));
        }
        Ok(Encoder {
            ty,
            format: Format::of(ty),
            effort,
            isa,
        })
    }

    /// The type it writes.
    pub fn tensor_type(&self) -> TensorType {
        self.ty
    }

    pub(crate) fn format(&self) -> Option<&Format> {
        self.format.as_ref()
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Writes rows of `columns` elements as whole blocks; an error of column `i` weighs `weights[i]`.
    ///
    /// # Panics
    /// If `x` is not whole rows, rows are not whole blocks, `out` is not as long as the blocks or `weights` as a row.
    pub fn rows(&self, x: &[f32], columns: usize, weights: &[f32], out: &mut [u8]) {
        let row_bytes = self.ty.row_bytes(columns).expect("rows of whole blocks");
        assert_eq!(weights.len(), columns, "a weight for each column");
        assert_eq!(
            x.len() / columns * row_bytes,
            out.len(),
            "bytes of the rows"
        );
        let Some(format) = &self.format else {
            return self.floats(x, out);
        };
        for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(row_bytes)) {
            compiled_for(
                self.isa,
                EncodeRow {
                    format,
                    effort: self.effort,
                    x,
                    weights,
                    out,
                },
            );
        }
    }

    /// The scales of one block; `x` and `weights` have its length.
    pub(crate) fn scales(&self, x: &[f32], weights: &[f32]) -> Scales {
        let format = self.format.as_ref().expect("a quantised type");
        let effort = self.effort;
        compiled_for(
            self.isa,
            ChooseScales {
                format,
                effort,
                x,
                weights,
            },
        )
    }

    /// Writes one block of codes under its scales.
    pub(crate) fn pack(&self, scales: &Scales, codes: &[u8; BLOCK], out: &mut [u8]) {
        pack(self.ty, scales, codes, out);
    }

    fn floats(&self, x: &[f32], out: &mut [u8]) {
        match self.ty {
            TensorType::F16 => {
                for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = f16::from_f32(*x).to_le_bytes();
                }
            }
            TensorType::BF16 => {
                for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = half::bf16::from_f32(*x).to_le_bytes();
                }
            }
            _ => {
                for (x, out) in x.iter().zip(out.as_chunks_mut::<4>().0) {
                    *out = x.to_le_bytes();
                }
            }
        }
    }
}

struct EncodeRow<'a> {
    format: &'a Format,
    effort: Effort,
    x: &'a [f32],
    weights: &'a [f32],
    out: &'a mut [u8],
}

impl Work for EncodeRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let format = self.format;
        let mut codes = [0; BLOCK];
        let blocks = self.x.chunks_exact(format.block);
        let weights = self.weights.chunks_exact(format.block);
        let out = self.out.chunks_exact_mut(format.ty.block_bytes());
        for ((x, weights), out) in blocks.zip(weights).zip(out) {
            let mut scales = Scales::new();
            search::block(
                format,
                self.effort,
                x,
                weights,
                &mut scales,
                Some(&mut codes),
            );
            pack(format.ty, &scales, &codes, out);
        }
    }
}

struct ChooseScales<'a> {
    format: &'a Format,
    effort: Effort,
    x: &'a [f32],
    weights: &'a [f32],
}

impl Work for ChooseScales<'_> {
    type Output = Scales;
    #[inline(always)]
    fn run(self) -> Scales {
        let mut scales = Scales::new();
        search::block(
            self.format,
            self.effort,
            self.x,
            self.weights,
            &mut scales,
            None,
        );
        scales
    }
}

/// Whether a type has blocks of codes.
pub(crate) fn is_quantised(ty: TensorType) -> bool {
    Format::of(ty).is_some()
}
