//! `POST /api/generate`.

use super::{Failure, Options, Summary, error_line, now, refuse_images};
use crate::answer::{Answer, Answers};
use crate::frame::Client;
use crate::json::{Json, value};
use crate::prompt::{self, Prompt, Prompts};
use crate::stream::{Chunks, End, Feed, Piece, Wire};
use crate::turn;
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = OllamaGenerateRequest)]
pub(crate) struct Generate {
    model: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    system: Option<String>,
    /// The prompt goes to the model as it is, without its chat template.
    #[serde(default)]
    raw: bool,
    /// Ids of what came before, as an earlier answer gave them.
    #[serde(default)]
    context: Option<Vec<u32>>,
    /// True if left out.
    #[serde(default)]
    stream: Option<bool>,
    /// `"json"` or a JSON schema.
    #[serde(default)]
    format: Option<Value>,
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    images: Option<Vec<Value>>,
    #[serde(default)]
    options: Option<Options>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaGenerated)]
pub(crate) struct Generated {
    model: String,
    created_at: String,
    response: String,
    done: bool,
    /// Ids of the prompt and the answer, to be given as `context`; in the last line alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Vec<u32>>,
    #[serde(flatten)]
    summary: Option<Summary>,
}

/// The continuation of a prompt.
#[utoipa::path(
    post, path = "/api/generate", tag = "Ollama", request_body = Generate,
    responses(
        (status = 200, content((Generated = "application/json"), (Generated = "application/x-ndjson"))),
        Failure,
    )
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    body: Result<Json<Generate>, ApiError>,
) -> Result<Response, Failure> {
    let Json(generate) = body?;
    refuse_images(generate.images.as_ref())?;
    if generate.suffix.is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::absent("suffix", "the model writes no text between two others").into());
    }
    let model = server.named(Some(&generate.model))?;
    let name = model.card.id.clone();
    if generate.prompt.is_empty() && generate.context.is_none() {
        let form = Form { model: name, ids: Vec::new() };
        let summary = Some(Summary::of_nothing());
        return Ok(axum::Json(Generated { done: true, summary, ..form.line(String::new()) }).into_response());
    }
    let templated = !generate.raw && model.template().is_ok();
    let mut ids = if templated {
        let system = generate.system.map(|text| json!({"role": "system", "content": text}));
        let user = json!({"role": "user", "content": generate.prompt});
        let messages = system.into_iter().chain([user]).collect();
        turn::prompt(&model, messages, Map::new(), None).await?.1
    } else {
        let mut all = prompt::encode(&model, Prompts(vec![Prompt::Text(generate.prompt)])).await?;
        all.pop().unwrap_or_default()
    };
    ids.splice(0..0, generate.context.unwrap_or_default());
    let fields = generate.options.unwrap_or_default().fields(generate.model, generate.format)?;
    let mut request = fields.request(&server, &model, &client).await?;
    request.prompt.clone_from(&ids);
    let answers = Answers::submit(&server, &model, vec![request], &client).await?;
    let form = Form { model: name, ids };
    if generate.stream.unwrap_or(true) {
        return Ok(Feed::new(answers, form).response(Wire::Lines));
    }
    let mut answers = answers.collect(1).await?;
    Ok(axum::Json(form.whole(answers.remove(0))).into_response())
}

struct Form {
    model: String,
    /// Of the prompt, and of the answer as far as it has come.
    ids: Vec<u32>,
}

impl Form {
    fn line(&self, response: String) -> Generated {
        let model = self.model.clone();
        Generated { model, created_at: now(), response, done: false, context: None, summary: None }
    }

    fn whole(mut self, answer: Answer) -> Generated {
        self.ids.extend(answer.ids);
        let summary = answer.end.map(|(reason, timings)| Summary::new(reason, &timings));
        Generated { done: true, summary, ..self.line(answer.text) }.with_context(self.ids)
    }
}

impl Generated {
    fn with_context(self, ids: Vec<u32>) -> Self {
        Self { context: Some(ids), ..self }
    }
}

impl Chunks for Form {
    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Value> {
        self.ids.extend(piece.id);
        if piece.text.is_empty() { Vec::new() } else { vec![value(&self.line(piece.text))] }
    }

    fn finished(&mut self, _: usize, end: End) -> Vec<Value> {
        let summary = Some(Summary::new(end.reason, &end.timings));
        let last = Generated { done: true, summary, ..self.line(String::new()) };
        vec![value(&last.with_context(std::mem::take(&mut self.ids)))]
    }

    fn error(&self, error: &ApiError) -> Value {
        error_line(error)
    }
}
