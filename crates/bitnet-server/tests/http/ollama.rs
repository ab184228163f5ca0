//! Ollama's routes, and llama-server's own.

use crate::common::{Client, MODEL, Reply, options, start};
use bitnet_inference::engine::EngineOptions;
use serde_json::{Value, json};

fn lines(reply: Reply) -> Vec<Value> {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/x-ndjson")));
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn options_of_ollama() -> Value {
    json!({"num_predict": 9, "seed": 3, "temperature": 0.9, "num_ctx": 2048})
}

#[test]
fn lines_say_what_a_whole_answer_says() {
    let (_running, client) = start(options(), EngineOptions::default());
    let user = json!([{"role": "user", "content": "hello"}]);
    for (path, body, text) in [
        ("/api/chat", json!({"messages": user}), "/message/content"),
        ("/api/generate", json!({"prompt": "hello", "system": "be brief"}), "/response"),
        ("/api/generate", json!({"prompt": "hello", "raw": true}), "/response"),
    ] {
        let ask = |stream: Option<bool>| {
            let mut body = body.clone();
            (body["model"], body["options"]) = (json!(format!("{MODEL}:latest")), options_of_ollama());
            if let Some(stream) = stream {
                body["stream"] = stream.into();
            }
            body
        };
        let whole = client.json(path, &ask(Some(false)));
        let all = lines(client.post(path, &ask(None)));
        let said: String = all.iter().map(|line| line.pointer(text).unwrap().as_str().unwrap()).collect();
        assert_eq!(whole.pointer(text).unwrap(), &json!(said), "{path}");
        let (last, before) = all.split_last().unwrap();
        assert!(last["done"] == true && before.iter().all(|line| line["done"] == false), "{path}");
        for end in [last, &whole] {
            assert_eq!(end["model"], MODEL);
            assert!(
                end["done_reason"].is_string() && end["created_at"].as_str().unwrap().ends_with('Z'),
                "{end}"
            );
            assert!(
                end["eval_count"].as_u64().unwrap() <= 9 && end["prompt_eval_count"].as_u64().unwrap() > 0
            );
        }
    }
}

#[test]
fn formats_tools_and_contexts() {
    let (_running, client) = start(options(), EngineOptions::default());
    let schema = json!({
        "type": "object", "required": ["ok"], "additionalProperties": false, "properties": {"ok": {"type": "boolean"}},
    });
    let options = json!({"num_predict": 250, "temperature": 1.5, "seed": 2});
    let user = json!([{"role": "user", "content": "a"}]);
    let shaped = client.json(
        "/api/chat",
        &json!({"model": MODEL, "messages": user, "stream": false, "format": schema, "options": options}),
    );
    let content: Value = serde_json::from_str(shaped["message"]["content"].as_str().unwrap()).unwrap();
    assert!(content["ok"].is_boolean());
    // A context that comes back is the prompt of what follows.
    let ask = |more: Value| {
        let mut body = json!({"model": MODEL, "prompt": "b", "raw": true, "stream": false, "options": options_of_ollama()});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.json("/api/generate", &body)
    };
    let first = ask(json!({}));
    let context = first["context"].as_array().unwrap();
    let count = |v: &Value| v.as_u64().unwrap();
    assert_eq!(context.len() as u64, count(&first["prompt_eval_count"]) + count(&first["eval_count"]));
    let second = ask(json!({"context": context}));
    assert!(count(&second["prompt_eval_count"]) > context.len() as u64);
    let tags: Value = serde_json::from_str(&client.get("/api/tags").text()).unwrap();
    assert_eq!(tags["models"][0]["name"], MODEL);
    let shown = client.json("/api/show", &json!({"model": MODEL}));
    assert!(shown["template"].as_str().unwrap().contains("messages"));
    assert!(client.get("/api/version").text().contains(env!("CARGO_PKG_VERSION")));
    let loaded = client.json("/api/generate", &json!({"model": MODEL}));
    assert_eq!(loaded["done_reason"], "load");
}

/// The status and the word of an error in Ollama's form.
fn refusal(client: &Client, path: &str, body: &Value) -> (u16, String) {
    let reply = client.post(path, body);
    let status = reply.status;
    let value: Value = serde_json::from_str(&reply.text()).unwrap();
    (status, value["error"].as_str().unwrap().to_owned())
}

#[test]
fn bad_requests_are_refused_in_ollamas_form() {
    let (_running, client) = start(options(), EngineOptions::default());
    let user = json!([{"role": "user", "content": "a"}]);
    for (path, body, status, word) in [
        ("/api/chat", json!({"model": "absent", "messages": user}), 404, "absent"),
        ("/api/chat", json!({"messages": user}), 422, "model"),
        ("/api/chat", json!({"model": MODEL, "messages": 3}), 422, "sequence"),
        ("/api/chat", json!({"model": MODEL, "messages": user, "format": 3}), 422, "format"),
        (
            "/api/chat",
            json!({"model": MODEL, "messages": [{"role": "user", "images": ["x"]}]}),
            501,
            "images",
        ),
        ("/api/generate", json!({"model": MODEL, "prompt": "a", "suffix": "b"}), 501, "between"),
        ("/api/generate", json!({"model": MODEL, "prompt": "a", "options": {"top_p": 2}}), 422, "top"),
        ("/api/generate", json!({"model": MODEL, "prompt": "a", "context": [99999]}), 422, "99999"),
        ("/api/show", json!({"model": "absent"}), 404, "absent"),
    ] {
        let (got, why) = refusal(&client, path, &body);
        assert_eq!(got, status, "{path} {body}: {why}");
        assert!(why.contains(word), "{path} {body}: {why}");
    }
}

#[test]
fn llama_servers_own_completion() {
    let (_running, client) = start(options(), EngineOptions::default());
    let ask = |more: Value| {
        let mut body = json!({"prompt": "hello", "n_predict": 6, "seed": 3, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let whole = client.json("/completion", &ask(json!({"n_probs": 2, "return_tokens": true})));
    assert_eq!(
        (&whole["stop"], &whole["stop_type"], &whole["tokens_predicted"]),
        (&json!(true), &json!("limit"), &json!(6))
    );
    assert_eq!(whole["tokens"].as_array().unwrap().len(), 6);
    assert_eq!(whole["completion_probabilities"][5]["top_logprobs"].as_array().unwrap().len(), 2);
    let stream = client.post("/completion", &ask(json!({"stream": true}))).text();
    assert!(!stream.contains("[DONE]"));
    let pieces: Vec<Value> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let text: String = pieces.iter().map(|p| p["content"].as_str().unwrap()).collect();
    assert_eq!(whole["content"], text);
    assert!(pieces.last().unwrap()["stop"] == true && pieces[0]["stop"] == false);
    let many = client.json("/completion", &ask(json!({"prompt": ["a", "b"]})));
    assert_eq!(many.as_array().unwrap().len(), 2);
    assert_eq!(
        client.post("/completion", &json!({})).error(),
        (422, "invalid_request_error".into(), None, Some("prompt".into()))
    );
    assert_eq!(
        client.post("/completion", &ask(json!({"n_probs": 21}))).error().3.as_deref(),
        Some("n_probs")
    );
}
