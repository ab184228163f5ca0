//! `POST /v1/chat/completions`.

use super::{FINGERPRINT, MAX_LOGPROBS};
use crate::answer::{self, Answer, TimingsBody, Usage};
use crate::fields::Fields;
use crate::frame::{Client, fresh_id};
use crate::json::{Json, value};
use crate::stream::{Chunks, End, Feed, Piece, Wire};
use crate::tools::{Call, Choice, Held, Tool, Tools};
use crate::turn::{Asked, Turn};
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::engine::Logprob;
use bitnet_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = ChatRequest)]
pub(crate) struct Chat {
    /// Each has a `role` and a `content`: a text, or a list of parts of type `text`.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    #[serde(default)]
    logprobs: Option<bool>,
    /// At most 20.
    #[serde(default)]
    top_logprobs: Option<usize>,
    /// llama.cpp's word for both.
    #[serde(default)]
    n_probs: Option<usize>,
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    #[serde(default)]
    tool_choice: Option<Choice>,
    /// Variables for the model's chat template.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub fields: Fields,
}

#[derive(Serialize, ToSchema)]
struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: Vec<ChatChoice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsBody>,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, ToSchema)]
struct ChatMessage {
    role: &'static str,
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize, ToSchema)]
struct ToolCall {
    /// In a stream alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

#[derive(Serialize, ToSchema)]
struct CalledFunction {
    name: String,
    /// JSON as a text.
    arguments: String,
}

#[derive(Serialize, ToSchema)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
}

#[derive(Serialize, ToSchema)]
struct TokenLogprob {
    token: String,
    logprob: f64,
    /// `null` where the token is a part of a character.
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Serialize, ToSchema)]
struct TopLogprob {
    token: String,
    logprob: f64,
    bytes: Option<Vec<u8>>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsBody>,
}

#[derive(Serialize, ToSchema)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize, ToSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// The next message of a conversation, whole or as a stream.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI", request_body = Chat,
    responses(
        (status = 200, description = "The message, or chunks of it and `[DONE]`",
            content((ChatCompletion = "application/json"), (ChatChunk = "text/event-stream"))),
        ApiError,
    )
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    Json(chat): Json<Chat>,
) -> Result<Response, ApiError> {
    let streams = chat.fields.streams();
    let (asked, form) = chat.ask(&server, &client, None).await?;
    if streams {
        return Ok(Feed::new(asked.answers, form).response(Wire::Events));
    }
    let answers = asked.answers.collect(asked.choices).await?;
    Ok(axum::Json(form.whole(&answers)).into_response())
}

impl Chat {
    /// The message on its way, and what makes objects of it; they have `id`, or one of their own.
    pub async fn ask(
        self,
        server: &Arc<Server>,
        client: &Client,
        id: Option<String>,
    ) -> Result<(Asked, Form), ApiError> {
        let top = self.top_logprobs.or(self.n_probs);
        if top.is_some_and(|n| n > MAX_LOGPROBS) {
            let field = if self.top_logprobs.is_some() { "top_logprobs" } else { "n_probs" };
            return Err(ApiError::field(field, format!("{field} is at most {MAX_LOGPROBS}")));
        }
        let wanted = self.logprobs.unwrap_or(self.n_probs.is_some());
        let usage = self.fields.wants_usage();
        let turn = Turn {
            messages: self.messages,
            tools: self.tools.unwrap_or_default().into_iter().map(|tool| tool.function).collect(),
            choice: self.tool_choice,
            template: self.chat_template_kwargs.unwrap_or_default(),
            logprobs: wanted.then(|| top.unwrap_or(0)),
            stop: Vec::new(),
            fields: self.fields,
        };
        let asked = turn.ask(server, client).await?;
        let form = Form {
            id: id.unwrap_or_else(|| fresh_id("chatcmpl")),
            created: answer::now(),
            model: asked.model.card.id.clone(),
            tokenizer: Arc::clone(asked.model.tokenizer()?),
            usage: usage.then(Usage::default),
            held: (0..asked.choices).map(|_| Held::new(asked.tools.clone())).collect(),
            tools: asked.tools.clone(),
        };
        Ok((asked, form))
    }
}

