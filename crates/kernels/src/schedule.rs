//! Which piece of work a thread takes next.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::ThreadPool;

/// Numbers the jobs, so that a thread knows whether it has a part in the one at hand.
static JOBS: AtomicU64 = AtomicU64::new(1);
/// Numbers the threads that ever took a piece.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's number.
    static THREAD: usize = THREADS.fetch_add(1, Relaxed);
    /// The last job of this thread and its part in it.
    static PART: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
}

/// Calls `f` for each of the pieces `0..count`, fewer than 2^32, on a pool. Each thread walks through consecutive
/// pieces: a straight stream through memory, in the same part of a matrix each time. A thread that is done takes pieces
/// from the far end of the others' parts, so that nobody waits longer than for one piece.
pub(crate) fn run_in_streams(pool: &ThreadPool, count: usize, f: &(dyn Fn(usize) + Sync)) {
    let threads = pool.threads().min(count);
    if threads <= 1 {
        return (0..count).for_each(f);
    }
    let streams = Streams::new(count, threads);
    pool.run(threads, &|_| {
        while let Some(piece) = streams.next() {
            f(piece);
        }
    });
}

struct Streams {
    job: u64,
    parts: Vec<Part>,
}

/// Consecutive pieces; in cache lines of its own, as mostly one thread writes to it.
#[repr(align(128))]
struct Part {
    /// Whether a thread walks through it.
    joined: AtomicBool,
    /// The first piece left (high half) and the end.
    left: AtomicU64,
}

impl Streams {
    /// Pieces `0..count` in `threads` parts.
    fn new(count: usize, threads: usize) -> Streams {
        let bound = |part: usize| (count * part / threads) as u64;
        let part = |part| Part {
            joined: AtomicBool::new(false),
            left: AtomicU64::new(bound(part) << 32 | bound(part + 1)),
        };
        Streams {
            job: JOBS.fetch_add(1, Relaxed),
            parts: (0..threads).map(part).collect(),
        }
    }

    /// The next piece for this thread. Each piece is handed out once.
    fn next(&self) -> Option<usize> {
        let (job, mut part) = PART.get();
        if job != self.job {
            part = self.join();
            PART.set((self.job, part));
        }
        let mut others = (1..self.parts.len()).map(|step| (part + step) % self.parts.len());
        self.take(part, true)
            .or_else(|| others.find_map(|other| self.take(other, false)))
    }

    /// The part that this thread walks through: the same one in each job if no other thread has it.
    fn join(&self) -> usize {
        let usual = THREAD.with(|thread| thread % self.parts.len());
        let order = (usual..self.parts.len()).chain(0..usual);
        let mut free = order.filter(|&part| !self.parts[part].joined.swap(true, Relaxed));
        free.next().unwrap_or(usual)
    }

    /// Takes a part's first or last piece that is left.
    fn take(&self, part: usize, first: bool) -> Option<usize> {
        let taken = self.parts[part]
            .left
            .fetch_update(Relaxed, Relaxed, |left| {
                let (start, end) = (left >> 32, left & 0xffff_ffff);
                let rest = if first {
                    left + (1 << 32)
                } else {
                    left.wrapping_sub(1)
                };
                (start < end).then_some(rest)
            });
        taken.ok().map(|left| {
            if first {
                (left >> 32) as usize
            } else {
                (left & 0xffff_ffff) as usize - 1
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::threads::DisjointPieces;

    #[test]
    fn each_piece_is_handed_out_once() {
        for threads in [1, 2, 3, 5] {
            let pool = ThreadPool::new(threads);
            for count in [0, 1, 2, 3, 17, 1000] {
                let mut counts = vec![0; count];
                let pieces = DisjointPieces::new(&mut counts, 1);
                run_in_streams(&pool, count, &|piece| pieces.take(piece)[0] += 1);
                drop(pieces);
                assert!(counts.iter().all(|&count| count == 1));
            }
        }
    }

    #[test]
    fn jobs_within_jobs_run() {
        let pool = ThreadPool::new(3);
        let count = AtomicUsize::new(0);
        run_in_streams(&pool, 7, &|_| {
            run_in_streams(&pool, 5, &|_| {
                count.fetch_add(1, Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 35);
    }

    #[test]
    fn one_thread_walks_through_its_part_and_then_steals_from_the_ends() {
        let streams = Streams::new(6, 2);
        let order: Vec<usize> = std::iter::from_fn(|| streams.next()).collect();
        assert!(
            order == [0, 1, 2, 5, 4, 3] || order == [3, 4, 5, 2, 1, 0],
            "{order:?}"
        );
    }
}
