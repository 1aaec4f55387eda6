//! Keys and values of a sequence in the device's memory.

use ondine_runtime::model::{Attention, Mixer, ModelSpec};

use super::store::{half_at, read_halves, write_halves};
use crate::profile::Profile;
use crate::program::position_bytes;

/// How one layer's keys and values are stored: by head, then by position; a position is its key and its value, of 8-bit
/// elements each with a scale before it.
#[derive(Debug, Clone)]
pub(super) struct Form {
    pub(super) heads: usize,
    pub(super) key: usize,
    pub(super) value: usize,
    /// Bytes of an element.
    element: usize,
    brain: bool,
    /// Bytes of one position of one head.
    pub(super) position: usize,
}

impl Form {
    pub(super) fn of(attention: &Attention, profile: &Profile, brain: bool) -> Self {
        Form {
            heads: attention.kv_heads,
            key: attention.key_dim,
            value: attention.value_dim,
            element: profile.kv_bytes.min(2),
            brain,
            position: position_bytes(profile, attention),
        }
    }

    /// Writes a key and a value.
    pub(super) fn encode(&self, key: &[f32], value: &[f32], out: &mut [u8]) {
        let (keys, values) = out.split_at_mut(self.vector_bytes(self.key));
        for (vector, out) in [(key, keys), (value, values)] {
            if self.element == 2 {
                write_halves(vector, self.brain, out);
                continue;
            }
            let most = vector.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let scale = half::f16::from_f32(most / 127.0);
            let inverse = match scale.to_f32() {
                0.0 => 0.0,
                scale => 1.0 / scale,
            };
            out[..2].copy_from_slice(&scale.to_le_bytes());
            for (out, x) in out[2..].iter_mut().zip(vector) {
                *out = (x * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
            }
        }
    }

    /// Reads a key and a value.
    pub(super) fn decode(&self, bytes: &[u8], key: &mut [f32], value: &mut [f32]) {
        let (keys, values) = bytes.split_at(self.vector_bytes(self.key));
        for (bytes, out) in [(keys, key), (values, value)] {
            if self.element == 2 {
                read_halves(bytes, self.brain, out);
                continue;
            }
            let scale = half_at(bytes, 0);
            for (out, code) in out.iter_mut().zip(&bytes[2..]) {
                *out = f32::from(*code as i8) * scale;
            }
        }
    }

    fn vector_bytes(&self, elements: usize) -> usize {
        elements * self.element + if self.element == 1 { 2 } else { 0 }
    }
}

/// A sequence's keys and values.
#[derive(Debug, Clone, Default)]
pub(super) struct Sequence {
    pub(super) length: usize,
    /// By layer and head: [length × position bytes].
    pub(super) heads: Vec<Vec<Vec<u8>>>,
}

impl Sequence {
    pub(super) fn new(forms: &[Form]) -> Self {
        Sequence {
            length: 0,
            heads: forms
                .iter()
                .map(|form| vec![Vec::new(); form.heads])
                .collect(),
        }
    }

    /// Forgets what lies beyond `length`.
    pub(super) fn truncate(&mut self, forms: &[Form], length: usize) {
        self.length = self.length.min(length);
        for (heads, form) in self.heads.iter_mut().zip(forms) {
            for head in heads {
                head.truncate(self.length * form.position);
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let heads = self.heads.iter().flatten();
        heads.map(|head| head.len() as u64).sum()
    }
}

/// The forms of all layers; `None` when a layer is no attention.
pub(super) fn forms(spec: &ModelSpec, profile: &Profile, brain: bool) -> Option<Vec<Form>> {
    let layers = spec.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => Some(Form::of(attention, profile, brain)),
        Mixer::ShortConvolution(_) => None,
    });
    layers.collect()
}
