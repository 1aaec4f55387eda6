//! Reading requests.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use http_body_util::BodyExt;
use hyper::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::ask::Manner;
use crate::engine::Priority;
use crate::error::ApiError;

/// A request's JSON and how urgent it is.
pub(crate) struct Posted<T> {
    pub(crate) body: T,
    pub(crate) manner: Manner,
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Posted<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let manner = manner(request.headers(), app.options.answer_timeout)?;
        let bytes = match tokio::time::timeout(
            app.options.read_timeout,
            read(request.into_body(), app.options.body_bytes),
        )
        .await
        {
            Ok(bytes) => bytes?,
            Err(_) => {
                let message = "the request's body did not arrive in time; send it at once";
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message));
            }
        };
        let body = serde_json::from_slice(&bytes).map_err(|error| {
            let what: String = error.to_string().chars().take(300).collect();
            ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("the request's body is not as it should be: {what}"),
            )
        })?;
        Ok(Posted { body, manner })
    }
}

/// Times the limit that a body that is too large is read on, so that its sender comes to see the answer.
const PATIENCE: usize = 8;

async fn read(mut body: axum::body::Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut total = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let message = format!("the request's body cannot be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, message)
        })?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        total = total.saturating_add(data.len());
        if total <= limit {
            bytes.extend_from_slice(data);
        } else if total > limit.saturating_mul(PATIENCE) {
            break;
        }
    }
    match total <= limit {
        true => Ok(bytes),
        false => {
            let message = format!("the request has more than {limit} bytes; send less");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
    }
}

/// `x-ondine-deadline-ms` and `x-ondine-priority`.
fn manner(headers: &HeaderMap, longest: Duration) -> Result<Manner, ApiError> {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or("?").trim().to_owned())
    };
    let deadline = match text("x-ondine-deadline-ms").map(|text| text.parse::<u64>()) {
        None => longest,
        Some(Ok(milliseconds)) if milliseconds > 0 => {
            Duration::from_millis(milliseconds).min(longest)
        }
        Some(_) => {
            let message = "x-ondine-deadline-ms must be a whole number of milliseconds above 0";
            return Err(ApiError::invalid("x-ondine-deadline-ms", message));
        }
    };
    let priority = match text("x-ondine-priority").as_deref() {
        None | Some("interactive") => Priority::Interactive,
        Some("background") => Priority::Background,
        Some(_) => {
            let message = "x-ondine-priority must be interactive or background";
            return Err(ApiError::invalid("x-ondine-priority", message));
        }
    };
    let task = text("x-ondine-task");
    if task
        .as_ref()
        .is_some_and(|task| task.is_empty() || task.len() > 64)
    {
        let message = "x-ondine-task must name a class of tasks in at most 64 characters";
        return Err(ApiError::invalid("x-ondine-task", message));
    }
    Ok(Manner {
        priority,
        task,
        deadline: Some(deadline),
    })
}

/// Runs what may take long on a thread that may block.
pub(crate) async fn block<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|_| {
        let message = "the request brought the server to fail; send another one";
        Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
    })
}
