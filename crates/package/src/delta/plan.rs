//! The delta's head, and the plan: where each tensor of the new file comes from. Written and read by the same code.

use super::block::Layout;
use super::coder::{Bit, Coder, Numbers};
use super::layout::{FileLayout, Tensor, block_shape};
use super::plain::{Floats, Format, Records};
use super::quantised::Quantised;
use crate::digest::Digest;
use std::collections::HashMap;
use std::io;

/// Reads (false) or writes (true) bytes at an offset.
type Exchange<'a> = dyn FnMut(u64, &mut [u8], bool) -> io::Result<()> + 'a;

const MAGIC: [u8; 3] = *b"OD2";
/// Bytes of the base's hash: enough to tell versions apart; what is trusted is the result's hash.
const BASE_BYTES: usize = 8;
/// About the longest stream of changed tensors: each begins with models that know nothing.
const STREAM_BYTES: u64 = 32 << 20;
/// Below this a second stream costs more bytes than it saves time.
const LEAST_BYTES: u64 = 4 << 20;
/// Bytes of a tensor that are worked on at a time.
const WINDOW_BYTES: usize = 256 << 10;
const MOST_STREAMS: u64 = 65_536;

/// What a delta says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub result: Digest,
    pub base: [u8; BASE_BYTES],
    pub base_length: u64,
    pub result_length: u64,
    /// Whether the files are taken apart as GGUF.
    pub tensors: bool,
    /// Bytes of the first stream and of the tensors' streams.
    pub streams: Vec<u64>,
}

impl Head {
    pub fn base_of(digest: Digest) -> [u8; BASE_BYTES] {
        let mut out = [0; BASE_BYTES];
        out.copy_from_slice(&digest.0[..BASE_BYTES]);
        out
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.result.0);
        out.extend_from_slice(&self.base);
        put_number(&mut out, self.base_length);
        put_number(&mut out, self.result_length);
        let more = self.streams.len() as u64 - 1;
        put_number(&mut out, more << 1 | u64::from(self.tensors));
        // The last stream ends where the file does.
        self.streams[..self.streams.len() - 1]
            .iter()
            .for_each(|length| put_number(&mut out, *length));
        out
    }

    /// Reads the head of a delta of `length` bytes that begins with `bytes`; answers it and its own length.
    pub fn parse(bytes: &[u8], length: u64) -> Option<(Self, u64)> {
        let mut rest = bytes.strip_prefix(&MAGIC)?;
        let (result, after) = rest.split_first_chunk::<32>()?;
        let (base, after) = after.split_first_chunk::<BASE_BYTES>()?;
        rest = after;
        let (base_length, result_length) = (take_number(&mut rest)?, take_number(&mut rest)?);
        let kind = take_number(&mut rest)?;
        let more = kind >> 1;
        if more > MOST_STREAMS {
            return None;
        }
        let mut streams = (0..more)
            .map(|_| take_number(&mut rest))
            .collect::<Option<Vec<_>>>()?;
        let used = (bytes.len() - rest.len()) as u64;
        let sum = streams
            .iter()
            .try_fold(used, |sum, length| sum.checked_add(*length))?;
        streams.push(length.checked_sub(sum)?);
        let head = Head {
            result: Digest(*result),
            base: *base,
            base_length,
            result_length,
            tensors: kind & 1 == 1,
            streams,
        };
        Some((head, used))
    }
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// Where a tensor of the new file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Index among the old tensors of the same type and size.
    pub old: Option<usize>,
    /// Whether every byte is the same.
    pub same: bool,
    /// A hint for the coder: marks for quantised tensors, zero lower halves for single precision.
    pub hint: bool,
}

/// Codes one origin after the other.
pub(super) struct Plan<'a> {
    old: &'a FileLayout,
    by_name: HashMap<&'a [u8], usize>,
    usual: Bit,
    from_name: Bit,
    from_any: Bit,
    same: Bit,
    hint: [Bit; 2],
    index: Numbers,
    gaps: Bit,
    gap_bytes: Records,
}

impl<'a> Plan<'a> {
    pub fn new(old: &'a FileLayout) -> Self {
        Plan {
            old,
            by_name: old
                .tensors
                .iter()
                .enumerate()
                .map(|(i, tensor)| (tensor.name.as_slice(), i))
                .collect(),
            usual: Bit::default(),
            from_name: Bit::default(),
            from_any: Bit::default(),
            same: Bit::default(),
            hint: [Bit::default(); 2],
            index: Numbers::new(1, 1),
            gaps: Bit::default(),
            gap_bytes: Records::new(1, false),
        }
    }

    /// The old tensor of the same name, type and size.
    pub fn namesake(&self, tensor: &Tensor) -> Option<usize> {
        let index = *self.by_name.get(tensor.name.as_slice())?;
        self.fits(tensor, index).then_some(index)
    }

    pub fn fits(&self, tensor: &Tensor, old: usize) -> bool {
        self.old
            .tensors
            .get(old)
            .is_some_and(|old| old.kind == tensor.kind && old.size == tensor.size)
    }

