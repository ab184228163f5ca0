//! The messages of a conversation, and the file that they are kept in.

use crate::failure::Failure;
use bitnet_tokenizer::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// The messages so far.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    messages: Vec<Value>,
}

impl Conversation {
    pub fn new(system: Option<&str>) -> Self {
        Self { messages: system.map(|text| json!({"role": "system", "content": text})).into_iter().collect() }
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Forgets all but the system prompt.
    pub fn clear(&mut self) {
        let system = self.messages.first().is_some_and(|m| m["role"] == "system");
        self.messages.truncate(usize::from(system));
    }

    pub fn say(&mut self, text: &str) {
        self.messages.push(json!({"role": "user", "content": text}));
    }

    pub fn answered(&mut self, text: &str) {
        self.messages.push(json!({"role": "assistant", "content": text}));
    }

    /// Takes back what was said last.
    pub fn unsay(&mut self) {
        self.messages.pop();
    }

    /// Takes back the last answer; false when there is nothing to answer.
    pub fn take_answer(&mut self) -> bool {
        let last = |m: &[Value]| m.last().map(|m| m["role"].clone());
        if last(&self.messages) == Some(json!("assistant")) {
            self.messages.pop();
        }
        last(&self.messages) == Some(json!("user"))
    }

    /// The prompt that asks for the next answer.
    pub fn prompt(&self, template: &ChatTemplate, tokenizer: &Tokenizer) -> Result<Vec<u32>, Failure> {
        let text = template.render(&Value::Array(self.messages.clone()), true, &Map::new())?;
        Ok(tokenizer.encode_chat(&text)?)
    }

    /// Reads what [`Self::save`] wrote, or a list of messages.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
        let text = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let value: Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("no JSON: {e}")))?;
        let list = value.get("messages").unwrap_or(&value).as_array();
        let whole = |m: &Value| m["role"].is_string() && m["content"].is_string();
        match list.filter(|list| list.iter().all(whole)) {
            Some(messages) => Ok(Self { messages: messages.clone() }),
            None => Err(wrong("no list of messages with a role and a content each".to_owned())),
        }
    }

    /// Writes the messages; the file is whole, or as it was before.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".chat-").suffix(".part").tempfile_in(folder)?;
            writeln!(file, "{:#}", json!({"messages": self.messages}))?;
            file.persist(path).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(|e| Failure::Runtime(format!("{} cannot be written: {e}", path.display())))
    }
}
