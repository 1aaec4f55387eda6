//! The operations of a decoder as layers of OpenVINO's opsets.
//!
//! Long, since there is one method for each operation of `decoder::Graph`, all on the same builder.

use std::collections::{BTreeMap, HashMap};

use ondine_kernels::ops::alibi_slopes;
use ondine_runtime::model::{
    Activation, Attention, Linear, ModelSpec, Norm, NormKind, Rope, RopeStyle,
};

use super::super::ExportError;
use super::super::data::{DataFile, Placed};
use super::super::decoder::{Graph, softcap};
use super::super::interface::{Interface, MaskKind, Rotation};
use super::super::weights::{Grid, GridRows, Loss, ROUNDED, Weights, round_symmetric};
use super::Form;
use super::ir::{Element, Ir, Port};

/// Elements that share a scale in the int4 form of NPUs.
const NPU_GROUP: usize = 128;

/// What hidden scores are lowered by: the largest of f16.
const HIDDEN: f32 = -65_504.0;

/// `Slice` up to the end.
const TO_THE_END: i64 = i64::MAX;

pub(super) struct IrGraph<'a> {
    spec: &'a ModelSpec,
    weights: &'a Weights<'a>,
    interface: &'a Interface,
    rotations: &'a [Rotation],
    data: &'a mut DataFile,
    form: Form,
    progress: &'a mut dyn FnMut(usize, usize),
    ir: Ir,
    inputs: Inputs,
    constants: HashMap<String, Port>,
    sums: HashMap<(Port, usize), Port>,
    /// Cosines and sines of each rotation, [batch, 1, tokens, dimensions or pairs].
    angles: HashMap<usize, (Port, Port)>,
    masks: HashMap<usize, Port>,
    losses: BTreeMap<String, Loss>,
    matrices: usize,
}

struct Inputs {
    ids: Port,
    mask: Port,
    positions: Port,
    beam: Port,
    wanted: Option<Port>,
    /// [batch], as the shapes of empty caches want it.
    batch: Port,
}

/// A value of shape [batch, tokens, width].
#[derive(Debug, Clone, Copy)]
pub(super) struct Value {
    port: Port,
    width: usize,
}

