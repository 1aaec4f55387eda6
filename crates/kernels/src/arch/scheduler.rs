//! What a thread asks of the system's scheduler.

use std::cell::Cell;

/// Length of the slices that a computing thread asks for, ns: the least that Linux grants.
///
/// A computing thread waits for others many times in a millisecond. When other programs want its core, it must get
/// the core back at once when it wakes, or all threads stand still until the other program's slice ends. Linux lets a
/// thread that wakes with a shorter slice, and has had no more than its share, interrupt one with a longer (EEVDF,
/// since 6.12). The share itself does not change.
const SLICE: u64 = 100_000;

/// Asks for short slices for the calling thread, once; where the system has no such thing, nothing happens.
pub(crate) fn prefer_short_slices() {
    thread_local! {
        static ASKED: Cell<bool> = const { Cell::new(false) };
    }
    if !ASKED.replace(true) {
        ask(SLICE);
    }
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
fn ask(slice: u64) {
    let mut attributes = linux::Attributes::default();
    let size = size_of::<linux::Attributes>() as u32;
    // SAFETY: thread 0 is the calling one; the kernel writes at most `size` bytes into `attributes`.
    let found = unsafe {
        linux::syscall(
            linux::GET_ATTRIBUTES,
            0usize,
            std::ptr::from_mut(&mut attributes),
            size as usize,
            0usize,
        )
    };
    // Only the ordinary policy has slices; a thread of another was set up by somebody who knows why.
    if found != 0 || attributes.policy != linux::SCHED_OTHER {
        return;
    }
    attributes.runtime = slice;
    // SAFETY: the kernel reads `attributes`, whose first field says how long it is. A refusal changes nothing.
    unsafe {
        linux::syscall(
            linux::SET_ATTRIBUTES,
            0usize,
            std::ptr::from_ref(&attributes),
            0usize,
        );
    }
}

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
fn ask(_: u64) {}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod linux {
    use std::ffi::c_long;

    pub const SCHED_OTHER: u32 = 0;
    #[cfg(target_arch = "x86_64")]
    pub const SET_ATTRIBUTES: c_long = 314;
    #[cfg(target_arch = "x86_64")]
    pub const GET_ATTRIBUTES: c_long = 315;
    #[cfg(target_arch = "aarch64")]
    pub const SET_ATTRIBUTES: c_long = 274;
    #[cfg(target_arch = "aarch64")]
    pub const GET_ATTRIBUTES: c_long = 275;

    /// `struct sched_attr` in its first published form (see `sched_setattr(2)`).
    #[derive(Default)]
    #[repr(C)]
    pub struct Attributes {
        pub size: u32,
        pub policy: u32,
        pub flags: u64,
        pub nice: i32,
        pub priority: u32,
        pub runtime: u64,
        pub deadline: u64,
        pub period: u64,
    }

    unsafe extern "C" {
        pub fn syscall(number: c_long, ...) -> c_long;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_changes_no_priority() {
        std::thread::spawn(|| {
            let policy = || std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
            // Fields 18, 19, 40 and 41: priority, nice value, real-time priority, policy.
            let fields = |stat: String| -> Vec<String> {
                let rest = stat.rsplit(')').next().unwrap_or("").split_whitespace();
                let all: Vec<String> = rest.map(str::to_owned).collect();
                [15, 16, 37, 38]
                    .iter()
                    .filter_map(|&i| all.get(i).cloned())
                    .collect()
            };
            let before = fields(policy());
            prefer_short_slices();
            assert_eq!(fields(policy()), before);
        })
        .join()
        .unwrap();
    }
}
