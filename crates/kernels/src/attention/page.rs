//! Pages of keys and values.

use bytemuck::{Pod, Zeroable};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::arch::memory::prefetch;

/// Positions that one page holds.
pub const PAGE_TOKENS: usize = 64;

/// Elements that share one scale in [`KvType::Q8_0`].
pub(super) const SCALE_BLOCK: usize = 32;

/// Elements of a key or a value that are rounded together.
const LARGEST_AT_ONCE: usize = 256;

/// Elements of a value row are padded to a multiple of this, so that vectors never cross rows.
pub(super) const VALUE_PADDING: usize = 16;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// Single precision, 4 bytes per element.
    F32,
    /// Half precision, 2 bytes per element.
    #[default]
    F16,
    /// Signed bytes with a half-precision scale for each 32 elements of a head, 1.0625 bytes per element.
    Q8_0,
}

impl KvType {
    /// The name that users see: `f32`, `f16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }

    fn element_bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Q8_0 => 1,
        }
    }
}

/// What one position of one layer stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a key.
    pub head_dim_k: usize,
    /// Elements of a value.
    pub head_dim_v: usize,
    /// How they are stored.
    pub kv_type: KvType,
}

/// Why bytes are not a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The bytes are of another shape.
    #[error("a page of keys and values has {got} bytes where {expected} belong: compute it again")]
    Length {
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes that there are.
        got: usize,
    },
}

/// Where things are in the part of a page that belongs to one head, in bytes. All of it lies on cache lines of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// Keys, `[head_dim_k][PAGE_TOKENS]`: one vector load reads an element of several keys.
    key_bytes: usize,
    /// Scales of the keys, `[head_dim_k / 32][PAGE_TOKENS]`.
    key_scale_bytes: usize,
    /// Values, `[PAGE_TOKENS][padded head_dim_v]`.
    value_bytes: usize,
    /// Scales of the values, `[PAGE_TOKENS][head_dim_v / 32]`.
    value_scale_bytes: usize,
}

impl Layout {
    fn new(shape: &KvShape) -> Layout {
        let element = shape.kv_type.element_bytes();
        let scales = |dims: usize| match shape.kv_type {
            KvType::Q8_0 => dims.div_ceil(SCALE_BLOCK) * PAGE_TOKENS * size_of::<f16>(),
            KvType::F32 | KvType::F16 => 0,
        };
        Layout {
            key_bytes: shape.head_dim_k * PAGE_TOKENS * element,
            key_scale_bytes: scales(shape.head_dim_k),
            value_bytes: shape.value_stride() * PAGE_TOKENS * element,
            value_scale_bytes: scales(shape.head_dim_v),
        }
    }

    fn head_bytes(&self) -> usize {
        self.key_bytes + self.key_scale_bytes + self.value_bytes + self.value_scale_bytes
    }
}

impl KvShape {
    /// Elements from one value of a head to the next position's.
    pub(super) fn value_stride(&self) -> usize {
        self.head_dim_v.next_multiple_of(VALUE_PADDING)
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.kv_heads * Layout::new(self).head_bytes()
    }
}

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Keys and values of [`PAGE_TOKENS`] positions of one layer. Slots that were never written hold zeros.
#[derive(Clone)]
pub struct KvPage {
    shape: KvShape,
    layout: Layout,
    /// `[kv_heads]` times what [`Layout`] describes.
    lines: Box<[Line]>,
}

/// What a page stores of one head.
#[derive(Clone, Copy)]
pub(super) struct HeadView<'a, T> {
    /// `[head_dim_k][PAGE_TOKENS]`.
    pub(super) keys: &'a [T],
    /// `[head_dim_k / 32][PAGE_TOKENS]`, empty for types without scales.
    pub(super) key_scales: &'a [f16],
    /// `[PAGE_TOKENS][value_stride]`.
    pub(super) values: &'a [T],
    /// `[PAGE_TOKENS][head_dim_v / 32]`, empty for types without scales.
    pub(super) value_scales: &'a [f16],
}

struct HeadViewMut<'a, T> {
    keys: &'a mut [T],
    key_scales: &'a mut [f16],
    values: &'a mut [T],
    value_scales: &'a mut [f16],
}

