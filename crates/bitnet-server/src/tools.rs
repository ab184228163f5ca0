//! Tool calls: how a model is told of tools, how it is made to call one, and how calls are found in its text.
//!
//! A family of templates writes calls in its own way. Where the template knows no tools, they are described in a system message, and
//! calls are asked for in Hermes' form.

use crate::ApiError;
use crate::frame::fresh_id;
use bitnet_inference::{Form, bounded_whitespace};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use utoipa::ToSchema;

/// How calls are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, any number of them.
    Hermes,
    /// The answer is `{"name": ..., "parameters": ...}`.
    Llama3,
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct Tool {
    pub function: Function,
}

#[derive(Clone, Deserialize, Serialize, ToSchema)]
pub(crate) struct Function {
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    /// A JSON schema.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
}

/// `auto`, `none`, `required`, or a function by its name.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = ToolChoice)]
pub(crate) enum Choice {
    Word(String),
    Named { function: Named },
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ToolChoiceFunction)]
pub(crate) struct Named {
    pub name: String,
}

/// A call that an answer makes.
pub(crate) struct Call {
    pub id: String,
    pub name: String,
    pub arguments: Value,
}

/// The tools of a request.
pub(crate) struct Tools {
    tools: Vec<Function>,
    family: Family,
    /// Whether the template tells the model of them.
    told: bool,
    /// Whether one has to be called, and which.
    required: bool,
}

impl Tools {
    /// The tools that may be called; `None` where there are none or they may not. `template` is the model's.
    pub fn new(
        mut tools: Vec<Function>,
        choice: Option<&Choice>,
        template: &str,
    ) -> Result<Option<Self>, ApiError> {
        let wrong = |message: String| ApiError::field("tool_choice", message);
        let required = match choice {
            None => false,
            Some(Choice::Word(word)) => match word.as_str() {
                "auto" => false,
                "none" => return Ok(None),
                "required" => true,
                _ => {
                    return Err(wrong(format!(
                        "tool_choice is auto, none, required or a function, not {word:?}"
                    )));
                }
            },
            Some(Choice::Named { function }) => {
                tools.retain(|tool| tool.name == function.name);
                if tools.is_empty() {
                    return Err(wrong(format!("there is no tool {:?}", function.name)));
                }
                true
            }
        };
        if tools.is_empty() {
            return if required { Err(wrong("there is no tool".to_owned())) } else { Ok(None) };
        }
        let told = template.contains("tools");
        let family = match template {
            t if !told || t.contains("<tool_call>") => Family::Hermes,
            t if t.contains("python_tag") || t.contains("\"parameters\"") => Family::Llama3,
            _ => Family::Hermes,
        };
        Ok(Some(Self { tools, family, told, required }))
    }

    /// What the template is given, or a message in front of the others where it takes no tools.
    pub fn tell(&self, messages: &mut Vec<Value>, extra: &mut Map<String, Value>) {
        let all: Vec<Value> = self
            .tools
            .iter()
            .map(|t| {
                let function =
                    json!({"name": t.name, "description": t.description, "parameters": t.schema()});
                json!({"type": "function", "function": function})
            })
            .collect();
        if self.told {
            extra.insert("tools".to_owned(), all.into());
            return;
        }
        let list: String = all.iter().map(|tool| format!("{}\n", tool["function"])).collect();
        let text = format!(
            "You may call functions. They are:\n{list}To call one, answer with its name and arguments as JSON:\n\
             <tool_call>\n{{\"name\": \"...\", \"arguments\": {{...}}}}\n</tool_call>"
        );
        match messages.first_mut().filter(|m| m["role"] == "system") {
            Some(system) => {
                let content = format!("{}\n\n{text}", system["content"].as_str().unwrap_or_default());
                system["content"] = content.into();
            }
            None => messages.insert(0, json!({"role": "system", "content": text})),
        }
    }

    /// The form of an answer that has to be a call.
    pub fn form(&self) -> Option<Form> {
        if !self.required {
            return None;
        }
        let arguments = if self.family == Family::Llama3 { "parameters" } else { "arguments" };
        let calls: Vec<Value> = self
            .tools
            .iter()
            .map(|t| {
                let properties = json!({"name": {"const": t.name}, arguments: t.schema()});
                json!({
                    "type": "object", "properties": properties, "required": ["name", arguments],
                    "additionalProperties": false,
                })
            })
            .collect();
        let call = bounded_whitespace(json!({"anyOf": calls}));
        Some(match self.family {
            Family::Llama3 => Form::JsonSchema(call),
            Family::Hermes => {
                Form::Lark(format!("start: \"<tool_call>\\n\" call \"\\n</tool_call>\"\ncall: %json {call}"))
            }
        })
    }

