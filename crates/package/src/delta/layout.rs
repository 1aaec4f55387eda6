//! Where the tensors of a GGUF file are: just enough of the format to pair them with the old file's.

use crate::Limits;
use crate::source::ByteSource;
use std::io;

const MAGIC: &[u8; 4] = b"GGUF";
/// Arrays inside arrays.
const MOST_NESTING: u32 = 4;
const MOST_DIMENSIONS: u32 = 4;

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub name: Vec<u8>,
    /// Number of its type in GGUF.
    pub kind: u32,
    /// Weights per row, rows, …
    pub dimensions: Vec<u64>,
    /// From the start of the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A file as header, tensors in the order of their places, and what is between and after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileLayout {
    /// Bytes before the first tensor's alignment gap.
    pub header: u64,
    pub tensors: Vec<Tensor>,
}

impl FileLayout {
    /// Reads the layout of a file of `length` bytes that begins with `start`.
    /// `None` when it is not GGUF, or a tensor lies outside, over another one or is of an unknown type.
    pub fn parse(start: &[u8], length: u64, limits: &Limits) -> Option<Self> {
        let mut cursor = Cursor {
            bytes: start,
            at: 0,
        };
        if cursor.take(4)? != MAGIC || !(2..=3).contains(&cursor.u32()?) {
            return None;
        }
        let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
        if tensors > limits.tensors as u64 || pairs > limits.tensors as u64 {
            return None;
        }
        let mut alignment = 32;
        for _ in 0..pairs {
            let key = cursor.string()?;
            let kind = cursor.u32()?;
            if key == b"general.alignment" && kind == 4 {
                alignment = u64::from(cursor.u32()?);
            } else {
                cursor.skip_value(kind, 0)?;
            }
        }
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return None;
        }
        let mut found = Vec::new();
        for _ in 0..tensors {
            found.push(cursor.tensor()?);
        }
        let header = cursor.at as u64;
        let data = header.next_multiple_of(alignment);
        for tensor in &mut found {
            tensor.offset = tensor.offset.checked_add(data)?;
        }
        found.sort_by_key(|tensor| (tensor.offset, tensor.size));
        let mut end = header;
        for tensor in &found {
            if tensor.offset < end {
                return None;
            }
            end = tensor.offset.checked_add(tensor.size)?;
        }
        (end <= length).then_some(FileLayout {
            header,
            tensors: found,
        })
    }

    /// Reads the layout of `source`, and its header's bytes.
    pub fn read(source: &dyn ByteSource, limits: &Limits) -> io::Result<Option<(Self, Vec<u8>)>> {
        let mut start = vec![0; source.len().min(limits.model_header_bytes) as usize];
        source.read_at(0, &mut start)?;
        let Some(layout) = Self::parse(&start, source.len(), limits) else {
            return Ok(None);
        };
        start.truncate(layout.header as usize);
        start.shrink_to_fit();
        Ok(Some((layout, start)))
    }
}

/// Weights and bytes per block of a type.
pub(super) fn block_shape(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        24 => (1, 1),
        27 | 28 => (1, 8),
        2 | 20 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        39 => (32, 17),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        16 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        21 => (256, 110),
        22 => (256, 82),
        23 => (256, 136),
        29 => (256, 56),
        34 => (256, 54),
        35 => (256, 66),
        _ => return None,
    })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let found = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(found)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u64()?;
        self.take(usize::try_from(length).ok()?)
    }

    fn skip_value(&mut self, kind: u32, nesting: u32) -> Option<()> {
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => return self.string().map(|_| ()),
            9 if nesting < MOST_NESTING => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Each element takes at least one byte, so the count is bounded by what is left.
                if count > (self.bytes.len() - self.at) as u64 {
                    return None;
                }
                for _ in 0..count {
                    self.skip_value(kind, nesting + 1)?;
                }
                return Some(());
            }
            _ => return None,
        };
        self.take(width).map(|_| ())
    }

    fn tensor(&mut self) -> Option<Tensor> {
        let name = self.string()?.to_vec();
        let count = self.u32()?;
        if count == 0 || count > MOST_DIMENSIONS {
            return None;
        }
        let dimensions = (0..count).map(|_| self.u64()).collect::<Option<Vec<_>>>()?;
        let kind = self.u32()?;
        let offset = self.u64()?;
        let (weights, bytes) = block_shape(kind)?;
        if dimensions[0] % weights != 0 {
            return None;
        }
        let blocks = dimensions
            .iter()
            .try_fold(1_u64, |product, d| product.checked_mul(*d))?
            / weights;
        Some(Tensor {
            name,
            kind,
            dimensions,
            offset,
            size: blocks.checked_mul(bytes)?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes a small file: name, type, dimensions and data per tensor.
    pub fn gguf(note: &str, tensors: &[(&str, u32, &[u64], &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        out.extend(3_u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(2_u64.to_le_bytes());
        text(&mut out, "tokenizer.tokens");
        out.extend(9_u32.to_le_bytes());
        out.extend(8_u32.to_le_bytes());
        out.extend(300_u64.to_le_bytes());
        (0..300).for_each(|i| text(&mut out, &format!("token{}", i * i)));
        text(&mut out, "tokenizer.chat_template");
        out.extend(8_u32.to_le_bytes());
        text(&mut out, note);
        let mut offset = 0_u64;
        for (name, kind, dimensions, data) in tensors {
            text(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(*data);
        }
        out
    }

    #[test]
    fn tensors_are_found_where_they_are() {
        let file = gguf(
            "{{ x }}",
            &[("a", 0, &[3, 2], &[1; 24]), ("b", 3, &[64], &[2; 40])],
        );
        let layout = FileLayout::parse(&file, file.len() as u64, &Limits::default()).unwrap();
        assert_eq!(layout.tensors.len(), 2);
        assert_eq!(file[layout.tensors[1].offset as usize..], [2; 40]);
        assert!(FileLayout::parse(&file, file.len() as u64 - 1, &Limits::default()).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut file = gguf("{{ x }}", &[("a", 0, &[3, 2], &[1; 24]), ("b", 3, &[64], &[2; 40])]);
            let length = file.len() as u64;
            let at = at.index(file.len());
            file[at] = byte;
            let _ = FileLayout::parse(&file, length, &Limits::default());
            file.truncate(cut.index(file.len()));
            let _ = FileLayout::parse(&file, length, &Limits::default());
        }
    }
}
