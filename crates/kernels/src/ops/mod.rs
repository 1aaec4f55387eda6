//! Float operations: norms, activations, softmax, positions, short convolution and small helpers.
//!
//! Each takes the [`Isa`](crate::Isa) to run on. The arithmetic is the same sequence of correctly rounded operations on
//! each of them, so results are bit-identical across instruction sets. Sums run in 32 interleaved partial sums that
//! are folded in halves, which also keeps their rounding error near `length / 32` units.
//!
//! Slices that belong together must have equal lengths; a function panics otherwise, as slice indexing does.

mod activation;
mod convolution;
mod elementwise;
mod math;
mod norm;
mod rope;
mod select;
mod softmax;

pub use activation::{
    ACTIVATION_ABSOLUTE_ERROR, Activation, SOFTCAP_RELATIVE_ERROR, activate, gated_product, softcap,
};
pub use convolution::{ShortConvolution, ShortConvolutionState};
pub use elementwise::{
    add, add_assign, clamp, f16_to_f32, f32_to_f16, mul, mul_assign, scale, scale_add,
};
pub use math::{EXP_ULP, TANH_ULP, exp};
pub use norm::{NORM_RELATIVE_ERROR, add_rms_norm, layer_norm, rms_norm};
pub use rope::{RopeParams, RopeStyle, RopeTable, YarnParams, alibi_slopes};
pub use select::{argmax, top_k};
pub use softmax::{SOFTMAX_RELATIVE_ERROR, softmax};

#[cfg(test)]
pub(crate) mod test_support;
