//! The operations of a decoder as ONNX nodes.
//!
//! Long, since there is one method for each operation of `decoder::Graph`, all on the same builder.

use std::collections::{BTreeMap, HashMap, HashSet};

use ondine_runtime::gguf::ModelFileError;
use ondine_runtime::model::{
    Activation, Attention, Linear, ModelSpec, Norm, NormKind, Rope, RopeStyle,
};

use super::super::ExportError;
use super::super::data::{DataFile, Placed};
use super::super::decoder::{Graph, softcap};
use super::super::interface::{Interface, Rotation};
use super::super::weights::{Grid, Loss, ROUNDED, Weights};
use super::proto::{self, Attribute, Dimension, Element, Message};
use super::{DATA_FILE, Shape};

/// Domain of ONNX Runtime's own operations.
const MICROSOFT: &str = "com.microsoft";

/// `MatMulNBits` computes with its input as it is. Rounding it to bytes, as the CPU backend does, would add to that
/// backend's own rounding and not repeat it: codes near a tie fall the other way after a few layers.
const FLOAT_ACTIVATIONS: i64 = 1;

const OPSET: i64 = 21;
const IR_VERSION: i64 = 10;

pub(super) struct OnnxGraph<'a> {
    spec: &'a ModelSpec,
    weights: &'a Weights<'a>,
    interface: &'a Interface,
    rotations: &'a [Rotation],
    data: &'a mut DataFile,
    shape: Shape,
    progress: &'a mut dyn FnMut(usize, usize),
    matrices: usize,
    nodes: Vec<Message>,
    initializers: Vec<Message>,
    declared: HashSet<String>,
    inputs: Vec<Message>,
    outputs: Vec<Message>,
    /// Sums of blocks, by value and block length.
    sums: HashMap<(String, usize), String>,
    losses: BTreeMap<String, Loss>,
    counter: usize,
}

/// A value of shape [1, tokens, width].
#[derive(Debug, Clone)]
pub(super) struct Value {
    name: String,
    width: usize,
}

