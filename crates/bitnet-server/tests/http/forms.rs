//! Answers of a given form, and Anthropic's messages.

use crate::common::{MODEL, listen, open, options, start};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::Server;
use serde_json::{Value, json};

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let (_running, client) = start(options(), EngineOptions::default());
    let schema = json!({
        "type": "object", "required": ["ok"], "additionalProperties": false, "properties": {"ok": {"type": "boolean"}},
    });
    let ask = |field: &str, value: Value| {
        let mut body =
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 250, "temperature": 1.5});
        body[field] = value;
        let reply = client.json("/v1/chat/completions", &body);
        assert_eq!(reply["choices"][0]["finish_reason"], "stop", "{reply}");
        reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    for (field, value) in [
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}),
        ),
        ("response_format", json!({"type": "json_object", "schema": schema})),
        ("json_schema", schema.clone()),
    ] {
        let text = ask(field, value);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(json["ok"].is_boolean(), "{text}");
    }
    let text = ask("grammar", json!("root ::= (\"yes\" | \"no\") \".\""));
    assert!(["yes.", "no."].contains(&text.as_str()), "{text}");
    let sampled = json!({
        "prompt": "a", "mirostat": 2, "mirostat_tau": 3.0, "dry_multiplier": 0.8, "xtc_probability": 0.2, "seed": 4,
        "ignore_eos": true, "max_tokens": 8,
    });
    let text = |body: &Value| client.json("/v1/completions", body)["choices"][0]["text"].clone();
    assert_eq!(text(&sampled), text(&sampled));
}

#[test]
fn banned_texts_never_appear() {
    let (_running, client) = start(options(), EngineOptions::default());
    let ask = |banned: Value| json!({"prompt": "hello", "temperature": 0, "max_tokens": 12, "ignore_eos": true, "banned_strings": banned});
    let text = |banned: Value| {
        let reply = client.json("/v1/completions", &ask(banned));
        reply["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let free = text(Value::Null);
    let banned: String = free.chars().filter(char::is_ascii_alphanumeric).take(1).collect();
    assert!(!banned.is_empty(), "{free:?}");
    assert!(!text(json!([banned])).to_lowercase().contains(&banned.to_lowercase()));
    let many = client.post("/v1/completions", &ask(json!(vec!["never"; 1025])));
    assert_eq!(many.error().3.as_deref(), Some("banned_strings"));
}

#[test]
fn guesses_are_counted() {
    let mut opened = open(MODEL, EngineOptions::default());
    opened.defaults.draft = 4;
    let server = Server::new(options()).unwrap();
    server.load(opened).unwrap();
    let (_running, client) = listen(server);
    // Nearly every token stands in the prompt, and so has something behind it to guess.
    let prompt: Vec<u32> = (3..400).collect();
    let reply = client.json("/v1/completions", &json!({"prompt": prompt, "ignore_eos": true, "seed": 1}));
    let count = |name: &str| reply["timings"][name].as_u64().unwrap_or_else(|| panic!("{reply}"));
    let (drafted, accepted) = (count("draft_n"), count("draft_n_accepted"));
    assert!(drafted > 0 && accepted <= drafted, "{reply}");
    let metrics = client.get("/metrics").text();
    for (name, count) in [("draft", drafted), ("accepted", accepted)] {
        let line = format!("bitnet_spec_decode_{name}_tokens_total{{model_name=\"tiny\"}} {count}");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn messages_in_anthropics_form() {
    let (_running, client) = start(options(), EngineOptions::default());
    let body = json!({
        "model": "tiny", "max_tokens": 9, "system": [{"type": "text", "text": "be brief"}], "seed": 3, "ignore_eos": true,
        "messages": [{"role": "user", "content": "hello"}],
    });
    let whole = client.json("/v1/messages", &body);
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["stop_reason"]),
        (&json!("message"), &json!("assistant"), &json!("max_tokens"))
    );
    let text = whole["content"][0]["text"].as_str().unwrap();
    let tokens = client.json("/v1/messages/count_tokens", &body)["input_tokens"].clone();
    let (usage, count) = (&whole["usage"], |v: &Value| v.as_u64().unwrap());
    assert_eq!(count(&usage["input_tokens"]) + count(&usage["cache_read_input_tokens"]), count(&tokens));
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let stream = client.post("/v1/messages", &streamed).text();
    let events: Vec<(&str, Value)> = stream
        .split_terminator("\n\n")
        .map(|event| {
            let (kind, data) = event.split_once('\n').unwrap();
            (
                kind.strip_prefix("event: ").unwrap(),
                serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap(),
            )
        })
        .collect();
    assert!(events.iter().all(|(kind, data)| data["type"] == *kind));
    let kinds: Vec<&str> =
        events.iter().map(|(kind, _)| *kind).filter(|k| *k != "content_block_delta").collect();
    assert_eq!(
        kinds,
        ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    );
    let told: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(told, text);
    let mut stopped = body.clone();
    let stop: String = text.chars().skip(1).take(2).collect();
    stopped["stop_sequences"] = json!([stop]);
    let reply = client.json("/v1/messages", &stopped);
    assert_eq!((&reply["stop_reason"], &reply["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let refused = client.post("/v1/messages", &json!({"messages": []}));
    assert_eq!(refused.status, 422);
    let refused: Value = serde_json::from_str(&refused.text()).unwrap();
    assert_eq!(
        (&refused["type"], &refused["error"]["type"]),
        (&json!("error"), &json!("invalid_request_error"))
    );
}

#[test]
fn a_tool_that_has_to_be_called_is_called() {
    let (_running, client) = start(options(), EngineOptions::default());
    let tool = |name: &str| {
        let parameters = json!({
            "type": "object", "required": ["n"], "additionalProperties": false, "properties": {"n": {"enum": [1, 2]}},
        });
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}})
    };
    let ask = |choice: Value, stream: bool| {
        json!({
            "messages": [{"role": "user", "content": "a"}], "tools": [tool("one"), tool("two")], "tool_choice": choice,
            "max_tokens": 300, "stream": stream, "seed": 2,
        })
    };
    let named = json!({"type": "function", "function": {"name": "two"}});
    for choice in [json!("required"), named.clone()] {
        let whole = &client.json("/v1/chat/completions", &ask(choice.clone(), false))["choices"][0];
        assert_eq!(whole["finish_reason"], "tool_calls", "{whole}");
        let function = &whole["message"]["tool_calls"][0]["function"];
        assert!(
            whole["message"]["content"].is_null() && (choice != named || function["name"] == "two"),
            "{whole}"
        );
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert!([1, 2].contains(&arguments["n"].as_i64().unwrap()));
        let chunks = client.post("/v1/chat/completions", &ask(choice, true)).chunks();
        let deltas = || chunks.iter().map(|c| &c["choices"][0]["delta"]);
        assert!(deltas().all(|d| d["content"].as_str().unwrap_or_default().is_empty()));
        let called: Vec<&Value> = deltas().filter_map(|d| d["tool_calls"].as_array()).flatten().collect();
        assert_eq!((called.len(), &called[0]["function"]), (1, function));
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
    // What is offered need not be taken; the history of calls goes through the template.
    let mut body = ask(json!("auto"), false);
    body["max_tokens"] = 3.into();
    body["messages"] = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "x", "type": "function", "function": {"name": "one", "arguments": "{\"n\":1}"}}]},
        {"role": "user", "content": "b"},
    ]);
    assert_eq!(client.json("/v1/chat/completions", &body)["choices"][0]["finish_reason"], "length");
    for (choice, param) in [
        (json!("sometimes"), "tool_choice"),
        (json!({"type": "function", "function": {"name": "x"}}), "tool_choice"),
    ] {
        assert_eq!(
            client.post("/v1/chat/completions", &ask(choice, false)).error().3.as_deref(),
            Some(param)
        );
    }
}

