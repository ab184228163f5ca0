//! `POST /completion`: llama-server's own route.

use crate::answer::{self, Answer, Answers, TimingsBody};
use crate::fields::Fields;
use crate::frame::Client;
use crate::json::{Json, value};
use crate::prompt::{self, Prompts};
use crate::stream::{self, Chunks, End, Feed, Wire};
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::engine::{Logprob, Request};
use bitnet_inference::{FinishReason, Timings};
use bitnet_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;

/// Likeliest tokens that can be asked for.
const MAX_PROBS: usize = 20;

#[derive(Deserialize, ToSchema)]
#[schema(as = NativeCompletionRequest)]
pub(crate) struct Completion {
    #[serde(default)]
    #[schema(value_type = Prompts, required = true)]
    prompt: Value,
    /// Likeliest tokens to be told with each token, at most 20.
    #[serde(default)]
    n_probs: Option<usize>,
    /// Give the answer's ids too.
    #[serde(default)]
    return_tokens: bool,
    #[serde(flatten)]
    fields: Fields,
}

#[derive(Serialize, ToSchema)]
#[schema(as = NativeCompletion)]
struct Whole {
    index: usize,
    content: String,
    tokens: Vec<u32>,
    id_slot: i32,
    stop: bool,
    model: String,
    tokens_predicted: usize,
    tokens_evaluated: usize,
    tokens_cached: usize,
    truncated: bool,
    stop_type: &'static str,
    stopping_word: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    completion_probabilities: Vec<Probabilities>,
    timings: TimingsBody,
}

#[derive(Serialize, ToSchema)]
#[schema(as = NativePiece)]
struct Piece {
    index: usize,
    content: String,
    tokens: Vec<u32>,
    id_slot: i32,
    stop: bool,
    tokens_predicted: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    completion_probabilities: Vec<Probabilities>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = NativeProbabilities)]
struct Probabilities {
    #[serde(flatten)]
    token: Probability,
    top_logprobs: Vec<Probability>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = NativeProbability)]
struct Probability {
    id: u32,
    token: String,
    bytes: Option<Vec<u8>>,
    logprob: f64,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = NativeCompletions)]
enum Reply {
    One(Box<Whole>),
    Many(Vec<Whole>),
}

/// The continuation of a prompt, or of each of several.
#[utoipa::path(
    post, path = "/completion", tag = "llama.cpp", request_body = Completion,
    responses(
        (status = 200, content((Reply = "application/json"), (Piece = "text/event-stream"))),
        ApiError,
    )
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    Json(completion): Json<Completion>,
) -> Result<Response, ApiError> {
    let model = server.named(completion.fields.model.as_deref())?;
    if completion.n_probs.is_some_and(|n| n > MAX_PROBS) {
        return Err(ApiError::field("n_probs", format!("n_probs is at most {MAX_PROBS}")));
    }
    let streams = completion.fields.streams();
    let many = completion.prompt.as_array().is_some_and(|list| !list.first().is_some_and(Value::is_number));
    let prompts = prompt::encode(&model, Prompts::read(completion.prompt, "prompt")?).await?;
    let mut request = completion.fields.request(&server, &model, &client).await?;
    request.logprobs = completion.n_probs.filter(|n| *n > 0);
    let answers = prompts.len().saturating_mul(request.choices);
    let form = Form {
        model: model.card.id.clone(),
        tokenizer: Arc::clone(model.tokenizer()?),
        tokens: completion.return_tokens,
        predicted: vec![0; answers.min(server.options.answers_limit)],
    };
    let many = many || answers > 1;
    let requests = prompts.into_iter().map(|prompt| Request { prompt, ..request.clone() }).collect();
    let answers = Answers::submit(&server, &model, requests, &client).await?;
    if streams {
        return Ok(Feed::new(answers, form).response(Wire::OpenEvents));
    }
    let answers = answers.collect(form.predicted.len()).await?;
    let mut all: Vec<Whole> = answers.into_iter().enumerate().map(|(i, a)| form.whole(i, a)).collect();
    let reply = match all.pop() {
        Some(one) if !many => Reply::One(Box::new(one)),
        last => Reply::Many(all.into_iter().chain(last).collect()),
    };
    Ok(axum::Json(reply).into_response())
}

struct Form {
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// Whether ids are given.
    tokens: bool,
    /// Tokens of each answer so far.
    predicted: Vec<usize>,
}

impl Form {
    fn probability(&self, id: u32, logprob: f64) -> Probability {
        let (token, bytes) = answer::token(&self.tokenizer, id);
        Probability { id, token, bytes, logprob }
    }

    fn probabilities(&self, all: &[Logprob]) -> Vec<Probabilities> {
        let one = |l: &Logprob| Probabilities {
            token: self.probability(l.id, l.logprob),
            top_logprobs: l.top.iter().map(|(id, logprob)| self.probability(*id, *logprob)).collect(),
        };
        all.iter().map(one).collect()
    }

    fn last(&self, index: usize, reason: FinishReason, stop: Option<String>, t: &Timings) -> Whole {
        Whole {
            index,
            content: String::new(),
            tokens: Vec::new(),
            id_slot: -1,
            stop: true,
            model: self.model.clone(),
            tokens_predicted: t.tokens,
            tokens_evaluated: t.prompt_tokens + t.cached_tokens,
            tokens_cached: t.cached_tokens,
            truncated: false,
            stop_type: match (reason, &stop) {
                (FinishReason::Stop, None) => "eos",
                (FinishReason::Stop, Some(_)) => "word",
                (FinishReason::Length, _) => "limit",
                _ => "none",
            },
            stopping_word: stop.unwrap_or_default(),
            completion_probabilities: Vec::new(),
            timings: t.into(),
        }
    }

    fn whole(&self, index: usize, answer: Answer) -> Whole {
        let (reason, timings) = answer.end.unwrap_or((FinishReason::Cancelled, Timings::default()));
        Whole {
            content: answer.text,
            tokens: if self.tokens { answer.ids } else { Vec::new() },
            completion_probabilities: self.probabilities(&answer.logprobs),
            ..self.last(index, reason, answer.stop, &timings)
        }
    }
}

impl Chunks for Form {
    fn piece(&mut self, index: usize, piece: stream::Piece) -> Vec<Value> {
        self.predicted[index] += usize::from(piece.id.is_some());
        if piece.text.is_empty() && piece.logprob.is_none() && !self.tokens {
            return Vec::new();
        }
        vec![value(&Piece {
            index,
            content: piece.text,
            tokens: if self.tokens { piece.id.into_iter().collect() } else { Vec::new() },
            id_slot: -1,
            stop: false,
            tokens_predicted: self.predicted[index],
            completion_probabilities: self.probabilities(piece.logprob.as_slice()),
        })]
    }

    fn finished(&mut self, index: usize, end: End) -> Vec<Value> {
        vec![value(&self.last(index, end.reason, end.stop, &end.timings))]
    }
}