    /// `None` when what was decoded makes no sense.
    pub fn origin<C: Coder>(
        &mut self,
        coder: &mut C,
        tensor: &Tensor,
        origin: Origin,
    ) -> Option<Origin> {
        let namesake = self.namesake(tensor);
        if namesake.is_some()
            && self
                .usual
                .code(coder, origin.old == namesake && origin.same)
        {
            return Some(Origin {
                old: namesake,
                same: true,
                hint: false,
            });
        }
        let old = if namesake.is_some() && self.from_name.code(coder, origin.old == namesake) {
            namesake
        } else if self.from_any.code(coder, origin.old.is_some()) {
            let index =
                self.index
                    .unsigned(coder, 0, origin.old.unwrap_or(0) as u64) as usize;
            Some(index).filter(|index| self.fits(tensor, *index))?;
            Some(index)
        } else {
            None
        };
        let same = old.is_some() && self.same.code(coder, origin.same);
        let hint = !same
            && old.is_some()
            && self.hint[usize::from(tensor.kind == 0)].code(coder, origin.hint);
        Some(Origin { old, same, hint })
    }

    /// Codes the bytes between tensors.
    pub fn gap<C: Coder>(&mut self, coder: &mut C, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.gaps.code(coder, bytes.iter().all(|byte| *byte == 0)) {
            bytes.fill(0);
        } else {
            self.gap_bytes.fresh(coder, bytes);
        }
    }
}

/// A changed tensor: where it is, and what it is made from.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub kind: u32,
    /// Weights per row.
    pub row: u64,
    pub size: u64,
    pub new_offset: u64,
    pub old_offset: Option<u64>,
    pub hint: bool,
}

impl Change {
    pub fn new(tensor: &Tensor, old: &FileLayout, origin: Origin) -> Self {
        Change {
            kind: tensor.kind,
            row: tensor.dimensions[0],
            size: tensor.size,
            new_offset: tensor.offset,
            old_offset: origin.old.map(|index| old.tensors[index].offset),
            hint: origin.hint,
        }
    }
}

/// Puts changes into streams of about the same length, in order: an even number of them, so that two cores are done together.
pub(super) fn into_streams(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let total: u64 = changes
        .iter()
        .fold(0, |sum, change| sum.saturating_add(change.size));
    let count = match total {
        0..LEAST_BYTES => 1,
        _ => total.div_ceil(STREAM_BYTES).next_multiple_of(2),
    };
    let length = total.div_ceil(count).max(1);
    let mut streams: Vec<Vec<Change>> = Vec::new();
    let mut before = 0_u64;
    for change in changes {
        // A change belongs where its middle falls.
        let middle = before.saturating_add(change.size / 2);
        let stream = (middle / length) as usize;
        before = before.saturating_add(change.size);
        if streams.is_empty() || stream >= streams.len() {
            streams.push(Vec::new());
        }
        if let Some(last) = streams.last_mut() {
            last.push(change);
        }
    }
    streams
}

/// The models of one stream; what one tensor taught them helps with the next.
#[derive(Default)]
pub(super) struct StreamModels {
    quantised: HashMap<u32, Quantised>,
    floats: HashMap<(u32, bool), Floats>,
    changed: HashMap<u32, Records>,
    fresh: HashMap<u32, Records>,
}

impl StreamModels {
    /// Codes one tensor in windows. `read_old` fills a window from an offset of the old file; `exchange` reads a window of the
    /// new file before coding (`false`) and takes it after decoding (`true`).
    pub fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        change: &Change,
        read_old: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
        exchange: &mut Exchange<'_>,
    ) -> io::Result<()> {
        let width = block_shape(change.kind).map_or(1, |(_, bytes)| bytes as usize);
        let window = WINDOW_BYTES / width * width;
        let row = usize::try_from(change.row).unwrap_or(1).min(1 << 24);
        let layout = Layout::of_type(change.kind);
        let format = Format::of_type(change.kind).map(|format| {
            if format == Format::F32 && change.hint {
                Format::F32Short
            } else {
                format
            }
        });
        if change.old_offset.is_some() {
            if let Some(layout) = layout {
                self.quantised
                    .entry(change.kind)
                    .or_insert_with(|| Quantised::new(layout))
                    .start(row, change.hint);
            } else if let Some(format) = format {
                self.floats
                    .entry((change.kind, change.hint))
                    .or_insert_with(|| Floats::new(format))
                    .start(row);
            }
        }
        let mut old = vec![0; window.min(change.size as usize)];
        let mut new = old.clone();
        let mut at = 0;
        while at < change.size {
            let count = (change.size - at).min(window as u64) as usize;
            let (old, new) = (&mut old[..count], &mut new[..count]);
            exchange(change.new_offset + at, new, false)?;
            match change.old_offset {
                None => self
                    .fresh
                    .entry(change.kind)
                    .or_insert_with(|| Records::new(width, format.is_some()))
                    .fresh(coder, new),
                Some(offset) => {
                    read_old(offset + at, old)?;
                    if layout.is_some() {
                        if let Some(model) = self.quantised.get_mut(&change.kind) {
                            model.blocks(coder, old, new);
                        }
                    } else if format.is_some() {
                        if let Some(model) = self.floats.get_mut(&(change.kind, change.hint)) {
                            model.values(coder, old, new);
                        }
                    } else {
                        self.changed
                            .entry(change.kind)
                            .or_insert_with(|| Records::new(width, false))
                            .changed(coder, old, new);
                    }
                }
            }
            exchange(change.new_offset + at, new, true)?;
            at += count as u64;
        }
        Ok(())
    }
}
