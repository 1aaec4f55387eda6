//! A model's weights as the layers use them: matrices packed for the kernels, vectors as f32.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use ondine_kernels::ops::ShortConvolution;
use ondine_kernels::{PackedMatrix, TensorType};

use super::streaming::{HeadSlab, StreamedLayer, Streaming};
use crate::model::{FeedForward, ModelSpec};
use crate::packed_cache::Blob;

pub(super) struct Weights {
    pub(super) token_embedding: Arc<PackedMatrix>,
    pub(super) position_embedding: Option<Matrix>,
    pub(super) embedding_norm: Option<NormWeights>,
    /// Where weights are streamed, the streamed matrices here only say what they are and where they lie.
    pub(super) layers: Vec<LayerWeights>,
    pub(super) output_norm: NormWeights,
    pub(super) output: Matrix,
    pub(super) streaming: Option<Streaming>,
    /// Bytes of all matrices.
    pub(super) bytes: u64,
    /// Type and columns of every matrix: what forms of their inputs the matrices read.
    pub(super) readers: Vec<(TensorType, usize)>,
    /// The mapped file that the matrices lie in; waits, when it is dropped, until it is safe on the disk.
    pub(super) _blob: Option<Blob>,
}

/// A packed matrix with its bias, [rows].
#[derive(Clone)]
pub(super) struct Matrix {
    pub(super) packed: Arc<PackedMatrix>,
    pub(super) bias: Option<Vec<f32>>,
}

#[derive(Clone)]
pub(super) struct NormWeights {
    /// [length]
    pub(super) weight: Vec<f32>,
    /// [length]
    pub(super) bias: Option<Vec<f32>>,
}

#[derive(Clone)]
pub(super) struct LayerWeights {
    pub(super) mixer_norm: NormWeights,
    pub(super) mixer: MixerWeights,
    pub(super) mixer_post_norm: Option<NormWeights>,
    pub(super) feed_forward_norm: NormWeights,
    pub(super) feed_forward: FeedForwardWeights,
    pub(super) feed_forward_post_norm: Option<NormWeights>,
}

#[derive(Clone)]
pub(super) enum MixerWeights {
    Attention {
        query: Matrix,
        key: Matrix,
        value: Matrix,
        output: Matrix,
        query_norm: Option<NormWeights>,
        key_norm: Option<NormWeights>,
    },
    ShortConvolution {
        input: Matrix,
        kernel: ShortConvolution,
        output: Matrix,
    },
}

#[derive(Clone)]
pub(super) enum FeedForwardWeights {
    Gated(GatedWeights),
    Plain {
        up: Matrix,
        down: Matrix,
    },
    Experts {
        router: Matrix,
        experts: Arc<[GatedWeights]>,
        shared: Option<GatedWeights>,
    },
}

#[derive(Clone)]
pub(super) struct GatedWeights {
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
}

/// A layer's weights for as long as it computes.
pub(super) enum LayerGuard<'w> {
    Resident(&'w LayerWeights),
    Streamed(Box<StreamedLayer>),
}

impl Weights {
    /// The weights of layer `index`, in memory.
    pub(super) fn layer(&self, index: usize) -> io::Result<LayerGuard<'_>> {
        let layer = &self.layers[index];
        match &self.streaming {
            Some(streaming) if streaming.streams_layer(index) => Ok(LayerGuard::Streamed(
                Box::new(streaming.layer(index, layer)?),
            )),
            _ => Ok(LayerGuard::Resident(layer)),
        }
    }

    /// The parts of the output head in turn where it is streamed; `None` where it is in memory.
    pub(super) fn head_slabs(&self) -> Option<impl Iterator<Item = io::Result<HeadSlab>>> {
        self.streaming.as_ref().and_then(Streaming::head_slabs)
    }

    /// Calls `compute` with the index in `wanted` and the weights of each wanted expert of layer `layer`, in turn.
    pub(super) fn with_experts(
        &self,
        layer: usize,
        wanted: &[usize],
        experts: &[GatedWeights],
        compute: &mut dyn FnMut(usize, &GatedWeights),
    ) {
        match self.streaming.as_ref().and_then(Streaming::experts) {
            Some(cache) => cache.with_experts(layer, wanted, experts, compute),
            None => {
                for (index, &expert) in wanted.iter().enumerate() {
                    compute(index, &experts[expert]);
                }
            }
        }
    }

    /// Remembers why something that has no way to say so failed.
    pub(super) fn fail(&self, error: io::Error) {
        if let Some(streaming) = &self.streaming {
            streaming.fail(error);
        }
    }

    /// Why experts or the head could not be read since the last call, if so. What was computed since then is void.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.streaming.as_ref().and_then(Streaming::take_failure)
    }

    /// Bytes of all matrices.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of matrices that one token reads.
    pub(super) fn bytes_per_token(&self, spec: &ModelSpec) -> u64 {
        let layers = self.layers.iter().zip(&spec.layers).map(|(layer, spec)| {
            let mut bytes = layer.dense_bytes();
            if let FeedForwardWeights::Experts { experts, .. } = &layer.feed_forward {
                let used = match &spec.feed_forward {
                    FeedForward::Experts(spec) => spec.used,
                    _ => experts.len(),
                };
                bytes += experts
                    .iter()
                    .take(used)
                    .map(GatedWeights::bytes)
                    .sum::<u64>();
            }
            bytes
        });
        layers.sum::<u64>() + self.output.bytes()
    }
}

