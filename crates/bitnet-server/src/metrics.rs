//! What the server counts, in Prometheus' text form. Names and buckets are vLLM's where it has them.

use crate::models::Counted;
use crate::state::Served;
use bitnet_inference::engine::{Event, News, RequestId, Stats};
use bitnet_memory::{Limit, Pressure, Snapshot, TagUse};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0,
    100000.0,
];
const HTTP: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// A distribution in fixed buckets.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// Values in each bucket alone; the last one is for those above all bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    /// `labels` are those of every line, without braces.
    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds.iter().chain([&f64::INFINITY])) {
            below += count;
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {below}", self.sum);
    }
}

/// The distributions over requests, in the order in which they are written.
#[derive(Clone, Copy)]
enum Of {
    FirstToken,
    BetweenTokens,
    Request,
    Queue,
    Prefill,
    Decode,
    PromptTokens,
    AnswerTokens,
}

const HISTOGRAMS: [(&str, &str, &[f64]); 8] = [
    ("time_to_first_token_seconds", "Time from the request to the first token.", FIRST_TOKEN),
    ("inter_token_latency_seconds", "Time between two tokens.", BETWEEN_TOKENS),
    ("e2e_request_latency_seconds", "Time from the request to its end.", REQUEST),
    ("request_queue_time_seconds", "Time until a request was admitted.", REQUEST),
    ("request_prefill_time_seconds", "Time of the steps that ran the prompt.", REQUEST),
    ("request_decode_time_seconds", "Time of the steps behind the first token.", REQUEST),
    ("request_prompt_tokens", "Tokens of a prompt.", TOKENS),
    ("request_generation_tokens", "Tokens of an answer.", TOKENS),
];

#[derive(Debug)]
struct Counts {
    histograms: Vec<Histogram>,
    finished: BTreeMap<&'static str, u64>,
    prompt_tokens: u64,
    answer_tokens: u64,
    /// Answers on their way: since when, and when the last token came.
    open: HashMap<(RequestId, usize), (Instant, Option<Instant>)>,
}

/// What a model has counted.
#[derive(Debug)]
pub(crate) struct Metrics(Mutex<Counts>);

impl Metrics {
    pub fn new() -> Self {
        Self(Mutex::new(Counts {
            histograms: HISTOGRAMS.iter().map(|(.., bounds)| Histogram::new(bounds)).collect(),
            finished: BTreeMap::new(),
            prompt_tokens: 0,
            answer_tokens: 0,
            open: HashMap::new(),
        }))
    }

    /// A request was taken.
    pub fn submitted(&self, request: RequestId, choices: usize) {
        let mut c = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        c.open.extend((0..choices).map(|choice| ((request, choice), (Instant::now(), None))));
    }

    /// News of an answer.
    pub fn event(&self, event: &Event) {
        let (now, key) = (Instant::now(), (event.request, event.choice));
        let mut c = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &event.news {
            News::Piece { id: Some(_), .. } => {
                let Some((since, last)) = c.open.get_mut(&key) else { return };
                let (kind, from) = match last {
                    None => (Of::FirstToken, *since),
                    Some(last) => (Of::BetweenTokens, *last),
                };
                *last = Some(now);
                c.histograms[kind as usize].add((now - from).as_secs_f64());
            }
            News::Finished { reason, timings: t, .. } => {
                *c.finished.entry(reason.name()).or_default() += 1;
                c.prompt_tokens += (t.prompt_tokens + t.cached_tokens) as u64;
                c.answer_tokens += t.tokens as u64;
                let since = c.open.remove(&key).map_or(now, |(since, _)| since);
                for (kind, value) in [
                    (Of::Request, (now - since).as_secs_f64()),
                    (Of::Queue, t.queued.as_secs_f64()),
                    (Of::Prefill, t.prompt.as_secs_f64()),
                    (Of::Decode, t.generation.as_secs_f64()),
                    (Of::PromptTokens, (t.prompt_tokens + t.cached_tokens) as f64),
                    (Of::AnswerTokens, t.tokens as f64),
                ] {
                    c.histograms[kind as usize].add(value);
                }
            }
            News::Failed(_) => {
                *c.finished.entry("error").or_default() += 1;
                c.open.remove(&key);
            }
            News::Prompt(_) | News::Embedding(_) | News::Piece { id: None, .. } => {}
        }
    }

