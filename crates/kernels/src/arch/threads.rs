//! A persistent pool of threads that share one job at a time in small chunks.
//!
//! A job is `chunks` calls of one closure. Threads claim chunks by compare-and-swap on one word that holds the number
//! of unclaimed chunks (and a job counter, so that sleepers notice a new job). Everything else about a job is read
//! after a successful claim. A claim succeeds only on the word's current value, and the caller returns only when each
//! claimed chunk is done; so a late thread either claims a chunk of the job that runs now or touches nothing. The
//! caller takes part, and it never waits for a thread that holds no chunk.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::memory::prefetch;
use super::scheduler::prefer_short_slices;
use crate::schedule::{Foresight, MOST_READS};

/// A waiting thread spins this long before it sleeps, while spinning pays. A wake-up costs several times as much, and
/// the gaps between the jobs of a decoded token are far shorter.
const SPIN_LIMIT: Duration = Duration::from_micros(60);
/// Spin time once other programs are seen to want the core.
const SPIN_LIMIT_CROWDED: Duration = Duration::from_micros(5);
/// A gap this long between two looks of a spinning thread means that it was descheduled.
const DESCHEDULED_GAP: Duration = Duration::from_micros(200);
/// Nobody works this long on what is left when a caller begins to wait, unless its core was taken from it.
const LONG_WAIT: Duration = Duration::from_micros(500);
/// Waits that stay in the crowded mode after a gap was seen.
const CROWDED_WAITS: u32 = 64;
/// Looks at the awaited word between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 32;

thread_local! {
    /// Set while this thread runs a chunk of any pool: a nested job runs inline.
    static INSIDE_CHUNK: Cell<bool> = const { Cell::new(false) };
}

/// Threads that run jobs together with their caller. Dropping the pool joins them.
///
/// ```
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// let pool = ondine_kernels::ThreadPool::new(2);
/// let sum = AtomicUsize::new(0);
/// pool.run(100, &|chunk| { sum.fetch_add(chunk, Ordering::Relaxed); });
/// assert_eq!(sum.into_inner(), 4950);
/// ```
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Held by the caller whose job runs.
    caller: Mutex<Waiter>,
    foresight: Mutex<Foresight>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// A pool in which `threads` threads work, the caller of [`run`](Self::run) included. 0 counts as 1. If the
    /// system refuses a thread, the pool has fewer.
    pub fn new(threads: usize) -> ThreadPool {
        let shared = Arc::new(Shared::new());
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("ondine-{index}"))
                    .spawn(move || work(&shared))
                    .ok()
            })
            .collect();
        ThreadPool {
            shared,
            caller: Mutex::new(Waiter::default()),
            foresight: Mutex::default(),
            workers,
        }
    }

    /// Threads that work on a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// What is known of the order of jobs.
    pub(crate) fn foresight(&self) -> MutexGuard<'_, Foresight> {
        lock(&self.foresight)
    }

    /// Calls `f(0)`, `f(1)`, … `f(chunks - 1)`, each once, in any order, on any of the threads, and returns when all
    /// are done. A panic in a chunk is raised again here, once the other chunks are done; the pool stays usable.
    ///
    /// Called inside a chunk, or while another thread's job has the pool, it runs all chunks on the calling thread.
    pub fn run(&self, chunks: usize, f: &(dyn Fn(usize) + Sync)) {
        if chunks <= 1 || self.workers.is_empty() || INSIDE_CHUNK.get() {
            return (0..chunks).for_each(f);
        }
        let mut waiter = match self.caller.try_lock() {
            Ok(waiter) => waiter,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..chunks).for_each(f),
        };
        // The count of unclaimed chunks has 32 bits.
        let most = u32::MAX as usize;
        let mut first = 0;
        while first < chunks {
            let count = (chunks - first).min(most);
            if first == 0 {
                self.shared
                    .run_job(&mut waiter, count, self.workers.len(), f);
            } else {
                self.shared
                    .run_job(&mut waiter, count, self.workers.len(), &|chunk| {
                        f(first + chunk)
                    });
            }
            first += count;
        }
    }

    /// Cuts `data` into pieces of `chunk_len` elements (the last may be shorter) and calls `f(index, piece)` for each
    /// on the pool.
    ///
    /// # Panics
    /// If `chunk_len` is 0.
    pub fn for_each_chunk_mut<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let pieces = DisjointPieces::new(data, chunk_len);
        self.run(pieces.len(), &|index| f(index, pieces.take(index)));
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.closed.store(true, SeqCst);
        self.shared.work_ready.wake(usize::MAX);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of chunks, so joining cannot fail; a failure would change nothing here.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool")
            .field("threads", &self.threads())
            .finish()
    }
}

