//! `POST /api/embed`.

use super::Failure;
use crate::embed::{Embedded, embed};
use crate::frame::Client;
use crate::json::Json;
use crate::prompt::{self, Prompts};
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = OllamaEmbedRequest)]
pub(crate) struct Embed {
    model: String,
    /// A text, or a list of texts.
    #[serde(default)]
    #[schema(value_type = Prompts, required = true)]
    input: Value,
    /// Leave out what the context does not hold, which is done if nothing is said.
    #[serde(default)]
    truncate: Option<bool>,
    #[serde(default)]
    dimensions: Option<usize>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaEmbedded)]
pub(crate) struct Embeddings {
    model: String,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

/// A vector for each text.
#[utoipa::path(
    post, path = "/api/embed", tag = "Ollama", request_body = Embed,
    responses((status = 200, body = Embeddings), Failure)
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    body: Result<Json<Embed>, ApiError>,
) -> Result<axum::Json<Embeddings>, Failure> {
    let begin = Instant::now();
    let Json(ask) = body?;
    let model = server.named(Some(&ask.model))?;
    let mut prompts = prompt::encode(&model, Prompts::read(ask.input, "input")?).await?;
    if ask.truncate.unwrap_or(true) {
        prompts.iter_mut().for_each(|prompt| prompt.truncate(model.capacity));
    }
    let Embedded { vectors, usage } = embed(&server, &model, &client, prompts, ask.dimensions).await?;
    Ok(axum::Json(Embeddings {
        model: model.card.id.clone(),
        embeddings: vectors,
        total_duration: u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX),
        load_duration: 0,
        prompt_eval_count: usage.prompt_tokens,
    }))
}
