//! How fast a model would run on a device that is not here.
//!
//! The model is lowered to the tiles the device would run ([`crate::program`]) and these are timed. What decides is
//! counted, not fitted: bytes of weights at their precision, of the head and the embedding table, of keys and values at
//! the context asked for; multiply-accumulates of a prompt; requests of operations; what the processor beside the device
//! has to do. One constant per vendor says which share of the published peaks its software reaches.

mod memory;
mod trace;
mod verdict;

use ondine_runtime::model::ModelSpec;
use serde::Serialize;
use thiserror::Error;

use crate::profile::{Dtype, Precision, Profile, ProfileError};
use crate::program::{LowerError, Program, Step, Timeline, chunk_rows, lower, schedule};

pub use trace::write_trace;
pub use verdict::{Fitness, Verdict};

/// Tokens of an answer where only the prompt's length is given.
const ANSWER: usize = 64;

/// Tokens of a prompt where none are given.
const PROMPT: usize = 128;

/// Chunks of a long prompt that are timed; the others lie between them.
const SAMPLED_CHUNKS: usize = 6;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Precision; the device's best unless given.
    pub dtype: Option<Dtype>,
    /// Tokens of context at which tokens are generated; the prompt and an answer of 64 unless given.
    pub context: Option<usize>,
    /// Tokens of the prompt; 128 unless given.
    pub prompt: Option<usize>,
    /// Power mode.
    pub power: Option<String>,
}

/// Why there is no plan.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// The device does not do what is asked.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The model cannot be lowered.
    #[error("{0}")]
    Lower(#[from] LowerError),
    /// The prompt does not fit into the context.
    #[error(
        "a prompt of {prompt} tokens does not fit into a context of {context}; raise --ctx or lower --prompt"
    )]
    Prompt {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of context.
        context: usize,
    },
}

/// A prediction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Device.
    pub device: String,
    /// Device, for people.
    pub title: String,
    /// Precision.
    pub dtype: String,
    /// Tokens of context at which tokens are generated.
    pub context: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the prompt that are computed together.
    pub chunk: usize,
    /// Milliseconds until the first token, unless the device's peak is not published.
    pub ttft_ms: Option<f64>,
    /// Milliseconds that the first token takes at least, by bytes and requests alone.
    pub ttft_ms_at_least: f64,
    /// Tokens generated per second.
    pub tokens_per_second: f64,
    /// Bytes of on-chip memory in use at the most, where its size is published.
    pub peak_sram_bytes: Option<u64>,
    /// Bytes of memory in use at the most.
    pub peak_dram_bytes: u64,
    /// The same in MiB.
    pub peak_dram_mib: f64,
    /// Of those, bytes of weights.
    pub weight_bytes: u64,
    /// Of those, bytes of keys and values.
    pub kv_bytes: u64,
    /// The generation of one token.
    pub token: Phase,
    /// The prompt's last chunk.
    pub prompt_chunk: Phase,
    /// What the generation waits for: `memory`, `compute`, `host` or `launch`.
    pub bound_by: &'static str,
    /// Watts while generating, where published.
    pub watts: Option<f64>,
    /// Millijoules per generated token, where watts are published.
    pub energy_per_token_mj: Option<f64>,
    /// Whether the vendor's constant was fitted to a published speed.
    pub calibrated: bool,
    /// What nobody published, and what was therefore left out or assumed.
    pub unknown: Vec<String>,
    /// Whether it fits, and what would make it.
    pub verdict: Verdict,
}

/// A step's numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// Milliseconds.
    pub ms: f64,
    /// Milliseconds with one stream buffer instead of two.
    pub single_buffer_ms: f64,
    /// The second over the first: what double buffering gains.
    pub double_buffering: f64,
    /// Bytes to and from memory.
    pub bytes_moved: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Share of the time that transfers are under way.
    pub memory_busy: f64,
    /// Share of the published bandwidth in use.
    pub bandwidth_utilisation: f64,
    /// Share of the published multiply-accumulates in use, where published.
    pub compute_utilisation: Option<f64>,
    /// Milliseconds of transfers, arithmetic, host and requests, if nothing overlapped.
    pub parts_ms: Parts,
}

/// Where a step's time goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parts {
    /// Transfers.
    pub memory: f64,
    /// The device's arithmetic.
    pub compute: f64,
    /// The processor beside it.
    pub host: f64,
    /// Requests of operations.
    pub launch: f64,
}

