//! Loads a model's weights: packs the file's tensors, or finds them packed in the cache.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use ondine_kernels::ops::ShortConvolution;
use ondine_kernels::{
    AlignedBytes, KernelError, PackedForm, PackedMatrix, SharedBytes, ThreadPool, dequantize,
    release_spare_memory,
};

use super::streaming::{Streaming, StreamingError};
use super::weights::{
    FeedForwardWeights, GatedWeights, LayerWeights, Matrix, MixerWeights, NormWeights, Weights,
};
use crate::backend::{BackendError, LoadOptions, Unavailable};
use crate::gguf::{ModelFile, ModelFileError, TensorInfo};
use crate::model::{self, Experts, FeedForward, GatedFeedForward, Linear, Mixer, ModelSpec, Norm};
use crate::packed_cache::disk::Disk;
use crate::packed_cache::{Blob, Entry, Found, Key, PackedCache};
use crate::source::ByteSource;

/// Bytes of a tensor that are packed before their pages are given back.
const SLAB_BYTES: u64 = 8 << 20;
/// Bytes of a tensor that are packed before they are written to the cache.
const PART_BYTES: usize = 32 << 20;

/// Weights that were loaded, and what there is to say about it.
pub(super) struct Loaded {
    pub(super) weights: Weights,
    pub(super) notes: Vec<String>,
}

/// Loads the weights of a model; with `budget`, at most so many bytes of them are in memory at once and the others are
/// read from the cache as they are needed.
pub(super) fn load(
    file: &ModelFile,
    spec: &ModelSpec,
    pool: &ThreadPool,
    options: &LoadOptions,
    budget: Option<u64>,
) -> Result<Loaded, BackendError> {
    let mut notes = Vec::new();
    let cache = options.packed_cache.as_ref();
    let forms = match options.screened_head && budget.is_none() {
        true => Forms::of(&Tensors { file }, spec)?,
        // A streamed head is read in parts, for which its rows must lie together.
        false => Forms::default(),
    };
    let packing = |forms| Packing {
        tensors: Tensors { file },
        spec,
        forms,
        pool,
    };
    if let Some(budget) = budget {
        let refuse = |what: String| BackendError::Unavailable(Unavailable::Unsupported(what));
        let cache = cache.ok_or_else(|| {
            refuse(
                "a memory budget needs the cache of packed weights, which is switched off".into(),
            )
        })?;
        let key = Key::of(file.sources()).ok_or_else(|| {
            refuse("a memory budget needs a model that lies in plain files".into())
        })?;
        let place = || cache.directory().display().to_string();
        let blob = match cached(cache, &key, &packing(&forms), true, &mut notes) {
            Ok(blob) => blob,
            Err(CacheError::File(error)) => return Err(error.into()),
            Err(CacheError::Io(error)) => {
                let what = "a memory budget needs a cache of packed weights, and that in";
                return Err(refuse(format!(
                    "{what} {} cannot be written: {error}",
                    place()
                )));
            }
        };
        let failed = |error: io::Error| refuse(format!("{}: {error}", blob.path.display()));
        let disk = Disk::open(&blob.path).map_err(failed)?;
        blob.map.expect_scattered_reads();
        let map: SharedBytes = blob.map.clone();
        let path = blob.path.clone();
        let mut weights = Loader::new(file, forms, pool, Some(blob)).weights(spec)?;
        Streaming::begin(&mut weights, &map, disk, budget).map_err(|error| match error {
            StreamingError::Io(error) => refuse(format!("{}: {error}", path.display())),
            StreamingError::TooSmall(needed) => Unavailable::OutOfMemory(format!(
                "the memory budget leaves {} MiB for weights where at least {} MiB are needed; raise it, shorten --ctx or use fewer threads",
                budget >> 20,
                needed.div_ceil(1 << 20)
            ))
            .into(),
        })?;
        return Ok(Loaded { weights, notes });
    }
    let cache = cache.filter(|cache| cache.is_worth(file.bytes()));
    let key = cache.and_then(|_| Key::of(file.sources()));
    let key = key.map(|key| match forms.head {
        PackedForm::Interleaved => key,
        PackedForm::Split => key.with_split_head(),
    });
    let blob = match cache.zip(key) {
        None => None,
        Some((cache, key)) => match cached(cache, &key, &packing(&forms), false, &mut notes) {
            Ok(blob) => Some(blob),
            Err(CacheError::File(error)) => return Err(error.into()),
            // The cache saves time at the start; without it everything works.
            Err(CacheError::Io(_)) => None,
        },
    };
    // Through small pages weights are read up to a third slower, token after token: copying them once pays.
    let copies = blob
        .as_ref()
        .is_some_and(|blob| !blob.map.maps_huge_pages());
    let mut loader = Loader::new(file, forms, pool, blob);
    loader.copies = copies;
    Ok(Loaded {
        weights: loader.weights(spec)?,
        notes,
    })
}

