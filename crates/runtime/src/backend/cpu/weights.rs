//! Loads a model's tensors: matrices packed for the kernels, vectors as f32.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ondine_kernels::ops::ShortConvolution;
use ondine_kernels::{PackedMatrix, TensorType, ThreadPool, dequantize};

use crate::gguf::{ModelFile, ModelFileError, TensorInfo};
use crate::model::{self, Experts, FeedForward, GatedFeedForward, Linear, Mixer, ModelSpec, Norm};

/// Bytes of a tensor that are packed before their pages are given back.
const SLAB_BYTES: u64 = 8 << 20;

pub(super) struct Weights {
    pub(super) token_embedding: Arc<PackedMatrix>,
    pub(super) position_embedding: Option<Matrix>,
    pub(super) embedding_norm: Option<NormWeights>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) output_norm: NormWeights,
    pub(super) output: Matrix,
    bytes: u64,
    float_types: Vec<TensorType>,
}

/// A packed matrix with its bias, [rows].
pub(super) struct Matrix {
    pub(super) packed: Arc<PackedMatrix>,
    pub(super) bias: Option<Vec<f32>>,
}

pub(super) struct NormWeights {
    /// [length]
    pub(super) weight: Vec<f32>,
    /// [length]
    pub(super) bias: Option<Vec<f32>>,
}

pub(super) struct LayerWeights {
    pub(super) mixer_norm: NormWeights,
    pub(super) mixer: MixerWeights,
    pub(super) mixer_post_norm: Option<NormWeights>,
    pub(super) feed_forward_norm: NormWeights,
    pub(super) feed_forward: FeedForwardWeights,
    pub(super) feed_forward_post_norm: Option<NormWeights>,
}

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

pub(super) enum FeedForwardWeights {
    Gated(GatedWeights),
    Plain {
        up: Matrix,
        down: Matrix,
    },
    Experts {
        router: Matrix,
        experts: Vec<GatedWeights>,
        shared: Option<GatedWeights>,
    },
}

pub(super) struct GatedWeights {
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
}

impl Weights {
    pub(super) fn load(
        file: &ModelFile,
        spec: &ModelSpec,
        pool: &ThreadPool,
    ) -> Result<Self, ModelFileError> {
        let mut loader = Loader::new(file, Some(pool));
        let token_embedding = loader.matrix(&spec.token_embedding)?.packed;
        let output = loader.matrix(&spec.output)?;
        let position_embedding = spec
            .position_embedding
            .as_ref()
            .map(|positions| loader.matrix(positions))
            .transpose()?;
        let embedding_norm = loader.optional_norm(spec.embedding_norm.as_ref())?;
        let output_norm = loader.norm(&spec.output_norm)?;
        let layers = spec
            .layers
            .iter()
            .map(|layer| loader.layer(layer))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Weights {
            token_embedding,
            position_embedding,
            embedding_norm,
            layers,
            output_norm,
            output,
            bytes: loader.bytes,
            float_types: float_types(loader.packed.values()),
        })
    }

    /// The types of matrices that take their input as floats.
    pub(super) fn float_types(&self) -> &[TensorType] {
        &self.float_types
    }

    /// Bytes of all matrices.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of matrices that one token reads.
    pub(super) fn bytes_per_token(&self, spec: &ModelSpec) -> u64 {
        let layers = self.layers.iter().zip(&spec.layers).map(|(layer, spec)| {
            let mixer = match &layer.mixer {
                MixerWeights::Attention {
                    query,
                    key,
                    value,
                    output,
                    ..
                } => query.bytes() + key.bytes() + value.bytes() + output.bytes(),
                MixerWeights::ShortConvolution { input, output, .. } => {
                    input.bytes() + output.bytes()
                }
            };
            let feed_forward = match (&layer.feed_forward, &spec.feed_forward) {
                (FeedForwardWeights::Gated(gated), _) => gated.bytes(),
                (FeedForwardWeights::Plain { up, down }, _) => up.bytes() + down.bytes(),
                (
                    FeedForwardWeights::Experts {
                        router,
                        experts,
                        shared,
                    },
                    spec,
                ) => {
                    let used = match spec {
                        FeedForward::Experts(spec) => spec.used,
                        _ => experts.len(),
                    };
                    let used = experts.iter().take(used).map(GatedWeights::bytes);
                    let shared = shared.as_ref().map_or(0, GatedWeights::bytes);
                    router.bytes() + used.sum::<u64>() + shared
                }
            };
            mixer + feed_forward
        });
        layers.sum::<u64>() + self.output.bytes()
    }
}

