//! What surrounds every route: names, keys, request ids, cross-origin rules, counting.

use crate::origin::{Bound, check_host, check_origin, known_origin};
use crate::trace::Trace;
use crate::{ApiError, Server, body, page};
use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Instant;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Routes that tell nothing of anybody: they need no key.
const OPEN: [&str; 7] =
    ["/health", "/healthz", "/readyz", "/openapi.json", "/docs", "/docs/", "/docs/{*rest}"];

/// Bytes of a refused body that are read all the same.
const DROPPED: usize = 64 << 20;

/// Who asks.
#[derive(Clone)]
pub(crate) struct Client {
    /// As far as the queue is concerned.
    pub name: Arc<str>,
    /// The request's span.
    pub trace: Option<Arc<Trace>>,
}

pub(crate) async fn frame(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let id = request_id(request.headers());
    let origin = known_origin(&server, request.headers());
    let traces = server.traces.as_ref().filter(|_| method == Method::POST);
    let trace = traces.and_then(|t| Trace::begin(t, request.headers(), method.as_str(), &path, &id));
    let bound = request.extensions().get().copied();
    let addressed = bound.map_or(Ok(()), |bound: Bound| check_host(&server, bound, request.headers()));
    let mut response = if let Err(e) = addressed {
        e.into_response()
    } else if method == Method::OPTIONS && origin.is_some() {
        StatusCode::NO_CONTENT.into_response()
    } else {
        match server.options.keys.client(request.headers()) {
            Some(client) => {
                let client = Client { name: client.into(), trace: trace.clone() };
                // What only looks costs next to nothing.
                let admitted =
                    if method == Method::POST { admit(&server, &request, &client) } else { Ok(()) };
                request.extensions_mut().insert(client);
                match admitted {
                    Ok(()) => {
                        let too_large = is_too_large(&server, &request);
                        let request = request.map(|body| body::patient(body, server.options.patience));
                        match too_large {
                            true => refuse_body(server.options.body_limit, request).await,
                            false => next.run(request).await,
                        }
                    }
                    Err(e) => e.into_response(),
                }
            }
            None if OPEN.contains(&path.as_str()) || page::is_page(&path) => next.run(request).await,
            None => ApiError::new(StatusCode::UNAUTHORIZED, "the key is missing or wrong")
                .with_code("invalid_api_key")
                .into_response(),
        }
    };
    let headers = response.headers_mut();
    if server.is_draining() {
        // Whoever sent the next request over this connection might find it closed, and not know whether it was taken.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type, x-api-key, x-request-id"),
        );
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("x-request-id, retry-after"),
        );
    }
    let (status, took) = (response.status().as_u16(), begin.elapsed());
    if let Some(trace) = &trace {
        trace.status(status);
    }
    server.metrics.add(method.as_str(), &path, status, took);
    tracing::info!(%method, path, status, id, ms = took.as_secs_f64() * 1e3, "request");
    response
}

/// Counts a request of a client. Browsers let any page send requests whose answers it may not read; where a key is needed, the page
/// does not have it.
fn admit(server: &Server, request: &Request, client: &Client) -> Result<(), ApiError> {
    if server.options.keys.is_open() {
        check_origin(server, request.headers())?;
    }
    server.admit(client)
}

/// Whether a request says itself that its body is larger than any that is taken.
fn is_too_large(server: &Server, request: &Request) -> bool {
    request.body().size_hint().lower() > server.options.body_limit as u64
}

/// Refuses a body before any of it is kept. What the client sends meanwhile is read and dropped, for a connection that is closed
/// while it sends would lose the answer; a client that waits to be told is told at once.
async fn refuse_body(limit: usize, request: Request) -> Response {
    let waits = request.headers().contains_key(header::EXPECT);
    let mut parts = request.into_body().into_data_stream();
    let mut left = if waits { 0 } else { DROPPED };
    while left > 0 {
        let Some(Ok(part)) = parts.next().await else { break };
        left = left.saturating_sub(part.len());
    }
    let message = format!("the body has more than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).into_response()
}

/// The caller's own id, if it can be put into a header and a line of a log; a fresh one else.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let plain = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    own.filter(plain).map_or_else(|| fresh_id("req"), str::to_owned)
}

/// An id that nobody has had.
pub(crate) fn fresh_id(kind: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hash keys come from the operating system's generator.
    format!("{kind}-{:016x}{:016x}", RandomState::new().hash_one(kind), RandomState::new().hash_one(kind))
}
