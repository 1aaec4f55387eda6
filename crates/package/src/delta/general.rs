//! Any bytes given any old bytes: copies of what is there already, and the rest coded by what usually follows.
//!
//! New bytes between copies are predicted by their last one to four bytes and by the old byte in their place, mixed. The model
//! is warmed up with the old bytes around the first change, which makes a small change to a text very small.

use super::coder::{Bit, Coder, Mixer, Numbers, byte};
use std::io;

/// Shortest copy from where the last one would go on.
const SHORTEST_NEAR: usize = 5;
/// Shortest copy from elsewhere.
const SHORTEST_FAR: usize = 14;
/// Bytes before and after the first change that warm the model up.
const WARM_BEFORE: u64 = 6144;
const WARM_AFTER: u64 = 2048;
/// Old files up to this length are indexed at every byte.
const FINE_INDEX: usize = 48 << 20;
/// More new bytes than this are coded by a quicker model.
const THOROUGH_BYTES: usize = 4 << 20;

/// The old bytes, and the new ones as they are written.
pub(super) trait Workplace {
    fn old_len(&self) -> u64;
    fn written(&self) -> u64;
    fn push(&mut self, byte: u8) -> io::Result<()>;
    /// Appends old bytes.
    fn copy_old(&mut self, from: u64, length: u64) -> io::Result<()>;
    /// Appends bytes written before; the ranges may overlap, as in all coders of this family.
    fn copy_new(&mut self, from: u64, length: u64) -> io::Result<()>;
    fn read_old(&mut self, from: u64, out: &mut [u8]) -> io::Result<()>;
}

struct Models {
    thorough: bool,
    warm: bool,
    literals: Numbers,
    lengths: Numbers,
    offsets: Numbers,
    distances: Numbers,
    high: Numbers,
    to_end: Bit,
    from_new: Bit,
    in_place: Bit,
    tables: Vec<Bit>,
    mixers: Vec<Mixer<ORDERS>>,
    quick: Vec<[Bit; 256]>,
    last: u64,
}

const ORDERS: usize = 6;
const TABLE_BITS: u32 = 18;

impl Models {
    fn new(thorough: bool) -> Self {
        Models {
            thorough,
            warm: false,
            literals: Numbers::new(1, 1),
            lengths: Numbers::new(1, 1),
            offsets: Numbers::new(2, 1),
            distances: Numbers::new(1, 1),
            high: Numbers::new(1, 1),
            to_end: Bit::default(),
            from_new: Bit::default(),
            in_place: Bit::default(),
            tables: if thorough {
                vec![Bit::default(); ORDERS << TABLE_BITS]
            } else {
                Vec::new()
            },
            mixers: vec![Mixer::default(); 256],
            quick: if thorough {
                Vec::new()
            } else {
                vec![[Bit::default(); 256]; 256]
            },
            last: 0,
        }
    }

    /// Numbers of up to 62 bits.
    fn wide<C: Coder>(
        &mut self,
        coder: &mut C,
        which: fn(&mut Self) -> &mut Numbers,
        context: usize,
        value: u64,
    ) -> u64 {
        let low = which(self).unsigned(coder, context, value & 0x7fff_ffff);
        // The high part is almost always zero, and then costs next to nothing.
        self.high.unsigned(coder, 0, value >> 31) << 31 | low
    }

    fn literal<C: Coder>(&mut self, coder: &mut C, in_place: u8, value: u8) -> u8 {
        let value = if self.thorough {
            self.mixed(coder, in_place, value)
        } else {
            byte(coder, &mut self.quick[(self.last & 255) as usize], value)
        };
        self.last = self.last << 8 | u64::from(value);
        value
    }

