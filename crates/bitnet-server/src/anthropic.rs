//! Anthropic's Messages, without state: `POST /v1/messages` and `/v1/messages/count_tokens`.

use crate::answer::Answer;
use crate::fields::Fields;
use crate::frame::{Client, fresh_id};
use crate::json::Json;
use crate::stream::{Chunks, Feed, Wire};
use crate::turn::{self, Turn};
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::FinishReason;
use bitnet_inference::engine::{Event, News};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::openapi::RefOr;
use utoipa::{IntoResponses, ToSchema};

#[derive(Deserialize, ToSchema)]
#[schema(as = MessageRequest)]
pub(crate) struct Message {
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    /// A text, or a list of parts of type `text`.
    #[serde(default)]
    system: Value,
    #[serde(default)]
    stop_sequences: Vec<String>,
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    tools: Vec<Value>,
    #[serde(flatten)]
    fields: Fields,
}

impl Message {
    /// The conversation as chat templates know it: the system's text is its first message.
    fn turn(self) -> Result<Turn, ApiError> {
        if !self.tools.is_empty() {
            return Err(ApiError::absent("tools", "tools cannot be called here"));
        }
        let system = match self.system {
            Value::Null => None,
            content => Some(json!({"role": "system", "content": content})),
        };
        let messages = system.into_iter().chain(self.messages).collect();
        Ok(Turn {
            messages,
            stop: self.stop_sequences,
            fields: Fields { n: None, ..self.fields },
            ..Turn::default()
        })
    }
}

/// An error in Anthropic's form.
pub(crate) struct Refusal(ApiError);

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(e: E) -> Self {
        Self(e.into())
    }
}

/// The body of an error.
#[derive(Serialize, ToSchema)]
#[schema(as = MessageError)]
pub(crate) struct RefusalBody<'a> {
    #[serde(rename = "type")]
    object: &'static str,
    error: RefusalDetail<'a>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = MessageErrorDetail)]
struct RefusalDetail<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
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
    crate::json::value(&RefusalBody {
        object: "error",
        error: RefusalDetail { kind, message: &error.message },
    })
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.with_body(&refusal(&self.0))
    }
}

impl IntoResponses for Refusal {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        ApiError::responses_with("MessageError")
    }
}

/// The next message of a conversation, whole or as a stream of named events.
#[utoipa::path(
    post, path = "/v1/messages", tag = "Anthropic", request_body = Message,
    responses(
        (status = 200, content((Object = "application/json"), (String = "text/event-stream"))),
        Refusal,
    )
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    body: Result<Json<Message>, ApiError>,
) -> Result<Response, Refusal> {
    let Json(message) = body?;
    let streams = message.fields.streams();
    let asked = message.turn()?.ask(&server, &client).await?;
    let form = Form { id: fresh_id("msg"), model: asked.model.card.id.clone(), tokens: asked.tokens };
    if streams {
        return Ok(Feed::new(asked.answers, form).response(Wire::NamedEvents));
    }
    let answers = asked.answers.collect(1).await?;
    Ok(axum::Json(form.whole(&answers[0])).into_response())
}

#[derive(Serialize, ToSchema)]
pub(crate) struct TokenCount {
    input_tokens: usize,
}

/// How many tokens a conversation has.
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", tag = "Anthropic", request_body = Message,
    responses((status = 200, body = TokenCount), Refusal)
)]
pub(crate) async fn count_tokens(
    State(server): State<Arc<Server>>,
    body: Result<Json<Message>, ApiError>,
) -> Result<axum::Json<TokenCount>, Refusal> {
    let Json(message) = body?;
    let model = server.named(message.fields.model.as_deref())?;
    let (_, ids) = turn::prompt(&model, message.turn()?.messages, Map::new(), None).await?;
    Ok(axum::Json(TokenCount { input_tokens: ids.len() }))
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
            News::Prompt(_) | News::Piece { .. } => Vec::new(),
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

    fn error(&self, error: &ApiError) -> Value {
        refusal(error)
    }
}
