//! The checkpoint's tensors under the names and in the layout that the model wants, without copying
//! weights: a tensor is a place in a file, or a view of several places.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use half::{bf16, f16};
use ondine_kernels::TensorType;

use super::checkpoint::{Checkpoint, Stored};
use super::config::Config;
use super::family::Family;
use super::metadata::Shape;
use super::names::{Form, Name, is_idle};
use super::safetensors::Element;
use crate::gguf::{ModelFileError, TensorInfo};
use crate::limits::Limits;
use crate::source::{ByteSource, Memory, Piece, Stitched, Transposed};

/// No model has more heads than this; a view has three pieces for each.
const MOST_HEADS: u64 = 1 << 12;

/// The model's tensors; their sources are the checkpoint's files, then the configuration, then
/// `views`.
pub(super) struct Assembled {
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) views: Vec<Arc<dyn ByteSource>>,
}

/// Arranges `checkpoint` for a model of `family`.
pub(super) fn assemble(
    checkpoint: &Checkpoint,
    config: &Config,
    family: &Family,
    shape: &Shape,
    limits: &Limits,
) -> Result<Assembled, ModelFileError> {
    let tied = config.boolean(&["tie_word_embeddings", "tie_embedding"])?;
    let mut assembler = Assembler {
        checkpoint,
        shape,
        limits,
        tensors: Vec::new(),
        views: Vec::new(),
        stacks: BTreeMap::new(),
        origins: HashMap::new(),
    };
    for stored in &checkpoint.tensors {
        if is_idle(&stored.name) {
            continue;
        }
        let name = Name::parse(&stored.name).ok_or_else(|| unknown(stored, family))?;
        // A tied head may be stored all the same; the embedding is what counts.
        if tied == Some(true) && name.pattern == "lm_head" {
            continue;
        }
        let mut known = false;
        for rule in family.rules_for(&name.pattern) {
            known = true;
            assembler.add(stored, &name, rule.to, rule.form)?;
        }
        if !known {
            return Err(unknown(stored, family));
        }
    }
    for (name, stack) in std::mem::take(&mut assembler.stacks) {
        assembler.stack(name, &stack)?;
    }
    for (name, factors) in &shape.factors {
        let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes());
        let shape = vec![factors.len() as u64];
        assembler.memory((*name).to_owned(), shape, bytes.collect())?;
    }
    if tied == Some(false) && !assembler.origins.contains_key("output.weight") {
        return Err(ModelFileError::Tensor {
            tensor: "lm_head.weight".into(),
            what: "is missing though config.json has `tie_word_embeddings` false; fetch the missing shard".into(),
        });
    }
    Ok(Assembled {
        tensors: assembler.tensors,
        views: assembler.views,
    })
}

struct Assembler<'a> {
    checkpoint: &'a Checkpoint,
    shape: &'a Shape,
    limits: &'a Limits,
    tensors: Vec<TensorInfo>,
    views: Vec<Arc<dyn ByteSource>>,
    /// Matrices by expert, under the name of the tensor that holds them all.
    stacks: BTreeMap<String, BTreeMap<u32, &'a Stored>>,
    /// Names in the model, and of what in the checkpoint they were made.
    origins: HashMap<String, &'a str>,
}

impl<'a> Assembler<'a> {
    fn add(
        &mut self,
        stored: &'a Stored,
        name: &Name,
        to: &str,
        form: Form,
    ) -> Result<(), ModelFileError> {
        let tensor_type = float(stored)?;
        if stored.shape.is_empty() || stored.shape.contains(&0) {
            return Err(wrong(stored, "has no elements; fetch the file again"));
        }
        if let Some(layer) = name.layer
            && layer >= self.shape.layers
        {
            let what = format!(
                "is of a layer beyond the {} that config.json declares; fetch the files of one revision",
                self.shape.layers
            );
            return Err(wrong(stored, &what));
        }
        let base = match name.layer {
            Some(layer) => to.replace('#', &layer.to_string()),
            None => to.to_owned(),
        };
        let kind = if name.bias { "bias" } else { "weight" };
        let full = format!("{base}.{kind}");
        if form == Form::Expert && !name.bias {
            return self.expert(stored, name, full);
        }
        if let Some(other) = self.origins.insert(full.clone(), &stored.name) {
            let what = format!("is there under two names, the other being `{other}`; remove one");
            return Err(wrong(stored, &what));
        }
        if full == "token_embd.weight" {
            self.check_vocabulary(stored)?;
        }
        match (form, name.bias) {
            (Form::Same, _) | (Form::Transposed, true) => {
                let shape = stored.shape.clone();
                self.pieces(full, shape, tensor_type, vec![(stored, 0, stored.bytes)])
            }
            (Form::PlusOne, false) => self.plus_one(stored, full, tensor_type),
            (Form::Transposed, false) => self.transposed(stored, full, tensor_type),
            (Form::ByHead, _) => self.by_head(stored, full, tensor_type),
            (Form::Kernel, false) => match stored.shape[..] {
                [channels, 1, taps] => {
                    let all = vec![(stored, 0, stored.bytes)];
                    self.pieces(full, vec![channels, taps], tensor_type, all)
                }
                _ => Err(wrong(stored, "is not of the shape [channels, 1, taps]")),
            },
            (Form::FirstHalf, false) => self.half(stored, full, tensor_type, 0),
            (Form::SecondHalf, false) => self.half(stored, full, tensor_type, 1),
            (Form::PlusOne | Form::Kernel | Form::Expert, true)
            | (Form::FirstHalf | Form::SecondHalf, true)
            | (Form::Expert, false) => Err(wrong(
                stored,
                "is a bias where the model has none; take another model",
            )),
        }
    }

