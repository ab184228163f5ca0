//! An engine that stops under its requests, and one that moves.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../../tests/common/mod.rs"]
mod common;

use crate::Server;
use bitnet_inference::engine::EngineOptions;
use common::{MODEL, listen, load, open, options};
use serde_json::{Value, json};
use std::sync::Arc;

#[test]
fn an_engine_that_stops_is_told_of_and_can_be_begun_anew() {
    let server = Server::new(options()).unwrap();
    load(&server, EngineOptions::default());
    server.reopen(MODEL, Arc::new(|| Ok(open(MODEL, EngineOptions::default()))));
    let (_running, client) = listen(Arc::clone(&server));
    let gauge = |name: &str| client.metric(&format!("bitnet_{name}{{model_name=\"{MODEL}\"}}"));
    let long = json!({"prompt": "hello", "n": 8, "max_tokens": 480, "ignore_eos": true, "logprobs": 20, "stream": true});
    let mut stream = client.post("/v1/completions", &long);
    stream.piece().unwrap();
    assert_eq!((client.get("/readyz").status, gauge("requests_running") > 0.0), (200, true));

    let worker = server.named(None).unwrap().worker.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(worker.with(|_| panic!("as an engine with a fault would"))).is_err());

    let text = stream.text();
    let last: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "engine_stopped", "{text}");
    for path in ["/readyz", "/health"] {
        assert_eq!(
            client.get(path).error(),
            (503, "service_unavailable_error".into(), Some("engine_stopped".into()), None)
        );
    }
    assert_eq!(client.get("/healthz").status, 200, "the process lives");
    let ask = json!({"prompt": "a", "max_tokens": 1});
    assert_eq!(client.post("/v1/completions", &ask).error().2.as_deref(), Some("model_failed"));
    let status = || {
        let list: Value = serde_json::from_str(&client.get("/models").text()).unwrap();
        list["data"][0]["status"]["value"].as_str().unwrap().to_owned()
    };
    assert_eq!((status().as_str(), gauge("requests_running")), ("failed", 0.0));

    client.json("/models/load", &json!({"model": MODEL}));
    assert_eq!((status().as_str(), client.get("/readyz").status), ("loaded", 200));
    client.json("/v1/completions", &ask);
}

#[test]
fn what_is_counted_is_the_memory_of_where_the_engine_is() {
    let server = Server::new(options()).unwrap();
    load(&server, EngineOptions::default());
    let served = server.named(None).unwrap();
    let before = served.worker.pools();
    // To the device that it is on, with weights and memory of their own.
    let prepared = served.files.prepare(&served.files.opened_on(), &mut |_, _| {}).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let moved = runtime.block_on(served.worker.with(|engine| engine.move_to(prepared))).unwrap();
    moved.unwrap();
    // It is seen behind the step in which it was asked for.
    let seen = || {
        runtime.block_on(served.worker.with(|_| ())).unwrap();
        !served.worker.pools().are(&before)
    };
    assert!((0..1000).any(|_| seen()));
}
