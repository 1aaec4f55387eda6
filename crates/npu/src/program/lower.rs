//! From a model's description to tiles.

use std::ops::Range;

use ondine_runtime::model::{
    Attention, Experts, FeedForward, Layer, Linear, Mixer, ModelSpec, ShortConvolution,
};

use super::layout::{HEAD_ROWS, position_bytes};
use super::{Lane, Layout, LowerError, Matrix, Program, Region, Regions, Tile, Vector, Work};
use crate::profile::{Operation, Precision, Profile};

/// What is lowered.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// The device.
    pub profile: &'a Profile,
    /// Its precision.
    pub precision: &'a Precision,
    /// Tokens computed together.
    pub rows: usize,
    /// Position of the first of them.
    pub position: usize,
    /// Most tokens of the sequence.
    pub context: usize,
    /// For how many of the tokens logits are wanted.
    pub wanted: usize,
    /// Stream buffers: 2 is double buffering, 1 is none.
    pub buffers: usize,
}

/// Lowers one step.
///
/// # Errors
/// [`LowerError`] when the chip is too small.
pub fn lower(step: &Step<'_>) -> Result<Program, LowerError> {
    let layout = Layout::new(
        step.spec,
        step.profile,
        step.precision,
        step.rows,
        step.context,
        step.buffers.clamp(1, 2),
    )?;
    let mut lowering = Lowering {
        step,
        layout,
        tiles: Vec::new(),
        streamed: 0,
    };
    lowering.model();
    Ok(Program {
        layout: lowering.layout,
        tiles: lowering.tiles,
        rows: step.rows,
    })
}

/// Vector multiply-accumulates that take the processor as long as one elementwise result: two vectors of eight halves
/// a cycle against the handful of instructions of an activation or a rotation.
const HOST_MACS_PER_ELEMENT: u64 = 16;

struct Lowering<'a> {
    step: &'a Step<'a>,
    layout: Layout,
    tiles: Vec<Tile>,
    /// Transfers through the stream buffers so far.
    streamed: usize,
}