/// Vector `name` as f32, for what is not part of the weights proper.
pub(in crate::backend) fn read_vector(
    file: &ModelFile,
    name: &str,
    length: usize,
) -> Result<Vec<f32>, ModelFileError> {
    let tensors = Tensors { file };
    tensors.vector(tensors.tensor(name)?, 0..length)
}

enum CacheError {
    Io(io::Error),
    File(ModelFileError),
}

impl From<io::Error> for CacheError {
    fn from(error: io::Error) -> Self {
        CacheError::Io(error)
    }
}

impl From<ModelFileError> for CacheError {
    fn from(error: ModelFileError) -> Self {
        CacheError::File(error)
    }
}

/// How the matrices are laid out.
#[derive(Default)]
struct Forms {
    /// The matrix that gives the scores, by tensor and first row; it may be the token embedding, too.
    scores: (String, usize),
    head: PackedForm,
}

impl Forms {
    fn of(tensors: &Tensors<'_>, spec: &ModelSpec) -> Result<Self, ModelFileError> {
        let output = &spec.output;
        let ty = tensors.tensor(&output.weight)?.tensor_type;
        // Where the highest products are not the highest scores, nothing can be left out.
        let head = match spec.logit_softcap.is_none() && output.bias.is_none() {
            true => PackedForm::for_scores(ty, output.rows),
            false => PackedForm::Interleaved,
        };
        Ok(Forms {
            scores: (output.weight.clone(), output.first_row),
            head,
        })
    }

    fn form(&self, linear: &Linear) -> PackedForm {
        let (tensor, first_row) = &self.scores;
        match (tensor, first_row) == (&linear.weight, &linear.first_row) {
            true => self.head,
            false => PackedForm::Interleaved,
        }
    }
}

/// What is packed, and how.
struct Packing<'a> {
    tensors: Tensors<'a>,
    spec: &'a ModelSpec,
    forms: &'a Forms,
    pool: &'a ThreadPool,
}

/// The model's file in the cache, written now if there is none.
fn cached(
    cache: &PackedCache,
    key: &Key,
    packing: &Packing<'_>,
    sparing: bool,
    notes: &mut Vec<String>,
) -> Result<Blob, CacheError> {
    match cache.open(key) {
        Found::Whole(blob) => return Ok(blob),
        Found::Nothing => {}
        Found::Damaged => notes.push(format!(
            "the packed weights in {} were damaged and are made again",
            cache.directory().display()
        )),
    }
    let Packing {
        tensors,
        forms,
        pool,
        ..
    } = packing;
    let linears = linears(packing.spec);
    let mut entries = Vec::with_capacity(linears.len());
    for linear in &linears {
        let tensor = tensors.tensor(&linear.weight)?;
        let (form, ty) = (forms.form(linear), tensor.tensor_type);
        let bytes = PackedMatrix::packed_bytes_of(form, ty, linear.rows, linear.columns);
        entries.push(Entry {
            tensor: linear.weight.clone(),
            first_row: linear.first_row,
            rows: linear.rows,
            columns: linear.columns,
            tensor_type: ty,
            form,
            offset: 0,
            bytes: bytes.map_err(|error| refuse(linear, &error))? as u64,
        });
    }
    let mut next = linears.iter();
    let blob = cache.write::<CacheError>(key, entries, sparing, |_, out| match next.next() {
        Some(linear) => tensors.write_packed(forms.form(linear), linear, pool, out),
        None => Ok(()),
    });
    release_spare_memory();
    blob
}

/// All matrices in the order in which a pass reads them, each once; the experts of a layer after the rest of it.
fn linears(spec: &ModelSpec) -> Vec<&Linear> {
    let mut all: Vec<&Linear> = vec![&spec.token_embedding, &spec.output];
    all.extend(&spec.position_embedding);
    for layer in &spec.layers {
        match &layer.mixer {
            Mixer::Attention(a) => all.extend([&a.query, &a.key, &a.value, &a.output]),
            Mixer::ShortConvolution(c) => all.extend([&c.input, &c.output]),
        }
        match &layer.feed_forward {
            FeedForward::Gated(g) => all.extend([&g.gate, &g.up, &g.down]),
            FeedForward::Plain { up, down, .. } => all.extend([up, down]),
            FeedForward::Experts(experts) => {
                all.push(&experts.router);
                for g in experts.shared.iter().chain(&experts.experts) {
                    all.extend([&g.gate, &g.up, &g.down]);
                }
            }
        }
    }
    let mut seen = HashSet::new();
    all.retain(|linear| seen.insert((linear.weight.as_str(), linear.first_row)));
    all
}

