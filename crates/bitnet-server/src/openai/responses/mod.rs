//! `POST /v1/responses`, without state: nothing is stored, and nothing can be referred to.

mod input;
mod stream;

use crate::answer::{self, Answer};
use crate::fields::{Fields, ResponseFormat};
use crate::frame::{Client, fresh_id};
use crate::json::Json;
use crate::stream::{Feed, Wire};
use crate::tools::{Call, Choice, Function, Held, Named};
use crate::turn::Turn;
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::{FinishReason, Timings};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponsesRequest)]
pub(crate) struct Ask {
    #[serde(default)]
    model: Option<String>,
    /// A text, or a list of messages, calls and what came of them.
    input: Value,
    /// What the model is told before all.
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    max_output_tokens: Option<i64>,
    #[serde(default)]
    temperature: Option<f64>,
    #[serde(default)]
    top_p: Option<f64>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    text: Option<TextOptions>,
    #[serde(default)]
    tools: Option<Vec<FlatTool>>,
    #[serde(default)]
    tool_choice: Option<FlatChoice>,
    #[serde(default)]
    previous_response_id: Option<String>,
    #[serde(default)]
    background: Option<bool>,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponsesText)]
struct TextOptions {
    #[serde(default)]
    format: Option<Format>,
}

#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponsesFormat)]
enum Format {
    Text,
    JsonObject,
    JsonSchema {
        #[schema(value_type = Object)]
        schema: Value,
    },
}

/// A function; no other tools are known here.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponsesTool)]
enum FlatTool {
    Function(Function),
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = ResponsesToolChoice)]
enum FlatChoice {
    Word(String),
    Named { name: String },
}

#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Response)]
struct Object {
    id: String,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    error: Option<Value>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    model: String,
    output: Vec<Item>,
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    store: bool,
    temperature: Option<f64>,
    top_p: Option<f64>,
    tool_choice: &'static str,
    #[schema(value_type = Vec<Object>)]
    tools: Vec<Value>,
    truncation: &'static str,
    usage: Option<ResponseUsage>,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ResponseIncomplete)]
struct Incomplete {
    reason: &'static str,
}

#[derive(Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponseItem)]
enum Item {
    Message { id: String, status: &'static str, role: &'static str, content: Vec<Part> },
    FunctionCall { id: String, call_id: String, name: String, arguments: String, status: &'static str },
}

#[derive(Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponsePart)]
enum Part {
    OutputText {
        text: String,
        #[schema(value_type = Vec<Object>)]
        annotations: [(); 0],
        #[schema(value_type = Vec<Object>)]
        logprobs: [(); 0],
    },
}

#[derive(Clone, Copy, Serialize, ToSchema)]
struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
struct InputDetails {
    cached_tokens: usize,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
struct OutputDetails {
    reasoning_tokens: usize,
}

impl From<&Timings> for ResponseUsage {
    fn from(t: &Timings) -> Self {
        let input_tokens = t.prompt_tokens + t.cached_tokens;
        Self {
            input_tokens,
            input_tokens_details: InputDetails { cached_tokens: t.cached_tokens },
            output_tokens: t.tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: input_tokens + t.tokens,
        }
    }
}

impl Part {
    fn text(text: String) -> Self {
        Self::OutputText { text, annotations: [], logprobs: [] }
    }
}

impl Item {
    fn message(id: String, status: &'static str, text: Option<String>) -> Self {
        Self::Message { id, status, role: "assistant", content: text.map(Part::text).into_iter().collect() }
    }