    fn check_vocabulary(&self, stored: &Stored) -> Result<(), ModelFileError> {
        match self.shape.vocabulary {
            Some(declared) if stored.shape[0] != u64::from(declared) => {
                let what = format!(
                    "has {} rows for the {declared} tokens that config.json declares; fetch the files of one revision",
                    stored.shape[0]
                );
                Err(wrong(stored, &what))
            }
            _ => Ok(()),
        }
    }

    fn expert(
        &mut self,
        stored: &'a Stored,
        name: &Name,
        full: String,
    ) -> Result<(), ModelFileError> {
        let number = name.expert.filter(|&number| number < self.shape.experts);
        let Some(number) = number else {
            let what = format!(
                "is of an expert beyond the {} that config.json declares; fetch the files of one revision",
                self.shape.experts
            );
            return Err(wrong(stored, &what));
        };
        self.origins.insert(full.clone(), &stored.name);
        match self.stacks.entry(full).or_default().insert(number, stored) {
            Some(other) => {
                let what = format!("is there under two names, the other being `{}`", other.name);
                Err(wrong(stored, &what))
            }
            None => Ok(()),
        }
    }

    /// All experts' matrices as one tensor.
    fn stack(
        &mut self,
        name: String,
        experts: &BTreeMap<u32, &'a Stored>,
    ) -> Result<(), ModelFileError> {
        let count = self.shape.experts as usize;
        let Some((_, &first)) = experts.first_key_value() else {
            return Ok(());
        };
        if experts.len() != count {
            let what = format!(
                "has its like in {} of {count} experts; fetch the missing shards",
                experts.len()
            );
            return Err(wrong(first, &what));
        }
        let different = experts
            .values()
            .find(|other| other.shape != first.shape || other.element != first.element);
        if let Some(different) = different {
            let what = format!("differs in shape or type from `{}`", first.name);
            return Err(wrong(different, &what));
        }
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(wrong(first, "is there a second time among fused experts"));
        }
        let mut shape = vec![count as u64];
        shape.extend(&first.shape);
        let pieces = experts.values().map(|&stored| (stored, 0, stored.bytes));
        self.pieces(name, shape, float(first)?, pieces.collect())
    }

    /// One half of the rows of every matrix in the tensor.
    fn half(
        &mut self,
        stored: &'a Stored,
        full: String,
        tensor_type: TensorType,
        second: u64,
    ) -> Result<(), ModelFileError> {
        let [outer @ .., rows, columns] = &stored.shape[..] else {
            return Err(wrong(stored, "is not a matrix"));
        };
        if rows % 2 != 0 {
            return Err(wrong(
                stored,
                "has an odd number of rows where two halves are needed",
            ));
        }
        let half = stored.element.bytes() * (rows / 2) * columns;
        let matrices: u64 = outer.iter().product();
        if matrices > u64::from(self.shape.experts.max(1)) {
            return Err(wrong(
                stored,
                "has more matrices than config.json declares experts",
            ));
        }
        let pieces = (0..matrices).map(|matrix| (stored, (2 * matrix + second) * half, half));
        let mut shape = outer.to_vec();
        shape.extend([rows / 2, *columns]);
        self.pieces(full, shape, tensor_type, pieces.collect())
    }

    /// BLOOM's fused projection: [heads, 3, head size, …] becomes [3, heads, head size, …].
    fn by_head(
        &mut self,
        stored: &'a Stored,
        full: String,
        tensor_type: TensorType,
    ) -> Result<(), ModelFileError> {
        let heads = u64::from(self.shape.heads);
        let rows = stored.shape[0];
        let parts = 3 * heads;
        if heads > MOST_HEADS || !rows.is_multiple_of(parts) {
            let what = format!("has {rows} rows, which {heads} heads cannot share");
            return Err(wrong(stored, &what));
        }
        let bytes = stored.bytes / parts;
        let pieces = (0..3).flat_map(|part| {
            (0..heads).map(move |head| (stored, (3 * head + part) * bytes, bytes))
        });
        self.pieces(full, stored.shape.clone(), tensor_type, pieces.collect())
    }

    fn transposed(
        &mut self,
        stored: &'a Stored,
        full: String,
        tensor_type: TensorType,
    ) -> Result<(), ModelFileError> {
        let [rows, columns] = stored.shape[..] else {
            return Err(wrong(stored, "is not a matrix"));
        };
        let matrix = self.checkpoint.piece(stored, 0, stored.bytes);
        let element = stored.element.bytes();
        let view = Transposed::new(stored.name.clone(), matrix, rows, columns, element)
            .map_err(|error| failed(stored, error))?;
        self.view(full, vec![columns, rows], tensor_type, Arc::new(view))
    }

    fn plus_one(
        &mut self,
        stored: &'a Stored,
        full: String,
        tensor_type: TensorType,
    ) -> Result<(), ModelFileError> {
        if stored.shape.len() != 1 || stored.shape[0] > self.limits.width {
            return Err(wrong(stored, "is not a vector of a model's width"));
        }
        let Piece { source, offset, .. } = self.checkpoint.piece(stored, 0, stored.bytes);
        let mut raw = vec![0; stored.bytes as usize];
        source
            .read_at(offset, &mut raw)
            .map_err(|error| failed(stored, error))?;
        let elements = raw.chunks_exact(stored.element.bytes() as usize);
        let bytes = elements.flat_map(|raw| {
            let value = match (tensor_type, raw) {
                (TensorType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
                (TensorType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
                (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                _ => 0.0,
            };
            (1.0 + value).to_le_bytes()
        });
        self.memory(full, stored.shape.clone(), bytes.collect())
    }

    /// A tensor of `parts`, each bytes of a stored tensor from an offset within it.
    fn pieces(
        &mut self,
        name: String,
        shape: Vec<u64>,
        tensor_type: TensorType,
        parts: Vec<(&'a Stored, u64, u64)>,
    ) -> Result<(), ModelFileError> {
        if let [(stored, skip, bytes)] = parts[..] {
            return self.push(
                name,
                shape,
                tensor_type,
                stored.file,
                stored.offset + skip,
                bytes,
            );
        }
        let label = parts.first().map_or("tensor", |(stored, ..)| &stored.name);
        let pieces = parts
            .iter()
            .map(|&(stored, skip, bytes)| self.checkpoint.piece(stored, skip, bytes));
        let view = Stitched::new(label, pieces.collect()).map_err(|error| ModelFileError::Io {
            file: label.to_owned(),
            source: error,
        })?;
        self.view(name, shape, tensor_type, Arc::new(view))
    }

    /// Elements that were computed, as f32.
    fn memory(
        &mut self,
        name: String,
        shape: Vec<u64>,
        bytes: Vec<u8>,
    ) -> Result<(), ModelFileError> {
        let view = Arc::new(Memory::new(name.clone(), bytes));
        self.view(name, shape, TensorType::F32, view)
    }

    fn view(
        &mut self,
        name: String,
        shape: Vec<u64>,
        tensor_type: TensorType,
        view: Arc<dyn ByteSource>,
    ) -> Result<(), ModelFileError> {
        let source = self.checkpoint.files.len() + 1 + self.views.len();
        let bytes = view.len();
        self.views.push(view);
        self.push(name, shape, tensor_type, source, 0, bytes)
    }

    fn push(
        &mut self,
        name: String,
        mut shape: Vec<u64>,
        tensor_type: TensorType,
        source: usize,
        offset: u64,
        bytes: u64,
    ) -> Result<(), ModelFileError> {
        if shape.len() > self.limits.dimensions as usize {
            let what = format!("has {} dimensions; take another model", shape.len());
            return Err(ModelFileError::Tensor { tensor: name, what });
        }
        shape.reverse();
        self.tensors.push(TensorInfo {
            name,
            shape,
            tensor_type,
            source,
            offset,
            bytes,
        });
        Ok(())
    }
}

fn float(stored: &Stored) -> Result<TensorType, ModelFileError> {
    match stored.element {
        Element::Float(tensor_type) => Ok(tensor_type),
        Element::Other(_) => Err(wrong(
            stored,
            "is not of type F32, F16 or BF16; take the original checkpoint or a GGUF file",
        )),
    }
}

fn unknown(stored: &Stored, family: &Family) -> ModelFileError {
    let what = format!(
        "has no place in a {} model as config.json describes it; take another model or a GGUF file",
        family.architecture
    );
    wrong(stored, &what)
}

fn wrong(stored: &Stored, what: &str) -> ModelFileError {
    ModelFileError::Tensor {
        tensor: stored.name.clone(),
        what: what.to_owned(),
    }
}

fn failed(stored: &Stored, source: std::io::Error) -> ModelFileError {
    ModelFileError::Io {
        file: stored.name.clone(),
        source,
    }
}
