//! Memory-mapped files: the runtime's only unsafe module.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::UNIX_EPOCH;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::{ByteSource, FileIdentity, copy_range};

/// A file mapped for reading.
pub struct MappedFile {
    name: String,
    map: Option<Mmap>,
    identity: Option<FileIdentity>,
}

impl MappedFile {
    /// Maps the file at `path`. An empty file gives an empty source.
    ///
    /// # Errors
    /// What the operating system says; a directory is `InvalidInput`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of_file(&File::open(path)?, path)
    }

    /// Maps an open file that was opened at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_file(file: &File, path: &Path) -> io::Result<Self> {
        let status = file.metadata()?;
        if !status.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let map = if status.len() == 0 {
            None
        } else {
            // SAFETY: the mapping is read-only and private to this value. A process that shrinks
            // the file under us raises SIGBUS, as for every program that maps its input; model
            // files are replaced by renaming, never rewritten in place.
            Some(unsafe { Mmap::map(file)? })
        };
        let modified = status.modified().ok();
        let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let identity = path.canonicalize().ok().zip(modified);
        Ok(MappedFile {
            name: path.display().to_string(),
            map,
            identity: identity.map(|(path, modified)| FileIdentity {
                path,
                bytes: status.len(),
                modified: modified.as_nanos(),
            }),
        })
    }

    /// Asks the system to map huge pages, and tells whether it does: true as well where the file is so small that it
    /// does not matter, or where nothing is known of huge pages.
    pub fn maps_huge_pages(&self) -> bool {
        #[cfg(target_os = "linux")]
        {
            const SMALL: usize = 16 << 20;
            let bytes = self.bytes();
            if bytes.len() < SMALL {
                return true;
            }
            self.advise(Advice::HugePage);
            let probed = &bytes[bytes.len() / 2];
            std::hint::black_box(*probed);
            let address = std::ptr::from_ref(probed).addr();
            std::fs::read_to_string("/proc/self/smaps")
                .map_or(true, |smaps| has_huge_pages(&smaps, address))
        }
        #[cfg(not(target_os = "linux"))]
        true
    }

    /// Tells the system that single places will be read, so that nothing is read ahead.
    pub fn expect_scattered_reads(&self) {
        #[cfg(unix)]
        self.advise(Advice::Random);
    }

    #[cfg(unix)]
    fn advise(&self, advice: Advice) {
        if let Some(map) = &self.map {
            let _ = map.advise(advice);
        }
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl ByteSource for MappedFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        copy_range(self.bytes(), offset, out)
    }

    fn as_slice(&self) -> Option<&[u8]> {
        Some(self.bytes())
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.identity.clone()
    }

    fn release(&self, range: Range<u64>) {
        let Some(map) = &self.map else { return };
        let length = map.len() as u64;
        let (start, end) = (range.start.min(length), range.end.min(length));
        if start < end {
            // SAFETY: DontNeed on a read-only file mapping only drops resident pages; the next
            // access reads the same bytes from the file again.
            let _ = unsafe {
                map.unchecked_advise_range(
                    UncheckedAdvice::DontNeed,
                    start as usize,
                    (end - start) as usize,
                )
            };
        }
    }
}

/// Whether the mapping that holds `address` has huge pages, by the kernel's list of mappings.
#[cfg(target_os = "linux")]
fn has_huge_pages(smaps: &str, address: usize) -> bool {
    let mut inside = false;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                inside = (start..end).contains(&address);
                continue;
            }
        }
        if inside && let Some(bytes) = line.strip_prefix("FilePmdMapped:") {
            return bytes.trim() != "0 kB";
        }
    }
    // Kernels that do not list them do not map them.
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_found_in_the_list_of_mappings() {
        let smaps = "\
1000-3000 r--s 00000000 fe:00 17 /first-file\nRss: 8 kB\nFilePmdMapped:        0 kB\n\
7f00200000-7f00600000 r--s 00000000 fe:00 18 /second\nRss: 8 kB\nFilePmdMapped:     2048 kB\n";
        assert!(!has_huge_pages(smaps, 0x1800));
        assert!(has_huge_pages(smaps, 0x7f_0020_0000));
        assert!(!has_huge_pages(smaps, 0x7f_0060_0000));
    }
}