impl<'a> OnnxGraph<'a> {
    pub(super) fn new(
        spec: &'a ModelSpec,
        weights: &'a Weights<'a>,
        interface: &'a Interface,
        rotations: &'a [Rotation],
        data: &'a mut DataFile,
        shape: Shape,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Self {
        let mut graph = OnnxGraph {
            spec,
            weights,
            interface,
            rotations,
            data,
            shape,
            progress,
            matrices: 0,
            nodes: Vec::new(),
            initializers: Vec::new(),
            declared: HashSet::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            sums: HashMap::new(),
            losses: BTreeMap::new(),
            counter: 0,
        };
        graph.declare_inputs();
        graph
    }

    /// The encoded model, and the loss of each matrix that was rounded.
    pub(super) fn finish(self) -> (Vec<u8>, BTreeMap<String, Loss>) {
        let mut graph = Message::default();
        for node in &self.nodes {
            graph.message(1, node);
        }
        graph.bytes(2, self.spec.architecture.as_bytes());
        for initializer in &self.initializers {
            graph.message(5, initializer);
        }
        for input in &self.inputs {
            graph.message(11, input);
        }
        for output in &self.outputs {
            graph.message(12, output);
        }
        let mut model = Message::default();
        model.integer(1, IR_VERSION);
        model.bytes(2, b"ondine");
        model.bytes(3, env!("CARGO_PKG_VERSION").as_bytes());
        model.message(7, &graph);
        for (domain, version) in [("", OPSET), (MICROSOFT, 1)] {
            let mut opset = Message::default();
            opset.bytes(1, domain.as_bytes());
            opset.integer(2, version);
            model.message(8, &opset);
        }
        (model.into_bytes(), self.losses)
    }

    fn declare_inputs(&mut self) {
        let tokens = self.tokens_dimension();
        let one = Dimension::Fixed(1);
        self.input("input_ids", Element::I64, &[one.clone(), tokens.clone()]);
        let wanted = match self.shape {
            Shape::Fused { .. } => Dimension::Named("wanted"),
            Shape::Fixed { .. } => one.clone(),
        };
        self.input("wanted", Element::I64, &[wanted]);
        match self.shape {
            Shape::Fused { .. } => {
                self.input("position_ids", Element::I64, &[one.clone(), tokens]);
                self.input("last_key", Element::I32, &[one]);
                self.input("keys", Element::I32, &[]);
            }
            Shape::Fixed {
                tokens: count,
                context,
            } => {
                if self.spec.position_embedding.is_some() {
                    self.input("position_ids", Element::I64, &[one.clone(), tokens.clone()]);
                }
                for (index, rope) in self.interface.ropes.iter().enumerate() {
                    let pairs = Dimension::Fixed(rope.dimensions / 2);
                    for kind in ["cosines", "sines"] {
                        let shape = [one.clone(), one.clone(), tokens.clone(), pairs.clone()];
                        let info =
                            proto::value_info(&format!("{kind}.{index}"), Element::F32, &shape);
                        self.inputs.push(info);
                    }
                }
                for (index, mask) in self.interface.masks.iter().enumerate() {
                    let shape = [1, mask.heads(), mask.group * count, context + count];
                    self.input(&format!("mask.{index}"), Element::F32, &fixed(&shape));
                }
            }
        }
    }

    fn tokens_dimension(&self) -> Dimension {
        match self.shape {
            Shape::Fused { .. } => Dimension::Named("tokens"),
            Shape::Fixed { tokens, .. } => Dimension::Fixed(tokens),
        }
    }

    /// The number of tokens in a shape that `Reshape` is given.
    fn tokens_in_shape(&self) -> i64 {
        match self.shape {
            Shape::Fused { .. } => -1,
            Shape::Fixed { tokens, .. } => tokens as i64,
        }
    }

    fn input(&mut self, name: &str, element: Element, shape: &[Dimension]) {
        self.inputs.push(proto::value_info(name, element, shape));
    }

    fn output(&mut self, name: &str, element: Element, shape: &[Dimension]) {
        self.outputs.push(proto::value_info(name, element, shape));
    }

    fn fresh(&mut self, operation: &str) -> String {
        self.counter += 1;
        format!("{operation}.{}", self.counter)
    }

    /// Adds a node of one output.
    fn node(
        &mut self,
        operation: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        self.node_of("", operation, inputs, attributes)
    }

    fn node_of(
        &mut self,
        domain: &str,
        operation: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        let name = self.fresh(operation);
        self.nodes.push(proto::node(
            operation,
            domain,
            &name,
            inputs,
            &[&name],
            attributes,
        ));
        name
    }

    /// A small constant, kept in the graph's file.
    fn floats(&mut self, floats: &[f32], shape: &[usize]) -> String {
        let bits: Vec<String> = floats
            .iter()
            .map(|float| format!("{:x}", float.to_bits()))
            .collect();
        let name = format!("floats.{}.{shape:?}", bits.join("."));
        if self.declared.insert(name.clone()) {
            let raw: Vec<u8> = floats
                .iter()
                .flat_map(|float| float.to_le_bytes())
                .collect();
            let tensor = proto::tensor(&name, Element::F32, shape, &raw);
            self.initializers.push(tensor);
        }
        name
    }

    fn integers(&mut self, integers: &[i64]) -> String {
        let name = format!("integers.{integers:?}");
        if self.declared.insert(name.clone()) {
            let raw: Vec<u8> = integers.iter().flat_map(|int| int.to_le_bytes()).collect();
            let tensor = proto::tensor(&name, Element::I64, &[integers.len()], &raw);
            self.initializers.push(tensor);
        }
        name
    }

    /// Declares what was written to the data file.
    fn external(&mut self, name: &str, element: Element, shape: &[usize], placed: Placed) {
        if self.declared.insert(name.to_owned()) {
            self.initializers.push(proto::external_tensor(
                name,
                element,
                shape,
                DATA_FILE,
                placed.offset,
                placed.length,
            ));
        }
    }

    /// A float tensor in the data file.
    fn data_floats(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl FnOnce() -> Result<Vec<f32>, ExportError>,
    ) -> Result<(), ExportError> {
        let placed = match self.data.placed(name) {
            Some(placed) => placed,
            None => self.data.floats(name, &make()?)?,
        };
        self.external(name, Element::F32, shape, placed);
        Ok(())
    }

    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.integers(shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.node(
            "Transpose",
            &[x],
            &[("perm", Attribute::Ints(order.to_vec()))],
        )
    }

    /// Writes a matrix's codes, scales and offsets, once per export.
    fn place_matrix(&mut self, matrix: &Linear, packed: Grid) -> Result<Placement, ExportError> {
        self.matrices += 1;
        (self.progress)(self.matrices, matrix_count(self.spec));
        let placement = Placement {
            codes: matrix_key(matrix, &format!("codes{}", packed.bits)),
            scales: matrix_key(matrix, "scales"),
            offsets: packed.offsets.then(|| matrix_key(matrix, "offsets")),
        };
        if self.data.placed(&placement.codes).is_some() {
            return Ok(placement);
        }
        let (rows, blocks) = (matrix.rows, matrix.columns / packed.block);
        let mut scales = Vec::with_capacity(rows * blocks);
        let mut offsets = Vec::new();
        let begin = self.data.begin()?;
        let data = &mut *self.data;
        let mut bytes = Vec::new();
        let loss = self
            .weights
            .grid_rows::<ExportError>(matrix, packed, |rows| {
                scales.extend_from_slice(&rows.scales);
                offsets.extend_from_slice(&rows.offsets);
                match packed.bits {
                    8 => data.write(&rows.codes),
                    _ => {
                        bytes.clear();
                        let pairs = rows.codes.chunks_exact(2);
                        bytes.extend(pairs.map(|pair| pair[0] | pair[1] << 4));
                        data.write(&bytes)
                    }
                }
            })?;
        self.data.end(&placement.codes, begin);
        if loss.squared_error > 0.0 {
            self.losses.insert(matrix_key(matrix, "weights"), loss);
        }
        if self.data.placed(&placement.scales).is_none() {
            self.data.floats(&placement.scales, &scales)?;
            if let Some(name) = &placement.offsets {
                // Multiplied from the right with the sums of the input's blocks.
                self.data
                    .floats(name, &transposed(&offsets, rows, blocks))?;
            }
        }
        Ok(placement)
    }

    /// `matrix × x` with plain floats, for rows that do not fill blocks.
    fn float_matrix(&mut self, x: &Value, matrix: &Linear) -> Result<Value, ExportError> {
        let name = matrix_key(matrix, "floats");
        let placed = match self.data.placed(&name) {
            Some(placed) => placed,
            None => {
                let offset = self.data.begin()?;
                let data = &mut *self.data;
                self.weights
                    .float_rows::<ExportError>(matrix, |_, floats| {
                        let raw: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
                        data.write(&raw)
                    })?;
                self.data.end(&name, offset)
            }
        };
        self.external(&name, Element::F32, &[matrix.rows, matrix.columns], placed);
        let flat = self.reshape(&x.name, &[-1, matrix.columns as i64]);
        let product = self.node("Gemm", &[&flat, &name], &[("transB", Attribute::Int(1))]);
        let name = self.reshape(&product, &[1, -1, matrix.rows as i64]);
        Ok(Value {
            name,
            width: matrix.rows,
        })
    }

    /// Sums of the blocks of `x`, [1, tokens, width / block].
    fn block_sums(&mut self, x: &Value, block: usize) -> String {
        let key = (x.name.clone(), block);
        if let Some(sums) = self.sums.get(&key) {
            return sums.clone();
        }
        let blocks = (x.width / block) as i64;
        let shaped = self.reshape(&x.name, &[1, -1, blocks, block as i64]);
        let axis = self.integers(&[-1]);
        let sums = self.node(
            "ReduceSum",
            &[&shaped, &axis],
            &[("keepdims", Attribute::Int(0))],
        );
        self.sums.insert(key, sums.clone());
        sums
    }

    /// Rows of a table by the integers in `indices`, [1, tokens, columns].
    fn lookup(&mut self, indices: &str, table: &Linear) -> Result<Value, ExportError> {
        let grid = self.grid(table)?;
        let Some(grid) = grid.map(Grid::in_bytes) else {
            let name = matrix_key(table, "floats");
            let weights = *self.weights;
            self.data_floats(&name, &[table.rows, table.columns], || {
                let mut all = Vec::new();
                weights.float_rows::<ExportError>(table, |_, floats| {
                    all.extend_from_slice(floats);
                    Ok(())
                })?;
                Ok(all)
            })?;
            let rows = self.node("Gather", &[&name, indices], &[]);
            return Ok(Value {
                name: rows,
                width: table.columns,
            });
        };
        let placement = self.place_matrix(table, grid)?;
        let blocks = table.columns / grid.block;
        let width = table.columns;
        // The same bytes as a matrix's, seen as a table.
        let codes = format!("{}.table", placement.codes);
        self.declare_as(&codes, &placement.codes, Element::U8, &[table.rows, width]);
        let scales = format!("{}.table", placement.scales);
        self.declare_as(
            &scales,
            &placement.scales,
            Element::F32,
            &[table.rows, blocks],
        );
        let codes = self.node("Gather", &[&codes, indices], &[]);
        let codes = self.node("Cast", &[&codes], &[("to", Attribute::Int(1))]);
        let zero = self.floats(&[f32::from(grid.zero_point())], &[]);
        let codes = self.node("Sub", &[&codes, &zero], &[]);
        let blocked = self.reshape(&codes, &[1, -1, blocks as i64, grid.block as i64]);
        let scales = self.node("Gather", &[&scales, indices], &[]);
        let scales = self.reshape(&scales, &[1, -1, blocks as i64, 1]);
        let mut rows = self.node("Mul", &[&blocked, &scales], &[]);
        if let Some(offsets) = &placement.offsets {
            // [blocks, rows], as the matrix product wants it.
            self.declare_as(offsets, offsets, Element::F32, &[blocks, table.rows]);
            let chosen = self.node(
                "Gather",
                &[offsets, indices],
                &[("axis", Attribute::Int(1))],
            );
            let turned = self.transpose(&chosen, &[1, 2, 0]);
            let offsets = self.reshape(&turned, &[1, -1, blocks as i64, 1]);
            rows = self.node("Add", &[&rows, &offsets], &[]);
        }
        let name = self.reshape(&rows, &[1, -1, width as i64]);
        Ok(Value { name, width })
    }

    /// Declares the tensor that was written as `key` under another name and shape.
    fn declare_as(&mut self, name: &str, key: &str, element: Element, shape: &[usize]) {
        if let Some(placed) = self.data.placed(key) {
            self.external(name, element, shape, placed);
        }
    }

    /// The grid of a matrix; none when its rows do not fill blocks.
    fn grid(&self, matrix: &Linear) -> Result<Option<Grid>, ModelFileError> {
        let own = Grid::of(self.weights.tensor_type(matrix)?);
        Ok(own.or_else(|| {
            matrix
                .columns
                .is_multiple_of(ROUNDED.block)
                .then_some(ROUNDED)
        }))
    }

    /// Keys and values of a layer as inputs and outputs; returns the input's and the output's name.
    fn cache(&mut self, index: usize, kind: &str, heads: usize, width: usize) -> (String, String) {
        let (past, new) = (
            format!("past.{index}.{kind}"),
            format!("new.{index}.{kind}"),
        );
        let [one, heads, width] = [1, heads, width].map(Dimension::Fixed);
        let (held, given) = match self.shape {
            Shape::Fused { .. } => (Dimension::Named("capacity"), Dimension::Named("capacity")),
            Shape::Fixed { tokens, context } => {
                (Dimension::Fixed(context), Dimension::Fixed(tokens))
            }
        };
        let shape = |length| [one.clone(), heads.clone(), length, width.clone()];
        self.input(&past, Element::F32, &shape(held));
        self.output(&new, Element::F32, &shape(given));
        (past, new)
    }

    fn fused_attention(
        &mut self,
        index: usize,
        attention: &Attention,
        [query, key, value]: [Value; 3],
        context: usize,
    ) -> Result<Value, ExportError> {
        let mut rotated = [query.name, key.name];
        if let Some(rope) = self.interface.rope_of_layer[index] {
            let spec = self.interface.ropes[rope].clone();
            let (cosines, sines) = self.rotation_tables(rope, context)?;
            for (x, heads) in rotated
                .iter_mut()
                .zip([attention.heads, attention.kv_heads])
            {
                let mut attributes = vec![
                    (
                        "interleaved",
                        Attribute::Int(i64::from(spec.style == RopeStyle::Adjacent)),
                    ),
                    ("num_heads", Attribute::Int(heads as i64)),
                ];
                if spec.dimensions != attention.key_dim {
                    let dimensions = Attribute::Int(spec.dimensions as i64);
                    attributes.push(("rotary_embedding_dim", dimensions));
                }
                let inputs = [x.as_str(), "position_ids", &cosines, &sines];
                *x = self.node_of(MICROSOFT, "RotaryEmbedding", &inputs, &attributes);
            }
        }
        let [query, key] = rotated;
        let (heads, dim) = (attention.kv_heads, attention.key_dim);
        let (past_key, new_key) = self.cache(index, "key", heads, dim);
        let (past_value, new_value) = self.cache(index, "value", heads, dim);
        let mut attributes = vec![
            ("num_heads", Attribute::Int(attention.heads as i64)),
            ("kv_num_heads", Attribute::Int(heads as i64)),
            ("scale", Attribute::Float(attention.scale)),
        ];
        if let Some(cap) = attention.softcap {
            attributes.push(("softcap", Attribute::Float(cap)));
        }
        if let Some(window) = attention.window {
            attributes.push(("local_window_size", Attribute::Int(window as i64)));
        }
        let name = self.fresh("GroupQueryAttention");
        self.nodes.push(proto::node(
            "GroupQueryAttention",
            MICROSOFT,
            &name,
            &[
                &query,
                &key,
                &value.name,
                &past_key,
                &past_value,
                "last_key",
                "keys",
            ],
            &[&name, &new_key, &new_value],
            &attributes,
        ));
        Ok(Value {
            name,
            width: attention.heads * attention.value_dim,
        })
    }

    /// Cosines and sines of all positions, [context, pairs].
    fn rotation_tables(
        &mut self,
        rope: usize,
        context: usize,
    ) -> Result<(String, String), ExportError> {
        let rotation = &self.rotations[rope];
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        let names = (format!("cosines.{rope}"), format!("sines.{rope}"));
        if self.data.placed(&names.0).is_none() {
            for position in 0..context {
                rotation.angles(position, &mut cosines, &mut sines);
            }
        }
        let shape = [context, rotation.frequencies.len()];
        self.data_floats(&names.0, &shape, || Ok(cosines))?;
        self.data_floats(&names.1, &shape, || Ok(sines))?;
        Ok(names)
    }

    fn fixed_attention(
        &mut self,
        index: usize,
        attention: &Attention,
        [query, key, value]: [Value; 3],
    ) -> Value {
        let (heads, kv_heads) = (attention.heads as i64, attention.kv_heads as i64);
        let (key_dim, value_dim) = (attention.key_dim, attention.value_dim);
        let tokens = self.tokens_in_shape();
        let mut query = self.split_heads(&query.name, attention.heads, key_dim);
        let mut key = self.split_heads(&key.name, attention.kv_heads, key_dim);
        let value = self.split_heads(&value.name, attention.kv_heads, value_dim);
        if let Some(rope) = self.interface.rope_of_layer[index] {
            let spec = self.interface.ropes[rope].clone();
            query = self.rotate(&query, attention.heads, key_dim, rope, &spec);
            key = self.rotate(&key, attention.kv_heads, key_dim, rope, &spec);
        }
        let (past_key, new_key) = self.cache(index, "key", attention.kv_heads, key_dim);
        let (past_value, new_value) = self.cache(index, "value", attention.kv_heads, value_dim);
        for (from, to) in [(&key, &new_key), (&value, &new_value)] {
            let name = self.fresh("Identity");
            let node = proto::node("Identity", "", &name, &[from], &[to], &[]);
            self.nodes.push(node);
        }
        let axis = [("axis", Attribute::Int(2))];
        let keys = self.node("Concat", &[&past_key, &key], &axis);
        let values = self.node("Concat", &[&past_value, &value], &axis);
        // Query heads that share a key head are rows of one product.
        let group = heads / kv_heads;
        let grouped = self.reshape(&query, &[1, kv_heads, group * tokens, key_dim as i64]);
        let turned = self.transpose(&keys, &[0, 1, 3, 2]);
        let scores = self.node("MatMul", &[&grouped, &turned], &[]);
        let mut scores = Value {
            name: scores,
            width: 0,
        };
        scores = self.scale(&scores, attention.scale);
        if let Some(cap) = attention.softcap {
            scores = softcap(self, &scores, cap);
        }
        let mask = format!("mask.{}", self.interface.mask_of_layer[index]);
        let scores = self.node("Add", &[&scores.name, &mask], &[]);
        let shares = self.node("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
        let mixed = self.node("MatMul", &[&shares, &values], &[]);
        let by_head = self.reshape(&mixed, &[1, heads, tokens, value_dim as i64]);
        let by_token = self.transpose(&by_head, &[0, 2, 1, 3]);
        let width = attention.heads * value_dim;
        let name = self.reshape(&by_token, &[1, tokens, width as i64]);
        Value { name, width }
    }

    /// [1, heads, tokens, size]
    fn split_heads(&mut self, x: &str, heads: usize, size: usize) -> String {
        let tokens = self.tokens_in_shape();
        let shaped = self.reshape(x, &[1, tokens, heads as i64, size as i64]);
        self.transpose(&shaped, &[0, 2, 1, 3])
    }

    /// Rotates heads, [1, heads, tokens, size].
    fn rotate(&mut self, x: &str, heads: usize, size: usize, index: usize, rope: &Rope) -> String {
        let (cosines, sines) = (format!("cosines.{index}"), format!("sines.{index}"));
        let (dimensions, pairs) = (rope.dimensions, rope.dimensions / 2);
        let tokens = self.tokens_in_shape();
        let (rotated, rest) = match dimensions < size {
            true => {
                let parts = self.split(x, &[dimensions as i64, (size - dimensions) as i64], 3);
                (parts.0, Some(parts.1))
            }
            false => (x.to_owned(), None),
        };
        let adjacent = rope.style == RopeStyle::Adjacent;
        let (first, second) = if adjacent {
            let shape = [1, heads as i64, tokens, pairs as i64, 2];
            let paired = self.reshape(&rotated, &shape);
            let (first, second) = self.split(&paired, &[1, 1], 4);
            let shape = &shape[..4];
            (self.reshape(&first, shape), self.reshape(&second, shape))
        } else {
            self.split(&rotated, &[pairs as i64, pairs as i64], 3)
        };
        let product = |graph: &mut Self, a: &str, b: &str| graph.node("Mul", &[a, b], &[]);
        let (a, b) = (
            product(self, &first, &cosines),
            product(self, &second, &sines),
        );
        let turned_first = self.node("Sub", &[&a, &b], &[]);
        let (a, b) = (
            product(self, &second, &cosines),
            product(self, &first, &sines),
        );
        let turned_second = self.node("Add", &[&a, &b], &[]);
        let mut out = if adjacent {
            let shape = [1, heads as i64, tokens, pairs as i64, 1];
            let first = self.reshape(&turned_first, &shape);
            let second = self.reshape(&turned_second, &shape);
            let paired = self.concat(&[&first, &second], 4);
            self.reshape(&paired, &[1, heads as i64, tokens, dimensions as i64])
        } else {
            self.concat(&[&turned_first, &turned_second], 3)
        };
        if let Some(rest) = rest {
            out = self.concat(&[&out, &rest], 3);
        }
        out
    }

    fn concat(&mut self, parts: &[&str], axis: i64) -> String {
        self.node("Concat", parts, &[("axis", Attribute::Int(axis))])
    }

    fn split(&mut self, x: &str, sizes: &[i64], axis: i64) -> (String, String) {
        let sizes = self.integers(sizes);
        let (first, second) = (self.fresh("Split"), self.fresh("Split"));
        self.nodes.push(proto::node(
            "Split",
            "",
            &first,
            &[x, &sizes],
            &[&first, &second],
            &[("axis", Attribute::Int(axis))],
        ));
        (first, second)
    }
}

impl Graph for OnnxGraph<'_> {
    type Value = Value;

    fn embedding(&mut self, table: &Linear) -> Result<Value, ExportError> {
        self.lookup("input_ids", table)
    }

    fn positions(&mut self, table: &Linear) -> Result<Value, ExportError> {
        self.lookup("position_ids", table)
    }

    fn matrix(&mut self, x: &Value, matrix: &Linear) -> Result<Value, ExportError> {
        let Some(grid) = self.grid(matrix)? else {
            return self.float_matrix(x, matrix);
        };
        let placement = self.place_matrix(matrix, grid)?;
        let blocks = matrix.columns / grid.block;
        let block_bytes = grid.block * grid.bits / 8;
        let shape = [matrix.rows, blocks, block_bytes];
        self.declare_as(&placement.codes, &placement.codes, Element::U8, &shape);
        let shape = [matrix.rows, blocks];
        self.declare_as(&placement.scales, &placement.scales, Element::F32, &shape);
        let mut name = self.node_of(
            MICROSOFT,
            "MatMulNBits",
            &[&x.name, &placement.codes, &placement.scales],
            &[
                ("K", Attribute::Int(matrix.columns as i64)),
                ("N", Attribute::Int(matrix.rows as i64)),
                ("bits", Attribute::Int(grid.bits as i64)),
                ("block_size", Attribute::Int(grid.block as i64)),
                ("accuracy_level", Attribute::Int(FLOAT_ACTIVATIONS)),
            ],
        );
        if let Some(offsets) = &placement.offsets {
            self.declare_as(offsets, offsets, Element::F32, &[blocks, matrix.rows]);
            let sums = self.block_sums(x, grid.block);
            let rest = self.node("MatMul", &[&sums, offsets], &[]);
            name = self.node("Add", &[&name, &rest], &[]);
        }
        Ok(Value {
            name,
            width: matrix.rows,
        })
    }

    fn vector(&mut self, tensor: &str, first: usize, length: usize) -> Result<Value, ExportError> {
        let name = format!("{tensor}[{first}..{}]", first + length);
        let weights = *self.weights;
        self.data_floats(&name, &[length], || {
            Ok(weights.vector(tensor, first..first + length)?)
        })?;
        Ok(Value {
            name,
            width: length,
        })
    }

    fn normalised(
        &mut self,
        x: &Value,
        norm: &Norm,
        weight: &Value,
        heads: usize,
    ) -> Result<Value, ExportError> {
        let shaped = match heads {
            1 => x.name.clone(),
            _ => self.reshape(&x.name, &[1, -1, heads as i64, norm.length as i64]),
        };
        let mut name = match norm.kind {
            NormKind::RootMeanSquare => {
                let two = self.floats(&[2.0], &[]);
                let squares = self.node("Pow", &[&shaped, &two], &[]);
                let axis = self.integers(&[-1]);
                let keep = [("keepdims", Attribute::Int(1))];
                let mean = self.node("ReduceMean", &[&squares, &axis], &keep);
                let epsilon = self.floats(&[norm.epsilon], &[]);
                let sum = self.node("Add", &[&mean, &epsilon], &[]);
                let root = self.node("Sqrt", &[&sum], &[]);
                let unit = self.node("Div", &[&shaped, &root], &[]);
                self.node("Mul", &[&unit, &weight.name], &[])
            }
            NormKind::MeanAndVariance => self.node(
                "LayerNormalization",
                &[&shaped, &weight.name],
                &[
                    ("axis", Attribute::Int(-1)),
                    ("epsilon", Attribute::Float(norm.epsilon)),
                ],
            ),
        };
        if heads != 1 {
            name = self.reshape(&name, &[1, -1, x.width as i64]);
        }
        Ok(Value {
            name,
            width: x.width,
        })
    }

    fn attention(
        &mut self,
        index: usize,
        attention: &Attention,
        query: Value,
        key: Value,
        value: Value,
    ) -> Result<Value, ExportError> {
        match self.shape {
            Shape::Fused { context } => {
                self.fused_attention(index, attention, [query, key, value], context)
            }
            Shape::Fixed { .. } => Ok(self.fixed_attention(index, attention, [query, key, value])),
        }
    }

    fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Add", a, b)
    }

