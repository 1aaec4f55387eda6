//! A model lowered to tiles for one device: what is transferred into on-chip memory, what is computed there, and what
//! the processor beside it does.
//!
//! One program is one step of a decoder: a chunk of a prompt, or one token. The planner times it ([`schedule`]), the
//! simulator executes it; both see the same tiles.
//!
//! All activations of the chunk stay on the chip: the chunk is made short enough for that, and the weights pass once per
//! chunk through the stream buffers. With two buffers the next tile's transfer overlaps this tile's computation. Keys
//! and values pass through the same buffers in blocks of positions, with an online softmax.

mod layout;
mod lower;
mod schedule;

use std::ops::Range;

use thiserror::Error;

pub(crate) use layout::{HEAD_ROWS, position_bytes};
pub use layout::{Layout, Place, cache_bytes, chunk_rows};
pub use lower::{Step, lower};
pub use schedule::{Event, Timeline, schedule};

/// A step of the decoder as tiles in program order.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where everything lies on the chip.
    pub layout: Layout,
    /// The tiles.
    pub tiles: Vec<Tile>,
    /// Tokens of the chunk.
    pub rows: usize,
}

/// One transfer or one piece of computation.
#[derive(Debug, Clone)]
pub struct Tile {
    /// What it does.
    pub work: Work,
    /// Which unit does it.
    pub lane: Lane,
    /// Bytes to or from memory.
    pub bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Elementwise results.
    pub elements: u64,
    /// Whether an operation begins here, which has to be requested.
    pub launches: bool,
    /// Regions read.
    pub reads: Regions,
    /// Regions written.
    pub writes: Regions,
}

/// A unit that works by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Transfers from memory to the chip.
    Dma,
    /// The device's own arithmetic.
    Compute,
    /// The processor beside it.
    Host,
    /// Transfers from the chip to memory, which do not hold up those to the chip.
    Store,
}

/// A part of on-chip memory, or one of the two stores in memory that steps exchange through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Region {
    /// Weights of norms.
    Vectors,
    /// The residual stream, [rows, embedding].
    Residual,
    /// The input of the next products, [rows, embedding].
    Normed,
    /// Queries, [rows, heads × size].
    Query,
    /// Keys of the chunk, [rows, kv heads × size].
    Key,
    /// Values of the chunk, [rows, kv heads × size].
    Value,
    /// Attention's result, [rows, heads × size].
    Mixed,
    /// Attention's running maximum, sum and result of one key/value head's queries, 32-bit floats.
    Accumulator,
    /// Inside of the feed-forward network, [rows, width].
    Inner,
    /// Its second product where the device does not fuse it, [rows, width].
    Up,
    /// A branch that is normed before it is added, [rows, embedding].
    Branch,
    /// First stream buffer.
    StreamA,
    /// Second stream buffer.
    StreamB,
    /// First buffer of logits.
    OutputA,
    /// Second buffer of logits.
    OutputB,
    /// Keys and values in memory.
    Cache,
    /// Logits in memory.
    Logits,
}

impl Region {
    /// How many there are.
    pub const COUNT: usize = 17;

    /// All of them.
    pub const ALL: [Region; Region::COUNT] = [
        Region::Vectors,
        Region::Residual,
        Region::Normed,
        Region::Query,
        Region::Key,
        Region::Value,
        Region::Mixed,
        Region::Accumulator,
        Region::Inner,
        Region::Up,
        Region::Branch,
        Region::StreamA,
        Region::StreamB,
        Region::OutputA,
        Region::OutputB,
        Region::Cache,
        Region::Logits,
    ];

    /// The stream buffer of the `index`-th tile when there are `buffers` of them.
    pub fn stream(index: usize, buffers: usize) -> Region {
        match index % buffers {
            0 => Region::StreamA,
            _ => Region::StreamB,
        }
    }

    /// The logits buffer of the `index`-th tile when there are `buffers` of them.
    pub fn output(index: usize, buffers: usize) -> Region {
        match index % buffers {
            0 => Region::OutputA,
            _ => Region::OutputB,
        }
    }
}

/// A set of regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Regions(u32);

impl Regions {
    /// The set of `regions`.
    pub fn of(regions: &[Region]) -> Self {
        Regions(
            regions
                .iter()
                .fold(0, |bits, &region| bits | 1 << region as u32),
        )
    }

    /// The regions in the set.
    pub fn iter(self) -> impl Iterator<Item = Region> {
        Region::ALL
            .into_iter()
            .filter(move |&region| self.0 & 1 << region as u32 != 0)
    }
}

