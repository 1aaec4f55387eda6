//! Runs a program tile by tile: transfers copy between the device's memory and the arena, computation touches the arena
//! alone (and, where the host keeps the activations, what it keeps).
//!
//! Long, since there is one method for each kind of step, all on the same arena and memory.

use std::ops::Range;
use std::sync::Arc;

use ondine_kernels::{Isa, ThreadPool, ops};
use ondine_runtime::backend::rope::RopeTables;
use ondine_runtime::model::{
    Activation, Attention, FeedForward, Layer, Linear, Mixer, ModelSpec, Norm, NormKind,
};

use super::cache::{Form, Sequence};
use super::chip::{Chip, Overflow};
use super::product::{Input, multiply};
use super::store::Store;
use crate::profile::Activations;
use crate::program::{Layout, Matrix, Program, Region, Vector, Work};

/// What does not change while a model runs.
pub(super) struct Engine {
    pub(super) spec: Arc<ModelSpec>,
    pub(super) store: Store,
    pub(super) ropes: RopeTables,
    pub(super) forms: Vec<Form>,
    pub(super) activations: Activations,
    pub(super) pool: ThreadPool,
    pub(super) isa: Isa,
}

/// One step: what goes in, and what it changes.
pub(super) struct Execution<'a> {
    pub(super) engine: &'a Engine,
    pub(super) chip: &'a mut Chip,
    pub(super) sequence: &'a mut Sequence,
    pub(super) tokens: &'a [u32],
    /// Rows of the chunk whose logits are wanted.
    pub(super) wanted: &'a [usize],
    /// Logits, [wanted, vocabulary].
    pub(super) logits: Vec<f32>,
    /// The input of the product under way, as the multipliers take it.
    input: Option<(Matrix, Input)>,
    /// Rows of the head's product under way.
    group: Range<usize>,
}

