//! Products with float weights: one fused multiply-add per column, in the order of the columns.

use half::f16;

use super::Sums;
use crate::arch::lanes::{Block, Kernel, LANES, Lanes, dispatch};
use crate::packed::layout::GROUP;
use crate::{Isa, TensorType};

/// Products of a group of 16 rows of floats with the rows of `x`, [tokens, cols], at most 16.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn float_tile(
    isa: Isa,
    ty: TensorType,
    group: &[u8],
    x: &[f32],
    cols: usize,
    sums: &mut Sums,
) {
    dispatch(
        isa,
        FloatTile {
            ty,
            group,
            x,
            cols,
            sums,
        },
    );
}

struct FloatTile<'a> {
    ty: TensorType,
    group: &'a [u8],
    x: &'a [f32],
    cols: usize,
    sums: &'a mut Sums,
}

impl Kernel for FloatTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let cols = self.cols;
        if cols == 0 {
            return self.sums.0.fill([0.0; GROUP]);
        }
        let mut done = 0;
        for x in self.x.chunks(4 * cols) {
            let sums = &mut self.sums.0[done..];
            match (self.ty, x.len() / cols) {
                (TensorType::F32, 4) => columns::<L, F32, 4>(lanes, self.group, x, cols, sums),
                (TensorType::F16, 4) => columns::<L, F16, 4>(lanes, self.group, x, cols, sums),
                (_, 4) => columns::<L, Bf16, 4>(lanes, self.group, x, cols, sums),
                (ty, tokens) => {
                    for (x, sums) in x.chunks_exact(cols).zip(sums.chunks_mut(1)) {
                        match ty {
                            TensorType::F32 => {
                                columns::<L, F32, 1>(lanes, self.group, x, cols, sums)
                            }
                            TensorType::F16 => {
                                columns::<L, F16, 1>(lanes, self.group, x, cols, sums)
                            }
                            _ => columns::<L, Bf16, 1>(lanes, self.group, x, cols, sums),
                        }
                    }
                    debug_assert!(tokens < 4);
                }
            }
            done += 4;
        }
    }
}

/// `T` tokens; `x` is [T, cols].
#[inline(always)]
fn columns<L: Lanes, E: Element, const T: usize>(
    lanes: L,
    group: &[u8],
    x: &[f32],
    cols: usize,
    sums: &mut [[f32; GROUP]],
) {
    let columns = E::columns(group);
    let x: [&[f32]; T] = std::array::from_fn(|token| &x[token * cols..][..cols]);
    let mut low = [lanes.splat(0.0); T];
    let mut high = low;
    assert_eq!(columns.len(), cols);
    for (column, weights) in columns.iter().enumerate() {
        let [first, second] = E::load(lanes, weights);
        for token in 0..T {
            let x = lanes.splat(x[token][column]);
            low[token] = lanes.mul_add(first, x, low[token]);
            high[token] = lanes.mul_add(second, x, high[token]);
        }
    }
    for token in 0..T {
        let (first, second) = sums[token].split_at_mut(LANES);
        lanes.store(low[token], first.try_into().expect("8 lanes"));
        lanes.store(high[token], second.try_into().expect("8 lanes"));
    }
}

/// A float format.
trait Element {
    /// 16 elements.
    type Column;
    fn columns(group: &[u8]) -> &[Self::Column];
    fn load<L: Lanes>(lanes: L, column: &Self::Column) -> [L::Vector; 2];
}

struct F32;
impl Element for F32 {
    type Column = [Block; 2];

    #[inline(always)]
    fn columns(group: &[u8]) -> &[[Block; 2]] {
        bytemuck::cast_slice(group)
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, column: &[Block; 2]) -> [L::Vector; 2] {
        [lanes.load(&column[0]), lanes.load(&column[1])]
    }
}

struct F16;
impl Element for F16 {
    type Column = [[f16; LANES]; 2];

    #[inline(always)]
    fn columns(group: &[u8]) -> &[[[f16; LANES]; 2]] {
        bytemuck::cast_slice(group)
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, column: &[[f16; LANES]; 2]) -> [L::Vector; 2] {
        [lanes.load_f16(&column[0]), lanes.load_f16(&column[1])]
    }
}

struct Bf16;
impl Element for Bf16 {
    type Column = [[u16; LANES]; 2];

    #[inline(always)]
    fn columns(group: &[u8]) -> &[[[u16; LANES]; 2]] {
        bytemuck::cast_slice(group)
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, column: &[[u16; LANES]; 2]) -> [L::Vector; 2] {
        let wide = |half: &[u16; LANES]| {
            lanes.load(&half.map(|bits| f32::from_bits(u32::from(bits) << 16)))
        };
        [wide(&column[0]), wide(&column[1])]
    }
}
