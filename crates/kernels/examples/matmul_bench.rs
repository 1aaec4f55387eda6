//! Speed of the matrix kernels beside what the machine can do.
//!
//! `cargo run --release -p ondine-kernels --example matmul_bench -- [--types Q4_0,Q4_K] [--shapes 2048x2048]
//! [--threads 2] [--tokens 512] [--isa avx512] [--milliseconds 200] [--json]`
//!
//! Each line: prefill in 8-bit multiply-accumulates per second and its share of the measured peak, decode in bytes of
//! weights per second and its share of the measured read bandwidth. Decode runs over copies of the matrix that exceed
//! the caches together. The best of many short runs counts. Every answer is checked first.

use std::time::{Duration, Instant};

use ondine_kernels::{
    Activations, Context, Epilogue, Isa, MachineLimits, PackedMatrix, TensorType, ThreadPool,
    dequantize, matmul,
};

/// Bytes that the copies of a matrix have together at least.
const COLD_BYTES: usize = 160 << 20;

fn main() {
    let options = Options::parse();
    let pool = ThreadPool::new(options.threads);
    let limits = MachineLimits::measure(&pool);
    let (peak, bandwidth) = (limits.int8_macs_per_second, limits.read_bytes_per_second);
    if !options.json {
        println!(
            "{} threads, {}: peak {:.0} GMAC/s, reads {:.1} GB/s",
            pool.threads(),
            options.isa.name(),
            peak / 1e9,
            bandwidth / 1e9
        );
        println!(
            "type     shape           prefill GMAC/s  of peak   decode GB/s  of reads   pack GB/s"
        );
    }
    for &ty in &options.types {
        for &(rows, cols) in &options.shapes {
            if ty.row_bytes(cols).is_none() {
                continue;
            }
            let raw = random_rows(ty, rows, cols);
            check(&options, &pool, ty, cols, &raw);
            let case = Case {
                options: &options,
                pool: &pool,
                ty,
                rows,
                cols,
                raw: &raw,
            };
            let pack = case.pack();
            let prefill = case.prefill();
            let decode = case.decode();
            // The machine may have become slower or faster meanwhile.
            let now = MachineLimits::measure(&pool);
            let peak = peak.max(now.int8_macs_per_second);
            let bandwidth = bandwidth.max(now.read_bytes_per_second);
            if options.json {
                println!(
                    "{{\"type\":\"{ty}\",\"rows\":{rows},\"cols\":{cols},\"isa\":\"{}\",\"threads\":{},\
                     \"tokens\":{},\"prefill_macs_per_second\":{prefill:.4e},\"peak_macs_per_second\":{peak:.4e},\
                     \"decode_bytes_per_second\":{decode:.4e},\"read_bytes_per_second\":{bandwidth:.4e},\
                     \"pack_bytes_per_second\":{pack:.4e}}}",
                    options.isa.name(),
                    pool.threads(),
                    options.tokens,
                );
            } else {
                println!(
                    "{:8} {:15} {:14.1} {:8.1}% {:13.2} {:8.1}% {:11.2}",
                    ty.name(),
                    format!("{rows}x{cols}"),
                    prefill / 1e9,
                    100.0 * prefill / peak,
                    decode / 1e9,
                    100.0 * decode / bandwidth,
                    pack / 1e9
                );
            }
        }
    }
}

struct Options {
    types: Vec<TensorType>,
    shapes: Vec<(usize, usize)>,
    threads: usize,
    tokens: usize,
    isa: Isa,
    time: Duration,
    json: bool,
}

impl Options {
    fn parse() -> Options {
        let mut options = Options {
            types: vec![
                TensorType::Q4_0,
                TensorType::Q4_1,
                TensorType::Q4_K,
                TensorType::Q5_0,
                TensorType::Q6_K,
                TensorType::Q8_0,
            ],
            shapes: vec![
                (576, 576),
                (1536, 576),
                (2048, 2048),
                (8192, 2048),
                (262_144, 640),
            ],
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            tokens: 512,
            isa: Isa::detect(),
            time: Duration::from_millis(200),
            json: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--json" {
                options.json = true;
                continue;
            }
            let value = arguments
                .next()
                .unwrap_or_else(|| fail(&format!("{name} needs a value")));
            let number = || {
                value
                    .parse()
                    .unwrap_or_else(|_| fail(&format!("{value} is no number")))
            };
            match name.as_str() {
                "--types" if value == "all" => options.types = TensorType::ALL.to_vec(),
                "--types" => options.types = value.split(',').map(tensor_type).collect(),
                "--shapes" => options.shapes = value.split(',').map(shape).collect(),
                "--threads" => options.threads = number(),
                "--tokens" => options.tokens = number(),
                "--milliseconds" => options.time = Duration::from_millis(number() as u64),
                "--isa" => {
                    options.isa =
                        Isa::from_name(&value).unwrap_or_else(|error| fail(&error.to_string()));
                }
                _ => fail(&format!("unknown option {name}")),
            }
        }
        options
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(2)
}

fn tensor_type(name: &str) -> TensorType {
    TensorType::ALL
        .into_iter()
        .find(|ty| ty.name().eq_ignore_ascii_case(name))
        .unwrap_or_else(|| fail(&format!("unknown type {name}")))
}

fn shape(text: &str) -> (usize, usize) {
    text.split_once('x')
        .and_then(|(rows, cols)| Some((rows.parse().ok()?, cols.parse().ok()?)))
        .unwrap_or_else(|| fail(&format!("{text} is no shape such as 2048x2048")))
}

