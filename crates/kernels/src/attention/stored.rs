//! Reading vectors of keys and values of each type.

use bytemuck::Pod;
use half::f16;

use super::page::{HeadView, PAGE_TOKENS, SCALE_BLOCK};
use crate::arch::wide::{WIDE, Wide};

/// Vectors that hold one element of all keys of a page.
pub(super) const KEY_VECTORS: usize = PAGE_TOKENS / WIDE;

/// A type of stored keys and values.
pub(super) trait Stored: Copy + Send + Sync {
    /// Its element.
    type Value: Pod;
    /// Whether elements are multiplied by a scale.
    const SCALED: bool;

    /// Must be `#[inline(always)]`.
    fn load<W: Wide>(w: W, source: &[Self::Value; WIDE]) -> W::Float;
}

/// Single precision.
#[derive(Clone, Copy)]
pub(super) struct StoredF32;
/// Half precision.
#[derive(Clone, Copy)]
pub(super) struct StoredF16;
/// Signed bytes with scales.
#[derive(Clone, Copy)]
pub(super) struct StoredQ8;

impl Stored for StoredF32 {
    type Value = f32;
    const SCALED: bool = false;
    #[inline(always)]
    fn load<W: Wide>(w: W, source: &[f32; WIDE]) -> W::Float {
        w.load(source)
    }
}

impl Stored for StoredF16 {
    type Value = f16;
    const SCALED: bool = false;
    #[inline(always)]
    fn load<W: Wide>(w: W, source: &[f16; WIDE]) -> W::Float {
        w.load_f16(source)
    }
}

impl Stored for StoredQ8 {
    type Value = i8;
    const SCALED: bool = true;
    #[inline(always)]
    fn load<W: Wide>(w: W, source: &[i8; WIDE]) -> W::Float {
        w.load_i8(source)
    }
}

/// Scales of the keys' elements from `d` on, in the same block: of 16 keys, those of vector `vector`.
#[inline(always)]
pub(super) fn key_scale<S: Stored, W: Wide>(
    w: W,
    view: &HeadView<'_, S::Value>,
    d: usize,
    vector: usize,
) -> W::Float {
    if S::SCALED {
        let (scales, _) = view.key_scales.as_chunks::<WIDE>();
        w.load_f16(&scales[d / SCALE_BLOCK * KEY_VECTORS + vector])
    } else {
        w.splat(1.0)
    }
}

/// Elements of a row of values: those of vector `vector`.
#[inline(always)]
pub(super) fn load_value<S: Stored, W: Wide>(
    w: W,
    row: &[[S::Value; WIDE]],
    scales: &[f16],
    vector: usize,
) -> W::Float {
    let values = S::load(w, &row[vector]);
    if S::SCALED {
        let scale = scales[vector * WIDE / SCALE_BLOCK].to_f32();
        w.mul(values, w.splat(scale))
    } else {
        values
    }
}

/// The scales of the values of `slot`.
#[inline(always)]
pub(super) fn value_scales<'a, S: Stored>(view: &HeadView<'a, S::Value>, slot: usize) -> &'a [f16] {
    if S::SCALED {
        let blocks = view.value_scales.len() / PAGE_TOKENS;
        &view.value_scales[slot * blocks..][..blocks]
    } else {
        &[]
    }
}
