//! Bodies in JSON.

use crate::{ApiError, body};
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A JSON body whose faults are told in the API's form.
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await.map_err(|e| match body::is_stalled(&e) {
            true => ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body has not come in time"),
            false => ApiError::new(e.status(), e.body_text()),
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => {
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, e.to_string())
            }
            _ => ApiError::bad(format!("the body is not JSON: {e}")),
        })
    }
}

/// The JSON of what has no way to be none.
pub(crate) fn value(plain: &impl Serialize) -> Value {
    serde_json::to_value(plain).expect("names are texts and numbers are finite")
}
