//! `ondine plan`: how fast a model would run on a device that is not here.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ondine_npu::plan::{Plan, PlanError, Request, plan, timelines, write_trace};
use ondine_npu::profile::{self, Dtype, Profile};
use ondine_runtime::Limits;
use ondine_runtime::hf::describe;
use ondine_runtime::model::{ModelSpec, model_spec};
use ondine_runtime::open_model_file;
use serde_json::{Value, json};

use super::load::ModelArgs;
use crate::error::CliError;
use crate::output::Output;

/// Arguments of `ondine plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine plan --device all
  ondine plan -m config.json --device rk3588 --dtype w8a8 --ctx 2048
  ondine plan -m model.gguf --device xdna2 --ctx 8192 --power decode --json
  ondine plan --device snapdragon-x-elite --trace plan.json
  ondine plan --device my-board.toml")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Device: a name such as rk3588, `all`, `this-machine` (measured), or a .toml profile
    #[arg(short, long, value_name = "NAME", default_value = "all")]
    device: String,
    /// Precision of weights and activations, such as w8a8 or w4a16; the device's best unless given
    #[arg(long, value_name = "TYPE", value_parser = Dtype::parse)]
    dtype: Option<Dtype>,
    /// Tokens of context at which tokens are generated; the prompt and 64 more unless given
    #[arg(long = "ctx", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=MOST_TOKENS))]
    context: Option<u32>,
    /// Tokens of the prompt
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=MOST_TOKENS))]
    prompt: Option<u32>,
    /// Power mode of the device
    #[arg(long, value_name = "MODE")]
    power: Option<String>,
    /// Write a trace for Perfetto: transfers, computation and processor of one step each
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// No plan goes beyond this many tokens.
const MOST_TOKENS: i64 = 1 << 20;

/// Plans and prints.
///
/// # Errors
/// `Failed` when the model or the profile cannot be read or the one device asked for cannot do it, `Usage` when the
/// arguments make no sense together.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    if args.device == "all" && args.trace.is_some() {
        return Err(CliError::Usage(
            "--trace shows one device; name it with --device".into(),
        ));
    }
    let spec = described(args, output)?;
    let request = Request {
        dtype: args.dtype.clone(),
        context: args.context.map(|tokens| tokens as usize),
        prompt: args.prompt.map(|tokens| tokens as usize),
        power: args.power.clone(),
    };
    if args.device == "all" {
        return every_device(&spec, &request, output);
    }
    let profile = profile::named(&args.device).map_err(failed)?;
    let planned = plan(&spec, &profile, &request).map_err(|error| match error {
        PlanError::Prompt { .. } => CliError::Usage(error.to_string()),
        error => failed(error),
    })?;
    if let Some(path) = &args.trace {
        trace(path, &spec, &profile, &planned)?;
        output.note(&format!(
            "trace: {} (open it in a trace viewer)",
            path.display()
        ));
    }
    if output.is_json() {
        let mut value = as_json(&spec, &planned)?;
        value["sources"] = profile
            .sources
            .iter()
            .map(|(number, source)| json!({ "number": number, "source": source }))
            .collect();
        return output.json(&value);
    }
    print(&spec, &planned, output)
}

/// The model: a bare `config.json`, or anything that can be opened.
fn described(args: &Args, output: &Output) -> Result<ModelSpec, CliError> {
    let path = Path::new(&args.model.model);
    let limits = Limits::default();
    if path.is_file()
        && path
            .extension()
            .is_some_and(|extension| extension == "json")
    {
        return Ok(describe(path, &limits)?);
    }
    let bare = path.join("config.json");
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    if bare.is_file() && !weights.iter().any(|name| path.join(name).is_file()) {
        return Ok(describe(&bare, &limits)?);
    }
    let file = open_model_file(&args.model.path(output)?, &limits)?;
    Ok(model_spec(&file, &limits)?)
}