impl Lowering<'_> {
    fn model(&mut self) {
        let spec = self.step.spec;
        self.embed();
        for (index, layer) in spec.layers.iter().enumerate() {
            self.norm(
                Vector::Mixer(index),
                spec.embedding,
                Region::Residual,
                Region::Normed,
            );
            match &layer.mixer {
                Mixer::Attention(attention) => self.attention(index, layer, attention),
                Mixer::ShortConvolution(convolution) => self.convolution(index, layer, convolution),
            }
            self.norm(
                Vector::FeedForward(index),
                spec.embedding,
                Region::Residual,
                Region::Normed,
            );
            self.feed_forward(index, layer);
        }
        if self.step.wanted > 0 {
            self.head();
        }
    }

    fn embed(&mut self) {
        let spec = self.step.spec;
        let bytes = self.row_bytes(&spec.token_embedding, self.step.precision.embedding_bits);
        for row in 0..self.step.rows {
            let buffer = self.next_buffer();
            self.dma(Work::LoadEmbedding { row, buffer }, bytes, &[], &[buffer]);
            self.elementwise(
                Operation::Norm,
                Work::Embed { row, buffer },
                spec.embedding as u64,
                row == 0,
                &[buffer],
                &[Region::Residual],
            );
        }
        if spec.embedding_norm.is_some() {
            self.norm(
                Vector::Embedding,
                spec.embedding,
                Region::Residual,
                Region::Normed,
            );
            // The normed embedding is the residual stream from here on.
            self.elementwise(
                Operation::Norm,
                Work::AddBranch {
                    layer: usize::MAX,
                    vector: None,
                },
                self.rows_of(spec.embedding),
                false,
                &[Region::Normed],
                &[Region::Residual],
            );
        }
    }

    fn attention(&mut self, index: usize, layer: &Layer, attention: &Attention) {
        for (matrix, linear, output) in [
            (Matrix::Query(index), &attention.query, Region::Query),
            (Matrix::Key(index), &attention.key, Region::Key),
            (Matrix::Value(index), &attention.value, Region::Value),
        ] {
            self.multiply(matrix, linear, Region::Normed, output, false);
        }
        let heads = attention.heads * attention.key_dim;
        let kv = attention.kv_heads * (attention.key_dim + attention.value_dim);
        if attention.query_key_norm.is_some() {
            self.vector(Vector::QueryKey(index));
        }
        self.elementwise(
            Operation::Rope,
            Work::Position(index),
            self.rows_of(heads + kv),
            true,
            &[Region::Query, Region::Key, Region::Vectors],
            &[Region::Query, Region::Key],
        );
        let stored =
            self.step.rows * attention.kv_heads * position_bytes(self.step.profile, attention);
        self.store(
            Work::StoreKeys(index),
            if self.layout.cache_stays {
                0
            } else {
                stored as u64
            },
            &[Region::Key, Region::Value],
            &[Region::Cache],
        );
        if self.step.profile.has(Operation::Attention) {
            for head in 0..attention.kv_heads {
                self.attend(index, attention, head);
            }
        } else {
            self.host_attention(index, attention);
        }
        self.branch(
            Matrix::MixerOutput(index),
            &attention.output,
            Region::Mixed,
            index,
            layer
                .mixer_post_norm
                .as_ref()
                .map(|_| Vector::MixerPost(index)),
        );
    }

    /// One key/value head's queries against all visible positions, block by block: the sequence is split so that a
    /// block fits a stream buffer.
    fn attend(&mut self, layer: usize, attention: &Attention, head: usize) {
        let group = (attention.heads / attention.kv_heads) as u64;
        let position_bytes = position_bytes(self.step.profile, attention);
        let block = (self.layout.place(Region::StreamA).bytes / position_bytes).max(1);
        self.elementwise(
            Operation::Attention,
            Work::BeginAttention { layer, head },
            0,
            head == 0,
            &[],
            &[Region::Accumulator],
        );
        let visible = self.visible_positions(attention);
        let mut first = visible.start;
        while first < visible.end {
            let positions = first..visible.end.min(first + block);
            first = positions.end;
            let buffer = if self.layout.cache_stays {
                Region::Cache
            } else {
                let buffer = self.next_buffer();
                self.dma(
                    Work::LoadKeys {
                        layer,
                        head,
                        positions: positions.clone(),
                        buffer,
                    },
                    (positions.len() * position_bytes) as u64,
                    // Only the chunk's own positions have just been written.
                    match positions.end > self.step.position {
                        true => &[Region::Cache],
                        false => &[],
                    },
                    &[buffer],
                );
                buffer
            };
            let pairs = group * self.pairs(attention, &positions);
            self.push(Tile {
                lane: Lane::Compute,
                bytes: 0,
                macs: pairs * (attention.key_dim + attention.value_dim) as u64,
                elements: pairs,
                launches: false,
                reads: Regions::of(&[buffer, Region::Query]),
                writes: Regions::of(&[Region::Accumulator]),
                work: Work::Attend {
                    layer,
                    head,
                    positions,
                    buffer,
                },
            });
        }
        self.elementwise(
            Operation::Attention,
            Work::EndAttention { layer, head },
            self.rows_of(group as usize * attention.value_dim),
            false,
            &[Region::Accumulator],
            &[Region::Mixed],
        );
    }

    fn host_attention(&mut self, index: usize, attention: &Attention) {
        let visible = self.visible_positions(attention);
        let pairs = attention.heads as u64 * self.pairs(attention, &visible);
        let macs = pairs * (attention.key_dim + attention.value_dim) as u64;
        let read =
            visible.len() * attention.kv_heads * position_bytes(self.step.profile, attention);
        self.push(Tile {
            work: Work::HostAttention(index),
            lane: Lane::Host,
            bytes: read as u64,
            macs: 0,
            elements: pairs + macs / HOST_MACS_PER_ELEMENT,
            launches: false,
            reads: Regions::of(&[Region::Query, Region::Cache]),
            writes: Regions::of(&[Region::Mixed]),
        });
    }

    /// Positions that any row of the chunk sees; with static shapes the whole context passes.
    fn visible_positions(&self, attention: &Attention) -> Range<usize> {
        let step = self.step;
        let end = step.position + step.rows;
        let first = match attention.window {
            Some(window) => (step.position + 1).saturating_sub(window),
            None => 0,
        };
        first..end
    }

    /// Pairs of a row and a position it sees, within `positions`.
    fn pairs(&self, attention: &Attention, positions: &Range<usize>) -> u64 {
        let rows = self.step.position..self.step.position + self.step.rows;
        rows.map(|row| {
            let first = match attention.window {
                Some(window) => (row + 1).saturating_sub(window),
                None => 0,
            };
            let (start, end) = (first.max(positions.start), (row + 1).min(positions.end));
            end.saturating_sub(start) as u64
        })
        .sum()
    }

    fn convolution(&mut self, index: usize, layer: &Layer, convolution: &ShortConvolution) {
        let embedding = self.step.spec.embedding;
        self.multiply(
            Matrix::ConvolutionInput(index),
            &convolution.input,
            Region::Normed,
            Region::Query,
            false,
        );
        self.elementwise(
            Operation::Rope,
            Work::Convolve(index),
            self.rows_of((2 + convolution.taps) * embedding),
            true,
            &[Region::Query],
            &[Region::Mixed],
        );
        self.branch(
            Matrix::MixerOutput(index),
            &convolution.output,
            Region::Mixed,
            index,
            layer
                .mixer_post_norm
                .as_ref()
                .map(|_| Vector::MixerPost(index)),
        );
    }

    fn feed_forward(&mut self, index: usize, layer: &Layer) {
        let post = layer
            .feed_forward_post_norm
            .as_ref()
            .map(|_| Vector::FeedForwardPost(index));
        match &layer.feed_forward {
            FeedForward::Gated(gated) => {
                self.gated(index, 0, &gated.gate, &gated.up);
                self.branch(
                    Matrix::Down(index, 0),
                    &gated.down,
                    Region::Inner,
                    index,
                    post,
                );
            }
            FeedForward::Plain { up, down, .. } => {
                self.multiply(
                    Matrix::Up(index, 0),
                    up,
                    Region::Normed,
                    Region::Inner,
                    false,
                );
                self.elementwise(
                    Operation::Gate,
                    Work::Gate(index),
                    self.rows_of(up.rows),
                    true,
                    &[Region::Inner],
                    &[Region::Inner],
                );
                self.branch(Matrix::Down(index, 0), down, Region::Inner, index, post);
            }
            FeedForward::Experts(experts) => self.experts(index, experts, post),
        }
    }

    /// Each token goes through `used` experts; of a chunk, as many experts as its tokens can touch are brought in.
    fn experts(&mut self, index: usize, experts: &Experts, post: Option<Vector>) {
        self.multiply(
            Matrix::Router(index),
            &experts.router,
            Region::Normed,
            Region::Inner,
            false,
        );
        self.elementwise(
            Operation::Gate,
            Work::Route(index),
            self.rows_of(experts.router.rows),
            true,
            &[Region::Inner],
            &[Region::Inner],
        );
        let visits = self.step.rows * experts.used;
        let touched = experts.experts.len().min(visits);
        for (number, expert) in experts.experts.iter().take(touched).enumerate() {
            let rows = visits.div_ceil(touched.max(1)).min(self.step.rows);
            self.of_rows(rows, |lowering| {
                lowering.gated(index, number, &expert.gate, &expert.up);
                lowering.multiply(
                    Matrix::Down(index, number),
                    &expert.down,
                    Region::Inner,
                    Region::Branch,
                    true,
                );
            });
        }
        if let Some(shared) = &experts.shared {
            let number = experts.experts.len();
            self.gated(index, number, &shared.gate, &shared.up);
            self.multiply(
                Matrix::Down(index, number),
                &shared.down,
                Region::Inner,
                Region::Branch,
                true,
            );
        }
        self.add_branch(index, post);
    }

    /// Counts the work of what `f` lowers for `rows` of the chunk's rows only.
    fn of_rows(&mut self, rows: usize, f: impl FnOnce(&mut Self)) {
        let first = self.tiles.len();
        f(self);
        let (all, rows) = (self.step.rows.max(1) as u64, rows as u64);
        for tile in &mut self.tiles[first..] {
            tile.macs = tile.macs * rows / all;
            tile.elements = tile.elements * rows / all;
        }
    }

    /// `inner = activation(gate × normed) × (up × normed)`.
    fn gated(&mut self, index: usize, expert: usize, gate: &Linear, up: &Linear) {
        let (gate_matrix, up_matrix) = (Matrix::Gate(index, expert), Matrix::Up(index, expert));
        if !self.step.profile.has(Operation::FusedGate) {
            self.multiply(gate_matrix, gate, Region::Normed, Region::Inner, false);
            self.multiply(up_matrix, up, Region::Normed, Region::Up, false);
            self.elementwise(
                Operation::Gate,
                Work::Gate(index),
                2 * self.rows_of(gate.rows),
                true,
                &[Region::Inner, Region::Up],
                &[Region::Inner],
            );
            return;
        }
        let row_bytes = self.row_bytes(gate, self.step.precision.weight_bits);
        let half = self.layout.place(Region::StreamA).bytes / 128 * 64;
        let per_tile = (half as u64 / row_bytes).max(1) as usize;
        let mut first = 0;
        while first < gate.rows {
            let rows = first..gate.rows.min(first + per_tile);
            let buffer = self.next_buffer();
            for (matrix, second) in [(gate_matrix, false), (up_matrix, true)] {
                self.dma(
                    Work::LoadRows {
                        matrix,
                        rows: rows.clone(),
                        buffer,
                        second,
                    },
                    rows.len() as u64 * row_bytes,
                    &[],
                    &[buffer],
                );
            }
            self.push(Tile {
                lane: Lane::Compute,
                bytes: 0,
                macs: 2 * self.rows_of(rows.len()) * gate.columns as u64,
                elements: 2 * self.rows_of(rows.len()),
                launches: first == 0,
                reads: Regions::of(&[buffer, Region::Normed]),
                writes: Regions::of(&[Region::Inner]),
                work: Work::MultiplyGated {
                    layer: index,
                    rows: rows.clone(),
                    buffer,
                },
            });
            first = rows.end;
        }
    }

    /// The product that ends a branch, added to the residual stream, normed first where the model says so.
    fn branch(
        &mut self,
        matrix: Matrix,
        linear: &Linear,
        input: Region,
        layer: usize,
        post: Option<Vector>,
    ) {
        if post.is_none() {
            self.multiply(matrix, linear, input, Region::Residual, true);
            return;
        }
        self.multiply(matrix, linear, input, Region::Branch, false);
        self.add_branch(layer, post);
    }

    fn add_branch(&mut self, layer: usize, vector: Option<Vector>) {
        if let Some(vector) = vector {
            self.vector(vector);
        }
        self.elementwise(
            Operation::Norm,
            Work::AddBranch { layer, vector },
            2 * self.rows_of(self.step.spec.embedding),
            true,
            &[Region::Branch, Region::Vectors, Region::Residual],
            &[Region::Residual],
        );
    }

    fn head(&mut self) {
        let spec = self.step.spec;
        self.vector(Vector::Output);
        self.elementwise(
            Operation::Norm,
            Work::NormWanted,
            (self.step.wanted * spec.embedding) as u64,
            true,
            &[Region::Residual, Region::Vectors],
            &[Region::Normed],
        );
        let row_bytes = self.row_bytes(&spec.output, self.step.precision.head_bits);
        let stream = self.layout.place(Region::StreamA).bytes as u64;
        // Logits of a group of rows leave the chip tile by tile; the head passes once for every group.
        let group = self.step.wanted.min(HEAD_ROWS);
        let output = self.layout.place(Region::OutputA).bytes / (4 * group);
        let per_tile = ((stream / row_bytes) as usize).min(output).max(1);
        let groups = self.step.wanted.div_ceil(HEAD_ROWS);
        for number in 0..groups {
            let count = (self.step.wanted - number * HEAD_ROWS).min(HEAD_ROWS);
            let mut first = 0;
            let mut outputs = 0;
            while first < spec.output.rows {
                let rows = first..spec.output.rows.min(first + per_tile);
                let buffer = self.next_buffer();
                let output = Region::output(outputs, self.layout.buffers);
                outputs += 1;
                self.dma(
                    Work::LoadRows {
                        matrix: Matrix::Head,
                        rows: rows.clone(),
                        buffer,
                        second: false,
                    },
                    rows.len() as u64 * row_bytes,
                    &[],
                    &[buffer],
                );
                self.push(Tile {
                    lane: Lane::Compute,
                    bytes: 0,
                    macs: (rows.len() * spec.output.columns * count) as u64,
                    elements: 0,
                    launches: first == 0,
                    reads: Regions::of(&[buffer, Region::Normed]),
                    writes: Regions::of(&[output]),
                    work: Work::Multiply {
                        matrix: Matrix::Head,
                        rows: rows.clone(),
                        buffer,
                        input: Region::Normed,
                        output,
                        accumulate: false,
                    },
                });
                self.store(
                    Work::StoreLogits {
                        rows: rows.clone(),
                        buffer: output,
                    },
                    (4 * rows.len() * count) as u64,
                    &[output],
                    &[Region::Logits],
                );
                first = rows.end;
            }
        }
    }

    /// `output (+)= input × matrixᵀ`, as many rows of the matrix at a time as a stream buffer holds.
    fn multiply(
        &mut self,
        matrix: Matrix,
        linear: &Linear,
        input: Region,
        output: Region,
        accumulate: bool,
    ) {
        let row_bytes = self.row_bytes(linear, self.step.precision.weight_bits);
        let stream = self.layout.place(Region::StreamA).bytes as u64;
        let per_tile = (stream / row_bytes).max(1) as usize;
        let mut first = 0;
        while first < linear.rows {
            let rows = first..linear.rows.min(first + per_tile);
            let buffer = self.next_buffer();
            self.dma(
                Work::LoadRows {
                    matrix,
                    rows: rows.clone(),
                    buffer,
                    second: false,
                },
                rows.len() as u64 * row_bytes,
                &[],
                &[buffer],
            );
            let mut reads = vec![buffer, input];
            if accumulate {
                reads.push(output);
            }
            // What the host works on next leaves the chip as it is made.
            let leaving = match self.layout.host_keeps {
                true => 2 * self.rows_of(rows.len()),
                false => 0,
            };
            self.push(Tile {
                lane: Lane::Compute,
                bytes: leaving,
                macs: self.rows_of(rows.len()) * linear.columns as u64,
                elements: 0,
                launches: first == 0,
                reads: Regions::of(&reads),
                writes: Regions::of(&[output]),
                work: Work::Multiply {
                    matrix,
                    rows: rows.clone(),
                    buffer,
                    input,
                    output,
                    accumulate,
                },
            });
            first = rows.end;
        }
    }

    fn norm(&mut self, vector: Vector, width: usize, from: Region, to: Region) {
        self.vector(vector);
        self.elementwise(
            Operation::Norm,
            Work::Norm { vector, from, to },
            self.rows_of(width),
            true,
            &[from, Region::Vectors],
            &[to],
        );
    }

    /// Brings a norm's weights in, unless they stay on the chip.
    fn vector(&mut self, vector: Vector) {
        if !self.layout.vectors_stay {
            let bytes = self.layout.vector(vector).bytes as u64;
            self.dma(Work::LoadVector(vector), bytes, &[], &[Region::Vectors]);
        }
    }

    /// Work that is not a matrix product, on the device where it can, else on the host.
    fn elementwise(
        &mut self,
        operation: Operation,
        work: Work,
        elements: u64,
        launches: bool,
        reads: &[Region],
        writes: &[Region],
    ) {
        let host = !self.step.profile.has(operation);
        self.push(Tile {
            work,
            lane: if host { Lane::Host } else { Lane::Compute },
            // The host reads and writes what the device left in memory.
            bytes: if host { 4 * elements } else { 0 },
            macs: 0,
            elements,
            launches: launches && !host,
            reads: Regions::of(reads),
            writes: Regions::of(writes),
        });
    }

    fn dma(&mut self, work: Work, bytes: u64, reads: &[Region], writes: &[Region]) {
        self.transfer(Lane::Dma, work, bytes, reads, writes);
    }

    fn store(&mut self, work: Work, bytes: u64, reads: &[Region], writes: &[Region]) {
        self.transfer(Lane::Store, work, bytes, reads, writes);
    }

    fn transfer(
        &mut self,
        lane: Lane,
        work: Work,
        bytes: u64,
        reads: &[Region],
        writes: &[Region],
    ) {
        self.push(Tile {
            work,
            lane,
            bytes,
            macs: 0,
            elements: 0,
            launches: false,
            reads: Regions::of(reads),
            writes: Regions::of(writes),
        });
    }

    fn push(&mut self, tile: Tile) {
        self.tiles.push(tile);
    }

    fn next_buffer(&mut self) -> Region {
        self.streamed += 1;
        Region::stream(self.streamed, self.layout.buffers)
    }

    fn rows_of(&self, width: usize) -> u64 {
        (self.step.rows * width) as u64
    }

    /// Bytes of a row of `linear` with its bias.
    fn row_bytes(&self, linear: &Linear, bits: u32) -> u64 {
        let bias = if linear.bias.is_some() { 4 } else { 0 };
        self.step.precision.row_bytes(bits, linear.columns) + bias
    }
}