    fn mixed<C: Coder>(&mut self, coder: &mut C, in_place: u8, value: u8) -> u8 {
        let last = self.last;
        let contexts = [
            0,
            last & 0xff,
            last & 0xffff,
            last & 0xff_ffff,
            last & 0xffff_ffff,
            u64::from(in_place) << 8 | last & 0xff,
        ];
        let starts: [u64; ORDERS] = std::array::from_fn(|i| {
            (contexts[i] + 1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(17 + i as u32)
        });
        let mut node = 1_u64;
        for at in (0..8).rev() {
            let mut inputs: [Bit; ORDERS] = [Bit::default(); ORDERS];
            let slots: [usize; ORDERS] = std::array::from_fn(|i| {
                let hash = (starts[i] ^ node.wrapping_mul(0xd6e8_feb8_6659_fd93))
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (i << TABLE_BITS) + (hash >> (64 - TABLE_BITS)) as usize
            });
            for (input, slot) in inputs.iter_mut().zip(slots) {
                *input = self.tables[slot];
            }
            let bit = self.mixers[node as usize].code(
                coder,
                inputs.each_mut(),
                127,
                value >> at & 1 == 1,
            );
            for (input, slot) in inputs.iter().zip(slots) {
                self.tables[slot] = *input;
            }
            node = node << 1 | u64::from(bit);
        }
        node as u8
    }

    fn warm_up(&mut self, place: &mut dyn Workplace, around: u64) -> io::Result<()> {
        if self.warm || !self.thorough {
            return Ok(());
        }
        self.warm = true;
        let start = around.saturating_sub(WARM_BEFORE).min(place.old_len());
        let end = (around + WARM_AFTER).min(place.old_len()).max(start);
        let mut bytes = vec![0; (end - start) as usize];
        place.read_old(start, &mut bytes)?;
        for (i, &value) in bytes.iter().enumerate() {
            self.literal(
                &mut Nowhere,
                bytes.get(i.wrapping_sub(1)).copied().unwrap_or(0),
                value,
            );
        }
        Ok(())
    }
}

/// A coder that codes nothing: for teaching a model.
struct Nowhere;

impl Coder for Nowhere {
    const DECODES: bool = false;
    fn bit(&mut self, _: u32, bit: bool) -> bool {
        bit
    }
}

/// What the encoder found: some new bytes, then a copy.
struct Step {
    literals: usize,
    copy: usize,
    from: u64,
    from_new: bool,
}

/// Encodes `new` given `old`.
pub(super) fn encode<C: Coder>(coder: &mut C, old: &[u8], new: &[u8]) {
    let steps = find_copies(old, new);
    let literals: usize = steps.iter().map(|step| step.literals).sum();
    let thorough = coder.bit(1 << 15, literals <= THOROUGH_BYTES);
    let mut place = Memory {
        old,
        new: Vec::with_capacity(new.len()),
    };
    let mut models = Models::new(thorough);
    let mut steps = steps.into_iter();
    let told = |place: &Memory| new.get(place.new.len()).copied().unwrap_or(0);
    let _ = run(
        coder,
        &mut models,
        &mut place,
        new.len() as u64,
        &mut || steps.next(),
        &told,
    );
}

/// Decodes `length` bytes.
///
/// # Errors
/// What the workplace says; `InvalidData` for copies from outside.
pub(super) fn decode<C: Coder, W: Workplace>(
    coder: &mut C,
    place: &mut W,
    length: u64,
) -> io::Result<()> {
    let thorough = coder.bit(1 << 15, false);
    let end = place.written() + length;
    run(
        coder,
        &mut Models::new(thorough),
        place,
        end,
        &mut || None,
        &|_| 0,
    )
}

fn run<C: Coder, W: Workplace>(
    coder: &mut C,
    models: &mut Models,
    place: &mut W,
    end: u64,
    next: &mut dyn FnMut() -> Option<Step>,
    told: &dyn Fn(&W) -> u8,
) -> io::Result<()> {
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    // Where in the old bytes the last copy ended.
    let mut old_at = 0_u64;
    while place.written() < end {
        let step = next().unwrap_or(Step {
            literals: 0,
            copy: 0,
            from: 0,
            from_new: false,
        });
        let literals = models.wide(coder, |m| &mut m.literals, 0, step.literals as u64);
        if literals > end - place.written() {
            return Err(damaged());
        }
        if literals > 0 {
            models.warm_up(place, old_at)?;
        }
        let mut in_place = OldBytes::new(old_at);
        for _ in 0..literals {
            let hint = if models.thorough {
                in_place.next(place)?
            } else {
                0
            };
            let value = models.literal(coder, hint, told(place));
            place.push(value)?;
        }
        let left = end - place.written();
        if left == 0 {
            break;
        }
        let length = if models.to_end.code(coder, step.copy as u64 == left) {
            left
        } else {
            models.wide(
                coder,
                |m| &mut m.lengths,
                0,
                (step.copy as u64).saturating_sub(1),
            ) + 1
        };
        if length > left {
            return Err(damaged());
        }
        if models.from_new.code(coder, step.from_new) {
            let distance = models.wide(
                coder,
                |m| &mut m.distances,
                0,
                place.written().wrapping_sub(step.from).wrapping_sub(1),
            ) + 1;
            let from = place.written().checked_sub(distance).ok_or_else(damaged)?;
            place.copy_new(from, length)?;
        } else {
            let replaced = old_at + literals;
            let near = |base: u64| step.from.abs_diff(base);
            let substituted = models.in_place.code(coder, near(replaced) <= near(old_at));
            let base = if substituted { replaced } else { old_at };
            let offset = step.from.wrapping_sub(base) as i64;
            let context = usize::from(substituted);
            let zigzag = models.wide(
                coder,
                |m| &mut m.offsets,
                context,
                (offset << 1 ^ offset >> 63) as u64,
            );
            let offset = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            let from = base.checked_add_signed(offset).ok_or_else(damaged)?;
            let until = from
                .checked_add(length)
                .filter(|until| *until <= place.old_len())
                .ok_or_else(damaged)?;
            place.copy_old(from, length)?;
            old_at = until;
        }
        models.last = 0;
    }
    Ok(())
}

/// Old bytes one after the other, read in blocks.
struct OldBytes {
    at: u64,
    block: Vec<u8>,
    used: usize,
}

impl OldBytes {
    fn new(at: u64) -> Self {
        OldBytes {
            at,
            block: Vec::new(),
            used: 0,
        }
    }

