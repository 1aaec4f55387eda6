//! `/api/chat`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Options, constraint, date, figures, line};
use crate::app::App;
use crate::ask::{Ask, Prompt, Running, Update, What};
use crate::error::ApiError;
use crate::http::{Posted, Writer, block, respond};
use crate::openai::messages;
use crate::tools::{Part, Tool};

#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    model: Option<String>,
    messages: Vec<Value>,
    stream: Option<bool>,
    format: Option<Value>,
    #[serde(default)]
    options: Option<Options>,
    tools: Option<Vec<Value>>,
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    posted: Posted<Body>,
) -> Result<Response, ApiError> {
    let Posted { body, manner } = posted;
    let has_images = |message: &Value| {
        message["images"]
            .as_array()
            .is_some_and(|images| !images.is_empty())
    };
    if body.messages.iter().any(has_images) {
        return Err(ApiError::invalid(
            "messages",
            "images are not supported; send text only",
        ));
    }
    let mut ask = Ask::new(
        body.model,
        vec![Prompt::Chat(messages(&body.messages)?)],
        manner,
    );
    body.options.unwrap_or_default().apply(&mut ask)?;
    ask.streams = body.stream.unwrap_or(true);
    ask.constraint = constraint(body.format.as_ref())?;
    ask.tools = Tool::list(body.tools.as_deref().unwrap_or_default())?;
    let mut running = block(move || ask.start(&app)).await?;
    let lines = Lines {
        model: running.receipt.model.clone(),
    };
    if body.stream.unwrap_or(true) {
        return respond(running, lines).await;
    }
    let answer = running.collect().await?.pop().unwrap_or_default();
    let calls: Vec<Value> = answer
        .calls
        .iter()
        .map(|(name, arguments)| call(name, arguments))
        .collect();
    let mut whole = lines.line(&answer.text, &calls);
    if let (Value::Object(whole), Some(Value::Object(figures))) =
        (&mut whole, answer.finished.as_deref().map(figures))
    {
        whole.extend(figures);
    }
    Ok(Json(whole).into_response())
}

fn call(name: &str, arguments: &str) -> Value {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
    json!({"function": {"name": name, "arguments": arguments}})
}

struct Lines {
    model: String,
}

impl Lines {
    fn line(&self, text: &str, calls: &[Value]) -> Value {
        let mut message = json!({"role": "assistant", "content": text});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        json!({
            "model": self.model,
            "created_at": date(SystemTime::now()),
            "message": message,
            "done": false,
        })
    }
}

impl Writer for Lines {
    const CONTENT_TYPE: &'static str = "application/x-ndjson";
    const KEEP_ALIVE: &'static str = "\n";

    fn opening(&mut self, _: &Running) -> String {
        String::new()
    }

    fn update(&mut self, update: Update) -> String {
        match update.what {
            What::Part(Part::Text(text)) => line(&self.line(&text, &[])),
            What::Part(Part::Call(name, arguments)) => {
                line(&self.line("", &[call(&name, &arguments)]))
            }
            What::Token(_) | What::Handover(_) => String::new(),
            What::Finished(finished) => {
                let mut last = self.line("", &[]);
                if let (Value::Object(last), Value::Object(figures)) =
                    (&mut last, figures(&finished))
                {
                    last.extend(figures);
                }
                line(&last)
            }
        }
    }

    fn closing(&mut self, _: &Running) -> String {
        String::new()
    }

    fn failure(&mut self, error: &ApiError) -> String {
        line(&json!({"error": error.to_string()}))
    }
}