#[test]
fn tools_in_anthropics_form() {
    let (_running, client) = start(options(), EngineOptions::default());
    let schema = json!({
        "type": "object", "required": ["n"], "additionalProperties": false, "properties": {"n": {"enum": [1, 2]}},
    });
    let body = json!({
        "messages": [{"role": "user", "content": "a"}], "max_tokens": 300, "seed": 2,
        "tools": [{"name": "one", "input_schema": schema}, {"name": "two", "description": "d", "input_schema": schema}],
        "tool_choice": {"type": "tool", "name": "two"},
    });
    let whole = client.json("/v1/messages", &body);
    let call = &whole["content"][0];
    assert_eq!(
        (&whole["stop_reason"], &call["type"], &call["name"]),
        (&json!("tool_use"), &json!("tool_use"), &json!("two"))
    );
    assert!([1, 2].contains(&call["input"]["n"].as_i64().unwrap()));
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let stream = client.post("/v1/messages", &streamed).text();
    let events: Vec<Value> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let input: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&input).unwrap(), call["input"]);
    assert!(events.iter().any(|e| e["content_block"]["name"] == "two"));
    assert!(events.iter().any(|e| e["delta"]["stop_reason"] == "tool_use"));
    // The call and what came of it go back as parts of messages.
    let mut next = body.clone();
    next["tool_choice"] = json!({"type": "none"});
    next["max_tokens"] = 3.into();
    next["messages"] = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "text", "text": "well"}, call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "3"}]},
    ]);
    assert_eq!(client.json("/v1/messages", &next)["content"][0]["type"], "text");
    assert!(
        client.json("/v1/messages/count_tokens", &next)["input_tokens"].as_u64()
            > client
                .json("/v1/messages/count_tokens", &json!({"messages": [{"role": "user", "content": "a"}]}))
                ["input_tokens"]
                .as_u64()
    );
    next["messages"][2]["content"][0] = json!({"type": "tool_result"});
    assert_eq!(client.post("/v1/messages", &next).status, 422);
    next["messages"][2]["content"][0] = json!({"type": "image"});
    assert_eq!(client.post("/v1/messages", &next).status, 501);
}
