//! Typed access to a model file's metadata without copying it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::ModelFileError;
use super::cursor::{Cursor, OutOfBytes};
use crate::source::ByteSource;

/// The bytes that precede the tensors, held once and borrowed by every value.
#[derive(Clone)]
pub(super) enum HeaderBytes {
    /// The source's own memory (a mapped file).
    Shared(Arc<dyn ByteSource>),
    /// A copy, for sources that cannot show their bytes.
    Owned(Arc<[u8]>),
}

impl HeaderBytes {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            HeaderBytes::Shared(source) => source.as_slice().unwrap_or(&[]),
            HeaderBytes::Owned(bytes) => bytes,
        }
    }
}

/// Type of a metadata scalar or array element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// 32-bit float.
    F32,
    /// One byte, zero or one.
    Bool,
    /// Length-prefixed bytes, UTF-8 by convention only.
    String,
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    I64,
    /// 64-bit float.
    F64,
}

impl ElementType {
    pub(super) const ARRAY_ID: u32 = 9;

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => ElementType::U8,
            1 => ElementType::I8,
            2 => ElementType::U16,
            3 => ElementType::I16,
            4 => ElementType::U32,
            5 => ElementType::I32,
            6 => ElementType::F32,
            7 => ElementType::Bool,
            8 => ElementType::String,
            10 => ElementType::U64,
            11 => ElementType::I64,
            12 => ElementType::F64,
            _ => return None,
        })
    }

    pub(super) fn id(self) -> u32 {
        match self {
            ElementType::U8 => 0,
            ElementType::I8 => 1,
            ElementType::U16 => 2,
            ElementType::I16 => 3,
            ElementType::U32 => 4,
            ElementType::I32 => 5,
            ElementType::F32 => 6,
            ElementType::Bool => 7,
            ElementType::String => 8,
            ElementType::U64 => 10,
            ElementType::I64 => 11,
            ElementType::F64 => 12,
        }
    }

    /// Bytes of one element; `None` for strings, whose length varies.
    pub fn size(self) -> Option<u64> {
        Some(match self {
            ElementType::U8 | ElementType::I8 | ElementType::Bool => 1,
            ElementType::U16 | ElementType::I16 => 2,
            ElementType::U32 | ElementType::I32 | ElementType::F32 => 4,
            ElementType::U64 | ElementType::I64 | ElementType::F64 => 8,
            ElementType::String => return None,
        })
    }
}

/// One metadata value, borrowed from the file's header.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// Any integer type or bool, widened.
    Integer(i128),
    /// A 32- or 64-bit float.
    Float(f64),
    /// A bool.
    Bool(bool),
    /// A string's bytes.
    String(&'a [u8]),
    /// An array.
    Array(Array<'a>),
}

/// An array of scalars or strings, decoded as it is walked.
#[derive(Debug, Clone, Copy)]
pub struct Array<'a> {
    element: ElementType,
    length: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the array has no element.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.element
    }

    /// The elements as integers; `None` when they are floats or strings.
    pub fn integers(&self) -> Option<impl Iterator<Item = i64> + use<'a>> {
        let element = self.element;
        if matches!(
            element,
            ElementType::String | ElementType::F32 | ElementType::F64
        ) {
            return None;
        }
        let size = element.size()? as usize;
        Some(
            self.bytes
                .chunks_exact(size)
                .map(move |raw| match scalar(element, raw) {
                    Value::Integer(value) => value as i64,
                    Value::Bool(value) => i64::from(value),
                    _ => 0,
                }),
        )
    }

    /// The elements as floats (integers converted); `None` for strings.
    pub fn floats(&self) -> Option<impl Iterator<Item = f32> + use<'a>> {
        let element = self.element;
        let size = element.size()? as usize;
        Some(
            self.bytes
                .chunks_exact(size)
                .map(move |raw| match scalar(element, raw) {
                    Value::Float(value) => value as f32,
                    Value::Integer(value) => value as f32,
                    Value::Bool(value) => f32::from(value),
                    _ => 0.0,
                }),
        )
    }

    /// The elements' bytes; `None` when they are not strings.
    pub fn strings(&self) -> Option<StringIter<'a>> {
        (self.element == ElementType::String).then(|| StringIter {
            cursor: Cursor::new(self.bytes),
            left: self.length,
        })
    }
}

/// Walks an array of strings.
#[derive(Clone)]
pub struct StringIter<'a> {
    cursor: Cursor<'a>,
    left: usize,
}

impl<'a> Iterator for StringIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        self.cursor.string().ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for StringIter<'_> {}

#[derive(Debug, Clone)]
pub(super) enum Slot {
    Scalar {
        element: ElementType,
        bytes: Range<usize>,
    },
    Array {
        element: ElementType,
        length: usize,
        bytes: Range<usize>,
    },
}

/// The metadata entries of a model, in file order.
#[derive(Clone)]
pub struct Metadata {
    pub(super) header: HeaderBytes,
    pub(super) entries: Vec<(String, Slot)>,
    pub(super) index: HashMap<String, usize>,
}

