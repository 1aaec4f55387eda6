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

use crate::activations::WORDS;
use crate::packed::layout::{GROUP, spec};
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

/// [`quantised_tile`] for many groups of a matrix: what does not change from group to group is done once.
pub(crate) struct TileKernel<'a> {
    isa: Isa,
    ty: TensorType,
    blocks: usize,
    group_bytes: usize,
    panel: &'a [i32],
    width: usize,
    #[cfg(target_arch = "x86_64")]
    avx512: Option<avx512::TileFn>,
}

impl<'a> TileKernel<'a> {
    /// For groups of `blocks` blocks of type `ty` and the `width` tokens of `panel`.
    ///
    /// # Panics
    /// If the panel has another length.
    pub(crate) fn new(
        isa: Isa,
        ty: TensorType,
        blocks: usize,
        panel: &'a [i32],
        width: usize,
    ) -> Self {
        assert_eq!(panel.len(), blocks * WORDS * width);
        TileKernel {
            isa,
            ty,
            blocks,
            group_bytes: spec(ty).group_bytes(blocks),
            panel,
            width,
            #[cfg(target_arch = "x86_64")]
            avx512: match isa {
                Isa::Avx512 => avx512::Avx512::detect().map(|avx512| avx512.tile_fn(ty, width)),
                _ => None,
            },
        }
    }

    /// Products of group `group` of the matrix whose packed form is `all`.
    ///
    /// # Panics
    /// If there is no such group.
    #[inline]
    pub(crate) fn run(&self, group: usize, all: &[u8], sums: &mut Sums) {
        let bytes = &all[group * self.group_bytes..][..self.group_bytes];
        #[cfg(target_arch = "x86_64")]
        if let Some(run) = self.avx512 {
            // SAFETY: the instruction set was detected, and group and panel have the lengths of so many blocks.
            return unsafe { run(bytes.as_ptr(), self.blocks, self.panel.as_ptr(), sums) };
        }
        let (ty, blocks) = (self.ty, self.blocks);
        quantised_tile(
            self.isa,
            Group { ty, blocks, bytes },
            self.panel,
            self.width,
            sums,
        );
    }
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