    fn next(&mut self, place: &mut dyn Workplace) -> io::Result<u8> {
        if self.used == self.block.len() {
            let count = place.old_len().saturating_sub(self.at).min(256) as usize;
            self.block.resize(count, 0);
            self.used = 0;
            place.read_old(self.at, &mut self.block)?;
            self.at += count as u64;
        }
        let found = self.block.get(self.used).copied().unwrap_or(0);
        self.used = (self.used + 1).min(self.block.len());
        Ok(found)
    }
}

/// Both sides in memory.
pub(super) struct Memory<'a> {
    pub old: &'a [u8],
    pub new: Vec<u8>,
}

impl Workplace for Memory<'_> {
    fn old_len(&self) -> u64 {
        self.old.len() as u64
    }

    fn written(&self) -> u64 {
        self.new.len() as u64
    }

    fn push(&mut self, byte: u8) -> io::Result<()> {
        self.new.push(byte);
        Ok(())
    }

    fn copy_old(&mut self, from: u64, length: u64) -> io::Result<()> {
        self.new
            .extend_from_slice(&self.old[from as usize..(from + length) as usize]);
        Ok(())
    }

    fn copy_new(&mut self, from: u64, length: u64) -> io::Result<()> {
        for at in from..from + length {
            self.new.push(self.new[at as usize]);
        }
        Ok(())
    }

    fn read_old(&mut self, from: u64, out: &mut [u8]) -> io::Result<()> {
        let from = from as usize;
        out.copy_from_slice(
            self.old
                .get(from..from + out.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }
}

/// Positions by the hash of the eight bytes there; later positions win.
struct Index {
    slots: Vec<u32>,
    shift: u32,
}

impl Index {
    fn new(positions: usize) -> Self {
        let bits = (positions.max(256) as u64)
            .next_power_of_two()
            .trailing_zeros()
            .min(24);
        Index {
            slots: vec![u32::MAX; 1 << bits],
            shift: 64 - bits,
        }
    }

    fn slot(&self, bytes: &[u8]) -> Option<usize> {
        let key = u64::from_le_bytes(*bytes.first_chunk::<8>()?);
        Some((key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize)
    }

    fn insert(&mut self, bytes: &[u8], at: usize) {
        if let (Some(slot), Ok(at)) = (self.slot(bytes), u32::try_from(at)) {
            self.slots[slot] = at;
        }
    }

    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let found = self.slots[self.slot(bytes)?];
        (found != u32::MAX).then_some(found as usize)
    }
}

fn find_copies(old: &[u8], new: &[u8]) -> Vec<Step> {
    let stride = if old.len() <= FINE_INDEX { 1 } else { 8 };
    // Positions are kept in units of the stride, so that 32 bits reach far.
    let mut old_index = Index::new(old.len() / stride);
    for at in (0..old.len()).step_by(stride) {
        old_index.insert(&old[at..], at / stride);
    }
    let mut new_index = Index::new(new.len().min(1 << 22));
    let mut steps = Vec::new();
    let (mut at, mut start, mut old_at) = (0, 0, 0_usize);
    while at < new.len() {
        let here = &new[at..];
        let mut best: Option<(usize, usize, bool)> = None;
        let mut offer = |from: usize, length: usize, from_new: bool, shortest: usize| {
            if length >= shortest && best.is_none_or(|(_, found, _)| length > found + 8) {
                best = Some((from, length, from_new));
            }
        };
        let literals = at - start;
        for near in [old_at + literals, old_at] {
            let length = old.get(near..).map_or(0, |old| common(old, here));
            offer(
                near,
                length,
                false,
                if length == here.len() {
                    1
                } else {
                    SHORTEST_NEAR
                },
            );
        }
        if literals < 512 {
            for near in old_at..(old_at + 256).min(old.len()) {
                offer(near, common(&old[near..], here), false, 8);
            }
        }
        if let Some(from) = old_index.find(here) {
            offer(
                from * stride,
                common(&old[from * stride..], here),
                false,
                SHORTEST_FAR,
            );
        }
        if let Some(from) = new_index.find(here)
            && from < at
        {
            offer(from, common(&new[from..], here), true, 8);
        }
        new_index.insert(here, at);
        let Some((mut from, mut length, from_new)) = best else {
            at += 1;
            continue;
        };
        let source = if from_new { new } else { old };
        let mut begin = at;
        while begin > start && from > 0 && new[begin - 1] == source[from - 1] {
            (begin, from, length) = (begin - 1, from - 1, length + 1);
        }
        steps.push(Step {
            literals: begin - start,
            copy: length,
            from: from as u64,
            from_new,
        });
        at = begin + length;
        start = at;
        if !from_new {
            old_at = from + length;
        }
    }
    if start < new.len() {
        steps.push(Step {
            literals: new.len() - start,
            copy: 0,
            from: 0,
            from_new: false,
        });
    }
    steps
}

fn common(a: &[u8], b: &[u8]) -> usize {
    const WIDE: usize = 64;
    let mut length = 0;
    for (a, b) in a.chunks_exact(WIDE).zip(b.chunks_exact(WIDE)) {
        if a != b {
            break;
        }
        length += WIDE;
    }
    length
        + a[length..]
            .iter()
            .zip(&b[length..])
            .take_while(|(a, b)| a == b)
            .count()
}
