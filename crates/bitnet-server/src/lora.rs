//! `/lora-adapters`: llama.cpp's routes for adapters.

use crate::answer::{Json, Lora};
use crate::{ApiError, Server};
use axum::extract::State;
use bitnet_inference::engine::AdapterUse;
use serde_json::{Value, json};
use std::sync::Arc;

/// The adapters that are loaded, each with its scale for requests that do not say.
pub(crate) async fn list(State(server): State<Arc<Server>>) -> Result<axum::Json<Value>, ApiError> {
    let adapters = server.model()?.worker.with(|engine| engine.adapters().to_vec()).await?;
    let all =
        adapters.iter().map(|a| json!({"id": a.id, "path": a.path.display().to_string(), "scale": a.scale}));
    Ok(axum::Json(all.collect()))
}

/// Sets those scales; as in llama.cpp, adapters that are not named get 0.
pub(crate) async fn set(
    State(server): State<Arc<Server>>,
    Json(scales): Json<Vec<Lora>>,
) -> Result<axum::Json<Value>, ApiError> {
    let scales: Vec<AdapterUse> = scales.into_iter().map(AdapterUse::from).collect();
    server.model()?.worker.with(move |engine| engine.set_adapter_scales(&scales)).await??;
    Ok(axum::Json(json!({"success": true})))
}
