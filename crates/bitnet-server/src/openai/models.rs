//! `GET /v1/models`.

use crate::state::Served;
use crate::{ApiError, Server};
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The model that it is an adapter of.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    meta: Meta,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelMeta)]
struct Meta {
    n_ctx_train: usize,
    n_params: u64,
    /// Bytes of all weights.
    size: u64,
    ftype: String,
}

impl From<&Served> for Model {
    fn from(Served { card, base, .. }: &Served) -> Self {
        Self {
            id: card.id.clone(),
            object: "model",
            created: card.created,
            owned_by: "bitnet",
            parent: base.clone(),
            meta: Meta {
                n_ctx_train: card.context,
                n_params: card.params,
                size: card.size,
                ftype: card.ftype.clone(),
            },
        }
    }
}

/// The models that are served, each with its adapters behind it.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = List), ApiError))]
pub(crate) async fn list(State(server): State<Arc<Server>>) -> Result<Json<List>, ApiError> {
    let served = server.models.served();
    // A client that asks while all of them are loading has to come back.
    server.named(None)?;
    Ok(Json(List { object: "list", data: served.iter().map(|model| (&**model).into()).collect() }))
}

/// One of the models, or of their adapters.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path, description = "Its name")),
    responses((status = 200, body = Model), ApiError)
)]
pub(crate) async fn one(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    Ok(Json((&*server.named(Some(&id))?).into()))
}
