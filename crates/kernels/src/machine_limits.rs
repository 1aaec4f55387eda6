//! What this machine can do at most.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::arch::{machine, memory};
use crate::{Isa, ThreadPool};

/// Bytes that are read: several times a large last-level cache.
const READ_BYTES: usize = 256 << 20;
/// Pieces that the threads share the reading in: long straight streams.
const READ_PIECE: usize = 4 << 20;
/// Rounds of multiplication of one piece of work: some 100 µs on a fast core.
const ROUNDS: usize = 20_000;
/// Time for each of the two measurements, after the memory is set up.
const TIME: Duration = Duration::from_millis(100);

/// The limits that kernels are measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachineLimits {
    /// Bytes per second that the pool's threads read from memory past the caches.
    pub read_bytes_per_second: f64,
    /// 8-bit multiply-accumulates per second of the pool's threads.
    pub int8_macs_per_second: f64,
}

impl MachineLimits {
    /// Measures for about 0.3 s with the best instruction set; the best of many short runs counts, so that other
    /// programs disturb little.
    pub fn measure(pool: &ThreadPool) -> MachineLimits {
        let isa = Isa::detect();
        MachineLimits {
            read_bytes_per_second: read_rate(isa, pool),
            int8_macs_per_second: mac_rate(isa, pool),
        }
    }

    /// The better of each of two measurements.
    pub fn best_of(&self, other: &MachineLimits) -> MachineLimits {
        MachineLimits {
            read_bytes_per_second: self.read_bytes_per_second.max(other.read_bytes_per_second),
            int8_macs_per_second: self.int8_macs_per_second.max(other.int8_macs_per_second),
        }
    }
}

fn read_rate(isa: Isa, pool: &ThreadPool) -> f64 {
    let Some(mut data) = memory::Bytes::zeroed(READ_BYTES) else {
        return 0.0;
    };
    // Pages that were never written are all the same page.
    pool.for_each_chunk_mut(data.as_mut_slice(), READ_PIECE, |_, piece| piece.fill(1));
    let words: &[u64] = bytemuck::cast_slice(data.as_ref());
    let pieces: Vec<&[u64]> = words.chunks(READ_PIECE / 8).collect();
    best_rate(READ_BYTES, || {
        pool.run(pieces.len(), &|index| {
            black_box(machine::read(isa, pieces[index]));
        })
    })
}

fn mac_rate(isa: Isa, pool: &ThreadPool) -> f64 {
    let pieces = 4 * pool.threads();
    best_rate(pieces * ROUNDS * machine::ROUND_MACS, || {
        pool.run(pieces, &|_| {
            black_box(machine::multiply(isa, ROUNDS));
        })
    })
}

/// The best of the rates at which `run` does `amount` in [`TIME`].
fn best_rate(amount: usize, run: impl Fn()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed() < TIME {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    amount as f64 / best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive() {
        let limits = MachineLimits::measure(&ThreadPool::new(2));
        assert!(limits.read_bytes_per_second > 0.0 && limits.read_bytes_per_second.is_finite());
        assert!(limits.int8_macs_per_second > 0.0 && limits.int8_macs_per_second.is_finite());
    }
}
