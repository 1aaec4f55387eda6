//! Bounded little-endian reads from the header's bytes.

/// The header ended early, or a length does not fit into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfBytes;

/// A position in a byte slice that only moves forward.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, length: u64) -> Result<&'a [u8], OutOfBytes> {
        let length = usize::try_from(length).map_err(|_| OutOfBytes)?;
        let end = self.position.checked_add(length).ok_or(OutOfBytes)?;
        let taken = self.bytes.get(self.position..end).ok_or(OutOfBytes)?;
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], OutOfBytes> {
        let taken = self.take(N as u64)?;
        taken.try_into().map_err(|_| OutOfBytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, OutOfBytes> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, OutOfBytes> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length (u64) followed by that many bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], OutOfBytes> {
        let length = self.u64()?;
        self.take(length)
    }
}
