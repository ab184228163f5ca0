//! Requests over a WebSocket.

use crate::common::{Client, options, start};
use bitnet_inference::engine::EngineOptions;
use serde_json::{Value, json};
use std::net::TcpStream;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

type Socket = WebSocket<TcpStream>;

fn open(client: &Client) -> Socket {
    let stream = TcpStream::connect(client.address).unwrap();
    tungstenite::client(format!("ws://{}/v1/ws", client.address), stream).unwrap().0
}

fn send(socket: &mut Socket, value: &Value) {
    socket.send(Message::text(value.to_string())).unwrap();
}

fn next(socket: &mut Socket) -> Value {
    loop {
        if let Message::Text(text) = socket.read().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

/// Everything about a request until it is done.
fn rest(socket: &mut Socket, id: &str) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let value = next(socket);
        if value["id"] == id {
            if value["done"] == true {
                return all;
            }
            all.push(value);
        }
    }
}

#[test]
fn chunks_are_those_of_a_stream_of_events() {
    let (_running, client) = start(options(), EngineOptions::default());
    let mut socket = open(&client);
    for (path, mut body) in [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hello"}]})),
        ("/v1/completions", json!({"prompt": "hello", "logprobs": 1})),
    ] {
        (body["seed"], body["stream"], body["max_tokens"]) = (3.into(), true.into(), 8.into());
        let events = client.post(path, &body).chunks();
        body["id"] = "mine".into();
        send(&mut socket, &body);
        let chunks = rest(&mut socket, "mine");
        let choices = |all: &[Value]| {
            all.iter().map(|c| (c["object"].clone(), c["choices"].clone())).collect::<Vec<_>>()
        };
        assert_eq!(choices(&events), choices(&chunks), "{path}");
    }
}

#[test]
fn what_is_cancelled_says_so_and_others_go_on() {
    let (_running, client) = start(options(), EngineOptions { seats: 4, ..EngineOptions::default() });
    let mut socket = open(&client);
    let long = |id: &str, tokens: usize| json!({"id": id, "prompt": "hello", "max_tokens": tokens, "ignore_eos": true, "logprobs": 20});
    send(&mut socket, &long("a", 480));
    assert_eq!(next(&mut socket)["id"], "a");
    send(&mut socket, &long("a", 1));
    let refused = std::iter::repeat_with(|| next(&mut socket)).find(|v| v["error"].is_object()).unwrap();
    assert_eq!((&refused["id"], &refused["error"]["param"]), (&json!("a"), &json!("id")));
    send(&mut socket, &json!({"cancel": "a"}));
    let chunks = rest(&mut socket, "a");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "cancelled");
    send(&mut socket, &json!({"cancel": "a"}));
    send(&mut socket, &long("b", 3));
    assert_eq!(rest(&mut socket, "b").last().unwrap()["choices"][0]["finish_reason"], "length");
    for (message, status) in [
        (json!({"id": "c", "prompt": 3}), "invalid_request_error"),
        (json!({"id": "c", "messages": 3}), "invalid_request_error"),
        (json!({"id": "c", "prompt": "a", "model": "absent"}), "not_found_error"),
    ] {
        send(&mut socket, &message);
        let error = next(&mut socket);
        assert_eq!((&error["id"], &error["error"]["type"]), (&json!("c"), &json!(status)), "{message}");
    }
    socket.send(Message::text("{")).unwrap();
    assert!(next(&mut socket)["error"]["message"].as_str().unwrap().contains("JSON"));
}

#[test]
fn whoever_hangs_up_is_cancelled_and_foreign_pages_are_refused() {
    let (_running, client) = start(options(), EngineOptions::default());
    let mut socket = open(&client);
    send(&mut socket, &json!({"prompt": "a", "max_tokens": 480, "ignore_eos": true, "logprobs": 20}));
    next(&mut socket);
    drop(socket);
    let cancelled =
        || client.metric("bitnet_requests_total{model_name=\"tiny\",finish_reason=\"cancelled\"}");
    let begin = std::time::Instant::now();
    while cancelled() != 1.0 {
        assert!(begin.elapsed().as_secs() < 60, "its request ends");
        std::thread::yield_now();
    }
    let page = |host: &str, origin: &str| {
        let mut request = format!("ws://{}/v1/ws", client.address).into_client_request().unwrap();
        request.headers_mut().insert("host", host.parse().unwrap());
        request.headers_mut().insert("origin", origin.parse().unwrap());
        tungstenite::client(request, TcpStream::connect(client.address).unwrap()).is_ok()
    };
    let own = client.address.to_string();
    assert!(!page(&own, "https://example.org"));
    assert!(!page("example.org", "https://example.org"));
    assert!(page(&own, "http://localhost:3000"));
    assert!(page(&own, &format!("http://{own}")));
    assert_eq!(client.get("/v1/ws").error().0, 400);
}

#[test]
fn a_server_that_ends_finishes_what_it_began_over_a_socket() {
    let (running, client) = start(options(), EngineOptions::default());
    let mut socket = open(&client);
    send(
        &mut socket,
        &json!({"id": "a", "prompt": "a", "max_tokens": 200, "ignore_eos": true, "logprobs": 20}),
    );
    assert_eq!(next(&mut socket)["id"], "a");
    running.ending().end();
    let chunks = rest(&mut socket, "a");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    running.wait().unwrap();
    assert!(socket.read().is_err(), "it is closed");
}