struct Case<'a> {
    options: &'a Options,
    pool: &'a ThreadPool,
    ty: TensorType,
    rows: usize,
    cols: usize,
    raw: &'a [u8],
}

impl Case<'_> {
    fn matrix(&self) -> PackedMatrix {
        let mut builder = PackedMatrix::builder(self.ty, self.rows, self.cols).expect("a shape");
        builder
            .push_rows_parallel(self.pool, self.raw)
            .expect("rows");
        builder.finish().expect("all rows")
    }

    /// Bytes of the file packed per second.
    fn pack(&self) -> f64 {
        self.raw.len() as f64 / self.best(|| drop(self.matrix()))
    }

    /// Multiply-accumulates per second with many tokens.
    fn prefill(&self) -> f64 {
        let tokens = self.options.tokens;
        let w = self.matrix();
        let x = self.activations(tokens);
        let mut out = vec![0.0; tokens * self.rows];
        let context = self.context();
        let time = self.best(|| matmul(&context, &w, &x, &mut out, &Epilogue::default()));
        (self.rows * self.cols * tokens) as f64 / time
    }

    /// Bytes of weights per second with one token, from memory.
    fn decode(&self) -> f64 {
        let first = self.matrix();
        let bytes = first.bytes();
        let mut copies = vec![first];
        while copies.len() * bytes < COLD_BYTES {
            copies.push(self.matrix());
        }
        let x = self.activations(1);
        let mut out = vec![0.0; self.rows];
        let context = self.context();
        let time = self.best(|| {
            for w in &copies {
                matmul(&context, w, &x, &mut out, &Epilogue::default());
            }
        });
        (copies.len() * bytes) as f64 / time
    }

    fn activations(&self, tokens: usize) -> Activations {
        let x = numbers(tokens * self.cols);
        let mut activations = Activations::default();
        activations.quantize(&self.context(), &x, tokens, self.cols);
        activations
    }

    fn context(&self) -> Context<'_> {
        Context {
            isa: self.options.isa,
            pool: self.pool,
        }
    }

    /// The shortest of the times of `run`, s.
    fn best(&self, mut run: impl FnMut()) -> f64 {
        let start = Instant::now();
        let mut best = f64::INFINITY;
        let mut runs = 0;
        while runs < 3 || start.elapsed() < self.options.time {
            let start = Instant::now();
            run();
            best = best.min(start.elapsed().as_secs_f64());
            runs += 1;
        }
        best
    }
}

/// Checks some rows for several numbers of tokens: against the portable code bit by bit, and against the float product.
fn check(options: &Options, pool: &ThreadPool, ty: TensorType, cols: usize, raw: &[u8]) {
    let row_bytes = ty.row_bytes(cols).expect("whole rows");
    let rows = 40.min(raw.len() / row_bytes);
    let raw = &raw[..rows * row_bytes];
    let w = PackedMatrix::pack(ty, rows, cols, raw).expect("rows");
    let mut plain = vec![0.0; rows * cols];
    dequantize(ty, raw, &mut plain).expect("rows");
    for tokens in [1, 3, 16, 21] {
        let x = numbers(tokens * cols);
        let run = |isa| {
            let context = Context { isa, pool };
            let mut activations = Activations::default();
            activations.quantize(&context, &x, tokens, cols);
            let mut out = vec![0.0; tokens * rows];
            matmul(&context, &w, &activations, &mut out, &Epilogue::default());
            out
        };
        let got = run(options.isa);
        assert!(
            got == run(Isa::Scalar),
            "{ty}: differs from the portable code"
        );
        let (mut error, mut size) = (0.0, 0.0);
        for (x, got) in x.chunks_exact(cols).zip(got.chunks_exact(rows)) {
            for (w, &got) in plain.chunks_exact(cols).zip(got) {
                let exact: f64 = w
                    .iter()
                    .zip(x)
                    .map(|(&w, &x)| f64::from(w) * f64::from(x))
                    .sum();
                error += (f64::from(got) - exact).powi(2);
                size += exact.powi(2);
            }
        }
        assert!(error <= 1e-3 * size, "{ty}: wrong by {:.1e}", error / size);
    }
}

/// Uniform numbers in `-1..1`.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Rows of random codes; bytes that would make an f16 scale infinite or huge are made small.
fn random_rows(ty: TensorType, rows: usize, cols: usize) -> Vec<u8> {
    let len = rows * ty.row_bytes(cols).expect("whole rows");
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut bytes = state.to_le_bytes();
        if ty.block_len() == 1 {
            let step = ty.block_bytes();
            bytes
                .iter_mut()
                .skip(step - 1)
                .step_by(step)
                .for_each(|byte| *byte = *byte & 0x83 | 0x38);
        }
        out.extend(bytes);
    }
    out.truncate(len);
    use TensorType::*;
    let scales: &[usize] = match ty {
        F32 | F16 | BF16 => &[],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[1, 3],
        Q2_K => &[81, 83],
        Q3_K => &[109],
        Q6_K => &[209],
        TQ1_0 => &[53],
        TQ2_0 => &[65],
        MXFP4 => &[0],
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL | IQ4_XS => &[1],
    };
    for block in out.chunks_exact_mut(ty.block_bytes()) {
        for &at in scales {
            block[at] = if ty == MXFP4 {
                120
            } else {
                0x28 | block[at] & 0x83
            };
        }
    }
    out
}