    fn read<T>(&self, see: impl FnOnce(&Counts) -> T) -> T {
        see(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Labels of a model's lines.
fn labels(id: &str) -> String {
    format!("model_name=\"{}\"", escaped(id))
}

/// A metric of the engine: name, kind, what it says, and where it is.
type OfEngine = (&'static str, &'static str, &'static str, fn(&Stats) -> f64);

const OF_ENGINE: [OfEngine; 10] = [
    ("requests_running", "gauge", "Answers in the making.", |s| s.running as f64),
    ("requests_waiting", "gauge", "Answers that wait to be admitted.", |s| s.waiting as f64),
    ("kv_cache_usage_ratio", "gauge", "Share of the cache's blocks that are held.", |s| {
        s.held_blocks as f64 / s.blocks.max(1) as f64
    }),
    ("prefix_cache_queries_total", "counter", "Tokens of prompts looked for in the cache.", |s| {
        s.prefix_queries as f64
    }),
    ("prefix_cache_hits_total", "counter", "Tokens of prompts found in the cache.", |s| s.prefix_hits as f64),
    ("spec_decode_draft_tokens_total", "counter", "Tokens guessed ahead.", |s| s.drafted as f64),
    ("spec_decode_accepted_tokens_total", "counter", "Tokens guessed right.", |s| s.accepted as f64),
    (
        "memory_freed_bytes_total",
        "counter",
        "Bytes given back to the system because memory was short.",
        |s| s.memory_freed_bytes as f64,
    ),
    ("preemptions_total", "counter", "Answers sent back to wait.", |s| s.preempted as f64),
    (
        "device_takeovers_total",
        "counter",
        "Times that another device took over because one had failed.",
        |s| s.takeovers as f64,
    ),
];

/// A counter of a model: name, what it says, and where it is.
type OfModel = (&'static str, &'static str, fn(&Counts) -> u64);

const OF_MODEL: [OfModel; 2] = [
    ("prompt_tokens_total", "Tokens of prompts.", |c| c.prompt_tokens),
    ("generation_tokens_total", "Tokens of answers.", |c| c.answer_tokens),
];

/// All about models as text. One that is not loaded has only what it counted before.
pub(crate) fn text(models: &[Counted]) -> String {
    let mut out = String::new();
    for (name, kind, help, value) in OF_ENGINE {
        head(&mut out, name, kind, help);
        for (id, _, served) in models {
            if let Some(served) = served {
                let value = value(&served.worker.stats());
                let _ = writeln!(out, "bitnet_{name}{{{}}} {value}", labels(id));
            }
        }
    }
    of_pools(&mut out, models);
    for (name, help, value) in OF_MODEL {
        head(&mut out, name, "counter", help);
        for (id, metrics, _) in models {
            let _ = writeln!(out, "bitnet_{name}{{{}}} {}", labels(id), metrics.read(value));
        }
    }
    head(&mut out, "requests_total", "counter", "Answers that ended.");
    for (id, metrics, _) in models {
        for (reason, count) in metrics.read(|c| c.finished.clone()) {
            let _ =
                writeln!(out, "bitnet_requests_total{{{},finish_reason=\"{reason}\"}} {count}", labels(id));
        }
    }
    for (at, (name, help, _)) in HISTOGRAMS.iter().enumerate() {
        head(&mut out, name, "histogram", help);
        for (id, metrics, _) in models {
            metrics.read(|c| c.histograms[at].write(&mut out, &format!("bitnet_{name}"), &labels(id)));
        }
    }
    head(&mut out, "build_info", "gauge", "What runs.");
    for (id, _, served) in models {
        if let Some(info) = served.as_ref().map(|served| served.worker.device()) {
            let _ = writeln!(
                out,
                "bitnet_build_info{{{},version=\"{}\",kernel=\"{}\",isa=\"{}\",device=\"{}\"}} 1",
                labels(id),
                env!("CARGO_PKG_VERSION"),
                escaped(&info.kernel),
                info.isa,
                info.device
            );
        }
    }
    out
}

/// Pools of a model: what their metrics begin with, whose memory they have, and what they counted, where there is such a pool.
type OfPool = (&'static str, &'static str, fn(&Served) -> Option<Snapshot>);

const POOLS: [OfPool; 2] = [
    ("memory_pool", "the model's memory", |s| Some(s.memory.snapshot())),
    ("device_memory_pool", "the model's memory on its GPU", |s| Some(s.device_memory.as_ref()?.snapshot())),
];

/// A metric of what a pool was asked for: what its name ends with, kind, what it says, and where it is.
type OfTag = (&'static str, &'static str, &'static str, fn(&TagUse) -> u64);

const OF_TAG: [OfTag; 4] = [
    ("bytes", "gauge", "Bytes in use, by what they are for", |t| t.asked_bytes as u64),
    ("peak_bytes", "gauge", "The most bytes that were in use", |t| t.peak_bytes as u64),
    ("requests_total", "counter", "Requests", |t| t.taken),
    ("source_requests_total", "counter", "Requests that only the system could serve", |t| t.source_requests),
];

/// What the pools of loaded models have counted.
fn of_pools(out: &mut String, models: &[Counted]) {
    for (prefix, whose, counted) in POOLS {
        let snapshots: Vec<_> =
            models.iter().filter_map(|(id, _, served)| Some((id, counted(served.as_ref()?)?))).collect();
        if snapshots.is_empty() {
            continue;
        }
        let name = format!("{prefix}_held_bytes");
        head(out, &name, "gauge", &format!("Bytes that {whose} has of the system."));
        for (id, snapshot) in &snapshots {
            let _ = writeln!(out, "bitnet_{name}{{{}}} {}", labels(id), snapshot.held_bytes);
        }
        for (suffix, kind, help, value) in OF_TAG {
            let name = format!("{prefix}_{suffix}");
            head(out, &name, kind, &format!("{help}: {whose}."));
            for (id, snapshot) in &snapshots {
                for tag in &snapshot.tags {
                    let (labels, value) = (labels(id), value(tag));
                    let _ = writeln!(out, "bitnet_{name}{{{labels},tag=\"{}\"}} {value}", tag.tag);
                }
            }
        }
    }
}

/// Method, route and status.
type Route = (String, String, u16);

/// A value of a limit's memory: name, what it says, and where it is.
type OfLimit = (&'static str, &'static str, fn(&Limit) -> u64);

const OF_LIMIT: [OfLimit; 2] = [
    ("memory_limit_bytes", "Limits of memory that hold for this process.", |l| l.limit_bytes),
    ("memory_used_bytes", "What is used of each.", |l| l.used_bytes),
];

/// How short memory is, as text.
pub(crate) fn memory(out: &mut String, pressure: &Pressure) {
    head(
        out,
        "memory_pressure",
        "gauge",
        "How short memory is: 0 not, 1 moderately, 2 highly, 3 critically.",
    );
    let _ = writeln!(out, "bitnet_memory_pressure {}", pressure.level as u8);
    for (name, help, value) in OF_LIMIT {
        head(out, name, "gauge", help);
        for limit in &pressure.limits {
            let kind = escaped(&limit.kind.to_string());
            let _ = writeln!(out, "bitnet_{name}{{limit=\"{kind}\"}} {}", value(limit));
        }
    }
}

/// What routes have counted.
#[derive(Debug)]
pub(crate) struct HttpMetrics(Mutex<BTreeMap<Route, (u64, Histogram)>>);

impl HttpMetrics {
    pub fn new() -> Self {
        Self(Mutex::default())
    }

    /// A request to a route was answered.
    pub fn add(&self, method: &str, path: &str, status: u16, took: Duration) {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method.to_owned(), path.to_owned(), status);
        let (count, histogram) = routes.entry(key).or_insert_with(|| (0, Histogram::new(HTTP)));
        *count += 1;
        histogram.add(took.as_secs_f64());
    }

    /// All of it as text.
    pub fn write(&self, out: &mut String) {
        let routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = |(method, path, status): &Route| {
            format!("method=\"{method}\",path=\"{}\",status=\"{status}\"", escaped(path))
        };
        head(out, "http_requests_total", "counter", "Requests answered.");
        for (key, (count, _)) in routes.iter() {
            let _ = writeln!(out, "bitnet_http_requests_total{{{}}} {count}", labels(key));
        }
        head(out, "http_request_duration_seconds", "histogram", "Time until an answer began.");
        for (key, (_, histogram)) in routes.iter() {
            histogram.write(out, "bitnet_http_request_duration_seconds", &labels(key));
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP bitnet_{name} {help}\n# TYPE bitnet_{name} {kind}");
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
