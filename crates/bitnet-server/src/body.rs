//! Bodies of requests on their way in.

use axum::body::{Body, Bytes};
use futures_util::StreamExt;
use futures_util::stream::unfold;
use std::error::Error;
use std::time::Duration;
use tokio::time::timeout;

/// The client was silent in the midst of a body.
#[derive(Debug, thiserror::Error)]
#[error("the body has not come in time")]
struct Stalled;

/// A body that fails when its client is silent for so long.
pub(crate) fn patient(body: Body, patience: Duration) -> Body {
    Body::from_stream(unfold(body.into_data_stream(), move |mut parts| async move {
        let part = match timeout(patience, parts.next()).await {
            Ok(part) => part?.map_err(axum::BoxError::from),
            Err(_) => Err(Stalled.into()),
        };
        Some((part as Result<Bytes, axum::BoxError>, parts))
    }))
}

/// Whether that is why a body could not be read.
pub(crate) fn is_stalled(error: &(dyn Error + 'static)) -> bool {
    error.is::<Stalled>() || error.source().is_some_and(is_stalled)
}
