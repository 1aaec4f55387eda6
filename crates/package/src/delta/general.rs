//! Any bytes given any old bytes: copies of what is there already, and the rest coded by what usually follows.
//!
//! New bytes between copies are predicted by their last one to six bytes, by the old byte in their place and by what followed in
//! the old bytes when the last ones occurred there, mixed. The model is warmed up with old bytes, which makes a small change to a
//! text very small. The encoder tries several ways and keeps the smallest.

use super::coder::{Bit, Coder, Encoder, Mixer, Numbers, byte};
use std::io;

/// Shortest copies that are taken: from where the last one would go on, and from elsewhere. Where bytes between copies are
/// predicted well, only long copies pay.
const EAGER: [usize; 2] = [5, 14];
const PATIENT: [usize; 2] = [32, 48];
const VERY_PATIENT: [usize; 2] = [256, 256];
const MOST_PATIENT: [usize; 2] = [2048, 2048];
/// Bytes before and after the first change that warm the model up.
const WARM_BEFORE: u64 = 6144;
const WARM_AFTER: u64 = 2048;
/// Below this many new bytes nothing but the surroundings of the first change is worth learning.
const FEW_BYTES: usize = 512;
/// Pieces of old bytes that warm the model up where there are many new bytes, and how many of them.
const WARM_PIECE: u64 = 8192;
const WARM_PIECES: u64 = 32;
/// Old files longer than this are not searched for what followed the last bytes: the device would have to read them once more.
const SEARCHED_BYTES: u64 = 256 << 20;
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
    /// Whether more of the old bytes are learnt than what is around the first change.
    studious: bool,
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
    mixers: Vec<Mixer<INPUTS>>,
    quick: Vec<[Bit; 256]>,
    /// The last sixteen bytes.
    last: u128,
    /// By how often the old byte in place was right lately, and the bit that it says.
    place_guesses: Vec<Bit>,
    /// The same for what followed in the old bytes.
    match_guesses: Vec<Bit>,
    place_right: usize,
    search: Search,
}

/// Counts of new bytes that are told apart.
const COUNTS: usize = 16;
const ORDERS: usize = 7;
const INPUTS: usize = ORDERS + 2;
/// Bits of a slot in each order's table, and where the tables begin: long contexts are many.
const TABLE_BITS: [u32; ORDERS] = [10, 16, 20, 21, 21, 21, 20];
const TABLE_STARTS: [usize; ORDERS + 1] = {
    let mut starts = [0; ORDERS + 1];
    let mut at = 0;
    while at < ORDERS {
        starts[at + 1] = starts[at] + (1 << TABLE_BITS[at]);
        at += 1;
    }
    starts
};
/// By how many bits tables are smaller where little is learnt.
fn smaller(studious: bool) -> u32 {
    if studious { 0 } else { 3 }
}

/// Right guesses in a row that are counted.
const RIGHT: usize = 31;

