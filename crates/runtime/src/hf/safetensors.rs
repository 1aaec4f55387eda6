//! The header of a safetensors file: names, types, shapes and places of its tensors.
//!
//! Layout (specification: the README of the safetensors project): an u64 length, that many bytes of
//! JSON, then the tensors' data without gaps. All integers and elements are little-endian.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use ondine_kernels::TensorType;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Limits;
use crate::gguf::ModelFileError;
use crate::source::ByteSource;

/// No tensor has more dimensions than this, that of a vision tower included.
const MOST_DIMENSIONS: usize = 8;
/// No name is longer than this, in bytes.
const LONGEST_NAME: usize = 512;

/// One tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) element: Element,
    /// Dimensions, slowest first: a matrix of R rows and C columns is `[R, C]`.
    pub(super) shape: Vec<u64>,
    /// Byte range in the file; within it, of the length that shape and type ask for.
    pub(super) bytes: Range<u64>,
}

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// One that models are made of.
    Float(TensorType),
    /// One of this many bytes that no weight may have: masks, indices, quantised codes.
    Other(u64),
}

impl Element {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Element::Float(TensorType::F32),
            "F16" => Element::Float(TensorType::F16),
            "BF16" => Element::Float(TensorType::BF16),
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Element::Other(1),
            "U16" | "I16" => Element::Other(2),
            "U32" | "I32" => Element::Other(4),
            "U64" | "I64" | "F64" | "C64" => Element::Other(8),
            _ => return None,
        })
    }

    pub(super) fn bytes(self) -> u64 {
        match self {
            Element::Float(tensor_type) => tensor_type.block_bytes() as u64,
            Element::Other(bytes) => bytes,
        }
    }
}

/// Reads the header of `source`; `most` bounds the number of tensors.
pub(super) fn read_header(
    source: &dyn ByteSource,
    most: u64,
    limits: &Limits,
) -> Result<BTreeMap<String, Entry>, ModelFileError> {
    let file = || source.name().to_owned();
    let refuse = |what: String| ModelFileError::Invalid { file: file(), what };
    let read = |offset, out: &mut [u8]| {
        source
            .read_at(offset, out)
            .map_err(|source| ModelFileError::Io {
                file: file(),
                source,
            })
    };
    let truncated = |what: &str| ModelFileError::Truncated {
        file: file(),
        what: what.to_owned(),
    };
    if source.len() < 8 {
        return Err(truncated("the length of its header"));
    }
    let mut length = [0; 8];
    read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > limits.json_bytes {
        return Err(refuse(format!(
            "declares a header of {length} bytes, more than the {} allowed; it may be no safetensors file",
            limits.json_bytes
        )));
    }
    let data_start = 8 + length;
    let Some(data_bytes) = source.len().checked_sub(data_start) else {
        return Err(truncated("its header"));
    };
    let mut header = vec![0; length as usize];
    read(8, &mut header)?;
    let table: Table = serde_json::from_slice(&header)
        .map_err(|error| refuse(format!("has a damaged header ({error}); fetch it again")))?;
    if table.0.len() as u64 > most {
        return Err(refuse(format!(
            "brings the model to more than the {} tensors allowed",
            limits.tensors
        )));
    }
    let mut entries = BTreeMap::new();
    let mut ranges = Vec::with_capacity(table.0.len());
    for (name, raw) in table.0 {
        let entry = check(&raw, data_start, data_bytes)
            .map_err(|what| refuse(format!("tensor `{name}` {what}; fetch it again")))?;
        ranges.push(entry.bytes.clone());
        entries.insert(name, entry);
    }
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut end = data_start;
    for range in ranges {
        if range.start != end {
            let what = "has tensors that overlap or leave gaps; fetch it again";
            return Err(refuse(what.to_owned()));
        }
        end = range.end;
    }
    if end != source.len() {
        let left = source.len() - end;
        return Err(refuse(format!(
            "has {left} bytes that belong to no tensor; fetch it again"
        )));
    }
    Ok(entries)
}

fn check(raw: &RawEntry, data_start: u64, data_bytes: u64) -> Result<Entry, String> {
    let element = Element::named(&raw.dtype)
        .ok_or_else(|| format!("has the type `{}`, which is not supported", raw.dtype))?;
    let shape = &raw.shape.0;
    let elements = shape
        .iter()
        .try_fold(1u64, |product, &size| product.checked_mul(size));
    let bytes = elements.and_then(|elements| elements.checked_mul(element.bytes()));
    let (begin, end) = raw.data_offsets;
    if end > data_bytes || begin > end {
        return Err("lies past the end of the file".to_owned());
    }
    if bytes != Some(end - begin) {
        return Err(format!(
            "has {} bytes, which do not agree with its shape",
            end - begin
        ));
    }
    Ok(Entry {
        element,
        shape: shape.clone(),
        bytes: data_start + begin..data_start + end,
    })
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape, refused while it is read when it has too many dimensions.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = list.next_element()? {
                    if shape.len() == MOST_DIMENSIONS {
                        return Err(de::Error::custom("a tensor has too many dimensions"));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// The header's object, with names that may come only once.
struct Table(BTreeMap<String, RawEntry>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Table;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if name.len() > LONGEST_NAME {
                        return Err(de::Error::custom("a tensor's name is too long"));
                    }
                    let entry = map.next_value()?;
                    if entries.contains_key(&name) {
                        let what = format!("tensor `{name}` is declared twice");
                        return Err(de::Error::custom(what));
                    }
                    entries.insert(name, entry);
                }
                Ok(Table(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
