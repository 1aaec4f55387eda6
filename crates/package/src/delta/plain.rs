//! Tensors of plain numbers given their old version, other tensors given theirs, and tensors that are new.

use super::coder::{Bit, Coder, Numbers, byte};

/// Half octaves of movement in units of the last place.
const LEVELS: usize = 40;

/// Numbers as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Single precision.
    F32,
    /// Single precision whose lower halves are all zero.
    F32Short,
}

impl Format {
    pub fn of_type(number: u32) -> Option<Self> {
        match number {
            0 => Some(Format::F32),
            1 => Some(Format::F16),
            30 => Some(Format::BF16),
            _ => None,
        }
    }

    pub fn width(self) -> usize {
        match self {
            Format::F16 | Format::BF16 => 2,
            Format::F32 | Format::F32Short => 4,
        }
    }

    fn bits(self, bytes: &[u8]) -> u32 {
        match self {
            Format::F16 | Format::BF16 => u16::from_le_bytes([bytes[0], bytes[1]]).into(),
            Format::F32 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Format::F32Short => u16::from_le_bytes([bytes[2], bytes[3]]).into(),
        }
    }

    fn put(self, bits: u32, bytes: &mut [u8]) {
        match self {
            Format::F16 | Format::BF16 => bytes.copy_from_slice(&(bits as u16).to_le_bytes()),
            Format::F32 => bytes.copy_from_slice(&bits.to_le_bytes()),
            Format::F32Short => bytes.copy_from_slice(&[0, 0, bits as u8, (bits >> 8) as u8]),
        }
    }

    fn sign_bit(self) -> u32 {
        if self == Format::F32 {
            1 << 31
        } else {
            1 << 15
        }
    }

    /// Numbers in the order of their values.
    fn order(self, bits: u32) -> i64 {
        let size = i64::from(bits & (self.sign_bit() - 1));
        if bits & self.sign_bit() == 0 {
            size
        } else {
            -1 - size
        }
    }

    fn at_order(self, order: i64) -> u32 {
        let mask = i64::from(self.sign_bit() - 1);
        if order >= 0 {
            (order & mask) as u32
        } else {
            ((-1 - order) & mask) as u32 | self.sign_bit()
        }
    }

    /// Distance to the next number, as the exponent of two.
    fn place(self, bits: u32) -> i32 {
        let (exponent, fraction) = match self {
            Format::F16 => (bits >> 10 & 31, 10),
            Format::BF16 | Format::F32Short => (bits >> 7 & 255, 7),
            Format::F32 => (bits >> 23 & 255, 23),
        };
        let bias = if self == Format::F16 { 15 } else { 127 };
        exponent.max(1) as i32 - bias - fraction
    }
}

/// Whether the lower halves of all single-precision numbers are zero.
pub(super) fn is_short(bytes: &[u8]) -> bool {
    bytes
        .chunks_exact(4)
        .all(|value| value[0] == 0 && value[1] == 0)
}

/// Plain numbers given their old version: the difference in units of the last place, expected from how far the column, the row
/// and the tensor move compared with that unit.
pub(super) struct Floats {
    format: Format,
    columns: Vec<f32>,
    column: usize,
    row: f32,
    mean: f32,
    before: i64,
    model: Numbers,
}

impl Floats {
    pub fn new(format: Format) -> Self {
        Floats {
            format,
            columns: Vec::new(),
            column: 0,
            row: 0.0,
            mean: 0.0,
            before: 0,
            model: Numbers::new(LEVELS * 2, 3),
        }
    }

    pub fn start(&mut self, row: usize) {
        self.columns = vec![self.mean; row.max(1)];
        (self.column, self.row, self.before) = (0, self.mean, 0);
    }

    pub fn values<C: Coder>(&mut self, coder: &mut C, old: &[u8], new: &mut [u8]) {
        let width = self.format.width();
        for (old, new) in old.chunks_exact(width).zip(new.chunks_exact_mut(width)) {
            let old = self.format.bits(old);
            let unit = power_of_two(self.format.place(old));
            let moved = &mut self.columns[self.column];
            let expected = *moved * (self.row / self.mean.max(1e-30)) / unit;
            let context = 2 * level(expected) + usize::from(self.before != 0);
            let difference = if C::DECODES {
                0
            } else {
                self.format.order(self.format.bits(new)) - self.format.order(old)
            };
            let difference = self.model.signed(
                coder,
                context,
                (self.before.signum() + 1) as usize,
                difference,
            );
            if C::DECODES {
                self.format.put(
                    self.format.at_order(self.format.order(old) + difference),
                    new,
                );
            }
            let distance = difference.unsigned_abs() as f32 * unit;
            *moved += (distance - *moved) * (1.0 / 16.0);
            self.row += (distance - self.row) * (1.0 / 32.0);
            self.mean += (distance - self.mean) * (1.0 / 1024.0);
            self.before = difference;
            self.column += 1;
            if self.column == self.columns.len() {
                (self.column, self.row) = (0, 0.5 * (self.row + self.mean));
            }
        }
    }
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127).clamp(1, 254) as u32) << 23)
}

fn level(ratio: f32) -> usize {
    ((ratio.to_bits() >> 22) as i32 - ((127 - 10) << 1)).clamp(0, LEVELS as i32 - 1) as usize
}

/// Bytes in records of a fixed width, with or without an old version.
pub(super) struct Records {
    width: usize,
    /// Whether the bytes of a record are coded from last to first: numbers keep their exponent there.
    numbers: bool,
    same: Vec<Bit>,
    trees: Vec<[Bit; 256]>,
    before: Vec<u8>,
}

impl Records {
    /// `numbers`: records are little-endian floating-point numbers.
    pub fn new(width: usize, numbers: bool) -> Self {
        let trees = if numbers { 512 + width } else { width };
        Records {
            width,
            numbers,
            same: vec![Bit::default(); width * 2],
            trees: vec![[Bit::default(); 256]; trees],
            before: vec![0; width],
        }
    }

    /// Codes records that have no old version.
    pub fn fresh<C: Coder>(&mut self, coder: &mut C, new: &mut [u8]) {
        for record in new.chunks_mut(self.width) {
            for step in 0..record.len() {
                let at = if self.numbers {
                    record.len() - 1 - step
                } else {
                    step
                };
                let context = match (self.numbers, step) {
                    (false, _) => at,
                    (true, 0) => usize::from(self.before[at]),
                    (true, 1) => 256 + usize::from(record[at + 1]),
                    (true, _) => 512 + at,
                };
                record[at] = byte(coder, &mut self.trees[context], record[at]);
            }
            self.before[..record.len()].copy_from_slice(record);
        }
    }

    /// Codes records given their old version.
    pub fn changed<C: Coder>(&mut self, coder: &mut C, old: &[u8], new: &mut [u8]) {
        let mut same_before = true;
        for (old, new) in old.chunks(self.width).zip(new.chunks_mut(self.width)) {
            for (at, (old, new)) in old.iter().zip(new).enumerate() {
                let same = self.same[2 * at + usize::from(same_before)].code(coder, old == new);
                same_before = same;
                *new = if same {
                    *old
                } else {
                    byte(coder, &mut self.trees[at], *new)
                };
            }
        }
    }
}
