//! Many requests without a socket: each goes through the routes as if it had come over one.

use crate::run::runtime;
use crate::{Server, router};
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinSet;
use tower_service::Service;

/// A request to a route.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its number among all.
    pub row: usize,
    /// The route.
    pub path: String,
    /// The body.
    pub body: Value,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The number of the call.
    pub row: usize,
    /// The status that a client would have seen.
    pub status: u16,
    /// The body; an error in OpenAI's form where the status says so.
    pub body: Value,
}

/// Runs calls, `concurrency` of them at once, and gives each reply to `each` as it comes; false from it begins no further call.
///
/// # Errors
/// The operating system would not start threads.
pub fn run_calls(
    server: Arc<Server>,
    calls: impl IntoIterator<Item = Call>,
    concurrency: usize,
    each: &mut dyn FnMut(Reply) -> bool,
) -> std::io::Result<()> {
    let runtime = runtime()?;
    let router = router(server);
    let mut calls = calls.into_iter();
    runtime.block_on(async {
        let mut running = JoinSet::new();
        let mut go_on = true;
        loop {
            while go_on && running.len() < concurrency.max(1) {
                let Some(call) = calls.next() else { break };
                let mut router = router.clone();
                running.spawn(async move {
                    let request = Request::post(&call.path)
                        .header(header::CONTENT_TYPE, "application/json")
                        .body(Body::from(call.body.to_string()));
                    let Ok(request) = request else {
                        let error = json!({"error": {"message": format!("{:?} is no route", call.path)}});
                        return Reply { row: call.row, status: 404, body: error };
                    };
                    let Ok(response) = Service::call(&mut router, request).await;
                    let status = response.status().as_u16();
                    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
                    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
                        // A stream is no object.
                        Value::String(String::from_utf8_lossy(&bytes).into_owned())
                    });
                    Reply { row: call.row, status, body }
                });
            }
            match running.join_next().await {
                None => return,
                Some(Ok(reply)) => go_on &= each(reply),
                Some(Err(e)) => std::panic::resume_unwind(e.into_panic()),
            }
        }
    });
    Ok(())
}
