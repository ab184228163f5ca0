//! Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_inference::GenerateError;
use serde_json::{Value, json};

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
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
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

    /// 500: the engine's thread is gone.
    pub(crate) fn stopped() -> Self {
        Self::internal("the engine has stopped").with_code("engine_stopped")
    }

    /// 500.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// OpenAI's word for the kind.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
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
            GenerateError::Form { .. } => Self::bad(text).with_code("invalid_grammar"),
            GenerateError::UnknownAdapter { .. } | GenerateError::AdapterScale { .. } => {
                Self::field("lora", text)
            }
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

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
