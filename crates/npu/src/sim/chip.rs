//! On-chip memory: a bounded arena. Whatever would lie outside of its place is an error, never ignored.

use thiserror::Error;

use super::store::{read_halves, write_halves};
use crate::program::{Layout, Place, Region};

/// A program touched what it does not own.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error(
    "on-chip memory overflows: {bytes} bytes at {offset} in {region:?}, whose place has {place} of the chip's {sram}"
)]
pub(super) struct Overflow {
    region: Region,
    offset: usize,
    bytes: usize,
    place: usize,
    sram: usize,
}

/// The chip's memory, and what the host keeps for it.
pub(super) struct Chip {
    arena: Vec<u8>,
    host: Vec<u8>,
    /// End of the highest byte ever touched.
    pub(super) high_water: usize,
    /// Whether 16-bit floats are bfloat16.
    pub(super) brain: bool,
}

impl Chip {
    pub(super) fn new(sram: usize, brain: bool) -> Self {
        Chip {
            arena: vec![0; sram],
            host: Vec::new(),
            high_water: 0,
            brain,
        }
    }

    /// Makes room for what the host keeps.
    pub(super) fn begin(&mut self, layout: &Layout) {
        if self.host.len() < layout.host_bytes {
            self.host.resize(layout.host_bytes, 0);
        }
    }

    /// `bytes` bytes of `region` from `offset` on.
    pub(super) fn bytes(
        &mut self,
        layout: &Layout,
        region: Region,
        offset: usize,
        bytes: usize,
    ) -> Result<&mut [u8], Overflow> {
        self.at(layout, region, layout.place(region), offset, bytes)
    }

    /// The same within a place of `region` that is named apart.
    pub(super) fn at(
        &mut self,
        layout: &Layout,
        region: Region,
        place: Place,
        offset: usize,
        bytes: usize,
    ) -> Result<&mut [u8], Overflow> {
        let on_host = layout.on_host(region);
        let memory = match on_host {
            true => &mut self.host,
            false => &mut self.arena,
        };
        let overflow = Overflow {
            region,
            offset,
            bytes,
            place: place.bytes,
            sram: layout.sram,
        };
        let within = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= place.bytes);
        let start = if within {
            place.offset + offset
        } else {
            usize::MAX
        };
        let found = start
            .checked_add(bytes)
            .and_then(|end| memory.get_mut(start..end));
        let Some(found) = found.filter(|_| within) else {
            return Err(overflow);
        };
        if !on_host {
            self.high_water = self.high_water.max(start + bytes);
        }
        Ok(found)
    }

    /// Reads `count` 16-bit floats of `region` from element `first` on.
    pub(super) fn read(
        &mut self,
        layout: &Layout,
        region: Region,
        first: usize,
        count: usize,
    ) -> Result<Vec<f32>, Overflow> {
        let brain = self.brain;
        let bytes = self.bytes(layout, region, 2 * first, 2 * count)?;
        let mut out = vec![0.0; count];
        read_halves(bytes, brain, &mut out);
        Ok(out)
    }

    /// Writes 16-bit floats to `region` from element `first` on.
    pub(super) fn write(
        &mut self,
        layout: &Layout,
        region: Region,
        first: usize,
        values: &[f32],
    ) -> Result<(), Overflow> {
        let brain = self.brain;
        let bytes = self.bytes(layout, region, 2 * first, 2 * values.len())?;
        write_halves(values, brain, bytes);
        Ok(())
    }

    /// Reads 32-bit floats.
    pub(super) fn read_wide(
        &mut self,
        layout: &Layout,
        region: Region,
        first: usize,
        count: usize,
    ) -> Result<Vec<f32>, Overflow> {
        let bytes = self.bytes(layout, region, 4 * first, 4 * count)?;
        let floats = bytes.chunks_exact(4);
        Ok(floats
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect())
    }

    /// Writes 32-bit floats.
    pub(super) fn write_wide(
        &mut self,
        layout: &Layout,
        region: Region,
        first: usize,
        values: &[f32],
    ) -> Result<(), Overflow> {
        let bytes = self.bytes(layout, region, 4 * first, 4 * values.len())?;
        for (four, value) in bytes.chunks_exact_mut(4).zip(values) {
            four.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Step, lower};
    use ondine_runtime::hf::describe;

    /// One element more than a region holds is an error, wherever the arena ends.
    #[test]
    fn an_overflow_is_an_error() {
        let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
        let spec = describe(
            &config.join("qwen2-0.5b.json"),
            &ondine_runtime::Limits::default(),
        )
        .unwrap();
        let profile = crate::profile::named("intel-npu-4000").unwrap();
        let layout = lower(&Step {
            spec: &spec,
            profile: &profile,
            precision: &profile.precisions[0],
            rows: 1,
            position: 0,
            context: 64,
            wanted: 1,
            buffers: 2,
        })
        .unwrap()
        .layout;
        let mut chip = Chip::new(layout.sram, false);
        let elements = layout.place(Region::Residual).bytes / 2;
        let values = vec![0.0; elements + 1];
        assert!(
            chip.write(&layout, Region::Residual, 0, &values[..elements])
                .is_ok()
        );
        let error = chip
            .write(&layout, Region::Residual, 0, &values)
            .unwrap_err();
        assert!(error.to_string().contains("Residual"), "{error}");
        assert!(
            chip.write(&layout, Region::Residual, usize::MAX / 4, &[1.0])
                .is_err()
        );
        let mut small = Chip::new(64, false);
        assert!(small.write(&layout, Region::Inner, 0, &[1.0]).is_err());
    }
}
