//! `POST /v1/completions`.

use super::{FINGERPRINT, MAX_LOGPROBS};
use crate::answer::{self, Answer, Answers, Chunks, Fields, Json, Usage};
use crate::frame::{Client, fresh_id};
use crate::state::Served;
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::engine::{Event, Logprob, News, Request};
use bitnet_tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

#[derive(Deserialize)]
pub(crate) struct Completion {
    #[serde(default)]
    prompt: Value,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    logprobs: Option<usize>,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    best_of: Option<usize>,
    #[serde(flatten)]
    fields: Fields,
}

/// A prompt, as text or as ids.
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A text, a list of texts, ids, or a list of lists of ids.
fn prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || ApiError::field("prompt", "prompt is a text, token ids, or a list of either");
    let ids = |list: &[Value]| -> Option<Vec<u32>> {
        list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    };
    match value {
        Value::String(text) => Ok(vec![Prompt::Text(text)]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            Ok(vec![Prompt::Ids(ids(&list).ok_or_else(wrong)?)])
        }
        Value::Array(list) if !list.is_empty() => list
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(list) => Ok(Prompt::Ids(ids(&list).ok_or_else(wrong)?)),
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

/// Ids of a prompt; an empty text begins with what begins every text.
fn encode(model: &Served, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Ids(ids) => Ok(ids),
        Prompt::Text(text) => {
            let tokenizer = model.tokenizer()?;
            let ids = tokenizer.encode(&text, true).map_err(|e| ApiError::internal(e.to_string()))?;
            Ok(if ids.is_empty() { tokenizer.bos().into_iter().collect() } else { ids })
        }
    }
}

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    Json(completion): Json<Completion>,
) -> Result<Response, ApiError> {
    let model = server.named(completion.fields.model.as_deref())?;
    if completion.suffix.is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::absent("suffix", "the model writes no text between two others"));
    }
    if completion.best_of.is_some_and(|best| best != completion.fields.n.unwrap_or(1)) {
        return Err(ApiError::absent("best_of", "best_of is not chosen here; ask for n answers"));
    }
    if completion.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
        return Err(ApiError::field("logprobs", format!("logprobs is at most {MAX_LOGPROBS}")));
    }
    let (streams, usage) = (completion.fields.streams(), completion.fields.wants_usage());
    let echo = completion.echo.unwrap_or(false);
    let all = prompts(completion.prompt)?;
    let asked = Arc::clone(&server);
    let encoded = tokio::task::spawn_blocking(move || {
        let model = asked.model()?;
        all.into_iter().map(|p| encode(model, p)).collect::<Result<Vec<_>, _>>()
    });
    let prompts = encoded.await.map_err(|e| ApiError::internal(e.to_string()))??;
    let mut request = completion.fields.request(&server, model, &client)?;
    request.logprobs = completion.logprobs;
    request.prompt_logprobs = completion.logprobs.filter(|_| echo);
    let form = Form {
        id: fresh_id("cmpl"),
        created: answer::now(),
        model: model.card.id.clone(),
        tokenizer: Arc::clone(model.tokenizer()?),
        choices: request.choices,
        echo: if echo { prompts.clone() } else { Vec::new() },
        offsets: vec![0; prompts.len() * request.choices],
        usage: usage.then(Usage::default),
    };
    let count = prompts.len() * request.choices;
    let requests: Vec<Request> =
        prompts.into_iter().map(|prompt| Request { prompt, ..request.clone() }).collect();
    let answers = Answers::submit(&server, model, requests).await?;
    if streams {
        return Ok(answer::stream(answers, form));
    }
    Ok(axum::Json(form.whole(&answers.collect(count).await?)?).into_response())
}

/// What all objects of a response have in common.
struct Form {
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
#[derive(Default)]
struct Listed {
    tokens: Vec<String>,
    logprobs: Vec<Option<f64>>,
    top: Vec<Option<Map<String, Value>>>,
    offsets: Vec<usize>,
}

impl Listed {
    /// A token at a letter of the text; the first of a prompt has no probability.
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, logprob: Option<&Logprob>, offset: &mut usize) {
        let text = |id: u32| answer::token(tokenizer, id).0;
        let token = text(id);
        self.offsets.push(*offset);
        *offset += token.chars().count();
        self.tokens.push(token);
        self.logprobs.push(logprob.map(|l| l.logprob));
        self.top.push(logprob.map(|l| {
            let own = (l.id, l.logprob);
            // Different tokens may have one text; the likeliest keeps it.
            let mut top = Map::new();
            for (id, logprob) in l.top.iter().copied().chain([own]) {
                top.entry(text(id)).or_insert_with(|| logprob.into());
            }
            top
        }));
    }

