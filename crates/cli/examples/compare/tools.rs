//! The programs that are compared.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// (test, tokens per second); tests are named as `ondine bench` names them.
pub type Rates = Vec<(String, f64)>;

/// A prompt of about 16 tokens.
const PROMPT: &str =
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is";
/// Longest life of a busy neighbour, should nobody end it.
const NEIGHBOUR_SECONDS: u64 = 600;
/// Windows on which perplexities are compared.
const WINDOWS: &str = "2";

/// Where the programs are and how they are run.
pub struct Tools {
    pub ondine: PathBuf,
    pub rival: PathBuf,
    pub threads: usize,
}

/// One run to the first token.
pub struct FirstToken {
    pub seconds: f64,
    /// Peak resident memory; unknown where `/usr/bin/time` is missing.
    pub megabytes: Option<f64>,
}

impl Tools {
    /// Perplexity of a text by both.
    pub fn perplexities(&self, model: &Path, text: &Path) -> Result<(f64, f64), String> {
        let ours = output(
            Command::new(&self.ondine)
                .args([
                    "perplexity",
                    "--json",
                    "--ctx",
                    "512",
                    "--chunks",
                    WINDOWS,
                    "-m",
                ])
                .arg(model)
                .arg(text),
        )?;
        let ours: Value = serde_json::from_str(&ours).map_err(|error| error.to_string())?;
        let theirs = output(
            Command::new(self.rival.join("llama-perplexity"))
                .args(["-c", "512", "-b", "512", "--chunks", WINDOWS, "-m"])
                .arg(model)
                .arg("-f")
                .arg(text),
        )?;
        let number = |text: &str| {
            text.split_whitespace()
                .next()
                .and_then(|word| word.parse().ok())
        };
        let theirs = theirs
            .split("Final estimate: PPL = ")
            .nth(1)
            .and_then(number);
        ours["ppl"]
            .as_f64()
            .zip(theirs)
            .ok_or_else(|| "no perplexity in the answer of one of the tools".into())
    }

    /// One round of `ondine bench`.
    pub fn ondine_bench(
        &self,
        model: &Path,
        prompt: usize,
        generate: usize,
        depths: &[usize],
    ) -> Result<Rates, String> {
        let out = output(
            Command::new(&self.ondine)
                .args([
                    "bench",
                    "--json",
                    "-r",
                    "1",
                    "-t",
                    &self.threads.to_string(),
                ])
                .args(["-p", &prompt.to_string(), "-n", &generate.to_string()])
                .args(["-d", &join(depths)])
                .arg("-m")
                .arg(model),
        )?;
        let out: Value = serde_json::from_str(&out).map_err(|error| error.to_string())?;
        let tests = out["tests"]
            .as_array()
            .ok_or("no tests in ondine's answer")?;
        let rate = |test: &Value| {
            let name = test["name"].as_str()?.to_owned();
            Some((name, test["tokens_per_second"]["median"].as_f64()?))
        };
        Ok(tests.iter().filter_map(rate).collect())
    }

    /// One round of `llama-bench`.
    pub fn llama_bench(
        &self,
        model: &Path,
        prompt: usize,
        generate: usize,
        depths: &[usize],
    ) -> Result<Rates, String> {
        let out = output(
            Command::new(self.rival.join("llama-bench"))
                .args(["-o", "json", "-r", "1", "-t", &self.threads.to_string()])
                .args(["-p", &prompt.to_string(), "-n", &generate.to_string()])
                .args(["-d", &join(depths)])
                .arg("-m")
                .arg(model),
        )?;
        let out: Value = serde_json::from_str(&out).map_err(|error| error.to_string())?;
        let tests = out.as_array().ok_or("no tests in llama-bench's answer")?;
        let rate = |test: &Value| {
            let number = |key: &str| test[key].as_u64();
            let name = match (number("n_prompt")?, number("n_gen")?) {
                (tokens, 0) => format!("pp{tokens}"),
                (_, tokens) => format!("tg{tokens}"),
            };
            let name = match number("n_depth").unwrap_or(0) {
                0 => name,
                depth => format!("{name}@d{depth}"),
            };
            Some((name, test["avg_ts"].as_f64()?))
        };
        Ok(tests.iter().filter_map(rate).collect())
    }

