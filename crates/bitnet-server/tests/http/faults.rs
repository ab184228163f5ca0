//! What is refused, who is cancelled, and how it ends.

use crate::common::{Client, MODEL, listen, load, options, start};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::{Keys, ServeError, ServeOptions, Server, serve};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const COMPLETE: &str = "/v1/completions";

#[test]
fn bad_requests_get_the_error_that_names_them() {
    let (_running, client) = start(options(), EngineOptions { seats: 4, ..EngineOptions::default() });
    let say = |field: &str, value: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}], "prompt": "a"});
        body[field] = value;
        body
    };
    for (path, body, want) in [
        (CHAT, json!({}), (422, None, None)),
        (CHAT, say("messages", json!([])), (422, None, Some("messages"))),
        (CHAT, say("messages", json!([{"content": "x"}])), (422, None, Some("messages[0].role"))),
        (
            CHAT,
            say("messages", json!([{"role": "user", "content": 1}])),
            (422, None, Some("messages[0].content")),
        ),
        (
            CHAT,
            say("messages", json!([{"role": "user", "content": [{"type": "image_url"}]}])),
            (501, Some("unsupported"), Some("messages[0].content")),
        ),
        (CHAT, say("temperature", json!("hot")), (422, None, None)),
        (CHAT, say("top_p", json!(1.5)), (422, None, None)),
        (CHAT, say("n", json!(9)), (422, None, Some("n"))),
        (CHAT, say("n", json!(0)), (422, None, Some("n"))),
        (CHAT, say("top_logprobs", json!(21)), (422, None, Some("top_logprobs"))),
        (CHAT, say("logit_bias", json!("x")), (422, None, Some("logit_bias"))),
        (CHAT, say("model", json!("gpt-4")), (404, Some("model_not_found"), Some("model"))),
        (CHAT, say("tools", json!([{}])), (422, None, None)),
        (CHAT, say("mirostat", json!(3)), (422, None, Some("mirostat"))),
        (CHAT, say("grammar", json!("root ::= \"a")), (422, None, Some("grammar"))),
        (CHAT, say("grammar", json!("start: nowhere")), (400, Some("invalid_grammar"), None)),
        (CHAT, say("json_schema", json!({"type": "nothing"})), (400, Some("invalid_grammar"), None)),
        (CHAT, say("response_format", json!({"type": "yaml"})), (422, None, None)),
        (COMPLETE, json!({}), (422, None, Some("prompt"))),
        (COMPLETE, say("prompt", json!([1, "a"])), (422, None, Some("prompt"))),
        (COMPLETE, say("prompt", json!([100_000])), (422, None, Some("prompt"))),
        (
            COMPLETE,
            say("prompt", json!(vec![7; 600])),
            (400, Some("context_length_exceeded"), Some("prompt")),
        ),
        (COMPLETE, say("prompt", json!(vec!["a"; 65])), (400, None, None)),
        (COMPLETE, say("suffix", json!("z")), (501, Some("unsupported"), Some("suffix"))),
        ("/detokenize", json!({"tokens": [9999]}), (422, None, Some("tokens"))),
    ] {
        let (status, kind, code, param) = client.post(path, &body).error();
        assert_eq!((status, code.as_deref(), param.as_deref()), want, "{path} {body}");
        assert_eq!(
            kind,
            if status == 404 {
                "not_found_error"
            } else if status == 501 {
                "server_error"
            } else {
                "invalid_request_error"
            }
        );
    }
    for calls in [json!([[null]]), json!([1]), json!([{"function": []}]), json!([{}])] {
        let messages = json!([{"role": "assistant", "content": "a", "tool_calls": calls}]);
        assert!([200, 400].contains(&client.post(CHAT, &say("messages", messages)).status), "{calls}");
    }
    assert_eq!(client.send("POST", CHAT, b"{\"messages\": [").error().0, 400);
    assert_eq!(client.send("POST", CHAT, &vec![b' '; 2 << 20]).error().0, 413);
    assert_eq!(client.get(CHAT).error().0, 405);
    assert_eq!(client.get("/nowhere").error().0, 404);
    // None of it has harmed anybody.
    assert_eq!(client.post(CHAT, &say("max_tokens", json!(2))).status, 200);
    assert_eq!(client.metric("bitnet_requests_running{model_name=\"tiny\"}"), 0.0);
}