fn every_device(spec: &ModelSpec, request: &Request, output: &mut Output) -> Result<(), CliError> {
    let profiles = profile::all().map_err(failed)?;
    let mut plans = Vec::new();
    for profile in profiles {
        plans.push((profile, plan(spec, profile, request)));
    }
    if let Some((_, Err(error @ PlanError::Prompt { .. }))) = plans.first() {
        return Err(CliError::Usage(error.to_string()));
    }
    if output.is_json() {
        let values = plans
            .iter()
            .map(|(profile, planned)| match planned {
                Ok(planned) => as_json(spec, planned),
                Err(error) => Ok(json!({
                    "device": profile.name,
                    "title": profile.title,
                    "verdict": {
                        "fitness": "does not fit",
                        "reasons": [error.to_string()],
                        "advice": [],
                    },
                })),
            })
            .collect::<Result<Vec<Value>, CliError>>()?;
        return output.json(&json!({ "model": spec.name, "plans": values }));
    }
    output.line(&format!(
        "{:<20} {:<10} {:>9} {:>9} {:>9} {:>9} {:<8} verdict",
        "device", "dtype", "TTFT ms", "tokens/s", "DRAM MiB", "mJ/token", "bound by"
    ))?;
    for (profile, planned) in &plans {
        match planned {
            Ok(planned) => output.line(&format!(
                "{:<20} {:<10} {:>9} {:>9.1} {:>9.0} {:>9} {:<8} {}{}",
                planned.device,
                planned.dtype,
                first_token(planned),
                planned.tokens_per_second,
                planned.peak_dram_mib,
                planned
                    .energy_per_token_mj
                    .map_or("-".into(), |energy| format!("{energy:.0}")),
                planned.bound_by,
                planned.verdict.fitness.text(),
                if planned.calibrated {
                    ""
                } else {
                    " (not calibrated)"
                },
            ))?,
            Err(error) => output.line(&format!("{:<20} does not fit: {error}", profile.name))?,
        }
    }
    Ok(())
}

fn first_token(plan: &Plan) -> String {
    match plan.ttft_ms {
        Some(ms) => format!("{ms:.0}"),
        None => format!(">{:.0}", plan.ttft_ms_at_least),
    }
}

fn as_json(spec: &ModelSpec, planned: &Plan) -> Result<Value, CliError> {
    let mut value = json!({ "model": spec.name });
    let plan = serde_json::to_value(planned)
        .map_err(|error| CliError::Failed(format!("the plan cannot be written: {error}")))?;
    if let (Some(value), Value::Object(plan)) = (value.as_object_mut(), plan) {
        value.extend(plan);
    }
    Ok(value)
}

fn print(spec: &ModelSpec, plan: &Plan, output: &mut Output) -> Result<(), CliError> {
    output.line(&format!(
        "{} on {} in {}: {}",
        spec.name,
        plan.title,
        plan.dtype,
        plan.verdict.fitness.text()
    ))?;
    for reason in &plan.verdict.reasons {
        output.line(&format!("  because {reason}"))?;
    }
    for advice in &plan.verdict.advice {
        output.line(&format!("  what would help: {advice}"))?;
    }
    let on_chip = match plan.peak_sram_bytes {
        Some(bytes) => format!("{:.0} KiB", bytes as f64 / 1024.0),
        None => "unknown".into(),
    };
    let token = &plan.token;
    let rows = [
        (
            "first token",
            format!(
                "{} ms after a prompt of {} tokens, {} at a time",
                first_token(plan),
                plan.prompt,
                plan.chunk
            ),
        ),
        (
            "then",
            format!(
                "{:.1} tokens per second at a context of {}",
                plan.tokens_per_second, plan.context
            ),
        ),
        (
            "bound by",
            format!(
                "{} (memory {:.2} ms, compute {:.2}, host {:.2}, launch {:.2})",
                plan.bound_by,
                token.parts_ms.memory,
                token.parts_ms.compute,
                token.parts_ms.host,
                token.parts_ms.launch
            ),
        ),
        (
            "memory",
            format!(
                "{:.0} MiB (weights {:.0}, keys and values {:.0}); on chip {on_chip}",
                plan.peak_dram_mib,
                mib(plan.weight_bytes),
                mib(plan.kv_bytes)
            ),
        ),
        (
            "bytes moved",
            format!(
                "{:.1} MB per token, {:.0} % of the published bandwidth",
                token.bytes_moved as f64 / 1e6,
                100.0 * token.bandwidth_utilisation
            ),
        ),
        (
            "two buffers",
            format!(
                "{:.2} times as fast as one per token, {:.2} times per prompt chunk",
                token.double_buffering, plan.prompt_chunk.double_buffering
            ),
        ),
        (
            "energy",
            plan.energy_per_token_mj
                .map_or("unknown: no published watts".into(), |energy| {
                    format!("{energy:.1} mJ per token")
                }),
        ),
    ];
    for (name, text) in rows {
        output.line(&format!("  {name:<12} {text}"))?;
    }
    for unknown in &plan.unknown {
        output.line(&format!("  note: {unknown}"))?;
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn trace(path: &Path, spec: &ModelSpec, profile: &Profile, planned: &Plan) -> Result<(), CliError> {
    let steps = timelines(spec, profile, planned).map_err(failed)?;
    let written = File::create(path).and_then(|file| {
        let mut file = BufWriter::new(file);
        write_trace(&mut file, &profile.name, &steps)?;
        file.flush()
    });
    written.map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

fn failed(error: impl ToString) -> CliError {
    CliError::Failed(error.to_string())
}
