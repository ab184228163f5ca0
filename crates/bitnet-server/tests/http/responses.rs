//! OpenAI's Responses.

use crate::common::{Client, options, start};
use bitnet_inference::engine::EngineOptions;
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";

/// The events of a stream; each has the name of its type and the number of its place.
fn events(client: &Client, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let stream = client.post(PATH, &body).text();
    let events: Vec<Value> = stream
        .split_terminator("\n\n")
        .enumerate()
        .map(|(number, event)| {
            let (kind, data) = event.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(data["type"], kind.strip_prefix("event: ").unwrap());
            assert_eq!(data["sequence_number"], number);
            data
        })
        .collect();
    assert!(!events.is_empty(), "{stream}");
    events
}

#[test]
fn events_build_what_a_whole_response_is() {
    let (_running, client) = start(options(), EngineOptions::default());
    let body = json!({
        "model": "tiny", "instructions": "be brief", "max_output_tokens": 9, "temperature": 0,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
    });
    let whole = client.json(PATH, &body);
    assert_eq!((&whole["object"], &whole["store"]), (&json!("response"), &json!(false)));
    let text = &whole["output"][0]["content"][0]["text"];
    let events = events(&client, &body);
    let of = |kind: &str| events.iter().filter(|e| e["type"] == kind).collect::<Vec<_>>();
    let deltas: String =
        of("response.output_text.delta").iter().map(|e| e["delta"].as_str().unwrap()).collect();
    assert_eq!((text, &of("response.output_text.done")[0]["text"]), (&json!(deltas), &json!(deltas)));
    assert_eq!(events[0]["type"], "response.created");
    let last = &events.last().unwrap()["response"];
    for key in ["status", "incomplete_details", "instructions"] {
        assert_eq!(last[key], whole[key], "{key}");
    }
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    let cut = json!({"input": "hello", "max_output_tokens": 1, "temperature": 0});
    let cut = client.json(PATH, &cut);
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[test]
fn calls_and_forms() {
    let (_running, client) = start(options(), EngineOptions::default());
    let schema = json!({
        "type": "object", "required": ["ok"], "additionalProperties": false, "properties": {"ok": {"type": "boolean"}},
    });
    let tool = json!({"type": "function", "name": "f", "parameters": schema});
    let body = json!({"input": "a", "max_output_tokens": 300, "tools": [tool], "tool_choice": "required"});
    let whole = client.json(PATH, &body);
    let call = whole["output"].as_array().unwrap().last().unwrap();
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("f")));
    let events = events(&client, &body);
    let done = events.iter().find(|e| e["type"] == "response.function_call_arguments.done").unwrap();
    assert!(serde_json::from_str::<Value>(done["arguments"].as_str().unwrap()).unwrap()["ok"].is_boolean());
    // The call and what came of it go back as items.
    let answer = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "3"});
    let next = json!({"input": [{"role": "user", "content": "a"}, call, answer], "max_output_tokens": 4});
    assert_eq!(client.json(PATH, &next)["output"][0]["type"], "message");
    let format = json!({"format": {"type": "json_schema", "name": "x", "schema": schema}});
    let shaped = client.json(PATH, &json!({"input": "a", "text": format, "max_output_tokens": 250}));
    let text = shaped["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap()["ok"].is_boolean(), "{text}");
}

#[test]
fn bad_requests_get_the_error_that_names_them() {
    let (_running, client) = start(options(), EngineOptions::default());
    for (body, status, param) in [
        (json!({}), 422, None),
        (json!({"input": 3}), 422, Some("input")),
        (json!({"input": []}), 422, Some("messages")),
        (json!({"input": [{"content": "a"}]}), 422, Some("input[0].role")),
        (json!({"input": [{"type": "function_call", "name": "f"}]}), 422, Some("input[0].arguments")),
        (json!({"input": [{"type": "image_generation_call"}]}), 501, Some("input[0]")),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            501,
            Some("input[0].content"),
        ),
        (json!({"input": "a", "previous_response_id": "resp_1"}), 501, Some("previous_response_id")),
        (json!({"input": "a", "background": true}), 501, Some("background")),
        (json!({"input": "a", "model": "absent"}), 404, Some("model")),
        (json!({"input": "a", "tools": [{"type": "web_search"}]}), 422, None),
    ] {
        let (got, _, _, named) = client.post(PATH, &body).error();
        assert_eq!((got, named.as_deref()), (status, param), "{body}");
    }
}