impl Parts {
    /// The largest part's name.
    fn largest(&self) -> &'static str {
        let parts = [
            ("memory", self.memory),
            ("compute", self.compute),
            ("host", self.host),
            ("launch", self.launch),
        ];
        parts
            .into_iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or("memory", |(name, _)| name)
    }
}

/// Plans `spec` on `profile`.
///
/// # Errors
/// [`PlanError`] when the device does not do what is asked. A model that is too large is no error but a verdict.
pub fn plan(spec: &ModelSpec, profile: &Profile, request: &Request) -> Result<Plan, PlanError> {
    let precision = profile.precision(request.dtype.as_ref())?;
    let mode = profile.power_mode(request.power.as_deref())?;
    let speed = mode.map_or(1.0, |mode| mode.speed);
    let prompt = match (request.prompt, request.context) {
        (Some(prompt), _) => prompt.max(1),
        (None, Some(context)) => PROMPT.min(context.saturating_sub(1)).max(1),
        (None, None) => PROMPT,
    };
    let context = request.context.unwrap_or(prompt + ANSWER).max(1);
    if prompt > context {
        return Err(PlanError::Prompt { prompt, context });
    }
    let timing = Timing {
        spec,
        profile,
        precision,
        context,
        speed,
    };
    let chunk = timing.fitting_chunk(prompt)?;
    let token = timing.phase(1, context - 1, 1)?;
    let last_rows = match prompt % chunk {
        0 => chunk,
        rest => rest,
    };
    let prompt_chunk = timing.phase(last_rows, prompt - last_rows, 1)?;
    let (ttft, at_least) = timing.prompt(prompt, chunk)?;
    let (program, _) = timing.step(chunk, 0, 0, 2)?;
    let memory = memory::of(spec, profile, precision, context);
    let seconds = token.ms / 1e3;
    let tokens_per_second = 1.0 / seconds;
    let ttft_ms = precision.macs_per_second.map(|_| ttft * 1e3);
    let verdict = verdict::verdict(&verdict::Facts {
        spec,
        profile,
        precision,
        context,
        memory: &memory,
        tokens_per_second,
        ttft_ms: ttft_ms.unwrap_or(at_least * 1e3),
    });
    Ok(Plan {
        device: profile.name.clone(),
        title: profile.title.clone(),
        dtype: precision.dtype.to_string(),
        context,
        prompt,
        chunk,
        ttft_ms,
        ttft_ms_at_least: at_least * 1e3,
        tokens_per_second,
        peak_sram_bytes: profile.sram_bytes.map(|_| program.layout.used as u64),
        peak_dram_bytes: memory.total(),
        peak_dram_mib: memory.total() as f64 / f64::from(1 << 20),
        weight_bytes: memory.weights,
        kv_bytes: memory.kv,
        bound_by: token.parts_ms.largest(),
        watts: mode.map(|mode| mode.watts),
        energy_per_token_mj: mode.map(|mode| mode.watts * seconds * 1e3),
        calibrated: profile.calibrated,
        unknown: unknown(profile, precision),
        token,
        prompt_chunk,
        verdict,
    })
}

/// The programs of one generated token and of the prompt's last chunk with their times, for a trace.
///
/// # Errors
/// As [`plan`].
pub fn timelines(
    spec: &ModelSpec,
    profile: &Profile,
    plan: &Plan,
) -> Result<Vec<(String, Program, Timeline)>, PlanError> {
    let dtype = Dtype::parse(&plan.dtype).ok();
    let precision = profile.precision(dtype.as_ref())?;
    let last_rows = match plan.prompt % plan.chunk {
        0 => plan.chunk,
        rest => rest,
    };
    let steps = [
        (
            format!("prompt, last chunk of {last_rows}"),
            last_rows,
            plan.prompt - last_rows,
        ),
        (format!("token at {}", plan.context), 1, plan.context - 1),
    ];
    steps
        .into_iter()
        .map(|(name, rows, position)| {
            let program = lower(&Step {
                spec,
                profile,
                precision,
                rows,
                position,
                context: plan.context,
                wanted: 1,
                buffers: 2,
            })?;
            let timeline = schedule(&program, profile, precision, 1.0, true);
            Ok((name, program, timeline))
        })
        .collect()
}

struct Timing<'a> {
    spec: &'a ModelSpec,
    profile: &'a Profile,
    precision: &'a Precision,
    context: usize,
    speed: f64,
}

