//! A response as a stream of events.

use super::{Item, Object, Part};
use crate::ApiError;
use crate::frame::fresh_id;
use crate::json::value;
use crate::stream::{Chunks, End, Piece};
use crate::tools::Held;
use serde_json::{Value, json};

pub(super) struct Form {
    object: Object,
    held: Held,
    /// The message in the making: its id, and its text as far as it was sent.
    message: Option<(String, String)>,
    /// Numbers the events.
    sent: usize,
}

impl Form {
    pub fn new(object: Object, held: Held) -> Self {
        Self { object, held, message: None, sent: 0 }
    }

    fn numbered(&mut self, kind: &str, mut event: Value) -> Value {
        event["type"] = kind.into();
        event["sequence_number"] = self.sent.into();
        self.sent += 1;
        event
    }

    fn state(&mut self, kind: &str) -> Value {
        let response = value(&self.object);
        self.numbered(kind, json!({"response": response}))
    }

    fn item(&mut self, kind: &str, item: &Item) -> Value {
        let index = self.object.output.len();
        self.numbered(kind, json!({"output_index": index, "item": item}))
    }

    /// An event about a part of an item that is on its way.
    fn part(&mut self, kind: &str, item: &str, mut event: Value) -> Value {
        event["item_id"] = item.into();
        event["output_index"] = self.object.output.len().into();
        event["content_index"] = 0.into();
        self.numbered(kind, event)
    }

    fn text(&mut self, text: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let (id, mut whole) = self.message.take().unwrap_or_else(|| {
            let id = fresh_id("msg");
            events.push(
                self.item("response.output_item.added", &Item::message(id.clone(), "in_progress", None)),
            );
            let empty = json!({"part": Part::text(String::new())});
            events.push(self.part("response.content_part.added", &id, empty));
            (id, String::new())
        });
        whole += text;
        events.push(self.part("response.output_text.delta", &id, json!({"delta": text, "logprobs": []})));
        self.message = Some((id, whole));
        events
    }

    fn close_message(&mut self) -> Vec<Value> {
        let Some((id, text)) = self.message.take() else { return Vec::new() };
        let item = Item::message(id.clone(), "completed", Some(text.clone()));
        let part = json!({"part": Part::text(text.clone())});
        let events = vec![
            self.part("response.output_text.done", &id, json!({"text": text, "logprobs": []})),
            self.part("response.content_part.done", &id, part),
            self.item("response.output_item.done", &item),
        ];
        self.object.output.push(item);
        events
    }

    fn call(&mut self, item: Item) -> Vec<Value> {
        let Item::FunctionCall { id, call_id, name, arguments, .. } = item.clone() else { return Vec::new() };
        let begun = Item::FunctionCall {
            id: id.clone(),
            call_id,
            name,
            arguments: String::new(),
            status: "in_progress",
        };
        let index = self.object.output.len();
        let about = |key: &str| json!({"item_id": id, "output_index": index, key: arguments});
        let events = vec![
            self.item("response.output_item.added", &begun),
            self.numbered("response.function_call_arguments.delta", about("delta")),
            self.numbered("response.function_call_arguments.done", about("arguments")),
            self.item("response.output_item.done", &item),
        ];
        self.object.output.push(item);
        events
    }
}

impl Chunks for Form {
    fn begin(&mut self) -> Vec<Value> {
        vec![self.state("response.created"), self.state("response.in_progress")]
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Value> {
        let text = self.held.push(piece.text);
        if text.is_empty() { Vec::new() } else { self.text(&text) }
    }

    fn finished(&mut self, _: usize, end: End) -> Vec<Value> {
        let (rest, calls) = self.held.end();
        // An answer without a word is an empty message.
        let speaks = !rest.is_empty() || (calls.is_empty() && self.message.is_none());
        let mut events = if speaks { self.text(&rest) } else { Vec::new() };
        events.extend(self.close_message());
        for call in calls {
            events.extend(self.call(Item::call(call)));
        }
        self.object.finish(end.reason, &end.timings);
        let kind = format!("response.{}", self.object.status);
        events.push(self.state(&kind));
        events
    }

    fn error(&self, error: &ApiError) -> Value {
        json!({
            "type": "error", "code": error.code.unwrap_or("server_error"), "message": error.message,
            "param": error.param, "sequence_number": self.sent,
        })
    }
}