/// Which matrix, of which layer where it belongs to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Matrix {
    /// Token embedding table.
    Embedding,
    /// Output head.
    Head,
    /// Query projection.
    Query(usize),
    /// Key projection.
    Key(usize),
    /// Value projection.
    Value(usize),
    /// Projection of attention's result, or of a convolution's.
    MixerOutput(usize),
    /// Input projection of a short convolution.
    ConvolutionInput(usize),
    /// Router of a mixture of experts.
    Router(usize),
    /// Gate of a feed-forward network; of experts, the given one.
    Gate(usize, usize),
    /// Its other first product.
    Up(usize, usize),
    /// Its second product.
    Down(usize, usize),
}

/// Which vector of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vector {
    /// Norm after the embedding.
    Embedding,
    /// Norm before the head.
    Output,
    /// Norm of a layer's mixer's input.
    Mixer(usize),
    /// Norm of a layer's mixer's output.
    MixerPost(usize),
    /// Norm of queries and keys.
    QueryKey(usize),
    /// Norm of a layer's feed-forward network's input.
    FeedForward(usize),
    /// Norm of a layer's feed-forward network's output.
    FeedForwardPost(usize),
}

/// What a tile does.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Brings a norm's weights to the chip.
    LoadVector(Vector),
    /// Brings the embedding of the chunk's token `row` into a stream buffer.
    LoadEmbedding {
        /// Row of the chunk.
        row: usize,
        /// Stream buffer.
        buffer: Region,
    },
    /// Writes the embedding of the chunk's token `row` into the residual stream.
    Embed {
        /// Row of the chunk.
        row: usize,
        /// Stream buffer.
        buffer: Region,
    },
    /// `to = norm(from)`, all rows.
    Norm {
        /// Which norm.
        vector: Vector,
        /// Input.
        from: Region,
        /// Output.
        to: Region,
    },
    /// Picks the rows whose logits are wanted and norms them.
    NormWanted,
    /// Brings rows of a matrix into a stream buffer.
    LoadRows {
        /// Which matrix.
        matrix: Matrix,
        /// Which rows.
        rows: Range<usize>,
        /// Stream buffer.
        buffer: Region,
        /// Whether they go into the second half of the buffer (the partner of a fused product).
        second: bool,
    },
    /// `output[.., rows] (+)= input × matrix[rows]ᵀ`.
    Multiply {
        /// Which matrix.
        matrix: Matrix,
        /// Which rows.
        rows: Range<usize>,
        /// Stream buffer that holds them.
        buffer: Region,
        /// Input.
        input: Region,
        /// Output.
        output: Region,
        /// Whether the output is added to, scaled as the layer says.
        accumulate: bool,
    },
    /// `inner[.., rows] = activation(gate) × up`, both from one buffer.
    MultiplyGated {
        /// Layer.
        layer: usize,
        /// Which rows of both matrices.
        rows: Range<usize>,
        /// Stream buffer that holds them.
        buffer: Region,
    },
    /// Clamps, norms and rotates queries and keys.
    Position(usize),
    /// Appends the chunk's keys and values to the cache.
    StoreKeys(usize),
    /// Empties the accumulator for the queries of a key/value head.
    BeginAttention {
        /// Layer.
        layer: usize,
        /// Key/value head.
        head: usize,
    },
    /// Brings keys and values of a block of positions into a stream buffer.
    LoadKeys {
        /// Layer.
        layer: usize,
        /// Key/value head.
        head: usize,
        /// Positions.
        positions: Range<usize>,
        /// Stream buffer.
        buffer: Region,
    },
    /// Takes a block of positions into the accumulator.
    Attend {
        /// Layer.
        layer: usize,
        /// Key/value head.
        head: usize,
        /// Positions.
        positions: Range<usize>,
        /// Stream buffer.
        buffer: Region,
    },
    /// Divides by the sum and writes the result.
    EndAttention {
        /// Layer.
        layer: usize,
        /// Key/value head.
        head: usize,
    },
    /// All of a layer's attention on the host.
    HostAttention(usize),
    /// A short convolution on what its input projection gave.
    Convolve(usize),
    /// `inner = activation(inner) × up`, or the activation alone.
    Gate(usize),
    /// Chooses experts.
    Route(usize),
    /// `residual += scale × norm(branch)`.
    AddBranch {
        /// Layer.
        layer: usize,
        /// The norm, if any.
        vector: Option<Vector>,
    },
    /// Writes logits of rows of the vocabulary to memory.
    StoreLogits {
        /// Rows of the vocabulary.
        rows: Range<usize>,
        /// Logits buffer.
        buffer: Region,
    },
}

/// Why a model cannot be lowered.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LowerError {
    /// Not even one token's activations and two tiles of one row fit.
    #[error(
        "needs at least {needed} bytes of on-chip memory for one token where {device} has {available}; take a smaller model or a device with more"
    )]
    ChipTooSmall {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// The device.
        device: String,
    },
}
