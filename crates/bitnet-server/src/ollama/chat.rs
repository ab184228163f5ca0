//! `POST /api/chat`.

use super::{Failure, Options, Summary, error_line, now, refuse_images};
use crate::answer::Answer;
use crate::frame::Client;
use crate::json::{Json, value};
use crate::stream::{Chunks, End, Feed, Piece, Wire};
use crate::tools::{Call, Held, Tool};
use crate::turn::Turn;
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = OllamaChatRequest)]
pub(crate) struct Chat {
    model: String,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    /// True if left out.
    #[serde(default)]
    stream: Option<bool>,
    /// `"json"` or a JSON schema.
    #[serde(default)]
    format: Option<Value>,
    #[serde(default)]
    options: Option<Options>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = OllamaMessage)]
struct Message {
    role: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    images: Option<Vec<Value>>,
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>)]
    tool_calls: Option<Vec<Value>>,
    #[serde(default)]
    tool_name: Option<String>,
}

impl Message {
    /// In OpenAI's form, which the templates know.
    fn open(self) -> Result<Value, ApiError> {
        refuse_images(self.images.as_ref())?;
        let mut message = json!({"role": self.role, "content": self.content});
        if let Some(calls) = self.tool_calls.filter(|calls| !calls.is_empty()) {
            message["tool_calls"] = calls.into();
        }
        if let Some(name) = self.tool_name {
            message["name"] = name.into();
        }
        Ok(message)
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaChatted)]
pub(crate) struct Chatted {
    model: String,
    created_at: String,
    message: Said,
    done: bool,
    #[serde(flatten)]
    summary: Option<Summary>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaSaid)]
struct Said {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Called>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaCall)]
struct Called {
    function: CalledFunction,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaCallFunction)]
struct CalledFunction {
    name: String,
    #[schema(value_type = Object)]
    arguments: Value,
}

/// The next message of a conversation.
#[utoipa::path(
    post, path = "/api/chat", tag = "Ollama", request_body = Chat,
    responses(
        (status = 200, content((Chatted = "application/json"), (Chatted = "application/x-ndjson"))),
        Failure,
    )
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    body: Result<Json<Chat>, ApiError>,
) -> Result<Response, Failure> {
    let Json(chat) = body?;
    if chat.messages.is_empty() {
        let model = server.named(Some(&chat.model))?.card.id.clone();
        let summary = Some(Summary::of_nothing());
        let nothing = line(model, String::new(), Vec::new());
        return Ok(axum::Json(Chatted { done: true, summary, ..nothing }).into_response());
    }
    let turn = Turn {
        messages: chat.messages.into_iter().map(Message::open).collect::<Result<_, _>>()?,
        tools: chat.tools.unwrap_or_default().into_iter().map(|tool| tool.function).collect(),
        fields: chat.options.unwrap_or_default().fields(chat.model, chat.format)?,
        ..Turn::default()
    };
    let asked = turn.ask(&server, &client).await?;
    let form = Form { model: asked.model.card.id.clone(), held: Held::new(asked.tools.clone()) };
    if chat.stream.unwrap_or(true) {
        return Ok(Feed::new(asked.answers, form).response(Wire::Lines));
    }
    let mut answers = asked.answers.collect(1).await?;
    Ok(axum::Json(form.whole(answers.remove(0))).into_response())
}

struct Form {
    model: String,
    held: Held,
}

fn line(model: String, content: String, calls: Vec<Call>) -> Chatted {
    let called =
        |call: Call| Called { function: CalledFunction { name: call.name, arguments: call.arguments } };
    let tool_calls = calls.into_iter().map(called).collect();
    let message = Said { role: "assistant", content, tool_calls };
    Chatted { model, created_at: now(), message, done: false, summary: None }
}

impl Form {
    fn line(&self, content: String, calls: Vec<Call>) -> Chatted {
        line(self.model.clone(), content, calls)
    }

    fn whole(self, answer: Answer) -> Chatted {
        let (text, calls) = self.held.whole(answer.text);
        let summary = answer.end.map(|(reason, timings)| Summary::new(reason, &timings));
        Chatted { done: true, summary, ..line(self.model, text, calls) }
    }
}

impl Chunks for Form {
    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Value> {
        let text = self.held.push(piece.text);
        if text.is_empty() { Vec::new() } else { vec![value(&self.line(text, Vec::new()))] }
    }

    fn finished(&mut self, _: usize, end: End) -> Vec<Value> {
        let (rest, calls) = self.held.end();
        let held = !rest.is_empty() || !calls.is_empty();
        let more = held.then(|| value(&self.line(rest, calls)));
        let summary = Some(Summary::new(end.reason, &end.timings));
        let last = Chatted { done: true, summary, ..self.line(String::new(), Vec::new()) };
        more.into_iter().chain([value(&last)]).collect()
    }

    fn error(&self, error: &ApiError) -> Value {
        error_line(error)
    }
}
