//! `ondine gate`: whether a model may replace another.

use super::eval::MeasureArgs;
use super::load::ModelArgs;
use crate::error::CliError;
use crate::output::Output;
use ondine_compress::gate::{Verdict, judge};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `ondine gate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine gate --baseline model-f16.gguf --candidate small.gguf --suite suite.toml
  ondine gate --baseline v1.gguf --candidate v2.gguf --suite suite.toml --verdict verdict.json

Ends with 3 unless every metric of the suite is shown to be no worse than its margin allows.")]
pub struct Args {
    /// Model that is in use
    #[arg(long, value_name = "MODEL")]
    baseline: String,
    /// Model that may replace it
    #[arg(long, value_name = "MODEL")]
    candidate: String,
    #[command(flatten)]
    measure: MeasureArgs,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also write the verdict, with the hashes of both models, to this file
    #[arg(long, value_name = "FILE")]
    verdict: Option<PathBuf>,
}

/// Measures both and judges.
///
/// # Errors
/// `Refused` when the candidate does not pass, `Failed` when it cannot be measured.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let suite = args.measure.open()?;
    let named = |model: &str| ModelArgs {
        model: model.to_owned(),
        #[cfg(feature = "package")]
        identity: Vec::new(),
    };
    let mut baseline = args.measure.subject(named(&args.baseline), output)?;
    let mut candidate = args.measure.subject(named(&args.candidate), output)?;
    // Divergences are defined for one vocabulary only.
    let comparable =
        baseline.model.tokenizer().vocab_len() == candidate.model.tokenizer().vocab_len();
    let before = args.measure.measure(&mut baseline, None, &suite, output)?;
    let reference = comparable.then_some(&mut baseline);
    let after = args
        .measure
        .measure(&mut candidate, reference, &suite, output)?;
    let verdict = judge(&before, &after, &suite.margins, args.seed);
    let hash = |model: &ondine_runtime::Model| {
        model
            .hash()
            .map(|hash| hash.to_hex().to_string())
            .map_err(|error| CliError::Failed(error.to_string()))
    };
    let report = json!({
        "suite": suite.name,
        "baseline": {"model": args.baseline, "blake3": hash(&baseline.model)?},
        "candidate": {"model": args.candidate, "blake3": hash(&candidate.model)?},
        "margins": {
            "loss": suite.margins.loss,
            "kl": suite.margins.kl,
            "accuracy": suite.margins.accuracy,
            "confidence": suite.margins.confidence,
        },
        "seed": args.seed,
        "passes": verdict.passes,
        "metrics": verdict.metrics,
    });
    if let Some(path) = &args.verdict {
        std::fs::write(path, format!("{report:#}\n"))
            .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
    }
    if output.is_json() {
        output.json(&report)?;
    } else {
        print(&verdict, output)?;
    }
    match verdict.passes {
        true => Ok(()),
        false => Err(CliError::Refused(format!(
            "{} does not pass: {}",
            args.candidate,
            broken(&verdict)
        ))),
    }
}

fn broken(verdict: &Verdict) -> String {
    let broken = verdict.metrics.iter().filter(|metric| !metric.holds);
    let names: Vec<String> = broken
        .map(|metric| format!("{} of {}", metric.name, metric.task))
        .collect();
    names.join(", ")
}

fn print(verdict: &Verdict, output: &mut Output) -> Result<(), CliError> {
    for metric in &verdict.metrics {
        output.line(&format!(
            "{} {} of {}: worse by {:+.4} (at most {:+.4}), margin {:.4}",
            if metric.holds { "holds  " } else { "BROKEN " },
            metric.name,
            metric.task,
            metric.worse.mean,
            metric.worse.high,
            metric.margin
        ))?;
        for item in &metric.failing {
            let one_line =
                |text: &str| -> String { text.replace('\n', " ").chars().take(60).collect() };
            output.line(&format!(
                "          item {}: {:+.4}  {:?}: {:?} before, {:?} now",
                item.index,
                item.worse,
                one_line(&item.baseline.question),
                one_line(&item.baseline.answer),
                one_line(&item.candidate.answer)
            ))?;
        }
    }
    Ok(())
}
