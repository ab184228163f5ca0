//! Work that takes a thread's time.

use crate::ApiError;

/// Does work that would keep a thread of the runtime from everybody else: text of megabytes is taken apart, a form compiled.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::internal(e.to_string()))?
}
