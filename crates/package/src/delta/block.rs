//! Quantised blocks taken apart: half-precision factors, sub-block factors and codes, and back, for every byte value.
//!
//! A weight is `offset + scale · code`, both the same for a group of codes. That is all the coder needs to know of a type.

/// How the blocks of one tensor type are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// One block, taken apart.
#[derive(Clone)]
pub(super) struct Block {
    /// Factors of the whole block, as the bits of half-precision numbers.
    pub halves: [u16; 2],
    /// Factors of the groups: scales, then minima.
    pub subs: [u8; 32],
    /// One code per weight, in the order of the weights.
    pub codes: [u8; 256],
}

impl Default for Block {
    fn default() -> Self {
        Block {
            halves: [0; 2],
            subs: [0; 32],
            codes: [0; 256],
        }
    }
}

impl Layout {
    /// By the number of the type in GGUF files. IQ4_NL has the layout of Q4_0, though its codes are not linear.
    pub fn of_type(number: u32) -> Option<Self> {
        Some(match number {
            2 | 20 => Layout::Q4_0,
            3 => Layout::Q4_1,
            6 => Layout::Q5_0,
            7 => Layout::Q5_1,
            8 => Layout::Q8_0,
            10 => Layout::Q2K,
            11 => Layout::Q3K,
            12 => Layout::Q4K,
            13 => Layout::Q5K,
            14 => Layout::Q6K,
            _ => return None,
        })
    }

    pub fn block_bytes(self) -> usize {
        match self {
            Layout::Q4_0 => 18,
            Layout::Q4_1 => 20,
            Layout::Q5_0 => 22,
            Layout::Q5_1 => 24,
            Layout::Q8_0 => 34,
            Layout::Q2K => 84,
            Layout::Q3K => 110,
            Layout::Q4K => 144,
            Layout::Q5K => 176,
            Layout::Q6K => 210,
        }
    }

    /// Weights per block.
    pub fn weights(self) -> usize {
        if self.is_k() { 256 } else { 32 }
    }

    /// Weights that share a scale.
    pub fn group(self) -> usize {
        match self {
            Layout::Q2K | Layout::Q3K | Layout::Q6K => 16,
            _ => 32,
        }
    }

    /// Half-precision factors per block.
    pub fn halves(self) -> usize {
        match self {
            Layout::Q4_1 | Layout::Q5_1 | Layout::Q2K | Layout::Q4K | Layout::Q5K => 2,
            _ => 1,
        }
    }

    /// Scales of groups; as many minima follow where [`Layout::has_minima`].
    pub fn sub_scales(self) -> usize {
        if self.is_k() { 256 / self.group() } else { 0 }
    }

    pub fn has_minima(self) -> bool {
        matches!(self, Layout::Q2K | Layout::Q4K | Layout::Q5K)
    }

    /// Largest value of a scale or minimum of a group.
    pub fn largest_sub(self) -> i32 {
        match self {
            Layout::Q2K => 15,
            Layout::Q6K => 255,
            _ => 63,
        }
    }

    /// Largest code.
    pub fn largest_code(self) -> i32 {
        match self {
            Layout::Q2K => 3,
            Layout::Q3K => 7,
            Layout::Q4_0 | Layout::Q4_1 | Layout::Q4K => 15,
            Layout::Q5_0 | Layout::Q5_1 | Layout::Q5K => 31,
            Layout::Q6K => 63,
            Layout::Q8_0 => 255,
        }
    }

    /// Scale and offset of group `group`: a weight is `offset + scale · code`.
    #[inline]
    pub fn affine(self, block: &Block, group: usize) -> (f32, f32) {
        let d = half_to_float(block.halves[0]);
        let sub = f32::from(block.subs[group]);
        match self {
            Layout::Q4_0 => (d, -8.0 * d),
            Layout::Q5_0 => (d, -16.0 * d),
            Layout::Q8_0 => (d, -128.0 * d),
            Layout::Q4_1 | Layout::Q5_1 => (d, half_to_float(block.halves[1])),
            Layout::Q2K | Layout::Q4K | Layout::Q5K => {
                let minimum = f32::from(block.subs[self.sub_scales() + group]);
                (d * sub, -half_to_float(block.halves[1]) * minimum)
            }
            Layout::Q3K => (d * (sub - 32.0), -4.0 * d * (sub - 32.0)),
            Layout::Q6K => (d * (sub - 128.0), -32.0 * d * (sub - 128.0)),
        }
    }