impl Timing<'_> {
    /// The longest chunk that leaves room for the weights of its products.
    fn fitting_chunk(&self, prompt: usize) -> Result<usize, LowerError> {
        let mut chunk = chunk_rows(self.spec, self.profile, prompt);
        while chunk > 1 && self.step(chunk, 0, 0, 2).is_err() {
            chunk /= 2;
        }
        self.step(chunk, 0, 0, 2).map(|_| chunk)
    }

    fn step(
        &self,
        rows: usize,
        position: usize,
        wanted: usize,
        buffers: usize,
    ) -> Result<(Program, Timeline), LowerError> {
        let position = match self.profile.static_context {
            true => self.context.saturating_sub(rows),
            false => position,
        };
        let program = lower(&Step {
            spec: self.spec,
            profile: self.profile,
            precision: self.precision,
            rows,
            position,
            context: self.context,
            wanted,
            buffers,
        })?;
        let timeline = schedule(&program, self.profile, self.precision, self.speed, false);
        Ok((program, timeline))
    }

    fn phase(&self, rows: usize, position: usize, wanted: usize) -> Result<Phase, LowerError> {
        let (_, double) = self.step(rows, position, wanted, 2)?;
        let (_, single) = self.step(rows, position, wanted, 1)?;
        let rate = |amount: u64| amount as f64 / double.seconds;
        let peak = self.precision.macs_per_second;
        Ok(Phase {
            ms: double.seconds * 1e3,
            single_buffer_ms: single.seconds * 1e3,
            double_buffering: single.seconds / double.seconds,
            bytes_moved: double.bytes,
            macs: double.macs,
            memory_busy: double.dma / double.seconds,
            bandwidth_utilisation: rate(double.bytes) / self.profile.dram_bytes_per_second,
            compute_utilisation: peak.map(|peak| rate(double.macs) / peak),
            parts_ms: Parts {
                memory: double.dma * 1e3,
                compute: double.compute * 1e3,
                host: double.host * 1e3,
                launch: double.launch * 1e3,
            },
        })
    }

    /// Seconds of a whole prompt, and what bytes and requests alone take. Of many chunks some are timed: between them
    /// only the positions that attention sees grow.
    fn prompt(&self, prompt: usize, chunk: usize) -> Result<(f64, f64), LowerError> {
        let full = (prompt - 1) / chunk;
        let last_rows = prompt - full * chunk;
        let time = |rows, position, wanted| {
            let (_, timeline) = self.step(rows, position, wanted, 2)?;
            let least = timeline.dma.max(timeline.host) + timeline.launch;
            Ok::<_, LowerError>((timeline.seconds, least))
        };
        let (mut seconds, mut least) = time(last_rows, full * chunk, 1)?;
        if full == 0 {
            return Ok((seconds, least));
        }
        let samples = full.min(SAMPLED_CHUNKS);
        let mut sampled = Vec::with_capacity(samples);
        for sample in 0..samples {
            let number = match samples {
                1 => 0,
                _ => sample * (full - 1) / (samples - 1),
            };
            let (a, b) = time(chunk, number * chunk, 0)?;
            sampled.push((number, a, b));
        }
        for number in 0..full {
            let after = sampled.iter().position(|(known, ..)| *known >= number);
            let (to, a1, b1) = sampled[after.unwrap_or(samples - 1)];
            let (from, a0, b0) = sampled[after.unwrap_or(samples - 1).saturating_sub(1)];
            let share = match to - from {
                0 => 1.0,
                span => (number - from) as f64 / span as f64,
            };
            seconds += a0 + share * (a1 - a0);
            least += b0 + share * (b1 - b0);
        }
        Ok((seconds, least))
    }
}

fn unknown(profile: &Profile, precision: &Precision) -> Vec<String> {
    let mut unknown = Vec::new();
    if precision.macs_per_second.is_none() {
        unknown.push(format!(
            "peak of {} is not published: the time to the first token counts bytes only",
            precision.dtype
        ));
    }
    if profile.sram_bytes.is_none() && profile.kind == crate::profile::Kind::Npu {
        unknown.push("on-chip memory is not published: 2 MiB assumed for the tiles".into());
    }
    if !profile.calibrated {
        unknown.push("no published speed of this vendor: its constant is assumed".into());
    }
    if profile.memory_bytes.is_none() {
        unknown.push("size of memory is not published".into());
    }
    unknown
}
