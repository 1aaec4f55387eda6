//! Speed of attention: decoding against the machine's read bandwidth, prefill against its multiply-add peak.
//!
//! `cargo run --release -p ondine-kernels --example attention_bench -- [threads] [positions] [models] [types]`
//!
//! Each shape's answer is checked against the portable code first. Times are those that the threads had a core, where
//! the system tells, so that other programs disturb less; divided by the number of threads.

use std::time::Instant;

use ondine_kernels::{
    AttentionJob, AttentionParams, Context, Isa, KvPage, KvShape, KvType, PAGE_TOKENS, ThreadPool,
    arch::wide::{Wide, WideKernel, dispatch_wide},
    attention,
};

/// A model's attention: name, query heads, key heads, head size.
const MODELS: [(&str, usize, usize, usize); 4] = [
    ("9 heads over 3 of 64", 9, 3, 64),
    ("14 heads over 2 of 64", 14, 2, 64),
    ("4 heads over 1 of 256", 4, 1, 256),
    ("12 heads over 2 of 128", 12, 2, 128),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| {
        arguments
            .next()
            .and_then(|argument| argument.parse().ok())
            .unwrap_or(default)
    };
    let threads = number(2);
    let positions = number(4096);
    let models = number(MODELS.len());
    let isa = Isa::detect();
    let pool = ThreadPool::new(threads);
    let types = number(3);
    println!("{isa:?}, {threads} threads, {positions} positions");
    let bandwidth = read_bandwidth(&pool);
    let [floats, pairs] = [false, true].map(|pairs| peak(&pool, isa, pairs));
    println!(
        "read bandwidth {bandwidth:.1} GB/s; multiply-adds per second: {floats:.0} G of f32, {pairs:.0} G of 16-bit pairs"
    );
    for &(name, heads, kv_heads, dim) in &MODELS[..models.min(MODELS.len())] {
        for kv_type in [KvType::F16, KvType::Q8_0, KvType::F32]
            .into_iter()
            .take(types)
        {
            let shape = KvShape {
                kv_heads,
                head_dim_k: dim,
                head_dim_v: dim,
                kv_type,
            };
            check(&pool, isa, shape, heads);
            let (gigabytes, seconds) = decode(&pool, isa, shape, heads, positions);
            print!(
                "{name}, {:4}: decode {:6.1} GB/s ({:3.0}% of the bandwidth; {:.2} ms for {:.0} MB)",
                kv_type.name(),
                gigabytes / seconds,
                100.0 * gigabytes / seconds / bandwidth,
                seconds * 1e3,
                gigabytes * 1e3
            );
            let rate = prefill(&pool, isa, shape, heads, positions);
            let peak = if kv_type == KvType::F32 {
                floats
            } else {
                pairs
            };
            println!(
                "; prefill {rate:6.1} GMAC/s ({:3.0}% of the peak)",
                100.0 * rate / peak
            );
        }
    }
}

/// Pages of `positions` positions with random content.
fn pages(shape: KvShape, positions: usize) -> Vec<KvPage> {
    let keys = numbers(shape.kv_heads * shape.head_dim_k * 7, 1);
    let values = numbers(shape.kv_heads * shape.head_dim_v * 7, 2);
    let mut pages = vec![KvPage::new(shape); positions.div_ceil(PAGE_TOKENS)];
    for position in 0..positions {
        let row = |from: &[f32]| from[position % 7 * from.len() / 7..][..from.len() / 7].to_vec();
        pages[position / PAGE_TOKENS].write(position % PAGE_TOKENS, &row(&keys), &row(&values));
    }
    pages
}

