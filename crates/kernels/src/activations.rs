//! The input of matrix products.

use crate::Context;

/// A batch of inputs in the forms that the weights need; reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    /// [tokens, cols]
    floats: Vec<f32>,
}

impl Activations {
    /// Takes `x`, [tokens, cols].
    ///
    /// # Panics
    /// If `x` has another length than `tokens * cols`.
    pub fn quantize(&mut self, _context: &Context<'_>, x: &[f32], tokens: usize, cols: usize) {
        assert_eq!(
            x.len(),
            tokens * cols,
            "inputs of {tokens} tokens of {cols}"
        );
        self.tokens = tokens;
        self.cols = cols;
        self.floats.clear();
        self.floats.extend_from_slice(x);
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Length of each token's input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        self.floats.capacity() * 4
    }

    /// [tokens, cols]
    pub(crate) fn floats(&self) -> &[f32] {
        &self.floats
    }
}
