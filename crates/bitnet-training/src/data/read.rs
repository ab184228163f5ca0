//! Examples of files.

use crate::TrainError;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The longest line that is taken.
const MAX_LINE: usize = 1 << 27;

/// What a model is to learn from one row of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// Every token.
    Text(String),
    /// The tokens of the completion.
    Prompt {
        /// What stands before.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// The tokens of what the assistant says.
    Chat(Vec<Value>),
}

/// Rows that are no examples: how many, and where the first of them are, each with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// `file:line: reason` of the first.
    pub first: Vec<String>,
}

impl Skipped {
    /// Reasons that are kept.
    const KEPT: usize = 5;

    pub(crate) fn add(&mut self, place: &str, why: &str) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(format!("{place}: {why}"));
        }
    }
}

/// An example, and where it stands.
pub(super) type Placed = (String, Example);

/// Hands the examples of a file on, some at a time.
pub(super) fn examples(
    path: &Path,
    skipped: &mut Skipped,
    each: &mut dyn FnMut(Vec<Placed>) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let io = || TrainError::io(path);
    let name = path.display().to_string();
    match path.extension().and_then(|e| e.to_str()) {
        Some("txt") => {
            let text = std::fs::read(path).map_err(io())?;
            match String::from_utf8(text) {
                Ok(text) if text.trim().is_empty() => skipped.add(&name, "it is empty"),
                Ok(text) => each(vec![(name, Example::Text(text))])?,
                Err(e) => {
                    let at = e.utf8_error().valid_up_to();
                    skipped.add(&name, &format!("it is not UTF-8 from byte {at} on"));
                }
            }
            Ok(())
        }
        Some("jsonl") => {
            let mut lines = BufReader::new(File::open(path).map_err(io())?);
            let (mut line, mut number, mut some) = (Vec::new(), 0, Vec::new());
            loop {
                line.clear();
                let read = lines.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
                if read.map_err(io())? == 0 {
                    return each(some);
                }
                number += 1;
                let place = format!("{name}:{number}");
                if line.len() > MAX_LINE {
                    let what = format!("{place}: the line has more than {MAX_LINE} bytes");
                    return Err(TrainError::Data { what });
                }
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let value = serde_json::from_slice(&line).map_err(|e| format!("it is no JSON: {e}"));
                match value.and_then(of_value) {
                    Ok(example) => some.push((place, example)),
                    Err(why) => skipped.add(&place, &why),
                }
                if some.len() == 1024 {
                    each(std::mem::take(&mut some))?;
                }
            }
        }
        Some("json") => {
            let text = std::fs::read(path).map_err(io())?;
            let all: Vec<Value> = serde_json::from_slice(&text)
                .map_err(|e| TrainError::Data { what: format!("{name} is no JSON list of objects: {e}") })?;
            let mut some = Vec::new();
            for (i, value) in all.into_iter().enumerate() {
                let place = format!("{name}: element {}", i + 1);
                match of_value(value) {
                    Ok(example) => some.push((place, example)),
                    Err(why) => skipped.add(&place, &why),
                }
            }
            each(some)
        }
        _ => Err(TrainError::Data { what: format!("{name} ends in none of .txt, .jsonl and .json") }),
    }
}

fn of_value(value: Value) -> Result<Example, String> {
    let text = |key: &str| match value.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("its {key} is no text")),
    };
    if let Some(messages) = value.get("messages") {
        let messages = messages.as_array().filter(|m| !m.is_empty()).ok_or("its messages are no list")?;
        for m in messages {
            if !["role", "content"].iter().all(|key| m.get(key).is_some_and(Value::is_string)) {
                return Err("a message lacks role or content".to_owned());
            }
        }
        if !messages.iter().any(|m| m["role"] == "assistant") {
            return Err("the assistant says nothing in it".to_owned());
        }
        return Ok(Example::Chat(messages.clone()));
    }
    match (text("prompt")?, text("completion")?, text("text")?) {
        (Some(prompt), Some(completion), _) if !completion.is_empty() => {
            Ok(Example::Prompt { prompt, completion })
        }
        (Some(_), _, None) => Err("it has a prompt and no completion".to_owned()),
        (_, _, Some(text)) if !text.is_empty() => Ok(Example::Text(text)),
        (_, _, Some(_)) => Err("its text is empty".to_owned()),
        _ => Err("it has none of text, messages, prompt and completion".to_owned()),
    }
}
