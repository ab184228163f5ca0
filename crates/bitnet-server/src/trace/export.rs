//! Spans on their way to a collector.

use super::{FLUSH, TraceOptions, text};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

/// Spans that wait to be sent; what comes on top is lost, and requests wait for nothing.
const WAITING: usize = 4096;

/// Spans of one message.
const BATCH: usize = 512;

/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

enum Order {
    Span(Value),
    Flush(SyncSender<()>),
}

/// The way to a collector. Its thread ends with it.
pub(crate) struct Exporter {
    orders: SyncSender<Order>,
    lost: AtomicU64,
}

impl Exporter {
    pub fn start(options: TraceOptions) -> std::io::Result<Self> {
        let (orders, inbox) = sync_channel(WAITING);
        let collector = Collector::new(options);
        std::thread::Builder::new().name("traces".to_owned()).spawn(move || collector.work(&inbox))?;
        Ok(Self { orders, lost: AtomicU64::new(0) })
    }

    pub fn add(&self, span: Value) {
        if self.orders.try_send(Order::Span(span)).is_err() && self.lost.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!("the collector of traces is too slow; spans are lost");
        }
    }

    /// Sends what waits.
    pub fn flush(&self) {
        let (done, waits) = sync_channel(1);
        if self.orders.send(Order::Flush(done)).is_ok() {
            // Whoever ends does not wait longer for a collector that is gone.
            let _ = waits.recv_timeout(FLUSH);
        }
    }
}

struct Collector {
    agent: Agent,
    url: String,
    headers: Vec<(String, String)>,
    resource: Value,
}

impl Collector {
    fn new(options: TraceOptions) -> Self {
        let provider = std::sync::Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let config = Agent::config_builder().tls_config(tls).timeout_global(Some(PATIENCE)).build();
        Self {
            agent: config.into(),
            url: format!("{}/v1/traces", options.endpoint.trim_end_matches('/')),
            headers: options.headers,
            resource: json!({"attributes": [
                text("service.name", &options.service),
                text("service.version", env!("CARGO_PKG_VERSION")),
            ]}),
        }
    }

    fn work(&self, inbox: &Receiver<Order>) {
        let (mut spans, mut since) = (Vec::new(), Instant::now());
        loop {
            let wait = if spans.is_empty() { Duration::MAX } else { GATHER.saturating_sub(since.elapsed()) };
            let order = match spans.is_empty() {
                true => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => inbox.recv_timeout(wait),
            };
            let flushed = match order {
                Ok(Order::Span(span)) => {
                    if spans.is_empty() {
                        since = Instant::now();
                    }
                    spans.push(span);
                    if spans.len() < BATCH {
                        continue;
                    }
                    None
                }
                Ok(Order::Flush(done)) => Some(done),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.send(std::mem::take(&mut spans));
                    return;
                }
            };
            self.send(std::mem::take(&mut spans));
            if let Some(done) = flushed {
                let _ = done.send(());
            }
        }
    }

    fn send(&self, spans: Vec<Value>) {
        if spans.is_empty() {
            return;
        }
        let count = spans.len();
        let scope = json!({"name": "bitnet", "version": env!("CARGO_PKG_VERSION")});
        let body = json!({
            "resourceSpans": [{"resource": self.resource, "scopeSpans": [{"scope": scope, "spans": spans}]}],
        });
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Err(e) = request.send(body.to_string()) {
            tracing::warn!(url = self.url, spans = count, "spans are lost: {e}");
        }
    }
}
