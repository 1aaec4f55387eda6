//! Depthwise causal convolution over the last few tokens (LFM2's short convolution).

use super::elementwise::{mul, padded};
use crate::Isa;
use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch};

/// The weights of a depthwise causal convolution.
#[derive(Clone, Debug)]
pub struct ShortConvolution {
    channels: usize,
    /// Shape `[width][channels]`, the oldest token first.
    taps: Vec<f32>,
    /// Shape `[channels]`.
    bias: Option<Vec<f32>>,
}

/// The last `width - 1` inputs of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvolutionState {
    /// Shape `[width - 1][channels]`, the oldest token first.
    rows: Vec<f32>,
}

impl ShortConvolution {
    /// Takes weights of shape `[channels][width]`, the oldest token first, as model files hold them, and a bias of
    /// shape `[channels]`.
    ///
    /// # Panics
    /// If `width` is 0 or does not divide the number of weights, or the bias has another length.
    pub fn new(weights: &[f32], width: usize, bias: Option<&[f32]>) -> ShortConvolution {
        assert!(
            width > 0 && weights.len().is_multiple_of(width),
            "{} weights, width {width}",
            weights.len()
        );
        let channels = weights.len() / width;
        assert!(bias.is_none_or(|bias| bias.len() == channels));
        let taps = (0..width * channels)
            .map(|i| weights[i % channels * width + i / channels])
            .collect();
        ShortConvolution {
            channels,
            taps,
            bias: bias.map(<[f32]>::to_vec),
        }
    }

    /// How many channels a token has.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The state before the first token: zeros.
    pub fn initial_state(&self) -> ShortConvolutionState {
        ShortConvolutionState {
            rows: vec![0.0; self.taps.len() - self.channels],
        }
    }

    /// Convolves the next tokens of a sequence and updates its state. `input` and `out` have shape
    /// `[tokens][channels]`. A token's result does not depend on how tokens are grouped into calls.
    pub fn run(&self, isa: Isa, state: &mut ShortConvolutionState, input: &[f32], out: &mut [f32]) {
        assert_eq!(input.len(), out.len());
        assert!(input.len().is_multiple_of(self.channels.max(1)));
        let history = state.rows.len();
        assert_eq!(
            history + self.channels,
            self.taps.len(),
            "state of another convolution"
        );
        for (token, out) in out.chunks_exact_mut(self.channels.max(1)).enumerate() {
            for (tap, weights) in self.taps.chunks_exact(self.channels).enumerate() {
                let start = (token + tap) * self.channels;
                let row = match start.checked_sub(history) {
                    Some(start) => &input[start..start + self.channels],
                    None => &state.rows[start..start + self.channels],
                };
                match (tap, &self.bias) {
                    (0, None) => mul(isa, weights, row, out),
                    (0, Some(bias)) => {
                        out.copy_from_slice(bias);
                        dispatch(isa, MulAdd { weights, row, out });
                    }
                    _ => dispatch(isa, MulAdd { weights, row, out }),
                }
            }
        }
        let kept = history.saturating_sub(input.len());
        state.rows.copy_within(history - kept.., 0);
        state.rows[kept..].copy_from_slice(&input[input.len() - (history - kept)..]);
    }
}

impl ShortConvolutionState {
    /// The inputs, shape `[width - 1][channels]`, the oldest token first: what a saved prefix must hold.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// The same, to restore a saved prefix.
    pub fn rows_mut(&mut self) -> &mut [f32] {
        &mut self.rows
    }
}

/// `out += weights * row`, rounded once.
struct MulAdd<'a> {
    weights: &'a [f32],
    row: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for MulAdd<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (weights, weights_rest) = self.weights.as_chunks::<LANES>();
        let (row, row_rest) = self.row.as_chunks::<LANES>();
        let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((weights, row), out) in weights.iter().zip(row).zip(out) {
            lanes.store(
                lanes.mul_add(lanes.load(weights), lanes.load(row), lanes.load(out)),
                out,
            );
        }
        let mut block = padded(out_rest);
        let (weights, row) = (
            lanes.load(&padded(weights_rest)),
            lanes.load(&padded(row_rest)),
        );
        lanes.store(lanes.mul_add(weights, row, lanes.load(&block)), &mut block);
        out_rest.copy_from_slice(&block[..out_rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{each_isa, numbers};

    /// Allowed error: a rounding for each of at most 5 taps and the bias, of sums below 8.
    const TOLERANCE: f64 = 6.0 * 8.0 * 6e-8;

    #[test]
    fn convolution_matches_its_definition_however_tokens_are_grouped() {
        for (channels, width) in [(1, 1), (5, 3), (8, 2), (35, 4), (64, 3), (3, 5)] {
            for bias in [None, Some(numbers(channels, 3, 1.0))] {
                let weights = numbers(channels * width, 1, 1.0);
                let convolution = ShortConvolution::new(&weights, width, bias.as_deref());
                let tokens = 11;
                let input = numbers(tokens * channels, 2, 1.0);
                let exact = |token: usize, channel: usize| -> f64 {
                    let taps = (0..width)
                        .filter(|tap| token + tap + 1 >= width)
                        .map(|tap| {
                            let source = token + tap + 1 - width;
                            f64::from(weights[channel * width + tap])
                                * f64::from(input[source * channels + channel])
                        });
                    taps.sum::<f64>() + bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]))
                };
                let mut first: Option<Vec<f32>> = None;
                for isa in each_isa() {
                    for group in [1, 2, 3, 11] {
                        let mut state = convolution.initial_state();
                        let mut out = vec![0.0; input.len()];
                        for (input, out) in input
                            .chunks(group * channels)
                            .zip(out.chunks_mut(group * channels))
                        {
                            convolution.run(isa, &mut state, input, out);
                        }
                        for (i, &got) in out.iter().enumerate() {
                            let expected = exact(i / channels, i % channels);
                            assert!(
                                (f64::from(got) - expected).abs() <= TOLERANCE,
                                "{channels} {width} {group}"
                            );
                        }
                        assert_eq!(state.rows(), &input[input.len() - (width - 1) * channels..]);
                        assert_eq!(first.get_or_insert_with(|| out.clone()), &out);
                    }
                }
            }
        }
    }
}
