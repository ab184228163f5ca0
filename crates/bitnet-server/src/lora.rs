//! `/lora-adapters`: llama.cpp's routes for adapters.

use crate::fields::Lora;
use crate::json::Json;
use crate::{ApiError, Server};
use axum::extract::State;
use bitnet_inference::engine::AdapterUse;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(crate) struct Adapter {
    id: u32,
    path: String,
    scale: f32,
}

/// The adapters of the first model, each with its scale for requests that do not say.
#[utoipa::path(
    get, path = "/lora-adapters", tag = "llama.cpp", responses((status = 200, body = Vec<Adapter>), ApiError)
)]
pub(crate) async fn list(State(server): State<Arc<Server>>) -> Result<axum::Json<Vec<Adapter>>, ApiError> {
    let adapters = server.named(None)?.worker.with(|engine| engine.adapters().to_vec()).await?;
    let one = |a: &bitnet_inference::engine::AdapterInfo| Adapter {
        id: a.id,
        path: a.path.display().to_string(),
        scale: a.scale,
    };
    Ok(axum::Json(adapters.iter().map(one).collect()))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AdaptersSet {
    success: bool,
}

/// Sets those scales; as in llama.cpp, adapters that are not named get 0.
#[utoipa::path(
    post, path = "/lora-adapters", tag = "llama.cpp", request_body = Vec<Lora>,
    responses((status = 200, body = AdaptersSet), ApiError)
)]
pub(crate) async fn set(
    State(server): State<Arc<Server>>,
    Json(scales): Json<Vec<Lora>>,
) -> Result<axum::Json<AdaptersSet>, ApiError> {
    let scales: Vec<AdapterUse> = scales.into_iter().map(AdapterUse::from).collect();
    server.named(None)?.worker.with(move |engine| engine.set_adapter_scales(&scales)).await??;
    Ok(axum::Json(AdaptersSet { success: true }))
}
