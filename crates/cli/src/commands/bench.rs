//! `ondine bench`: how fast a model runs here, beside what this machine could do.

use super::load::{LoadArgs, ModelArgs, peak_resident_bytes, streaming_json};
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Bar;
use ondine_kernels::{MachineLimits, ThreadPool};
use ondine_runtime::backend::MemoryReport;
use ondine_runtime::bench::{Bench, Rate, Test};
use serde_json::{Value, json};
use std::num::NonZeroU32;

/// Arguments of `ondine bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine bench
  ondine bench -m gemma-3-270m -p 512 -n 128 -t 2 --json
  ondine bench -p 4096 -n 64 -d 4096          at a depth of 4096 tokens as well

Every test runs once per round, all tests in turn; medians over the rounds are printed with the
slowest and the fastest. The machine's read bandwidth is measured in the same run.")]
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
    let longest = tests.iter().map(|test| test.length()).max().unwrap_or(0);
    load.context = Some(load.context.unwrap_or(0).max(longest));
    let mut decoder = args.load.load_with(&model, &load, output)?;
    let device = decoder.device().clone();
    let bar = Bar::new(output, "runs");
    let limits = MachineLimits::measure(&ThreadPool::new(device.threads));
    let rates =
        Bench::new(decoder.as_mut()).run(&tests, args.rounds.get() as usize, |done, all| {
            bar.set(done, all, "");
        });
    bar.finish();
    let rates = rates.map_err(|error| CliError::Failed(error.to_string()))?;
    let memory = decoder.memory();
    let rows: Vec<Row> = tests
        .iter()
        .zip(&rates)
        .map(|(&test, &rate)| Row::new(test, rate, &memory, &limits))
        .collect();
    if output.is_json() {
        return output.json(&json!({
            "model": model.path(),
            "backend": device.backend,
            "isa": device.device,
            "threads": device.threads,
            "rounds": args.rounds.get(),
            "weights_bytes": memory.weights,
            "limits": {
                "read_bytes_per_second": limits.read_bytes_per_second,
                "int8_multiply_accumulates_per_second": limits.int8_macs_per_second,
            },
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
    output.line("test            tokens/s   slowest   fastest   MB/token   of read bandwidth")?;
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
    Ok(())
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
            tests.push(Test::Decode { tokens, depth });
        }
    }
    tests
}

/// One line of the result.
struct Row {
    test: Test,
    rate: Rate,
    /// Bytes of weights, keys and values that a token reads; for decode only.
    bytes_per_token: Option<u64>,
    share_of_bandwidth: Option<f64>,
}

impl Row {
    fn new(test: Test, rate: Rate, memory: &MemoryReport, limits: &MachineLimits) -> Self {
        let bytes_per_token = match test {
            Test::Prefill { .. } => None,
            Test::Decode { tokens, depth } => {
                Some(memory.read_per_token + memory.kv_per_position * (depth + tokens / 2) as u64)
            }
        };
        Row {
            test,
            rate,
            bytes_per_token,
            share_of_bandwidth: bytes_per_token
                .map(|bytes| bytes as f64 * rate.median / limits.read_bytes_per_second),
        }
    }

    fn json(&self) -> Value {
        let mut value = json!({
            "name": self.test.name(),
            "tokens_per_second": {
                "median": self.rate.median,
                "min": self.rate.min,
                "max": self.rate.max,
            },
        });
        if let (Some(bytes), Some(share)) = (self.bytes_per_token, self.share_of_bandwidth) {
            value["bytes_per_token"] = bytes.into();
            value["share_of_read_bandwidth"] = share.into();
        }
        value
    }

    fn text(&self) -> String {
        let mut line = format!(
            "{:<14} {:>9.1} {:>9.1} {:>9.1}",
            self.test.name(),
            self.rate.median,
            self.rate.min,
            self.rate.max
        );
        if let (Some(bytes), Some(share)) = (self.bytes_per_token, self.share_of_bandwidth) {
            line.push_str(&format!(
                "{:>11.1} {:>10.0} %",
                bytes as f64 / 1e6,
                share * 100.0
            ));
        }
        line
    }
}
