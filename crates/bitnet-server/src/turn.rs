//! A conversation that is to be continued, in whatever API it came.

use crate::answer::Answers;
use crate::aside::aside;
use crate::fields::Fields;
use crate::frame::Client;
use crate::state::Served;
use crate::tools::{Choice, Function, Tools, open_arguments};
use crate::{ApiError, Server};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A request for the next message.
#[derive(Default)]
pub(crate) struct Turn {
    /// In OpenAI's form.
    pub messages: Vec<Value>,
    pub tools: Vec<Function>,
    pub choice: Option<Choice>,
    /// What the template is given besides.
    pub template: Map<String, Value>,
    /// The likeliest tokens to be told with each.
    pub logprobs: Option<usize>,
    /// Texts that end the answer besides those of the fields.
    pub stop: Vec<String>,
    pub fields: Fields,
}

/// A message on its way.
pub(crate) struct Asked {
    pub model: Arc<Served>,
    pub answers: Answers,
    pub tools: Option<Arc<Tools>>,
    pub choices: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
}

impl Turn {
    /// The tools that may be called.
    pub fn tools(&self, model: &Served) -> Result<Option<Arc<Tools>>, ApiError> {
        if self.tools.is_empty() && self.choice.is_none() {
            return Ok(None);
        }
        let template = model.template()?.source();
        Ok(Tools::new(self.tools.clone(), self.choice.as_ref(), template)?.map(Arc::new))
    }

    pub async fn ask(self, server: &Arc<Server>, client: &Client) -> Result<Asked, ApiError> {
        let model = server.named(self.fields.model.as_deref())?;
        let tools = self.tools(&model)?;
        let mut request = self.fields.request(server, &model, client).await?;
        request.logprobs = self.logprobs;
        request.stop.extend(self.stop);
        if let Some(form) = tools.as_ref().and_then(|tools| tools.form()) {
            if request.form.is_some() {
                return Err(ApiError::field(
                    "tool_choice",
                    "an answer cannot be a call and have another form too",
                ));
            }
            request.form = Some(model.compile(form).await?);
        }
        request.prompt = prompt(&model, self.messages, self.template, tools.clone()).await?.1;
        let (choices, tokens) = (request.choices, request.prompt.len());
        let answers = Answers::submit(server, &model, vec![request], client).await?;
        Ok(Asked { model, answers, tools, choices, tokens })
    }
}

/// A conversation in the model's own form, with the assistant's turn opened, and its ids.
pub(crate) async fn prompt(
    model: &Arc<Served>,
    messages: Vec<Value>,
    extra: Map<String, Value>,
    tools: Option<Arc<Tools>>,
) -> Result<(String, Vec<u32>), ApiError> {
    let model = Arc::clone(model);
    aside(move || render(&model, &messages, extra, tools.as_deref())).await
}

fn render(
    model: &Served,
    messages: &[Value],
    mut extra: Map<String, Value>,
    tools: Option<&Tools>,
) -> Result<(String, Vec<u32>), ApiError> {
    let mut messages =
        messages.iter().enumerate().map(|(at, m)| plain(at, m)).collect::<Result<Vec<_>, _>>()?;
    if let Some(tools) = tools {
        tools.tell(&mut messages, &mut extra);
    }
    if messages.is_empty() {
        return Err(ApiError::field("messages", "there is no message"));
    }
    let template = model.template()?;
    let text = template
        .render(&Value::Array(messages), true, &extra)
        .map_err(|e| ApiError { param: Some("messages".to_owned()), ..ApiError::bad(e.to_string()) })?;
    let ids = model.tokenizer()?.encode_chat(&text).map_err(|e| ApiError::internal(e.to_string()))?;
    Ok((text, ids))
}

/// A message whose content is one text, as templates expect it.
fn plain(at: usize, message: &Value) -> Result<Value, ApiError> {
    let param = |field: &str| format!("messages[{at}].{field}");
    let wrong = |field: &str, what: &str| ApiError::field(&param(field), format!("{} {what}", param(field)));
    let object = message.as_object().ok_or_else(|| {
        ApiError::field(&format!("messages[{at}]"), format!("messages[{at}] is not an object"))
    })?;
    if !object.get("role").is_some_and(Value::is_string) {
        return Err(wrong("role", "is not a string"));
    }
    let content = match object.get("content") {
        None | Some(Value::Null) => Value::String(String::new()),
        Some(Value::String(text)) => Value::String(text.clone()),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for part in parts {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text"), Some(t)) => text += t,
                    (Some("text") | None, _) => return Err(wrong("content", "has a part without text")),
                    (Some(kind), _) => {
                        return Err(ApiError::absent(
                            &param("content"),
                            format!("the model takes no {kind}"),
                        ));
                    }
                }
            }
            Value::String(text)
        }
        Some(_) => return Err(wrong("content", "is neither a text nor a list of parts")),
    };
    let mut object = object.clone();
    object.insert("content".to_owned(), content);
    let mut message = Value::Object(object);
    open_arguments(&mut message);
    Ok(message)
}
