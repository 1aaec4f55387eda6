//! Ctrl-C: the first asks the work to stop at a clean point, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Exit code of a process ended by SIGINT, as shells report it.
const INTERRUPTED_EXIT_CODE: i32 = 130;

/// Listens for Ctrl-C from now on.
pub fn install() {
    // Where no handler can be set, Ctrl-C ends the process as it always did; downloads survive that too.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED_EXIT_CODE);
        }
    });
}

/// True once Ctrl-C was pressed.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Takes note that the interruption was dealt with.
pub fn clear() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}
