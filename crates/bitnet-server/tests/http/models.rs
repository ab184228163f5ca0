//! Several models in one server.

use crate::common::{Client, listen, open, options};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::Server;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CHAT: &str = "/v1/chat/completions";

fn ask(model: &str) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "seed": 1});
    if !model.is_empty() {
        body["model"] = model.into();
    }
    body
}

fn states(client: &Client) -> Vec<(String, String)> {
    let list: Value = serde_json::from_str(&client.get("/models").text()).unwrap();
    let word = |v: &Value| v.as_str().unwrap().to_owned();
    list["data"].as_array().unwrap().iter().map(|m| (word(&m["id"]), word(&m["status"]["value"]))).collect()
}

#[test]
fn a_request_chooses_its_model_and_clients_load_and_unload_them() {
    let server = Server::new(options()).unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    for id in ["one", "two"] {
        server.load(open(id, EngineOptions::default())).unwrap();
        let broken = Arc::clone(&broken);
        server.reopen(
            id,
            Arc::new(move || match broken.load(Ordering::SeqCst) {
                true => Err("the file is gone".to_owned()),
                false => Ok(open("any", EngineOptions::default())),
            }),
        );
    }
    let (_running, client) = listen(server);
    let model = |reply: Value| reply["model"].as_str().unwrap().to_owned();
    assert_eq!(model(client.json(CHAT, &ask(""))), "one");
    assert_eq!(model(client.json(CHAT, &ask("two"))), "two");
    let not_found = |name: &str, code: &str| {
        let (status, kind, got, param) = client.post(CHAT, &ask(name)).error();
        assert_eq!(
            (status, kind.as_str(), got.as_deref(), param.as_deref()),
            (404, "not_found_error", Some(code), Some("model"))
        );
    };
    not_found("three", "model_not_found");
    let counted = "bitnet_generation_tokens_total{model_name=\"two\"}";
    let before = client.metric(counted);
    assert!(before > 0.0);

    // An answer that is being made is finished, whatever becomes of its model.
    let long = json!({"model": "two", "prompt": "a", "max_tokens": 300, "ignore_eos": true, "logprobs": 5, "stream": true});
    let mut stream = client.post("/v1/completions", &long);
    stream.piece().unwrap();
    assert_eq!(client.json("/models/unload", &json!({"model": "two"})), json!({"success": true}));
    not_found("two", "model_not_loaded");
    assert_eq!(states(&client), [("one".into(), "loaded".into()), ("two".into(), "unloaded".into())]);
    assert_eq!(stream.chunks().last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(client.metric(counted) > before, "counters do not go back");

    assert_eq!(client.json("/models/load", &json!({"model": "two"})), json!({"success": true}));
    assert_eq!(client.json("/models/load", &json!({"model": "two"})), json!({"success": true}));
    assert_eq!(model(client.json(CHAT, &ask("two"))), "two");
    let list: Value = serde_json::from_str(&client.get("/v1/models").text()).unwrap();
    let models = list["data"].as_array().unwrap().iter().filter(|model| model.get("parent").is_none());
    assert_eq!(models.count(), 2, "{list}");

    // One that cannot be loaded says why, and may be tried again.
    client.json("/models/unload", &json!({"model": "two"}));
    broken.store(true, Ordering::SeqCst);
    assert_eq!(
        client.post("/models/load", &json!({"model": "two"})).error().2.as_deref(),
        Some("model_failed")
    );
    assert_eq!(states(&client)[1].1, "failed");
    assert_eq!(client.post(CHAT, &ask("two")).error().0, 503);
    broken.store(false, Ordering::SeqCst);
    client.json("/models/load", &json!({"model": "two"}));
    assert_eq!(model(client.json(CHAT, &ask("two"))), "two");

    for (path, body, status) in [
        ("/models/load", json!({"model": "three"}), 404),
        ("/models/unload", json!({"model": "three"}), 404),
        ("/models/load", json!({}), 422),
        ("/models/unload", json!({"model": 3}), 422),
    ] {
        assert_eq!(client.post(path, &body).error().0, status, "{path} {body}");
    }
    // With the first one gone, the second is meant.
    client.json("/models/unload", &json!({"model": "one"}));
    assert_eq!(model(client.json(CHAT, &ask(""))), "two");
    client.json("/models/unload", &json!({"model": "two"}));
    assert_eq!(client.post(CHAT, &ask("")).error().2.as_deref(), Some("model_not_loaded"));
    assert_eq!(client.get("/readyz").status, 503);
}

#[test]
fn a_model_moves_to_another_device_while_it_answers() {
    let server = Server::new(options()).unwrap();
    server.load(open("one", EngineOptions::default())).unwrap();
    let (_running, client) = listen(server);
    let prompt = json!({"prompt": "a", "max_tokens": 60, "ignore_eos": true, "seed": 1});
    let text = |reply: Value| reply["choices"][0]["text"].as_str().unwrap().to_owned();
    let want = text(client.json("/v1/completions", &prompt));
    let asked = client.clone();
    let answers =
        std::thread::spawn(move || (0..6).map(|_| text(asked.json("/v1/completions", &prompt))).collect());
    for device in ["cpu", "cpu,cpu", "cpu", "cpu,cpu"] {
        let moved = client.json("/models/load", &json!({"model": "one", "device": device}));
        assert_eq!(moved["success"], true);
    }
    let answers: Vec<String> = answers.join().unwrap();
    assert!(answers.iter().all(|answer| *answer == want), "{answers:?} for {want:?}");
    for (device, why) in [("cuda:99", "cuda:99 cannot be used"), ("gpu", "is no device")] {
        let refused = client.post("/models/load", &json!({"model": "one", "device": device}));
        assert_eq!(refused.status, 422);
        let text = refused.text();
        assert!(text.contains(why) && text.contains("\"device\""), "{text}");
    }
    let metrics = client.get("/metrics").text();
    assert!(
        metrics.contains("device=\"cpu,cpu\"")
            && client.metric("bitnet_device_takeovers_total{model_name=\"one\"}") == 0.0
    );
}