    /// What calls begin with.
    fn trigger(&self) -> &'static str {
        match self.family {
            Family::Hermes => "<tool_call>",
            Family::Llama3 => "{",
        }
    }

    /// How much of a text that grows is certain to be none of a call.
    fn plain(&self, text: &str) -> usize {
        let trigger = self.trigger();
        if self.family == Family::Llama3 {
            // A call is the whole answer.
            let starts = text.trim_start();
            return if starts.is_empty() || starts.starts_with(trigger) { 0 } else { text.len() };
        }
        if let Some(at) = text.find(trigger) {
            return at;
        }
        let part = (1..trigger.len()).rev().find(|len| text.ends_with(&trigger[..*len]));
        text.len() - part.unwrap_or(0)
    }

    /// The calls in a whole text and what stands before them. A text whose calls cannot be read is a text.
    pub fn calls(&self, text: &str) -> (String, Vec<Call>) {
        let plain = || (text.to_owned(), Vec::new());
        let Some(at) = text.find(self.trigger()) else { return plain() };
        let (before, rest) = text.split_at(at);
        let values: Option<Vec<Value>> = match self.family {
            Family::Llama3 if !before.trim().is_empty() => None,
            Family::Llama3 => serde_json::from_str(rest.trim()).ok().map(|v| vec![v]),
            Family::Hermes => rest
                .split("<tool_call>")
                .skip(1)
                .map(|call| serde_json::from_str(call.split("</tool_call>").next()?.trim()).ok())
                .collect(),
        };
        match values.and_then(|values| values.iter().map(call).collect::<Option<Vec<Call>>>()) {
            Some(calls) if !calls.is_empty() => (before.trim_end().to_owned(), calls),
            _ => plain(),
        }
    }
}

impl Function {
    fn schema(&self) -> Value {
        self.parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}))
    }
}

/// The text of an answer as it grows, in which tools may be called.
pub(crate) struct Held {
    tools: Option<Arc<Tools>>,
    text: String,
    /// Bytes that were given.
    given: usize,
}

impl Held {
    pub fn new(tools: Option<Arc<Tools>>) -> Self {
        Self { tools, text: String::new(), given: 0 }
    }

    /// What of the text can be given: no part of a call.
    pub fn push(&mut self, text: String) -> String {
        let Some(tools) = &self.tools else { return text };
        self.text += &text;
        let plain = tools.plain(&self.text).max(self.given);
        let given = self.text[self.given..plain].to_owned();
        self.given = plain;
        given
    }

    /// What was held when the text is whole: calls, or text after all.
    pub fn end(&self) -> (String, Vec<Call>) {
        let calls = self.tools.as_ref().map_or_else(Vec::new, |tools| tools.calls(&self.text).1);
        let rest = if calls.is_empty() { &self.text[self.given..] } else { "" };
        (rest.to_owned(), calls)
    }

    /// A whole text at once: what it says, and its calls.
    pub fn whole(mut self, text: String) -> (String, Vec<Call>) {
        let said = self.push(text);
        let (rest, calls) = self.end();
        (said + &rest, calls)
    }
}

fn call(value: &Value) -> Option<Call> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"))?.clone();
    Some(Call { id: fresh_id("call"), name, arguments })
}

/// Calls in a conversation have their arguments as text; templates want them as JSON.
pub(crate) fn open_arguments(message: &mut Value) {
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        // What is no call is the template's to complain of.
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = object;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(template: &str) -> Tools {
        let tool: Tool =
            serde_json::from_value(json!({"type": "function", "function": {"name": "f"}})).unwrap();
        Tools::new(vec![tool.function], None, template).unwrap().unwrap()
    }

    /// Templates, a text with calls in their family's form, what stands before, and how many calls there are.
    #[test]
    fn every_family_writes_calls_in_its_own_way() {
        let hermes = "x <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        for (template, text, before, count) in [
            ("no such thing", hermes, "x", 2),
            ("{{ tools }} <tool_call>", hermes, "x", 2),
            ("{{ tools }} <|python_tag|>", " {\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", 1),
            (
                "no such thing",
                "<tool_call>{\"name\": 3}</tool_call>",
                "<tool_call>{\"name\": 3}</tool_call>",
                0,
            ),
            ("no such thing", "just text", "just text", 0),
        ] {
            let tools = tools(template);
            let (got, calls) = tools.calls(text);
            assert_eq!((got.as_str(), calls.len()), (before, count), "{template}: {text}");
            if let Some(call) = calls.first() {
                assert_eq!(call.arguments, json!({"a": 1}));
            }
        }
    }

    #[test]
    fn half_a_call_is_held_back() {
        let hermes = tools("");
        for (text, plain) in [("abc", 3), ("abc<to", 3), ("abc<tool_call>{", 3), ("abc<b", 5)] {
            assert_eq!(hermes.plain(text), plain, "{text}");
        }
        let llama = tools("tools python_tag");
        for (text, plain) in [(" ", 0), (" {\"a", 0), ("a {", 3)] {
            assert_eq!(llama.plain(text), plain, "{text}");
        }
    }
}