impl Models {
    fn new(thorough: bool, studious: bool) -> Self {
        let only = |wanted: bool, count: usize| if wanted { count } else { 0 };
        Models {
            thorough,
            studious,
            warm: false,
            literals: Numbers::new(COUNTS, 1),
            lengths: Numbers::new(COUNTS, 1),
            offsets: Numbers::new(2, 1),
            distances: Numbers::new(1, 1),
            high: Numbers::new(1, 1),
            to_end: Bit::default(),
            from_new: Bit::default(),
            in_place: Bit::default(),
            tables: vec![Bit::default(); only(thorough, TABLE_STARTS[ORDERS] >> smaller(studious))],
            mixers: vec![Mixer::confident(); only(thorough, 256 * 3)],
            quick: vec![[Bit::default(); 256]; only(!thorough, 256)],
            last: 0,
            place_guesses: vec![Bit::default(); 2 * (RIGHT + 2)],
            match_guesses: vec![Bit::default(); 2 * (RIGHT + 2)],
            place_right: 0,
            search: Search::default(),
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

    /// `guess`: what followed in the old bytes.
    fn literal<C: Coder>(
        &mut self,
        coder: &mut C,
        in_place: u8,
        guess: Option<u8>,
        value: u8,
    ) -> u8 {
        let value = if self.thorough {
            self.mixed(coder, in_place, guess, value)
        } else {
            byte(coder, &mut self.quick[(self.last & 255) as usize], value)
        };
        self.last = self.last << 8 | u128::from(value);
        value
    }

    fn mixed<C: Coder>(&mut self, coder: &mut C, in_place: u8, guess: Option<u8>, value: u8) -> u8 {
        let last = self.last as u64;
        let smaller = smaller(self.studious);
        let contexts: [u64; ORDERS] = [
            0,
            last & 0xff,
            last & 0xffff,
            last & 0xff_ffff,
            last & 0xffff_ffff,
            last & 0xffff_ffff_ffff,
            u64::from(in_place) << 8 | last & 0xff,
        ];
        let starts: [u64; ORDERS] = std::array::from_fn(|i| {
            (contexts[i] + 1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(17 + i as u32)
        });
        let mut node = 1_u64;
        for at in (0..8).rev() {
            let mut inputs: [Bit; INPUTS] = [Bit::default(); INPUTS];
            let slots: [usize; ORDERS] = std::array::from_fn(|i| {
                let hash = (starts[i] ^ node.wrapping_mul(0xd6e8_feb8_6659_fd93))
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (TABLE_STARTS[i] >> smaller) + (hash >> (64 - TABLE_BITS[i] + smaller)) as usize
            });
            for (input, slot) in inputs.iter_mut().zip(slots) {
                *input = self.tables[slot];
            }
            // A guess counts as long as its bits were right.
            let guessed = |guess: Option<u8>, right: usize| match guess {
                Some(guess) if (u64::from(guess) | 256) >> (at + 1) == node => {
                    2 * right.min(RIGHT) + usize::from(guess >> at & 1)
                }
                _ => 2 * (RIGHT + 1),
            };
            let place = guessed(Some(in_place), self.place_right);
            let found = guessed(guess, self.search.right);
            inputs[ORDERS] = self.place_guesses[place];
            inputs[ORDERS + 1] = self.match_guesses[found];
            let mixer = node as usize
                + 256 * (usize::from(place < 2 * RIGHT) + usize::from(found < 2 * RIGHT)).min(2);
            let bit = self.mixers[mixer].code(coder, inputs.each_mut(), 127, value >> at & 1 == 1);
            for (input, slot) in inputs.iter().zip(slots) {
                self.tables[slot] = *input;
            }
            self.place_guesses[place] = inputs[ORDERS];
            self.match_guesses[found] = inputs[ORDERS + 1];
            node = node << 1 | u64::from(bit);
        }
        let value = node as u8;
        self.place_right = if value == in_place {
            (self.place_right + 1).min(RIGHT)
        } else {
            self.place_right / 4
        };
        value
    }

    fn warm_up(&mut self, place: &mut dyn Workplace, around: u64) -> io::Result<()> {
        if self.warm || !self.thorough {
            return Ok(());
        }
        self.warm = true;
        if self.studious {
            self.search.index(place)?;
            let pieces = WARM_PIECES.min(place.old_len() / WARM_PIECE);
            for piece in 0..pieces {
                let start = (place.old_len() - WARM_PIECE) / pieces * piece;
                self.learn(place, start, start + WARM_PIECE)?;
            }
        }
        let start = around.saturating_sub(WARM_BEFORE).min(place.old_len());
        let end = (around + WARM_AFTER).min(place.old_len()).max(start);
        self.learn(place, start, end)
    }

    fn learn(&mut self, place: &mut dyn Workplace, start: u64, end: u64) -> io::Result<()> {
        let mut bytes = vec![0; (end - start) as usize];
        place.read_old(start, &mut bytes)?;
        for (i, &value) in bytes.iter().enumerate() {
            let before = bytes.get(i.wrapping_sub(1)).copied().unwrap_or(0);
            self.literal(&mut Nowhere, before, None, value);
        }
        self.place_right = 0;
        Ok(())
    }
}

/// Where in the old bytes the last new ones occurred.
#[derive(Default)]
struct Search {
    /// For each of [`AGREEING`]: position after the bytes of this hash, plus one; empty where nothing is searched.
    slots: [Vec<u32>; 2],
    /// Position of the next guess.
    at: Option<u64>,
    right: usize,
    block: Vec<u8>,
    block_at: u64,
}

/// Bytes that must agree: many first, then few.
const AGREEING: [u32; 2] = [14, 6];
const SEARCH_BITS: u32 = 21;

impl Search {
    fn index(&mut self, place: &mut dyn Workplace) -> io::Result<()> {
        const PIECE: usize = 1 << 20;
        if place.old_len() > SEARCHED_BYTES {
            return Ok(());
        }
        self.slots = [vec![0; 1 << SEARCH_BITS], vec![0; 1 << SEARCH_BITS]];
        let mut last = 0_u128;
        let mut bytes = vec![0; PIECE];
        let mut at = 0;
        while at < place.old_len() {
            let count = (place.old_len() - at).min(PIECE as u64) as usize;
            place.read_old(at, &mut bytes[..count])?;
            for &byte in &bytes[..count] {
                at += 1;
                last = last << 8 | u128::from(byte);
                for (slots, bytes) in self.slots.iter_mut().zip(AGREEING) {
                    slots[slot_of(last, bytes)] = at as u32 + 1;
                }
            }
        }
        Ok(())
    }

    /// What followed in the old bytes, if the last new ones occurred there.
    fn guess(&mut self, place: &mut dyn Workplace, last: u128) -> io::Result<Option<u8>> {
        if self.slots[0].is_empty() {
            return Ok(None);
        }
        // After a wrong guess it goes on beside it, until a better place is found.
        if self.at.is_none() || self.right == 0 {
            for (slots, bytes) in self.slots.iter().zip(AGREEING) {
                let found = u64::from(slots[slot_of(last, bytes)]);
                let Some(at) = found.checked_sub(1).filter(|at| *at >= 16) else {
                    continue;
                };
                let mut before = [0; 16];
                place.read_old(at - 16, &mut before)?;
                let same = (u128::from_be_bytes(before) ^ last).trailing_zeros() / 8;
                if same >= bytes {
                    self.at = Some(at);
                    self.right = same as usize - AGREEING[1] as usize + 1;
                    break;
                }
            }
        }
        let Some(at) = self.at.filter(|at| *at < place.old_len()) else {
            return Ok(None);
        };
        if at < self.block_at || at >= self.block_at + self.block.len() as u64 {
            const BLOCK: u64 = 256;
            self.block
                .resize((place.old_len() - at).min(BLOCK) as usize, 0);
            place.read_old(at, &mut self.block)?;
            self.block_at = at;
        }
        Ok(Some(self.block[(at - self.block_at) as usize]))
    }

    fn learn(&mut self, guess: Option<u8>, value: u8) {
        self.right = match guess {
            Some(guess) if guess == value => (self.right + 1).min(RIGHT),
            _ => 0,
        };
        self.at = self.at.map(|at| at + 1);
    }
}

fn slot_of(last: u128, bytes: u32) -> usize {
    let known = last << (128 - 8 * bytes);
    let folded = (known >> 64) as u64 ^ (known as u64).rotate_left(23);
    let hash = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash ^ hash >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - SEARCH_BITS)) as usize
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
#[derive(Clone, Copy)]
struct Step {
    literals: usize,
    copy: usize,
    from: u64,
    from_new: bool,
}

/// Encodes `new` given `old`. `roomy`: whether decoding may take the 50 MB that learning from
/// all of the old bytes needs.
pub(super) fn encode<C: Coder>(coder: &mut C, old: &[u8], new: &[u8], roomy: bool) {
    let ways = [
        (EAGER, false),
        (EAGER, true),
        (PATIENT, true),
        (VERY_PATIENT, true),
        (MOST_PATIENT, true),
    ];
    let mut best: Option<(usize, Vec<Step>, bool)> = None;
    for (shortest, studious) in ways {
        let steps = find_copies(old, new, shortest);
        let few = literals_of(&steps) < FEW_BYTES || literals_of(&steps) > THOROUGH_BYTES;
        if best.is_some() && few {
            continue;
        }
        let mut trial = Encoder::new();
        if !few {
            encode_steps(&mut trial, old, new, &steps, studious);
        }
        let size = trial.finish().len();
        if best.as_ref().is_none_or(|(smallest, ..)| size < *smallest) {
            best = Some((size, steps, studious));
        }
        if few || !roomy {
            break;
        }
    }
    if let Some((_, steps, studious)) = best {
        encode_steps(coder, old, new, &steps, studious);
    }
}

fn literals_of(steps: &[Step]) -> usize {
    steps.iter().map(|step| step.literals).sum()
}

fn encode_steps<C: Coder>(coder: &mut C, old: &[u8], new: &[u8], steps: &[Step], studious: bool) {
    let thorough = coder.bit(1 << 15, literals_of(steps) <= THOROUGH_BYTES);
    let studious = thorough && coder.bit(1 << 15, studious);
    let mut place = Memory {
        old,
        new: Vec::with_capacity(new.len()),
    };
    let mut models = Models::new(thorough, studious);
    let mut steps = steps.iter().copied();
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
    let studious = thorough && coder.bit(1 << 15, false);
    let end = place.written() + length;
    run(
        coder,
        &mut Models::new(thorough, studious),
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
    // Where in the old bytes the last copy ended, and how many new bytes came before it.
    let (mut old_at, mut before) = (0_u64, 0_u64);
    while place.written() < end {
        let step = next().unwrap_or(Step {
            literals: 0,
            copy: 0,
            from: 0,
            from_new: false,
        });
        let literals = models.wide(
            coder,
            |m| &mut m.literals,
            before.min(COUNTS as u64 - 1) as usize,
            step.literals as u64,
        );
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
            let last = models.last;
            let guess = models.search.guess(place, last)?;
            let value = models.literal(coder, hint, guess, told(place));
            models.search.learn(guess, value);
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
                literals.min(COUNTS as u64 - 1) as usize,
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
            models.last = 0;
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
            // What follows depends on what was copied.
            let mut tail = [0; 16];
            let known = length.min(16) as usize;
            place.read_old(until - known as u64, &mut tail[16 - known..])?;
            models.last = u128::from_be_bytes(tail);
        }
        models.search.at = None;
        before = literals;
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

fn find_copies(old: &[u8], new: &[u8], shortest: [usize; 2]) -> Vec<Step> {
    let [shortest_near, shortest_far] = shortest;
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
                    shortest_near
                },
            );
        }
        if literals < 512 {
            for near in old_at..(old_at + 256).min(old.len()) {
                offer(
                    near,
                    common(&old[near..], here),
                    false,
                    shortest_near.max(8),
                );
            }
        }
        if let Some(from) = old_index.find(here) {
            offer(
                from * stride,
                common(&old[from * stride..], here),
                false,
                shortest_far,
            );
        }
        if let Some(from) = new_index.find(here)
            && from < at
        {
            offer(from, common(&new[from..], here), true, shortest_near.max(8));
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
