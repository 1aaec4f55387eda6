//! Writes OpenVINO's intermediate representation, version 11: layers and the edges between their ports.

use std::fmt::Write;

/// Element types, by the names of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F16,
    I64,
    I32,
    I8,
    I4,
}

impl Element {
    fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::I64 => "i64",
            Element::I32 => "i32",
            Element::I8 => "i8",
            Element::I4 => "i4",
        }
    }

    fn precision(self) -> &'static str {
        match self {
            Element::F32 => "FP32",
            Element::F16 => "FP16",
            Element::I64 => "I64",
            Element::I32 => "I32",
            Element::I8 => "I8",
            Element::I4 => "I4",
        }
    }
}

/// A layer's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Port {
    layer: usize,
    port: usize,
}

/// A model under construction. The shapes of all but inputs and constants are left to the reader, who infers them.
#[derive(Debug, Default)]
pub(super) struct Ir {
    layers: String,
    edges: String,
    count: usize,
}

impl Ir {
    /// The file's text.
    pub(super) fn finish(self, name: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<net name=\"{}\" version=\"11\">\n<layers>\n{}</layers>\n<edges>\n{}</edges>\n</net>\n",
            escaped(name),
            self.layers,
            self.edges
        )
    }

    /// An input of any size in each of `rank` dimensions.
    pub(super) fn parameter(&mut self, name: &str, element: Element, rank: usize) -> Port {
        let shape = vec!["?"; rank].join(",");
        let dimensions = "<dim>-1</dim>".repeat(rank);
        let (kind, precision) = (element.name(), element.precision());
        let id = self.next();
        let _ = writeln!(
            self.layers,
            "<layer id=\"{id}\" name=\"{name}\" type=\"Parameter\" version=\"opset1\"><data shape=\"{shape}\" element_type=\"{kind}\"/><output><port id=\"0\" precision=\"{precision}\" names=\"{name}\">{dimensions}</port></output></layer>"
        );
        Port { layer: id, port: 0 }
    }

    /// A constant at `offset` of the data file.
    pub(super) fn constant(
        &mut self,
        element: Element,
        shape: &[usize],
        offset: u64,
        length: u64,
    ) -> Port {
        let id = self.next();
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        let dimensions: String = sizes
            .iter()
            .map(|size| format!("<dim>{size}</dim>"))
            .collect();
        let (kind, precision) = (element.name(), element.precision());
        let _ = writeln!(
            self.layers,
            "<layer id=\"{id}\" name=\"constant.{id}\" type=\"Const\" version=\"opset1\"><data element_type=\"{kind}\" shape=\"{}\" offset=\"{offset}\" size=\"{length}\"/><output><port id=\"0\" precision=\"{precision}\">{dimensions}</port></output></layer>",
            sizes.join(", ")
        );
        Port { layer: id, port: 0 }
    }

    /// An operation of one output.
    pub(super) fn layer(
        &mut self,
        operation: &str,
        opset: &str,
        attributes: &[(&str, &str)],
        inputs: &[Port],
    ) -> Port {
        let id = self.open(operation, opset, attributes, inputs, None);
        let port = inputs.len();
        let _ = writeln!(
            self.layers,
            "<output><port id=\"{port}\" precision=\"UNSPECIFIED\"/></output></layer>"
        );
        Port { layer: id, port }
    }

    /// An operation whose output is called `name`.
    pub(super) fn named(
        &mut self,
        name: &str,
        operation: &str,
        opset: &str,
        attributes: &[(&str, &str)],
        inputs: &[Port],
    ) -> Port {
        let id = self.open(operation, opset, attributes, inputs, Some(name));
        let port = inputs.len();
        let _ = writeln!(
            self.layers,
            "<output><port id=\"{port}\" precision=\"FP32\" names=\"{name}\"/></output></layer>"
        );
        Port { layer: id, port }
    }

    /// An operation without output: a result, or the assignment of a variable.
    pub(super) fn sink(
        &mut self,
        operation: &str,
        opset: &str,
        attributes: &[(&str, &str)],
        input: Port,
    ) {
        self.open(operation, opset, attributes, &[input], None);
        self.layers.push_str("</layer>\n");
    }

    fn open(
        &mut self,
        operation: &str,
        opset: &str,
        attributes: &[(&str, &str)],
        inputs: &[Port],
        name: Option<&str>,
    ) -> usize {
        let id = self.next();
        let own = format!("{operation}.{id}");
        let name = name.unwrap_or(&own);
        let _ = write!(
            self.layers,
            "<layer id=\"{id}\" name=\"{name}\" type=\"{operation}\" version=\"{opset}\">"
        );
        if !attributes.is_empty() {
            self.layers.push_str("<data");
            for (key, value) in attributes {
                let _ = write!(self.layers, " {key}=\"{value}\"");
            }
            self.layers.push_str("/>");
        }
        self.layers.push_str("<input>");
        for (to, from) in inputs.iter().enumerate() {
            let _ = write!(self.layers, "<port id=\"{to}\"/>");
            let _ = writeln!(
                self.edges,
                "<edge from-layer=\"{}\" from-port=\"{}\" to-layer=\"{id}\" to-port=\"{to}\"/>",
                from.layer, from.port
            );
        }
        self.layers.push_str("</input>");
        id
    }

    fn next(&mut self) -> usize {
        self.count += 1;
        self.count - 1
    }
}

fn escaped(text: &str) -> String {
    text.chars()
        .filter(|letter| letter.is_alphanumeric() || "-_. ".contains(*letter))
        .collect()
}