impl<'a> IrGraph<'a> {
    pub(super) fn new(
        spec: &'a ModelSpec,
        weights: &'a Weights<'a>,
        interface: &'a Interface,
        rotations: &'a [Rotation],
        data: &'a mut DataFile,
        form: Form,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Result<Self, ExportError> {
        let mut ir = Ir::default();
        let ids = ir.parameter("input_ids", Element::I64, 2);
        let mask = ir.parameter("attention_mask", Element::I64, 2);
        let positions = ir.parameter("position_ids", Element::I64, 2);
        let beam = ir.parameter("beam_idx", Element::I32, 1);
        // An NPU's prompt graph cuts its scores by itself.
        let wanted = (form == Form::General).then(|| ir.parameter("wanted", Element::I64, 1));
        let mut graph = IrGraph {
            spec,
            weights,
            interface,
            rotations,
            data,
            form,
            progress,
            ir,
            inputs: Inputs {
                ids,
                mask,
                positions,
                beam,
                wanted,
                batch: ids,
            },
            constants: HashMap::new(),
            sums: HashMap::new(),
            angles: HashMap::new(),
            masks: HashMap::new(),
            losses: BTreeMap::new(),
            matrices: 0,
        };
        let shape = graph.shape_of(ids);
        let (first, axis) = (graph.integers(&[0])?, graph.integer(0)?);
        graph.inputs.batch = graph.gather(shape, first, axis);
        Ok(graph)
    }

    /// The model's text, and the loss of each matrix that was rounded.
    pub(super) fn finish(self) -> Result<(String, BTreeMap<String, Loss>), ExportError> {
        Ok((self.ir.finish(&self.spec.name), self.losses))
    }

    fn shape_of(&mut self, x: Port) -> Port {
        let attributes = [("output_type", "i64")];
        self.ir.layer("ShapeOf", "opset3", &attributes, &[x])
    }

    fn gather(&mut self, x: Port, indices: Port, axis: Port) -> Port {
        let attributes = [("batch_dims", "0")];
        let inputs = [x, indices, axis];
        self.ir.layer("Gather", "opset8", &attributes, &inputs)
    }

    fn binary(&mut self, operation: &str, a: Port, b: Port) -> Port {
        let attributes: &[(&str, &str)] = match operation {
            "Divide" => &[("auto_broadcast", "numpy"), ("m_pythondiv", "true")],
            _ => &[("auto_broadcast", "numpy")],
        };
        self.ir.layer(operation, "opset1", attributes, &[a, b])
    }

    fn convert(&mut self, x: Port, to: &str) -> Port {
        let attributes = [("destination_type", to)];
        self.ir.layer("Convert", "opset1", &attributes, &[x])
    }

    fn reshape(&mut self, x: Port, shape: &[i64]) -> Result<Port, ExportError> {
        let shape = self.integers(shape)?;
        let attributes = [("special_zero", "true")];
        Ok(self.ir.layer("Reshape", "opset1", &attributes, &[x, shape]))
    }

    fn transpose(&mut self, x: Port, order: &[i64]) -> Result<Port, ExportError> {
        let order = self.integers(order)?;
        Ok(self.ir.layer("Transpose", "opset1", &[], &[x, order]))
    }

    fn unsqueeze(&mut self, x: Port, axis: i64) -> Result<Port, ExportError> {
        let axis = self.integers(&[axis])?;
        Ok(self.ir.layer("Unsqueeze", "opset1", &[], &[x, axis]))
    }

    fn concat(&mut self, parts: &[Port], axis: i64) -> Port {
        let axis = axis.to_string();
        self.ir.layer("Concat", "opset1", &[("axis", &axis)], parts)
    }

    fn slice(&mut self, x: Port, from: i64, to: i64, axis: i64) -> Result<Port, ExportError> {
        let inputs = [
            x,
            self.integers(&[from])?,
            self.integers(&[to])?,
            self.integers(&[1])?,
            self.integers(&[axis])?,
        ];
        Ok(self.ir.layer("Slice", "opset8", &[], &inputs))
    }

    fn product(&mut self, a: Port, b: Port, transpose_b: bool) -> Port {
        let transpose_b = if transpose_b { "true" } else { "false" };
        let attributes = [("transpose_a", "false"), ("transpose_b", transpose_b)];
        self.ir.layer("MatMul", "opset1", &attributes, &[a, b])
    }

    fn integers(&mut self, integers: &[i64]) -> Result<Port, ExportError> {
        self.small(Element::I64, &[integers.len()], integers, |x| {
            x.to_le_bytes()
        })
    }

    fn integer(&mut self, integer: i64) -> Result<Port, ExportError> {
        self.small(Element::I64, &[], &[integer], |x| x.to_le_bytes())
    }

    fn float(&mut self, float: f32) -> Result<Port, ExportError> {
        self.small(Element::F32, &[], &[float.to_bits()], |x| x.to_le_bytes())
    }

    fn floats(&mut self, shape: &[usize], floats: &[f32]) -> Result<Port, ExportError> {
        let bits: Vec<u32> = floats.iter().map(|float| float.to_bits()).collect();
        self.small(Element::F32, shape, &bits, |x| x.to_le_bytes())
    }

    /// A small constant, written once.
    fn small<T: std::fmt::Debug + Copy, const N: usize>(
        &mut self,
        element: Element,
        shape: &[usize],
        content: &[T],
        bytes: impl Fn(T) -> [u8; N],
    ) -> Result<Port, ExportError> {
        let key = format!("{element:?} {shape:?} {content:?}");
        if let Some(port) = self.constants.get(&key) {
            return Ok(*port);
        }
        let raw: Vec<u8> = content.iter().flat_map(|&x| bytes(x)).collect();
        let offset = self.data.begin()?;
        self.data.write(&raw)?;
        let placed = self.data.end(&key, offset);
        let port = self
            .ir
            .constant(element, shape, placed.offset, placed.length);
        self.constants.insert(key, port);
        Ok(port)
    }

    /// A constant that lies in the data file.
    fn placed(&mut self, element: Element, shape: &[usize], placed: Placed) -> Port {
        self.ir
            .constant(element, shape, placed.offset, placed.length)
    }

    /// How a matrix is written: bits, group, and whether it is rounded to get there.
    fn layout(&self, matrix: &Linear) -> Result<Option<Layout>, ExportError> {
        let own = Grid::of(self.weights.tensor_type(matrix)?);
        let grid = own.or_else(|| {
            matrix
                .columns
                .is_multiple_of(ROUNDED.block)
                .then_some(ROUNDED)
        });
        Ok(match self.form {
            Form::General => grid.map(|grid| Layout {
                bits: grid.bits,
                group: grid.block,
                own: Some(grid),
            }),
            Form::NpuInt4
                if matrix.columns.is_multiple_of(NPU_GROUP)
                    && own.is_some_and(|grid| grid.bits == 4) =>
            {
                Some(Layout {
                    bits: 4,
                    group: NPU_GROUP,
                    own: None,
                })
            }
            Form::NpuInt4 | Form::NpuInt8 => Some(Layout {
                bits: 8,
                group: matrix.columns,
                own: None,
            }),
        })
    }

    /// Writes a matrix's codes, scales and offsets once.
    fn place(&mut self, matrix: &Linear, layout: Layout) -> Result<Parts, ExportError> {
        let end = matrix.first_row + matrix.rows;
        let key = |part: &str| {
            let first = matrix.first_row;
            format!(
                "{}[{first}..{end}].{part}{}/{}",
                matrix.weight, layout.bits, layout.group
            )
        };
        let (codes, scales, offsets) = (key("codes"), key("scales"), key("offsets"));
        if let (Some(codes), Some(scales)) = (self.data.placed(&codes), self.data.placed(&scales)) {
            let offsets = self.data.placed(&offsets);
            return Ok(Parts {
                codes,
                scales,
                offsets,
            });
        }
        let begin = self.data.begin()?;
        let (mut all_scales, mut all_offsets) = (Vec::new(), Vec::new());
        let mut bytes = Vec::new();
        let data = &mut *self.data;
        let mut write = |rows: &GridRows| -> Result<(), ExportError> {
            all_scales.extend_from_slice(&rows.scales);
            all_offsets.extend_from_slice(&rows.offsets);
            bytes.clear();
            match layout.bits {
                // Signed codes: the zero point's bit is turned over.
                8 => bytes.extend(rows.codes.iter().map(|code| code ^ 0x80)),
                _ => {
                    let pairs = rows.codes.chunks_exact(2);
                    bytes.extend(pairs.map(|pair| (pair[0] ^ 8) | (pair[1] ^ 8) << 4));
                }
            }
            data.write(&bytes)
        };
        let loss = match layout.own {
            Some(grid) => self.weights.grid_rows(matrix, grid, &mut write)?,
            None => {
                let (mut rows, mut loss) = (GridRows::default(), Loss::default());
                self.weights
                    .float_rows::<ExportError>(matrix, |_, floats| {
                        round_symmetric(floats, layout.bits, layout.group, &mut rows, &mut loss);
                        write(&rows)
                    })?;
                loss
            }
        };
        let codes = self.data.end(&codes, begin);
        if loss.squared_error > 0.0 {
            self.losses.insert(
                format!("{}[{}..{end}]", matrix.weight, matrix.first_row),
                loss,
            );
        }
        let scales = match self.form {
            Form::General => self.data.floats(&scales, &all_scales)?,
            _ => {
                let begin = self.data.begin()?;
                let halves = all_scales.iter().map(|&scale| half::f16::from_f32(scale));
                let raw: Vec<u8> = halves.flat_map(|half| half.to_le_bytes()).collect();
                self.data.write(&raw)?;
                self.data.end(&scales, begin)
            }
        };
        let offsets = match all_offsets.is_empty() {
            true => None,
            false => Some(self.data.floats(&offsets, &all_offsets)?),
        };
        Ok(Parts {
            codes,
            scales,
            offsets,
        })
    }

    fn scale_element(&self) -> Element {
        match self.form {
            Form::General => Element::F32,
            _ => Element::F16,
        }
    }

    /// The weights as floats, [rows, columns], in the pattern that the plugins keep compressed.
    fn decompressed(
        &mut self,
        matrix: &Linear,
        layout: Layout,
        parts: &Parts,
    ) -> Result<Port, ExportError> {
        let (rows, groups) = (matrix.rows, matrix.columns / layout.group);
        let by_channel = groups == 1;
        let element = if layout.bits == 4 {
            Element::I4
        } else {
            Element::I8
        };
        let (codes, scales): (Vec<usize>, Vec<usize>) = match by_channel {
            true => (vec![rows, matrix.columns], vec![rows, 1]),
            false => (vec![rows, groups, layout.group], vec![rows, groups, 1]),
        };
        let codes = self.placed(element, &codes, parts.codes);
        let kind = self.scale_element();
        let scales = self.placed(kind, &scales, parts.scales);
        let name = if kind == Element::F16 { "f16" } else { "f32" };
        let codes = self.convert(codes, name);
        let mut weights = self.binary("Multiply", codes, scales);
        if !by_channel {
            weights = self.reshape(weights, &[rows as i64, matrix.columns as i64])?;
        }
        if kind == Element::F16 {
            weights = self.convert(weights, "f32");
        }
        Ok(weights)
    }

    /// Rows of a table by `indices`.
    fn lookup(&mut self, indices: Port, table: &Linear) -> Result<Value, ExportError> {
        let axis = self.integer(0)?;
        let width = table.columns;
        let Some(layout) = self.layout(table)? else {
            let all = self.float_table(table)?;
            let port = self.gather(all, indices, axis);
            return Ok(Value { port, width });
        };
        // Codes of a table are bytes: nothing looks up half a byte.
        let layout = match layout.own {
            Some(grid) => Layout {
                bits: 8,
                group: grid.block,
                own: Some(grid.in_bytes()),
            },
            None => Layout {
                bits: 8,
                group: table.columns,
                own: None,
            },
        };
        let parts = self.place(table, layout)?;
        let groups = table.columns / layout.group;
        let codes = self.placed(Element::I8, &[table.rows, width], parts.codes);
        let kind = self.scale_element();
        let scales = self.placed(kind, &[table.rows, groups], parts.scales);
        let codes = self.gather(codes, indices, axis);
        let codes = self.convert(codes, "f32");
        let scales = self.gather(scales, indices, axis);
        let scales = match kind {
            Element::F16 => self.convert(scales, "f32"),
            _ => scales,
        };
        if groups == 1 {
            let port = self.binary("Multiply", codes, scales);
            return Ok(Value { port, width });
        }
        let codes = self.reshape(codes, &[0, 0, groups as i64, layout.group as i64])?;
        let scales = self.unsqueeze(scales, -1)?;
        let mut rows = self.binary("Multiply", codes, scales);
        if let Some(offsets) = parts.offsets {
            let offsets = self.placed(Element::F32, &[table.rows, groups], offsets);
            let offsets = self.gather(offsets, indices, axis);
            let offsets = self.unsqueeze(offsets, -1)?;
            rows = self.binary("Add", rows, offsets);
        }
        let port = self.reshape(rows, &[0, 0, width as i64])?;
        Ok(Value { port, width })
    }

    /// A matrix that is kept as floats.
    fn float_table(&mut self, table: &Linear) -> Result<Port, ExportError> {
        let end = table.first_row + table.rows;
        let key = format!("{}[{}..{end}].floats", table.weight, table.first_row);
        let placed = match self.data.placed(&key) {
            Some(placed) => placed,
            None => {
                let begin = self.data.begin()?;
                let data = &mut *self.data;
                self.weights.float_rows::<ExportError>(table, |_, floats| {
                    let raw: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
                    data.write(&raw)
                })?;
                self.data.end(&key, begin)
            }
        };
        Ok(self.placed(Element::F32, &[table.rows, table.columns], placed))
    }

    /// Sums of the groups of `x`, [batch, tokens, width / group].
    fn group_sums(&mut self, x: Value, group: usize) -> Result<Port, ExportError> {
        let key = (x.port, group);
        if let Some(sums) = self.sums.get(&key) {
            return Ok(*sums);
        }
        let shaped = self.reshape(x.port, &[0, 0, (x.width / group) as i64, group as i64])?;
        let axis = self.integers(&[-1])?;
        let attributes = [("keep_dims", "false")];
        let sums = self
            .ir
            .layer("ReduceSum", "opset1", &attributes, &[shaped, axis]);
        self.sums.insert(key, sums);
        Ok(sums)
    }

    /// Cosines and sines of a rotation, [batch, 1, tokens, pairs or dimensions].
    fn angles(&mut self, index: usize, rope: &Rope) -> Result<(Port, Port), ExportError> {
        if let Some(angles) = self.angles.get(&index) {
            return Ok(*angles);
        }
        let rotation = &self.rotations[index];
        let pairs = rotation.frequencies.len();
        let frequencies: Vec<f32> = rotation.frequencies.iter().map(|&f| f as f32).collect();
        let magnitude = rotation.magnitude as f32;
        let frequencies = self.floats(&[1, pairs, 1], &frequencies)?;
        let (pairs_size, one) = (self.integers(&[pairs as i64])?, self.integers(&[1])?);
        let shape = self.concat(&[self.inputs.batch, pairs_size, one], 0);
        let attributes = [("mode", "numpy")];
        let frequencies = self
            .ir
            .layer("Broadcast", "opset3", &attributes, &[frequencies, shape]);
        let positions = self.unsqueeze(self.inputs.positions, 1)?;
        let positions = self.convert(positions, "f32");
        let angles = self.product(frequencies, positions, false);
        let mut angles = self.transpose(angles, &[0, 2, 1])?;
        if rope.style == RopeStyle::Halves {
            angles = self.concat(&[angles, angles], -1);
        }
        let mut both = [angles; 2];
        for (out, operation) in both.iter_mut().zip(["Cos", "Sin"]) {
            *out = self.ir.layer(operation, "opset1", &[], &[angles]);
            *out = self.unsqueeze(*out, 1)?;
            if magnitude != 1.0 {
                let factor = self.float(magnitude)?;
                *out = self.binary("Multiply", *out, factor);
            }
        }
        self.angles.insert(index, (both[0], both[1]));
        Ok((both[0], both[1]))
    }

    /// Rotates heads, [batch, heads, tokens, size].
    fn rotate(
        &mut self,
        x: Port,
        heads: usize,
        size: usize,
        index: usize,
    ) -> Result<Port, ExportError> {
        let rope = self.interface.ropes[index].clone();
        let (cosines, sines) = self.angles(index, &rope)?;
        let (dimensions, pairs) = (rope.dimensions as i64, rope.dimensions as i64 / 2);
        let part = match dimensions < size as i64 {
            true => self.slice(x, 0, dimensions, 3)?,
            false => x,
        };
        let rotated = match rope.style {
            RopeStyle::Halves => {
                let first = self.slice(part, 0, pairs, 3)?;
                let second = self.slice(part, pairs, TO_THE_END, 3)?;
                let minus = self.float(-1.0)?;
                let second = self.binary("Multiply", second, minus);
                let turned = self.concat(&[second, first], -1);
                let kept = self.binary("Multiply", part, cosines);
                let turned = self.binary("Multiply", turned, sines);
                self.binary("Add", kept, turned)
            }
            RopeStyle::Adjacent => {
                let paired = self.reshape(part, &[0, heads as i64, -1, pairs, 2])?;
                let first = self.slice(paired, 0, 1, 4)?;
                let second = self.slice(paired, 1, 2, 4)?;
                let (cosines, sines) = (self.unsqueeze(cosines, -1)?, self.unsqueeze(sines, -1)?);
                let a = self.binary("Multiply", first, cosines);
                let b = self.binary("Multiply", second, sines);
                let turned_first = self.binary("Subtract", a, b);
                let a = self.binary("Multiply", second, cosines);
                let b = self.binary("Multiply", first, sines);
                let turned_second = self.binary("Add", a, b);
                let paired = self.concat(&[turned_first, turned_second], -1);
                self.reshape(paired, &[0, heads as i64, -1, dimensions])?
            }
        };
        if dimensions == size as i64 {
            return Ok(rotated);
        }
        let rest = self.slice(x, dimensions, TO_THE_END, 3)?;
        Ok(self.concat(&[rotated, rest], -1))
    }

    /// A cache of keys or values as a variable: what was held, with `new` behind it.
    fn cache(
        &mut self,
        index: usize,
        kind: &str,
        heads: usize,
        size: usize,
        new: Port,
    ) -> Result<Port, ExportError> {
        let name = format!("past_key_values.{index}.{kind}present.{index}.{kind}");
        let empty = self.float(0.0)?;
        let rest = self.integers(&[heads as i64, 0, size as i64])?;
        let shape = self.concat(&[self.inputs.batch, rest], 0);
        let attributes = [("mode", "numpy")];
        let empty = self
            .ir
            .layer("Broadcast", "opset3", &attributes, &[empty, shape]);
        let shape = format!("?,{heads},?,{size}");
        let attributes = [
            ("variable_id", name.as_str()),
            ("variable_type", "f32"),
            ("variable_shape", &shape),
        ];
        let held = self.ir.layer("ReadValue", "opset6", &attributes, &[empty]);
        let axis = self.integer(0)?;
        let held = self.gather(held, self.inputs.beam, axis);
        let all = self.concat(&[held, new], 2);
        self.ir
            .sink("Assign", "opset6", &[("variable_id", &name)], all);
        Ok(all)
    }

    /// Each key head once for every query head that shares it.
    fn repeated(
        &mut self,
        x: Port,
        kv_heads: usize,
        heads: usize,
        size: usize,
    ) -> Result<Port, ExportError> {
        if kv_heads == heads {
            return Ok(x);
        }
        let shape = self.shape_of(x);
        let axis = self.integer(0)?;
        let (front, back) = (self.integers(&[0, 1])?, self.integers(&[2, 3])?);
        let front = self.gather(shape, front, axis);
        let back = self.gather(shape, back, axis);
        let group = self.integers(&[(heads / kv_heads) as i64])?;
        let shape = self.concat(&[front, group, back], 0);
        let single = self.unsqueeze(x, 2)?;
        let attributes = [("mode", "bidirectional")];
        let many = self
            .ir
            .layer("Broadcast", "opset3", &attributes, &[single, shape]);
        self.reshape(many, &[0, heads as i64, -1, size as i64])
    }

    /// What is added to the scores, [1, 1 or heads, tokens, keys].
    fn mask(&mut self, index: usize, kind: &MaskKind) -> Result<Port, ExportError> {
        if let Some(mask) = self.masks.get(&index) {
            return Ok(*mask);
        }
        let axis = self.integer(0)?;
        let second = self.integers(&[1])?;
        let shape = self.shape_of(self.inputs.mask);
        let keys = self.gather(shape, second, axis);
        let shape = self.shape_of(self.inputs.ids);
        let tokens = self.gather(shape, second, axis);
        let past = self.binary("Subtract", keys, tokens);
        let key_at = self.range(keys)?;
        let key_at = self.reshape(key_at, &[1, 1, 1, -1])?;
        let query_at = self.range(tokens)?;
        let query_at = self.binary("Add", query_at, past);
        let query_at = self.reshape(query_at, &[1, 1, -1, 1])?;
        let attributes = [("auto_broadcast", "numpy")];
        let mut seen = self
            .ir
            .layer("LessEqual", "opset1", &attributes, &[key_at, query_at]);
        if let Some(window) = kind.window {
            let window = self.integers(&[window as i64])?;
            let first = self.binary("Subtract", query_at, window);
            let near = self
                .ir
                .layer("Greater", "opset1", &attributes, &[key_at, first]);
            seen = self
                .ir
                .layer("LogicalAnd", "opset1", &attributes, &[seen, near]);
        }
        let given = self.unsqueeze(self.inputs.mask, 1)?;
        let given = self.unsqueeze(given, 1)?;
        let given = self.convert(given, "boolean");
        seen = self
            .ir
            .layer("LogicalAnd", "opset1", &attributes, &[seen, given]);
        let (zero, hidden) = (self.float(0.0)?, self.float(HIDDEN)?);
        let mut mask = self
            .ir
            .layer("Select", "opset1", &attributes, &[seen, zero, hidden]);
        if let Some((kv_heads, largest)) = kind.alibi {
            let slopes = alibi_slopes(kv_heads * kind.group, largest);
            let slopes = self.floats(&[1, slopes.len(), 1, 1], &slopes)?;
            let distance = self.binary("Subtract", key_at, query_at);
            let distance = self.convert(distance, "f32");
            let bias = self.binary("Multiply", distance, slopes);
            mask = self.binary("Add", mask, bias);
        }
        self.masks.insert(index, mask);
        Ok(mask)
    }

    /// 0 to `end` − 1; `end` has one element.
    fn range(&mut self, end: Port) -> Result<Port, ExportError> {
        let axis = self.integers(&[0])?;
        let end = self.ir.layer("Squeeze", "opset1", &[], &[end, axis]);
        let (zero, one) = (self.integer(0)?, self.integer(1)?);
        let attributes = [("output_type", "i64")];
        Ok(self
            .ir
            .layer("Range", "opset4", &attributes, &[zero, end, one]))
    }

    fn heads(&mut self, x: Port, heads: usize, size: usize) -> Result<Port, ExportError> {
        let shaped = self.reshape(x, &[0, 0, heads as i64, size as i64])?;
        self.transpose(shaped, &[0, 2, 1, 3])
    }

    /// The constant of an elementwise operation; the shapes of these cannot fail to be written.
    fn factor(&mut self, factor: f32) -> Port {
        self.float(factor).unwrap_or(self.inputs.batch)
    }

    fn with_width(port: Port, x: &Value) -> Value {
        Value {
            port,
            width: x.width,
        }
    }
}

impl Graph for IrGraph<'_> {
    type Value = Value;

