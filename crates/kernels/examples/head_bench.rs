//! Whether screening an output head pays: the full product, the full product of the split form and the screen in turn.
//!
//! `cargo run --release -p ondine-kernels --example head_bench -- [ROWSxCOLUMNS] [THREADS] [ROUNDS]`
//!
//! Inputs are rows of the matrix with noise, so that one product stands out as in a language model. Medians over the
//! rounds; every answer is compared with the full product's.

use std::time::{Duration, Instant};

use ondine_kernels::{
    Activations, Best, Context, Epilogue, Isa, PackedForm, PackedMatrix, Screen, TensorType,
    ThreadPool, matmul,
};

/// Noise beside the row, as a share of its size.
const NOISE: f32 = 2.0;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let shape = arguments.next().unwrap_or_else(|| "262144x640".into());
    let (rows, cols) = shape.split_once('x').expect("ROWSxCOLUMNS");
    let (rows, cols): (usize, usize) = (number(rows), number(cols));
    let threads = arguments.next().map_or(2, |threads| number(&threads));
    let rounds = arguments.next().map_or(40, |rounds| number(&rounds));
    let pool = ThreadPool::new(threads);
    let context = Context {
        isa: Isa::detect(),
        pool: &pool,
    };
    let mut random = Random(1);
    let raw = random_rows(&mut random, rows, cols);
    let full = packed(&pool, PackedForm::Interleaved, rows, cols, &raw);
    let split = packed(&pool, PackedForm::Split, rows, cols, &raw);
    let mut screen = Screen::default();
    let mut products = vec![0.0; rows];
    let mut times: [Vec<Duration>; 3] = Default::default();
    let (mut undecided, mut read) = (0, 0);
    for _ in 0..rounds {
        let mut row = vec![0.0; cols];
        let target = random.below(rows as u64) as usize;
        full.dequantize_row(target, &mut row).expect("a row");
        let size = (row.iter().map(|x| x * x).sum::<f32>() / cols as f32).sqrt();
        for x in &mut row {
            *x += size * NOISE * random.normal();
        }
        let mut x = Activations::default();
        x.quantize(&context, &row, 1, cols);
        for (w, times) in [&full, &split].into_iter().zip(&mut times) {
            let begun = Instant::now();
            matmul(&context, w, &x, &mut products, &Epilogue::default());
            times.push(begun.elapsed());
        }
        let wanted = [Best {
            count: 1,
            also: &[],
        }];
        let mut found_best = None;
        let begun = Instant::now();
        screen.search(&context, &split, &x, &wanted, &mut |_, found| {
            found_best = found.map(|found| found[0]);
        });
        times[2].push(begun.elapsed());
        read += screen.take_bytes_read();
        let best = (0..rows).max_by(|&a, &b| products[a].total_cmp(&products[b]).then(b.cmp(&a)));
        match (found_best, best) {
            (Some((row, product)), Some(best)) => {
                assert_eq!((row as usize, product), (best, products[best]));
            }
            _ => undecided += 1,
        }
    }
    let names = ["full", "full, split form", "screen"];
    let bytes = [
        full.bytes() as f64,
        split.bytes() as f64,
        read as f64 / rounds.max(1) as f64,
    ];
    for ((name, mut times), bytes) in names.into_iter().zip(times).zip(bytes) {
        times.sort();
        let median = times[times.len() / 2];
        let best = times[0];
        println!(
            "{name:<18} median {:>7.3} ms, best {:>7.3} ms, {:>6.1} MB, {:>5.1} GB/s",
            median.as_secs_f64() * 1e3,
            best.as_secs_f64() * 1e3,
            bytes / 1e6,
            bytes / median.as_secs_f64() / 1e9
        );
    }
    println!("undecided: {undecided} of {rounds}");
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("a number")
}

fn packed(
    pool: &ThreadPool,
    form: PackedForm,
    rows: usize,
    cols: usize,
    raw: &[u8],
) -> PackedMatrix {
    let mut builder =
        PackedMatrix::builder_of(form, TensorType::Q8_0, rows, cols).expect("a shape");
    builder.push_rows_parallel(pool, raw).expect("whole rows");
    builder.finish().expect("all rows")
}

/// Blocks of Q8_0 with normally distributed codes.
fn random_rows(random: &mut Random, rows: usize, cols: usize) -> Vec<u8> {
    let mut raw = Vec::with_capacity(rows * cols / 32 * 34);
    for _ in 0..rows * cols / 32 {
        raw.extend(half::f16::from_f32(0.001).to_le_bytes());
        raw.extend((0..32).map(|_| (random.normal() * 42.0).clamp(-127.0, 127.0) as i8 as u8));
    }
    raw
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Nearly normal: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 1.732
    }
}
