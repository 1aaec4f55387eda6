//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DONE, SamplingFields, Texts, fresh_id, logprob, sse, unix_time, usage};
use crate::app::App;
use crate::ask::{Answer, Ask, Finished, Prompt, Running, Update, What};
use crate::error::ApiError;
use crate::http::{Posted, Writer, block, respond};
use crate::receipt::HEADER;
use crate::tools::{Part, Tool, ToolChoice};

#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    model: Option<String>,
    messages: Vec<Value>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    n: Option<usize>,
    stop: Option<Texts>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    response_format: Option<Value>,
    #[serde(flatten)]
    sampling: SamplingFields,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    posted: Posted<Body>,
) -> Result<Response, ApiError> {
    let Posted { body, manner } = posted;
    let wants_logprobs = body.logprobs.unwrap_or(false);
    let mut ask = Ask::new(
        body.model,
        vec![Prompt::Chat(super::messages(&body.messages)?)],
        manner,
    );
    ask.choices = super::choices(body.n)?;
    ask.sampling = body
        .sampling
        .options(super::top_logprobs(wants_logprobs, body.top_logprobs)?)?;
    ask.remote = Some(body.sampling.remote());
    ask.max_tokens = body.max_completion_tokens.or(body.max_tokens);
    ask.stop = Texts::stops(body.stop)?;
    ask.streams = body.stream.unwrap_or(false);
    ask.constraint = super::constraint_of("response_format", body.response_format.as_ref())?;
    ask.tools = Tool::list(body.tools.as_deref().unwrap_or_default())?;
    ask.tool_choice = ToolChoice::read(body.tool_choice.as_ref(), &ask.tools)?;
    let form = Form {
        id: fresh_id("chatcmpl-"),
        created: unix_time(),
        logprobs: wants_logprobs.then(|| body.top_logprobs.unwrap_or(0)),
    };
    let mut running = block(move || ask.start(&app)).await?;
    if body.stream.unwrap_or(false) {
        let options = body.stream_options.unwrap_or_default();
        let writer = Chunks {
            form,
            with_usage: options.include_usage.unwrap_or(false),
            model: running.receipt.model.clone(),
            running: running.engine.clone(),
            calls: vec![0; running.choices()],
            generated: 0,
            reused: 0,
        };
        return respond(running, writer).await;
    }
    let answers = running.collect().await?;
    Ok(form.whole(&running, &answers))
}

/// What all parts of one response share.
struct Form {
    id: String,
    created: u64,
    /// How many of the likeliest tokens are reported; none if none and no probabilities.
    logprobs: Option<usize>,
}

impl Form {
    fn whole(&self, running: &Running, answers: &[Answer]) -> Response {
        let tokenizer = running.engine.model().tokenizer();
        let choices: Vec<Value> = answers
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                let mut message =
                    json!({"role": "assistant", "content": answer.text, "refusal": null});
                if !answer.calls.is_empty() {
                    let calls = answer
                        .calls
                        .iter()
                        .map(|(name, arguments)| call(name, arguments));
                    message["tool_calls"] = calls.collect();
                    if answer.text.is_empty() {
                        message["content"] = Value::Null;
                    }
                }
                let logprobs = self.logprobs.map(|top| {
                    let tokens = answer
                        .tokens
                        .iter()
                        .map(|token| logprob(tokenizer, token, top));
                    json!({"content": tokens.collect::<Vec<_>>(), "refusal": null})
                });
                json!({
                    "index": index,
                    "message": message,
                    "logprobs": logprobs,
                    "finish_reason": answer.finished.as_deref().map(Finished::reason),
                })
            })
            .collect();
        let finished = || answers.iter().filter_map(|answer| answer.finished.as_ref());
        let generated = finished().map(|f| f.outcome.stats.generated_tokens).sum();
        let reused = finished()
            .next()
            .map_or(0, |f| f.outcome.stats.reused_tokens);
        let receipt = finished().next_back().map(|finished| &finished.receipt);
        let mut response = Json(json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": running.receipt.model,
            "choices": choices,
            "usage": usage(running.prompt_tokens, reused, generated),
            "ondine": receipt,
        }))
        .into_response();
        if let Some(header) = receipt.and_then(|receipt| receipt.header()) {
            response.headers_mut().insert(HEADER, header);
        }
        response
    }
}

pub(crate) fn call(name: &str, arguments: &str) -> Value {
    json!({"id": fresh_id("call_"), "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// Writes `chat.completion.chunk` events.
struct Chunks {
    form: Form,
    with_usage: bool,
    model: String,
    running: Arc<crate::engine::Engine>,
    /// Calls so far of each choice.
    calls: Vec<usize>,
    generated: usize,
    reused: usize,
}

impl Chunks {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.form.id,
            "object": "chat.completion.chunk",
            "created": self.form.created,
            "model": self.model,
            "choices": choices,
        });
        if self.with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn choice(&self, index: usize, delta: &Value, logprobs: &Value, reason: Option<&str>) -> Value {
        self.chunk(json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]))
    }
}

impl Writer for Chunks {
    const CONTENT_TYPE: &'static str = "text/event-stream";
    const KEEP_ALIVE: &'static str = ": still here\n\n";

    fn opening(&mut self, running: &Running) -> String {
        let role = json!({"role": "assistant", "content": ""});
        (0..running.choices())
            .map(|index| sse(&self.choice(index, &role, &Value::Null, None)))
            .collect()
    }

    fn update(&mut self, update: Update) -> String {
        let index = update.choice;
        match update.what {
            What::Part(Part::Text(text)) => {
                sse(&self.choice(index, &json!({"content": text}), &Value::Null, None))
            }
            What::Part(Part::Call(name, arguments)) => {
                let mut call = call(&name, &arguments);
                call["index"] = self.calls[index].into();
                self.calls[index] += 1;
                sse(&self.choice(index, &json!({"tool_calls": [call]}), &Value::Null, None))
            }
            What::Token(token) => match self.form.logprobs {
                Some(top) => {
                    let token = logprob(self.running.model().tokenizer(), &token, top);
                    let logprobs = json!({"content": [token], "refusal": null});
                    sse(&self.choice(index, &json!({}), &logprobs, None))
                }
                None => String::new(),
            },
            What::Handover(place) => {
                let mut chunk = self.choice(index, &json!({}), &Value::Null, None);
                chunk["ondine"] = json!({"handover": {"to": place}});
                sse(&chunk)
            }
            What::Finished(finished) => {
                self.generated += finished.outcome.stats.generated_tokens;
                self.reused = self.reused.max(finished.outcome.stats.reused_tokens);
                let mut chunk =
                    self.choice(index, &json!({}), &Value::Null, Some(finished.reason()));
                chunk["ondine"] = json!(finished.receipt);
                sse(&chunk)
            }
        }
    }

    fn closing(&mut self, running: &Running) -> String {
        let mut text = String::new();
        if self.with_usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(running.prompt_tokens, self.reused, self.generated);
            text.push_str(&sse(&chunk));
        }
        text.push_str(DONE);
        text
    }

    fn failure(&mut self, error: &ApiError) -> String {
        sse(&error.body())
    }
}