/// A slice cut into pieces that threads take, each at most once: a safe way to let chunks write to one buffer when a
/// chunk's pieces do not lie side by side.
pub struct DisjointPieces<'a, T> {
    start: *mut T,
    len: usize,
    piece_len: usize,
    /// One bit per piece.
    taken: Vec<AtomicU64>,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut [T]` of disjoint parts to any thread, which needs `T: Send` only.
unsafe impl<T: Send> Sync for DisjointPieces<'_, T> {}
// SAFETY: it is a `&mut [T]` in parts.
unsafe impl<T: Send> Send for DisjointPieces<'_, T> {}

impl<'a, T> DisjointPieces<'a, T> {
    /// Cuts `data` into pieces of `piece_len` elements; the last may be shorter.
    ///
    /// # Panics
    /// If `piece_len` is 0.
    pub fn new(data: &'a mut [T], piece_len: usize) -> Self {
        let pieces = data.len().div_ceil(piece_len);
        DisjointPieces {
            start: data.as_mut_ptr(),
            len: data.len(),
            piece_len,
            taken: (0..pieces.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            owner: std::marker::PhantomData,
        }
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.len.div_ceil(self.piece_len)
    }

    /// Whether there are no pieces.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Piece `index`.
    ///
    /// # Panics
    /// If it was taken before, or there is no such piece.
    #[expect(clippy::mut_from_ref, reason = "each piece is handed out once")]
    pub fn take(&self, index: usize) -> &mut [T] {
        assert!(index < self.len(), "piece {index} of {}", self.len());
        let bit = 1 << (index % 64);
        let before = self.taken[index / 64].fetch_or(bit, Relaxed);
        assert!(before & bit == 0, "piece {index} is taken twice");
        let first = index * self.piece_len;
        let len = self.piece_len.min(self.len - first);
        // SAFETY: `first..first + len` lies in the slice that `self` borrows mutably for `'a`, pieces of different
        // index do not overlap, and the bit makes sure that this index comes here once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// The closure of the running job, its lifetime erased.
type Job = *const (dyn Fn(usize) + Sync);

/// What the threads of a pool share. Each group of words that one side writes often has cache lines of its own.
struct Shared {
    /// Job counter in the high 32 bits, unclaimed chunks of the job in the low 32.
    state: Line<AtomicU64>,
    /// Chunks of the job that are done.
    done: Line<AtomicUsize>,
    /// The job's chunks. Written only between jobs.
    chunks: AtomicUsize,
    /// The job's closure. Written only between jobs.
    job: UnsafeCell<Job>,
    /// The first panic of the job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    closed: AtomicBool,
    /// Whether other programs were seen to want the cores.
    crowded: AtomicBool,
    work_ready: Bell,
    all_done: Bell,
}

// SAFETY: `job` is written only by the holder of the pool's `caller` lock while no chunk is unclaimed or running, and
// read only by a thread that holds a claimed chunk; the claim (acquire) follows the publication (release) of `state`.
// The closure it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is used as said above; it is tied to no thread.
unsafe impl Send for Shared {}

/// Keeps its content on a pair of cache lines of its own (processors fetch lines in pairs).
#[repr(align(128))]
struct Line<T>(T);

impl Shared {
    fn new() -> Shared {
        Shared {
            state: Line(AtomicU64::new(0)),
            done: Line(AtomicUsize::new(0)),
            chunks: AtomicUsize::new(0),
            job: UnsafeCell::new(&|_| ()),
            panic: Mutex::new(None),
            closed: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            work_ready: Bell::default(),
            all_done: Bell::default(),
        }
    }