    /// `ondine run` to its first token.
    pub fn ondine_first_token(&self, model: &Path) -> Result<FirstToken, String> {
        let threads = self.threads.to_string();
        let mut words = vec![self.ondine.as_os_str(), "run".as_ref(), PROMPT.as_ref()];
        words.extend(
            ["--raw", "--temp", "0", "-n", "1", "-t", &threads]
                .map(AsRef::<std::ffi::OsStr>::as_ref),
        );
        words.extend(["-m".as_ref(), model.as_os_str()]);
        first_token(&words)
    }

    /// `llama-completion` to its first token.
    pub fn llama_first_token(&self, model: &Path) -> Result<FirstToken, String> {
        let program = self.rival.join("llama-completion");
        let threads = self.threads.to_string();
        let mut words = vec![program.as_os_str()];
        words.extend(
            [
                "-no-cnv",
                "--no-display-prompt",
                "--temp",
                "0",
                "-n",
                "1",
                "-t",
                &threads,
                "-p",
                PROMPT,
            ]
            .map(AsRef::<std::ffi::OsStr>::as_ref),
        );
        words.extend(["-m".as_ref(), model.as_os_str()]);
        first_token(&words)
    }
}

fn first_token(words: &[&std::ffi::OsStr]) -> Result<FirstToken, String> {
    let timer = Path::new("/usr/bin/time");
    let mut command = if timer.exists() {
        let mut command = Command::new(timer);
        command.args(["-f", "%M kilobytes"]).args(words);
        command
    } else {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    };
    let start = Instant::now();
    let result = command.stdin(Stdio::null()).output();
    let seconds = start.elapsed().as_secs_f64();
    let result = result.map_err(|error| format!("{}: {error}", words[0].display()))?;
    let messages = String::from_utf8_lossy(&result.stderr);
    if !result.status.success() || result.stdout.is_empty() {
        return Err(format!("{} did not answer: {messages}", words[0].display()));
    }
    let kilobytes = messages
        .lines()
        .rev()
        .find_map(|line| line.strip_suffix(" kilobytes"));
    Ok(FirstToken {
        seconds,
        megabytes: kilobytes
            .and_then(|word| word.parse::<f64>().ok())
            .map(|x| x * 1024.0 / 1e6),
    })
}

fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    let result = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !result.status.success() {
        return Err(format!(
            "{program} failed: {}",
            String::from_utf8_lossy(&result.stderr)
        ));
    }
    // llama-perplexity writes its figures to both.
    let mut text = String::from_utf8_lossy(&result.stdout).into_owned();
    if !text.trim_start().starts_with(['{', '[']) {
        text.push_str(&String::from_utf8_lossy(&result.stderr));
    }
    Ok(text)
}

fn join(numbers: &[usize]) -> String {
    numbers
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// Processes that keep cores busy until they are dropped.
pub struct Neighbours(Vec<Child>);

impl Neighbours {
    /// Starts `count` of them.
    pub fn start(count: usize) -> Result<Neighbours, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut neighbours = Neighbours(Vec::new());
        for _ in 0..count {
            let child = Command::new(&program)
                .args(["--spin", &NEIGHBOUR_SECONDS.to_string()])
                .spawn()
                .map_err(|error| error.to_string())?;
            neighbours.0.push(child);
        }
        Ok(neighbours)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Keeps a core busy.
pub fn spin(seconds: u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut x = 1u64;
    while Instant::now() < end {
        for _ in 0..1_000_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        std::hint::black_box(x);
    }
}
