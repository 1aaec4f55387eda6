//! Zeroed memory for weights: 64-byte aligned, large pieces on huge pages where the system has them.
//!
//! Reading through 4 KiB pages costs up to a third of the bandwidth, and most matrices of a small model are smaller
//! than one huge page. So pieces come out of shared arenas, one after the other in the order they are asked for.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of every piece, bytes.
pub const ALIGNMENT: usize = 64;
/// Size of a huge page, bytes.
const HUGE_PAGE: usize = 2 << 20;
/// Size of a shared arena, bytes. Pages that are never written cost nothing.
const ARENA: usize = 64 << 20;
/// Pieces below this size are allocated alone.
const SMALL: usize = 64 << 10;

/// The arena that pieces are taken from, and how many of its bytes are taken.
static CURRENT: Mutex<Option<(Arc<Region>, usize)>> = Mutex::new(None);

/// Gives the part of the shared arena that nobody took back to the system, once the pieces before it are gone: for who
/// is done with many pieces for now.
pub fn release_spare() {
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Zeroed bytes that belong to one owner.
pub struct Bytes {
    region: Arc<Region>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// `len` zero bytes; `None` if the system has no memory.
    pub fn zeroed(len: usize) -> Option<Bytes> {
        let taken = len.checked_next_multiple_of(ALIGNMENT)?;
        if !(SMALL..=ARENA / 2).contains(&taken) {
            let region = Arc::new(Region::new(taken.max(ALIGNMENT))?);
            return Some(Bytes {
                region,
                start: 0,
                len,
            });
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = matches!(&*current, Some((region, used)) if region.len - used >= taken);
        if !fits {
            *current = Some((Arc::new(Region::new(ARENA)?), 0));
        }
        let (region, used) = current.as_mut()?;
        let piece = Bytes {
            region: Arc::clone(region),
            start: *used,
            len,
        };
        *used += taken;
        Some(piece)
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the range lies in the region, which lives as long as `self`; pieces of a region do not overlap, and
        // `self`, borrowed mutably, is the only owner of this one.
        unsafe {
            std::slice::from_raw_parts_mut(self.region.start.as_ptr().add(self.start), self.len)
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as in `as_mut_slice`; writers need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.region.start.as_ptr().add(self.start), self.len) }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bytes").field("len", &self.len).finish()
    }
}

/// Asks for the cache line at an address, which need not exist, into the second-level cache: the first level has too few
/// outstanding misses to keep memory busy.
#[inline]
pub(crate) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch is no access; it faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Zeroed memory from the system.
struct Region {
    start: NonNull<u8>,
    len: usize,
    /// How it goes back.
    origin: Origin,
}

enum Origin {
    Heap(std::alloc::Layout),
    #[cfg(target_os = "linux")]
    Mapping {
        address: *mut std::ffi::c_void,
        len: usize,
    },
}

// SAFETY: a region is memory that nobody else refers to; access goes through the borrow rules of `Bytes`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(len: usize) -> Option<Region> {
        #[cfg(target_os = "linux")]
        if len >= HUGE_PAGE {
            return Region::mapping(len);
        }
        let layout = std::alloc::Layout::from_size_align(len, ALIGNMENT).ok()?;
        // SAFETY: `len` is not zero.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Region {
            start,
            len,
            origin: Origin::Heap(layout),
        })
    }

    /// A mapping that starts at a multiple of the huge page size.
    #[cfg(target_os = "linux")]
    fn mapping(len: usize) -> Option<Region> {
        let mapped = len.checked_add(HUGE_PAGE)?;
        // SAFETY: a new private mapping touches nothing that exists.
        let address = unsafe {
            system::mmap(
                std::ptr::null_mut(),
                mapped,
                system::PROT_READ | system::PROT_WRITE,
                system::MAP_PRIVATE | system::MAP_ANONYMOUS | system::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address as isize == -1 {
            return None;
        }
        let skipped = (address as usize).next_multiple_of(HUGE_PAGE) - address as usize;
        // SAFETY: `skipped < HUGE_PAGE`, so the aligned start and `len` bytes after it lie in the mapping.
        let start = unsafe { address.cast::<u8>().add(skipped) };
        // SAFETY: advice on the mapping just made. A refusal changes nothing but speed.
        unsafe { system::madvise(start.cast(), len, system::MADV_HUGEPAGE) };
        Some(Region {
            start: NonNull::new(start)?,
            len,
            origin: Origin::Mapping {
                address,
                len: mapped,
            },
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match self.origin {
            // SAFETY: allocated with this layout, and freed once.
            Origin::Heap(layout) => unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            Origin::Mapping { address, len } => {
                // SAFETY: the whole mapping made for this region, unmapped once.
                unsafe { system::munmap(address, len) };
            }
        }
    }
}

/// The three system calls; the standard library links the C library that has them.
#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_void};

    pub const PROT_READ: c_int = 1;
    pub const PROT_WRITE: c_int = 2;
    pub const MAP_PRIVATE: c_int = 2;
    pub const MAP_ANONYMOUS: c_int = 0x20;
    pub const MAP_NORESERVE: c_int = 0x4000;
    pub const MADV_HUGEPAGE: c_int = 14;

    unsafe extern "C" {
        pub fn mmap(
            address: *mut c_void,
            len: usize,
            protection: c_int,
            flags: c_int,
            file: c_int,
            offset: isize,
        ) -> *mut c_void;
        pub fn munmap(address: *mut c_void, len: usize) -> c_int;
        pub fn madvise(address: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zero_aligned_and_apart() {
        let sizes = [
            0,
            1,
            63,
            64,
            65,
            SMALL - 1,
            SMALL,
            SMALL + 1,
            3 << 20,
            ARENA / 2,
            ARENA,
        ];
        let mut pieces: Vec<Bytes> = sizes
            .iter()
            .map(|&len| Bytes::zeroed(len).unwrap())
            .collect();
        for (index, piece) in pieces.iter_mut().enumerate() {
            let bytes = piece.as_mut_slice();
            assert_eq!(bytes.len(), sizes[index]);
            assert_eq!(bytes.as_ptr() as usize % ALIGNMENT, 0);
            let ends = [0, bytes.len().saturating_sub(1)];
            for end in ends.into_iter().filter(|&end| end < sizes[index]) {
                assert!(bytes[end] == 0 || sizes[index] == 1);
                bytes[end] = index as u8 + 1;
            }
        }
        for (index, piece) in pieces.iter().enumerate() {
            let bytes = piece.as_ref();
            assert!(bytes.first().is_none_or(|&byte| byte == index as u8 + 1));
            assert!(bytes.last().is_none_or(|&byte| byte == index as u8 + 1));
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Bytes::zeroed(usize::MAX).is_none());
        assert!(Bytes::zeroed(isize::MAX as usize).is_none());
    }
}
