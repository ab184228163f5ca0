//! `POST /v1/chat/completions`.

use super::tools::{Choice, Tool, Tools, open_arguments};
use super::{FINGERPRINT, MAX_LOGPROBS};
use crate::answer::{self, Answer, Answers, Chunks, Fields, Json, Usage};
use crate::frame::{Client, fresh_id};
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_inference::engine::{Event, Logprob, News};
use bitnet_tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

#[derive(Deserialize)]
pub(crate) struct Chat {
    messages: Vec<Value>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<usize>,
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    #[serde(default)]
    tool_choice: Option<Choice>,
    #[serde(default)]
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    fields: Fields,
}

/// Ids of a conversation in the model's own form, with the assistant's turn opened.
pub(crate) fn prompt(
    server: &Server,
    messages: &[Value],
    extra: &Map<String, Value>,
    tools: Option<&Tools>,
) -> Result<(String, Vec<u32>), ApiError> {
    let model = server.model()?;
    let mut messages =
        messages.iter().enumerate().map(|(at, m)| plain(at, m)).collect::<Result<Vec<_>, _>>()?;
    let mut extra = extra.clone();
    if let Some(tools) = tools {
        tools.tell(&mut messages, &mut extra);
    }
    if messages.is_empty() {
        return Err(ApiError::field("messages", "there is no message"));
    }
    let template = model.template()?;
    let text = template
        .render(&Value::Array(messages), true, &extra)
        .map_err(|e| ApiError { param: Some("messages".to_owned()), ..ApiError::bad(e.to_string()) })?;
    let ids = model.tokenizer()?.encode_chat(&text).map_err(|e| ApiError::internal(e.to_string()))?;
    Ok((text, ids))
}

/// A message whose content is one text, as templates expect it.
fn plain(at: usize, message: &Value) -> Result<Value, ApiError> {
    let param = |field: &str| format!("messages[{at}].{field}");
    let wrong = |field: &str, what: &str| ApiError::field(&param(field), format!("{} {what}", param(field)));
    let object = message.as_object().ok_or_else(|| {
        ApiError::field(&format!("messages[{at}]"), format!("messages[{at}] is not an object"))
    })?;
    if !object.get("role").is_some_and(Value::is_string) {
        return Err(wrong("role", "is not a string"));
    }
    let content = match object.get("content") {
        None | Some(Value::Null) => Value::String(String::new()),
        Some(Value::String(text)) => Value::String(text.clone()),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for part in parts {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text"), Some(t)) => text += t,
                    (Some("text") | None, _) => return Err(wrong("content", "has a part without text")),
                    (Some(kind), _) => {
                        return Err(ApiError::absent(
                            &param("content"),
                            format!("the model takes no {kind}"),
                        ));
                    }
                }
            }
            Value::String(text)
        }
        Some(_) => return Err(wrong("content", "is neither a text nor a list of parts")),
    };
    let mut object = object.clone();
    object.insert("content".to_owned(), content);
    let mut message = Value::Object(object);
    open_arguments(&mut message);
    Ok(message)
}

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    Json(chat): Json<Chat>,
) -> Result<Response, ApiError> {
    let model = server.named(chat.fields.model.as_deref())?;
    let tools = match chat.tools {
        None => None,
        Some(tools) => Tools::new(tools, chat.tool_choice, model.template()?.source())?.map(Arc::new),
    };
    if chat.top_logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
        return Err(ApiError::field("top_logprobs", format!("top_logprobs is at most {MAX_LOGPROBS}")));
    }
    let (streams, usage) = (chat.fields.streams(), chat.fields.wants_usage());
    let mut request = chat.fields.request(&server, model, &client)?;
    request.logprobs = chat.logprobs.unwrap_or(false).then(|| chat.top_logprobs.unwrap_or(0));
    if let Some(form) = tools.as_ref().and_then(|tools| tools.form()) {
        if request.form.is_some() {
            return Err(ApiError::field(
                "tool_choice",
                "an answer cannot be a call and have another form too",
            ));
        }
        request.form = Some(model.forms()?.compile(&form)?);
    }
    let (asked, messages, known) = (Arc::clone(&server), chat.messages, tools.clone());
    let extra = chat.chat_template_kwargs.unwrap_or_default();
    let prompt = tokio::task::spawn_blocking(move || prompt(&asked, &messages, &extra, known.as_deref()));
    request.prompt = prompt.await.map_err(|e| ApiError::internal(e.to_string()))??.1;
    let choices = request.choices;
    let answers = Answers::submit(&server, model, vec![request]).await?;
    let form = Form {
        id: fresh_id("chatcmpl"),
        created: answer::now(),
        model: model.card.id.clone(),
        tokenizer: Arc::clone(model.tokenizer()?),
        choices,
        usage: usage.then(Usage::default),
        held: vec![Held::default(); if tools.is_some() { choices } else { 0 }],
        tools,
    };
    if streams {
        return Ok(answer::stream(answers, form));
    }
    Ok(axum::Json(form.whole(&answers.collect(choices).await?)).into_response())
}