    fn run_job(
        &self,
        waiter: &mut Waiter,
        chunks: usize,
        workers: usize,
        f: &(dyn Fn(usize) + Sync),
    ) {
        // SAFETY: only the lifetime changes. The pointer is read only by holders of a claimed chunk of this job, and
        // this function returns (it cannot unwind before) when all of its chunks are claimed and done.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(f) };
        // SAFETY: no chunk is unclaimed or running now, so nobody reads; the `caller` lock keeps other writers out.
        unsafe { *self.job.get() = job };
        self.chunks.store(chunks, Relaxed);
        self.done.0.store(0, Relaxed);
        let counter = (self.state.0.load(Relaxed) >> 32).wrapping_add(1);
        // SeqCst, as is the look at the number of sleepers: either this thread sees the sleeper, or it sees the job.
        self.state.0.store(counter << 32 | chunks as u64, SeqCst);
        self.work_ready.wake(workers.min(chunks - 1));
        self.run_chunks();
        if waiter.wait(&self.all_done, || self.done.0.load(SeqCst) == chunks) > LONG_WAIT {
            self.crowded.store(true, Relaxed);
        }
        let panic = lock(&self.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Claims and runs chunks until none is left.
    fn run_chunks(&self) {
        if self.crowded.load(Relaxed) {
            prefer_short_slices();
        }
        while let Some(unclaimed) = self.claim() {
            let chunks = self.chunks.load(Relaxed);
            // SAFETY: this thread holds a chunk of the running job, so its closure lives and nobody writes `job`.
            let job = unsafe { &**self.job.get() };
            INSIDE_CHUNK.set(true);
            let result = catch_unwind(AssertUnwindSafe(|| job(chunks - unclaimed)));
            INSIDE_CHUNK.set(false);
            if let Err(panic) = result {
                lock(&self.panic).get_or_insert(panic);
            }
            // From here on the job may be gone.
            if self.done.0.fetch_add(1, SeqCst) + 1 == chunks {
                self.all_done.wake(1);
            }
        }
    }

    /// Takes a chunk; the result is how many were unclaimed before, or `None` if there were none.
    fn claim(&self) -> Option<usize> {
        let mut state = self.state.0.load(Acquire);
        while state as u32 != 0 {
            match self
                .state
                .0
                .compare_exchange_weak(state, state - 1, AcqRel, Acquire)
            {
                Ok(_) => return Some(state as u32 as usize),
                Err(now) => state = now,
            }
        }
        None
    }
}

/// A worker's life.
fn work(shared: &Shared) {
    let mut waiter = Waiter::default();
    while !shared.closed.load(Acquire) {
        shared.run_chunks();
        let seen = (shared.state.0.load(Relaxed) >> 32) as u32;
        waiter.wait(&shared.work_ready, || {
            let state = shared.state.0.load(SeqCst);
            state as u32 != 0 || (state >> 32) as u32 != seen || shared.closed.load(SeqCst)
        });
    }
}

/// A place to sleep until a condition holds. Whoever makes the condition true (by a SeqCst store) calls `wake`.
#[derive(Default)]
struct Bell {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    fn sleep_until(&self, ready: impl Fn() -> bool) {
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, SeqCst);
        while !ready() {
            guard = self
                .rung
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Release);
    }

    fn wake(&self, most: usize) {
        if self.sleepers.load(SeqCst) == 0 {
            return;
        }
        // A sleeper holds the lock from its look at the condition until it sleeps, so after this it cannot miss the ring.
        drop(lock(&self.lock));
        if most == 1 {
            self.rung.notify_one()
        } else {
            self.rung.notify_all()
        }
    }
}

thread_local! {
    /// What this thread is to fetch while it waits, as (address, bytes).
    static FETCH: Cell<[(usize, usize); MOST_READS]> = const { Cell::new([(0, 0); MOST_READS]) };
}

/// Cache lines that are asked for between two looks at the awaited word.
const LINES_PER_LOOK: usize = 4;
const LINE: usize = 64;

/// Makes the calling thread fetch these ranges, as (address, bytes), into its cache when it waits the next time. The
/// addresses need not exist any more.
pub(crate) fn fetch_while_waiting(ranges: [(usize, usize); MOST_READS]) {
    FETCH.set(ranges);
}

/// Asks for the next lines of `ranges`.
#[inline]
fn fetch_some(ranges: &mut [(usize, usize); MOST_READS]) {
    let Some((address, bytes)) = ranges.iter_mut().find(|(_, bytes)| *bytes > 0) else {
        return;
    };
    for _ in 0..LINES_PER_LOOK {
        prefetch(*address);
        *address += LINE;
        *bytes = bytes.saturating_sub(LINE);
    }
}

/// How one thread waits: it spins, then sleeps, and spins less while other programs want the core.
#[derive(Default)]
struct Waiter {
    /// Waits left in the crowded mode.
    crowded: u32,
}

impl Waiter {
    /// Returns how long it took.
    fn wait(&mut self, bell: &Bell, ready: impl Fn() -> bool) -> Duration {
        if ready() {
            return Duration::ZERO;
        }
        let limit = if self.crowded > 0 {
            SPIN_LIMIT_CROWDED
        } else {
            SPIN_LIMIT
        };
        self.crowded = self.crowded.saturating_sub(1);
        let mut ranges = FETCH.take();
        let start = Instant::now();
        let mut last_look = start;
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if ready() {
                    return start.elapsed();
                }
                fetch_some(&mut ranges);
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now - last_look > DESCHEDULED_GAP {
                self.crowded = CROWDED_WAITS;
            }
            if now - start > limit {
                bell.sleep_until(ready);
                return start.elapsed();
            }
            last_look = now;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::Random;

    #[test]
    fn each_chunk_runs_once() {
        for threads in [0, 1, 2, 3, 7] {
            let pool = ThreadPool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for chunks in [0, 1, 2, 3, 10, 1000] {
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, &|chunk| {
                    counts[chunk].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
            }
        }
    }

    /// Many jobs of few chunks, with pauses of random length in chunks and between jobs, more threads than cores, and
    /// a closure whose captured data dies after each job: a late thread that touched an old job would be seen as a
    /// wrong count, a wrong job number or a crash.
    #[test]
    fn claims_survive_stress() {
        let pool = ThreadPool::new(5);
        let mut random = Random::new(7);
        let start = Instant::now();
        let mut job = 0u64;
        while start.elapsed() < Duration::from_secs(5) {
            job += 1;
            let chunks = 1 + random.below(9);
            let pause = random.below(40);
            let owner = Box::new(AtomicU64::new(job));
            let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(chunks, &|chunk| {
                assert_eq!(owner.load(SeqCst), job);
                if pause == 0 && chunk % 3 == 1 {
                    std::thread::sleep(Duration::from_micros(100));
                } else if pause < 4 {
                    std::thread::yield_now();
                }
                counts[chunk].fetch_add(1, SeqCst);
            });
            owner.store(0, SeqCst);
            assert!(
                counts.iter().all(|count| count.load(SeqCst) == 1),
                "job {job}"
            );
            if pause == 1 {
                // Long enough for the workers to fall asleep.
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        assert!(job > 100, "only {job} jobs in five seconds");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(3);
        for panicking in [0, 5, 9] {
            let ran = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(10, &|chunk| {
                    ran.fetch_add(1, Relaxed);
                    assert!(chunk != panicking, "chunk {panicking}");
                });
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains(&format!("chunk {panicking}")));
            assert_eq!(ran.load(Relaxed), 10);
        }
        let ran = AtomicUsize::new(0);
        pool.run(10, &|_| {
            ran.fetch_add(1, Relaxed);
        });
        assert_eq!(ran.load(Relaxed), 10);
    }

    #[test]
    fn nested_and_concurrent_jobs_run() {
        let pool = ThreadPool::new(3);
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(4, &|_| {
                            pool.run(3, &|_| {
                                count.fetch_add(1, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(count.load(Relaxed), 4 * 50 * 4 * 3);
    }

    #[test]
    fn slices_are_cut_into_pieces() {
        let pool = ThreadPool::new(2);
        let mut data = vec![0usize; 103];
        pool.for_each_chunk_mut(&mut data, 10, |index, piece| {
            assert_eq!(piece.len(), if index == 10 { 3 } else { 10 });
            piece.fill(index);
        });
        assert!(data.iter().enumerate().all(|(i, &x)| x == i / 10));
        pool.for_each_chunk_mut(&mut data[..0], 10, |_, _: &mut [usize]| unreachable!());
        let pieces = DisjointPieces::new(&mut data, 50);
        pieces.take(1);
        assert!(catch_unwind(AssertUnwindSafe(|| pieces.take(1).len())).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| pieces.take(3).len())).is_err());
    }
}
