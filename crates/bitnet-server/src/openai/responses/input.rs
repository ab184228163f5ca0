//! What a response is asked to answer, as messages that chat templates know.

use crate::ApiError;
use serde_json::{Value, json};

/// The conversation: instructions first.
pub(super) fn messages(instructions: Option<String>, input: Value) -> Result<Vec<Value>, ApiError> {
    let mut messages: Vec<Value> =
        instructions.into_iter().map(|text| json!({"role": "system", "content": text})).collect();
    match input {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) => {
            for (at, item) in items.into_iter().enumerate() {
                add(&mut messages, at, item)?;
            }
        }
        _ => return Err(ApiError::field("input", "input is a text or a list of items")),
    }
    Ok(messages)
}

fn add(messages: &mut Vec<Value>, at: usize, item: Value) -> Result<(), ApiError> {
    let param = format!("input[{at}]");
    let word = |key: &str| item.get(key).and_then(Value::as_str);
    let need = |key: &str| {
        word(key).ok_or_else(|| {
            ApiError::field(&format!("{param}.{key}"), format!("{param}.{key} is not a string"))
        })
    };
    match word("type").unwrap_or("message") {
        "message" => {
            // What other templates call the system is the developer here.
            let role = match need("role")? {
                "developer" => "system",
                role => role,
            };
            let content = match item.get("content") {
                Some(Value::Array(parts)) => {
                    parts.iter().map(|part| plain(part, &param)).collect::<Result<Value, _>>()?
                }
                content => content.cloned().unwrap_or_default(),
            };
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let function = json!({"name": need("name")?, "arguments": need("arguments")?});
            let call = json!({"id": need("call_id")?, "type": "function", "function": function});
            // Calls of one turn belong to one message.
            match messages.last_mut().and_then(|m| m.get_mut("tool_calls")).and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let output = match item.get("output") {
                Some(Value::String(text)) => text.clone(),
                other => other.map(Value::to_string).unwrap_or_default(),
            };
            messages.push(json!({"role": "tool", "tool_call_id": need("call_id")?, "content": output}));
        }
        // Nothing of it is shown to the model again.
        "reasoning" => {}
        kind => {
            return Err(ApiError::absent(&param, format!("{param} is a {kind:?}, which is not taken here")));
        }
    }
    Ok(())
}

/// A part of a message as Chat Completions has it.
fn plain(part: &Value, param: &str) -> Result<Value, ApiError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("input_text" | "output_text" | "text"), Some(text)) => {
            Ok(json!({"type": "text", "text": text}))
        }
        (Some(kind), None) if !kind.ends_with("text") => {
            Err(ApiError::absent(&format!("{param}.content"), format!("the model takes no {kind}")))
        }
        _ => Err(ApiError::field(
            &format!("{param}.content"),
            format!("{param}.content has a part without text"),
        )),
    }
}