    fn multiply(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Mul", a, b)
    }

    fn scale(&mut self, x: &Value, factor: f32) -> Value {
        let factor = self.floats(&[factor], &[]);
        let name = self.node("Mul", &[&x.name, &factor], &[]);
        Value {
            name,
            width: x.width,
        }
    }

    fn clamp(&mut self, x: &Value, limit: f32) -> Value {
        let (low, high) = (self.floats(&[-limit], &[]), self.floats(&[limit], &[]));
        let name = self.node("Clip", &[&x.name, &low, &high], &[]);
        Value {
            name,
            width: x.width,
        }
    }

    fn tanh(&mut self, x: &Value) -> Value {
        let name = self.node("Tanh", &[&x.name], &[]);
        Value {
            name,
            width: x.width,
        }
    }

    fn activation(&mut self, x: &Value, activation: Activation) -> Value {
        let name = match activation {
            Activation::Silu => {
                let gate = self.node("Sigmoid", &[&x.name], &[]);
                self.node("Mul", &[&x.name, &gate], &[])
            }
            Activation::GeluTanh => self.node(
                "Gelu",
                &[&x.name],
                &[("approximate", Attribute::Text("tanh".into()))],
            ),
        };
        Value {
            name,
            width: x.width,
        }
    }

    fn wanted(&mut self, x: &Value) -> Result<Value, ExportError> {
        let name = self.node(
            "Gather",
            &[&x.name, "wanted"],
            &[("axis", Attribute::Int(1))],
        );
        Ok(Value {
            name,
            width: x.width,
        })
    }

