//! An allocator that refuses to hold more than a limit: memory that an input asks for without measure ends the worker, and
//! the runner takes that as a finding.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator with a count of the bytes held.
pub struct Bounded {
    held: AtomicUsize,
    /// Bytes.
    limit: usize,
}

impl Bounded {
    /// At most `limit` bytes at a time.
    pub const fn new(limit: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            limit,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before
            .checked_add(bytes)
            .is_some_and(|all| all <= self.limit);
        if !fits {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

// SAFETY: every block comes from `System` and goes back to it with the layout it was asked for with; the count beside it
// touches no block.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !self.take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !self.take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.held.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises about `block` and `layout` are passed on; the block came from `System`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.take(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises about `block`, `layout` and `size` are passed on; the block came from `System`.
        let moved = unsafe { System.realloc(block, layout, size) };
        let gone = if moved.is_null() { size } else { layout.size() };
        self.held.fetch_sub(gone, Ordering::Relaxed);
        moved
    }
}
