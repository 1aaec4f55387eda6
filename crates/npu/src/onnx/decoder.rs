//! A decoder that drives ONNX Runtime sessions; keys and values stay in buffers of the sequences.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

use ondine_runtime::backend::{
    BackendError, Decoder, DeviceReport, MemoryReport, Run, Scored, Scores, Select, SequenceId,
    Unavailable, Wanted,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::model::{Mixer, ModelSpec};
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::{Stage, ffi, reason};
use crate::export::interface::{Interface, Rotation};
use crate::export::onnx::PROMPT_TOKENS;

/// Positions that the buffers of a new sequence hold in the fused form; they double when they are full.
const FIRST_CAPACITY: usize = 256;

pub(super) struct OnnxDecoder {
    spec: Arc<ModelSpec>,
    device: DeviceReport,
    context: usize,
    graphs: Graphs,
    layers: Vec<CacheShape>,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_sequence: u64,
    weights_bytes: u64,
    notes: Vec<String>,
}

enum Graphs {
    Fused(Session),
    Fixed(Box<Fixed>),
}

struct Fixed {
    prompt: Compiled,
    step: Compiled,
    interface: Interface,
    rotations: Vec<Rotation>,
    takes_positions: bool,
}

/// A graph of static shapes with the buffers of its outputs.
struct Compiled {
    session: Session,
    tokens: usize,
    /// New keys and values of each layer, [1, kv_heads, tokens, size].
    new: Vec<[Tensor<f32>; 2]>,
    /// [1, 1, vocabulary]
    logits: Tensor<f32>,
}

#[derive(Debug, Clone, Copy)]
struct CacheShape {
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
}

struct Sequence {
    length: usize,
    capacity: usize,
    /// Keys and values of each layer, [1, kv_heads, capacity, size].
    cache: Vec<[Tensor<f32>; 2]>,
}

impl OnnxDecoder {
    pub(super) fn fused(
        file: &ModelFile,
        spec: &Arc<ModelSpec>,
        context: usize,
        session: Session,
    ) -> Result<Self, BackendError> {
        Ok(Self::new(file, spec, context, Graphs::Fused(session)))
    }

    pub(super) fn fixed(
        file: &ModelFile,
        spec: &Arc<ModelSpec>,
        context: usize,
        prompt: Session,
        step: Session,
    ) -> Result<Self, BackendError> {
        let interface = Interface::of(spec);
        let rotations = interface.tables(file, context)?;
        let shapes = cache_shapes(spec);
        let compiled = |session, tokens| -> Result<Compiled, BackendError> {
            Ok(Compiled {
                session,
                tokens,
                new: shapes
                    .iter()
                    .map(|shape| buffers(shape, tokens))
                    .collect::<Result<_, _>>()?,
                logits: zeros([1, 1, spec.vocabulary])?,
            })
        };
        let graphs = Graphs::Fixed(Box::new(Fixed {
            prompt: compiled(prompt, PROMPT_TOKENS)?,
            step: compiled(step, 1)?,
            interface,
            rotations,
            takes_positions: spec.position_embedding.is_some(),
        }));
        Ok(Self::new(file, spec, context, graphs))
    }

    fn new(file: &ModelFile, spec: &Arc<ModelSpec>, context: usize, graphs: Graphs) -> Self {
        OnnxDecoder {
            spec: spec.clone(),
            device: DeviceReport {
                backend: String::new(),
                device: String::new(),
                threads: 0,
            },
            context,
            graphs,
            layers: cache_shapes(spec),
            sequences: BTreeMap::new(),
            next_sequence: 0,
            weights_bytes: file.tensors().iter().map(|tensor| tensor.bytes).sum(),
            notes: Vec::new(),
        }
    }

    pub(super) fn set_device(&mut self, device: DeviceReport, note: Option<String>) {
        self.device = device;
        self.notes.extend(note);
    }

    /// Computes one token, so that what the runtime does at the first run is done at load.
    pub(super) fn warm_up(&mut self) -> Result<(), BackendError> {
        let sequence = self.start();
        let run = Run {
            sequence,
            tokens: &[0],
            wanted: Wanted::Last,
            select: Select::All,
        };
        let done = self.forward(&[run], &mut |_| ());
        self.stop(sequence);
        done
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn check(&self, batch: &[Run<'_>]) -> Result<(), BackendError> {
        let vocabulary = self.spec.vocabulary;
        let mut lengths = BTreeMap::new();
        for run in batch {
            if run.wanted == Wanted::Hidden {
                let what = format!("{} gives no hidden states", self.device.backend);
                return Err(Unavailable::Unsupported(what).into());
            }
            let sequence = self
                .sequences
                .get(&run.sequence)
                .ok_or(BackendError::UnknownSequence(run.sequence))?;
            let length = lengths.entry(run.sequence).or_insert(sequence.length);
            *length += run.tokens.len();
            if *length > self.context {
                return Err(BackendError::ContextFull {
                    wanted: *length,
                    context: self.context,
                });
            }
            if let Some(&token) = run.tokens.iter().find(|&&t| t as usize >= vocabulary) {
                return Err(BackendError::UnknownToken { token, vocabulary });
            }
        }
        Ok(())
    }

    /// Computes a part of a run; `wanted` are the indices in it whose scores are handed on.
    fn part(
        &mut self,
        id: SequenceId,
        tokens: &[u32],
        wanted: &[usize],
        give: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<(), BackendError> {
        let sequence = self
            .sequences
            .get_mut(&id)
            .ok_or(BackendError::UnknownSequence(id))?;
        match &mut self.graphs {
            Graphs::Fused(session) => {
                let needed = sequence.length + tokens.len();
                if needed > sequence.capacity {
                    let capacity = needed.max(sequence.capacity * 2).max(FIRST_CAPACITY);
                    sequence.grow(&self.layers, capacity.min(self.context))?;
                }
                fused_step(
                    session,
                    sequence,
                    tokens,
                    wanted,
                    self.spec.vocabulary,
                    give,
                )
            }
            Graphs::Fixed(fixed) => {
                if sequence.capacity < self.context {
                    sequence.grow(&self.layers, self.context)?;
                }
                fixed.step(sequence, &self.layers, tokens, wanted, give)
            }
        }
    }
}

impl Decoder for OnnxDecoder {
    fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    fn device(&self) -> &DeviceReport {
        &self.device
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn chunk(&self) -> usize {
        PROMPT_TOKENS
    }

    fn start(&mut self) -> SequenceId {
        self.insert(Sequence {
            length: 0,
            capacity: 0,
            cache: Vec::new(),
        })
    }

    fn stop(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences
            .get(&sequence)
            .map_or(0, |sequence| sequence.length)
    }

    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        self.check(batch)?;
        for (index, run) in batch.iter().enumerate() {
            let parts = self.parts(run);
            let mut first = 0;
            for length in parts {
                let wanted: Vec<usize> = (0..length)
                    .filter(|token| run.wanted.includes(first + token, run.tokens.len()))
                    .collect();
                let tokens = &run.tokens[first..first + length];
                self.part(run.sequence, tokens, &wanted, &mut |token, logits| {
                    scores(Scored {
                        run: index,
                        token: first + token,
                        scores: Scores::All(logits),
                    });
                })?;
                first += length;
            }
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize {
        let Some(sequence) = self.sequences.get_mut(&sequence) else {
            return 0;
        };
        sequence.length = sequence.length.min(length);
        sequence.length
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        let from = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?;
        let mut copy = Sequence {
            length: 0,
            capacity: from.capacity,
            cache: Vec::new(),
        };
        for (shape, [keys, values]) in self.layers.iter().zip(&from.cache) {
            let [mut new_keys, mut new_values] = buffers(shape, from.capacity)?;
            new_keys
                .extract_tensor_mut()
                .1
                .copy_from_slice(keys.extract_tensor().1);
            new_values
                .extract_tensor_mut()
                .1
                .copy_from_slice(values.extract_tensor().1);
            copy.cache.push([new_keys, new_values]);
        }
        copy.length = from.length;
        Ok(self.insert(copy))
    }

    fn state_form(&self) -> String {
        "f32 keys and values by layer".into()
    }

    fn save(&self, sequence: SequenceId, out: &mut dyn Write) -> Result<(), BackendError> {
        let sequence = self
            .sequences
            .get(&sequence)
            .ok_or(BackendError::UnknownSequence(sequence))?;
        for (shape, tensors) in self.layers.iter().zip(&sequence.cache) {
            for (tensor, size) in tensors.iter().zip([shape.key_dim, shape.value_dim]) {
                let all = tensor.extract_tensor().1;
                for head in all.chunks_exact(sequence.capacity * size) {
                    for float in &head[..sequence.length * size] {
                        out.write_all(&float.to_le_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn restore(&mut self, length: usize, input: &mut dyn Read) -> Result<SequenceId, BackendError> {
        if length > self.context {
            return Err(BackendError::ContextFull {
                wanted: length,
                context: self.context,
            });
        }
        let mut sequence = Sequence {
            length: 0,
            capacity: 0,
            cache: Vec::new(),
        };
        let capacity = match self.graphs {
            Graphs::Fused(_) => length.max(FIRST_CAPACITY).min(self.context),
            Graphs::Fixed(_) => self.context,
        };
        sequence.grow(&self.layers, capacity)?;
        for (shape, tensors) in self.layers.iter().zip(&mut sequence.cache) {
            for (tensor, size) in tensors.iter_mut().zip([shape.key_dim, shape.value_dim]) {
                let all = tensor.extract_tensor_mut().1;
                for head in all.chunks_exact_mut(capacity * size) {
                    for float in &mut head[..length * size] {
                        let mut bytes = [0; 4];
                        input.read_exact(&mut bytes)?;
                        *float = f32::from_le_bytes(bytes);
                    }
                }
            }
        }
        sequence.length = length;
        Ok(self.insert(sequence))
    }

    fn memory(&self) -> MemoryReport {
        let per_position = (self.spec.kv_elements_per_position() * size_of::<f32>()) as u64;
        let held = self.sequences.values();
        MemoryReport {
            weights: self.weights_bytes,
            read_per_token: self.weights_bytes,
            kv: held
                .map(|sequence| sequence.capacity as u64 * per_position)
                .sum(),
            kv_per_position: per_position,
            scratch: 0,
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl OnnxDecoder {
    /// Lengths of the parts in which a run is computed. The fixed prompt graph scores one token only: tokens whose
    /// scores are wanted go one by one.
    fn parts(&self, run: &Run<'_>) -> Vec<usize> {
        let all = run.tokens.len();
        let first_wanted = match (run.wanted, &self.graphs) {
            (Wanted::From(first), Graphs::Fixed(_)) => first.min(all),
            _ => all,
        };
        let mut parts = vec![PROMPT_TOKENS; first_wanted / PROMPT_TOKENS];
        match first_wanted % PROMPT_TOKENS {
            0 => (),
            rest => parts.push(rest),
        }
        parts.extend(std::iter::repeat_n(1, all - first_wanted));
        parts
    }
}

impl Sequence {
    /// Buffers of `capacity` positions with the content of the present ones.
    fn grow(&mut self, layers: &[CacheShape], capacity: usize) -> Result<(), BackendError> {
        let mut grown = Vec::with_capacity(layers.len());
        for (index, shape) in layers.iter().enumerate() {
            let mut new = buffers(shape, capacity)?;
            if let Some(old) = self.cache.get(index) {
                let sizes = [shape.key_dim, shape.value_dim];
                for ((new, old), size) in new.iter_mut().zip(old).zip(sizes) {
                    let old = old.extract_tensor().1.chunks_exact(self.capacity * size);
                    let new = new.extract_tensor_mut().1.chunks_exact_mut(capacity * size);
                    for (new, old) in new.zip(old) {
                        new[..self.length * size].copy_from_slice(&old[..self.length * size]);
                    }
                }
            }
            grown.push(new);
        }
        self.cache = grown;
        self.capacity = capacity;
        Ok(())
    }
}

/// One run of the fused graph: keys and values are appended to the sequence's buffers in place.
#[allow(unsafe_code)]
fn fused_step(
    session: &mut Session,
    sequence: &mut Sequence,
    tokens: &[u32],
    wanted: &[usize],
    vocabulary: usize,
    give: &mut dyn FnMut(usize, &mut [f32]),
) -> Result<(), BackendError> {
    let (past, count) = (sequence.length, tokens.len());
    // One token at least is scored: graphs do not like empty products.
    let rows: Vec<i64> = match wanted {
        [] => vec![count as i64 - 1],
        wanted => wanted.iter().map(|&token| token as i64).collect(),
    };
    let mut logits = zeros([1, rows.len(), vocabulary])?;
    let ids = tokens.iter().map(|&token| i64::from(token)).collect();
    let positions = (past..past + count).map(|at| at as i64).collect();
    let inputs = [
        ("input_ids", integers([1, count], ids)?),
        ("position_ids", integers([1, count], positions)?),
        ("wanted", integers([rows.len()], rows)?),
    ];
    let last = i32::try_from(past + count).unwrap_or(i32::MAX);
    let last_key = Tensor::from_array(([1usize], vec![last - 1])).map_err(step_error)?;
    let keys = Tensor::from_array((Vec::<i64>::new(), vec![last])).map_err(step_error)?;
    let mut run = || -> ort::Result<()> {
        let mut binding = session.create_binding()?;
        for (name, tensor) in &inputs {
            binding.bind_input(*name, tensor)?;
        }
        binding.bind_input("last_key", &last_key)?;
        binding.bind_input("keys", &keys)?;
        for (index, tensors) in sequence.cache.iter().enumerate() {
            for (kind, tensor) in ["key", "value"].iter().zip(tensors) {
                binding.bind_input(format!("past.{index}.{kind}"), tensor)?;
                // SAFETY: the sequence outlives the binding, which ends with this closure, and is borrowed by it.
                unsafe { ffi::bind_output(&mut binding, &format!("new.{index}.{kind}"), tensor)? };
            }
        }
        // SAFETY: as above.
        unsafe { ffi::bind_output(&mut binding, "logits", &logits)? };
        ffi::run(session, &binding)
    };
    run().map_err(step_error)?;
    sequence.length += count;
    let all = logits.extract_tensor_mut().1;
    for (&token, logits) in wanted.iter().zip(all.chunks_exact_mut(vocabulary)) {
        give(token, logits);
    }
    Ok(())
}

impl Fixed {
    /// One run of the prompt graph or of the step graph; new keys and values are copied into the sequence's buffers.
    #[allow(unsafe_code)]
    fn step(
        &mut self,
        sequence: &mut Sequence,
        layers: &[CacheShape],
        tokens: &[u32],
        wanted: &[usize],
        give: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<(), BackendError> {
        let (past, used) = (sequence.length, tokens.len());
        let graph = match used {
            1 => &mut self.step,
            _ => &mut self.prompt,
        };
        let (count, context) = (graph.tokens, sequence.capacity);
        let mut ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        ids.resize(count, 0);
        let scored = wanted.last().copied().unwrap_or(used - 1);
        let mut integer_inputs = vec![
            ("input_ids", integers([1, count], ids)?),
            ("wanted", integers([1usize], vec![scored as i64])?),
        ];
        if self.takes_positions {
            let last = context - 1;
            let positions = (past..past + count).map(|at| at.min(last) as i64).collect();
            integer_inputs.push(("position_ids", integers([1, count], positions)?));
        }
        let mut float_inputs = Vec::new();
        for (index, rotation) in self.rotations.iter().enumerate() {
            let (mut cosines, mut sines) = (Vec::new(), Vec::new());
            for position in past..past + count {
                rotation.angles(position, &mut cosines, &mut sines);
            }
            let shape = [1, 1, count, rotation.frequencies.len()];
            for (kind, floats) in [("cosines", cosines), ("sines", sines)] {
                let tensor = Tensor::from_array((shape, floats)).map_err(step_error)?;
                float_inputs.push((format!("{kind}.{index}"), tensor));
            }
        }
        for (index, mask) in self.interface.masks.iter().enumerate() {
            let shape = [1, mask.heads(), mask.group * count, context + count];
            let mut floats = vec![0.0; shape.iter().product()];
            mask.fill(past, used, count, context, &mut floats);
            let tensor = Tensor::from_array((shape, floats)).map_err(step_error)?;
            float_inputs.push((format!("mask.{index}"), tensor));
        }
        let Compiled {
            session,
            new,
            logits,
            ..
        } = graph;
        let mut run = || -> ort::Result<()> {
            let mut binding: IoBinding = session.create_binding()?;
            for (name, tensor) in &integer_inputs {
                binding.bind_input(*name, tensor)?;
            }
            for (name, tensor) in &float_inputs {
                binding.bind_input(name.as_str(), tensor)?;
            }
            for (index, (held, new)) in sequence.cache.iter().zip(&*new).enumerate() {
                for (part, kind) in ["key", "value"].iter().enumerate() {
                    binding.bind_input(format!("past.{index}.{kind}"), &held[part])?;
                    let name = format!("new.{index}.{kind}");
                    // SAFETY: the graph's buffers outlive the binding, which ends with this closure.
                    unsafe { ffi::bind_output(&mut binding, &name, &new[part])? };
                }
            }
            // SAFETY: as above.
            unsafe { ffi::bind_output(&mut binding, "logits", logits)? };
            ffi::run(session, &binding)
        };
        run().map_err(step_error)?;
        for ((shape, held), new) in layers.iter().zip(&mut sequence.cache).zip(&*new) {
            let sizes = [shape.key_dim, shape.value_dim];
            for ((held, new), size) in held.iter_mut().zip(new).zip(sizes) {
                let held = held.extract_tensor_mut().1.chunks_exact_mut(context * size);
                let new = new.extract_tensor().1.chunks_exact(count * size);
                for (held, new) in held.zip(new) {
                    held[past * size..(past + used) * size].copy_from_slice(&new[..used * size]);
                }
            }
        }
        sequence.length += used;
        if let [.., token] = wanted {
            give(*token, logits.extract_tensor_mut().1);
        }
        Ok(())
    }
}

fn cache_shapes(spec: &ModelSpec) -> Vec<CacheShape> {
    let layers = spec.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => Some(CacheShape {
            kv_heads: attention.kv_heads,
            key_dim: attention.key_dim,
            value_dim: attention.value_dim,
        }),
        Mixer::ShortConvolution(_) => None,
    });
    layers.collect()
}

/// Empty keys and values of `positions` positions.
fn buffers(shape: &CacheShape, positions: usize) -> Result<[Tensor<f32>; 2], BackendError> {
    Ok([
        zeros([1, shape.kv_heads, positions, shape.key_dim])?,
        zeros([1, shape.kv_heads, positions, shape.value_dim])?,
    ])
}

fn zeros<const N: usize>(shape: [usize; N]) -> Result<Tensor<f32>, BackendError> {
    let floats = vec![0.0; shape.iter().product()];
    Tensor::from_array((shape, floats)).map_err(step_error)
}

fn integers<const N: usize>(
    shape: [usize; N],
    integers: Vec<i64>,
) -> Result<Tensor<i64>, BackendError> {
    Tensor::from_array((shape, integers)).map_err(step_error)
}

fn step_error(error: ort::Error) -> BackendError {
    let reason: Unavailable = reason(&error.to_string(), Stage::Step);
    reason.into()
}
