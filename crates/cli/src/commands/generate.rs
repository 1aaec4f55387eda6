//! What `run` and `chat` share: the flags of a generation, and printing it as it comes.

use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use ondine_runtime::constraint::{Constraint, ConstraintSpec};
use ondine_runtime::sample::SamplingOptions;
use ondine_runtime::speculate::SpeculationStats;
use ondine_runtime::{
    ContextOverflow, GenerateOptions, GenerationStats, Model, Session, Speculation, StopReason,
};
use serde_json::{Value, json};
use std::path::PathBuf;

/// How to generate.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8, value_name = "T")]
    temp: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 40, value_name = "K")]
    top_k: usize,
    /// Keep the likeliest tokens that together have probability P
    #[arg(long, default_value_t = 0.95, value_name = "P")]
    top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, default_value_t = 0.05, value_name = "P")]
    min_p: f32,
    /// Keep tokens of typical surprise up to probability P; 1 keeps all
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    typical: f32,
    /// Divide the scores of tokens that occurred by this
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repeat_penalty: f32,
    /// Subtract this from a token's score for each time it occurred
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    frequency_penalty: f32,
    /// Subtract this from a token's score if it occurred
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    presence_penalty: f32,
    /// Tokens that the penalties look back on
    #[arg(long, default_value_t = 64, value_name = "N")]
    repeat_last_n: usize,
    /// Add to a token's score: ID=BIAS, may be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Seed of the random choice; the same seed gives the same text
    #[arg(long)]
    seed: Option<u64>,
    /// Stop before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// When the context is full: stop with an error, or drop the oldest tokens but the first few
    #[arg(long, value_enum, default_value_t = OverflowArg::Error, value_name = "WHAT")]
    context_overflow: OverflowArg,
    /// Go on after the end of the turn
    #[arg(long)]
    ignore_eos: bool,
    /// Do not guess tokens ahead
    #[arg(long)]
    no_speculation: bool,
    /// Answer with JSON that conforms to the schema in this file
    #[arg(long, value_name = "FILE", group = "constraint")]
    json_schema: Option<PathBuf>,
    /// Answer with text that matches this regular expression
    #[arg(long, value_name = "REGEX", group = "constraint")]
    regex: Option<String>,
    /// Answer with text of the Lark grammar in this file
    #[arg(long, value_name = "FILE", group = "constraint")]
    grammar: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OverflowArg {
    /// Stop with an error
    Error,
    /// Drop the oldest tokens but the first few
    Shift,
}

impl GenerateArgs {
    /// The options as the library takes them.
    pub fn options(&self, model: &Model) -> Result<GenerateOptions, CliError> {
        Ok(GenerateOptions {
            max_tokens: self.max_tokens.map(|tokens| tokens as usize),
            sampling: self.sampling()?,
            stop: self.stop.clone(),
            overflow: match self.context_overflow {
                OverflowArg::Error => ContextOverflow::Error,
                OverflowArg::Shift => ContextOverflow::Shift,
            },
            constraint: self.constraint(model)?,
            wind_down: 0,
            ignore_end: self.ignore_eos,
            speculation: match self.no_speculation {
                true => Speculation::Off,
                false => Speculation::Lookup,
            },
            cancel: None,
        })
    }

    /// How tokens are chosen; may be asked for before there is a model, to refuse nonsense early.
    pub fn sampling(&self) -> Result<SamplingOptions, CliError> {
        let sampling = SamplingOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical,
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            penalty_window: self.repeat_last_n,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(random_seed),
            ..SamplingOptions::default()
        };
        sampling
            .validate()
            .map_err(|error| CliError::Usage(error.to_string()))?;
        Ok(sampling)
    }

    fn constraint(&self, model: &Model) -> Result<Option<Constraint>, CliError> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
        };
        let (spec, name) = if let Some(path) = &self.json_schema {
            (
                ConstraintSpec::JsonSchema(read(path)?),
                path.display().to_string(),
            )
        } else if let Some(regex) = &self.regex {
            (ConstraintSpec::Regex(regex.clone()), "--regex".to_owned())
        } else if let Some(path) = &self.grammar {
            (
                ConstraintSpec::Lark(read(path)?),
                path.display().to_string(),
            )
        } else {
            return Ok(None);
        };
        let constraint = model.constraints().and_then(|factory| factory.build(&spec));
        let failed = |error| CliError::Failed(format!("{name}: {error}"));
        constraint.map(Some).map_err(failed)
    }
}

/// A finished answer.
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Whether a constraint, if there was one, is fulfilled.
    pub complete: bool,
    /// The figures.
    pub stats: GenerationStats,
}

/// Generates after `prompt`, printing each piece at once unless the output is JSON.
pub fn answer(
    session: &mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    output: &mut Output,
) -> Result<Answer, CliError> {
    let failed = |error: ondine_runtime::GenerateError| CliError::Failed(error.to_string());
    let streams = !output.is_json();
    let mut generation = session.generate(prompt, options).map_err(failed)?;
    let mut text = String::new();
    for piece in generation.by_ref() {
        let piece = piece.map_err(failed)?;
        if streams && !piece.text.is_empty() {
            output.write(&piece.text)?;
            output.flush()?;
        }
        text.push_str(&piece.text);
        if interrupt::is_interrupted() {
            break;
        }
    }
    if streams && !text.ends_with('\n') {
        output.line("")?;
    }
    let stop = generation.stop_reason().unwrap_or(StopReason::Cancelled);
    if stop == StopReason::ContextFull {
        output.note("the context is full: raise --ctx or choose --context-overflow shift");
    }
    // A version on trial has proved itself when it has answered.
    #[cfg(feature = "package")]
    super::installed::answered()?;
    Ok(Answer {
        text,
        stop,
        complete: generation.is_complete(),
        stats: *generation.stats(),
    })
}

/// What guessing tokens ahead did.
pub fn speculation_json(stats: &SpeculationStats) -> Value {
    json!({
        "source": stats.source,
        "rounds": stats.rounds,
        "guessed": stats.guessed,
        "accepted": stats.accepted,
        "acceptance": stats.accepted as f64 / stats.guessed.max(1) as f64,
        "pauses": stats.pauses,
    })
}

/// A seed that differs from run to run: the standard hasher is keyed from the system.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text
        .split_once('=')
        .ok_or_else(|| "has the form ID=BIAS".to_owned())?;
    let id = id
        .parse()
        .map_err(|_| format!("`{id}` is not a token id"))?;
    let bias = bias
        .parse()
        .map_err(|_| format!("`{bias}` is not a number"))?;
    Ok((id, bias))
}