impl KvPage {
    /// An empty page.
    pub fn new(shape: KvShape) -> KvPage {
        let lines = shape.page_bytes().div_ceil(size_of::<Line>());
        KvPage {
            shape,
            layout: Layout::new(&shape),
            lines: vec![Line::zeroed(); lines].into(),
        }
    }

    /// The page whose [`as_bytes`](Self::as_bytes) these are.
    pub fn from_bytes(shape: KvShape, bytes: &[u8]) -> Result<KvPage, KvError> {
        if bytes.len() != shape.page_bytes() {
            return Err(KvError::Length {
                expected: shape.page_bytes(),
                got: bytes.len(),
            });
        }
        let mut page = KvPage::new(shape);
        page.copy_from_bytes(bytes);
        Ok(page)
    }

    /// Becomes the page whose [`as_bytes`](Self::as_bytes) these are.
    ///
    /// # Panics
    /// If that page has another size.
    pub fn copy_from_bytes(&mut self, bytes: &[u8]) {
        bytemuck::cast_slice_mut::<Line, u8>(&mut self.lines).copy_from_slice(bytes);
    }

    /// What the page was made for.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Bytes of memory that the content takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// The content, in this machine's byte order.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    /// Stores the keys `[kv_heads][head_dim_k]` and values `[kv_heads][head_dim_v]` of one position in `slot`. Half
    /// precision keeps the sign of what is beyond its range, as its largest number.
    ///
    /// # Panics
    /// If `slot` is not below [`PAGE_TOKENS`] or a length is another.
    pub fn write(&mut self, slot: usize, keys: &[f32], values: &[f32]) {
        let shape = self.shape;
        assert!(slot < PAGE_TOKENS, "slot {slot} of {PAGE_TOKENS}");
        assert_eq!(keys.len(), shape.kv_heads * shape.head_dim_k, "keys");
        assert_eq!(values.len(), shape.kv_heads * shape.head_dim_v, "values");
        for head in 0..shape.kv_heads {
            let keys = &keys[head * shape.head_dim_k..][..shape.head_dim_k];
            let values = &values[head * shape.head_dim_v..][..shape.head_dim_v];
            match shape.kv_type {
                KvType::F32 => self.write_head(head, slot, keys, values),
                KvType::F16 => self.write_head_f16(head, slot, keys, values),
                KvType::Q8_0 => self.write_head_q8(head, slot, keys, values),
            }
        }
    }

    /// Brings the lines that [`write`](Self::write) to `slot` will touch towards the processor: a key's elements lie in
    /// as many lines as it has elements.
    pub fn prepare(&self, slot: usize) {
        let element = self.shape.kv_type.element_bytes();
        let layout = self.layout;
        let head_bytes = layout.head_bytes();
        let start = self.as_bytes().as_ptr() as usize;
        for head in 0..self.shape.kv_heads {
            let keys = start + head * head_bytes;
            for d in 0..self.shape.head_dim_k {
                prefetch(keys + (d * PAGE_TOKENS + slot) * element);
            }
            let values = keys + layout.key_bytes + layout.key_scale_bytes;
            let row = self.shape.value_stride() * element;
            for offset in (0..row).step_by(size_of::<Line>()) {
                prefetch(values + slot * row + offset);
            }
        }
    }

    /// The keys of `slot`, shape `[kv_heads][head_dim_k]`.
    pub fn read_k(&self, slot: usize) -> Vec<f32> {
        self.read(slot, self.shape.head_dim_k, true)
    }

    /// The values of `slot`, shape `[kv_heads][head_dim_v]`.
    pub fn read_v(&self, slot: usize) -> Vec<f32> {
        self.read(slot, self.shape.head_dim_v, false)
    }

