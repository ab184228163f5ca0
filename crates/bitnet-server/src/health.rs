//! Whether the server lives, whether it takes requests, and what it has counted.

use crate::{ApiError, Server, metrics};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    status: &'static str,
}

/// Whether the server lives.
#[utoipa::path(get, path = "/healthz", tag = "Server", responses((status = 200, body = Health)))]
pub(crate) async fn live() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether it takes requests.
#[utoipa::path(get, path = "/readyz", tag = "Server", responses((status = 200, body = Health), ApiError))]
pub(crate) async fn ready(State(server): State<Arc<Server>>) -> Result<Json<Health>, ApiError> {
    if server.is_draining() {
        return Err(ApiError::ending());
    }
    if let Some(id) = server.models.stopped() {
        let message = format!("the engine of {id:?} has stopped; POST /models/load begins it anew");
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("engine_stopped"));
    }
    server.named(None)?;
    Ok(live().await)
}

/// The same under llama.cpp's name.
#[utoipa::path(get, path = "/health", tag = "Server", responses((status = 200, body = Health), ApiError))]
pub(crate) async fn health(state: State<Arc<Server>>) -> Result<Json<Health>, ApiError> {
    ready(state).await
}

/// What the server has counted, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "Server",
    responses((status = 200, body = String, content_type = "text/plain"))
)]
pub(crate) async fn counted(State(server): State<Arc<Server>>) -> Response {
    let mut text = metrics::text(&server.models.counted());
    metrics::memory(&mut text, &server.memory.pressure());
    server.metrics.write(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

pub(crate) async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no route {}", uri.path()))
}

pub(crate) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} has no method {method}", uri.path()))
}
