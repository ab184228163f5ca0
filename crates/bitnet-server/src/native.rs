//! llama.cpp's routes for text and ids.

use crate::answer::Json;
use crate::openai::chat;
use crate::{ApiError, Server};
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

#[derive(Deserialize)]
pub(crate) struct Tokenize {
    content: String,
    #[serde(default)]
    add_special: bool,
    #[serde(default)]
    with_pieces: bool,
}

pub(crate) async fn tokenize(
    State(server): State<Arc<Server>>,
    Json(request): Json<Tokenize>,
) -> Result<axum::Json<Value>, ApiError> {
    let tokenizer = Arc::clone(server.model()?.tokenizer()?);
    let work = tokio::task::spawn_blocking(move || {
        let ids = tokenizer
            .encode(&request.content, request.add_special)
            .map_err(|e| ApiError::internal(e.to_string()))?;
        Ok::<_, ApiError>(match request.with_pieces {
            false => json!({"tokens": ids}),
            true => {
                let piece = |id: &u32| json!({"id": id, "piece": crate::answer::token(&tokenizer, *id).0});
                json!({"tokens": ids.iter().map(piece).collect::<Vec<_>>()})
            }
        })
    });
    Ok(axum::Json(work.await.map_err(|e| ApiError::internal(e.to_string()))??))
}

#[derive(Deserialize)]
pub(crate) struct Detokenize {
    tokens: Vec<u32>,
}

pub(crate) async fn detokenize(
    State(server): State<Arc<Server>>,
    Json(request): Json<Detokenize>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = server.model()?;
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= model.vocab) {
        let message = format!("id {id} is outside the vocabulary of {}", model.vocab);
        return Err(ApiError::field("tokens", message));
    }
    let text = model.tokenizer()?.decode(&request.tokens, false);
    Ok(axum::Json(json!({"content": text.map_err(|e| ApiError::internal(e.to_string()))?})))
}

#[derive(Deserialize)]
pub(crate) struct ApplyTemplate {
    messages: Vec<Value>,
    #[serde(default)]
    chat_template_kwargs: Map<String, Value>,
}

pub(crate) async fn apply_template(
    State(server): State<Arc<Server>>,
    Json(request): Json<ApplyTemplate>,
) -> Result<axum::Json<Value>, ApiError> {
    let work = tokio::task::spawn_blocking(move || {
        chat::prompt(&server, &request.messages, &request.chat_template_kwargs)
    });
    let (text, _) = work.await.map_err(|e| ApiError::internal(e.to_string()))??;
    Ok(axum::Json(json!({"prompt": text})))
}