    fn json(self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.top,
            "text_offset": self.offsets,
        })
    }
}

impl Form {
    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        })
    }

    fn choice(index: usize, text: &str, logprobs: Value, reason: Option<&'static str>) -> Value {
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
    }

    /// The prompt that a choice answers, where it comes back.
    fn prompt(&self, choice: usize) -> Result<Option<(&[u32], String)>, ApiError> {
        let Some(ids) = self.echo.get(choice / self.choices) else { return Ok(None) };
        let text = self.tokenizer.decode(ids, true).map_err(|e| ApiError::internal(e.to_string()))?;
        Ok(Some((ids, text)))
    }

    fn whole(&self, answers: &[Answer]) -> Result<Value, ApiError> {
        let (mut usage, mut choices) = (Usage::default(), Vec::new());
        for (index, a) in answers.iter().enumerate() {
            if let Some((_, timings)) = &a.end {
                usage.add(timings, index % self.choices == 0);
            }
            let (mut listed, mut offset, mut text) = (Listed::default(), 0, String::new());
            // A prompt is computed once for all of its answers.
            let of_prompt = &answers[index / self.choices * self.choices].prompt;
            if let Some((ids, prompt)) = self.prompt(index)? {
                text = prompt;
                let logprobs = [None].into_iter().chain(of_prompt.iter().map(Some));
                ids.iter()
                    .zip(logprobs)
                    .for_each(|(id, l)| listed.push(&self.tokenizer, *id, l, &mut offset));
            }
            text += &a.text;
            a.logprobs.iter().for_each(|l| listed.push(&self.tokenizer, l.id, Some(l), &mut offset));
            let asked = !a.logprobs.is_empty() || !of_prompt.is_empty();
            let logprobs = if asked { listed.json() } else { Value::Null };
            choices.push(Self::choice(index, &text, logprobs, a.reason()));
        }
        let mut object = self.object(choices.into());
        object["usage"] = usage.json();
        if let Some((_, t)) = answers.first().and_then(|a| a.end.as_ref()) {
            object["timings"] = answer::timings(t);
        }
        Ok(object)
    }
}

impl Chunks for Form {
    fn begin(&mut self) -> Vec<Value> {
        let count = self.offsets.len();
        let prompts = (0..count).filter_map(|choice| {
            let (_, text) = self.prompt(choice).ok()??;
            Some(self.object(json!([Self::choice(choice, &text, Value::Null, None)])))
        });
        prompts.collect()
    }

    fn event(&mut self, event: Event) -> Result<Vec<Value>, ApiError> {
        let offset = &mut self.offsets[event.choice];
        Ok(match event.news {
            News::Prompt(all) => {
                let mut listed = Listed::default();
                all.iter().for_each(|l| listed.push(&self.tokenizer, l.id, Some(l), offset));
                vec![self.object(json!([Self::choice(event.choice, "", listed.json(), None)]))]
            }
            News::Embedding(_) => Vec::new(),
            News::Piece { text, logprob: None, .. } if text.is_empty() => Vec::new(),
            News::Piece { text, logprob, .. } => {
                let logprobs = logprob.map_or(Value::Null, |l| {
                    let mut listed = Listed::default();
                    listed.push(&self.tokenizer, l.id, Some(&l), offset);
                    listed.json()
                });
                vec![self.object(json!([Self::choice(event.choice, &text, logprobs, None)]))]
            }
            News::Finished { reason, timings, .. } => {
                if let Some(usage) = &mut self.usage {
                    usage.add(&timings, event.choice.is_multiple_of(self.choices));
                }
                let choice = Self::choice(event.choice, "", Value::Null, Some(reason.name()));
                let mut object = self.object(json!([choice]));
                object["timings"] = answer::timings(&timings);
                vec![object]
            }
            News::Failed(e) => return Err(ApiError::from(&*e)),
        })
    }

    fn end(&mut self) -> Vec<Value> {
        let usage = self.usage.map(|usage| {
            let mut object = self.object(json!([]));
            object["usage"] = usage.json();
            object
        });
        usage.into_iter().collect()
    }
}
