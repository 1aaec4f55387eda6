//! Ollama's interface, so that its clients work: `/api/chat`, `/api/generate`, `/api/embed`, `/api/tags`, `/api/ps`, `/api/show`,
//! `/api/version`.

pub(crate) mod chat;
pub(crate) mod generate;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use ondine_runtime::chat_template::DateTime;
use ondine_runtime::constraint::ConstraintSpec;
use ondine_runtime::sample::SamplingOptions;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::ask::{Ask, Finished};
use crate::error::ApiError;
use crate::http::{Posted, block};
use crate::models::Offer;
use crate::openai::completions::Prompts;
use crate::openai::embeddings;
use crate::openai::{Texts, remote_numbers};

/// `options` of a request; others are ignored, as Ollama does.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Options {
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    num_predict: Option<i64>,
    stop: Option<Texts>,
}

impl Options {
    /// Puts them into a request.
    fn apply(self, ask: &mut Ask) -> Result<(), ApiError> {
        let usual = SamplingOptions::default();
        let given = [("temperature", self.temperature), ("top_p", self.top_p)];
        ask.remote = Some(remote_numbers(given));
        ask.sampling = SamplingOptions {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            typical_p: self.typical_p.unwrap_or(usual.typical_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(usual.repeat_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
            penalty_window: match self.repeat_last_n {
                None => usual.penalty_window,
                Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            },
            seed: self
                .seed
                .map_or_else(SamplingOptions::random_seed, |seed| seed as u64),
            ..usual
        };
        ask.sampling.validate()?;
        // Below zero means without bound.
        ask.max_tokens = self
            .num_predict
            .and_then(|count| usize::try_from(count).ok());
        ask.stop = Texts::stops(self.stop)?;
        Ok(())
    }
}

/// `format`: `"json"` or a schema.
fn constraint(format: Option<&Value>) -> Result<Option<(&'static str, ConstraintSpec)>, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some((
            "format",
            ConstraintSpec::JsonSchema(r#"{"type":"object"}"#.into()),
        ))),
        Some(schema @ Value::Object(_)) => Ok(Some((
            "format",
            ConstraintSpec::JsonSchema(schema.to_string()),
        ))),
        Some(_) => Err(ApiError::invalid(
            "format",
            "format must be \"json\" or a JSON schema",
        )),
    }
}

/// The figures at the end of an answer; times in nanoseconds.
fn figures(finished: &Finished) -> Value {
    let stats = &finished.outcome.stats;
    let total = finished.outcome.queued + stats.time_to_first_token + stats.decode;
    let reason = match finished.outcome.stopped.is_cut() {
        true => "length",
        false => "stop",
    };
    json!({
        "done": true,
        "done_reason": reason,
        "total_duration": total.as_nanos() as u64,
        "load_duration": 0,
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": stats.prefill.as_nanos() as u64,
        "eval_count": stats.generated_tokens,
        "eval_duration": stats.decode.as_nanos() as u64,
        "ondine": finished.receipt,
    })
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// A time as Ollama writes it.
fn date(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    DateTime::from_unix_seconds(seconds as i64).format("%Y-%m-%dT%H:%M:%SZ")
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(crate) async fn tags(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"models": app.models.offers().map(entry).collect::<Vec<_>>()}))
}

pub(crate) async fn running(State(app): State<Arc<App>>) -> Json<Value> {
    let loaded = app.models.loaded();
    let offers = app
        .models
        .offers()
        .filter(|offer| loaded.iter().any(|(name, _)| *name == offer.name));
    Json(json!({"models": offers.map(entry).collect::<Vec<_>>()}))
}

fn entry(offer: &Offer) -> Value {
    json!({
        "name": offer.name,
        "model": offer.name,
        "modified_at": date(offer.modified),
        "size": offer.bytes,
        "digest": "",
        "details": {"parent_model": "", "format": "gguf", "family": "", "families": [], "parameter_size": "", "quantization_level": ""},
    })
}

#[derive(Debug, Deserialize)]
pub(crate) struct ShowBody {
    model: Option<String>,
    name: Option<String>,
}

pub(crate) async fn show(
    State(app): State<Arc<App>>,
    posted: Posted<ShowBody>,
) -> Result<Json<Value>, ApiError> {
    let wanted = posted.body.model.or(posted.body.name);
    let modified = date(app.models.find(wanted.as_deref())?.modified);
    let (_, engine) = block(move || app.models.engine(wanted.as_deref())).await?;
    let model = engine.model();
    let spec = model.spec();
    let family = spec.architecture.as_str();
    let template = model
        .file()
        .metadata
        .string("tokenizer.chat_template")
        .ok()
        .flatten()
        .unwrap_or_default();
    let mut info = serde_json::Map::new();
    info.insert("general.architecture".into(), family.into());
    info.insert("general.name".into(), spec.name.as_str().into());
    for (key, value) in [
        ("context_length", engine.context_length()),
        ("embedding_length", spec.embedding),
        ("block_count", spec.layers.len()),
        ("vocab_size", spec.vocabulary),
    ] {
        info.insert(format!("{family}.{key}"), value.into());
    }
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": template,
        "modified_at": modified,
        "details": {"parent_model": "", "format": "gguf", "family": family, "families": [family], "parameter_size": "", "quantization_level": ""},
        "model_info": info,
        "capabilities": ["completion", "tools"],
    })))
}

#[derive(Debug, Deserialize)]
pub(crate) struct EmbedBody {
    model: Option<String>,
    input: Prompts,
}

pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    posted: Posted<EmbedBody>,
) -> Result<Json<Value>, ApiError> {
    let Posted { body, manner } = posted;
    let embedded = embeddings::embed(app, body.model, body.input.list(), manner).await?;
    Ok(Json(json!({
        "model": embedded.model,
        "embeddings": embedded.vectors,
        "prompt_eval_count": embedded.tokens,
    })))
}
