//! Precisions: how weights and activations are stored and multiplied.

use std::fmt;

/// A name such as `w4a16` or `w4a16_g128`: weight bits, activation bits, weights that share a scale.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dtype(String);

impl Dtype {
    /// Reads `w<bits>a<bits>`, optionally `_g<group>`.
    ///
    /// # Errors
    /// One sentence, when the text is no such name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{text}` is no precision; write it as w8a8, w4a16 or w4a16_g128");
        let (bits, group) = match text.split_once("_g") {
            Some((bits, group)) => (bits, Some(group)),
            None => (text, None),
        };
        let (weights, activations) = bits
            .strip_prefix('w')
            .and_then(|bits| bits.split_once('a'))
            .ok_or_else(refuse)?;
        let number = |text: &str, most: u32| {
            let well_formed = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse::<u32>().ok().filter(|_| well_formed);
            number.filter(|number| (1..=most).contains(number))
        };
        let known = number(weights, 16).is_some()
            && number(activations, 32).is_some()
            && group.is_none_or(|group| number(group, 1 << 16).is_some());
        if known {
            Ok(Dtype(text.to_owned()))
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One way in which a device multiplies.
#[derive(Debug, Clone, PartialEq)]
pub struct Precision {
    /// Its name.
    pub dtype: Dtype,
    /// Bits of a weight: 4, 8 or 16.
    pub weight_bits: u32,
    /// Weights of a row that share a scale; 0 is the whole row.
    pub group: usize,
    /// Whether a group has a smallest value beside its scale.
    pub offset: bool,
    /// Bits of a weight of the output head.
    pub head_bits: u32,
    /// Bits of an element of the embedding table.
    pub embedding_bits: u32,
    /// What the products take.
    pub activations: Activations,
    /// Peak multiply-accumulates per second, where published.
    pub macs_per_second: Option<f64>,
}

/// What the products take as input; between them, activations are 16-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// 8-bit integers with a scale per token.
    Int8,
    /// 16-bit integers with a scale per token.
    Int16,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// Bytes of a row of `columns` weights of `bits` bits: scales, smallest values, codes.
    pub fn row_bytes(&self, bits: u32, columns: usize) -> u64 {
        let codes = (columns as u64 * u64::from(bits)).div_ceil(8);
        if bits >= 16 {
            return codes;
        }
        let groups = columns.div_ceil(self.group_length(columns)) as u64;
        codes + groups * if self.offset { 4 } else { 2 }
    }

    /// Weights that share a scale in a row of `columns`.
    pub fn group_length(&self, columns: usize) -> usize {
        match self.group {
            0 => columns.max(1),
            group => group.min(columns.max(1)),
        }
    }
}
