//! Whether a candidate may replace a baseline: non-inferiority, metric by metric.
//!
//! A metric passes when the one-sided upper bound (paired bootstrap over the items) of how much worse the candidate is
//! keeps to the metric's margin: too little evidence does not pass. What the models read must be the same tokens, item by item,
//! so that a wrong chat template or a damaged vocabulary is seen even where scores survive it.

use serde::Serialize;

use crate::evaluate::{Interval, ItemResult, Margins, TaskResult, interval};

/// The verdict.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// Whether every metric holds.
    pub passes: bool,
    /// Metric by metric.
    pub metrics: Vec<Metric>,
}

/// One metric.
#[derive(Debug, Clone, Serialize)]
pub struct Metric {
    /// The task.
    pub task: String,
    /// What is compared.
    pub name: &'static str,
    /// How much worse the candidate is; negative is better.
    pub worse: Interval,
    /// What the upper bound must keep to.
    pub margin: f64,
    /// Whether it does.
    pub holds: bool,
    /// The items that are worst, where it does not.
    pub failing: Vec<FailingItem>,
}

/// An item side by side.
#[derive(Debug, Clone, Serialize)]
pub struct FailingItem {
    /// Its number in the task, from 0.
    pub index: usize,
    /// How much worse it is.
    pub worse: f64,
    /// The baseline's.
    pub baseline: ItemResult,
    /// The candidate's.
    pub candidate: ItemResult,
}

/// Failing items that are shown of a metric.
const SHOWN: usize = 5;

/// Judges what the same suite gave for both; `seed` is that of the bootstrap.
pub fn judge(
    baseline: &[TaskResult],
    candidate: &[TaskResult],
    margins: &Margins,
    seed: u64,
) -> Verdict {
    let mut metrics = Vec::new();
    for (index, before) in baseline.iter().enumerate() {
        let nothing = TaskResult {
            items: Vec::new(),
            ..before.clone()
        };
        let after = candidate.get(index).unwrap_or(&nothing);
        let mut add = |name, margin, worse: &dyn Fn(&ItemResult, &ItemResult) -> f64| {
            metrics.push(metric(before, after, name, (margin, margins, seed), worse));
        };
        add("tokens", 0.0, &|before, after| {
            f64::from(u8::from(before.tokens != after.tokens))
        });
        if before.is_loss {
            add("loss", margins.loss, &|before, after| {
                after.score - before.score
            });
            if after.items.iter().any(|item| item.divergence.is_some()) {
                add("kl", margins.kl, &|_, after| {
                    after.divergence.unwrap_or(f64::INFINITY)
                });
            }
        } else {
            add("accuracy", margins.accuracy, &|before, after| {
                before.score - after.score
            });
        }
    }
    Verdict {
        passes: metrics.iter().all(|metric| metric.holds),
        metrics,
    }
}

fn metric(
    before: &TaskResult,
    after: &TaskResult,
    name: &'static str,
    (margin, margins, seed): (f64, &Margins, u64),
    worse: &dyn Fn(&ItemResult, &ItemResult) -> f64,
) -> Metric {
    let pairs = before.items.iter().zip(&after.items);
    let each: Vec<f64> = pairs.map(|(before, after)| worse(before, after)).collect();
    let bounds = interval(&each, 1.0 - margins.confidence, seed);
    // A tokenizer that splits a text into fewer windows has no item to compare for the others.
    let whole = before.items.len() == after.items.len();
    let holds = whole && bounds.high <= margin;
    let mut failing: Vec<FailingItem> = Vec::new();
    if !holds {
        let items = before.items.iter().zip(&after.items).zip(&each);
        for (index, ((baseline, candidate), &worse)) in items.enumerate() {
            if worse > margin {
                failing.push(FailingItem {
                    index,
                    worse,
                    baseline: baseline.clone(),
                    candidate: candidate.clone(),
                });
            }
        }
        failing.sort_by(|a, b| b.worse.total_cmp(&a.worse));
        failing.truncate(SHOWN);
    }
    Metric {
        task: before.name.clone(),
        name,
        worse: bounds,
        margin,
        holds,
        failing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ondine_fixtures::Random;

    fn results(is_loss: bool, scores: impl IntoIterator<Item = f64>) -> Vec<TaskResult> {
        let items = scores.into_iter().map(|score| ItemResult {
            score,
            ..ItemResult::default()
        });
        vec![TaskResult {
            name: "task".into(),
            is_loss,
            items: items.collect(),
        }]
    }

    #[test]
    fn an_identical_model_passes_on_every_seed() {
        let mut random = Random::new(1);
        for seed in 0..300 {
            let losses: Vec<f64> = (0..20).map(|_| f64::from(random.normal())).collect();
            let same = results(true, losses);
            assert!(judge(&same, &same, &Margins::default(), seed).passes);
        }
    }

    #[test]
    fn what_is_worse_does_not_pass_and_is_named() {
        let mut random = Random::new(2);
        for seed in 0..100 {
            let losses: Vec<f64> = (0..20).map(|_| f64::from(random.normal())).collect();
            let worse = losses
                .iter()
                .map(|loss| loss + 0.05 + 0.01 * f64::from(random.normal()));
            let worse = results(true, worse.collect::<Vec<_>>());
            let verdict = judge(&results(true, losses), &worse, &Margins::default(), seed);
            let loss = verdict.metrics.iter().find(|metric| metric.name == "loss");
            assert!(!verdict.passes && !loss.unwrap().failing.is_empty());
        }
    }

    #[test]
    fn too_little_evidence_does_not_pass() {
        // One answer of ten lost: 0.1 worse, and perhaps much more.
        let before = results(false, [1.0; 10]);
        let after = results(false, (0..10).map(|i| if i == 3 { 0.0 } else { 1.0 }));
        let margins = Margins {
            accuracy: 0.15,
            ..Margins::default()
        };
        let verdict = judge(&before, &after, &margins, 1);
        assert!(!verdict.passes);
        let lost = verdict
            .metrics
            .iter()
            .find(|metric| metric.name == "accuracy");
        assert_eq!(lost.unwrap().failing[0].index, 3);
    }

    #[test]
    fn other_tokens_do_not_pass() {
        let before = results(true, [1.0; 5]);
        let mut after = before.clone();
        after[0].items[2].tokens = "other".into();
        assert!(!judge(&before, &after, &Margins::default(), 1).passes);
        after[0].items.pop();
        assert!(!judge(&before, &after, &Margins::default(), 1).passes);
    }
}
