//! Where an answer was made, why there, and how long it took. Labels and numbers, never text.

use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use ondine_hybrid::cloud::Step;
use ondine_runtime::backend::DeviceReport;
use serde::Serialize;

use crate::engine::Outcome;
use crate::placement::{Decision, Place};

/// Header that carries the receipt: whole where the answer is sent at once, the decision alone where it is streamed.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-ondine-receipt");

/// Bytes of that header at most; common clients and proxies take 8 KiB of all headers.
const MOST_HEADER: usize = 6 << 10;

/// A receipt. The last chunk of a stream carries it as the field `ondine`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Receipt {
    /// Version of this form.
    pub version: u32,
    /// Where and why.
    #[serde(flatten)]
    pub decision: Decision,
    /// Name of the model.
    pub model: String,
    /// Backend, such as `cpu`.
    pub backend: String,
    /// Instruction set or device.
    pub device: String,
    /// Threads it uses.
    pub threads: usize,
    /// What happened on the way to the answer, where several places took part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// How it went, once it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// How an answer went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timings {
    /// Milliseconds in the queue.
    pub queue_ms: f64,
    /// Milliseconds from the request to the first token.
    pub time_to_first_token_ms: f64,
    /// Milliseconds for the prompt.
    pub prefill_ms: f64,
    /// Milliseconds for the tokens after the first.
    pub decode_ms: f64,
    /// Tokens a second after the first.
    pub tokens_per_second: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were already computed.
    pub reused_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Why it ended.
    pub stopped_by: &'static str,
}

impl Receipt {
    pub(crate) fn new(decision: Decision, model: &str, device: &DeviceReport) -> Self {
        Receipt {
            version: 1,
            decision,
            model: model.to_owned(),
            backend: device.backend.clone(),
            device: device.device.clone(),
            threads: device.threads,
            steps: Vec::new(),
            timings: None,
        }
    }

    /// Another place writes: a provider with its model and region, or the device again.
    pub(crate) fn moved(
        &mut self,
        here: &Receipt,
        place: String,
        model: Option<String>,
        region: Option<String>,
    ) {
        match model {
            Some(model) => {
                self.decision.place = Place::Provider(place);
                self.model = model;
                self.backend = "provider".into();
                self.device = region.unwrap_or_default();
                self.threads = 0;
            }
            None => {
                self.decision.place = Place::Device;
                self.model.clone_from(&here.model);
                self.backend.clone_from(&here.backend);
                self.device.clone_from(&here.device);
                self.threads = here.threads;
            }
        }
    }

    pub(crate) fn finished(&self, outcome: &Outcome) -> Self {
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
        let stats = &outcome.stats;
        Receipt {
            timings: Some(Timings {
                queue_ms: milliseconds(outcome.queued),
                time_to_first_token_ms: milliseconds(stats.time_to_first_token),
                prefill_ms: milliseconds(stats.prefill),
                decode_ms: milliseconds(stats.decode),
                tokens_per_second: (stats.decode_tokens_per_second() * 100.0).round() / 100.0,
                prompt_tokens: stats.prompt_tokens,
                reused_tokens: stats.reused_tokens,
                generated_tokens: stats.generated_tokens,
                stopped_by: outcome.stopped.name(),
            }),
            ..self.clone()
        }
    }

    /// As a header's value; JSON of numbers and names is ASCII unless the model's name is not. What would be too long for some
    /// clients is in the body alone.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut text = serde_json::to_string(self).ok()?;
        if text.len() > MOST_HEADER {
            let mut short = self.clone();
            short.decision.route = None;
            short.steps.clear();
            text = serde_json::to_string(&short).ok()?;
        }
        let ascii: String = text
            .chars()
            .map(|c| if c.is_ascii() { c } else { '?' })
            .collect();
        HeaderValue::from_str(&ascii).ok()
    }
}
