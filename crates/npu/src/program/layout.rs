//! Where everything lies on the chip.

use ondine_runtime::model::{Attention, FeedForward, Mixer, ModelSpec, Norm};

use super::{LowerError, Region, Vector};
use crate::profile::{Operation, Precision, Profile};

/// Bytes of on-chip memory that are assumed where none are published (processors have caches instead).
const ASSUMED_SRAM: u64 = 2 << 20;

/// Largest stream buffer: longer transfers gain nothing and start the computation later.
const MOST_STREAM: u64 = 256 << 10;

/// Rows whose logits are computed together.
pub(crate) const HEAD_ROWS: usize = 8;

/// A stretch of on-chip memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}

/// On-chip memory, divided up.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Bytes there are.
    pub sram: usize,
    /// Bytes in use: the end of the last place.
    pub used: usize,
    /// Most tokens of the sequence.
    pub context: usize,
    /// Stream buffers: 2 is double buffering, 1 is none.
    pub buffers: usize,
    /// Whether all norms stay on the chip after their first use.
    pub vectors_stay: bool,
    /// Whether the keys and values of the whole context stay on the chip.
    pub cache_stays: bool,
    /// Whether the host keeps the activations, and the chip only the input of the product under way: so where the host
    /// does what lies between the products.
    pub host_keeps: bool,
    /// Bytes of activations that the host keeps.
    pub host_bytes: usize,
    places: [Place; Region::COUNT],
    vectors: Vec<(Vector, Place)>,
}

impl Layout {
    /// Divides the chip's memory for chunks of `rows` tokens of a sequence of at most `context`.
    ///
    /// # Errors
    /// [`LowerError::ChipTooSmall`].
    pub fn new(
        spec: &ModelSpec,
        profile: &Profile,
        precision: &Precision,
        rows: usize,
        context: usize,
        buffers: usize,
    ) -> Result<Self, LowerError> {
        let sram = profile.sram_bytes.unwrap_or(ASSUMED_SRAM);
        let widths = Widths::of(spec, profile);
        let vectors = vectors(spec);
        let all_vectors: u64 = vectors.iter().map(|(_, elements)| 2 * elements).sum();
        let largest_vector = vectors.iter().map(|(_, elements)| 2 * elements).max();
        let vectors_stay = all_vectors <= sram / 8;
        let vector_bytes = match vectors_stay {
            true => all_vectors,
            false => largest_vector.unwrap_or(0),
        };
        let mut places = [Place::default(); Region::COUNT];
        let mut end = 0u64;
        let mut place = |region: Region, bytes: u64, at: &mut u64| {
            let bytes = bytes.next_multiple_of(64);
            places[region as usize] = Place {
                offset: *at as usize,
                bytes: bytes as usize,
            };
            *at += bytes;
        };
        let host_keeps = host_keeps(profile);
        let mut host = 0u64;
        if host_keeps {
            place(Region::Vectors, vector_bytes, &mut host);
        } else {
            place(Region::Vectors, vector_bytes, &mut end);
        }
        // Before all that depends on the rows, so that it stays in its place from step to step.
        let cache = cache_bytes(spec, profile) * context as u64;
        let cache_stays = profile.sram_bytes.is_some() && !host_keeps && cache <= sram / 4;
        if cache_stays {
            place(Region::Cache, cache, &mut end);
        }
        let rows = rows as u64;
        let kept = if host_keeps { &mut host } else { &mut end };
        place(Region::Residual, 2 * rows * widths.embedding, kept);
        place(Region::Branch, 2 * rows * widths.branch, kept);
        let products = [
            (Region::Query, 2 * rows * widths.query),
            (Region::Key, 2 * rows * widths.key),
            (Region::Value, 2 * rows * widths.value),
            (Region::Accumulator, 4 * rows * widths.accumulator),
        ];
        if host_keeps {
            for (region, bytes) in products {
                place(region, bytes, &mut host);
            }
            place(Region::Up, 2 * rows * widths.up, &mut host);
            // The inputs of products are on the chip: what two products share beside what the host makes of their results.
            place(Region::Normed, 2 * rows * widths.embedding, &mut end);
            let mut longest = end;
            for (region, width) in [(Region::Mixed, widths.mixed), (Region::Inner, widths.inner)] {
                let mut at = end;
                place(region, 2 * rows * width, &mut at);
                longest = longest.max(at);
            }
            end = longest;
        } else {
            place(Region::Normed, 2 * rows * widths.embedding, &mut end);
            // A layer's attention is over before its feed-forward network begins: both use the same place.
            let (mut attention, mut feed_forward) = (end, end);
            for (region, bytes) in products {
                place(region, bytes, &mut attention);
            }
            place(Region::Mixed, 2 * rows * widths.mixed, &mut attention);
            place(Region::Inner, 2 * rows * widths.inner, &mut feed_forward);
            place(Region::Up, 2 * rows * widths.up, &mut feed_forward);
            end = attention.max(feed_forward);
        }
        let free = sram.saturating_sub(end);
        let output = (free / 16 / buffers as u64).min(64 << 10) / 64 * 64;
        let stream = ((free / buffers as u64).saturating_sub(output)).min(MOST_STREAM) / 64 * 64;
        let widest_row = widest_row(spec, precision);
        let least = widest_row
            .max(widths.key_block(profile))
            .next_multiple_of(64);
        let least_output = 64 + 4 * HEAD_ROWS as u64;
        if stream < least || output < least_output {
            return Err(LowerError::ChipTooSmall {
                needed: end + (least + least_output.max(least / 15) + 128) * buffers as u64,
                available: sram,
                device: profile.name.clone(),
            });
        }
        for region in [Region::StreamA, Region::StreamB].into_iter().take(buffers) {
            place(region, stream, &mut end);
        }
        for region in [Region::OutputA, Region::OutputB].into_iter().take(buffers) {
            place(region, output, &mut end);
        }
        let base = places[Region::Vectors as usize].offset;
        let mut offset = base;
        let vectors = vectors
            .into_iter()
            .map(|(vector, elements)| {
                let bytes = 2 * elements as usize;
                let at = if vectors_stay { offset } else { base };
                offset += bytes;
                (vector, Place { offset: at, bytes })
            })
            .collect();
        Ok(Layout {
            sram: sram as usize,
            used: end as usize,
            context,
            buffers,
            vectors_stay,
            cache_stays,
            host_keeps,
            host_bytes: host as usize,
            places,
            vectors,
        })
    }