/// What all objects of a response have in common.
struct Form {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    choices: usize,
    /// Counted where a stream is to end with it.
    usage: Option<Usage>,
    tools: Option<Arc<Tools>>,
    /// The text of each choice of a stream in which tools may be called.
    held: Vec<Held>,
}

/// A text whose end may be a call.
#[derive(Clone, Default)]
struct Held {
    text: String,
    /// Bytes that were given.
    given: usize,
}

impl Form {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        })
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, reason: Value) -> Value {
        let choice = json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
        self.object("chat.completion.chunk", json!([choice]))
    }

    /// What of a text that grows can be given: no part of a call.
    fn hold(&mut self, choice: usize, text: String) -> String {
        let (Some(tools), Some(held)) = (&self.tools, self.held.get_mut(choice)) else { return text };
        held.text += &text;
        let plain = tools.plain(&held.text).max(held.given);
        let given = held.text[held.given..plain].to_owned();
        held.given = plain;
        given
    }

    /// What was held when the text is whole: calls, or text after all. Says whether there are calls.
    fn rest(&self, choice: usize) -> Option<(Value, bool)> {
        let (tools, held) = (self.tools.as_ref()?, self.held.get(choice)?);
        let (_, calls) = tools.calls(&held.text);
        if !calls.is_empty() {
            let numbered = calls.into_iter().enumerate().map(|(index, mut call)| {
                call["index"] = index.into();
                call
            });
            return Some((json!({"tool_calls": numbered.collect::<Vec<_>>()}), true));
        }
        let rest = &held.text[held.given..];
        (!rest.is_empty()).then(|| (json!({"content": rest}), false))
    }

    fn logprob(&self, logprob: &Logprob) -> Value {
        let one = |id: u32, logprob: f64| {
            let (token, bytes) = answer::token(&self.tokenizer, id);
            json!({"token": token, "logprob": logprob, "bytes": bytes})
        };
        let mut value = one(logprob.id, logprob.logprob);
        value["top_logprobs"] = logprob.top.iter().map(|(id, l)| one(*id, *l)).collect();
        value
    }

    fn whole(&self, answers: &[Answer]) -> Value {
        let mut usage = Usage::default();
        let choices = answers.iter().enumerate().map(|(index, a)| {
            if let Some((_, timings)) = &a.end {
                usage.add(timings, index == 0);
            }
            let content: Vec<Value> = a.logprobs.iter().map(|l| self.logprob(l)).collect();
            let logprobs = if content.is_empty() { Value::Null } else { json!({"content": content}) };
            let mut message = json!({"role": "assistant", "content": a.text});
            let mut reason = a.reason();
            if let Some((text, calls)) =
                self.tools.as_ref().map(|t| t.calls(&a.text)).filter(|(_, c)| !c.is_empty())
            {
                message["content"] = if text.is_empty() { Value::Null } else { text.into() };
                message["tool_calls"] = calls.into();
                reason = Some("tool_calls");
            }
            json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
        });
        let choices = choices.collect();
        let mut object = self.object("chat.completion", choices);
        object["usage"] = usage.json();
        if let Some((_, t)) = answers.first().and_then(|a| a.end.as_ref()) {
            object["timings"] = answer::timings(t);
        }
        object
    }
}

impl Chunks for Form {
    fn begin(&mut self) -> Vec<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (0..self.choices).map(|i| self.chunk(i, delta.clone(), Value::Null, Value::Null)).collect()
    }

    fn event(&mut self, event: Event) -> Result<Vec<Value>, ApiError> {
        Ok(match event.news {
            News::Prompt(_) | News::Embedding(_) => Vec::new(),
            News::Piece { text, logprob, .. } => {
                let text = self.hold(event.choice, text);
                if text.is_empty() && logprob.is_none() {
                    return Ok(Vec::new());
                }
                let logprobs = logprob.map_or(Value::Null, |l| json!({"content": [self.logprob(&l)]}));
                vec![self.chunk(event.choice, json!({"content": text}), logprobs, Value::Null)]
            }
            News::Finished { reason, timings, .. } => {
                if let Some(usage) = &mut self.usage {
                    usage.add(&timings, event.choice == 0);
                }
                let mut chunks = Vec::new();
                let mut reason = reason.name();
                if let Some((delta, called)) = self.rest(event.choice) {
                    chunks.push(self.chunk(event.choice, delta, Value::Null, Value::Null));
                    reason = if called { "tool_calls" } else { reason };
                }
                let mut chunk = self.chunk(event.choice, json!({}), Value::Null, reason.into());
                chunk["timings"] = answer::timings(&timings);
                chunks.push(chunk);
                chunks
            }
            News::Failed(e) => return Err(ApiError::from(&*e)),
        })
    }

    fn end(&mut self) -> Vec<Value> {
        let usage = self.usage.map(|usage| {
            let mut object = self.object("chat.completion.chunk", json!([]));
            object["usage"] = usage.json();
            object
        });
        usage.into_iter().collect()
    }
}
