//! `/v1/redact`: what personal data a text holds, and what it would be without. Nothing leaves the device.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use ondine_hybrid::RestoreMap;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::http::{Posted, block};

#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    text: String,
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    posted: Posted<Body>,
) -> Result<Json<Value>, ApiError> {
    block(move || {
        let text = posted.body.text;
        let findings = app.scanner.scan(&text);
        let mut map = RestoreMap::default();
        let redacted = map.redact(&text, &findings);
        let spans: Vec<Value> = findings
            .iter()
            .map(|finding| {
                json!({
                    "entity": finding.entity.name(),
                    "start": finding.start,
                    "end": finding.end,
                    "score": finding.score,
                    "confidence": finding.confidence,
                })
            })
            .collect();
        let placeholders: serde_json::Map<String, Value> = map
            .entries()
            .map(|(name, original)| (name.to_owned(), original.into()))
            .collect();
        Ok(Json(
            json!({"text": redacted, "spans": spans, "placeholders": placeholders}),
        ))
    })
    .await
}