/// A route and a body that it would take.
fn posts() -> Vec<(&'static str, Value)> {
    let chat = json!([{"role": "user", "content": "a"}]);
    vec![
        (CHAT, json!({"messages": chat})),
        (COMPLETE, json!({"prompt": "a"})),
        ("/v1/responses", json!({"input": "a"})),
        ("/v1/messages", json!({"messages": chat, "max_tokens": 4})),
        ("/v1/messages/count_tokens", json!({"messages": chat})),
        ("/completion", json!({"prompt": "a"})),
        ("/v1/embeddings", json!({"input": "a"})),
        ("/api/embed", json!({"input": "a", "model": MODEL})),
        ("/tokenize", json!({"content": "a"})),
        ("/detokenize", json!({"tokens": [7]})),
        ("/apply-template", json!({"messages": chat})),
        ("/api/generate", json!({"prompt": "a", "model": MODEL, "stream": false})),
        ("/api/chat", json!({"messages": chat, "model": MODEL, "stream": false})),
        ("/api/show", json!({"model": MODEL})),
    ]
}

#[test]
fn every_route_refuses_what_it_cannot_take() {
    let keys = Keys::new(&["key".to_owned()], None).unwrap();
    let (_running, stranger) = start(ServeOptions { keys, ..options() }, EngineOptions::default());
    let client = stranger.with("x-api-key", "key");
    for (path, good) in posts() {
        let with = |field: &str, value: Value| {
            let mut body = good.clone();
            body[field] = value;
            body.to_string()
        };
        assert_eq!(client.post(path, &good).status, 200, "{path}");
        for (what, body, status) in [
            ("half a body", "{\"model\": ".to_owned(), 400),
            ("no object", "[1]".to_owned(), 422),
            ("nothing of it", "{}".to_owned(), 422),
            ("a model that is a number", with("model", json!(1)), 422),
            ("an absent model", with("model", json!("absent")), 404),
            ("a huge body", " ".repeat(2 << 20), 413),
        ] {
            let reply = client.send("POST", path, body.as_bytes());
            let (got, kind) = (reply.status, reply.header("content-type").map(str::to_owned));
            let text = reply.text();
            assert_eq!((got, kind.as_deref()), (status, Some("application/json")), "{path}, {what}: {text}");
            let error: Value = serde_json::from_str(&text).unwrap();
            let message = error["error"]["message"].as_str().or(error["error"].as_str());
            assert!(message.is_some_and(|m| !m.is_empty() && !m.contains('\n')), "{path}, {what}: {text}");
        }
        assert_eq!(client.get(path).status, 405, "{path}");
        assert_eq!(stranger.post(path, &good).status, 401, "{path}");
    }
    for path in ["/v1/models", "/models", "/metrics", "/api/tags", "/api/version"] {
        assert_eq!(client.get(path).status, 200, "{path}");
        assert_eq!(client.post(path, &json!({})).status, 405, "{path}");
        assert_eq!(stranger.get(path).status, 401, "{path}");
    }
}

#[test]
fn keys_ids_and_origins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "# ours\nsecond\n").unwrap();
    let keys = Keys::new(&["first".to_owned()], Some(file.clone())).unwrap();
    let (_running, client) = start(ServeOptions { keys, ..options() }, EngineOptions::default());
    assert_eq!(
        client.get("/v1/models").error(),
        (401, "authentication_error".into(), Some("invalid_api_key".into()), None)
    );
    assert_eq!(client.get("/health").status, 200);
    assert_eq!(client.with("authorization", "Bearer third").get("/v1/models").status, 401);
    assert_eq!(client.with("authorization", "Bearer first").get("/v1/models").status, 200);
    let second = client.with("x-api-key", "second");
    assert_eq!(second.get("/v1/models").status, 200);
    std::fs::write(&file, "third\nfourth\n").unwrap();
    let begin = Instant::now();
    while second.get("/v1/models").status == 200 {
        assert!(begin.elapsed() < Duration::from_secs(30), "the file is read again");
        std::thread::yield_now();
    }
    let third = client.with("authorization", "Bearer third");
    let reply =
        third.with("x-request-id", "mine-1").with("origin", "http://localhost:5173").get("/v1/models");
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
    assert_eq!(reply.header("access-control-allow-origin"), Some("http://localhost:5173"));
    let reply = third.with("origin", "https://example.org").get("/v1/models");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, None));
    assert!(reply.header("x-request-id").unwrap().starts_with("req-"));
    assert!(matches!(
        serve(Server::new(options()).unwrap(), "0.0.0.0:0".parse().unwrap()),
        Err(ServeError::Open { .. })
    ));
    assert!(Keys::new(&[], Some(folder.path().join("absent"))).is_err());
}

