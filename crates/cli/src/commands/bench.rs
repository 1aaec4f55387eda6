//! `ondine bench`: how fast a model runs here, beside what this machine could do.

use super::load::{LoadArgs, ModelArgs, head_json, peak_resident_bytes, streaming_json};
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Bar;
use ondine_kernels::{MachineLimits, ThreadPool};
use ondine_runtime::backend::MemoryReport;
use ondine_runtime::bench::{Bench, Measured, Rate, Rounds, Test};
use ondine_runtime::tokenizer::EncodeOptions;
use serde_json::{Value, json};
use std::num::NonZeroU32;

/// What is computed: prose and a little code, as models are asked for.
const TEXT: &str = include_str!("bench_text.txt");

/// Arguments of `ondine bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine bench
  ondine bench -m gemma-3-270m -p 512 -n 128 -t 2 --json
  ondine bench -p 4096 -n 64 -d 4096          at a depth of 4096 tokens as well
  ondine bench -p 0 -n 64 --batch 1,16        one sequence, and 16 decoded together
  ondine bench --neighbours 2                 alone, and beside two busy threads

The tokens are those of a short text, again and again. Every test runs once per round, all tests in turn; medians over the rounds are printed with the
slowest and the fastest. The machine's read bandwidth is measured in every round; the best counts.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Prompt lengths to measure
    #[arg(
        short,
        long = "prompt",
        value_delimiter = ',',
        default_value = "512",
        value_name = "TOKENS"
    )]
    prompt: Vec<u32>,
    /// Numbers of tokens to generate
    #[arg(
        short = 'n',
        long = "generate",
        value_delimiter = ',',
        default_value = "128",
        value_name = "TOKENS"
    )]
    generate: Vec<u32>,
    /// Tokens held before each test
    #[arg(
        short,
        long,
        value_delimiter = ',',
        default_value = "0",
        value_name = "TOKENS"
    )]
    depth: Vec<u32>,
    /// Numbers of sequences to generate together
    #[arg(
        short,
        long,
        value_delimiter = ',',
        default_value = "1",
        value_name = "SEQUENCES"
    )]
    batch: Vec<NonZeroU32>,
    /// Run each test also beside this many busy threads that compete for the processor
    #[arg(long, default_value = "0", value_name = "THREADS", value_parser = clap::value_parser!(u32).range(0..=256))]
    neighbours: u32,
    /// Compute all scores of each decoded token, not only those that a greedy choice needs
    #[arg(long)]
    all_scores: bool,
    /// Rounds
    #[arg(short, long, default_value = "5")]
    rounds: NonZeroU32,
}

/// Measures and prints.
///
/// # Errors
/// `Failed` when the model cannot be used or the tests do not fit its context.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let model = args.model.open(output)?;
    let tests = tests(args);
    if tests.is_empty() {
        return Err(CliError::Usage(
            "nothing to measure: give -p or -n above zero".into(),
        ));
    }
    let mut load = args.load.options();
    load.screened_head &= !args.all_scores;
    let longest = tests.iter().map(|test| test.length()).max().unwrap_or(0);
    load.context = Some(load.context.unwrap_or(0).max(longest));
    let mut decoder = args.load.load_with(&model, &load, output)?;
    let device = decoder.device().clone();
    let bar = Bar::new(output, "runs");
    let pool = ThreadPool::new(device.threads);
    let mut limits = MachineLimits::measure(&pool);
    let rounds = Rounds {
        count: args.rounds.get() as usize,
        neighbours: args.neighbours as usize,
    };
    let text = model.tokenizer().encode(
        TEXT,
        EncodeOptions {
            add_special: true,
            parse_special: false,
        },
    );
    let mut bench = Bench::new(decoder.as_mut(), &text).with_all_scores(args.all_scores);
    // Right before and after each test: on shared machines the bandwidth changes from one moment to the next.
    let mut bandwidths = vec![limits.read_bytes_per_second];
    let rates = bench.run(&tests, rounds, |done, all| {
        bar.set(done, all, "");
        let now = MachineLimits::measure(&pool);
        bandwidths.push(now.read_bytes_per_second);
        limits = limits.best_of(&now);
    });
    bar.finish();
    let rates = rates.map_err(|error| CliError::Failed(error.to_string()))?;
    let mut memory = decoder.memory();
    let head = decoder.head();
    // Decoding looks for the best token, which needs less than the whole head.
    memory.read_per_token =
        memory.read_per_token.saturating_sub(head.bytes) + head.bytes_per_row().round() as u64;
    let rows: Vec<Row> = tests
        .iter()
        .zip(rates)
        .enumerate()
        .map(|(index, (&test, measured))| {
            // The first round warms up.
            let at = (1..).map(|round| round * tests.len() + index);
            let around: Vec<f64> = at
                .map_while(|at| Some(bandwidths.get(at)?.max(*bandwidths.get(at + 1)?)))
                .collect();
            Row::new(test, measured, &memory, &around)
        })
        .collect();
    if output.is_json() {
        return output.json(&json!({
            "model": model.path(),
            "backend": device.backend,
            "isa": device.device,
            "threads": device.threads,
            "rounds": args.rounds.get(),
            "neighbours": args.neighbours,
            "weights_bytes": memory.weights,
            "limits": {
                "read_bytes_per_second": limits.read_bytes_per_second,
                "int8_multiply_accumulates_per_second": limits.int8_macs_per_second,
            },
            "head": head_json(&head),
            "peak_rss_bytes": peak_resident_bytes(),
            "streaming": streaming_json(decoder.as_ref()),
            "tests": rows.iter().map(Row::json).collect::<Vec<_>>(),
        }));
    }
    output.line(&format!(
        "{} on {} {} with {} threads; this machine reads {:.1} GB/s",
        model.path().display(),
        device.backend,
        device.device,
        device.threads,
        limits.read_bytes_per_second / 1e9
    ))?;
    let mut header =
        "test              tokens/s   slowest   fastest   MB/step   of read bandwidth".to_owned();
    if args.neighbours > 0 {
        header += &format!("   beside {} busy   kept", args.neighbours);
    }
    output.line(&header)?;
    for row in &rows {
        output.line(&row.text())?;
    }
    if let (Some(report), Some(disk)) = (decoder.streaming(), decoder.disk_bytes_per_second()) {
        output.line(&format!(
            "streams {:.1} MB per token at {:.2} GB/s, {:.0} % of the {:.2} GB/s that the disk reads",
            report.bytes_per_pass() / 1e6,
            report.bytes_per_second() / 1e9,
            report.bytes_per_second() / disk * 100.0,
            disk / 1e9
        ))?;
    }
    output.line(&format!(
        "output head: {:.1} of {:.1} MB read per token, {:.1} % of the tokens needed all of it",
        head.bytes_per_row() / 1e6,
        head.bytes as f64 / 1e6,
        head.fallback_rate() * 100.0
    ))
}

