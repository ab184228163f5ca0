//! Traces, and a collector that takes them.

use crate::common::{options, start};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::{ServeOptions, TraceOptions};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};

struct Post {
    head: String,
    body: Value,
}

/// Takes what is posted to it.
fn collector() -> (SocketAddr, Receiver<Post>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, posts) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            loop {
                let (mut head, mut length) = (String::new(), 0);
                while reader.read_line(&mut head).unwrap() > 2 {
                    let line = head.lines().last().unwrap().to_lowercase();
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap();
                    }
                }
                if head.is_empty() {
                    break;
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                // Whoever has the reply may look for it at once.
                if sender.send(Post { head, body: serde_json::from_slice(&body).unwrap() }).is_err() {
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
            }
        }
    });
    (address, posts)
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().unwrap();
    let value = &all.iter().find(|a| a["key"] == key).unwrap_or_else(|| panic!("{key} in {span}"))["value"];
    value.as_object().unwrap().values().next().unwrap()
}

#[test]
fn a_request_has_spans_of_queue_prefill_and_decode() {
    let (address, posts) = collector();
    let traces = Some(TraceOptions {
        endpoint: format!("http://{address}/"),
        headers: vec![("x-tenant".to_owned(), "mine".to_owned())],
        service: "here".to_owned(),
    });
    let (running, client) = start(ServeOptions { traces, ..options() }, EngineOptions::default());
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let traced = |flags: &str| client.with("traceparent", &format!("00-{trace}-{parent}-{flags}"));
    let body = json!({"prompt": "hello", "max_tokens": 5, "ignore_eos": true, "stream": true});
    traced("01").with("x-request-id", "mine-7").post("/v1/completions", &body).chunks();
    // Whoever records nothing himself wants nothing recorded.
    traced("00").post("/v1/completions", &body).chunks();
    assert_eq!(client.post("/v1/completions", &json!({"prompt": 3})).status, 422);
    assert_eq!(
        client.with("traceparent", "00-zz-1-01").post("/tokenize", &json!({"content": "a"})).status,
        200
    );
    running.ending().end();
    running.wait().unwrap();

    let mut spans = Vec::new();
    for post in posts.try_iter() {
        assert!(post.head.starts_with("POST /v1/traces "), "{}", post.head);
        assert!(post.head.to_lowercase().contains("x-tenant: mine"));
        let resource = &post.body["resourceSpans"][0];
        assert_eq!(attribute(&resource["resource"], "service.name"), "here");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    let named = |name: &str| spans.iter().filter(|s| s["name"] == name).collect::<Vec<_>>();
    let requests = named("POST /v1/completions");
    assert_eq!(requests.len(), 2, "{spans:#?}");
    let request = *requests.iter().find(|s| s["traceId"] == trace).unwrap();
    assert_eq!((&request["parentSpanId"], &request["kind"]), (&json!(parent), &json!(2)));
    assert_eq!(
        (attribute(request, "http.request.id"), attribute(request, "http.response.status_code")),
        (&json!("mine-7"), &json!("200"))
    );
    let refused = *requests.iter().find(|s| s["traceId"] != trace).unwrap();
    assert_eq!(
        (attribute(refused, "http.response.status_code"), &refused["parentSpanId"]),
        (&json!("422"), &Value::Null)
    );
    assert_eq!(named("POST /tokenize").len(), 1);

    let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
    let (begin, end) = ("startTimeUnixNano", "endTimeUnixNano");
    let parts: Vec<&Value> = ["queue", "prefill", "decode"]
        .into_iter()
        .map(|name| {
            let found = named(name);
            assert_eq!(found.len(), 1, "{name}");
            assert_eq!(
                (&found[0]["traceId"], &found[0]["parentSpanId"]),
                (&json!(trace), &request["spanId"])
            );
            found[0]
        })
        .collect();
    assert!(time(request, begin) <= time(parts[0], begin));
    assert!(parts.windows(2).all(|two| time(two[0], end) == time(two[1], begin)), "one follows the other");
    assert!(time(parts[2], end) <= time(request, end));
    assert_eq!(attribute(parts[2], "gen_ai.usage.output_tokens"), "5");
    assert_eq!(attribute(parts[2], "bitnet.finish_reason"), "length");
}
