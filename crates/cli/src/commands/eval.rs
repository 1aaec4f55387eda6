//! `ondine eval`: what a model can do, measured on a suite.

use super::calibrate::failed;
use super::load::{LoadArgs, ModelArgs};
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use crate::progress::Bar;
use ondine_compress::evaluate::{Cache, Subject, Suite, TaskResult, html, interval};
use ondine_hub::Settings;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Confidence intervals of 95 %.
const TAIL: f64 = 0.025;

/// Arguments of `ondine eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine eval -m small.gguf --suite suite.toml
  ondine eval -m small.gguf --reference model-f16.gguf --suite suite.toml --html report.html

The suite names texts, questions with choices and prompts with what their answers must be; docs/evaluation.md says how.
What was measured once is not measured again.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    measure: MeasureArgs,
    /// Model that this one was made of: differences, and how far apart their predictions are
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
    /// Also write a page for people
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What `eval` and `gate` share.
#[derive(Debug, clap::Args)]
pub struct MeasureArgs {
    /// What is measured
    #[arg(long, value_name = "FILE")]
    pub suite: PathBuf,
    /// Where results are kept; beside the downloaded models unless given
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Neither use nor keep results
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    load: LoadArgs,
}

impl MeasureArgs {
    /// The suite.
    pub fn open(&self) -> Result<Suite, CliError> {
        Suite::open(&self.suite).map_err(failed)
    }

    /// Where results are kept.
    pub fn cache(&self) -> Cache {
        let directory = match (self.fresh, &self.results) {
            (true, _) => None,
            (false, Some(directory)) => Some(directory.clone()),
            (false, None) => Settings::from_environment()
                .ok()
                .map(|settings| settings.home.join("results")),
        };
        Cache::new(directory.as_deref())
    }

    /// A model that is measured.
    pub fn subject(&self, model: ModelArgs, output: &Output) -> Result<Subject, CliError> {
        let model = model.open(output)?;
        let mut options = self.load.options();
        // All scores are wanted.
        options.screened_head = false;
        let decoder = self.load.load_with(&model, &options, output)?;
        Ok(Subject { model, decoder })
    }

    /// What the suite gives for `subject`.
    pub fn measure(
        &self,
        subject: &mut Subject,
        reference: Option<&mut Subject>,
        suite: &Suite,
        output: &Output,
    ) -> Result<Vec<TaskResult>, CliError> {
        let bar = Bar::new(output, "items");
        let results = subject.measure(suite, reference, &self.cache(), &mut |task, done, all| {
            bar.set(done, all, task);
            !interrupt::is_interrupted()
        });
        bar.finish();
        results.map_err(failed)
    }
}

/// Measures and reports.
///
/// # Errors
/// `Failed` when a model or the suite cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let suite = args.measure.open()?;
    let mut subject = args.measure.subject(args.model.clone(), output)?;
    let mut reference = match &args.reference {
        Some(reference) => {
            let model = ModelArgs {
                model: reference.clone(),
                ..args.model.clone()
            };
            Some(args.measure.subject(model, output)?)
        }
        None => None,
    };
    let results = args
        .measure
        .measure(&mut subject, reference.as_mut(), &suite, output)?;
    let before = match &mut reference {
        Some(reference) => Some(args.measure.measure(reference, None, &suite, output)?),
        None => None,
    };
    if let Some(path) = &args.html {
        let name = args.reference.as_deref().unwrap_or_default();
        let before = before.as_deref().map(|before| (name, before));
        write(
            path,
            &html(&suite.name, &args.model.model, &results, before),
        )?;
    }
    if output.is_json() {
        let tasks: Vec<Value> = results
            .iter()
            .enumerate()
            .map(|(index, task)| task_json(task, before.as_ref().and_then(|all| all.get(index))))
            .collect();
        return output.json(&json!({
            "suite": suite.name,
            "model": args.model.model,
            "reference": args.reference,
            "tasks": tasks,
        }));
    }
    for (index, task) in results.iter().enumerate() {
        print(task, before.as_ref().and_then(|all| all.get(index)), output)?;
    }
    Ok(())
}

fn values(task: &TaskResult) -> Vec<f64> {
    task.items.iter().map(|item| item.score).collect()
}

fn changes(task: &TaskResult, before: &TaskResult) -> Vec<f64> {
    let pairs = task.items.iter().zip(&before.items);
    pairs
        .map(|(now, before)| now.score - before.score)
        .collect()
}

fn task_json(task: &TaskResult, before: Option<&TaskResult>) -> Value {
    let figure = |values: Vec<f64>| match values.is_empty() {
        true => Value::Null,
        false => json!(interval(&values, TAIL, 1)),
    };
    let optional = |of: fn(&ondine_compress::evaluate::ItemResult) -> Option<f64>| {
        figure(task.items.iter().filter_map(of).collect())
    };
    let score = interval(&values(task), TAIL, 1);
    json!({
        "name": task.name,
        "metric": if task.is_loss { "loss" } else { "accuracy" },
        "score": score,
        "perplexity": task.is_loss.then(|| score.mean.exp()),
        "kl": optional(|item| item.divergence),
        "same_best": optional(|item| item.same_best),
        "difference": before.map(|before| interval(&changes(task, before), TAIL, 1)),
        "items": task.items,
    })
}

fn print(
    task: &TaskResult,
    before: Option<&TaskResult>,
    output: &mut Output,
) -> Result<(), CliError> {
    let score = interval(&values(task), TAIL, 1);
    let mut line = match task.is_loss {
        true => format!(
            "{}: perplexity {:.3} ({:.3} to {:.3}), {} windows",
            task.name,
            score.mean.exp(),
            score.low.exp(),
            score.high.exp(),
            task.items.len()
        ),
        false => format!(
            "{}: {:.1} % right ({:.1} to {:.1}), {} items",
            task.name,
            100.0 * score.mean,
            100.0 * score.low,
            100.0 * score.high,
            task.items.len()
        ),
    };
    if let Some(before) = before {
        let change = interval(&changes(task, before), TAIL, 1);
        let (scale, unit) = match task.is_loss {
            true => (1.0, "nats"),
            false => (100.0, "points"),
        };
        line.push_str(&format!(
            "; {:+.4} {unit} ({:+.4} to {:+.4}) against the reference",
            scale * change.mean,
            scale * change.low,
            scale * change.high
        ));
    }
    let divergences: Vec<f64> = task
        .items
        .iter()
        .filter_map(|item| item.divergence)
        .collect();
    let same: Vec<f64> = task
        .items
        .iter()
        .filter_map(|item| item.same_best)
        .collect();
    if !divergences.is_empty() {
        line.push_str(&format!(
            ", KL {:.5} nats, same likeliest token {:.2} %",
            interval(&divergences, TAIL, 1).mean,
            100.0 * interval(&same, TAIL, 1).mean
        ));
    }
    output.line(&line)
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text)
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}