impl Metadata {
    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let slot = &self.entries[*self.index.get(key)?].1;
        Some(self.read(slot))
    }

    /// All entries in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries
            .iter()
            .map(|(key, slot)| (key.as_str(), self.read(slot)))
    }

    /// Whether there is an entry named `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// When the entry exists and is not an integer in 0..2^64.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelFileError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Integer(value)) => u64::try_from(value)
                .map(Some)
                .map_err(|_| wrong(key, "is negative; the file is damaged")),
            Some(_) => Err(wrong(key, "is not an integer")),
        }
    }

    /// A float (integers are converted).
    ///
    /// # Errors
    /// When the entry exists and is not a number.
    pub fn float(&self, key: &str) -> Result<Option<f32>, ModelFileError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(value as f32)),
            Some(Value::Integer(value)) => Ok(Some(value as f32)),
            Some(_) => Err(wrong(key, "is not a number")),
        }
    }

    /// A bool.
    ///
    /// # Errors
    /// When the entry exists and is not a bool.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ModelFileError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(wrong(key, "is not true or false")),
        }
    }

    /// A UTF-8 string.
    ///
    /// # Errors
    /// When the entry exists and is not a UTF-8 string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ModelFileError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => std::str::from_utf8(bytes)
                .map(Some)
                .map_err(|_| wrong(key, "is not UTF-8")),
            Some(_) => Err(wrong(key, "is not a string")),
        }
    }

    /// An array.
    ///
    /// # Errors
    /// When the entry exists and is not an array.
    pub fn array(&self, key: &str) -> Result<Option<Array<'_>>, ModelFileError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => Err(wrong(key, "is not an array")),
        }
    }

    fn read(&self, slot: &Slot) -> Value<'_> {
        let header = self.header.as_slice();
        match slot {
            Slot::Scalar { element, bytes } => scalar(*element, &header[bytes.clone()]),
            Slot::Array {
                element,
                length,
                bytes,
            } => Value::Array(Array {
                element: *element,
                length: *length,
                bytes: &header[bytes.clone()],
            }),
        }
    }
}

/// Reads one value's extent; `Ok(None)` is a type this reader does not know.
pub(super) fn read_slot(cursor: &mut Cursor<'_>) -> Result<Option<Slot>, OutOfBytes> {
    let id = cursor.u32()?;
    if id != ElementType::ARRAY_ID {
        let Some(element) = ElementType::from_id(id) else {
            return Ok(None);
        };
        let bytes = match element.size() {
            Some(size) => {
                let start = cursor.position();
                cursor.take(size)?;
                start..cursor.position()
            }
            None => {
                let text = cursor.string()?;
                cursor.position() - text.len()..cursor.position()
            }
        };
        return Ok(Some(Slot::Scalar { element, bytes }));
    }
    let Some(element) = ElementType::from_id(cursor.u32()?) else {
        return Ok(None);
    };
    let length = cursor.u64()?;
    let start = cursor.position();
    match element.size() {
        Some(size) => {
            cursor.take(length.checked_mul(size).ok_or(OutOfBytes)?)?;
        }
        None => {
            for _ in 0..length {
                cursor.string()?;
            }
        }
    }
    Ok(Some(Slot::Array {
        element,
        length: usize::try_from(length).map_err(|_| OutOfBytes)?,
        bytes: start..cursor.position(),
    }))
}

fn scalar(element: ElementType, raw: &[u8]) -> Value<'_> {
    fn le<const N: usize>(raw: &[u8]) -> [u8; N] {
        let mut out = [0; N];
        let length = raw.len().min(N);
        out[..length].copy_from_slice(&raw[..length]);
        out
    }
    match element {
        ElementType::U8 => Value::Integer(u8::from_le_bytes(le(raw)).into()),
        ElementType::I8 => Value::Integer(i8::from_le_bytes(le(raw)).into()),
        ElementType::U16 => Value::Integer(u16::from_le_bytes(le(raw)).into()),
        ElementType::I16 => Value::Integer(i16::from_le_bytes(le(raw)).into()),
        ElementType::U32 => Value::Integer(u32::from_le_bytes(le(raw)).into()),
        ElementType::I32 => Value::Integer(i32::from_le_bytes(le(raw)).into()),
        ElementType::U64 => Value::Integer(u64::from_le_bytes(le(raw)).into()),
        ElementType::I64 => Value::Integer(i64::from_le_bytes(le(raw)).into()),
        ElementType::F32 => Value::Float(f32::from_le_bytes(le(raw)).into()),
        ElementType::F64 => Value::Float(f64::from_le_bytes(le(raw))),
        ElementType::Bool => Value::Bool(raw.first().is_some_and(|&byte| byte != 0)),
        ElementType::String => Value::String(raw),
    }
}

fn wrong(key: &str, what: &str) -> ModelFileError {
    ModelFileError::Metadata {
        key: key.to_owned(),
        what: what.to_owned(),
    }
}