impl Matrix {
    fn bytes(&self) -> u64 {
        self.packed.bytes() as u64
    }
}

impl GatedWeights {
    fn bytes(&self) -> u64 {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}

struct Loader<'a> {
    file: &'a ModelFile,
    /// Threads that pack.
    pool: Option<&'a ThreadPool>,
    bytes: u64,
    /// Matrices by tensor and first row, so that tied ones are packed once.
    packed: HashMap<(String, usize), Arc<PackedMatrix>>,
}

impl<'a> Loader<'a> {
    fn new(file: &'a ModelFile, pool: Option<&'a ThreadPool>) -> Self {
        Loader {
            file,
            pool,
            bytes: 0,
            packed: HashMap::new(),
        }
    }

    fn layer(&mut self, layer: &model::Layer) -> Result<LayerWeights, ModelFileError> {
        let mixer = match &layer.mixer {
            Mixer::Attention(attention) => {
                let norms = attention.query_key_norm.as_ref();
                MixerWeights::Attention {
                    query: self.matrix(&attention.query)?,
                    key: self.matrix(&attention.key)?,
                    value: self.matrix(&attention.value)?,
                    output: self.matrix(&attention.output)?,
                    query_norm: self.optional_norm(norms.map(|norms| &norms.query))?,
                    key_norm: self.optional_norm(norms.map(|norms| &norms.key))?,
                }
            }
            Mixer::ShortConvolution(convolution) => {
                let tensor = self.tensor(&convolution.kernel)?;
                let elements = convolution.taps * convolution.output.rows;
                let kernel = self.vector(tensor, 0..elements)?;
                MixerWeights::ShortConvolution {
                    input: self.matrix(&convolution.input)?,
                    kernel: ShortConvolution::new(&kernel, convolution.taps, None),
                    output: self.matrix(&convolution.output)?,
                }
            }
        };
        let feed_forward = match &layer.feed_forward {
            FeedForward::Gated(gated) => FeedForwardWeights::Gated(self.gated(gated)?),
            FeedForward::Plain { up, down, .. } => FeedForwardWeights::Plain {
                up: self.matrix(up)?,
                down: self.matrix(down)?,
            },
            FeedForward::Experts(experts) => self.experts(experts)?,
        };
        Ok(LayerWeights {
            mixer_norm: self.norm(&layer.mixer_norm)?,
            mixer,
            mixer_post_norm: self.optional_norm(layer.mixer_post_norm.as_ref())?,
            feed_forward_norm: self.norm(&layer.feed_forward_norm)?,
            feed_forward,
            feed_forward_post_norm: self.optional_norm(layer.feed_forward_post_norm.as_ref())?,
        })
    }

    fn gated(&mut self, gated: &GatedFeedForward) -> Result<GatedWeights, ModelFileError> {
        Ok(GatedWeights {
            gate: self.matrix(&gated.gate)?,
            up: self.matrix(&gated.up)?,
            down: self.matrix(&gated.down)?,
        })
    }

    fn experts(&mut self, experts: &Experts) -> Result<FeedForwardWeights, ModelFileError> {
        Ok(FeedForwardWeights::Experts {
            router: self.matrix(&experts.router)?,
            experts: experts
                .experts
                .iter()
                .map(|expert| self.gated(expert))
                .collect::<Result<_, _>>()?,
            shared: experts
                .shared
                .as_ref()
                .map(|shared| self.gated(shared))
                .transpose()?,
        })
    }

    fn norm(&mut self, norm: &Norm) -> Result<NormWeights, ModelFileError> {
        let weight = self.tensor(&norm.weight)?;
        Ok(NormWeights {
            weight: self.vector(weight, 0..norm.length)?,
            bias: norm
                .bias
                .as_ref()
                .map(|bias| self.vector(self.tensor(bias)?, 0..norm.length))
                .transpose()?,
        })
    }

    fn optional_norm(
        &mut self,
        norm: Option<&Norm>,
    ) -> Result<Option<NormWeights>, ModelFileError> {
        norm.map(|norm| self.norm(norm)).transpose()
    }

    fn matrix(&mut self, linear: &Linear) -> Result<Matrix, ModelFileError> {
        let key = (linear.weight.clone(), linear.first_row);
        let packed = match self.packed.get(&key) {
            Some(packed) => packed.clone(),
            None => {
                let packed = Arc::new(self.pack(linear)?);
                self.bytes += packed.bytes() as u64;
                self.packed.insert(key, packed.clone());
                packed
            }
        };
        let range = linear.first_row..linear.first_row + linear.rows;
        let bias = linear
            .bias
            .as_ref()
            .map(|bias| self.vector(self.tensor(bias)?, range))
            .transpose()?;
        Ok(Matrix { packed, bias })
    }

