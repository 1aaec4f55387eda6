//! Counters and distributions of an engine, in Prometheus' text form.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows, or a gauge that is set.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Replaces.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Reads.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A distribution of times over fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, Clone)]
struct Counts {
    /// One more than bounds: the last counts what exceeds all.
    buckets: [u64; BOUNDS.len() + 1],
    sum: f64,
}

/// Upper bounds of the buckets, in seconds.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

impl Histogram {
    /// Notes a time.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Ok(mut counts) = self.counts.lock() {
            counts.buckets[bucket] += 1;
            counts.sum += seconds;
        }
    }

    /// Mean of what was noted; none before the first.
    pub fn mean(&self) -> Option<Duration> {
        let counts = self.counts.lock().ok()?;
        let count: u64 = counts.buckets.iter().sum();
        (count > 0).then(|| Duration::from_secs_f64(counts.sum / count as f64))
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let Ok(counts) = self.counts.lock().map(|counts| counts.clone()) else {
            return;
        };
        let mut total = 0;
        for (index, count) in counts.buckets.iter().enumerate() {
            total += count;
            let bound = BOUNDS.get(index).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", counts.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
    }
}

/// What an engine counts.
#[derive(Debug, Default)]
pub struct Figures {
    /// Prompt tokens of requests that began.
    pub prompt_tokens: Number,
    /// Those of them that were already computed for another request.
    pub reused_tokens: Number,
    /// Tokens generated.
    pub generated_tokens: Number,
    /// Requests that came to their end.
    pub finished: Number,
    /// Requests given up because the client went away.
    pub cancelled: Number,
    /// Requests whose deadline passed.
    pub late: Number,
    /// Requests refused because too many waited.
    pub rejected: Number,
    /// Requests that failed.
    pub failed: Number,
    /// Requests put back into the queue for want of memory.
    pub preempted: Number,
    /// Requests that are computed now.
    pub running: Number,
    /// Bytes of keys and values held now; shared ones count for each that shares them.
    pub kv_bytes: Number,
    /// Bytes of them that are kept of ended conversations.
    pub prefix_bytes: Number,
    /// Steps of the decoder.
    pub steps: Number,
    /// Prompt tokens computed in 1000 seconds, a moving mean.
    pub prompt_rate: Number,
    /// From submission to the first token.
    pub time_to_first_token: Histogram,
    /// From one token of an answer to the next.
    pub between_tokens: Histogram,
    /// From the queue to the end of an answer.
    pub service: Histogram,
}

impl Figures {
    /// Mean milliseconds from one token of an answer to the next; none before the first answers.
    pub fn token_ms(&self) -> Option<f32> {
        let mean = self.between_tokens.mean()?;
        Some(mean.as_secs_f32() * 1000.0)
    }

    /// Milliseconds for a token of a prompt, as last measured; none before the first.
    pub fn prompt_token_ms(&self) -> Option<f32> {
        match self.prompt_rate.value() {
            0 => None,
            rate => Some(1e6 / rate as f32),
        }
    }

    /// How long somebody behind `waiting` others should stay away: as long as a typical answer takes, a second at least.
    pub fn typical_wait(&self, waiting: usize) -> Duration {
        let typical = self.service.mean().unwrap_or(Duration::from_secs(1));
        let running = self.running.value().max(1) as f64;
        let seconds = typical.as_secs_f64() * (waiting as f64 / running).max(1.0);
        Duration::from_secs(seconds.ceil().clamp(1.0, 60.0) as u64)
    }
}

/// A model's name, its figures and how many requests wait for it.
pub type Named<'a> = (&'a str, &'a Figures, usize);

/// The figures of all models, each metric described once.
pub fn write(out: &mut String, models: &[Named<'_>]) {
    type Read = fn(&Named<'_>) -> u64;
    let numbers: [(&str, &str, &str, Read); 14] = [
        (
            "prompt_tokens_total",
            "counter",
            "Prompt tokens of requests that began.",
            |m| m.1.prompt_tokens.value(),
        ),
        (
            "reused_tokens_total",
            "counter",
            "Prompt tokens that were already computed.",
            |m| m.1.reused_tokens.value(),
        ),
        (
            "generated_tokens_total",
            "counter",
            "Tokens generated.",
            |m| m.1.generated_tokens.value(),
        ),
        (
            "requests_finished_total",
            "counter",
            "Requests that came to their end.",
            |m| m.1.finished.value(),
        ),
        (
            "requests_cancelled_total",
            "counter",
            "Requests whose client went away.",
            |m| m.1.cancelled.value(),
        ),
        (
            "requests_late_total",
            "counter",
            "Requests whose deadline passed.",
            |m| m.1.late.value(),
        ),
        (
            "requests_rejected_total",
            "counter",
            "Requests refused because too many waited.",
            |m| m.1.rejected.value(),
        ),
        (
            "requests_failed_total",
            "counter",
            "Requests that failed.",
            |m| m.1.failed.value(),
        ),
        (
            "requests_preempted_total",
            "counter",
            "Requests put back into the queue.",
            |m| m.1.preempted.value(),
        ),
        (
            "decoder_steps_total",
            "counter",
            "Steps of the decoder.",
            |m| m.1.steps.value(),
        ),
        ("requests_running", "gauge", "Requests computed now.", |m| {
            m.1.running.value()
        }),
        ("requests_waiting", "gauge", "Requests that wait.", |m| {
            m.2 as u64
        }),
        ("kv_bytes", "gauge", "Bytes of keys and values held.", |m| {
            m.1.kv_bytes.value()
        }),
        (
            "prefix_cache_bytes",
            "gauge",
            "Bytes of keys and values kept of ended conversations.",
            |m| m.1.prefix_bytes.value(),
        ),
    ];
    for (name, kind, help, read) in numbers {
        let _ = writeln!(
            out,
            "# HELP ondine_{name} {help}\n# TYPE ondine_{name} {kind}"
        );
        for model in models {
            let _ = writeln!(out, "ondine_{name}{{{}}} {}", label(model.0), read(model));
        }
    }
    type Times = fn(&Figures) -> &Histogram;
    let times: [(&str, &str, Times); 3] = [
        (
            "time_to_first_token",
            "From submission to the first token.",
            |f| &f.time_to_first_token,
        ),
        (
            "between_tokens",
            "From one token of an answer to the next.",
            |f| &f.between_tokens,
        ),
        ("service", "From the queue to the end of an answer.", |f| {
            &f.service
        }),
    ];
    for (name, help, histogram) in times {
        let name = format!("ondine_{name}_seconds");
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (model, figures, _) in models {
            histogram(figures).write(out, &name, &label(model));
        }
    }
}

/// The label that names the model.
fn label(model: &str) -> String {
    let escaped = model
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("model=\"{escaped}\"")
}
