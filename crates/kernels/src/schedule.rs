//! Which piece of work a thread takes next.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Numbers the jobs, so that a thread knows whether it has a part in the one at hand.
static JOBS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The last job of this thread and its part in it.
    static PART: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
}

/// Hands out the pieces `0..count` so that each thread walks through consecutive pieces: a straight stream through
/// memory. A thread that is done takes pieces from the far end of the others' parts.
pub(crate) struct Streams {
    job: u64,
    /// Parts handed to threads so far.
    joined: AtomicUsize,
    /// Of each part the first piece left (high half) and the end.
    parts: Vec<AtomicU64>,
}

impl Streams {
    /// Pieces `0..count` in one part per thread.
    pub(crate) fn new(count: usize, threads: usize) -> Streams {
        let threads = threads.clamp(1, count.max(1));
        let bound = |part: usize| (count * part / threads) as u64;
        Streams {
            job: JOBS.fetch_add(1, Relaxed),
            joined: AtomicUsize::new(0),
            parts: (0..threads)
                .map(|part| AtomicU64::new(bound(part) << 32 | bound(part + 1)))
                .collect(),
        }
    }

    /// The next piece for this thread. Each piece is handed out once.
    ///
    /// # Panics
    /// If it is called more often than there are pieces.
    pub(crate) fn next(&self) -> usize {
        let (job, mut part) = PART.get();
        if job != self.job {
            part = self.joined.fetch_add(1, Relaxed) % self.parts.len();
            PART.set((self.job, part));
        }
        let others = (1..self.parts.len()).map(|step| (part + step) % self.parts.len());
        self.take(part, true)
            .or_else(|| others.into_iter().find_map(|other| self.take(other, false)))
            .expect("a piece for each call")
    }

    /// Takes a part's first or last piece that is left.
    fn take(&self, part: usize, first: bool) -> Option<usize> {
        let taken = self.parts[part].fetch_update(Relaxed, Relaxed, |left| {
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
    use crate::ThreadPool;
    use crate::arch::threads::DisjointPieces;

    #[test]
    fn each_piece_is_handed_out_once() {
        for threads in [1, 2, 3, 5] {
            let pool = ThreadPool::new(threads);
            for count in [0, 1, 2, 3, 17, 1000] {
                let mut counts = vec![0; count];
                let pieces = DisjointPieces::new(&mut counts, 1);
                let streams = Streams::new(count, threads);
                pool.run(count, &|_| pieces.take(streams.next())[0] += 1);
                drop(pieces);
                assert!(counts.iter().all(|&count| count == 1));
            }
        }
    }

    #[test]
    fn one_thread_walks_through_its_part_and_then_steals_from_the_ends() {
        let streams = Streams::new(6, 2);
        let order: Vec<usize> = (0..6).map(|_| streams.next()).collect();
        assert_eq!(order, [0, 1, 2, 5, 4, 3]);
    }
}
