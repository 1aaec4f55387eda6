//! The OpenAI interface: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`, `/v1/models`.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod models;
pub(crate) mod responses;
mod responses_stream;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use ondine_runtime::chat_template::Message;
use ondine_runtime::constraint::ConstraintSpec;
use ondine_runtime::sample::{Sampled, SamplingOptions};
use ondine_runtime::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::ask::MOST_CHOICES;
use crate::error::ApiError;

/// Likeliest tokens that can be reported at most.
const MOST_LOGPROBS: usize = 20;

/// Stop texts at most.
const MOST_STOPS: usize = 16;

/// One text or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    pub(crate) fn stops(this: Option<Self>) -> Result<Vec<String>, ApiError> {
        let stops = match this {
            None => Vec::new(),
            Some(Texts::One(text)) => vec![text],
            Some(Texts::Many(texts)) => texts,
        };
        match stops.len() {
            0..=MOST_STOPS => Ok(stops),
            count => Err(ApiError::invalid(
                "stop",
                format!("{count} stop texts are given; at most {MOST_STOPS} are allowed"),
            )),
        }
    }
}

/// How tokens are chosen, as the interface names it. What is not given is as `ondine run` has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct SamplingFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repeat_penalty: Option<f32>,
    seed: Option<i64>,
    logit_bias: Option<serde_json::Map<String, Value>>,
}

impl SamplingFields {
    /// What was given of those fields that every provider knows.
    pub(crate) fn remote(&self) -> Map<String, Value> {
        let mut fields = remote_numbers([
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ]);
        if let Some(seed) = self.seed {
            fields.insert("seed".into(), seed.into());
        }
        fields
    }

    pub(crate) fn options(&self, top_logprobs: usize) -> Result<SamplingOptions, ApiError> {
        let usual = SamplingOptions::default();
        let mut logit_bias = Vec::new();
        for (token, bias) in self.logit_bias.iter().flatten() {
            let invalid = || {
                ApiError::invalid(
                    "logit_bias",
                    format!("{token:?} must be a token id with a number from -100 to 100"),
                )
            };
            let token: u32 = token.parse().map_err(|_| invalid())?;
            let bias = bias
                .as_f64()
                .filter(|bias| bias.abs() <= 100.0)
                .ok_or_else(invalid)? as f32;
            // A hundred means never or always.
            logit_bias.push((
                token,
                if bias == -100.0 {
                    f32::NEG_INFINITY
                } else {
                    bias
                },
            ));
        }
        let options = SamplingOptions {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_p: self.top_p.unwrap_or(usual.top_p),
            top_k: self.top_k.unwrap_or(usual.top_k),
            min_p: self.min_p.unwrap_or(usual.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
            repeat_penalty: self.repeat_penalty.unwrap_or(usual.repeat_penalty),
            seed: self
                .seed
                .map_or_else(SamplingOptions::random_seed, |seed| seed as u64),
            logit_bias,
            top_logprobs,
            ..usual
        };
        options.validate()?;
        Ok(options)
    }
}

/// The numbers that were given, as fields of a request to a provider.
pub(crate) fn remote_numbers<const N: usize>(
    numbers: [(&str, Option<f32>); N],
) -> Map<String, Value> {
    // A number of 32 bits, written so that it reads as it was given.
    let short = |value: f32| value.to_string().parse::<f64>().unwrap_or_default();
    let given = numbers
        .into_iter()
        .filter_map(|(name, value)| Some((name, short(value?))));
    given
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect()
}

/// Answers wanted.
pub(crate) fn choices(n: Option<usize>) -> Result<usize, ApiError> {
    match n.unwrap_or(1) {
        n @ 1..=MOST_CHOICES => Ok(n),
        n => Err(ApiError::invalid(
            "n",
            format!("n is {n} but must be from 1 to {MOST_CHOICES}"),
        )),
    }
}

/// `top_logprobs`, and one at least where logprobs are wanted at all.
pub(crate) fn top_logprobs(wanted: bool, top: Option<usize>) -> Result<usize, ApiError> {
    match top.unwrap_or(0) {
        0 => Ok(usize::from(wanted)),
        top @ 1..=MOST_LOGPROBS if wanted => Ok(top),
        1..=MOST_LOGPROBS => Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs needs logprobs to be true",
        )),
        top => Err(ApiError::invalid(
            "top_logprobs",
            format!("top_logprobs is {top} but must be from 0 to {MOST_LOGPROBS}"),
        )),
    }
}

