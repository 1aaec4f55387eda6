//! Writes GGUF headers: for models that arrive in another form, and for files of our own.

use super::metadata::{ElementType, Metadata, Slot};

const ALIGNMENT: u64 = 32;

/// Builds the bytes that precede the tensor data.
#[derive(Default)]
pub struct HeaderWriter {
    entries: u64,
    metadata: Vec<u8>,
    tensors: u64,
    table: Vec<u8>,
    data_bytes: u64,
}

impl HeaderWriter {
    /// An empty header.
    pub fn new() -> Self {
        HeaderWriter::default()
    }

    /// Adds an unsigned 32-bit entry.
    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.entry(key, ElementType::U32, &value.to_le_bytes())
    }

    /// Adds a 32-bit float entry.
    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.entry(key, ElementType::F32, &value.to_le_bytes())
    }

    /// Adds a bool entry.
    pub fn boolean(&mut self, key: &str, value: bool) -> &mut Self {
        self.entry(key, ElementType::Bool, &[u8::from(value)])
    }

    /// Adds a string entry.
    pub fn string(&mut self, key: &str, value: &str) -> &mut Self {
        let mut raw = Vec::with_capacity(8 + value.len());
        push_string(&mut raw, value.as_bytes());
        self.entry(key, ElementType::String, &raw)
    }

    /// Adds an array of signed 32-bit integers.
    pub fn i32_array(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, ElementType::I32, values.len(), &raw)
    }

    /// Adds an array of 32-bit floats.
    pub fn f32_array(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, ElementType::F32, values.len(), &raw)
    }

    /// Adds an array of bools.
    pub fn boolean_array(&mut self, key: &str, values: &[bool]) -> &mut Self {
        let raw: Vec<u8> = values.iter().map(|&v| u8::from(v)).collect();
        self.array(key, ElementType::Bool, values.len(), &raw)
    }

    /// Adds an array of strings.
    pub fn string_array<S: AsRef<[u8]>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        let mut raw = Vec::new();
        for value in values {
            push_string(&mut raw, value.as_ref());
        }
        self.array(key, ElementType::String, values.len(), &raw)
    }

    /// Adds the entries of `metadata` whose key `wanted` accepts, byte for byte and in their order.
    pub fn copy(&mut self, metadata: &Metadata, wanted: impl Fn(&str) -> bool) -> &mut Self {
        let header = metadata.header.as_slice();
        for (key, slot) in metadata.entries.iter().filter(|(key, _)| wanted(key)) {
            match slot {
                // A string's slot is its text; its length comes before.
                Slot::Scalar {
                    element: ElementType::String,
                    bytes,
                } => {
                    let mut raw = Vec::with_capacity(8 + bytes.len());
                    push_string(&mut raw, &header[bytes.clone()]);
                    self.entry(key, ElementType::String, &raw);
                }
                Slot::Scalar { element, bytes } => {
                    self.entry(key, *element, &header[bytes.clone()]);
                }
                Slot::Array {
                    element,
                    length,
                    bytes,
                } => {
                    self.array(key, *element, *length, &header[bytes.clone()]);
                }
            }
        }
        self
    }

    /// Declares a tensor; `shape` has the fastest dimension first, `type_id` is ggml's. Its data
    /// must follow in the order of declaration, each padded to 32 bytes. Returns its offset from
    /// the start of the data.
    pub fn tensor(&mut self, name: &str, shape: &[u64], type_id: u32, bytes: u64) -> u64 {
        push_string(&mut self.table, name.as_bytes());
        self.table
            .extend_from_slice(&(shape.len() as u32).to_le_bytes());
        for &dimension in shape {
            self.table.extend_from_slice(&dimension.to_le_bytes());
        }
        self.table.extend_from_slice(&type_id.to_le_bytes());
        let offset = self.data_bytes;
        self.table.extend_from_slice(&offset.to_le_bytes());
        self.data_bytes = (offset + bytes).next_multiple_of(ALIGNMENT);
        self.tensors += 1;
        offset
    }

    /// The header, padded so that the tensor data can follow at once.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.metadata.len() + self.table.len());
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&self.tensors.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&self.metadata);
        out.extend_from_slice(&self.table);
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        out
    }

    fn entry(&mut self, key: &str, element: ElementType, raw: &[u8]) -> &mut Self {
        push_string(&mut self.metadata, key.as_bytes());
        self.metadata.extend_from_slice(&element.id().to_le_bytes());
        self.metadata.extend_from_slice(raw);
        self.entries += 1;
        self
    }

    fn array(&mut self, key: &str, element: ElementType, length: usize, raw: &[u8]) -> &mut Self {
        push_string(&mut self.metadata, key.as_bytes());
        self.metadata
            .extend_from_slice(&ElementType::ARRAY_ID.to_le_bytes());
        self.metadata.extend_from_slice(&element.id().to_le_bytes());
        self.metadata
            .extend_from_slice(&(length as u64).to_le_bytes());
        self.metadata.extend_from_slice(raw);
        self.entries += 1;
        self
    }
}

fn push_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}