    /// What is stored of `head`. `T` must be the type's element: f32, [`f16`] or i8.
    pub(super) fn head<T: Pod>(&self, head: usize) -> HeadView<'_, T> {
        let layout = self.layout;
        let bytes = &self.as_bytes()[head * layout.head_bytes()..][..layout.head_bytes()];
        let (keys, bytes) = bytes.split_at(layout.key_bytes);
        let (key_scales, bytes) = bytes.split_at(layout.key_scale_bytes);
        let (values, value_scales) = bytes.split_at(layout.value_bytes);
        HeadView {
            keys: bytemuck::cast_slice(keys),
            key_scales: bytemuck::cast_slice(key_scales),
            values: bytemuck::cast_slice(values),
            value_scales: bytemuck::cast_slice(value_scales),
        }
    }

    fn head_mut<T: Pod>(&mut self, head: usize) -> HeadViewMut<'_, T> {
        let layout = self.layout;
        let bytes = bytemuck::cast_slice_mut::<Line, u8>(&mut self.lines);
        let bytes = &mut bytes[head * layout.head_bytes()..][..layout.head_bytes()];
        let (keys, bytes) = bytes.split_at_mut(layout.key_bytes);
        let (key_scales, bytes) = bytes.split_at_mut(layout.key_scale_bytes);
        let (values, value_scales) = bytes.split_at_mut(layout.value_bytes);
        HeadViewMut {
            keys: bytemuck::cast_slice_mut(keys),
            key_scales: bytemuck::cast_slice_mut(key_scales),
            values: bytemuck::cast_slice_mut(values),
            value_scales: bytemuck::cast_slice_mut(value_scales),
        }
    }

    fn write_head<T: Pod>(&mut self, head: usize, slot: usize, keys: &[T], values: &[T]) {
        let stride = self.shape.value_stride();
        let view = self.head_mut::<T>(head);
        for (column, &key) in view.keys.chunks_exact_mut(PAGE_TOKENS).zip(keys) {
            column[slot] = key;
        }
        view.values[slot * stride..][..values.len()].copy_from_slice(values);
    }

    /// [`write_head`](Self::write_head) in half precision.
    fn write_head_f16(&mut self, head: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let mut rounded = [[f16::ZERO; LARGEST_AT_ONCE]; 2];
        if keys.len().max(values.len()) > LARGEST_AT_ONCE {
            let round = |x: &[f32]| x.iter().map(|&x| to_f16(x)).collect::<Vec<_>>();
            return self.write_head(head, slot, &round(keys), &round(values));
        }
        let [key, value] = &mut rounded;
        let (key, value) = (&mut key[..keys.len()], &mut value[..values.len()]);
        for (rounded, x) in [(&mut *key, keys), (&mut *value, values)] {
            rounded.convert_from_f32_slice(x);
            for (rounded, &x) in rounded.iter_mut().zip(x) {
                if rounded.is_infinite() {
                    *rounded = to_f16(x);
                }
            }
        }
        self.write_head(head, slot, key, value);
    }

    fn write_head_q8(&mut self, head: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let stride = self.shape.value_stride();
        let view = self.head_mut::<i8>(head);
        for (block, keys) in keys.chunks(SCALE_BLOCK).enumerate() {
            let scale = block_scale(keys);
            view.key_scales[block * PAGE_TOKENS + slot] = scale;
            for (i, &key) in keys.iter().enumerate() {
                view.keys[(block * SCALE_BLOCK + i) * PAGE_TOKENS + slot] = to_i8(key, scale);
            }
        }
        let blocks = values.len().div_ceil(SCALE_BLOCK);
        for (block, values) in values.chunks(SCALE_BLOCK).enumerate() {
            let scale = block_scale(values);
            view.value_scales[slot * blocks + block] = scale;
            for (i, &value) in values.iter().enumerate() {
                view.values[slot * stride + block * SCALE_BLOCK + i] = to_i8(value, scale);
            }
        }
    }

    fn read(&self, slot: usize, dims: usize, key: bool) -> Vec<f32> {
        assert!(slot < PAGE_TOKENS, "slot {slot} of {PAGE_TOKENS}");
        let stride = self.shape.value_stride();
        let blocks = dims.div_ceil(SCALE_BLOCK);
        let at = |d: usize| {
            if key {
                d * PAGE_TOKENS + slot
            } else {
                slot * stride + d
            }
        };
        let mut out = Vec::with_capacity(self.shape.kv_heads * dims);
        for head in 0..self.shape.kv_heads {
            match self.shape.kv_type {
                KvType::F32 => {
                    let view = self.head::<f32>(head);
                    let stored = if key { view.keys } else { view.values };
                    out.extend((0..dims).map(|d| stored[at(d)]));
                }
                KvType::F16 => {
                    let view = self.head::<f16>(head);
                    let stored = if key { view.keys } else { view.values };
                    out.extend((0..dims).map(|d| stored[at(d)].to_f32()));
                }
                KvType::Q8_0 => {
                    let view = self.head::<i8>(head);
                    let stored = if key { view.keys } else { view.values };
                    out.extend((0..dims).map(|d| {
                        let block = d / SCALE_BLOCK;
                        let scale = if key {
                            view.key_scales[block * PAGE_TOKENS + slot]
                        } else {
                            view.value_scales[slot * blocks + block]
                        };
                        f32::from(stored[at(d)]) * scale.to_f32()
                    }));
                }
            }
        }
        out
    }
}