fn numbers(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn run(
    pool: &ThreadPool,
    isa: Isa,
    heads: usize,
    pages: &[&KvPage],
    first_position: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let shape = pages[0].shape();
    let rows = q.len() / heads / shape.head_dim_k;
    let params = AttentionParams {
        heads,
        kv_heads: shape.kv_heads,
        head_dim_k: shape.head_dim_k,
        head_dim_v: shape.head_dim_v,
        scale: 1.0 / (shape.head_dim_k as f32).sqrt(),
        softcap: None,
        window: None,
        alibi_slopes: None,
    };
    let job = AttentionJob {
        rows: 0..rows,
        first_position,
        pages,
        pages_start: 0,
        len: first_position + rows,
    };
    attention(&Context { isa, pool }, &params, &[job], q, out);
}

/// Compares with the portable code, for one row and for many.
fn check(pool: &ThreadPool, isa: Isa, shape: KvShape, heads: usize) {
    let pages = pages(shape, 200);
    let pages: Vec<&KvPage> = pages.iter().collect();
    for rows in [1, 70] {
        let q = numbers(rows * heads * shape.head_dim_k, 3);
        let mut results = [isa, Isa::Scalar].map(|isa| {
            let mut out = vec![0.0; rows * heads * shape.head_dim_v];
            run(pool, isa, heads, &pages, 200 - rows, &q, &mut out);
            out
        });
        let [got, expected] = &mut results;
        assert_eq!(got, expected, "wrong answer: {shape:?}");
    }
}

/// Bytes in units of 10^9 that 30 layers of one token read, and the time for it.
fn decode(
    pool: &ThreadPool,
    isa: Isa,
    shape: KvShape,
    heads: usize,
    positions: usize,
) -> (f64, f64) {
    let layers: Vec<Vec<KvPage>> = (0..30).map(|_| pages(shape, positions)).collect();
    let views: Vec<Vec<&KvPage>> = layers.iter().map(|pages| pages.iter().collect()).collect();
    let q = numbers(heads * shape.head_dim_k, 3);
    let mut out = vec![0.0; heads * shape.head_dim_v];
    let seconds = fastest(pool.threads(), 7, || {
        for view in &views {
            run(pool, isa, heads, view, positions - 1, &q, &mut out);
        }
    });
    let bytes: usize = layers.iter().flatten().map(KvPage::bytes).sum();
    (bytes as f64 * 1e-9, seconds)
}

/// Multiply-adds in units of 10^9 per second for chunks of 512 up to `positions`.
fn prefill(pool: &ThreadPool, isa: Isa, shape: KvShape, heads: usize, positions: usize) -> f64 {
    let pages = pages(shape, positions);
    let pages: Vec<&KvPage> = pages.iter().collect();
    let chunk = positions.min(512);
    let q = numbers(chunk * heads * shape.head_dim_k, 3);
    let mut out = vec![0.0; chunk * heads * shape.head_dim_v];
    let mut products = 0.0;
    for position in 0..positions / chunk * chunk {
        products += ((position + 1) * heads * (shape.head_dim_k + shape.head_dim_v)) as f64;
    }
    let seconds = fastest(pool.threads(), 3, || {
        for first in (0..positions / chunk).map(|index| index * chunk) {
            run(pool, isa, heads, &pages, first, &q, &mut out);
        }
    });
    products * 1e-9 / seconds
}

/// The best of several sums over 128 MB, in GB/s.
fn read_bandwidth(pool: &ThreadPool) -> f64 {
    let data = vec![1u64; 1 << 24];
    let piece = 1 << 17;
    let sum = std::sync::atomic::AtomicU64::new(0);
    let seconds = fastest(pool.threads(), 9, || {
        pool.run(data.len() / piece, &|index| {
            let part = &data[index * piece..][..piece];
            let total = part.iter().fold(0u64, |a, &b| a.wrapping_add(b));
            sum.fetch_add(total, std::sync::atomic::Ordering::Relaxed);
        });
    });
    assert!(sum.into_inner() > 0);
    size_of_val(&data[..]) as f64 * 1e-9 / seconds
}

/// Multiply-adds in units of 10^9 per second, on registers alone.
fn peak(pool: &ThreadPool, isa: Isa, pairs: bool) -> f64 {
    struct Chains(bool);
    const STEPS: usize = 100_000;
    const CHAINS: usize = 12;
    impl WideKernel for Chains {
        type Output = [f32; 16];
        #[inline(always)]
        fn run<W: Wide>(self, w: W) -> [f32; 16] {
            let mut floats = [w.splat(0.5); CHAINS];
            let mut ints = [w.splat_int(1); CHAINS];
            let (x, i) = (w.splat(0.25), w.splat_int(0x0003_0001));
            for _ in 0..STEPS {
                for chain in 0..CHAINS {
                    if self.0 {
                        ints[chain] = w.dot_pairs(i, ints[chain], ints[chain]);
                    } else {
                        floats[chain] = w.mul_add(floats[chain], x, x);
                    }
                }
            }
            let mut sum = w.splat(0.0);
            for chain in 0..CHAINS {
                sum = w.add(sum, w.add(floats[chain], w.to_float(ints[chain])));
            }
            let mut out = [0.0; 16];
            w.store(sum, &mut out);
            out
        }
    }
    let chunks = 8 * pool.threads();
    let seconds = fastest(pool.threads(), 5, || {
        pool.run(chunks, &|_| {
            std::hint::black_box(dispatch_wide(isa, Chains(pairs)));
        });
    });
    let lanes = if pairs { 32 } else { 16 };
    (chunks * STEPS * CHAINS * lanes) as f64 * 1e-9 / seconds
}

/// The shortest of some rounds, in seconds.
fn fastest(threads: usize, rounds: usize, mut f: impl FnMut()) -> f64 {
    (0..rounds)
        .map(|_| {
            let (start, busy) = (Instant::now(), busy_seconds());
            f();
            let elapsed = start.elapsed().as_secs_f64();
            match (busy, busy_seconds()) {
                (Some(before), Some(after)) => (after - before) / threads as f64,
                _ => elapsed,
            }
        })
        .fold(f64::INFINITY, f64::min)
}

/// Seconds that this process's threads had a core.
fn busy_seconds() -> Option<f64> {
    // A thread's time is brought up to date when it leaves its core.
    std::thread::sleep(std::time::Duration::from_micros(300));
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds * 1e-9)
}