    /// Whether `region` is kept by the host, its place being in the host's memory.
    pub fn on_host(&self, region: Region) -> bool {
        self.host_keeps
            && matches!(
                region,
                Region::Vectors
                    | Region::Residual
                    | Region::Branch
                    | Region::Query
                    | Region::Key
                    | Region::Value
                    | Region::Accumulator
                    | Region::Up
            )
    }

    /// Where `region` lies; the stores in memory have no place.
    pub fn place(&self, region: Region) -> Place {
        self.places[region as usize]
    }

    /// Where the weights of a norm lie.
    pub fn vector(&self, vector: Vector) -> Place {
        let found = self.vectors.iter().find(|(known, _)| *known == vector);
        found.map(|(_, place)| *place).unwrap_or_default()
    }

    /// All norms' weights.
    pub fn vectors(&self) -> impl Iterator<Item = (Vector, Place)> {
        self.vectors.iter().copied()
    }
}

/// Bytes of keys and values of one position in all layers.
pub fn cache_bytes(spec: &ModelSpec, profile: &Profile) -> u64 {
    let heads = spec.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Attention(a) => a.kv_heads * position_bytes(profile, a),
        Mixer::ShortConvolution(_) => 0,
    });
    heads.sum::<usize>() as u64
}

/// Bytes of the key and value of one position of one head: 8-bit elements have a scale for each vector.
pub(crate) fn position_bytes(profile: &Profile, attention: &Attention) -> usize {
    let scales = if profile.kv_bytes == 1 { 4 } else { 0 };
    (attention.key_dim + attention.value_dim) * profile.kv_bytes + scales
}

/// Tokens of a prompt that are computed together: what the software fixes, or what leaves a quarter of the chip to weights.
pub fn chunk_rows(spec: &ModelSpec, profile: &Profile, prompt: usize) -> usize {
    let sram = profile.sram_bytes.unwrap_or(ASSUMED_SRAM);
    let widths = Widths::of(spec, profile);
    let row = if host_keeps(profile) {
        2 * (widths.embedding + widths.mixed.max(widths.inner))
    } else {
        let attention =
            2 * (widths.query + widths.key + widths.value + widths.mixed) + 4 * widths.accumulator;
        let feed_forward = 2 * (widths.inner + widths.up);
        2 * (2 * widths.embedding + widths.branch) + attention.max(feed_forward)
    };
    let fit = match profile.sram_bytes {
        Some(_) => (sram / 4 * 3 / row.max(1)).max(1) as usize,
        // Caches hold what they can; rows beyond that are read from memory.
        None => usize::MAX,
    };
    let most = profile.prompt_chunk.unwrap_or(512).min(fit);
    prompt.clamp(1, most.max(1))
}

/// Whether the host does what lies between the products.
fn host_keeps(profile: &Profile) -> bool {
    !profile.has(Operation::Norm)
}

/// Elements of a row of every region, the widest layer's.
struct Widths {
    embedding: u64,
    branch: u64,
    query: u64,
    key: u64,
    value: u64,
    mixed: u64,
    accumulator: u64,
    inner: u64,
    up: u64,
    /// Elements of a key and a value of one head.
    head: u64,
}

