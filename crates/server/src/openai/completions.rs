//! `/v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use ondine_runtime::sample::Sampled;
use ondine_runtime::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::StreamOptions;
use super::{DONE, SamplingFields, Texts, fresh_id, sse, unix_time, usage};
use crate::app::App;
use crate::ask::{Ask, Finished, Prompt, Running, Update, What};
use crate::engine::Engine;
use crate::error::ApiError;
use crate::http::{Posted, Writer, block, respond};
use crate::receipt::HEADER;
use crate::tools::Part;

/// Prompts of one request at most.
const MOST_PROMPTS: usize = 64;

/// Tokens generated where the request does not say, as the interface has it.
const USUAL_TOKENS: usize = 16;

#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    model: Option<String>,
    prompt: Prompts,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    n: Option<usize>,
    best_of: Option<usize>,
    stop: Option<Texts>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    response_format: Option<Value>,
    #[serde(flatten)]
    sampling: SamplingFields,
}

/// One prompt or several, as text or as tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    pub(crate) fn list(self) -> Vec<Prompt> {
        match self {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Prompts::ManyTokens(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    posted: Posted<Body>,
) -> Result<Response, ApiError> {
    let Posted { body, manner } = posted;
    if body.echo == Some(true) {
        return Err(ApiError::invalid(
            "echo",
            "echo is not supported; put the prompt before the answer yourself",
        ));
    }
    if body.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::invalid(
            "suffix",
            "suffix is not supported; leave it out",
        ));
    }
    if body.best_of.is_some_and(|best| best != body.n.unwrap_or(1)) {
        return Err(ApiError::invalid(
            "best_of",
            "best_of is not supported; ask for n answers and choose",
        ));
    }
    let prompts = body.prompt.list();
    if prompts.is_empty() || prompts.len() > MOST_PROMPTS {
        let message = format!(
            "{} prompts are given, but must be from 1 to {MOST_PROMPTS}",
            prompts.len()
        );
        return Err(ApiError::invalid("prompt", message));
    }
    let mut ask = Ask::new(body.model, prompts, manner);
    ask.choices = super::choices(body.n)?;
    ask.sampling = body
        .sampling
        .options(super::top_logprobs(body.logprobs.is_some(), body.logprobs)?)?;
    ask.max_tokens = Some(body.max_tokens.unwrap_or(USUAL_TOKENS));
    ask.stop = Texts::stops(body.stop)?;
    ask.streams = body.stream.unwrap_or(false);
    ask.constraint = super::constraint_of("response_format", body.response_format.as_ref())?;
    let mut running = block(move || ask.start(&app)).await?;
    let mut form = Form {
        id: fresh_id("cmpl-"),
        created: unix_time(),
        model: running.receipt.model.clone(),
        engine: running.engine.clone(),
        logprobs: body.logprobs,
        with_usage: body
            .stream_options
            .is_some_and(|options| options.include_usage == Some(true)),
        generated: 0,
        reused: 0,
        written: vec![0; running.choices()],
    };
    if body.stream.unwrap_or(false) {
        return respond(running, form).await;
    }
    let answers = running.collect().await?;
    let mut choices = Vec::new();
    let mut last = None;
    for (index, answer) in answers.into_iter().enumerate() {
        let logprobs = form.logprobs_of(index, &answer.tokens);
        let reason = answer.finished.as_deref().map(Finished::reason);
        if let Some(finished) = answer.finished {
            form.generated += finished.outcome.stats.generated_tokens;
            form.reused += finished.outcome.stats.reused_tokens;
            last = Some(finished.receipt);
        }
        choices.push(json!({"text": answer.text, "index": index, "logprobs": logprobs, "finish_reason": reason}));
    }
    let mut whole = form.part(choices.into());
    whole["usage"] = usage(running.prompt_tokens, form.reused, form.generated);
    whole["ondine"] = json!(last);
    let mut response = Json(whole).into_response();
    if let Some(header) = last.and_then(|receipt| receipt.header()) {
        response.headers_mut().insert(HEADER, header);
    }
    Ok(response)
}

struct Form {
    id: String,
    created: u64,
    model: String,
    engine: Arc<Engine>,
    logprobs: Option<usize>,
    with_usage: bool,
    generated: usize,
    reused: usize,
    /// Characters of each answer's tokens so far.
    written: Vec<usize>,
}

impl Form {
    fn part(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// Probabilities in the form of this older interface: parallel lists.
    fn logprobs_of(&mut self, index: usize, tokens: &[Sampled]) -> Value {
        let Some(top) = self.logprobs else {
            return Value::Null;
        };
        let tokenizer = self.engine.model().tokenizer();
        let mut offsets = Vec::new();
        for sampled in tokens {
            offsets.push(self.written[index]);
            self.written[index] += text(tokenizer, sampled.token).chars().count();
        }
        let likeliest = |sampled: &Sampled| -> Value {
            let top = sampled.top.iter().take(top);
            let fields = top.map(|&(token, p)| (text(tokenizer, token), json!(p.max(-9999.0))));
            Value::Object(fields.collect())
        };
        json!({
            "tokens": tokens.iter().map(|s| text(tokenizer, s.token)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|s| s.logprob.max(-9999.0)).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(likeliest).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned()
}

impl Writer for Form {
    const CONTENT_TYPE: &'static str = "text/event-stream";
    const KEEP_ALIVE: &'static str = ": still here\n\n";

    fn opening(&mut self, _: &Running) -> String {
        String::new()
    }

    fn update(&mut self, update: Update) -> String {
        let index = update.choice;
        let choice = |text: &str, logprobs: Value, reason: Option<&str>| json!([{"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}]);
        match update.what {
            What::Part(Part::Text(text)) => sse(&self.part(choice(&text, Value::Null, None))),
            What::Part(Part::Call(..)) | What::Handover(_) => String::new(),
            What::Token(token) => match self.logprobs_of(index, &[token]) {
                Value::Null => String::new(),
                logprobs => sse(&self.part(choice("", logprobs, None))),
            },
            What::Finished(finished) => {
                self.generated += finished.outcome.stats.generated_tokens;
                self.reused += finished.outcome.stats.reused_tokens;
                let mut part = self.part(choice("", Value::Null, Some(finished.reason())));
                part["ondine"] = json!(finished.receipt);
                sse(&part)
            }
        }
    }

    fn closing(&mut self, running: &Running) -> String {
        let mut out = String::new();
        if self.with_usage {
            let mut part = self.part(json!([]));
            part["usage"] = usage(running.prompt_tokens, self.reused, self.generated);
            out.push_str(&sse(&part));
        }
        out.push_str(DONE);
        out
    }

    fn failure(&mut self, error: &ApiError) -> String {
        sse(&error.body())
    }
}
