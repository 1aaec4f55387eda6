//! `ondine route`: where a prompt would be answered, and why. Nothing is sent and no model is loaded.

use crate::error::CliError;
use crate::output::Output;
use ondine_hybrid::egress::{Conversation, Gate, Message};
use ondine_hybrid::policy::Policy;
use ondine_hybrid::route::{
    Calibration, Candidate, CapabilityModel, Conditions, LatencyProfile, Needs, Receipt, Router,
    Task, Tier,
};
use std::io::{Read, stdin};
use std::path::{Path, PathBuf};

/// Arguments of `ondine route`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine route --explain 'What is the capital of France?'
  ondine route --policy policy.toml --deadline-ms 5000 --json --explain 'Prove that there are infinitely many primes.'
  ondine route --policy policy.toml --candidates places.json < prompt.txt

Without --candidates the device and the policy's providers take part with assumed speeds.")]
pub struct Args {
    /// The prompt; standard input if absent
    prompt: Option<String>,
    /// Show every candidate with the reason why it lost, not only the place
    #[arg(long)]
    explain: bool,
    /// The policy; without one nothing leaves the device
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A JSON array of candidates with measured profiles
    #[arg(long, value_name = "FILE")]
    candidates: Option<PathBuf>,
    /// Class of the task, as the policy names it
    #[arg(long, default_value = "chat")]
    task: String,
    /// Time for the whole answer, in milliseconds
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// Decide as if there were no connection
    #[arg(long)]
    offline: bool,
    /// The task calls tools
    #[arg(long)]
    tools: bool,
    /// The task shows images
    #[arg(long)]
    vision: bool,
}

/// Bytes of ordinary text that make a token, for a prompt that no tokenizer has seen.
const BYTES_PER_TOKEN: usize = 4;

/// Decides and explains.
///
/// # Errors
/// `Refused` if no place may answer or the policy is none, `Failed` when a file cannot be read.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let policy = match &args.policy {
        Some(path) => Policy::parse(&read(path)?)
            .map_err(|error| CliError::Refused(format!("{}: {error}", path.display())))?,
        None => Policy::local_only(),
    };
    let mut prompt = String::new();
    match &args.prompt {
        Some(text) => prompt.clone_from(text),
        None => {
            let read = stdin()
                .lock()
                .take(Gate::MAX_BYTES as u64)
                .read_to_string(&mut prompt);
            read.map_err(|error| CliError::Failed(format!("standard input: {error}")))?;
        }
    }
    let candidates = match &args.candidates {
        Some(path) => serde_json::from_str(&read(path)?).map_err(|error| {
            CliError::Failed(format!("{}: no candidates: {error}", path.display()))
        })?,
        None => assumed(&policy),
    };
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    let gate = Gate::new(policy.clone()).map_err(|error| failed(&error))?;
    let message = Message {
        role: "user".into(),
        content: prompt.clone(),
    };
    let label = gate.label(&Conversation {
        messages: vec![message],
        ..Conversation::default()
    });
    let task = Task {
        prompt: &prompt,
        class: &args.task,
        label: &label,
        prompt_tokens: u32::try_from(prompt.len() / BYTES_PER_TOKEN + 1).unwrap_or(u32::MAX),
        most_tokens: None,
        deadline_ms: args.deadline_ms,
        needs: Needs {
            tools: args.tools,
            vision: args.vision,
        },
    };
    let router = Router::new(
        policy,
        CapabilityModel::shipped().map_err(|error| failed(&error))?,
    );
    let conditions = Conditions {
        online: !args.offline,
        ..Conditions::default()
    };
    let receipt = router.decide(&task, &candidates, &conditions);
    if output.is_json() {
        output.json(&serde_json::to_value(&receipt).unwrap_or_default())?;
    } else {
        show(&receipt, args.explain, output)?;
    }
    match receipt.chosen {
        Some(_) => Ok(()),
        None => Err(CliError::Refused(
            "no place may answer this; --explain says why".into(),
        )),
    }
}

fn show(receipt: &Receipt, explain: bool, output: &mut Output) -> Result<(), CliError> {
    output.line(receipt.chosen.as_deref().unwrap_or("nowhere"))?;
    if !explain {
        return Ok(());
    }
    let [typical, long] = receipt.task.answer_tokens;
    output.line(&format!(
        "  prompt {} tokens, answer {typical} to {long} tokens",
        receipt.task.prompt_tokens
    ))?;
    let found: Vec<String> = receipt
        .task
        .label
        .classes
        .iter()
        .filter_map(|class| serde_json::to_value(class).ok()?.as_str().map(String::from))
        .collect();
    output.line(&format!(
        "  found  {}",
        if found.is_empty() {
            "nothing private".into()
        } else {
            found.join(", ")
        }
    ))?;
    for candidate in &receipt.candidates {
        let lost = candidate
            .lost
            .and_then(|lost| Some(serde_json::to_value(lost).ok()?.as_str()?.replace('_', " ")));
        output.line(&format!(
            "  {:<12} {:>6.1} s  price {:.5}  quality {:.2}  {}",
            candidate.name,
            candidate.latency_ms / 1000.0,
            candidate.cost,
            candidate.quality,
            lost.map_or_else(|| "chosen".into(), |lost| format!("lost: {lost}")),
        ))?;
    }
    for rule in &receipt.rules {
        output.line(&format!("  rule   {rule}"))?;
    }
    Ok(())
}

/// A small model on a laptop, and a hosted model behind an ordinary connection.
fn assumed(policy: &Policy) -> Vec<Candidate> {
    let device = Candidate {
        name: "device".into(),
        local: true,
        latency: LatencyProfile::ASSUMED_DEVICE,
        tier: Tier::Weak,
        calibration: Calibration::default(),
        context_tokens: 8192,
        offers: Needs {
            tools: true,
            vision: false,
        },
        prices: [0.0; 2],
        joules_per_token: 0.3,
        breaker_open: false,
        load: 1.0,
    };
    let hosted = LatencyProfile::ASSUMED_PROVIDER;
    let providers = policy
        .providers()
        .iter()
        .map(|provider| Candidate::of(provider, hosted.clone()));
    [device].into_iter().chain(providers).collect()
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path)
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}