struct Loader<'a> {
    tensors: Tensors<'a>,
    forms: Forms,
    /// Threads that pack.
    pool: &'a ThreadPool,
    /// Where packed matrices are found.
    blob: Option<Blob>,
    /// Whether matrices of the blob are copied to memory of their own.
    copies: bool,
    /// The blob's entries by tensor and first row.
    entries: HashMap<(String, usize), Entry>,
    bytes: u64,
    /// Matrices by tensor and first row, so that tied ones are packed once.
    packed: HashMap<(String, usize), Arc<PackedMatrix>>,
}

impl<'a> Loader<'a> {
    fn new(file: &'a ModelFile, forms: Forms, pool: &'a ThreadPool, blob: Option<Blob>) -> Self {
        let entries = blob.iter().flat_map(|blob| &blob.header.entries);
        let entries = entries
            .map(|entry| ((entry.tensor.clone(), entry.first_row), entry.clone()))
            .collect();
        Loader {
            tensors: Tensors { file },
            forms,
            pool,
            blob,
            copies: false,
            entries,
            bytes: 0,
            packed: HashMap::new(),
        }
    }

    fn weights(mut self, spec: &ModelSpec) -> Result<Weights, ModelFileError> {
        let token_embedding = self.matrix(&spec.token_embedding)?.packed;
        let output = self.matrix(&spec.output)?;
        let position_embedding = spec
            .position_embedding
            .as_ref()
            .map(|positions| self.matrix(positions))
            .transpose()?;
        let embedding_norm = self.optional_norm(spec.embedding_norm.as_ref())?;
        let output_norm = self.norm(&spec.output_norm)?;
        let layers = spec
            .layers
            .iter()
            .map(|layer| self.layer(layer))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Weights {
            token_embedding,
            position_embedding,
            embedding_norm,
            layers,
            output_norm,
            output,
            streaming: None,
            bytes: self.bytes,
            readers: self
                .packed
                .values()
                .map(|matrix| (matrix.tensor_type(), matrix.cols()))
                .collect(),
            _blob: self.blob,
        })
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
                let tensor = self.tensors.tensor(&convolution.kernel)?;
                let elements = convolution.taps * convolution.output.rows;
                let kernel = self.tensors.vector(tensor, 0..elements)?;
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
                .collect::<Result<Vec<_>, _>>()?
                .into(),
            shared: experts
                .shared
                .as_ref()
                .map(|shared| self.gated(shared))
                .transpose()?,
        })
    }

    fn norm(&self, norm: &Norm) -> Result<NormWeights, ModelFileError> {
        let tensors = &self.tensors;
        let vector = |name: &str| tensors.vector(tensors.tensor(name)?, 0..norm.length);
        Ok(NormWeights {
            weight: vector(&norm.weight)?,
            bias: norm.bias.as_deref().map(vector).transpose()?,
        })
    }

    fn optional_norm(&self, norm: Option<&Norm>) -> Result<Option<NormWeights>, ModelFileError> {
        norm.map(|norm| self.norm(norm)).transpose()
    }

    fn matrix(&mut self, linear: &Linear) -> Result<Matrix, ModelFileError> {
        let key = (linear.weight.clone(), linear.first_row);
        let packed = match self.packed.get(&key) {
            Some(packed) => packed.clone(),
            None => {
                let packed = match self.find_packed(linear, &key)? {
                    Some(packed) => packed,
                    None => self
                        .tensors
                        .pack(self.forms.form(linear), linear, self.pool)?,
                };
                let packed = Arc::new(packed);
                self.bytes += packed.bytes() as u64;
                self.packed.insert(key, packed.clone());
                packed
            }
        };
        let range = linear.first_row..linear.first_row + linear.rows;
        let bias = linear
            .bias
            .as_ref()
            .map(|bias| self.tensors.vector(self.tensors.tensor(bias)?, range))
            .transpose()?;
        Ok(Matrix { packed, bias })
    }

    /// The matrix in the blob, if there is one and it is what the model says.
    fn find_packed(
        &self,
        linear: &Linear,
        key: &(String, usize),
    ) -> Result<Option<PackedMatrix>, ModelFileError> {
        let (Some(blob), Some(entry)) = (&self.blob, self.entries.get(key)) else {
            return Ok(None);
        };
        let (rows, columns) = (linear.rows, linear.columns);
        let ty = self.tensors.tensor(&linear.weight)?.tensor_type;
        let form = self.forms.form(linear);
        if (entry.rows, entry.columns, entry.tensor_type, entry.form) != (rows, columns, ty, form) {
            return Ok(None);
        }
        let range = entry.offset as usize..(entry.offset + entry.bytes) as usize;
        let map: SharedBytes = blob.map.clone();
        let matrix = PackedMatrix::from_bytes_of(form, ty, rows, columns, map, range);
        let Ok(matrix) = matrix else {
            return Ok(None);
        };
        match self.copies {
            true => self.copied(&matrix, blob).map(Some),
            false => Ok(Some(matrix)),
        }
    }

    /// The matrix in memory of its own; the file's pages are given back.
    fn copied(&self, matrix: &PackedMatrix, blob: &Blob) -> Result<PackedMatrix, ModelFileError> {
        const PIECE: usize = 1 << 20;
        let failed = |error: KernelError| ModelFileError::Invalid {
            file: blob.path.display().to_string(),
            what: error.to_string(),
        };
        let from = matrix.as_bytes();
        let mut bytes = AlignedBytes::zeroed(from.len())
            .ok_or_else(|| failed(KernelError::OutOfMemory(from.len())))?;
        let copy = |index: usize, piece: &mut [u8]| {
            piece.copy_from_slice(&from[index * PIECE..][..piece.len()]);
        };
        self.pool
            .for_each_chunk_mut(bytes.as_mut_slice(), PIECE, copy);
        let range = matrix.storage_range();
        blob.map.release(range.start as u64..range.end as u64);
        let range = 0..from.len();
        matrix.with_storage(Arc::new(bytes), range).map_err(failed)
    }
}

