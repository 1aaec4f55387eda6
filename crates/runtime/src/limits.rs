//! Bounds on every size that is read from a file or the network.

/// What outside data may ask for at most. One value is passed to every parser, so that a hostile
/// file is refused before memory is reserved for it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Metadata entries of a model file.
    pub metadata_entries: u64,
    /// Bytes of a metadata key.
    pub key_bytes: u64,
    /// Bytes of the part of a model file that precedes the tensors (metadata and tensor table).
    pub header_bytes: u64,
    /// Tensors of a model, all shards together.
    pub tensors: u64,
    /// Dimensions of a tensor.
    pub dimensions: u32,
    /// Shards of a split model.
    pub shards: u32,
    /// Tokens of a vocabulary.
    pub vocabulary: u64,
    /// Layers of a model.
    pub layers: u32,
    /// Experts of a mixture-of-experts layer.
    pub experts: u32,
    /// Width of any activation vector (embedding, feed-forward, heads × head size).
    pub width: u64,
    /// Bytes of a JSON file beside a model (`config.json`, `tokenizer.json`, index files).
    pub json_bytes: u64,
    /// Tokens of context that may be asked for.
    pub context: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            metadata_entries: 1 << 16,
            key_bytes: 1 << 16,
            header_bytes: 1 << 29,
            tensors: 1 << 17,
            dimensions: 4,
            shards: 1 << 10,
            vocabulary: 1 << 22,
            layers: 1 << 12,
            experts: 1 << 12,
            width: 1 << 22,
            json_bytes: 1 << 28,
            context: 1 << 24,
        }
    }
}