    /// Packs a matrix slab by slab, giving each slab's pages back to the source, so that the file
    /// and the packed form are never in memory together.
    fn pack(&self, linear: &Linear) -> Result<PackedMatrix, ModelFileError> {
        let tensor = self.tensor(&linear.weight)?;
        let refuse = |what: String| ModelFileError::Tensor {
            tensor: linear.weight.clone(),
            what,
        };
        let row_bytes = tensor
            .tensor_type
            .row_bytes(linear.columns)
            .ok_or_else(|| refuse("has rows of partial blocks".into()))?
            as u64;
        let mut builder = PackedMatrix::builder(tensor.tensor_type, linear.rows, linear.columns)
            .map_err(|error| refuse(error.to_string()))?;
        let rows_per_slab = (SLAB_BYTES / row_bytes.max(1)).max(16) as usize;
        let mut first = 0;
        while first < linear.rows {
            let rows = rows_per_slab.min(linear.rows - first);
            let start = (linear.first_row + first) as u64 * row_bytes;
            let range = start..start + rows as u64 * row_bytes;
            self.with_bytes(tensor, range, |raw| match self.pool {
                Some(pool) => builder.push_rows_parallel(pool, raw),
                None => builder.push_rows(raw),
            })?
            .map_err(|error| refuse(error.to_string()))?;
            first += rows;
        }
        builder.finish().map_err(|error| refuse(error.to_string()))
    }

    /// Elements `range` of a tensor as f32.
    fn vector(&self, tensor: &TensorInfo, range: Range<usize>) -> Result<Vec<f32>, ModelFileError> {
        let refuse = |what: &str| ModelFileError::Tensor {
            tensor: tensor.name.clone(),
            what: what.to_owned(),
        };
        let block = tensor.tensor_type.block_len();
        if !range.start.is_multiple_of(block) || !range.end.is_multiple_of(block) {
            return Err(refuse("has partial blocks"));
        }
        let bytes_of =
            |elements: usize| (elements / block * tensor.tensor_type.block_bytes()) as u64;
        let mut out = vec![0.0; range.len()];
        self.with_bytes(tensor, bytes_of(range.start)..bytes_of(range.end), |raw| {
            dequantize(tensor.tensor_type, raw, &mut out)
        })?
        .map_err(|error| refuse(&error.to_string()))?;
        Ok(out)
    }

    fn tensor(&self, name: &str) -> Result<&TensorInfo, ModelFileError> {
        self.file
            .tensor(name)
            .ok_or_else(|| ModelFileError::Tensor {
                tensor: name.to_owned(),
                what: "is missing; convert the model again".into(),
            })
    }

    /// Shows bytes `range` of a tensor to `read`, then gives their pages back.
    fn with_bytes<T>(
        &self,
        tensor: &TensorInfo,
        range: Range<u64>,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, ModelFileError> {
        if range.end > tensor.bytes {
            return Err(ModelFileError::Tensor {
                tensor: tensor.name.clone(),
                what: "is shorter than its shape".into(),
            });
        }
        let source = self.file.source(tensor);
        let range = tensor.offset + range.start..tensor.offset + range.end;
        if let Some(all) = source.as_slice() {
            let out = read(&all[range.start as usize..range.end as usize]);
            source.release(range);
            return Ok(out);
        }
        let mut copy = vec![0; (range.end - range.start) as usize];
        source
            .read_at(range.start, &mut copy)
            .map_err(|error| ModelFileError::Io {
                file: source.name().to_owned(),
                source: error,
            })?;
        source.release(range);
        Ok(read(&copy))
    }
}

fn float_types<'a>(
    matrices: impl Iterator<Item = &'a Arc<PackedMatrix>> + Clone,
) -> Vec<TensorType> {
    [TensorType::F32, TensorType::F16, TensorType::BF16]
        .into_iter()
        .filter(|&ty| matrices.clone().any(|matrix| matrix.tensor_type() == ty))
        .collect()
}

/// Reads a vector tensor as f32, for what is not part of the weights proper.
pub(in crate::backend) fn read_vector(
    file: &ModelFile,
    name: &str,
    length: usize,
) -> Result<Vec<f32>, ModelFileError> {
    let loader = Loader::new(file, None);
    loader.vector(loader.tensor(name)?, 0..length)
}
