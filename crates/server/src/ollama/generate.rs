//! `/api/generate`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use ondine_runtime::chat_template::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Options, constraint, date, figures, line};
use crate::app::App;
use crate::ask::{Ask, Prompt, Running, Update, What};
use crate::error::ApiError;
use crate::http::{Posted, Writer, block, respond};
use crate::tools::Part;

#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    model: Option<String>,
    #[serde(default)]
    prompt: String,
    system: Option<String>,
    suffix: Option<String>,
    template: Option<String>,
    images: Option<Vec<Value>>,
    #[serde(default)]
    raw: bool,
    stream: Option<bool>,
    format: Option<Value>,
    #[serde(default)]
    options: Option<Options>,
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    posted: Posted<Body>,
) -> Result<Response, ApiError> {
    let Posted { body, manner } = posted;
    for (param, is_given) in [
        ("suffix", body.suffix.is_some_and(|text| !text.is_empty())),
        (
            "template",
            body.template.is_some_and(|text| !text.is_empty()),
        ),
        (
            "images",
            body.images.is_some_and(|images| !images.is_empty()),
        ),
    ] {
        if is_given {
            return Err(ApiError::invalid(
                param,
                format!("{param} is not supported; leave it out"),
            ));
        }
    }
    let lines = |model: String| Lines { model };
    if body.prompt.is_empty() {
        // How clients ask for a model to be loaded.
        let (name, _) = block(move || app.models.engine(body.model.as_deref())).await?;
        let mut whole = lines(name).line("");
        whole["done"] = true.into();
        whole["done_reason"] = "load".into();
        return Ok(Json(whole).into_response());
    }
    let prompt = match body.raw {
        true => Prompt::Text(body.prompt),
        false => {
            let mut messages: Vec<Message> = body.system.into_iter().map(Message::system).collect();
            messages.push(Message::user(body.prompt));
            Prompt::Chat(messages)
        }
    };
    let mut ask = Ask::new(body.model, vec![prompt], manner);
    body.options.unwrap_or_default().apply(&mut ask)?;
    ask.streams = body.stream.unwrap_or(true);
    ask.constraint = constraint(body.format.as_ref())?;
    let mut running = block(move || ask.start(&app)).await?;
    let lines = lines(running.receipt.model.clone());
    if body.stream.unwrap_or(true) {
        return respond(running, lines).await;
    }
    let answer = running.collect().await?.pop().unwrap_or_default();
    let mut whole = lines.line(&answer.text);
    if let (Value::Object(whole), Some(Value::Object(figures))) =
        (&mut whole, answer.finished.as_deref().map(figures))
    {
        whole.extend(figures);
    }
    Ok(Json(whole).into_response())
}

struct Lines {
    model: String,
}

impl Lines {
    fn line(&self, text: &str) -> Value {
        json!({"model": self.model, "created_at": date(SystemTime::now()), "response": text, "done": false})
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
            What::Part(Part::Text(text)) => line(&self.line(&text)),
            What::Part(Part::Call(..)) | What::Token(_) | What::Handover(_) => String::new(),
            What::Finished(finished) => {
                let mut last = self.line("");
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
