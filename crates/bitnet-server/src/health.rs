//! Whether the server lives, whether it takes requests, and what it has counted.

use crate::{ApiError, Server};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::sync::Arc;

pub(crate) async fn live() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

pub(crate) async fn ready(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    if server.is_draining() {
        return Err(ApiError::ending());
    }
    server.model()?;
    Ok(live().await)
}

pub(crate) async fn metrics(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let model = server.model()?;
    let text = server.metrics.text(&model.card, &model.worker.stats());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

pub(crate) async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no route {}", uri.path()))
}

pub(crate) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} has no method {method}", uri.path()))
}
