//! Trains and evaluates the capability model: `cargo run --release --example capability -- [FILE] < outcomes.jsonl` prints how
//! well it orders prompts, and writes the weights that all outcomes give to FILE.

use ondine_hybrid::route::{CapabilityModel, Outcome};
use std::collections::BTreeSet;
use std::io::BufRead;
use std::time::Instant;

fn main() {
    let lines = std::io::stdin().lock().lines();
    let outcomes: Vec<Outcome> = lines
        .map(|line| serde_json::from_str(&line.expect("readable")).expect("an outcome"))
        .collect();
    let questions: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| outcome.bench.starts_with("mmlu"))
        .collect();
    println!(
        "length alone: {:.4}",
        area(&questions, &|outcome| outcome.prompt.len() as f32)
    );
    let subjects: Vec<&str> = questions
        .iter()
        .map(|outcome| outcome.bench.as_str())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    for seed in 0..3 {
        let by_prompt = folds(&questions, &|outcome| {
            mixed(outcome.prompt.as_bytes(), seed) % 5
        });
        let order = |subject: &str| mixed(subject.as_bytes(), seed + 100);
        let mut shuffled = subjects.clone();
        shuffled.sort_by_key(|subject| order(subject));
        let by_subject = folds(&questions, &|outcome| {
            shuffled
                .iter()
                .position(|subject| *subject == outcome.bench)
                .unwrap_or(0) as u64
                % 5
        });
        println!(
            "seed {seed}: five folds {:.4}, unseen subjects {:.4}",
            by_prompt, by_subject
        );
    }
    let model = CapabilityModel::train(&outcomes).expect("enough outcomes");
    let mut times: Vec<u128> = outcomes
        .iter()
        .map(|outcome| {
            let start = Instant::now();
            std::hint::black_box(model.qualities(&outcome.prompt));
            start.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    println!(
        "prediction: median {} ns, p99 {} ns",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
    if let Some(file) = std::env::args().nth(1) {
        std::fs::write(file, serde_json::to_string(&model).expect("finite") + "\n")
            .expect("writable");
    }
}

/// Mean area over the five folds, each predicted by a model of the other four.
fn folds(outcomes: &[&Outcome], fold: &dyn Fn(&Outcome) -> u64) -> f32 {
    let areas = (0..5).map(|held| {
        let (test, train): (Vec<&Outcome>, Vec<&Outcome>) =
            outcomes.iter().partition(|outcome| fold(outcome) == held);
        let model = CapabilityModel::train(train).expect("enough outcomes");
        area(&test, &|outcome| model.gain(&outcome.prompt))
    });
    areas.sum::<f32>() / 5.0
}

/// Average performance gap recovered: how much of the large model's lead is kept, over all shares of prompts sent to it, when the
/// prompts with the highest score go first.
fn area(outcomes: &[&Outcome], score: &dyn Fn(&Outcome) -> f32) -> f32 {
    let mut scored: Vec<(f32, i32)> = outcomes
        .iter()
        .map(|outcome| {
            (
                score(outcome),
                i32::from(outcome.strong) - i32::from(outcome.weak),
            )
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let total: i32 = scored.iter().map(|(_, gain)| gain).sum();
    let mut sum = 0;
    let mut area = 0.0;
    for (_, gain) in &scored {
        sum += gain;
        area += sum as f32 / total as f32;
    }
    area / (scored.len() + 1) as f32
}

/// A hash with a seed, so that the folds are the same everywhere.
fn mixed(bytes: &[u8], seed: u64) -> u64 {
    let hash = bytes.iter().fold(
        0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3),
    );
    (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 20
}