impl Widths {
    fn of(spec: &ModelSpec, profile: &Profile) -> Self {
        let embedding = spec.embedding as u64;
        let mut widths = Widths {
            embedding,
            branch: 0,
            query: 0,
            key: 0,
            value: 0,
            mixed: 0,
            accumulator: 0,
            inner: 0,
            up: 0,
            head: 0,
        };
        let raise = |value: &mut u64, to: usize| *value = (*value).max(to as u64);
        for layer in &spec.layers {
            match &layer.mixer {
                Mixer::Attention(a) => {
                    raise(&mut widths.query, a.heads * a.key_dim);
                    raise(&mut widths.key, a.kv_heads * a.key_dim);
                    raise(&mut widths.value, a.kv_heads * a.value_dim);
                    raise(&mut widths.mixed, a.heads * a.value_dim);
                    raise(&mut widths.head, a.key_dim + a.value_dim);
                    let group = a.heads / a.kv_heads.max(1);
                    raise(&mut widths.accumulator, group * (a.value_dim + 2));
                }
                Mixer::ShortConvolution(_) => {
                    raise(&mut widths.query, 3 * spec.embedding);
                    raise(&mut widths.mixed, spec.embedding);
                }
            }
            let gated = match &layer.feed_forward {
                FeedForward::Gated(gated) => Some(gated.gate.rows),
                FeedForward::Plain { up, .. } => {
                    raise(&mut widths.inner, up.rows);
                    None
                }
                FeedForward::Experts(experts) => {
                    widths.branch = embedding;
                    let shared = experts.shared.as_ref().map_or(0, |shared| shared.gate.rows);
                    let widest = experts.experts.iter().map(|expert| expert.gate.rows).max();
                    Some(shared.max(widest.unwrap_or(0)).max(experts.router.rows))
                }
            };
            if let Some(width) = gated {
                raise(&mut widths.inner, width);
                if !profile.has(Operation::FusedGate) {
                    raise(&mut widths.up, width);
                }
            }
            if layer.mixer_post_norm.is_some() || layer.feed_forward_post_norm.is_some() {
                widths.branch = embedding;
            }
        }
        widths
    }

    /// Bytes of keys and values of one position of one head.
    fn key_block(&self, profile: &Profile) -> u64 {
        self.head * profile.kv_bytes as u64 + 4
    }
}

/// Bytes of the longest row of any matrix; fused gates need two.
fn widest_row(spec: &ModelSpec, precision: &Precision) -> u64 {
    let columns = spec.layers.iter().flat_map(|layer| {
        let feed_forward = match &layer.feed_forward {
            FeedForward::Gated(gated) => gated.down.columns,
            FeedForward::Plain { down, .. } => down.columns,
            FeedForward::Experts(experts) => experts
                .experts
                .iter()
                .map(|expert| expert.down.columns)
                .max()
                .unwrap_or(0),
        };
        let mixer = match &layer.mixer {
            Mixer::Attention(attention) => attention.output.columns,
            Mixer::ShortConvolution(convolution) => convolution.output.columns,
        };
        [feed_forward, mixer]
    });
    let longest = columns.max().unwrap_or(0);
    let bits = precision.weight_bits;
    let inner = precision.row_bytes(bits, longest) + 4;
    let gates = 2 * (precision.row_bytes(bits, spec.embedding) + 4) + 128;
    let head_bits = precision.head_bits.max(precision.embedding_bits);
    let head = precision.row_bytes(head_bits, spec.embedding) + 4;
    inner.max(gates).max(head)
}

/// The norms of the model with their elements.
fn vectors(spec: &ModelSpec) -> Vec<(Vector, u64)> {
    let elements = |norm: &Norm| norm.length as u64 * if norm.bias.is_some() { 2 } else { 1 };
    let mut vectors = Vec::new();
    if let Some(norm) = &spec.embedding_norm {
        vectors.push((Vector::Embedding, elements(norm)));
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        vectors.push((Vector::Mixer(index), elements(&layer.mixer_norm)));
        if let Mixer::Attention(attention) = &layer.mixer
            && let Some(norms) = &attention.query_key_norm
        {
            let both = elements(&norms.query) + elements(&norms.key);
            vectors.push((Vector::QueryKey(index), both));
        }
        if let Some(norm) = &layer.mixer_post_norm {
            vectors.push((Vector::MixerPost(index), elements(norm)));
        }
        vectors.push((
            Vector::FeedForward(index),
            elements(&layer.feed_forward_norm),
        ));
        if let Some(norm) = &layer.feed_forward_post_norm {
            vectors.push((Vector::FeedForwardPost(index), elements(norm)));
        }
    }
    vectors.push((Vector::Output, elements(&spec.output_norm)));
    vectors
}
