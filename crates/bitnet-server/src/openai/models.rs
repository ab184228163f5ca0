//! `GET /v1/models`.

use crate::options::ModelCard;
use crate::{ApiError, Server};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use std::sync::Arc;

fn object(card: &ModelCard) -> Value {
    json!({
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "bitnet",
        "meta": {"n_ctx_train": card.context, "n_params": card.params, "size": card.size, "ftype": card.ftype},
    })
}

pub(crate) async fn list(State(server): State<Arc<Server>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": [object(&server.model()?.card)]})))
}

pub(crate) async fn one(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(object(&server.named(Some(&id))?.card)))
}