/// What `response_format`, or `text.format` of `/v1/responses`, asks for.
pub(crate) fn constraint_of(
    param: &'static str,
    format: Option<&Value>,
) -> Result<Option<(&'static str, ConstraintSpec)>, ApiError> {
    let Some(format) = format.filter(|format| !format.is_null()) else {
        return Ok(None);
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some((
            param,
            ConstraintSpec::JsonSchema(r#"{"type":"object"}"#.into()),
        ))),
        Some("json_schema") => {
            let inner = &format["json_schema"]["schema"];
            let schema = if inner.is_null() {
                &format["schema"]
            } else {
                inner
            };
            match schema {
                Value::Object(_) | Value::Bool(_) => Ok(Some((
                    param,
                    ConstraintSpec::JsonSchema(schema.to_string()),
                ))),
                _ => Err(ApiError::invalid(
                    param,
                    "json_schema needs a schema, which is an object",
                )),
            }
        }
        Some("regex") => match format["pattern"].as_str() {
            Some(pattern) => Ok(Some((param, ConstraintSpec::Regex(pattern.into())))),
            None => Err(ApiError::invalid(param, "regex needs a pattern")),
        },
        Some("grammar") => match format["grammar"].as_str() {
            Some(grammar) => Ok(Some((param, ConstraintSpec::Lark(grammar.into())))),
            None => Err(ApiError::invalid(
                param,
                "grammar needs a grammar, in Lark's syntax",
            )),
        },
        _ => Err(ApiError::invalid(
            param,
            "the type must be text, json_object, json_schema, regex or grammar",
        )),
    }
}

/// The messages as templates take them: text contents only, and the roles they know.
pub(crate) fn messages(messages: &[Value]) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "there is no message; send at least one",
        ));
    }
    let read = |(index, message): (usize, &Value)| {
        let invalid = |what: &str| {
            ApiError::invalid(
                &format!("messages[{index}]"),
                format!("message {index} {what}"),
            )
        };
        let mut message = message.clone();
        let content = text_of(&message["content"]).map_err(|what| invalid(&what))?;
        let Some(fields) = message.as_object_mut() else {
            return Err(invalid("is not an object"));
        };
        let role = match fields.get("role").and_then(Value::as_str) {
            Some("developer") => "system",
            Some("function") => "tool",
            Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
            Some(_) => {
                return Err(invalid(
                    "has a role other than system, developer, user, assistant and tool",
                ));
            }
            None => return Err(invalid("has no role")),
        };
        let role = role.to_owned();
        let has_calls = fields
            .get("tool_calls")
            .is_some_and(|calls| calls.as_array().is_some_and(|calls| !calls.is_empty()));
        if !has_calls {
            fields.remove("tool_calls");
        }
        match content {
            Some(content) => drop(fields.insert("content".into(), content.into())),
            None if role == "assistant" => drop(fields.insert("content".into(), "".into())),
            None => return Err(invalid("has no content")),
        }
        fields.insert("role".into(), role.into());
        Message::from_json(message).ok_or_else(|| invalid("has no role"))
    };
    messages.iter().enumerate().map(read).collect()
}

/// The text of a content: a string, or a list of text parts.
pub(crate) fn text_of(content: &Value) -> Result<Option<String>, String> {
    match content {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(parts) => {
            let mut text = String::new();
            for part in parts {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text" | "input_text" | "output_text"), Some(more)) => {
                        text.push_str(more)
                    }
                    (Some("refusal"), _) => (),
                    (kind, _) => {
                        let kind: String = kind.unwrap_or("unknown").chars().take(40).collect();
                        return Err(format!("has a part of type {kind}; only text is supported"));
                    }
                }
            }
            Ok(Some(text))
        }
        _ => Err("has a content that is neither text nor a list of parts".into()),
    }
}

/// A token with its probability, as chat completions report it.
pub(crate) fn logprob(tokenizer: &Tokenizer, sampled: &Sampled, top: usize) -> Value {
    let one = |token: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(token);
        // JSON has no infinity.
        json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob.max(-9999.0), "bytes": bytes})
    };
    let mut value = one(sampled.token, sampled.logprob);
    let likeliest: Vec<Value> = sampled
        .top
        .iter()
        .take(top)
        .map(|&(token, p)| one(token, p))
        .collect();
    value["top_logprobs"] = likeliest.into();
    value
}

/// `usage`.
pub(crate) fn usage(prompt: usize, reused: usize, generated: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": reused},
    })
}

/// A name that was not given before.
pub(crate) fn fresh_id(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:016x}{count:06x}", SamplingOptions::random_seed())
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// An event of a stream.
pub(crate) fn sse(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// Ends a stream.
pub(crate) const DONE: &str = "data: [DONE]\n\n";
