//! What a client is told when its request cannot be served.

use axum::Json;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use ondine_runtime::GenerateError;
use ondine_runtime::backend::BackendError;
use ondine_runtime::chat_template::TemplateError;
use ondine_runtime::constraint::ConstraintError;
use ondine_runtime::sample::SampleError;
use serde_json::{Value, json};

use crate::engine::EngineError;

/// An error in the form of the OpenAI interface: one sentence, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field of the request that is at fault.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// Seconds after which to try again.
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// The field `param` of the request is at fault.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.to_owned()),
            ..ApiError::new(StatusCode::BAD_REQUEST, message)
        }
    }

    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Nobody may answer.
    pub(crate) fn no_place(receipt: &ondine_hybrid::route::Receipt) -> Self {
        let lost = receipt.candidates.iter().map(|candidate| {
            let why = json!(candidate.lost);
            format!(
                "{}: {}",
                candidate.name,
                why.as_str().unwrap_or_default().replace('_', " ")
            )
        });
        let message = format!(
            "no place may answer this ({}); change the policy or the request",
            lost.collect::<Vec<_>>().join(", ")
        );
        ApiError::new(StatusCode::FORBIDDEN, message).with_code("no_place")
    }

    /// Everybody who was asked failed.
    pub(crate) fn all_failed() -> Self {
        let message = "nobody who may answer could; the receipt says why, try again later";
        ApiError::new(StatusCode::BAD_GATEWAY, message).with_code("no_answer")
    }

    /// As many requests as possible are on their way.
    pub(crate) fn busy() -> Self {
        ApiError {
            retry_after: Some(1),
            ..ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests are on their way; try again",
            )
            .with_code("queue_full")
        }
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// The sentence of an error response, for interfaces that put it elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Sentence(pub(crate) String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        response.extensions_mut().insert(Sentence(self.message));
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Busy { retry_after, .. } => ApiError {
                retry_after: Some(retry_after.as_secs()),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("queue_full")
            },
            EngineError::ShuttingDown => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("shutting_down")
            }
            EngineError::Deadline => {
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("deadline_exceeded")
            }
            EngineError::Failed(_) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        ApiError::invalid("messages", error.to_string())
    }
}

impl From<SampleError> for ApiError {
    fn from(error: SampleError) -> Self {
        let param = match &error {
            SampleError::Option { name, .. } => *name,
            _ => "logit_bias",
        };
        ApiError::invalid(param, error.to_string())
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::EmptyPrompt => ApiError::invalid("prompt", error.to_string()),
            GenerateError::Sample(error) => error.into(),
            GenerateError::Backend(BackendError::ContextFull { .. }) => {
                ApiError::invalid("messages", error.to_string())
            }
            _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

/// What is wrong with a constraint, said of the field that asked for it.
pub(crate) fn constraint_error(param: &str, error: &ConstraintError) -> ApiError {
    ApiError::invalid(param, error.to_string()).with_code("unsupported_constraint")
}
