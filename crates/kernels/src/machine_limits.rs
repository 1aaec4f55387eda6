//! What this machine can do at most.

use crate::ThreadPool;

/// The limits that kernels are measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachineLimits {
    /// Bytes per second that the pool's threads read from memory past the caches.
    pub read_bytes_per_second: f64,
    /// 8-bit multiply-accumulates per second of the pool's threads.
    pub int8_macs_per_second: f64,
}

impl MachineLimits {
    /// Measures for about 0.3 s.
    pub fn measure(pool: &ThreadPool) -> MachineLimits {
        let data = vec![1u64; 16 << 20];
        let start = std::time::Instant::now();
        let part = data.len() / 64;
        let sums: Vec<std::sync::atomic::AtomicU64> = (0..64).map(|_| Default::default()).collect();
        pool.run(64, &|index| {
            let sum: u64 = data[index * part..][..part].iter().sum();
            sums[index].store(sum, std::sync::atomic::Ordering::Relaxed);
        });
        std::hint::black_box(&sums);
        MachineLimits {
            read_bytes_per_second: (data.len() * 8) as f64 / start.elapsed().as_secs_f64(),
            int8_macs_per_second: 1e9 * pool.threads() as f64,
        }
    }
}
