//! `POST /v1/completions`.

use super::{FINGERPRINT, MAX_LOGPROBS};
use crate::answer::{self, Answer, Answers, TimingsBody, Usage};
use crate::fields::Fields;
use crate::frame::{Client, fresh_id};
use crate::json::{Json, value};
use crate::prompt::{self, Prompts};
use crate::stream::{Chunks, End, Feed, Piece, Wire};
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::engine::{Logprob, Request};
use bitnet_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[schema(as = CompletionRequest)]
pub(crate) struct Completion {
    #[serde(default)]
    #[schema(value_type = Prompts, required = true)]
    prompt: Value,
    /// Give the prompt back in front of its answer.
    #[serde(default)]
    echo: Option<bool>,
    /// Likeliest tokens to be told with each token, at most 20; llama.cpp calls it `n_probs`.
    #[serde(default, alias = "n_probs")]
    logprobs: Option<usize>,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    best_of: Option<usize>,
    #[serde(flatten)]
    pub fields: Fields,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct TextCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: Vec<TextChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsBody>,
}

#[derive(Serialize, ToSchema)]
struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<Listed>,
    finish_reason: Option<&'static str>,
}

/// Continuations of one or several prompts, whole or as a stream.
#[utoipa::path(
    post, path = "/v1/completions", tag = "OpenAI", request_body = Completion,
    responses(
        (status = 200, description = "The texts, or chunks of them and `[DONE]`",
            content((TextCompletion = "application/json"), (TextCompletion = "text/event-stream"))),
        ApiError,
    )
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    Json(completion): Json<Completion>,
) -> Result<Response, ApiError> {
    let streams = completion.fields.streams();
    let (answers, form) = completion.ask(&server, &client, None).await?;
    if streams {
        return Ok(Feed::new(answers, form).response(Wire::Events));
    }
    let answers = answers.collect(form.offsets.len()).await?;
    Ok(axum::Json(form.whole(&answers)?).into_response())
}

impl Completion {
    /// The texts on their way, and what makes objects of them; they have `id`, or one of their own.
    pub async fn ask(
        self,
        server: &Arc<Server>,
        client: &Client,
        id: Option<String>,
    ) -> Result<(Answers, Form), ApiError> {
        let model = server.named(self.fields.model.as_deref())?;
        if self.suffix.is_some_and(|s| !s.is_empty()) {
            return Err(ApiError::absent("suffix", "the model writes no text between two others"));
        }
        if self.best_of.is_some_and(|best| best != self.fields.n.unwrap_or(1)) {
            return Err(ApiError::absent("best_of", "best_of is not chosen here; ask for n answers"));
        }
        if self.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
            return Err(ApiError::field("logprobs", format!("logprobs is at most {MAX_LOGPROBS}")));
        }
        let (usage, echo) = (self.fields.wants_usage(), self.echo.unwrap_or(false));
        let prompts = prompt::encode(&model, Prompts::read(self.prompt, "prompt")?).await?;
        let mut request = self.fields.request(server, &model, client).await?;
        request.logprobs = self.logprobs;
        request.prompt_logprobs = self.logprobs.filter(|_| echo);
        let form = Form {
            id: id.unwrap_or_else(|| fresh_id("cmpl")),
            created: answer::now(),
            model: model.card.id.clone(),
            tokenizer: Arc::clone(model.tokenizer()?),
            choices: request.choices,
            echo: if echo { prompts.clone() } else { Vec::new() },
            offsets: vec![0; prompts.len().saturating_mul(request.choices).min(server.options.answers_limit)],
            usage: usage.then(Usage::default),
        };
        let requests = prompts.into_iter().map(|prompt| Request { prompt, ..request.clone() }).collect();
        Ok((Answers::submit(server, &model, requests, client).await?, form))
    }
}

/// What all objects of a response have in common.
pub(crate) struct Form {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// Answers to each prompt.
    choices: usize,
    /// The prompts, where they come back with their answers.
    echo: Vec<Vec<u32>>,
    /// Letters that each answer's stream has given.
    offsets: Vec<usize>,
    /// Counted where a stream is to end with it.
    usage: Option<Usage>,
}

/// Tokens with their log-probabilities, in OpenAI's older form.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = TextLogprobs)]
struct Listed {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    #[schema(value_type = Vec<Option<Object>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins, in letters.
    text_offset: Vec<usize>,
}

