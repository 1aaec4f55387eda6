//! Reads large pieces of a file into memory at the speed of the disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ondine_kernels::AlignedBytes;

/// Offsets, lengths and addresses of direct reads are multiples of this: the largest block of common disks.
pub(crate) const DISK_BLOCK: usize = 4096;

/// What one request reads. Several of this size under way keep a disk busy; larger ones leave it idle at the end of a
/// piece, smaller ones cost system calls.
const REQUEST: usize = 1 << 20;

/// Requests under way at once.
const REQUESTS: usize = 4;

/// A file that is read past the system's page cache, where the file system lets us: what is streamed is larger than
/// memory, so that a copy in the cache would only push out what is used again.
pub(crate) struct Disk {
    file: File,
    direct: bool,
}

impl Disk {
    /// Opens the file at `path`, whose length is a multiple of [`DISK_BLOCK`].
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(file) = open_direct(path) {
            return Ok(Disk { file, direct: true });
        }
        Ok(Disk {
            file: File::open(path)?,
            direct: false,
        })
    }

    /// Fills `out`, of whole blocks, from `offset`, a multiple of [`DISK_BLOCK`], with several requests at once.
    pub(crate) fn read(&self, offset: u64, out: &mut Buffer) -> io::Result<()> {
        self.read_with(offset, out, REQUESTS)
    }

    /// [`read`](Self::read) with a given number of requests at once.
    pub(crate) fn read_with(
        &self,
        offset: u64,
        out: &mut Buffer,
        requests: usize,
    ) -> io::Result<()> {
        let length = out.length;
        let pieces = length.div_ceil(REQUEST);
        let queue = Mutex::new(out.as_mut_slice().chunks_mut(REQUEST).enumerate());
        let work = || -> io::Result<()> {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((index, piece)) = next else {
                    return Ok(());
                };
                read_exact_at(&self.file, piece, offset + (index * REQUEST) as u64)?;
            }
        };
        let result = std::thread::scope(|scope| {
            let others = requests.min(pieces).saturating_sub(1);
            let others: Vec<_> = (0..others).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let results = others.into_iter().map(|other| other.join());
            results.fold(mine, |all, one| {
                all.and(one.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
            })
        });
        if !self.direct {
            forget(&self.file, offset..offset + length as u64);
        }
        result
    }
}

/// Memory that direct reads can fill: whole blocks, aligned to a block.
pub(crate) struct Buffer {
    bytes: AlignedBytes,
    skipped: usize,
    length: usize,
}

impl Buffer {
    /// Zeroed memory of `length` bytes, rounded up to whole blocks.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let length = length.next_multiple_of(DISK_BLOCK);
        let bytes = AlignedBytes::zeroed(length + DISK_BLOCK)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let address = bytes.as_ref().as_ptr().addr();
        Ok(Buffer {
            bytes,
            skipped: address.next_multiple_of(DISK_BLOCK) - address,
            length,
        })
    }

    /// Uses only the first `length` bytes, rounded up to whole blocks, of at most what was reserved.
    pub(crate) fn resize(&mut self, length: usize) {
        let reserved = self.bytes.as_ref().len() - DISK_BLOCK;
        self.length = length.next_multiple_of(DISK_BLOCK).min(reserved);
    }

    /// The bytes, to be written.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut_slice()[self.skipped..][..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes.as_ref()[self.skipped..][..self.length]
    }
}

/// The whole blocks around `range`.
pub(crate) fn whole_blocks(range: Range<usize>) -> Range<usize> {
    range.start / DISK_BLOCK * DISK_BLOCK..range.end.next_multiple_of(DISK_BLOCK)
}

/// `path` opened for direct reads, if they work here.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits();
    let file = File::options()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)
        .ok()?;
    // Some file systems open and then refuse to read.
    let mut block = Buffer::new(DISK_BLOCK).ok()?;
    read_exact_at(&file, block.as_mut_slice(), 0).ok()?;
    Some(file)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

/// Gives the cached pages of a range back.
#[cfg(target_os = "linux")]
pub(super) fn forget(file: &File, range: Range<u64>) {
    use rustix::fs::{Advice, fadvise};
    let length = std::num::NonZeroU64::new(range.end - range.start);
    let _ = fadvise(file, range.start, length, Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn forget(_: &File, _: Range<u64>) {}

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                out = &mut out[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_those_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let content: Vec<u8> = (0..3 * REQUEST + 2 * DISK_BLOCK)
            .map(|index| (index / 7 + index / DISK_BLOCK) as u8)
            .collect();
        std::fs::write(&path, &content).unwrap();
        let disk = Disk::open(&path).unwrap();
        for (start, length) in [
            (0, DISK_BLOCK),
            (DISK_BLOCK, 2 * REQUEST + DISK_BLOCK),
            (0, content.len()),
        ] {
            let mut buffer = Buffer::new(length).unwrap();
            disk.read(start as u64, &mut buffer).unwrap();
            assert!(buffer.as_ref() == &content[start..start + length]);
        }
        let mut past = Buffer::new(2 * DISK_BLOCK).unwrap();
        let end = (content.len() - DISK_BLOCK) as u64;
        assert!(disk.read(end, &mut past).is_err());
    }

    #[test]
    fn whole_blocks_cover_a_range() {
        assert_eq!(whole_blocks(1..4096), 0..4096);
        assert_eq!(whole_blocks(4096..4097), 4096..8192);
    }
}
