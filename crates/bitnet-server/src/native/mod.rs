//! llama.cpp's own routes: text, ids, and continuations.

pub(crate) mod completion;

use crate::aside::aside;
use crate::json::Json;
use crate::{ApiError, Server, turn};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = TokenizeRequest)]
pub(crate) struct Tokenize {
    content: String,
    /// Put before the text what begins every text.
    #[serde(default)]
    add_special: bool,
    /// Give each token's text too.
    #[serde(default)]
    with_pieces: bool,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Tokens {
    tokens: Vec<Token>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Token {
    Id(u32),
    Piece { id: u32, piece: String },
}

/// Ids of a text.
#[utoipa::path(
    post, path = "/tokenize", tag = "llama.cpp", request_body = Tokenize,
    responses((status = 200, body = Tokens), ApiError)
)]
pub(crate) async fn tokenize(
    State(server): State<Arc<Server>>,
    Json(request): Json<Tokenize>,
) -> Result<axum::Json<Tokens>, ApiError> {
    let tokenizer = Arc::clone(server.named(request.model.as_deref())?.tokenizer()?);
    let work = aside(move || {
        let ids = tokenizer
            .encode(&request.content, request.add_special)
            .map_err(|e| ApiError::internal(e.to_string()))?;
        let token = |id: u32| match request.with_pieces {
            false => Token::Id(id),
            true => Token::Piece { id, piece: crate::answer::token(&tokenizer, id).0 },
        };
        Ok(Tokens { tokens: ids.into_iter().map(token).collect() })
    });
    Ok(axum::Json(work.await?))
}

#[derive(Deserialize, ToSchema)]
#[schema(as = DetokenizeRequest)]
pub(crate) struct Detokenize {
    tokens: Vec<u32>,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Content {
    content: String,
}

/// The text of ids.
#[utoipa::path(
    post, path = "/detokenize", tag = "llama.cpp", request_body = Detokenize,
    responses((status = 200, body = Content), ApiError)
)]
pub(crate) async fn detokenize(
    State(server): State<Arc<Server>>,
    Json(request): Json<Detokenize>,
) -> Result<axum::Json<Content>, ApiError> {
    let model = server.named(request.model.as_deref())?;
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= model.vocab) {
        let message = format!("id {id} is outside the vocabulary of {}", model.vocab);
        return Err(ApiError::field("tokens", message));
    }
    let content = model.tokenizer()?.decode(&request.tokens, false);
    Ok(axum::Json(Content { content: content.map_err(|e| ApiError::internal(e.to_string()))? }))
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ApplyTemplateRequest)]
pub(crate) struct ApplyTemplate {
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    #[serde(default)]
    #[schema(value_type = Object)]
    chat_template_kwargs: Map<String, Value>,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct RenderedPrompt {
    prompt: String,
}

/// A conversation in the model's own form.
#[utoipa::path(
    post, path = "/apply-template", tag = "llama.cpp", request_body = ApplyTemplate,
    responses((status = 200, body = RenderedPrompt), ApiError)
)]
pub(crate) async fn apply_template(
    State(server): State<Arc<Server>>,
    Json(request): Json<ApplyTemplate>,
) -> Result<axum::Json<RenderedPrompt>, ApiError> {
    let model = server.named(request.model.as_deref())?;
    let rendered = turn::prompt(&model, request.messages, request.chat_template_kwargs, None);
    Ok(axum::Json(RenderedPrompt { prompt: rendered.await?.0 }))
}