#[test]
fn each_key_has_its_share_of_a_minute() {
    let keys = Keys::new(&["first".to_owned(), "second".to_owned()], None).unwrap();
    let options = ServeOptions {
        keys,
        rate: NonZeroU32::new(2),
        origins: vec!["https://a.example".to_owned()],
        ..options()
    };
    let (_running, client) = start(options, EngineOptions::default());
    let (first, second) = (client.with("x-api-key", "first"), client.with("x-api-key", "second"));
    let ask = |client: &Client| client.post("/tokenize", &json!({"content": "a"}));
    assert_eq!((ask(&first).status, ask(&first).status), (200, 200));
    let refused = ask(&first);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(refused.error(), (429, "rate_limit_error".into(), Some("rate_limit_exceeded".into()), None));
    // Others have their own, and looking is free.
    assert_eq!(ask(&second).status, 200);
    assert_eq!(first.get("/v1/models").status, 200);
    // A page of a named origin may ask, and it is told beforehand.
    let page = second.with("origin", "https://a.example");
    let before = page.send("OPTIONS", CHAT, b"");
    assert_eq!(
        (before.status, before.header("access-control-allow-origin")),
        (204, Some("https://a.example"))
    );
    assert!(before.header("access-control-allow-headers").unwrap().contains("authorization"));
    let other = second.with("origin", "https://b.example").send("OPTIONS", CHAT, b"");
    assert_eq!((other.status, other.header("access-control-allow-origin")), (405, None));
}

/// What takes a compiler of forms long or much is refused in a moment, and others are answered meanwhile.
#[test]
fn bombs_of_grammar_hit_a_limit() {
    let (_running, client) = start(options(), EngineOptions::default());
    let nested = (0..14).fold("\"a\"".to_owned(), |inner, _| format!("({inner} | {inner} \"x\")"));
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "array", "items": deep, "minItems": 1000});
    }
    for (field, value) in [
        ("grammar", json!(format!("start: /{}/", "(a|b){1000}".repeat(200)))),
        ("grammar", json!("start: /((((a{100}){100}){100}){100})/")),
        ("grammar", json!("start: /(x+x+)+y/ | /((a|aa)+)+$/")),
        ("grammar", json!(format!("start: {nested}"))),
        ("grammar", json!(format!("root ::= {}", "(".repeat(100_000)))),
        (
            "json_schema",
            json!({"type": "string", "pattern": "^(((((a{1,200}){1,200}){1,200}){1,200}){1,200})$"}),
        ),
        ("json_schema", json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "integer"}})),
        ("json_schema", deep),
    ] {
        let mut body = json!({"prompt": "a", "max_tokens": 4});
        body[field] = value;
        let reply = client.post(COMPLETE, &body);
        assert!([200, 400, 422].contains(&reply.status), "{field}: {}", reply.text());
        assert_eq!(client.post(COMPLETE, &json!({"prompt": "a", "max_tokens": 1})).status, 200);
    }
}