    fn embedding(&mut self, table: &Linear) -> Result<Value, ExportError> {
        self.lookup(self.inputs.ids, table)
    }

    fn positions(&mut self, table: &Linear) -> Result<Value, ExportError> {
        self.lookup(self.inputs.positions, table)
    }

    fn matrix(&mut self, x: &Value, matrix: &Linear) -> Result<Value, ExportError> {
        self.matrices += 1;
        let all = 1 + 7 * self.spec.layers.len();
        (self.progress)(self.matrices.min(all), all);
        let width = matrix.rows;
        let Some(layout) = self.layout(matrix)? else {
            let weights = self.float_table(matrix)?;
            let port = self.product(x.port, weights, true);
            return Ok(Value { port, width });
        };
        let parts = self.place(matrix, layout)?;
        let weights = self.decompressed(matrix, layout, &parts)?;
        let mut port = self.product(x.port, weights, true);
        if let Some(offsets) = parts.offsets {
            let shape = [matrix.rows, matrix.columns / layout.group];
            let offsets = self.placed(Element::F32, &shape, offsets);
            let sums = self.group_sums(*x, layout.group)?;
            let rest = self.product(sums, offsets, true);
            port = self.binary("Add", port, rest);
        }
        Ok(Value { port, width })
    }

    fn vector(&mut self, tensor: &str, first: usize, length: usize) -> Result<Value, ExportError> {
        let floats = self.weights.vector(tensor, first..first + length)?;
        let port = self.floats(&[1, 1, length], &floats)?;
        Ok(Value {
            port,
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
            1 => x.port,
            _ => self.reshape(x.port, &[0, 0, heads as i64, norm.length as i64])?,
        };
        let axis = self.integers(&[-1])?;
        let unit = match norm.kind {
            NormKind::RootMeanSquare => {
                let two = self.float(2.0)?;
                let squares = self.binary("Power", shaped, two);
                let attributes = [("keep_dims", "true")];
                let mean = self
                    .ir
                    .layer("ReduceMean", "opset1", &attributes, &[squares, axis]);
                let epsilon = self.float(norm.epsilon)?;
                let sum = self.binary("Add", mean, epsilon);
                let root = self.ir.layer("Sqrt", "opset1", &[], &[sum]);
                let one = self.float(1.0)?;
                let inverse = self.binary("Divide", one, root);
                self.binary("Multiply", shaped, inverse)
            }
            NormKind::MeanAndVariance => {
                let epsilon = norm.epsilon.to_string();
                let attributes = [
                    ("eps", epsilon.as_str()),
                    ("normalize_variance", "true"),
                    ("eps_mode", "inside_sqrt"),
                ];
                self.ir.layer("MVN", "opset6", &attributes, &[shaped, axis])
            }
        };
        let mut port = self.binary("Multiply", unit, weight.port);
        if heads != 1 {
            port = self.reshape(port, &[0, 0, x.width as i64])?;
        }
        Ok(Self::with_width(port, x))
    }

    fn attention(
        &mut self,
        index: usize,
        attention: &Attention,
        query: Value,
        key: Value,
        value: Value,
    ) -> Result<Value, ExportError> {
        let (heads, kv_heads) = (attention.heads, attention.kv_heads);
        let (key_dim, value_dim) = (attention.key_dim, attention.value_dim);
        let mut query = self.heads(query.port, heads, key_dim)?;
        let mut key = self.heads(key.port, kv_heads, key_dim)?;
        let value = self.heads(value.port, kv_heads, value_dim)?;
        if let Some(rope) = self.interface.rope_of_layer[index] {
            query = self.rotate(query, heads, key_dim, rope)?;
            key = self.rotate(key, kv_heads, key_dim, rope)?;
        }
        let keys = self.cache(index, "key", kv_heads, key_dim, key)?;
        let values = self.cache(index, "value", kv_heads, value_dim, value)?;
        let keys = self.repeated(keys, kv_heads, heads, key_dim)?;
        let values = self.repeated(values, kv_heads, heads, value_dim)?;
        let mask = self.interface.mask_of_layer[index];
        let kind = self.interface.masks[mask];
        let mask = self.mask(mask, &kind)?;
        let mixed = match attention.softcap {
            None => {
                let usual = 1.0 / (key_dim as f32).sqrt();
                let mut inputs = vec![query, keys, values, mask];
                if (attention.scale / usual - 1.0).abs() > 1e-6 {
                    inputs.push(self.float(attention.scale)?);
                }
                let attributes = [("causal", "false")];
                self.ir
                    .layer("ScaledDotProductAttention", "opset13", &attributes, &inputs)
            }
            Some(cap) => {
                let port = self.product(query, keys, true);
                let scores = Value { port, width: 0 };
                let scores = self.scale(&scores, attention.scale);
                let scores = softcap(self, &scores, cap);
                let scores = self.binary("Add", scores.port, mask);
                let attributes = [("axis", "-1")];
                let shares = self.ir.layer("Softmax", "opset8", &attributes, &[scores]);
                self.product(shares, values, false)
            }
        };
        let by_token = self.transpose(mixed, &[0, 2, 1, 3])?;
        let width = heads * value_dim;
        let port = self.reshape(by_token, &[0, 0, width as i64])?;
        Ok(Value { port, width })
    }

    fn add(&mut self, a: &Value, b: &Value) -> Value {
        Self::with_width(self.binary("Add", a.port, b.port), a)
    }

    fn multiply(&mut self, a: &Value, b: &Value) -> Value {
        Self::with_width(self.binary("Multiply", a.port, b.port), a)
    }

    fn scale(&mut self, x: &Value, factor: f32) -> Value {
        let factor = self.factor(factor);
        Self::with_width(self.binary("Multiply", x.port, factor), x)
    }

    fn clamp(&mut self, x: &Value, limit: f32) -> Value {
        let (low, high) = ((-limit).to_string(), limit.to_string());
        let attributes = [("min", low.as_str()), ("max", high.as_str())];
        let port = self.ir.layer("Clamp", "opset1", &attributes, &[x.port]);
        Self::with_width(port, x)
    }

    fn tanh(&mut self, x: &Value) -> Value {
        let port = self.ir.layer("Tanh", "opset1", &[], &[x.port]);
        Self::with_width(port, x)
    }

    fn activation(&mut self, x: &Value, activation: Activation) -> Value {
        let port = match activation {
            Activation::Silu => self.ir.layer("Swish", "opset4", &[], &[x.port]),
            Activation::GeluTanh => {
                let attributes = [("approximation_mode", "tanh")];
                self.ir.layer("Gelu", "opset7", &attributes, &[x.port])
            }
        };
        Self::with_width(port, x)
    }

    fn wanted(&mut self, x: &Value) -> Result<Value, ExportError> {
        let Some(wanted) = self.inputs.wanted else {
            return Ok(*x);
        };
        let axis = self.integer(1)?;
        Ok(Self::with_width(self.gather(x.port, wanted, axis), x))
    }

    fn logits(&mut self, x: &Value) -> Result<(), ExportError> {
        // The name has to be the product's own output: device pipelines look there for what they may cut.
        let one = self.integers(&[0, 0, x.width as i64])?;
        let attributes = [("special_zero", "true")];
        let named = self
            .ir
            .named("logits", "Reshape", "opset1", &attributes, &[x.port, one]);
        self.ir.sink("Result", "opset1", &[], named);
        Ok(())
    }
}

/// How a matrix is written.
#[derive(Debug, Clone, Copy)]
struct Layout {
    bits: usize,
    group: usize,
    /// The grid on which the model's own codes lie; none when they are rounded anew.
    own: Option<Grid>,
}

/// Where a matrix's parts lie.
struct Parts {
    codes: Placed,
    scales: Placed,
    offsets: Option<Placed>,
}
