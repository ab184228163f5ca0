//! Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_inference::GenerateError;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

/// The body of an error.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize, ToSchema)]
struct ErrorDetail<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

/// Why a request was refused or ended.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// What is wrong, for a reader.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// What is wrong, for a program.
    pub code: Option<&'static str>,
    /// Seconds until it makes sense to ask again, where time helps.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400: the request cannot be served.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 422: a field has a value that means nothing.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, message) }
    }

    /// 501: a field asks for what this server cannot do.
    pub(crate) fn absent(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.to_owned()),
            code: Some("unsupported"),
            ..Self::new(StatusCode::NOT_IMPLEMENTED, message)
        }
    }

    /// 503: the server ends.
    pub(crate) fn ending() -> Self {
        let message = "the server is shutting down";
        Self { code: Some("shutting_down"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 503: the model is not there yet.
    pub(crate) fn loading() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading model").with_code("loading")
    }

    /// 500: the engine's thread is gone.
    pub(crate) fn stopped() -> Self {
        Self::internal("the engine has stopped").with_code("engine_stopped")
    }

    /// 503: the device has failed, or has no memory left, and no other one took over.
    fn device(message: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("device_failed")
    }

    /// 500.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The refusals of a route that tells of them in a body of its own.
    pub(crate) fn responses_with(schema: &str) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let one = |(status, why): (&str, &str)| {
            let body = Content::new(Some(Ref::from_schema_name(schema)));
            let response = ResponseBuilder::new().description(why).content("application/json", body);
            (status.to_owned(), response.build().into())
        };
        REFUSALS.into_iter().map(one).collect()
    }

    /// A response with the error's status and headers.
    pub(crate) fn with_body(&self, body: &Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, self.retry_after.unwrap_or(1).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// OpenAI's word for the kind.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub(crate) fn body(&self) -> Value {
        let (kind, param) = (self.kind(), self.param.as_deref());
        let error = ErrorDetail { message: &self.message, kind, param, code: self.code };
        crate::json::value(&ErrorBody { error })
    }
}

impl From<&GenerateError> for ApiError {
    fn from(e: &GenerateError) -> Self {
        let text = e.to_string();
        match e {
            GenerateError::PromptTooLong { .. } => {
                Self { param: Some("prompt".to_owned()), ..Self::bad(text) }
                    .with_code("context_length_exceeded")
            }
            GenerateError::QueueFull { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, text).with_code("queue_full")
            }
            GenerateError::Memory(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, text).with_code("memory_short")
            }
            GenerateError::Model(e) if e.is_of_device() => Self::device(text),
            GenerateError::Takeover { source, .. } => Self::device(format!("{text}: {source}")),
            GenerateError::Form { .. } => Self::bad(text).with_code("invalid_grammar"),
            GenerateError::UnknownAdapter { .. } | GenerateError::AdapterScale { .. } => {
                Self::field("lora", text)
            }
            GenerateError::TooManyBanned { .. } | GenerateError::Banned => {
                Self::field("banned_strings", text)
            }
            GenerateError::Stopped => Self::stopped(),
            GenerateError::Choices { .. } => Self::field("n", text),
            GenerateError::EmptyPrompt | GenerateError::UnknownId { .. } => Self::field("prompt", text),
            GenerateError::Options(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text),
            GenerateError::NoTokenizer => {
                Self::absent("prompt", "the model has no tokenizer; give token ids")
            }
            _ => Self::internal(text),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(e: GenerateError) -> Self {
        Self::from(&e)
    }
}

/// Every status that a route may refuse a request with.
const REFUSALS: [(&str, &str); 11] = [
    ("400", "The request cannot be served"),
    ("401", "The key is missing or wrong"),
    ("403", "The server does not go by this name, or the page may not use it"),
    ("404", "There is no such model"),
    ("408", "The body has not come in time"),
    ("413", "The body is too large"),
    ("422", "A field has a value that means nothing"),
    ("429", "Too many requests; `Retry-After` tells when to come back"),
    ("500", "The server is at fault"),
    ("501", "The server or the model cannot do that"),
    ("503", "The model is loading, memory is short, or the server is shutting down"),
];

impl IntoResponses for ApiError {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        Self::responses_with("Error")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.body();
        self.with_body(&body)
    }
}