    fn logits(&mut self, x: &Value) -> Result<(), ExportError> {
        let name = self.fresh("Identity");
        self.nodes.push(proto::node(
            "Identity",
            "",
            &name,
            &[&x.name],
            &["logits"],
            &[],
        ));
        let wanted = match self.shape {
            Shape::Fused { .. } => Dimension::Named("wanted"),
            Shape::Fixed { .. } => Dimension::Fixed(1),
        };
        let shape = [Dimension::Fixed(1), wanted, Dimension::Fixed(x.width)];
        self.output("logits", Element::F32, &shape);
        Ok(())
    }
}

impl OnnxGraph<'_> {
    fn binary(&mut self, operation: &str, a: &Value, b: &Value) -> Value {
        let name = self.node(operation, &[&a.name, &b.name], &[]);
        Value {
            name,
            width: a.width,
        }
    }
}

/// The data file's names of a matrix's parts.
struct Placement {
    codes: String,
    scales: String,
    offsets: Option<String>,
}

fn matrix_key(matrix: &Linear, part: &str) -> String {
    let end = matrix.first_row + matrix.rows;
    format!("{}[{}..{end}].{part}", matrix.weight, matrix.first_row)
}

fn matrix_count(spec: &ModelSpec) -> usize {
    2 + 7 * spec.layers.len()
}

fn fixed(shape: &[usize]) -> Vec<Dimension> {
    shape.iter().map(|&size| Dimension::Fixed(size)).collect()
}

fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (row, x) in x.chunks_exact(columns).enumerate() {
        for (column, &x) in x.iter().enumerate() {
            out[column * rows + row] = x;
        }
    }
    out
}