/// What all objects of a response have in common.
pub(crate) struct Form {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// Counted where a stream is to end with it.
    usage: Option<Usage>,
    tools: Option<Arc<Tools>>,
    /// The text of each choice of a stream.
    held: Vec<Held>,
}

/// Calls as OpenAI writes them.
fn listed(calls: Vec<Call>, numbered: bool) -> Vec<ToolCall> {
    let one = |(index, call): (usize, Call)| ToolCall {
        index: numbered.then_some(index),
        id: call.id,
        kind: "function",
        function: CalledFunction { name: call.name, arguments: call.arguments.to_string() },
    };
    calls.into_iter().enumerate().map(one).collect()
}

impl Form {
    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices,
            usage: None,
            timings: None,
        }
    }

    fn delta(&self, index: usize, delta: Delta, logprobs: Option<ChatLogprobs>) -> Value {
        value(&self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason: None }]))
    }

    fn logprob(&self, logprob: &Logprob) -> TokenLogprob {
        let text = |id: u32| answer::token(&self.tokenizer, id);
        let top = |(id, logprob): &(u32, f64)| {
            let (token, bytes) = text(*id);
            TopLogprob { token, logprob: *logprob, bytes }
        };
        let (token, bytes) = text(logprob.id);
        let top_logprobs = logprob.top.iter().map(top).collect();
        TokenLogprob { token, logprob: logprob.logprob, bytes, top_logprobs }
    }

    fn logprobs(&self, all: &[Logprob]) -> Option<ChatLogprobs> {
        (!all.is_empty()).then(|| ChatLogprobs { content: all.iter().map(|l| self.logprob(l)).collect() })
    }

    fn whole(self, answers: &[Answer]) -> ChatCompletion {
        let mut usage = Usage::default();
        let choice = |(index, a): (usize, &Answer)| {
            if let Some((_, timings)) = &a.end {
                usage.add(timings, index == 0);
            }
            let (text, calls) = match &self.tools {
                None => (a.text.clone(), Vec::new()),
                Some(tools) => tools.calls(&a.text),
            };
            let finish_reason = if calls.is_empty() { a.reason() } else { Some("tool_calls") };
            let content = (calls.is_empty() || !text.is_empty()).then_some(text);
            let message = ChatMessage { role: "assistant", content, tool_calls: listed(calls, false) };
            ChatChoice { index, message, logprobs: self.logprobs(&a.logprobs), finish_reason }
        };
        let choices = answers.iter().enumerate().map(choice).collect();
        ChatCompletion {
            object: "chat.completion",
            created: self.created,
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
            timings: answers.first().and_then(Answer::timings),
            id: self.id,
            model: self.model,
        }
    }
}

impl Chunks for Form {
    fn begin(&mut self) -> Vec<Value> {
        let delta = || Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        (0..self.held.len()).map(|index| self.delta(index, delta(), None)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Value> {
        let text = self.held[index].push(piece.text);
        if text.is_empty() && piece.logprob.is_none() {
            return Vec::new();
        }
        let logprobs = self.logprobs(piece.logprob.as_slice());
        vec![self.delta(index, Delta { content: Some(text), ..Delta::default() }, logprobs)]
    }

    fn finished(&mut self, index: usize, end: End) -> Vec<Value> {
        if let Some(usage) = &mut self.usage {
            usage.add(&end.timings, index == 0);
        }
        let mut chunks = Vec::new();
        let (rest, calls) = self.held[index].end();
        let finish_reason = Some(if calls.is_empty() { end.reason.name() } else { "tool_calls" });
        if !rest.is_empty() || !calls.is_empty() {
            let content = (!rest.is_empty()).then_some(rest);
            let delta = Delta { content, tool_calls: listed(calls, true), ..Delta::default() };
            chunks.push(self.delta(index, delta, None));
        }
        let choice = ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason };
        let last = ChatChunk { timings: Some((&end.timings).into()), ..self.chunk(vec![choice]) };
        chunks.push(value(&last));
        chunks
    }

    fn end(&mut self) -> Vec<Value> {
        let usage =
            self.usage.map(|usage| value(&ChatChunk { usage: Some(usage), ..self.chunk(Vec::new()) }));
        usage.into_iter().collect()
    }
}
