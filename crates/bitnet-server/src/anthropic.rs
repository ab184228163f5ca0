//! Anthropic's Messages, without state: `POST /v1/messages` and `/v1/messages/count_tokens`.

use crate::answer::{self, Answer, Answers, Chunks, Fields, Json};
use crate::frame::{Client, fresh_id};
use crate::openai::chat;
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::FinishReason;
use bitnet_inference::engine::{Event, News};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

#[derive(Deserialize)]
pub(crate) struct Message {
    messages: Vec<Value>,
    #[serde(default)]
    system: Value,
    #[serde(default)]
    stop_sequences: Vec<String>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(flatten)]
    fields: Fields,
}

impl Message {
    /// The conversation as chat templates know it: the system's text is its first message.
    fn messages(&self) -> Vec<Value> {
        let system = match &self.system {
            Value::Null => None,
            content => Some(json!({"role": "system", "content": content})),
        };
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    async fn prompt(&self, server: &Arc<Server>) -> Result<Vec<u32>, Refusal> {
        if !self.tools.is_empty() {
            return Err(ApiError::absent("tools", "tools cannot be called here").into());
        }
        let (server, messages) = (Arc::clone(server), self.messages());
        let work = tokio::task::spawn_blocking(move || chat::prompt(&server, &messages, &Map::new(), None));
        Ok(work.await.map_err(|e| ApiError::internal(e.to_string()))??.1)
    }
}

/// An error in Anthropic's form.
pub(crate) struct Refusal(ApiError);

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(e: E) -> Self {
        Self(e.into())
    }
}

fn refusal(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = refusal(&self.0);
        let (parts, _) = self.0.into_response().into_parts();
        // Status and headers are the same; only the body has another form.
        let mut response = axum::Json(body).into_response();
        *response.status_mut() = parts.status;
        for name in [axum::http::header::RETRY_AFTER, axum::http::header::WWW_AUTHENTICATE] {
            if let Some(value) = parts.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response
    }
}

/// A body whose faults are told in Anthropic's form.
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    body: Result<Json<Message>, ApiError>,
) -> Result<Response, Refusal> {
    let Json(mut message) = body?;
    let model = server.named(message.fields.model.as_deref())?;
    let prompt = message.prompt(&server).await?;
    let streams = message.fields.streams();
    let stops = std::mem::take(&mut message.stop_sequences);
    let mut request = message.fields.request(&server, model, &client)?;
    request.stop.extend(stops);
    (request.prompt, request.choices) = (prompt, 1);
    let tokens = request.prompt.len();
    let answers = Answers::submit(&server, model, vec![request]).await?;
    let form = Form { id: fresh_id("msg"), model: model.card.id.clone(), tokens };
    if streams {
        return Ok(answer::stream(answers, form));
    }
    let answers = answers.collect(1).await?;
    Ok(axum::Json(form.whole(&answers[0])).into_response())
}

pub(crate) async fn count_tokens(
    State(server): State<Arc<Server>>,
    body: Result<Json<Message>, ApiError>,
) -> Result<axum::Json<Value>, Refusal> {
    let Json(message) = body?;
    server.named(message.fields.model.as_deref())?;
    Ok(axum::Json(json!({"input_tokens": message.prompt(&server).await?.len()})))
}

struct Form {
    id: String,
    model: String,
    /// Of the prompt.
    tokens: usize,
}

/// Anthropic's word for why an answer ended.
fn stop_reason(reason: FinishReason, stop: Option<&str>) -> &'static str {
    match (reason, stop) {
        (FinishReason::Stop, Some(_)) => "stop_sequence",
        (FinishReason::Stop, None) => "end_turn",
        (FinishReason::Length, _) => "max_tokens",
        (reason, _) => reason.name(),
    }
}

impl Form {
    fn message(&self, content: Value, reason: Value, stop: Value, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": reason, "stop_sequence": stop, "usage": usage,
        })
    }

    fn whole(&self, answer: &Answer) -> Value {
        let content = json!([{"type": "text", "text": answer.text}]);
        let (reason, usage) = match &answer.end {
            None => (Value::Null, Value::Null),
            Some((reason, t)) => (
                stop_reason(*reason, answer.stop.as_deref()).into(),
                json!({
                    "input_tokens": t.prompt_tokens, "cache_read_input_tokens": t.cached_tokens,
                    "output_tokens": t.tokens,
                }),
            ),
        };
        self.message(content, reason, json!(answer.stop), usage)
    }
}

impl Chunks for Form {
    fn begin(&mut self) -> Vec<Value> {
        let usage = json!({"input_tokens": self.tokens, "output_tokens": 0});
        let message = self.message(json!([]), Value::Null, Value::Null, usage);
        vec![
            json!({"type": "message_start", "message": message}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        ]
    }

    fn event(&mut self, event: Event) -> Result<Vec<Value>, ApiError> {
        Ok(match event.news {
            News::Piece { text, .. } if !text.is_empty() => vec![
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
            ],
            News::Prompt(_) | News::Embedding(_) | News::Piece { .. } => Vec::new(),
            News::Finished { reason, stop, timings } => {
                let word = stop_reason(reason, stop.as_deref());
                let usage = json!({"output_tokens": timings.tokens});
                let delta = json!({"stop_reason": word, "stop_sequence": stop});
                vec![
                    json!({"type": "content_block_stop", "index": 0}),
                    json!({"type": "message_delta", "delta": delta, "usage": usage}),
                ]
            }
            News::Failed(e) => return Err(ApiError::from(&*e)),
        })
    }

    fn end(&mut self) -> Vec<Value> {
        vec![json!({"type": "message_stop"})]
    }

    fn line(value: &Value) -> String {
        format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or("error"))
    }

    fn error(error: &ApiError) -> Value {
        refusal(error)
    }

    const LAST: &'static str = "";
}
