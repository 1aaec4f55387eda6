//! The bounds on everything that is read from outside.

/// Upper bounds, checked before memory is taken or a loop is entered.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a manifest.
    pub manifest_bytes: u64,
    /// Bytes of a signature file.
    pub signature_bytes: u64,
    /// Bytes of a key file.
    pub key_bytes: u64,
    /// Files in one bundle or one signed directory.
    pub files: usize,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of the header of a sealed file.
    pub sealed_header_bytes: u32,
    /// Recipients of a sealed file.
    pub recipients: usize,
    /// Bytes of the part of a model file that precedes its tensors.
    pub model_header_bytes: u64,
    /// Tensors in one model file.
    pub tensors: usize,
    /// Bytes of the index of one model's releases, or of the policy of who may sign.
    pub index_bytes: u64,
    /// Releases, or deltas, in one index.
    pub releases: usize,
    /// Signatures of one release.
    pub signatures: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            manifest_bytes: 4 << 20,
            signature_bytes: 16 << 20,
            key_bytes: 64 << 10,
            files: 16_384,
            file_bytes: 1 << 42,
            sealed_header_bytes: 64 << 10,
            recipients: 64,
            model_header_bytes: 24 << 20,
            tensors: 65_536,
            index_bytes: 4 << 20,
            releases: 4096,
            signatures: 16,
        }
    }
}