fn tests(args: &Args) -> Vec<Test> {
    let mut tests = Vec::new();
    for &depth in &args.depth {
        let depth = depth as usize;
        let lengths = |lengths: &[u32]| -> Vec<usize> {
            let lengths = lengths.iter().filter(|&&length| length > 0);
            lengths.map(|&length| length as usize).collect()
        };
        for tokens in lengths(&args.prompt) {
            tests.push(Test::Prefill { tokens, depth });
        }
        for tokens in lengths(&args.generate) {
            for batch in &args.batch {
                tests.push(Test::Decode {
                    tokens,
                    depth,
                    batch: batch.get() as usize,
                });
            }
        }
    }
    tests
}

/// One line of the result.
struct Row {
    test: Test,
    measured: Measured,
    /// Bytes of weights, keys and values that a step (a token of each sequence) reads; for decode only.
    bytes_per_step: Option<u64>,
    share_of_bandwidth: Option<f64>,
}

impl Row {
    /// `bandwidths`: what the machine read per second around each round.
    fn new(test: Test, measured: Measured, memory: &MemoryReport, bandwidths: &[f64]) -> Self {
        let bytes_per_step = match test {
            Test::Prefill { .. } => None,
            Test::Decode { tokens, depth, .. } => {
                let positions = (depth + tokens / 2) * test.batch();
                Some(memory.read_per_token + memory.kv_per_position * positions as u64)
            }
        };
        let batch = test.batch() as f64;
        let rounds = measured.rounds.iter().zip(bandwidths);
        let shares_per_byte = rounds.map(|(rate, bandwidth)| rate / batch / bandwidth);
        let share_per_byte = Rate::of(shares_per_byte.collect()).median;
        Row {
            test,
            measured,
            bytes_per_step,
            share_of_bandwidth: bytes_per_step.map(|bytes| bytes as f64 * share_per_byte),
        }
    }

    /// The share of the speed that is left beside neighbours.
    fn kept(&self, beside: Rate) -> f64 {
        beside.median / self.measured.rate.median
    }

    fn json(&self) -> Value {
        let rate = |rate: Rate| {
            json!({
                "median": rate.median,
                "min": rate.min,
                "max": rate.max,
            })
        };
        let mut value = json!({
            "name": self.test.name(),
            "batch": self.test.batch(),
            "tokens_per_second": rate(self.measured.rate),
        });
        if let (Some(bytes), Some(share)) = (self.bytes_per_step, self.share_of_bandwidth) {
            value["bytes_per_token"] = (bytes / self.test.batch() as u64).into();
            value["share_of_read_bandwidth"] = share.into();
        }
        if let Some(beside) = self.measured.beside {
            value["tokens_per_second_beside_neighbours"] = rate(beside);
            value["share_kept"] = self.kept(beside).into();
        }
        value
    }

    fn text(&self) -> String {
        let rate = self.measured.rate;
        let mut line = format!(
            "{:<16} {:>9.1} {:>9.1} {:>9.1}",
            self.test.name(),
            rate.median,
            rate.min,
            rate.max
        );
        match (self.bytes_per_step, self.share_of_bandwidth) {
            (Some(bytes), Some(share)) => line.push_str(&format!(
                "{:>10.1} {:>10.0} %        ",
                bytes as f64 / 1e6,
                share * 100.0
            )),
            _ => line.push_str(&" ".repeat(31)),
        }
        if let Some(beside) = self.measured.beside {
            line.push_str(&format!(
                "{:>14.1} {:>4.0} %",
                beside.median,
                100.0 * self.kept(beside)
            ));
        }
        line.trim_end().to_owned()
    }
}