    /// Takes `bytes` apart, all but the codes.
    #[inline]
    pub fn read_factors(self, bytes: &[u8], block: &mut Block) {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        match self {
            Layout::Q4_0 | Layout::Q5_0 | Layout::Q8_0 => block.halves[0] = half(0),
            Layout::Q4_1 | Layout::Q5_1 => block.halves = [half(0), half(2)],
            Layout::Q2K => {
                block.halves = [half(80), half(82)];
                for i in 0..16 {
                    block.subs[i] = bytes[i] & 15;
                    block.subs[16 + i] = bytes[i] >> 4;
                }
            }
            Layout::Q3K => {
                block.halves[0] = half(108);
                for i in 0..16 {
                    let low = if i < 8 {
                        bytes[96 + i] & 15
                    } else {
                        bytes[96 + i - 8] >> 4
                    };
                    block.subs[i] = low | (bytes[104 + i % 4] >> (2 * (i / 4)) & 3) << 4;
                }
            }
            Layout::Q4K | Layout::Q5K => {
                block.halves = [half(0), half(2)];
                for i in 0..4 {
                    let (a, b, c) = (bytes[4 + i], bytes[8 + i], bytes[12 + i]);
                    block.subs[i] = a & 63;
                    block.subs[8 + i] = b & 63;
                    block.subs[4 + i] = c & 15 | a >> 6 << 4;
                    block.subs[12 + i] = c >> 4 | b >> 6 << 4;
                }
            }
            Layout::Q6K => {
                block.halves[0] = half(208);
                for i in 0..16 {
                    block.subs[i] = bytes[192 + i] ^ 0x80;
                }
            }
        }
    }