    fn call(call: Call) -> Self {
        Self::FunctionCall {
            id: fresh_id("fc"),
            call_id: call.id,
            name: call.name,
            arguments: call.arguments.to_string(),
            status: "completed",
        }
    }
}

/// An answer in the form of OpenAI's Responses, whole or as a stream of named events.
#[utoipa::path(
    post, path = "/v1/responses", tag = "OpenAI", request_body = Ask,
    responses(
        (status = 200, content((Object = "application/json"), (String = "text/event-stream"))),
        ApiError,
    )
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    Json(ask): Json<Ask>,
) -> Result<Response, ApiError> {
    let streams = ask.stream.unwrap_or(false);
    let (turn, mut object) = ask.turn()?;
    let asked = turn.ask(&server, &client).await?;
    object.model.clone_from(&asked.model.card.id);
    let held = Held::new(asked.tools.clone());
    if streams {
        let form = stream::Form::new(object, held);
        return Ok(Feed::new(asked.answers, form).response(Wire::NamedEvents));
    }
    let mut answers = asked.answers.collect(1).await?;
    Ok(axum::Json(object.whole(held, answers.remove(0))).into_response())
}

impl Ask {
    /// What the model is asked, and the object that will tell of its answer.
    fn turn(self) -> Result<(Turn, Object), ApiError> {
        if self.previous_response_id.is_some() {
            let message = "nothing is stored here; send the whole conversation as input";
            return Err(ApiError::absent("previous_response_id", message));
        }
        if self.background.unwrap_or(false) {
            return Err(ApiError::absent("background", "an answer is made while its request waits"));
        }
        let tools: Vec<Function> =
            self.tools.unwrap_or_default().into_iter().map(|FlatTool::Function(f)| f).collect();
        let choice = self.tool_choice.map(|choice| match choice {
            FlatChoice::Word(word) => Choice::Word(word),
            FlatChoice::Named { name } => Choice::Named { function: Named { name } },
        });
        let response_format = self.text.and_then(|text| text.format).map(|format| match format {
            Format::Text => ResponseFormat::Text,
            Format::JsonObject => ResponseFormat::JsonObject { schema: None },
            Format::JsonSchema { schema } => ResponseFormat::JsonObject { schema: Some(schema) },
        });
        let object = Object {
            id: fresh_id("resp"),
            object: "response",
            created_at: answer::now(),
            status: "in_progress",
            error: None,
            incomplete_details: None,
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens,
            model: String::new(),
            output: Vec::new(),
            parallel_tool_calls: true,
            previous_response_id: None,
            store: false,
            temperature: self.temperature,
            top_p: self.top_p,
            tool_choice: match &choice {
                Some(Choice::Word(word)) if word == "none" => "none",
                Some(Choice::Word(word)) if word == "auto" => "auto",
                None => "auto",
                Some(_) => "required",
            },
            tools: tools.iter().map(listed).collect(),
            truncation: "disabled",
            usage: None,
            metadata: self.metadata.unwrap_or_default(),
        };
        let turn = Turn {
            messages: input::messages(self.instructions, self.input)?,
            tools,
            choice,
            fields: Fields {
                model: self.model,
                max_tokens: self.max_output_tokens,
                temperature: self.temperature,
                top_p: self.top_p,
                response_format,
                ..Fields::default()
            },
            ..Turn::default()
        };
        Ok((turn, object))
    }
}

fn listed(tool: &Function) -> Value {
    let mut value = crate::json::value(tool);
    value["type"] = "function".into();
    value["strict"] = false.into();
    value
}

impl Object {
    /// The end of an answer.
    fn finish(&mut self, reason: FinishReason, timings: &Timings) {
        (self.status, self.incomplete_details) = match reason {
            FinishReason::Stop => ("completed", None),
            FinishReason::Length => ("incomplete", Some(Incomplete { reason: "max_output_tokens" })),
            reason => ("incomplete", Some(Incomplete { reason: reason.name() })),
        };
        self.usage = Some(timings.into());
    }

    fn whole(mut self, held: Held, answer: Answer) -> Self {
        if let Some((reason, timings)) = &answer.end {
            self.finish(*reason, timings);
        }
        let (text, calls) = held.whole(answer.text);
        if !text.is_empty() || calls.is_empty() {
            self.output.push(Item::message(fresh_id("msg"), "completed", Some(text)));
        }
        self.output.extend(calls.into_iter().map(Item::call));
        self
    }
}
