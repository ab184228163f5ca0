//! Pairs of answers, of which the first is preferred.

use super::read::{Example, Prompt, is_message};
use serde_json::{Value, json};

/// Columns of tables, and keys of objects.
pub(super) const COLUMNS: [&str; 3] = ["prompt", "chosen", "rejected"];

/// Three texts; or conversations that differ in the assistant's last message: whole, or behind the messages of the prompt.
pub(super) fn of_value(value: &Value) -> Result<Example, String> {
    let need = |key: &str| value.get(key).ok_or_else(|| format!("it has no {key}"));
    let (chosen, rejected) = (need("chosen")?, need("rejected")?);
    let example = match (chosen, rejected) {
        (Value::String(chosen), Value::String(rejected)) => {
            let prompt = need("prompt")?.as_str().ok_or("its prompt is no text, and its answers are")?;
            Example::Pair {
                prompt: Prompt::Text(prompt.to_owned()),
                answers: [chosen.clone(), rejected.clone()],
            }
        }
        (Value::Array(chosen), Value::Array(rejected)) => {
            let asked = asked(value.get("prompt"))?;
            let (before, chosen) = divided(&asked, chosen)?;
            let (other, rejected) = divided(&asked, rejected)?;
            if before != other {
                return Err("chosen and rejected differ in more than the last message".to_owned());
            }
            Example::Pair { prompt: Prompt::Chat(before), answers: [chosen, rejected] }
        }
        _ => return Err("chosen and rejected are neither two texts nor two lists of messages".to_owned()),
    };
    match &example {
        Example::Pair { answers: [chosen, rejected], .. } if chosen == rejected => {
            Err("chosen and rejected are the same".to_owned())
        }
        Example::Pair { answers, .. } if answers.iter().any(String::is_empty) => {
            Err("an answer is empty".to_owned())
        }
        _ => Ok(example),
    }
}

/// The messages of a prompt; a text is what the user says.
fn asked(prompt: Option<&Value>) -> Result<Vec<Value>, String> {
    match prompt {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![json!({"role": "user", "content": text})]),
        Some(Value::Array(messages)) => {
            messages.iter().try_for_each(is_message)?;
            Ok(messages.clone())
        }
        Some(_) => Err("its prompt is neither a text nor a list of messages".to_owned()),
    }
}

/// What stands before an answer, and the answer.
fn divided(asked: &[Value], messages: &[Value]) -> Result<(Vec<Value>, String), String> {
    messages.iter().try_for_each(is_message)?;
    let (last, rest) = messages
        .split_last()
        .filter(|(last, _)| last["role"] == "assistant")
        .ok_or("chosen or rejected does not end with what the assistant says")?;
    // A whole conversation says itself what was asked.
    let whole = messages[0]["role"] != "assistant";
    let before = if whole { rest.to_vec() } else { [asked, rest].concat() };
    match before.is_empty() {
        true => Err("it has no prompt".to_owned()),
        false => Ok((before, last["content"].as_str().unwrap_or_default().to_owned())),
    }
}