/// Enough work that it is not done before anybody looks.
fn long() -> Value {
    json!({"prompt": "hello", "n": 8, "max_tokens": 480, "ignore_eos": true, "logprobs": 20, "stream": true})
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn running(client: &Client) -> f64 {
    client.metric("bitnet_requests_running{model_name=\"tiny\"}")
}

#[test]
fn whoever_hangs_up_is_cancelled_and_a_full_queue_says_so() {
    let (_running, client) =
        start(options(), EngineOptions { seats: 8, queue: 1, ..EngineOptions::default() });
    let mut first = client.post(COMPLETE, &long());
    first.piece().unwrap();
    // One takes all the seats, one waits, and the third is sent away.
    std::thread::scope(|scope| {
        let second = scope.spawn(|| client.post(COMPLETE, &json!({"prompt": "x", "n": 8, "max_tokens": 1})));
        wait("one waits", || client.metric("bitnet_requests_waiting{model_name=\"tiny\"}") == 1.0);
        let third = client.post(COMPLETE, &json!({"prompt": "x"}));
        assert_eq!(third.header("retry-after"), Some("1"));
        assert_eq!(third.error(), (429, "rate_limit_error".into(), Some("queue_full".into()), None));
        drop(first);
        assert_eq!(second.join().unwrap().status, 200);
    });
    wait("all have ended", || running(&client) == 0.0);
    let ended = |reason: &str| {
        client.metric(&format!("bitnet_requests_total{{model_name=\"tiny\",finish_reason=\"{reason}\"}}"))
    };
    assert_eq!((ended("cancelled"), ended("length") + ended("stop")), (8.0, 8.0));
    assert_eq!(client.metric("bitnet_kv_cache_usage_ratio{model_name=\"tiny\"}"), 0.0);
    assert!(client.get("/metrics").text().contains("path=\"/v1/completions\",status=\"429\""));
}

#[test]
fn a_server_that_ends_finishes_what_it_began() {
    let server = Server::new(options()).unwrap();
    let (running, client) = listen(server.clone());
    assert_eq!(client.get("/healthz").status, 200);
    assert_eq!(
        client.get("/readyz").error(),
        (503, "service_unavailable_error".into(), Some("loading".into()), None)
    );
    assert_eq!(client.post(COMPLETE, &long()).error().0, 503);
    load(&server, EngineOptions::default());
    assert_eq!(client.get("/readyz").status, 200);
    let mut stream = client.post(COMPLETE, &long());
    stream.piece().unwrap();
    running.ending().end();
    wait("readiness goes first", || client.get("/readyz").status == 503);
    let refused = client.post(COMPLETE, &long());
    assert_eq!(refused.header("connection"), Some("close"), "whoever comes later finds no open connection");
    assert_eq!(refused.error().2.as_deref(), Some("shutting_down"));
    let reasons = stream.chunks().iter().filter(|c| c["choices"][0]["finish_reason"] == "length").count();
    assert_eq!(reasons, 8);
    running.wait().unwrap();
    assert!(TcpStream::connect(client.address).is_err(), "nobody listens any more");
}

/// A model that was unloaded still makes the answers it had begun; nobody else could end them.
#[test]
fn a_drain_that_is_over_ends_those_of_models_that_were_unloaded() {
    let server = Server::new(ServeOptions { drain: Duration::ZERO, ..options() }).unwrap();
    load(&server, EngineOptions::default());
    server.reopen(MODEL, Arc::new(|| Err("nobody asks".to_owned())));
    let (running, client) = listen(server);
    let mut stream = client.post(COMPLETE, &long());
    stream.piece().unwrap();
    client.json("/models/unload", &json!({"model": MODEL}));
    running.ending().end();
    let reasons = stream.chunks().iter().filter(|c| c["choices"][0]["finish_reason"] == "cancelled").count();
    assert_eq!(reasons, 8);
    running.wait().unwrap();
}

#[test]
fn clients_that_send_nothing_are_not_waited_for() {
    let patience = Duration::from_millis(50);
    let (_running, client) = start(ServeOptions { patience, ..options() }, EngineOptions::default());
    let reply = |sent: &str| {
        let mut stream = TcpStream::connect(client.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    let post = |length: usize, body: &str| {
        format!("POST {COMPLETE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    // One that is done and keeps its connection is answered, and then closed without a further word.
    let whole = reply(&post(body.len(), &body));
    assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with('}'), "{whole}");
    for half in ["", "POST ", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-slow: "] {
        let got = reply(half);
        assert!(!got.starts_with("HTTP/1.1 200"), "{half:?}: {got}");
    }
    let half = reply(&post(body.len(), &body[..9]));
    assert!(half.starts_with("HTTP/1.1 408") && half.contains("has not come in time"), "{half}");
    let refused = reply(&post(2 << 20, "half of one that is refused"));
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
}

#[test]
fn pages_of_other_origins_make_the_server_do_nothing() {
    let (_running, client) = start(options(), EngineOptions::default());
    let (path, body) = ("/tokenize", json!({"content": "a"}));
    for origin in ["https://example.org", "null", "http://localhost.example.org"] {
        let refused = client.with("origin", origin).post(path, &body);
        assert_eq!(refused.header("access-control-allow-origin"), None);
        assert_eq!(
            refused.error(),
            (403, "permission_error".into(), Some("origin".into()), None),
            "{origin}"
        );
    }
    let own = format!("http://{}", client.address);
    for origin in [&own, "http://localhost:5173", "http://[::1]:80"] {
        assert_eq!(client.with("origin", origin).post(path, &body).status, 200, "{origin}");
    }
}

/// A page whose own name leads to this machine looks to the browser as if the server had made it.
#[test]
fn pages_that_rebind_their_name_reach_nothing() {
    let (_running, client) = start(options(), EngineOptions::default());
    let (path, body) = ("/tokenize", json!({"content": "a"}));
    for host in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.1", ""] {
        let page = client.with("host", host).with("origin", &format!("http://{host}"));
        let refused = || (403, "permission_error".into(), Some("host".into()), None);
        for route in ["/", "/health", "/v1/models", "/metrics", "/v1/ws", "/nowhere"] {
            assert_eq!(client.with("host", host).get(route).error(), refused(), "{host} {route}");
        }
        assert_eq!(page.post(path, &body).error(), refused(), "{host}");
        assert_eq!(page.send("OPTIONS", path, b"").error(), refused(), "{host}");
        let twice = client.with("host", "localhost").with("host", host);
        assert!([400, 403].contains(&twice.get("/v1/models").status), "{host}");
    }
    for host in
        ["localhost", "LocalHost:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "[::ffff:127.0.0.1]"]
    {
        assert_eq!(client.with("host", host).get("/v1/models").status, 200, "{host}");
    }
    // Told its name, it is reached by that, too, and a page under that name is its own.
    let hosts = vec!["gpu.example.org".to_owned()];
    let (_running, client) = start(ServeOptions { hosts, ..options() }, EngineOptions::default());
    let page = client.with("host", "GPU.example.org:443").with("origin", "https://GPU.example.org:443");
    assert_eq!(page.post(path, &body).status, 200);
    assert_eq!(client.with("host", "other.example.org").get("/v1/models").status, 403);
    let any = ServeOptions { hosts: vec!["*".to_owned()], ..options() };
    let (_running, client) = start(any, EngineOptions::default());
    assert_eq!(client.with("host", "other.example.org").get("/v1/models").status, 200);
}

#[test]
fn a_drain_that_is_over_ends_answers_with_a_word() {
    let (running, client) =
        start(ServeOptions { drain: Duration::ZERO, ..options() }, EngineOptions::default());
    let mut stream = client.post(COMPLETE, &long());
    stream.piece().unwrap();
    running.ending().end();
    let reasons = stream.chunks().iter().filter(|c| c["choices"][0]["finish_reason"] == "cancelled").count();
    assert_eq!(reasons, 8);
    running.wait().unwrap();
}

/// Whatever clients do, every answer that was begun has one end, and nothing stays behind.
#[test]
fn clients_that_go_at_any_moment_leave_nothing_behind() {
    let (_running, client) =
        start(options(), EngineOptions { seats: 6, budget: 40, ..EngineOptions::default() });
    let body = |i: usize| {
        let mut body = json!({
            "prompt": (0..1 + i * 37 % 300).map(|id| 3 + id % 400).collect::<Vec<usize>>(), "n": 1 + i % 3,
            "max_tokens": 1 + i * 13 % 60, "ignore_eos": true, "seed": i, "stream": i % 4 != 3,
        });
        if i % 5 == 4 {
            body["grammar"] = json!("root ::= [a-z]+");
        }
        body.to_string()
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (client, body) = (&client, &body);
            scope.spawn(move || {
                for i in (0..160).filter(|i| i % 8 == thread) {
                    // Some read to the end, some a piece, some nothing, and some do not even send all.
                    match i / 8 % 4 {
                        0 => drop(client.send("POST", COMPLETE, body(i).as_bytes()).text()),
                        1 => drop(client.send("POST", COMPLETE, body(i).as_bytes()).piece()),
                        which => {
                            let mut stream = TcpStream::connect(client.address).unwrap();
                            let body = body(i);
                            let head = format!(
                                "POST {COMPLETE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
                                body.len()
                            );
                            let sent = if which == 2 { body.len() } else { body.len() / 2 };
                            stream.write_all(&[head.as_bytes(), &body.as_bytes()[..sent]].concat()).unwrap();
                        }
                    }
                }
            });
        }
    });
    let waiting = || client.metric("bitnet_requests_waiting{model_name=\"tiny\"}");
    wait("all have ended", || running(&client) + waiting() == 0.0);
    assert_eq!(client.metric("bitnet_kv_cache_usage_ratio{model_name=\"tiny\"}"), 0.0);
    let ended = |reason: &str| {
        client.metric(&format!("bitnet_requests_total{{model_name=\"tiny\",finish_reason=\"{reason}\"}}"))
    };
    let begun: usize = (0..160).filter(|i| i / 8 % 4 < 2).map(|i| 1 + i % 3).sum();
    let unsure: usize = (0..160).filter(|i| i / 8 % 4 == 2).map(|i| 1 + i % 3).sum();
    let ends = ended("length") + ended("stop") + ended("cancelled");
    assert!(
        (begun as f64..=(begun + unsure) as f64).contains(&ends),
        "{ends} of {begun} to {}",
        begun + unsure
    );
    assert_eq!(ended("error"), 0.0);
}
