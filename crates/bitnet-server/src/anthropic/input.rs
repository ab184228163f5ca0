//! Messages as Anthropic writes them, as messages that chat templates know.

use crate::ApiError;
use serde_json::{Value, json};

/// The conversation: the system's text is its first message, what tools gave are messages of their own.
pub(super) fn messages(system: Value, messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let mut all = Vec::new();
    if !system.is_null() {
        all.push(json!({"role": "system", "content": system}));
    }
    for (at, message) in messages.into_iter().enumerate() {
        match message.get("content") {
            Some(Value::Array(blocks)) => add(&mut all, at, &message["role"], blocks)?,
            _ => all.push(message),
        }
    }
    Ok(all)
}

fn add(all: &mut Vec<Value>, at: usize, role: &Value, blocks: &[Value]) -> Result<(), ApiError> {
    let (mut calls, mut rest) = (Vec::new(), Vec::new());
    for block in blocks {
        let need = |key: &str| {
            let param = format!("messages[{at}].content");
            let wrong = || ApiError::field(&param, format!("{param} has a part whose {key} is not a string"));
            block[key].as_str().ok_or_else(wrong)
        };
        match block["type"].as_str() {
            Some("tool_use") => {
                let function = json!({"name": need("name")?, "arguments": block["input"]});
                calls.push(json!({"id": need("id")?, "type": "function", "function": function}));
            }
            Some("tool_result") => {
                let id = need("tool_use_id")?;
                all.push(json!({"role": "tool", "tool_call_id": id, "content": block["content"]}));
            }
            // What the model thought is not shown to it again.
            Some("thinking" | "redacted_thinking") => {}
            _ => rest.push(block.clone()),
        }
    }
    if !calls.is_empty() {
        all.push(json!({"role": role, "content": rest, "tool_calls": calls}));
    } else if !rest.is_empty() || blocks.is_empty() {
        all.push(json!({"role": role, "content": rest}));
    }
    Ok(())
}