impl Listed {
    /// A token at a letter of the text; the first of a prompt has no probability.
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, logprob: Option<&Logprob>, offset: &mut usize) {
        let text = |id: u32| answer::token(tokenizer, id).0;
        let token = text(id);
        self.text_offset.push(*offset);
        *offset += token.chars().count();
        self.tokens.push(token);
        self.token_logprobs.push(logprob.map(|l| l.logprob));
        self.top_logprobs.push(logprob.map(|l| {
            let own = (l.id, l.logprob);
            // Different tokens may have one text; the likeliest keeps it.
            let mut top = Map::new();
            for (id, logprob) in l.top.iter().copied().chain([own]) {
                top.entry(text(id)).or_insert_with(|| logprob.into());
            }
            top
        }));
    }
}

impl Form {
    fn object(&self, choices: Vec<TextChoice>) -> TextCompletion {
        TextCompletion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices,
            usage: None,
            timings: None,
        }
    }

    fn text(&self, index: usize, text: String, logprobs: Option<Listed>) -> Value {
        value(&self.object(vec![TextChoice { index, text, logprobs, finish_reason: None }]))
    }

    /// The prompt that a choice answers, where it comes back.
    fn echoed(&self, choice: usize) -> Result<Option<(&[u32], String)>, ApiError> {
        let Some(ids) = self.echo.get(choice / self.choices) else { return Ok(None) };
        let text = self.tokenizer.decode(ids, true).map_err(|e| ApiError::internal(e.to_string()))?;
        Ok(Some((ids, text)))
    }

    fn whole(&self, answers: &[Answer]) -> Result<TextCompletion, ApiError> {
        let (mut usage, mut choices) = (Usage::default(), Vec::new());
        for (index, a) in answers.iter().enumerate() {
            if let Some((_, timings)) = &a.end {
                usage.add(timings, index % self.choices == 0);
            }
            let (mut listed, mut offset, mut text) = (Listed::default(), 0, String::new());
            // A prompt is computed once for all of its answers.
            let of_prompt = &answers[index / self.choices * self.choices].prompt;
            if let Some((ids, prompt)) = self.echoed(index)? {
                text = prompt;
                let logprobs = [None].into_iter().chain(of_prompt.iter().map(Some));
                ids.iter()
                    .zip(logprobs)
                    .for_each(|(id, l)| listed.push(&self.tokenizer, *id, l, &mut offset));
            }
            text += &a.text;
            a.logprobs.iter().for_each(|l| listed.push(&self.tokenizer, l.id, Some(l), &mut offset));
            let asked = !a.logprobs.is_empty() || !of_prompt.is_empty();
            let logprobs = asked.then_some(listed);
            choices.push(TextChoice { index, text, logprobs, finish_reason: a.reason() });
        }
        let timings = answers.first().and_then(Answer::timings);
        Ok(TextCompletion { usage: Some(usage), timings, ..self.object(choices) })
    }
}

impl Chunks for Form {
    fn begin(&mut self) -> Vec<Value> {
        let count = self.offsets.len();
        let prompts = (0..count).filter_map(|choice| {
            let (_, text) = self.echoed(choice).ok()??;
            Some(self.text(choice, text, None))
        });
        prompts.collect()
    }

    fn prompt(&mut self, index: usize, logprobs: &[Logprob]) -> Vec<Value> {
        let mut listed = Listed::default();
        for l in logprobs {
            listed.push(&self.tokenizer, l.id, Some(l), &mut self.offsets[index]);
        }
        vec![self.text(index, String::new(), Some(listed))]
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Value> {
        if piece.text.is_empty() && piece.logprob.is_none() {
            return Vec::new();
        }
        let logprobs = piece.logprob.map(|l| {
            let mut listed = Listed::default();
            listed.push(&self.tokenizer, l.id, Some(&l), &mut self.offsets[index]);
            listed
        });
        vec![self.text(index, piece.text, logprobs)]
    }

    fn finished(&mut self, index: usize, end: End) -> Vec<Value> {
        if let Some(usage) = &mut self.usage {
            usage.add(&end.timings, index.is_multiple_of(self.choices));
        }
        let finish_reason = Some(end.reason.name());
        let choice = TextChoice { index, text: String::new(), logprobs: None, finish_reason };
        vec![value(&TextCompletion { timings: Some((&end.timings).into()), ..self.object(vec![choice]) })]
    }

    fn end(&mut self) -> Vec<Value> {
        let usage =
            self.usage.map(|usage| value(&TextCompletion { usage: Some(usage), ..self.object(Vec::new()) }));
        usage.into_iter().collect()
    }
}
