//! `GET /api/tags`, `POST /api/show` and `GET /api/version`.

use super::Failure;
use crate::json::Json;
use crate::options::ModelCard;
use crate::{ApiError, Server};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaTags)]
pub(crate) struct Tags {
    models: Vec<Tag>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaModel)]
struct Tag {
    name: String,
    model: String,
    modified_at: String,
    size: u64,
    digest: String,
    details: Details,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaDetails)]
struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: String,
}

fn created(card: &ModelCard) -> String {
    let seconds = i64::try_from(card.created).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

impl From<&ModelCard> for Details {
    fn from(card: &ModelCard) -> Self {
        let billions = card.params as f64 / 1e9;
        let parameter_size =
            if billions >= 1.0 { format!("{billions:.1}B") } else { format!("{:.0}M", billions * 1e3) };
        Self {
            parent_model: "",
            format: "gguf",
            family: "bitnet".to_owned(),
            families: vec!["bitnet".to_owned()],
            parameter_size,
            quantization_level: card.ftype.clone(),
        }
    }
}

impl From<&ModelCard> for Tag {
    fn from(card: &ModelCard) -> Self {
        // What tells one loaded model from another; its weights are not read again for it.
        let digest = Sha256::digest(format!("{}/{}/{}/{}", card.id, card.params, card.size, card.ftype));
        Self {
            name: card.id.clone(),
            model: card.id.clone(),
            modified_at: created(card),
            size: card.size,
            digest: digest.iter().map(|b| format!("{b:02x}")).collect(),
            details: card.into(),
        }
    }
}

/// The models that are served.
#[utoipa::path(get, path = "/api/tags", tag = "Ollama", responses((status = 200, body = Tags), Failure))]
pub(crate) async fn tags(State(server): State<Arc<Server>>) -> Result<axum::Json<Tags>, Failure> {
    server.named(None)?;
    Ok(axum::Json(Tags { models: server.models.served().iter().map(|model| (&model.card).into()).collect() }))
}

#[derive(Deserialize, ToSchema)]
#[schema(as = OllamaShowRequest)]
pub(crate) struct Show {
    /// `name` in older clients.
    #[serde(alias = "name")]
    model: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaShown)]
pub(crate) struct Shown {
    modelfile: String,
    parameters: String,
    template: String,
    details: Details,
    #[schema(value_type = Object)]
    model_info: Map<String, Value>,
    capabilities: Vec<&'static str>,
    modified_at: String,
}

/// What a model is.
#[utoipa::path(
    post, path = "/api/show", tag = "Ollama", request_body = Show,
    responses((status = 200, body = Shown), Failure)
)]
pub(crate) async fn show(
    State(server): State<Arc<Server>>,
    body: Result<Json<Show>, ApiError>,
) -> Result<axum::Json<Shown>, Failure> {
    let model = server.named(Some(&body?.0.model))?;
    let card = &model.card;
    let info = [
        ("general.architecture", json!("bitnet")),
        ("general.parameter_count", json!(card.params)),
        ("general.name", json!(card.id)),
        ("bitnet.context_length", json!(card.context)),
    ];
    let template = model.template().map(|t| t.source().to_owned()).unwrap_or_default();
    let mut capabilities = vec!["completion"];
    if !template.is_empty() {
        capabilities.push("tools");
    }
    Ok(axum::Json(Shown {
        modelfile: format!("FROM {}\n", card.id),
        parameters: String::new(),
        template,
        details: card.into(),
        model_info: info.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        capabilities,
        modified_at: created(card),
    }))
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaVersion)]
pub(crate) struct Version {
    version: &'static str,
}

/// The version of the server.
#[utoipa::path(get, path = "/api/version", tag = "Ollama", responses((status = 200, body = Version)))]
pub(crate) async fn version() -> axum::Json<Version> {
    axum::Json(Version { version: env!("CARGO_PKG_VERSION") })
}
