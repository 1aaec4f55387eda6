//! `/v1/models`.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::models::Offer;

pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app.models.offers().map(model).collect();
    Json(json!({"object": "list", "data": models}))
}

pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    app.models.find(Some(&name)).map(|offer| Json(model(offer)))
}

fn model(offer: &Offer) -> Value {
    let created = offer
        .modified
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    json!({"id": offer.name, "object": "model", "created": created, "owned_by": "ondine"})
}
