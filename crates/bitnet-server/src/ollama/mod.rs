//! Ollama's routes: streams are lines of JSON, and a request streams unless it says otherwise.

pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod generate;
pub(crate) mod models;

use crate::ApiError;
use crate::fields::{Fields, OneOrMany, ResponseFormat};
use crate::json::value;
use axum::response::{IntoResponse, Response};
use bitnet_inference::{FinishReason, Timings};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::openapi::RefOr;
use utoipa::{IntoResponses, ToSchema};

/// Ollama's `options`, those that have a meaning here; others are passed over, as Ollama does.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = OllamaOptions)]
pub(crate) struct Options {
    num_predict: Option<i64>,
    temperature: Option<f64>,
    top_k: Option<i64>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    repeat_penalty: Option<f64>,
    repeat_last_n: Option<i64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    mirostat: Option<u8>,
    mirostat_tau: Option<f64>,
    mirostat_eta: Option<f64>,
    seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
}

impl Options {
    /// `format` is `"json"` or a JSON schema.
    fn fields(self, model: String, format: Option<Value>) -> Result<Fields, ApiError> {
        let response_format = match format {
            None | Some(Value::Null) => None,
            Some(Value::String(word)) if word.is_empty() => None,
            Some(Value::String(word)) if word == "json" => Some(ResponseFormat::JsonObject { schema: None }),
            Some(schema @ Value::Object(_)) => Some(ResponseFormat::JsonObject { schema: Some(schema) }),
            Some(_) => return Err(ApiError::field("format", "format is \"json\" or a JSON schema")),
        };
        Ok(Fields {
            model: Some(model),
            max_tokens: self.num_predict,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            mirostat: self.mirostat,
            mirostat_tau: self.mirostat_tau,
            mirostat_eta: self.mirostat_eta,
            seed: self.seed,
            stop: self.stop,
            response_format,
            ..Fields::default()
        })
    }
}

/// What the last line says; durations are in nanoseconds.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaSummary)]
pub(crate) struct Summary {
    done_reason: &'static str,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
    prompt_eval_duration: u64,
    eval_count: usize,
    eval_duration: u64,
}

impl Summary {
    /// Of an answer to nothing: clients say nothing in order to have the model loaded.
    fn of_nothing() -> Self {
        Self {
            done_reason: "load",
            total_duration: 0,
            load_duration: 0,
            prompt_eval_count: 0,
            prompt_eval_duration: 0,
            eval_count: 0,
            eval_duration: 0,
        }
    }

    fn new(reason: FinishReason, t: &Timings) -> Self {
        let ns = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self {
            done_reason: reason.name(),
            total_duration: ns(t.queued + t.prompt + t.generation),
            load_duration: 0,
            prompt_eval_count: t.prompt_tokens + t.cached_tokens,
            prompt_eval_duration: ns(t.prompt),
            eval_count: t.tokens,
            eval_duration: ns(t.generation),
        }
    }
}

/// The time as Ollama writes it.
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// An error in Ollama's form.
pub(crate) struct Failure(ApiError);

impl<E: Into<ApiError>> From<E> for Failure {
    fn from(e: E) -> Self {
        Self(e.into())
    }
}

/// The body of an error.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaError)]
pub(crate) struct FailureBody<'a> {
    error: &'a str,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.with_body(&error_line(&self.0))
    }
}

impl IntoResponses for Failure {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        ApiError::responses_with("OllamaError")
    }
}

/// A line that tells of an error.
fn error_line(error: &ApiError) -> Value {
    value(&FailureBody { error: &error.message })
}

/// Pictures are nothing that these models take.
fn refuse_images(images: Option<&Vec<Value>>) -> Result<(), ApiError> {
    match images {
        Some(images) if !images.is_empty() => Err(ApiError::absent("images", "the model takes no images")),
        _ => Ok(()),
    }
}
