//! `/v1/embeddings`: the mean of the tokens' final hidden states, made length 1.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ondine_runtime::tokenizer::EncodeOptions;
use serde::Deserialize;
use serde_json::{Value, json};

use super::completions::Prompts;
use crate::app::App;
use crate::ask::{Manner, Prompt, check_length};
use crate::engine::{EngineError, Event, Job, Work};
use crate::error::ApiError;
use crate::http::{Posted, block};

/// Texts of one request at most.
const MOST_TEXTS: usize = 256;

#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    model: Option<String>,
    input: Prompts,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    posted: Posted<Body>,
) -> Result<Json<Value>, ApiError> {
    let Posted { body, manner } = posted;
    let as_base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            return Err(ApiError::invalid(
                "encoding_format",
                "encoding_format must be float or base64",
            ));
        }
    };
    let embedded = embed(app, body.model, body.input.list(), manner).await?;
    let length = embedded.vectors.first().map_or(0, Vec::len);
    if body.dimensions.is_some_and(|wanted| wanted != length) {
        let message =
            format!("this model's embeddings have {length} dimensions; leave dimensions out");
        return Err(ApiError::invalid("dimensions", message));
    }
    let data: Vec<Value> = embedded
        .vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = match as_base64 {
                true => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    json!(STANDARD.encode(bytes))
                }
                false => json!(vector),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": embedded.model,
        "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
    })))
}

/// Embeddings of several texts.
pub(crate) struct Embedded {
    pub(crate) model: String,
    /// One for each text, shape `[embedding]`, length 1.
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub(crate) tokens: usize,
}

pub(crate) async fn embed(
    app: Arc<App>,
    model: Option<String>,
    texts: Vec<Prompt>,
    manner: Manner,
) -> Result<Embedded, ApiError> {
    if texts.is_empty() || texts.len() > MOST_TEXTS {
        let message = format!(
            "{} texts are given, but must be from 1 to {MOST_TEXTS}",
            texts.len()
        );
        return Err(ApiError::invalid("input", message));
    }
    let count = texts.len();
    let (model, mut ticket, tokens) = block(move || {
        let begun = Instant::now();
        let (name, engine) = app.models.engine(model.as_deref())?;
        let spec = engine.model().spec().clone();
        let mut jobs = Vec::new();
        for text in texts {
            let options = EncodeOptions {
                add_special: true,
                parse_special: false,
            };
            let prompt = match text {
                Prompt::Text(text) => engine.model().tokenizer().encode(&text, options),
                Prompt::Tokens(tokens) => tokens,
                Prompt::Chat(_) => Vec::new(),
            };
            check_length(&prompt, engine.context_length(), spec.vocabulary)?;
            jobs.push(Job {
                prompt,
                work: Work::Embed,
                priority: manner.priority,
                deadline: manner.deadline.map(|allowed| begun + allowed),
            });
        }
        let tokens = jobs.iter().map(|job| job.prompt.len()).sum();
        Ok((name, engine.submit(jobs)?, tokens))
    })
    .await?;
    let mut vectors = vec![Vec::new(); count];
    let mut missing = count;
    while missing > 0 {
        match ticket.next().await {
            Some((index, Event::Embedding(vector))) => {
                vectors[index] = vector;
                missing -= 1;
            }
            Some((_, Event::Failed(error))) => return Err(error.into()),
            Some(_) => (),
            None => return Err(EngineError::ShuttingDown.into()),
        }
    }
    Ok(Embedded {
        model,
        vectors,
        tokens,
    })
}
