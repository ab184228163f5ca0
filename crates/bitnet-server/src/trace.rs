//! Traces in OpenTelemetry's form: a span for each request, and in it those of queue, prefill and decode. They go to a collector as
//! OTLP over HTTP in its JSON encoding, which needs no more than the HTTP client that is here anyway.

mod export;

use axum::http::HeaderMap;
use bitnet_inference::engine::{Event, News};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, SystemTime};

pub(crate) use export::Exporter;

/// Where traces go.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// The collector, like `http://localhost:4318`; spans go to `/v1/traces` there.
    pub endpoint: String,
    /// Headers for the collector.
    pub headers: Vec<(String, String)>,
    /// The name that the collector shows.
    pub service: String,
}

/// A request being traced. Its span ends when the last of its holders lets go.
pub(crate) struct Trace {
    exporter: Arc<Exporter>,
    trace: String,
    span: String,
    parent: Option<String>,
    name: String,
    begin: SystemTime,
    attributes: Vec<Value>,
    status: AtomicU16,
}

/// A time as a part of a span.
struct Span<'a> {
    name: &'a str,
    begin: SystemTime,
    end: SystemTime,
    attributes: Vec<Value>,
}

const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const FAILED: u8 = 2;

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hash keys come from the operating system's generator. No id is 0.
    RandomState::new().hash_one(0_u8).max(1)
}

fn nanos(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn count(key: &str, value: usize) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// Trace and span of a caller who traces too, and whether he records it.
fn caller(headers: &HeaderMap) -> Option<(String, String, bool)> {
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let right =
            part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        right.then(|| part.to_owned())
    };
    let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let known = version != "ff" && trace.contains(|c| c != '0') && span.contains(|c| c != '0');
    known.then(|| (trace, span, u8::from_str_radix(&flags, 16).is_ok_and(|flags| flags & 1 == 1)))
}

impl Trace {
    /// Begins a request's span; `None` where its caller wants none.
    pub fn begin(
        exporter: &Arc<Exporter>,
        headers: &HeaderMap,
        method: &str,
        route: &str,
        id: &str,
    ) -> Option<Arc<Self>> {
        let (trace, parent) = match caller(headers) {
            Some((.., false)) => return None,
            Some((trace, span, true)) => (trace, Some(span)),
            None => (format!("{:016x}{:016x}", random(), random()), None),
        };
        Some(Arc::new(Self {
            exporter: Arc::clone(exporter),
            trace,
            span: format!("{:016x}", random()),
            parent,
            name: format!("{method} {route}"),
            begin: SystemTime::now(),
            attributes: vec![
                text("http.request.method", method),
                text("http.route", route),
                text("http.request.id", id),
            ],
            status: AtomicU16::new(0),
        }))
    }

    /// The status that the request was answered with.
    pub fn status(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// A span inside of the request's.
    fn inner(&self, span: Span<'_>) {
        self.exporter.add(json!({
            "traceId": self.trace, "spanId": format!("{:016x}", random()), "parentSpanId": self.span,
            "name": span.name, "kind": INTERNAL, "startTimeUnixNano": nanos(span.begin),
            "endTimeUnixNano": nanos(span.end), "attributes": span.attributes,
        }));
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let status = self.status.load(Ordering::Relaxed);
        let mut attributes = std::mem::take(&mut self.attributes);
        attributes.push(count("http.response.status_code", usize::from(status)));
        let mut span = json!({
            "traceId": self.trace, "spanId": self.span, "name": self.name, "kind": SERVER,
            "startTimeUnixNano": nanos(self.begin), "endTimeUnixNano": nanos(SystemTime::now()),
            "attributes": attributes,
        });
        if let Some(parent) = &self.parent {
            span["parentSpanId"] = parent.as_str().into();
        }
        if status >= 500 {
            span["status"] = json!({"code": FAILED});
        }
        self.exporter.add(span);
    }
}

/// A request in the engine: what becomes the spans of its answers.
pub(crate) struct Making {
    trace: Arc<Trace>,
    begin: SystemTime,
    /// When the first token of each answer came.
    first: HashMap<usize, SystemTime>,
    /// Answers that have not ended.
    open: usize,
}

impl Making {
    pub fn new(trace: Arc<Trace>, answers: usize) -> Self {
        Self { trace, begin: SystemTime::now(), first: HashMap::new(), open: answers }
    }

    /// Takes note of an event; says whether it was the last.
    pub fn event(&mut self, event: &Event) -> bool {
        let now = SystemTime::now();
        match &event.news {
            News::Prompt(_) | News::Embedding(_) => {}
            News::Piece { .. } => {
                self.first.entry(event.choice).or_insert(now);
            }
            News::Finished { reason, timings, .. } => {
                self.open -= 1;
                let admitted = (self.begin + timings.queued).min(now);
                let first = self.first.get(&event.choice).copied().unwrap_or(now).max(admitted);
                let choice = || count("bitnet.choice", event.choice);
                self.trace.inner(Span {
                    name: "queue",
                    begin: self.begin,
                    end: admitted,
                    attributes: vec![choice()],
                });
                self.trace.inner(Span {
                    name: "prefill",
                    begin: admitted,
                    end: first,
                    attributes: vec![
                        choice(),
                        count("gen_ai.usage.input_tokens", timings.prompt_tokens + timings.cached_tokens),
                        count("bitnet.cached_tokens", timings.cached_tokens),
                    ],
                });
                self.trace.inner(Span {
                    name: "decode",
                    begin: first,
                    end: now,
                    attributes: vec![
                        choice(),
                        count("gen_ai.usage.output_tokens", timings.tokens),
                        text("bitnet.finish_reason", reason.name()),
                    ],
                });
            }
            News::Failed(_) => self.open -= 1,
        }
        self.open == 0
    }
}

/// How long the end of a server waits for its last spans to be taken.
pub(crate) const FLUSH: Duration = Duration::from_secs(5);
