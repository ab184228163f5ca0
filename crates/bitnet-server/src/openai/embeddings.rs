//! `POST /v1/embeddings`.

use crate::answer::Usage;
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
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = EmbeddingRequest)]
pub(crate) struct Ask {
    #[serde(default)]
    model: Option<String>,
    /// A text, a list of texts, ids, or a list of lists of ids.
    #[serde(default)]
    #[schema(value_type = Prompts, required = true)]
    input: Value,
    #[serde(default)]
    encoding_format: Option<Encoding>,
    /// Keep so many of the first dimensions.
    #[serde(default)]
    dimensions: Option<usize>,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = EmbeddingEncoding)]
enum Encoding {
    #[default]
    Float,
    /// The floats' bytes, lowest first.
    Base64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingList)]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Serialize, ToSchema)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = EmbeddingVector)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, ToSchema)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl From<&Usage> for EmbeddingUsage {
    fn from(usage: &Usage) -> Self {
        Self { prompt_tokens: usage.prompt_tokens, total_tokens: usage.prompt_tokens }
    }
}

impl Encoding {
    fn vector(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Floats(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(base64::encode(bytes))
            }
        }
    }
}

/// A vector for each text.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI", request_body = Ask,
    responses((status = 200, body = List), ApiError)
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    Json(ask): Json<Ask>,
) -> Result<axum::Json<List>, ApiError> {
    let model = server.named(ask.model.as_deref())?;
    let prompts = prompt::encode(&model, Prompts::read(ask.input, "input")?).await?;
    let Embedded { vectors, usage } = embed(&server, &model, &client, prompts, ask.dimensions).await?;
    let encoding = ask.encoding_format.unwrap_or_default();
    let one = |(index, vector)| Embedding { object: "embedding", index, embedding: encoding.vector(vector) };
    Ok(axum::Json(List {
        object: "list",
        data: vectors.into_iter().enumerate().map(one).collect(),
        model: model.card.id.clone(),
        usage: (&usage).into(),
    }))
}
