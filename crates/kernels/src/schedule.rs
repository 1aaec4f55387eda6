//! Which piece of work a thread takes next, and what it fetches while it waits for the others.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::ThreadPool;
use crate::arch::machine::second_level_cache_bytes;
use crate::arch::threads::fetch_while_waiting;

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
    run(pool, count, &Reads::default(), f);
}

/// [`run_in_streams`] for pieces that read `reads`, one after the other, and are bound by that: threads that are done
/// fetch the beginning of what they will read in the job that followed the last time.
pub(crate) fn run_reading(
    pool: &ThreadPool,
    count: usize,
    reads: Reads,
    f: &(dyn Fn(usize) + Sync),
) {
    let next = pool.foresight().after(reads);
    run(pool, count, &next, f);
}

fn run(pool: &ThreadPool, count: usize, next: &Reads, f: &(dyn Fn(usize) + Sync)) {
    let threads = pool.threads().min(count);
    if threads <= 1 {
        return (0..count).for_each(f);
    }
    let streams = Streams::new(count, threads);
    pool.run(threads, &|_| {
        while let Some(piece) = streams.next() {
            f(piece);
        }
        next.fetch(streams.part(), threads);
    });
}

/// Matrices that a job reads in one go.
pub(crate) const MOST_READS: usize = 4;
/// What a waiting thread fetches at most: a part of its second-level cache. Waits while one thread computes alone are long
/// enough to read some 150 KiB.
fn fetch_bytes() -> usize {
    (second_level_cache_bytes() / 16 * 3).clamp(48 << 10, 192 << 10)
}

/// What a job reads, as (address, bytes): numbers only, which nobody follows but to fetch cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    matrices: [(usize, usize); MOST_READS],
    /// Whether each piece reads some of every matrix; otherwise one matrix follows the other.
    side_by_side: bool,
}

impl Reads {
    /// Of more than [`MOST_READS`] matrices the first count.
    pub(crate) fn new<'a>(matrices: impl Iterator<Item = &'a [u8]>, side_by_side: bool) -> Reads {
        let mut reads = Reads {
            side_by_side,
            ..Reads::default()
        };
        for (read, bytes) in reads.matrices.iter_mut().zip(matrices) {
            *read = (bytes.as_ptr() as usize, bytes.len());
        }
        reads
    }

    /// Makes the calling thread fetch the beginning of part `part` of `parts` while it waits.
    fn fetch(&self, part: usize, parts: usize) {
        fetch_while_waiting(self.beginning(part, parts));
    }

    /// The beginning of part `part` of `parts`.
    fn beginning(&self, part: usize, parts: usize) -> [(usize, usize); MOST_READS] {
        let mut ranges = [(0, 0); MOST_READS];
        let at_most = fetch_bytes();
        let mut budget = at_most;
        let total: usize = self.matrices.iter().map(|(_, bytes)| bytes).sum();
        let mut skipped = total / parts * part;
        let count = self.matrices.iter().filter(|(_, bytes)| *bytes > 0).count();
        for (range, &(address, bytes)) in ranges.iter_mut().zip(&self.matrices) {
            let (start, most) = if self.side_by_side {
                (bytes / parts * part, at_most / count.max(1))
            } else {
                let start = skipped.min(bytes);
                skipped -= start;
                (start, budget)
            };
            let taken = (bytes - start).min(most);
            *range = (address + start, taken);
            budget -= taken;
        }
        ranges
    }
}

/// Which job follows which: a model reads its matrices in the same order for each token.
#[derive(Debug, Default)]
pub(crate) struct Foresight {
    /// What was read after the job whose first matrix is at an address.
    followers: HashMap<usize, Reads>,
    last: Option<usize>,
}

impl Foresight {
    /// Jobs that are remembered; more than any model has.
    const MOST: usize = 1 << 14;

    /// Notes a job and says what was read after it the last time; nothing if it is new.
    fn after(&mut self, reads: Reads) -> Reads {
        if self.followers.len() >= Self::MOST {
            self.followers.clear();
        }
        let key = reads.matrices[0].0;
        if let Some(last) = self.last.replace(key) {
            self.followers.insert(last, reads);
        }
        self.followers.get(&key).copied().unwrap_or_default()
    }
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

    /// The part of this thread, which has asked for a piece before.
    fn part(&self) -> usize {
        PART.get().1
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
                let pieces = DisjointPieces::new(&mut counts, 1);
                run_reading(&pool, count, Reads::default(), &|piece| {
                    pieces.take(piece)[0] += 1
                });
                drop(pieces);
                assert!(counts.iter().all(|&count| count == 2));
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
    fn what_followed_once_is_foreseen() {
        let bytes = [0u8; 100];
        let job = |start: usize| Reads::new([&bytes[start..start + 10]].into_iter(), false);
        let mut foresight = Foresight::default();
        for (round, order) in [[0, 20, 40], [0, 20, 40], [0, 40, 20]]
            .into_iter()
            .enumerate()
        {
            let [first, second, third] = order.map(|start| foresight.after(job(start)));
            if round == 1 {
                assert_eq!([first, second, third], [job(20), job(40), job(0)]);
            }
            if round == 2 {
                assert_eq!([first, second, third], [job(20), job(0), job(40)]);
            }
        }
    }

    #[test]
    fn beginnings_lie_where_a_thread_will_start() {
        let most = fetch_bytes();
        let bytes = vec![0u8; 3 * most];
        let (first, second) = bytes.split_at(most);
        let at = |slice: &[u8], from: usize, taken| (slice.as_ptr() as usize + from, taken);
        let one_by_one = Reads::new([first, second].into_iter(), false);
        let [a, b, rest @ ..] = one_by_one.beginning(0, 2);
        assert_eq!((a, b.1), (at(first, 0, most), 0));
        assert!(rest.iter().all(|range| range.1 == 0));
        let [a, b, ..] = one_by_one.beginning(1, 2);
        assert_eq!((a.1, b), (0, at(second, most / 2, most)));
        let side_by_side = Reads::new([first, second].into_iter(), true);
        let [a, b, ..] = side_by_side.beginning(1, 2);
        assert_eq!(a, at(first, most / 2, most / 2));
        assert_eq!(b, at(second, most, most / 2));
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
