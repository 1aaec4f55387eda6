//! Whether a model fits a device, and what would make it fit.

use ondine_runtime::model::ModelSpec;
use serde::Serialize;

use super::memory::{self, Memory};
use crate::profile::{Precision, Profile};

/// Tokens per second from which a text can be read as it comes.
const FLUENT: f64 = 10.0;

/// Milliseconds until the first token that do not feel like waiting.
const PROMPT_MS: f64 = 3000.0;

/// Bytes that the system and other programs keep.
const RESERVED: u64 = 1 << 30;

/// How well it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Fitness {
    /// At least ten tokens per second, the first within three seconds.
    #[serde(rename = "runs well")]
    RunsWell,
    /// Slower than that.
    #[serde(rename = "runs")]
    Runs,
    /// Not at all.
    #[serde(rename = "does not fit")]
    DoesNotFit,
}

impl Fitness {
    /// As people say it.
    pub fn text(self) -> &'static str {
        match self {
            Fitness::RunsWell => "runs well",
            Fitness::Runs => "runs",
            Fitness::DoesNotFit => "does not fit",
        }
    }
}

/// The judgement and its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How well it fits.
    pub fitness: Fitness,
    /// Why not better.
    pub reasons: Vec<String>,
    /// What would help.
    pub advice: Vec<String>,
}

pub(super) struct Facts<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) profile: &'a Profile,
    pub(super) precision: &'a Precision,
    pub(super) context: usize,
    pub(super) memory: &'a Memory,
    pub(super) tokens_per_second: f64,
    pub(super) ttft_ms: f64,
}

pub(super) fn verdict(facts: &Facts<'_>) -> Verdict {
    let mut reasons = Vec::new();
    let mut advice = Vec::new();
    let available = facts.profile.memory_bytes.map(usable);
    if let Some(available) = available
        && facts.memory.total() > available
    {
        reasons.push(format!(
            "needs {} MiB of the {} MiB that this device can have free",
            facts.memory.total() >> 20,
            available >> 20
        ));
        smaller(facts, available, &mut advice);
    }
    let limit = facts.profile.context_limit.unwrap_or(usize::MAX);
    let longest = limit.min(facts.spec.context_length);
    if facts.context > longest {
        let who = match facts.spec.context_length > limit {
            true => "this device's software takes",
            false => "the model was trained for",
        };
        reasons.push(format!(
            "a context of {} where {who} {longest}",
            facts.context
        ));
        advice.push(format!("a context of at most {longest} (--ctx {longest})"));
    }
    if !reasons.is_empty() {
        return Verdict {
            fitness: Fitness::DoesNotFit,
            reasons,
            advice,
        };
    }
    if facts.tokens_per_second < FLUENT {
        reasons.push(format!(
            "{:.1} tokens per second are fewer than the {FLUENT:.0} of fluent reading",
            facts.tokens_per_second
        ));
        let fewer_bits = facts
            .profile
            .precisions
            .iter()
            .find(|other| other.weight_bits < facts.precision.weight_bits);
        match fewer_bits {
            Some(other) => advice.push(format!("fewer bits per weight (--dtype {})", other.dtype)),
            None => advice.push("a smaller model".into()),
        }
    }
    if facts.ttft_ms > PROMPT_MS {
        reasons.push(format!(
            "the first token comes after {:.1} s",
            facts.ttft_ms / 1e3
        ));
        advice.push("a shorter prompt, or one whose beginning is saved (--prompt-cache)".into());
    }
    Verdict {
        fitness: match reasons.is_empty() {
            true => Fitness::RunsWell,
            false => Fitness::Runs,
        },
        reasons,
        advice,
    }
}

/// What programs can have of `memory`.
fn usable(memory: u64) -> u64 {
    memory - RESERVED.min(memory / 4)
}

/// Which precisions, and which contexts, would fit into `available` bytes.
fn smaller(facts: &Facts<'_>, available: u64, advice: &mut Vec<String>) {
    let total = |precision: &Precision, context: usize| {
        memory::of(facts.spec, facts.profile, precision, context).total()
    };
    for precision in &facts.profile.precisions {
        if precision.weight_bits < facts.precision.weight_bits
            && total(precision, facts.context) <= available
        {
            advice.push(format!(
                "fewer bits per weight (--dtype {}: {} MiB)",
                precision.dtype,
                total(precision, facts.context) >> 20
            ));
        }
    }
    let without = total(facts.precision, 0);
    let per_token = (total(facts.precision, 1) - without).max(1);
    let context = (available.saturating_sub(without) / per_token) as usize;
    if context >= 128 {
        advice.push(format!("a context of at most {context} (--ctx {context})"));
    }
    if advice.is_empty() {
        advice.push("a smaller model, or a device with more memory".into());
    }
}