impl std::fmt::Debug for KvPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvPage")
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

fn to_f16(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const()))
}

/// The scale with which the largest element becomes 127, rounded to what can be stored.
fn block_scale(block: &[f32]) -> f16 {
    let largest = block.iter().fold(0f32, |a, &b| a.max(b.abs()));
    to_f16(largest / 127.0)
}

fn to_i8(x: f32, scale: f16) -> i8 {
    let scale = scale.to_f32();
    if scale == 0.0 {
        return 0;
    }
    (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::numbers;

    fn shapes() -> Vec<KvShape> {
        let mut shapes = Vec::new();
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for (kv_heads, head_dim_k, head_dim_v) in [(1, 64, 64), (3, 20, 48), (2, 80, 16)] {
                shapes.push(KvShape {
                    kv_heads,
                    head_dim_k,
                    head_dim_v,
                    kv_type,
                });
            }
        }
        shapes
    }

    #[test]
    fn what_is_written_is_read_and_survives_bytes() {
        for shape in shapes() {
            let mut page = KvPage::new(shape);
            let tokens: Vec<_> = (0..PAGE_TOKENS as u64)
                .map(|slot| {
                    (
                        numbers(shape.kv_heads * shape.head_dim_k, slot, 3.0),
                        numbers(shape.kv_heads * shape.head_dim_v, 100 + slot, 5.0),
                    )
                })
                .collect();
            for (slot, (keys, values)) in tokens.iter().enumerate() {
                page.write(slot, keys, values);
            }
            let bound = match shape.kv_type {
                KvType::F32 => 0.0,
                KvType::F16 => 5.0 / 2048.0,
                KvType::Q8_0 => 5.0 / 127.0 * 0.51,
            };
            let copy = KvPage::from_bytes(shape, page.as_bytes()).unwrap();
            assert_eq!(copy.as_bytes(), page.as_bytes());
            assert_eq!(copy.bytes(), shape.page_bytes());
            for (slot, (keys, values)) in tokens.iter().enumerate() {
                let got = [copy.read_k(slot), copy.read_v(slot)].concat();
                let expected = [keys.as_slice(), values].concat();
                assert_eq!(got.len(), expected.len());
                for (got, expected) in got.iter().zip(&expected) {
                    assert!(
                        (got - expected).abs() <= bound,
                        "{got} {expected} {shape:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn bytes_of_another_length_are_refused() {
        for shape in shapes() {
            let bytes = KvPage::new(shape).as_bytes().to_vec();
            for got in [0, bytes.len() - 1, bytes.len() + 64] {
                let mut other = bytes.clone();
                other.resize(got, 0);
                let error = KvPage::from_bytes(shape, &other).unwrap_err();
                assert_eq!(
                    error,
                    KvError::Length {
                        expected: bytes.len(),
                        got
                    }
                );
            }
        }
    }

    #[test]
    fn numbers_beyond_the_range_are_stored_as_the_largest() {
        let shape = KvShape {
            kv_heads: 1,
            head_dim_k: 4,
            head_dim_v: 2,
            kv_type: KvType::F16,
        };
        let mut page = KvPage::new(shape);
        page.write(3, &[1e9, -1e9, 0.0, 1.0], &[f32::INFINITY, -7.0]);
        assert_eq!(page.read_k(3), [65504.0, -65504.0, 0.0, 1.0]);
        assert_eq!(page.read_v(3), [65504.0, -7.0]);
    }
}