    /// Takes the codes out of `bytes`.
    #[inline]
    pub fn read_codes(self, bytes: &[u8], codes: &mut [u8; 256]) {
        match self {
            Layout::Q4_0 => nibbles(&bytes[2..18], codes),
            Layout::Q4_1 => nibbles(&bytes[4..20], codes),
            Layout::Q5_0 | Layout::Q5_1 => {
                let at = self.block_bytes() - 20;
                nibbles(&bytes[at + 4..], codes);
                for i in 0..32 {
                    codes[i] |= (bytes[at + i / 8] >> (i % 8) & 1) << 4;
                }
            }
            Layout::Q8_0 => (0..32).for_each(|i| codes[i] = bytes[2 + i] ^ 0x80),
            Layout::Q2K => {
                for i in 0..256 {
                    codes[i] = bytes[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
                }
            }
            Layout::Q3K => {
                for i in 0..256 {
                    let low = bytes[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
                    codes[i] = low | (bytes[i % 32] >> (i / 32) & 1) << 2;
                }
            }
            Layout::Q4K | Layout::Q5K => {
                let at = self.block_bytes() - 128;
                for i in 0..256 {
                    let byte = bytes[at + i / 64 * 32 + i % 32];
                    codes[i] = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
                    if self == Layout::Q5K {
                        codes[i] |= (bytes[16 + i % 32] >> (i / 32) & 1) << 4;
                    }
                }
            }
            Layout::Q6K => {
                for i in 0..256 {
                    let (half, within) = (i / 128, i % 128);
                    let byte = bytes[half * 64 + within % 64];
                    let low = if within < 64 { byte & 15 } else { byte >> 4 };
                    codes[i] = low
                        | (bytes[128 + half * 32 + within % 32] >> (2 * (within / 32)) & 3) << 4;
                }
            }
        }
    }

    /// Puts a block together.
    pub fn write(self, block: &Block, bytes: &mut [u8]) {
        bytes.fill(0);
        let codes = &block.codes;
        let [first, second] = block.halves.map(u16::to_le_bytes);
        match self {
            Layout::Q4_0 | Layout::Q5_0 | Layout::Q8_0 => bytes[..2].copy_from_slice(&first),
            Layout::Q4_1 | Layout::Q5_1 | Layout::Q4K | Layout::Q5K => {
                bytes[..2].copy_from_slice(&first);
                bytes[2..4].copy_from_slice(&second);
            }
            Layout::Q2K => {
                bytes[80..82].copy_from_slice(&first);
                bytes[82..84].copy_from_slice(&second);
            }
            Layout::Q3K => bytes[108..110].copy_from_slice(&first),
            Layout::Q6K => bytes[208..210].copy_from_slice(&first),
        }
        match self {
            Layout::Q4_0 | Layout::Q4_1 => {
                let at = self.block_bytes() - 16;
                (0..16).for_each(|i| bytes[at + i] = codes[i] | codes[16 + i] << 4);
            }
            Layout::Q5_0 | Layout::Q5_1 => {
                let at = self.block_bytes() - 20;
                (0..16).for_each(|i| bytes[at + 4 + i] = codes[i] & 15 | codes[16 + i] << 4);
                (0..32).for_each(|i| bytes[at + i / 8] |= (codes[i] >> 4 & 1) << (i % 8));
            }
            Layout::Q8_0 => (0..32).for_each(|i| bytes[2 + i] = codes[i] ^ 0x80),
            Layout::Q2K => {
                (0..16).for_each(|i| bytes[i] = block.subs[i] | block.subs[16 + i] << 4);
                (0..256).for_each(|i| {
                    bytes[16 + i / 128 * 32 + i % 32] |= codes[i] << (2 * (i % 128 / 32))
                });
            }
            Layout::Q3K => {
                for i in 0..16 {
                    let low = block.subs[i] & 15;
                    bytes[96 + i % 8] |= if i < 8 { low } else { low << 4 };
                    bytes[104 + i % 4] |= (block.subs[i] >> 4) << (2 * (i / 4));
                }
                for i in 0..256 {
                    bytes[32 + i / 128 * 32 + i % 32] |= (codes[i] & 3) << (2 * (i % 128 / 32));
                    bytes[i % 32] |= (codes[i] >> 2) << (i / 32);
                }
            }
            Layout::Q4K | Layout::Q5K => {
                for i in 0..4 {
                    bytes[4 + i] = block.subs[i] | block.subs[4 + i] >> 4 << 6;
                    bytes[8 + i] = block.subs[8 + i] | block.subs[12 + i] >> 4 << 6;
                    bytes[12 + i] = block.subs[4 + i] & 15 | block.subs[12 + i] << 4;
                }
                let at = self.block_bytes() - 128;
                for i in 0..256 {
                    let low = codes[i] & 15;
                    bytes[at + i / 64 * 32 + i % 32] |= if i % 64 < 32 { low } else { low << 4 };
                    if self == Layout::Q5K {
                        bytes[16 + i % 32] |= (codes[i] >> 4) << (i / 32);
                    }
                }
            }
            Layout::Q6K => {
                (0..16).for_each(|i| bytes[192 + i] = block.subs[i] ^ 0x80);
                for i in 0..256 {
                    let (half, within) = (i / 128, i % 128);
                    let low = codes[i] & 15;
                    bytes[half * 64 + within % 64] |= if within < 64 { low } else { low << 4 };
                    bytes[128 + half * 32 + within % 32] |= (codes[i] >> 4) << (2 * (within / 32));
                }
            }
        }
    }

    fn is_k(self) -> bool {
        matches!(
            self,
            Layout::Q2K | Layout::Q3K | Layout::Q4K | Layout::Q5K | Layout::Q6K
        )
    }
}

#[inline]
fn nibbles(bytes: &[u8], codes: &mut [u8; 256]) {
    for i in 0..16 {
        codes[i] = bytes[i] & 15;
        codes[16 + i] = bytes[i] >> 4;
    }
}

/// Value of a half-precision number, exactly.
#[inline]
pub(super) fn half_to_float(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (
        u32::from(bits >> 15) << 31,
        u32::from(bits >> 10 & 31),
        u32::from(bits & 1023),
    );
    match exponent {
        0 => {
            let size = fraction as f32 * (1.0 / 16_777_216.0);
            if sign == 0 { size } else { -size }
        }
        31 => f32::from_bits(sign | 255 << 23 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// The nearest half-precision number, ties to even; what is too large becomes infinite.
#[inline]
pub(super) fn float_to_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let size = bits & 0x7fff_ffff;
    if size >= 0x4780_0000 {
        return sign | if size > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    }
    if size < 0x3880_0000 {
        // Adding 0.5 leaves the rounded multiple of 2^-24 in the lowest bits.
        let shifted = (f32::from_bits(size) + 0.5).to_bits();
        return sign | (shifted - 0x3f00_0000) as u16;
    }
    let rounded = size + 0xfff + (size >> 13 & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

/// Numbers half-precision bits in the order of their values; the inverse is [`half_from_order`].
#[inline]
pub(super) fn half_order(bits: u16) -> i32 {
    let size = i32::from(bits & 0x7fff);
    if bits & 0x8000 == 0 { size } else { -1 - size }
}

/// See [`half_order`]; what is out of range wraps, which only damaged input does.
#[inline]
pub(super) fn half_from_order(order: i32) -> u16 {
    if order >= 0 {
        order as u16 & 0x7fff
    } else {
        (-1 - order) as u16 | 0x8000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Layout; 10] = [
        Layout::Q4_0,
        Layout::Q4_1,
        Layout::Q5_0,
        Layout::Q5_1,
        Layout::Q8_0,
        Layout::Q2K,
        Layout::Q3K,
        Layout::Q4K,
        Layout::Q5K,
        Layout::Q6K,
    ];

    proptest! {
        #[test]
        fn any_block_survives(bytes in proptest::collection::vec(any::<u8>(), 210)) {
            for layout in ALL {
                let bytes = &bytes[..layout.block_bytes()];
                let mut block = Block::default();
                layout.read_factors(bytes, &mut block);
                layout.read_codes(bytes, &mut block.codes);
                prop_assert!(block.codes.iter().all(|code| i32::from(*code) <= layout.largest_code()));
                prop_assert!(block.subs.iter().all(|sub| i32::from(*sub) <= layout.largest_sub()));
                let mut out = vec![0xff; bytes.len()];
                layout.write(&block, &mut out);
                prop_assert_eq!(&out[..], bytes, "{:?}", layout);
            }
        }
    }

    #[test]
    fn every_half_survives() {
        for bits in 0..=u16::MAX {
            assert_eq!(half_from_order(half_order(bits)), bits);
            let value = half_to_float(bits);
            if !value.is_nan() {
                assert_eq!(float_to_half(value), bits, "{value}");
            }
        }
        assert!(half_order(0x3c00) > half_order(0x3bff) && half_order(0xbc00) < half_order(0x8000));
        assert_eq!(float_to_half(65_520.0), 0x7c00);
        assert_eq!(float_to_half(1.0 + 1.0 / 2048.0), 0x3c00);
        assert_eq!(float_to_half(1.0 + 3.0 / 2048.0), 0x3c02);
    }
}
