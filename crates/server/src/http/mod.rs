//! Everything about HTTP that is the same for all endpoints.

mod body;
mod guard;
mod listen;
mod socket;
mod stream;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::StatusCode;
use hyper::header::CONTENT_LENGTH;
use serde_json::json;

pub(crate) use body::{Posted, block};
pub use listen::Server;
pub(crate) use stream::{Writer, respond};

use crate::app::App;
use crate::engine::figures;
use crate::error::{ApiError, Sentence};
use crate::{ollama, openai, page, redact};

/// All routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::handle))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/responses", post(openai::responses::handle))
        .route("/v1/embeddings", post(openai::embeddings::handle))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*name}", get(openai::models::one))
        .route("/v1/redact", post(redact::handle))
        .route("/api/chat", post(ollama::chat::handle))
        .route("/api/generate", post(ollama::generate::handle))
        .route("/api/embed", post(ollama::embed))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::running))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/", get(page::index))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .layer(from_fn_with_state(app.clone(), count))
        .with_state(app.clone())
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let loaded: Vec<String> = app
        .models
        .loaded()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    Json(json!({"status": "ok", "loaded": loaded})).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let loaded = app.models.loaded();
    let models: Vec<figures::Named<'_>> = loaded
        .iter()
        .map(|(name, engine)| (name.as_str(), engine.figures(), engine.waiting()))
        .collect();
    let mut out = String::new();
    figures::write(&mut out, &models);
    app.placement.figures(&mut out);
    out.push_str("# HELP ondine_responses_total Responses by status code.\n# TYPE ondine_responses_total counter\n");
    if let Ok(responses) = app.responses.lock() {
        for (code, count) in responses.iter() {
            out.push_str(&format!(
                "ondine_responses_total{{code=\"{code}\"}} {count}\n"
            ));
        }
    }
    ([("content-type", "text/plain; version=0.0.4")], out).into_response()
}

async fn unknown(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(100).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("there is no {path:?} here; see docs/server.md for what there is"),
    )
    .with_code("unknown_url")
}

async fn wrong_method(request: Request) -> ApiError {
    let method: String = request.method().as_str().chars().take(20).collect();
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not possible here; see docs/server.md for what is"),
    )
}

/// Counts responses, and gives errors the form that Ollama's clients read where they ask.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let is_ollama = request.uri().path().starts_with("/api/");
    let mut response = next.run(request).await;
    if let Ok(mut responses) = app.responses.lock() {
        *responses.entry(response.status().as_u16()).or_default() += 1;
    }
    if let (true, Some(Sentence(message))) =
        (is_ollama, response.extensions_mut().remove::<Sentence>())
    {
        let body = json!({"error": message}).to_string();
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = body.into();
    }
    response
}
