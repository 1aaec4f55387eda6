//! A look at what matrices are given while a model computes, for those who compress it.

use std::fmt;

use crate::model::Linear;

/// Sees the input of every matrix product of a decoder, as f32 and before it is rounded for the kernels.
pub trait Observer: fmt::Debug + Send + Sync {
    /// `matrices` are about to be multiplied with `x`, [tokens, columns].
    fn observe(&self, matrices: &[&Linear], x: &[f32], columns: usize);
}
