//! Writes ONNX files: the few messages of onnx.proto3 that a graph needs, in protobuf's wire format.

/// Element types, by onnx's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32 = 1,
    /// Unsigned bytes.
    U8 = 2,
    /// 32-bit integers.
    I32 = 6,
    /// 64-bit integers.
    I64 = 7,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A text.
    Text(String),
    /// Integers.
    Ints(Vec<i64>),
}

/// A dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dimension {
    /// Known.
    Fixed(usize),
    /// Known by name.
    Named(&'static str),
}

/// A message under construction.
#[derive(Debug, Default, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// The encoded bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds an integer.
    pub fn integer(&mut self, field: u32, value: i64) {
        self.varint(u64::from(field) << 3);
        self.varint(value as u64);
    }

    /// Adds a float.
    pub fn float(&mut self, field: u32, value: f32) {
        self.varint(u64::from(field) << 3 | 5);
        self.bytes.extend(value.to_le_bytes());
    }

    /// Adds a text, bytes or an encoded message.
    pub fn bytes(&mut self, field: u32, value: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    /// Adds a message.
    pub fn message(&mut self, field: u32, value: &Message) {
        self.bytes(field, &value.bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

/// `NodeProto`.
pub fn node(
    operation: &str,
    domain: &str,
    name: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[(&str, Attribute)],
) -> Message {
    let mut node = Message::default();
    for input in inputs {
        node.bytes(1, input.as_bytes());
    }
    for output in outputs {
        node.bytes(2, output.as_bytes());
    }
    node.bytes(3, name.as_bytes());
    node.bytes(4, operation.as_bytes());
    for (name, value) in attributes {
        let mut attribute = Message::default();
        attribute.bytes(1, name.as_bytes());
        let kind = match value {
            Attribute::Float(value) => {
                attribute.float(2, *value);
                1
            }
            Attribute::Int(value) => {
                attribute.integer(3, *value);
                2
            }
            Attribute::Text(value) => {
                attribute.bytes(4, value.as_bytes());
                3
            }
            Attribute::Ints(values) => {
                for value in values {
                    attribute.integer(8, *value);
                }
                7
            }
        };
        attribute.integer(20, kind);
        node.message(5, &attribute);
    }
    if !domain.is_empty() {
        node.bytes(7, domain.as_bytes());
    }
    node
}

/// `ValueInfoProto` of an input or output.
pub fn value_info(name: &str, element: Element, shape: &[Dimension]) -> Message {
    let mut dimensions = Message::default();
    for dimension in shape {
        let mut encoded = Message::default();
        match dimension {
            Dimension::Fixed(size) => encoded.integer(1, *size as i64),
            Dimension::Named(name) => encoded.bytes(2, name.as_bytes()),
        }
        dimensions.message(1, &encoded);
    }
    let mut tensor = Message::default();
    tensor.integer(1, element as i64);
    tensor.message(2, &dimensions);
    let mut kind = Message::default();
    kind.message(1, &tensor);
    let mut info = Message::default();
    info.bytes(1, name.as_bytes());
    info.message(2, &kind);
    info
}

/// `TensorProto` with its data inside.
pub fn tensor(name: &str, element: Element, shape: &[usize], raw: &[u8]) -> Message {
    let mut tensor = tensor_header(name, element, shape);
    tensor.bytes(9, raw);
    tensor
}

/// `TensorProto` whose data lies in another file.
pub fn external_tensor(
    name: &str,
    element: Element,
    shape: &[usize],
    file: &str,
    offset: u64,
    length: u64,
) -> Message {
    let mut tensor = tensor_header(name, element, shape);
    for (key, value) in [
        ("location", file.to_owned()),
        ("offset", offset.to_string()),
        ("length", length.to_string()),
    ] {
        let mut entry = Message::default();
        entry.bytes(1, key.as_bytes());
        entry.bytes(2, value.as_bytes());
        tensor.message(13, &entry);
    }
    tensor.integer(14, 1);
    tensor
}

fn tensor_header(name: &str, element: Element, shape: &[usize]) -> Message {
    let mut tensor = Message::default();
    for size in shape {
        tensor.integer(1, *size as i64);
    }
    tensor.integer(2, element as i64);
    tensor.bytes(8, name.as_bytes());
    tensor
}
