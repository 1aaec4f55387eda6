//! `/v1/responses`: one answer a request; nothing is kept, so a conversation is sent whole each time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use ondine_runtime::chat_template::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::responses_stream::Events;
use super::{SamplingFields, fresh_id, text_of, unix_time};
use crate::app::App;
use crate::ask::{Answer, Ask, Finished, Prompt};
use crate::error::ApiError;
use crate::http::{Posted, block, respond};
use crate::receipt::HEADER;
use crate::tools::{Tool, ToolChoice};

#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    model: Option<String>,
    input: Value,
    instructions: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
    max_output_tokens: Option<usize>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    text: Option<Value>,
    metadata: Option<Value>,
    previous_response_id: Option<String>,
    background: Option<bool>,
    #[serde(flatten)]
    sampling: SamplingFields,
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    posted: Posted<Body>,
) -> Result<Response, ApiError> {
    let Posted { body, manner } = posted;
    if body.previous_response_id.is_some() {
        let message = "previous_response_id is not supported, nothing is kept here; send the whole conversation as input";
        return Err(ApiError::invalid("previous_response_id", message));
    }
    if body.background == Some(true) {
        return Err(ApiError::invalid(
            "background",
            "background is not supported; stream the answer",
        ));
    }
    let mut messages: Vec<Message> = body
        .instructions
        .iter()
        .map(|text| Message::system(text.as_str()))
        .collect();
    messages.extend(input(&body.input)?);
    let mut ask = Ask::new(body.model, vec![Prompt::Chat(messages)], manner);
    ask.sampling = body.sampling.options(0)?;
    ask.remote = Some(body.sampling.remote());
    ask.max_tokens = body.max_output_tokens;
    ask.streams = body.stream.unwrap_or(false);
    ask.constraint = super::constraint_of(
        "text.format",
        body.text.as_ref().map(|text| &text["format"]),
    )?;
    ask.tools = Tool::list(body.tools.as_deref().unwrap_or_default())?;
    ask.tool_choice = ToolChoice::read(body.tool_choice.as_ref(), &ask.tools)?;
    let temperature = ask.sampling.temperature;
    let top_p = ask.sampling.top_p;
    let mut running = block(move || ask.start(&app)).await?;
    let form = Form {
        id: fresh_id("resp_"),
        base: json!({
            "object": "response",
            "created_at": unix_time(),
            "model": running.receipt.model,
            "instructions": body.instructions,
            "metadata": body.metadata.unwrap_or_else(|| json!({})),
            "parallel_tool_calls": true,
            "temperature": temperature,
            "top_p": top_p,
            "max_output_tokens": body.max_output_tokens,
            "tool_choice": body.tool_choice.unwrap_or_else(|| "auto".into()),
            "tools": body.tools.unwrap_or_default(),
            "text": body.text.unwrap_or_else(|| json!({"format": {"type": "text"}})),
            "previous_response_id": null,
            "error": null,
            "incomplete_details": null,
            "store": false,
        }),
    };
    if body.stream.unwrap_or(false) {
        return respond(running, Events::new(form)).await;
    }
    let answer = running.collect().await?.pop().unwrap_or_default();
    let whole = form.whole(&answer);
    let mut response = Json(whole).into_response();
    let receipt = answer.finished.map(|finished| finished.receipt);
    if let Some(header) = receipt.and_then(|receipt| receipt.header()) {
        response.headers_mut().insert(HEADER, header);
    }
    Ok(response)
}

/// What all states of one response share.
pub(super) struct Form {
    id: String,
    base: Value,
}

impl Form {
    /// The response in a state, with what it holds so far.
    pub(super) fn state(&self, status: &str, output: Value, finished: Option<&Finished>) -> Value {
        let mut response = json!({"id": self.id});
        if let (Value::Object(response), Value::Object(base)) = (&mut response, &self.base) {
            response.extend(base.clone());
        }
        response["status"] = status.into();
        response["output"] = output;
        response["usage"] = Value::Null;
        if let Some(finished) = finished {
            let stats = &finished.outcome.stats;
            response["usage"] = json!({
                "input_tokens": stats.prompt_tokens,
                "input_tokens_details": {"cached_tokens": stats.reused_tokens},
                "output_tokens": stats.generated_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": stats.prompt_tokens + stats.generated_tokens,
            });
            if finished.outcome.stopped.is_cut() {
                response["status"] = "incomplete".into();
                response["incomplete_details"] = json!({"reason": "max_output_tokens"});
            }
            response["ondine"] = json!(finished.receipt);
        }
        response
    }

    fn whole(&self, answer: &Answer) -> Value {
        let mut output = Vec::new();
        if !answer.text.is_empty() || answer.calls.is_empty() {
            output.push(message(&fresh_id("msg_"), "completed", Some(&answer.text)));
        }
        let calls = answer.calls.iter();
        output.extend(
            calls.map(|(name, arguments)| function_call(&fresh_id("fc_"), name, arguments)),
        );
        self.state("completed", output.into(), answer.finished.as_deref())
    }
}

pub(super) fn message(id: &str, status: &str, text: Option<&str>) -> Value {
    let content: Vec<Value> = text.into_iter().map(output_text).collect();
    json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": content})
}

pub(super) fn output_text(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

pub(super) fn function_call(id: &str, name: &str, arguments: &str) -> Value {
    json!({
        "type": "function_call",
        "id": id,
        "call_id": fresh_id("call_"),
        "name": name,
        "arguments": arguments,
        "status": "completed",
    })
}

/// The conversation: a text, or a list of messages, calls and their results.
fn input(input: &Value) -> Result<Vec<Message>, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(vec![Message::user(text.as_str())]),
        Value::Array(items) => items,
        _ => {
            return Err(ApiError::invalid(
                "input",
                "input must be a text or a list of items",
            ));
        }
    };
    let mut messages: Vec<Value> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let message = match item["type"].as_str() {
            None | Some("message") => item.clone(),
            Some("function_call") => json!({"role": "assistant", "content": "", "tool_calls": [{
                "id": item["call_id"], "type": "function",
                "function": {"name": item["name"], "arguments": item["arguments"]},
            }]}),
            Some("function_call_output") => {
                let text = text_of(&item["output"]).ok().flatten().unwrap_or_default();
                json!({"role": "tool", "tool_call_id": item["call_id"], "content": text})
            }
            // What a model thought is not shown to it again.
            Some("reasoning") => continue,
            Some(kind) => {
                let kind: String = kind.chars().take(40).collect();
                return Err(ApiError::invalid(
                    "input",
                    format!("item {index} is of type {kind}, which is not supported"),
                ));
            }
        };
        messages.push(message);
    }
    super::messages(&messages)
}
