//! Anthropic's Messages, without state: `POST /v1/messages` and `/v1/messages/count_tokens`.

mod input;

use crate::answer::Answer;
use crate::fields::Fields;
use crate::frame::{Client, fresh_id};
use crate::json::Json;
use crate::stream::{Chunks, End, Feed, Piece, Wire};
use crate::tools::{Call, Choice, Function, Held, Named};
use crate::turn::{self, Turn};
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::FinishReason;
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
    tools: Vec<Tool>,
    #[serde(default)]
    tool_choice: Option<ToolChoice>,
    #[serde(flatten)]
    fields: Fields,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = MessageTool)]
struct Tool {
    name: String,
    #[serde(default)]
    description: Option<String>,
    /// A JSON schema.
    #[schema(value_type = Object)]
    input_schema: Value,
}

#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = MessageToolChoice)]
enum ToolChoice {
    Auto,
    Any,
    None,
    Tool { name: String },
}

impl Message {
    fn turn(self) -> Result<Turn, ApiError> {
        let function = |tool: Tool| Function {
            name: tool.name,
            description: tool.description,
            parameters: Some(tool.input_schema),
        };
        Ok(Turn {
            messages: input::messages(self.system, self.messages)?,
            tools: self.tools.into_iter().map(function).collect(),
            choice: self.tool_choice.map(|choice| match choice {
                ToolChoice::Auto => Choice::Word("auto".to_owned()),
                ToolChoice::Any => Choice::Word("required".to_owned()),
                ToolChoice::None => Choice::Word("none".to_owned()),
                ToolChoice::Tool { name } => Choice::Named { function: Named { name } },
            }),
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
        403 => "permission_error",
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
        (status = 200, content((Reply = "application/json"), (String = "text/event-stream"))),
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
    let form = Form {
        id: fresh_id("msg"),
        model: asked.model.card.id.clone(),
        tokens: asked.tokens,
        held: Held::new(asked.tools.clone()),
        blocks: 0,
        speaks: false,
    };
    if streams {
        return Ok(Feed::new(asked.answers, form).response(Wire::NamedEvents));
    }
    let mut answers = asked.answers.collect(1).await?;
    Ok(axum::Json(form.whole(answers.remove(0))).into_response())
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
    let turn = message.turn()?;
    let tools = turn.tools(&model)?;
    let (_, ids) = turn::prompt(&model, turn.messages, Map::new(), tools).await?;
    Ok(axum::Json(TokenCount { input_tokens: ids.len() }))
}

struct Form {
    id: String,
    model: String,
    /// Of the prompt.
    tokens: usize,
    held: Held,
    /// Blocks of a stream that have ended.
    blocks: usize,
    /// Whether a block of text is open.
    speaks: bool,
}

/// Anthropic's word for why an answer ended.
fn stop_reason(reason: FinishReason, stop: Option<&str>, calls: bool) -> &'static str {
    match (reason, stop) {
        (FinishReason::Stop, _) if calls => "tool_use",
        (FinishReason::Stop, Some(_)) => "stop_sequence",
        (FinishReason::Stop, None) => "end_turn",
        (FinishReason::Length, _) => "max_tokens",
        (reason, _) => reason.name(),
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Message)]
struct Reply {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: String,
    content: Vec<Block>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = MessageBlock)]
enum Block {
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[schema(value_type = Object)]
        input: Value,
    },
}

#[derive(Default, Serialize, ToSchema)]
struct MessageUsage {
    input_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_read_input_tokens: Option<usize>,
    output_tokens: usize,
}

impl Form {
    fn message(&self) -> Reply {
        Reply {
            id: self.id.clone(),
            kind: "message",
            role: "assistant",
            model: self.model.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage { input_tokens: self.tokens, ..MessageUsage::default() },
        }
    }

    fn whole(self, answer: Answer) -> Reply {
        let mut reply = self.message();
        let (text, calls) = self.held.whole(answer.text);
        if let Some((reason, t)) = &answer.end {
            reply.stop_reason = Some(stop_reason(*reason, answer.stop.as_deref(), !calls.is_empty()));
            reply.usage = MessageUsage {
                input_tokens: t.prompt_tokens,
                cache_read_input_tokens: Some(t.cached_tokens),
                output_tokens: t.tokens,
            };
        }
        if !text.is_empty() || calls.is_empty() {
            reply.content.push(Block::Text { text });
        }
        let used = |call: Call| Block::ToolUse { id: call.id, name: call.name, input: call.arguments };
        reply.content.extend(calls.into_iter().map(used));
        Reply { stop_sequence: answer.stop, ..reply }
    }

    /// Events that say more of the open text, which they open if need be.
    fn text(&mut self, text: &str) -> Vec<Value> {
        let index = self.blocks;
        let empty = Block::Text { text: String::new() };
        let begin = json!({"type": "content_block_start", "index": index, "content_block": empty});
        let delta = json!({"type": "text_delta", "text": text});
        let more = json!({"type": "content_block_delta", "index": index, "delta": delta});
        let opened = !std::mem::replace(&mut self.speaks, true);
        opened.then_some(begin).into_iter().chain((!text.is_empty()).then_some(more)).collect()
    }

    fn end_block(&mut self) -> Value {
        self.blocks += 1;
        json!({"type": "content_block_stop", "index": self.blocks - 1})
    }

    fn call(&mut self, call: Call) -> [Value; 3] {
        let index = self.blocks;
        let block = Block::ToolUse { id: call.id, name: call.name, input: json!({}) };
        let delta = json!({"type": "input_json_delta", "partial_json": call.arguments.to_string()});
        [
            json!({"type": "content_block_start", "index": index, "content_block": block}),
            json!({"type": "content_block_delta", "index": index, "delta": delta}),
            self.end_block(),
        ]
    }
}

impl Chunks for Form {
    fn begin(&mut self) -> Vec<Value> {
        vec![json!({"type": "message_start", "message": self.message()})]
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Value> {
        let text = self.held.push(piece.text);
        if text.is_empty() { Vec::new() } else { self.text(&text) }
    }

    fn finished(&mut self, _: usize, end: End) -> Vec<Value> {
        let (rest, calls) = self.held.end();
        let called = !calls.is_empty();
        // An answer without a word is an empty block.
        let mut events =
            if !rest.is_empty() || !(called || self.speaks) { self.text(&rest) } else { Vec::new() };
        if self.speaks {
            events.push(self.end_block());
        }
        for call in calls {
            events.extend(self.call(call));
        }
        let word = stop_reason(end.reason, end.stop.as_deref(), called);
        let usage = json!({"output_tokens": end.timings.tokens});
        let delta = json!({"stop_reason": word, "stop_sequence": end.stop});
        events.push(json!({"type": "message_delta", "delta": delta, "usage": usage}));
        events
    }

    fn end(&mut self) -> Vec<Value> {
        vec![json!({"type": "message_stop"})]
    }

    fn error(&self, error: &ApiError) -> Value {
        refusal(error)
    }
}