impl<'a> Execution<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        chip: &'a mut Chip,
        sequence: &'a mut Sequence,
        tokens: &'a [u32],
        wanted: &'a [usize],
    ) -> Self {
        Execution {
            engine,
            chip,
            sequence,
            tokens,
            wanted,
            logits: Vec::new(),
            input: None,
            group: 0..0,
        }
    }

    /// Runs every tile.
    pub(super) fn run(&mut self, program: &Program) -> Result<(), Overflow> {
        let spec = &self.engine.spec;
        self.chip.begin(&program.layout);
        self.logits = vec![0.0; self.wanted.len() * spec.vocabulary];
        if program.layout.vectors_stay {
            for (vector, _) in program.layout.vectors() {
                self.load_vector(&program.layout, vector)?;
            }
        }
        for tile in &program.tiles {
            self.tile(&program.layout, &tile.work)?;
        }
        self.sequence.length += self.tokens.len();
        Ok(())
    }

    fn tile(&mut self, layout: &Layout, work: &Work) -> Result<(), Overflow> {
        match work {
            Work::LoadVector(vector) => self.load_vector(layout, *vector),
            Work::LoadEmbedding { row, buffer } => self.load_embedding(layout, *row, *buffer),
            Work::Embed { row, buffer } => self.embed(layout, *row, *buffer),
            Work::Norm { vector, from, to } => self.norm(layout, *vector, *from, *to),
            Work::NormWanted => self.norm_wanted(layout),
            Work::LoadRows {
                matrix,
                rows,
                buffer,
                second,
            } => self.load_rows(layout, *matrix, rows, *buffer, *second),
            Work::Multiply {
                matrix: Matrix::Head,
                rows,
                buffer,
                output,
                ..
            } => self.multiply_head(layout, rows, *buffer, *output),
            Work::Multiply {
                matrix,
                rows,
                buffer,
                input,
                output,
                accumulate,
            } => self.multiply(layout, *matrix, rows, *buffer, *input, *output, *accumulate),
            Work::MultiplyGated {
                layer,
                rows,
                buffer,
            } => self.multiply_gated(layout, *layer, rows, *buffer),
            Work::Position(layer) => self.position(layout, *layer),
            Work::StoreKeys(layer) => self.store_keys(layout, *layer),
            Work::BeginAttention { layer, .. } => self.begin_attention(layout, *layer),
            Work::LoadKeys {
                layer,
                head,
                positions,
                buffer,
            } => self.load_keys(layout, *layer, *head, positions, *buffer),
            Work::Attend {
                layer,
                head,
                positions,
                buffer,
            } => self.attend(layout, *layer, *head, positions, *buffer),
            Work::EndAttention { layer, head } => self.end_attention(layout, *layer, *head),
            Work::HostAttention(layer) => self.host_attention(layout, *layer),
            Work::Gate(layer) => self.gate(layout, *layer),
            Work::AddBranch { layer, vector } => self.add_branch(layout, *layer, *vector),
            Work::StoreLogits { rows, buffer } => self.store_logits(layout, rows, *buffer),
            // Models with these are refused when they are loaded.
            Work::Convolve(_) | Work::Route(_) => Ok(()),
        }
    }

    fn rows(&self) -> usize {
        self.tokens.len()
    }

    fn layer(&self, index: usize) -> &'a Layer {
        &self.engine.spec.layers[index]
    }

    fn attention(&self, index: usize) -> Option<&'a Attention> {
        match &self.layer(index).mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::ShortConvolution(_) => None,
        }
    }

    fn load_vector(&mut self, layout: &Layout, vector: Vector) -> Result<(), Overflow> {
        let values = self.engine.store.vector(vector);
        let place = layout.vector(vector);
        let brain = self.chip.brain;
        let bytes = self
            .chip
            .at(layout, Region::Vectors, place, 0, 2 * values.len())?;
        super::store::write_halves(values, brain, bytes);
        Ok(())
    }

    fn vector(&mut self, layout: &Layout, vector: Vector) -> Result<Vec<f32>, Overflow> {
        let place = layout.vector(vector);
        let brain = self.chip.brain;
        let bytes = self
            .chip
            .at(layout, Region::Vectors, place, 0, place.bytes)?;
        let mut values = vec![0.0; bytes.len() / 2];
        super::store::read_halves(bytes, brain, &mut values);
        Ok(values)
    }

    fn load_embedding(
        &mut self,
        layout: &Layout,
        row: usize,
        buffer: Region,
    ) -> Result<(), Overflow> {
        let token = self.tokens[row] as usize;
        self.copy_rows(layout, Matrix::Embedding, token..token + 1, buffer, 0)
    }

    fn embed(&mut self, layout: &Layout, row: usize, buffer: Region) -> Result<(), Overflow> {
        let spec = &self.engine.spec;
        let Some(stored) = self.engine.store.matrix(Matrix::Embedding) else {
            return Ok(());
        };
        let bytes = self.chip.bytes(layout, buffer, 0, stored.row_bytes)?;
        let mut hidden = vec![0.0; spec.embedding];
        stored.floats(bytes, &mut hidden);
        if spec.embedding_scale != 1.0 {
            ops::scale(self.engine.isa, &mut hidden, spec.embedding_scale);
        }
        if let Some(positions) = &self.engine.store.positions {
            let position = self.sequence.length + row;
            let width = spec.embedding;
            let learnt = &positions[position * width..(position + 1) * width];
            ops::add_assign(self.engine.isa, &mut hidden, learnt);
        }
        self.chip
            .write(layout, Region::Residual, row * spec.embedding, &hidden)
    }

    fn norm(
        &mut self,
        layout: &Layout,
        vector: Vector,
        from: Region,
        to: Region,
    ) -> Result<(), Overflow> {
        let spec = &self.engine.spec;
        let norm = match vector {
            Vector::Embedding => spec.embedding_norm.as_ref(),
            Vector::Mixer(layer) => Some(&self.layer(layer).mixer_norm),
            Vector::FeedForward(layer) => Some(&self.layer(layer).feed_forward_norm),
            _ => None,
        };
        let Some(norm) = norm else { return Ok(()) };
        let weights = self.vector(layout, vector)?;
        let width = spec.embedding;
        let all = self.chip.read(layout, from, 0, self.rows() * width)?;
        let normed = normalise(self.engine.isa, norm, &weights, &all);
        self.chip.write(layout, to, 0, &normed)
    }

    fn norm_wanted(&mut self, layout: &Layout) -> Result<(), Overflow> {
        let width = self.engine.spec.embedding;
        let weights = self.vector(layout, Vector::Output)?;
        for (index, &row) in self.wanted.iter().enumerate() {
            let hidden = self
                .chip
                .read(layout, Region::Residual, row * width, width)?;
            let normed = normalise(
                self.engine.isa,
                &self.engine.spec.output_norm,
                &weights,
                &hidden,
            );
            self.chip
                .write(layout, Region::Normed, index * width, &normed)?;
        }
        self.group = 0..0;
        Ok(())
    }

    fn load_rows(
        &mut self,
        layout: &Layout,
        matrix: Matrix,
        rows: &Range<usize>,
        buffer: Region,
        second: bool,
    ) -> Result<(), Overflow> {
        let offset = if second { half(layout, buffer) } else { 0 };
        self.copy_rows(layout, matrix, rows.clone(), buffer, offset)
    }

    fn copy_rows(
        &mut self,
        layout: &Layout,
        matrix: Matrix,
        rows: Range<usize>,
        buffer: Region,
        offset: usize,
    ) -> Result<(), Overflow> {
        let Some(stored) = self.engine.store.matrix(matrix) else {
            return Ok(());
        };
        let from = &stored.bytes[rows.start * stored.row_bytes..rows.end * stored.row_bytes];
        let to = self.chip.bytes(layout, buffer, offset, from.len())?;
        to.copy_from_slice(from);
        Ok(())
    }

    /// The input of `matrix`'s product as the multipliers take it; converted when its first tile begins.
    fn convert(
        &mut self,
        layout: &Layout,
        matrix: Matrix,
        region: Region,
        first_row: usize,
        rows: usize,
        columns: usize,
    ) -> Result<(), Overflow> {
        let values = self
            .chip
            .read(layout, region, first_row * columns, rows * columns)?;
        let input = Input::new(values, columns, self.engine.activations);
        self.input = Some((matrix, input));
        Ok(())
    }

    /// `[matrix rows, input rows]` of products of the tile at `offset` in `buffer`.
    fn products(
        &mut self,
        layout: &Layout,
        matrix: Matrix,
        rows: usize,
        buffer: Region,
        offset: usize,
    ) -> Result<Vec<f32>, Overflow> {
        let engine = self.engine;
        let (Some(stored), Some((_, input))) = (engine.store.matrix(matrix), &self.input) else {
            return Ok(Vec::new());
        };
        let bytes = self
            .chip
            .bytes(layout, buffer, offset, rows * stored.row_bytes)?;
        Ok(multiply(&engine.pool, stored, bytes, input))
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one tile")]
    fn multiply(
        &mut self,
        layout: &Layout,
        matrix: Matrix,
        rows: &Range<usize>,
        buffer: Region,
        input: Region,
        output: Region,
        accumulate: bool,
    ) -> Result<(), Overflow> {
        let Some((linear, scale)) = self.linear(matrix) else {
            return Ok(());
        };
        let tokens = self.rows();
        if rows.start == 0 {
            self.convert(layout, matrix, input, 0, tokens, linear.columns)?;
        }
        let products = self.products(layout, matrix, rows.len(), buffer, 0)?;
        for token in 0..tokens {
            let at = token * linear.rows + rows.start;
            let mut out: Vec<f32> = (0..rows.len())
                .map(|row| products[row * tokens + token])
                .collect();
            if accumulate {
                let before = self.chip.read(layout, output, at, rows.len())?;
                for (out, before) in out.iter_mut().zip(before) {
                    *out = before + scale * *out;
                }
            }
            self.chip.write(layout, output, at, &out)?;
        }
        Ok(())
    }

    fn multiply_gated(
        &mut self,
        layout: &Layout,
        layer: usize,
        rows: &Range<usize>,
        buffer: Region,
    ) -> Result<(), Overflow> {
        let FeedForward::Gated(gated) = &self.layer(layer).feed_forward else {
            return Ok(());
        };
        let (gate, up) = (Matrix::Gate(layer, 0), Matrix::Up(layer, 0));
        let tokens = self.rows();
        if rows.start == 0 {
            self.convert(layout, gate, Region::Normed, 0, tokens, gated.gate.columns)?;
        }
        let gates = self.products(layout, gate, rows.len(), buffer, 0)?;
        let ups = self.products(layout, up, rows.len(), buffer, half(layout, buffer))?;
        let mut inner = vec![0.0; gates.len()];
        let activation = kernel_activation(gated.activation);
        ops::gated_product(self.engine.isa, activation, &gates, &ups, &mut inner);
        for token in 0..tokens {
            let out: Vec<f32> = (0..rows.len())
                .map(|row| inner[row * tokens + token])
                .collect();
            let at = token * gated.gate.rows + rows.start;
            self.chip.write(layout, Region::Inner, at, &out)?;
        }
        Ok(())
    }

    /// A tile of the head's product; the tiles of a group of rows begin at row 0 of the vocabulary.
    fn multiply_head(
        &mut self,
        layout: &Layout,
        rows: &Range<usize>,
        buffer: Region,
        output: Region,
    ) -> Result<(), Overflow> {
        let width = self.engine.spec.embedding;
        if rows.start == 0 {
            let first = self.group.end;
            self.group = first..self.wanted.len().min(first + crate::program::HEAD_ROWS);
            let count = self.group.len();
            self.convert(layout, Matrix::Head, Region::Normed, first, count, width)?;
        }
        let products = self.products(layout, Matrix::Head, rows.len(), buffer, 0)?;
        self.chip.write_wide(layout, output, 0, &products)
    }

    fn store_logits(
        &mut self,
        layout: &Layout,
        rows: &Range<usize>,
        buffer: Region,
    ) -> Result<(), Overflow> {
        let count = self.group.len();
        let products = self.chip.read_wide(layout, buffer, 0, rows.len() * count)?;
        let vocabulary = self.engine.spec.vocabulary;
        for (offset, wanted) in self.group.clone().enumerate() {
            for (row, to) in rows.clone().enumerate() {
                self.logits[wanted * vocabulary + to] = products[row * count + offset];
            }
        }
        Ok(())
    }

    fn position(&mut self, layout: &Layout, index: usize) -> Result<(), Overflow> {
        let Some(spec) = self.attention(index) else {
            return Ok(());
        };
        let isa = self.engine.isa;
        let rows = self.rows();
        let (query_width, key_width) = (spec.heads * spec.key_dim, spec.kv_heads * spec.key_dim);
        let value_width = spec.kv_heads * spec.value_dim;
        let mut query = self
            .chip
            .read(layout, Region::Query, 0, rows * query_width)?;
        let mut key = self.chip.read(layout, Region::Key, 0, rows * key_width)?;
        if let Some(limit) = spec.clamp {
            let mut value = self
                .chip
                .read(layout, Region::Value, 0, rows * value_width)?;
            for buffer in [&mut query, &mut key, &mut value] {
                ops::clamp(isa, buffer, -limit, limit);
            }
            self.chip.write(layout, Region::Value, 0, &value)?;
        }
        if let Some(norms) = &spec.query_key_norm {
            let weights = self.vector(layout, Vector::QueryKey(index))?;
            let of_query = norms.query.length * if norms.query.bias.is_some() { 2 } else { 1 };
            let (for_query, for_key) = weights.split_at(of_query);
            query = normalise(isa, &norms.query, for_query, &query);
            key = normalise(isa, &norms.key, for_key, &key);
        }
        if let Some(table) = self.engine.ropes.of(index) {
            for row in 0..rows {
                let position = self.sequence.length + row;
                let heads = &mut query[row * query_width..(row + 1) * query_width];
                table.apply(isa, position, heads, spec.key_dim);
                let heads = &mut key[row * key_width..(row + 1) * key_width];
                table.apply(isa, position, heads, spec.key_dim);
            }
        }
        self.chip.write(layout, Region::Query, 0, &query)?;
        self.chip.write(layout, Region::Key, 0, &key)
    }

    fn store_keys(&mut self, layout: &Layout, index: usize) -> Result<(), Overflow> {
        let form = &self.engine.forms[index];
        let rows = self.rows();
        let (key_width, value_width) = (form.heads * form.key, form.heads * form.value);
        let keys = self.chip.read(layout, Region::Key, 0, rows * key_width)?;
        let values = self
            .chip
            .read(layout, Region::Value, 0, rows * value_width)?;
        let mut encoded = vec![0; form.position];
        for row in 0..rows {
            for head in 0..form.heads {
                let key = &keys[row * key_width + head * form.key..][..form.key];
                let value = &values[row * value_width + head * form.value..][..form.value];
                form.encode(key, value, &mut encoded);
                self.sequence.heads[index][head].extend_from_slice(&encoded);
                if layout.cache_stays {
                    let position = self.sequence.length + row;
                    let at = self.cached_at(layout, index, head, position);
                    let to = self.chip.bytes(layout, Region::Cache, at, form.position)?;
                    to.copy_from_slice(&encoded);
                }
            }
        }
        Ok(())
    }

    /// Where a position lies in the part of the chip that keeps all keys and values.
    fn cached_at(&self, layout: &Layout, layer: usize, head: usize, position: usize) -> usize {
        let form = &self.engine.forms[layer];
        let before: usize = self.engine.forms[..layer]
            .iter()
            .map(|form| form.heads * form.position)
            .sum();
        (before + head * form.position) * layout.context + position * form.position
    }

    /// Fills the part of the chip that keeps all keys and values, for a sequence that was elsewhere.
    pub(super) fn fill_cache(&mut self, layout: &Layout) -> Result<(), Overflow> {
        self.chip.begin(layout);
        for layer in 0..self.engine.forms.len() {
            for head in 0..self.engine.forms[layer].heads {
                let at = self.cached_at(layout, layer, head, 0);
                let from = &self.sequence.heads[layer][head];
                let to = self.chip.bytes(layout, Region::Cache, at, from.len())?;
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn begin_attention(&mut self, layout: &Layout, index: usize) -> Result<(), Overflow> {
        let Some(spec) = self.attention(index) else {
            return Ok(());
        };
        let group = spec.heads / spec.kv_heads;
        let mut state = vec![0.0; self.rows() * group * (spec.value_dim + 2)];
        for state in state.chunks_exact_mut(spec.value_dim + 2) {
            state[0] = f32::NEG_INFINITY;
        }
        self.chip.write_wide(layout, Region::Accumulator, 0, &state)
    }

    fn load_keys(
        &mut self,
        layout: &Layout,
        layer: usize,
        head: usize,
        positions: &Range<usize>,
        buffer: Region,
    ) -> Result<(), Overflow> {
        let size = self.engine.forms[layer].position;
        let from = &self.sequence.heads[layer][head];
        let from = &from[positions.start * size..positions.end * size];
        let to = self.chip.bytes(layout, buffer, 0, from.len())?;
        to.copy_from_slice(from);
        Ok(())
    }

    fn attend(
        &mut self,
        layout: &Layout,
        index: usize,
        head: usize,
        positions: &Range<usize>,
        buffer: Region,
    ) -> Result<(), Overflow> {
        let Some(spec) = self.attention(index) else {
            return Ok(());
        };
        let form = &self.engine.forms[index];
        let offset = match buffer {
            Region::Cache => self.cached_at(layout, index, head, positions.start),
            _ => 0,
        };
        let count = positions.len();
        let bytes = self
            .chip
            .bytes(layout, buffer, offset, count * form.position)?;
        let mut keys = vec![0.0; count * form.key];
        let mut values = vec![0.0; count * form.value];
        decode(form, bytes, &mut keys, &mut values);
        let group = spec.heads / spec.kv_heads;
        let state_width = spec.value_dim + 2;
        let query_width = spec.heads * spec.key_dim;
        let slopes = slopes(spec);
        for row in 0..self.rows() {
            let position = self.sequence.length + row;
            let seen = seen(spec, position, positions);
            if seen.is_empty() {
                continue;
            }
            for member in 0..group {
                let query_head = head * group + member;
                let at = row * query_width + query_head * spec.key_dim;
                let query = self.chip.read(layout, Region::Query, at, spec.key_dim)?;
                let at = (row * group + member) * state_width;
                let mut state =
                    self.chip
                        .read_wide(layout, Region::Accumulator, at, state_width)?;
                let block = Block {
                    first: positions.start,
                    keys: &keys,
                    values: &values,
                };
                let slope = slopes.get(query_head).copied().unwrap_or(0.0);
                take_in(
                    spec,
                    &query,
                    slope,
                    position,
                    seen.clone(),
                    &block,
                    &mut state,
                );
                self.chip
                    .write_wide(layout, Region::Accumulator, at, &state)?;
            }
        }
        Ok(())
    }

    fn end_attention(
        &mut self,
        layout: &Layout,
        index: usize,
        head: usize,
    ) -> Result<(), Overflow> {
        let Some(spec) = self.attention(index) else {
            return Ok(());
        };
        let group = spec.heads / spec.kv_heads;
        let width = spec.heads * spec.value_dim;
        for row in 0..self.rows() {
            for member in 0..group {
                let at = (row * group + member) * (spec.value_dim + 2);
                let state =
                    self.chip
                        .read_wide(layout, Region::Accumulator, at, spec.value_dim + 2)?;
                let out = finished(&state);
                let at = row * width + (head * group + member) * spec.value_dim;
                self.chip.write(layout, Region::Mixed, at, &out)?;
            }
        }
        Ok(())
    }

    /// Attention where the device has none: the host reads queries, keys and values from memory.
    fn host_attention(&mut self, layout: &Layout, index: usize) -> Result<(), Overflow> {
        let Some(spec) = self.attention(index) else {
            return Ok(());
        };
        let form = &self.engine.forms[index];
        let group = spec.heads / spec.kv_heads;
        let width = spec.heads * spec.value_dim;
        let rows = self.rows();
        let queries = self
            .chip
            .read(layout, Region::Query, 0, rows * spec.heads * spec.key_dim)?;
        let slopes = slopes(spec);
        let all = 0..self.sequence.length + rows;
        let mut mixed = vec![0.0; rows * width];
        for head in 0..form.heads {
            let mut keys = vec![0.0; all.len() * form.key];
            let mut values = vec![0.0; all.len() * form.value];
            decode(
                form,
                &self.sequence.heads[index][head],
                &mut keys,
                &mut values,
            );
            let block = Block {
                first: 0,
                keys: &keys,
                values: &values,
            };
            for row in 0..rows {
                let position = self.sequence.length + row;
                for query_head in head * group..(head + 1) * group {
                    let at = (row * spec.heads + query_head) * spec.key_dim;
                    let query = &queries[at..at + spec.key_dim];
                    let mut state = vec![0.0; spec.value_dim + 2];
                    state[0] = f32::NEG_INFINITY;
                    let seen = seen(spec, position, &all);
                    let slope = slopes.get(query_head).copied().unwrap_or(0.0);
                    take_in(spec, query, slope, position, seen, &block, &mut state);
                    let at = row * width + query_head * spec.value_dim;
                    mixed[at..at + spec.value_dim].copy_from_slice(&finished(&state));
                }
            }
        }
        self.chip.write(layout, Region::Mixed, 0, &mixed)
    }

    fn gate(&mut self, layout: &Layout, index: usize) -> Result<(), Overflow> {
        let isa = self.engine.isa;
        let rows = self.rows();
        match &self.layer(index).feed_forward {
            FeedForward::Gated(gated) => {
                let count = rows * gated.gate.rows;
                let gate = self.chip.read(layout, Region::Inner, 0, count)?;
                let up = self.chip.read(layout, Region::Up, 0, count)?;
                let mut inner = vec![0.0; count];
                let activation = kernel_activation(gated.activation);
                ops::gated_product(isa, activation, &gate, &up, &mut inner);
                self.chip.write(layout, Region::Inner, 0, &inner)
            }
            FeedForward::Plain { up, activation, .. } => {
                let mut inner = self.chip.read(layout, Region::Inner, 0, rows * up.rows)?;
                ops::activate(isa, kernel_activation(*activation), &mut inner);
                self.chip.write(layout, Region::Inner, 0, &inner)
            }
            FeedForward::Experts(_) => Ok(()),
        }
    }

    fn add_branch(
        &mut self,
        layout: &Layout,
        index: usize,
        vector: Option<Vector>,
    ) -> Result<(), Overflow> {
        let count = self.rows() * self.engine.spec.embedding;
        let Some(vector) = vector else {
            // The normed embedding takes the place of the embedding.
            let normed = self.chip.read(layout, Region::Normed, 0, count)?;
            return self.chip.write(layout, Region::Residual, 0, &normed);
        };
        let layer = self.layer(index);
        let norm = match vector {
            Vector::MixerPost(_) => layer.mixer_post_norm.as_ref(),
            _ => layer.feed_forward_post_norm.as_ref(),
        };
        let Some(norm) = norm else { return Ok(()) };
        let weights = self.vector(layout, vector)?;
        let branch = self.chip.read(layout, Region::Branch, 0, count)?;
        let normed = normalise(self.engine.isa, norm, &weights, &branch);
        let mut residual = self.chip.read(layout, Region::Residual, 0, count)?;
        ops::scale_add(
            self.engine.isa,
            &mut residual,
            &normed,
            layer.residual_scale,
        );
        self.chip.write(layout, Region::Residual, 0, &residual)
    }

    /// A matrix's shape, and the factor on what it adds to the residual stream.
    fn linear(&self, matrix: Matrix) -> Option<(&'a Linear, f32)> {
        let spec = &self.engine.spec;
        let of = |index: usize| (&spec.layers[index].mixer, &spec.layers[index].feed_forward);
        let (linear, layer) = match matrix {
            Matrix::Query(i) | Matrix::Key(i) | Matrix::Value(i) | Matrix::MixerOutput(i) => {
                let attention = self.attention(i)?;
                let linear = match matrix {
                    Matrix::Query(_) => &attention.query,
                    Matrix::Key(_) => &attention.key,
                    Matrix::Value(_) => &attention.value,
                    _ => &attention.output,
                };
                (linear, i)
            }
            Matrix::Gate(i, _) | Matrix::Up(i, _) | Matrix::Down(i, _) => {
                let linear = match (of(i).1, matrix) {
                    (FeedForward::Gated(gated), Matrix::Gate(..)) => &gated.gate,
                    (FeedForward::Gated(gated), Matrix::Up(..)) => &gated.up,
                    (FeedForward::Gated(gated), _) => &gated.down,
                    (FeedForward::Plain { up, .. }, Matrix::Up(..)) => up,
                    (FeedForward::Plain { down, .. }, _) => down,
                    (FeedForward::Experts(_), _) => return None,
                };
                (linear, i)
            }
            _ => return None,
        };
        Some((linear, spec.layers[layer].residual_scale))
    }
}

/// Where the second matrix of a fused product begins in a stream buffer.
fn half(layout: &Layout, buffer: Region) -> usize {
    layout.place(buffer).bytes / 128 * 64
}

struct Block<'a> {
    /// Position of the first key.
    first: usize,
    keys: &'a [f32],
    values: &'a [f32],
}

/// Which of `positions` a query at `position` sees.
fn seen(spec: &Attention, position: usize, positions: &Range<usize>) -> Range<usize> {
    let first = match spec.window {
        Some(window) => (position + 1).saturating_sub(window),
        None => 0,
    };
    let (start, end) = (
        first.max(positions.start),
        (position + 1).min(positions.end),
    );
    start..end.max(start)
}

/// Takes positions into `state`: maximum, sum, weighted values (online softmax, Milakov and Gimelshein 2018).
fn take_in(
    spec: &Attention,
    query: &[f32],
    slope: f32,
    position: usize,
    seen: Range<usize>,
    block: &Block<'_>,
    state: &mut [f32],
) {
    for other in seen {
        let row = other - block.first;
        let key = &block.keys[row * spec.key_dim..(row + 1) * spec.key_dim];
        let mut score = spec.scale * super::product::dot(query, key);
        if let Some(cap) = spec.softcap {
            score = cap * (score / cap).tanh();
        }
        score -= slope * (position - other) as f32;
        let most = state[0].max(score);
        let (fade, weight) = ((state[0] - most).exp(), (score - most).exp());
        state[0] = most;
        state[1] = state[1] * fade + weight;
        let value = &block.values[row * spec.value_dim..(row + 1) * spec.value_dim];
        for (sum, value) in state[2..].iter_mut().zip(value) {
            *sum = *sum * fade + weight * value;
        }
    }
}

fn finished(state: &[f32]) -> Vec<f32> {
    state[2..].iter().map(|sum| sum / state[1]).collect()
}

fn slopes(spec: &Attention) -> Vec<f32> {
    spec.alibi_max_bias
        .map(|most| ops::alibi_slopes(spec.heads, most))
        .unwrap_or_default()
}

fn decode(form: &Form, bytes: &[u8], keys: &mut [f32], values: &mut [f32]) {
    for ((bytes, key), value) in bytes
        .chunks_exact(form.position)
        .zip(keys.chunks_exact_mut(form.key))
        .zip(values.chunks_exact_mut(form.value))
    {
        form.decode(bytes, key, value);
    }
}

/// Norms rows of `norm.length`; `weights` are its weights, then its bias.
fn normalise(isa: Isa, norm: &Norm, weights: &[f32], all: &[f32]) -> Vec<f32> {
    let (weight, bias) = weights.split_at(norm.length);
    let bias = (!bias.is_empty()).then_some(bias);
    let mut out = vec![0.0; all.len()];
    for (x, out) in all
        .chunks_exact(norm.length)
        .zip(out.chunks_exact_mut(norm.length))
    {
        match norm.kind {
            NormKind::RootMeanSquare => {
                ops::rms_norm(isa, x, weight, norm.epsilon, out);
                if let Some(bias) = bias {
                    ops::add_assign(isa, out, bias);
                }
            }
            NormKind::MeanAndVariance => {
                ops::layer_norm(isa, x, weight, bias, norm.epsilon, out);
            }
        }
    }
    out
}

fn kernel_activation(activation: Activation) -> ops::Activation {
    match activation {
        Activation::Silu => ops::Activation::Silu,
        Activation::GeluTanh => ops::Activation::GeluTanh,
    }
}