impl Deref for LayerGuard<'_> {
    type Target = LayerWeights;

    fn deref(&self) -> &LayerWeights {
        match self {
            LayerGuard::Resident(layer) => layer,
            LayerGuard::Streamed(layer) => layer.weights(),
        }
    }
}

/// Makes another matrix of a matrix.
pub(super) type Exchange<'a> =
    &'a mut dyn FnMut(&Arc<PackedMatrix>) -> io::Result<Arc<PackedMatrix>>;

impl LayerWeights {
    /// The layer with every matrix but the experts' replaced by what `exchange` makes of it.
    pub(super) fn exchanged(&self, exchange: Exchange<'_>) -> io::Result<Self> {
        let mixer = match &self.mixer {
            MixerWeights::Attention {
                query,
                key,
                value,
                output,
                query_norm,
                key_norm,
            } => MixerWeights::Attention {
                query: query.exchanged(exchange)?,
                key: key.exchanged(exchange)?,
                value: value.exchanged(exchange)?,
                output: output.exchanged(exchange)?,
                query_norm: query_norm.clone(),
                key_norm: key_norm.clone(),
            },
            MixerWeights::ShortConvolution {
                input,
                kernel,
                output,
            } => MixerWeights::ShortConvolution {
                input: input.exchanged(exchange)?,
                kernel: kernel.clone(),
                output: output.exchanged(exchange)?,
            },
        };
        let feed_forward = match &self.feed_forward {
            FeedForwardWeights::Gated(gated) => {
                FeedForwardWeights::Gated(gated.exchanged(exchange)?)
            }
            FeedForwardWeights::Plain { up, down } => FeedForwardWeights::Plain {
                up: up.exchanged(exchange)?,
                down: down.exchanged(exchange)?,
            },
            FeedForwardWeights::Experts {
                router,
                experts,
                shared,
            } => FeedForwardWeights::Experts {
                router: router.exchanged(exchange)?,
                experts: experts.clone(),
                shared: shared
                    .as_ref()
                    .map(|shared| shared.exchanged(exchange))
                    .transpose()?,
            },
        };
        Ok(LayerWeights {
            mixer_norm: self.mixer_norm.clone(),
            mixer,
            mixer_post_norm: self.mixer_post_norm.clone(),
            feed_forward_norm: self.feed_forward_norm.clone(),
            feed_forward,
            feed_forward_post_norm: self.feed_forward_post_norm.clone(),
        })
    }

    /// All matrices but the experts', in the order of a packed file.
    pub(super) fn dense_matrices(&self) -> Vec<Arc<PackedMatrix>> {
        let mut matrices = Vec::new();
        let mut collect = |matrix: &Arc<PackedMatrix>| {
            matrices.push(matrix.clone());
            Ok(matrix.clone())
        };
        let whole = self.exchanged(&mut collect);
        debug_assert!(whole.is_ok());
        matrices
    }

    /// The experts, if the layer has any.
    pub(super) fn experts(&self) -> &[GatedWeights] {
        match &self.feed_forward {
            FeedForwardWeights::Experts { experts, .. } => experts,
            _ => &[],
        }
    }

    fn dense_bytes(&self) -> u64 {
        let matrices = self.dense_matrices();
        matrices.iter().map(|matrix| matrix.bytes() as u64).sum()
    }
}

impl GatedWeights {
    /// The same with every matrix replaced by what `exchange` makes of it.
    pub(super) fn exchanged(&self, exchange: Exchange<'_>) -> io::Result<Self> {
        Ok(GatedWeights {
            gate: self.gate.exchanged(exchange)?,
            up: self.up.exchanged(exchange)?,
            down: self.down.exchanged(exchange)?,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}

impl Matrix {
    pub(super) fn exchanged(&self, exchange: Exchange<'_>) -> io::Result<Self> {
        Ok(Matrix {
            packed: exchange(&self.packed)?,
            bias: self.bias.clone(),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.packed.bytes() as u64
    }
}
