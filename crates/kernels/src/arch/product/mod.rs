//! Matrix products of one group of 16 rows with one tile of tokens, per instruction set.
//!
//! All of them compute, for each row and token, over the blocks of 32 columns in their order,
//!
//! ```text
//! dot  = Σ (code - zero) * a                        exact, in integers
//! sum += (dot * scale) * scale of a                 the second product fused
//! sum += minimum * -(scale of a * Σ a)              fused, where the format has minima
//! ```
//!
//! Formats whose scales are integers with a common unit for 256 columns take inputs that have one scale for 256 columns,
//! and over the blocks of such a span compute
//!
//! ```text
//! s   += dot * multiple                             fused; for each 16 columns where these have scales of their own
//! m   += multiple of the minimum * -Σ a             exact, in integers
//! sum += (s * unit + m * unit of the minima) * scale of a
//! ```
//!
//! with both additions of the last line fused. So all give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod floats;
#[cfg(target_arch = "aarch64")]
mod neon;
mod quantize;
mod scalar;
mod split;

pub(crate) use floats::float_tile;
pub(crate) use quantize::{quantize_rows, quantize_span_rows};
pub(crate) use split::{SplitBundle, SplitGroup, SplitRow, join, screen_bundle, split_tile};

use crate::packed::layout::GROUP;
use crate::{Isa, TensorType};

/// Sums of a tile, [token, row].
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Sums(pub(crate) [[f32; GROUP]; 16]);

/// A group of 16 rows of a quantised matrix.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a> {
    pub(crate) ty: TensorType,
    /// Blocks of 32 columns.
    pub(crate) blocks: usize,
    pub(crate) bytes: &'a [u8],
}

/// Products of `group` with the `width` tokens of `panel`.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn quantised_tile(
    isa: Isa,
    group: Group<'_>,
    panel: &[i32],
    width: usize,
    sums: &mut Sums,
) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Scalar => (),
        Isa::Avx2 => {
            if let Some(avx2) = avx2::Avx2::detect() {
                return avx2.tile(group, panel, width, sums);
            }
        }
        Isa::Avx512 => {
            if let Some(avx512) = avx512::Avx512::detect() {
                return avx512.tile(group, panel, width, sums);
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    if isa == Isa::Neon
        && let Some(neon) = neon::Neon::detect()
    {
        return scalar::tile(neon, group, panel, width, sums);
    }
    let _ = isa;
    scalar::tile(scalar::Portable, group, panel, width, sums);
}