/// The tensors of a model file.
struct Tensors<'a> {
    file: &'a ModelFile,
}

impl Tensors<'_> {
    /// Packs a matrix slab by slab, giving each slab's pages back to the source, so that the file
    /// and the packed form are never in memory together.
    fn pack(
        &self,
        form: PackedForm,
        linear: &Linear,
        pool: &ThreadPool,
    ) -> Result<PackedMatrix, ModelFileError> {
        self.pack_rows(form, linear, 0..linear.rows, pool)
    }

    /// Writes the packed form of a matrix: its parts one after the other, where groups of rows lie together.
    fn write_packed(
        &self,
        form: PackedForm,
        linear: &Linear,
        pool: &ThreadPool,
        out: &mut dyn Write,
    ) -> Result<(), CacheError> {
        /// Groups of rows that are packed together do not cross this.
        const ROWS: usize = 16;
        let row_bytes = self.row_bytes(linear)? as usize;
        let part = match form {
            PackedForm::Interleaved => PART_BYTES / row_bytes.max(1),
            PackedForm::Split => linear.rows,
        };
        let part = part.max(1).next_multiple_of(ROWS);
        for first in (0..linear.rows).step_by(part) {
            let rows = first..linear.rows.min(first + part);
            out.write_all(self.pack_rows(form, linear, rows, pool)?.as_bytes())?;
            release_spare_memory();
        }
        Ok(())
    }

    /// Packs rows `rows` of a matrix.
    fn pack_rows(
        &self,
        form: PackedForm,
        linear: &Linear,
        rows: Range<usize>,
        pool: &ThreadPool,
    ) -> Result<PackedMatrix, ModelFileError> {
        let tensor = self.tensor(&linear.weight)?;
        let row_bytes = self.row_bytes(linear)?;
        let (ty, columns) = (tensor.tensor_type, linear.columns);
        let mut builder = PackedMatrix::builder_of(form, ty, rows.len(), columns)
            .map_err(|error| refuse(linear, &error))?;
        let rows_per_slab = (SLAB_BYTES / row_bytes.max(1)).max(16) as usize;
        let mut first = rows.start;
        while first < rows.end {
            let count = rows_per_slab.min(rows.end - first);
            let start = (linear.first_row + first) as u64 * row_bytes;
            let range = start..start + count as u64 * row_bytes;
            self.with_bytes(tensor, range, |raw| builder.push_rows_parallel(pool, raw))?
                .map_err(|error| refuse(linear, &error))?;
            first += count;
        }
        builder.finish().map_err(|error| refuse(linear, &error))
    }

    fn row_bytes(&self, linear: &Linear) -> Result<u64, ModelFileError> {
        let row_bytes = self
            .tensor(&linear.weight)?
            .tensor_type
            .row_bytes(linear.columns);
        row_bytes
            .map(|bytes| bytes as u64)
            .ok_or_else(|| ModelFileError::Tensor {
                tensor: linear.weight.clone(),
                what: "has rows of partial blocks".into(),
            })
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

fn refuse(linear: &Linear, error: &KernelError) -> ModelFileError {
    ModelFileError::Tensor {
        tensor: linear.weight.clone(),
        what: error.to_string(),
    }
}
