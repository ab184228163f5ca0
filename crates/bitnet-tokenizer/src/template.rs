//! Chat templates as transformers renders them: Jinja with `raise_exception`, `strftime_now`, Python's `tojson` and the
//! methods of Python's strings, lists and dictionaries.

use crate::{TemplateError, python_json};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

/// The template of BitNet b1.58 2B-4T. Converted files may carry another one, which the model was not trained with.
pub const BITNET_2B_4T_TEMPLATE: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = \
     message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}\
     {% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

/// What marks the template that bitnet.cpp's converter writes instead.
const CONVERTED: &str = "BITNETAssistant";

/// Steps a template may take; the longest real ones need a few thousand a message. A step also pays for 64 bytes of text
/// that a template makes. Lists that hold each other over and over are seen only once they have been walked.
const FUEL: u64 = 4_000_000;

/// Texts of special tokens that templates refer to.
#[derive(Clone, Debug, Default)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
}

/// A parsed template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: SpecialTokens,
    source: String,
}

impl ChatTemplate {
    /// Parses a template. The one that bitnet.cpp's converter puts into files of 2B-4T is replaced by the model's own.
    pub fn new(source: &str, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        Self::verbatim(if source.contains(CONVERTED) { BITNET_2B_4T_TEMPLATE } else { source }, tokens)
    }

    pub(crate) fn verbatim(source: &str, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let whitespace = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(whitespace.map_err(|e| TemplateError::Parse(describe(&e)))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(|e| TemplateError::Parse(describe(&e)))?;
        Ok(Self { environment, tokens, source: source.to_owned() })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders `messages`, a list of objects with `role` and `content`. `add_generation_prompt` opens the assistant's
    /// turn; `extra` are further variables (`tools`, `documents`, what a template defines of its own).
    pub fn render(
        &self,
        messages: &Json,
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, Json>,
    ) -> Result<String, TemplateError> {
        let failed = |e: Error| TemplateError::Render(describe(&e));
        let mut context: serde_json::Map<String, Json> = extra.clone();
        context.insert("messages".to_owned(), messages.clone());
        context.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        let tokens = [
            ("bos_token", &self.tokens.bos),
            ("eos_token", &self.tokens.eos),
            ("unk_token", &self.tokens.unk),
            ("pad_token", &self.tokens.pad),
        ];
        for (name, token) in tokens {
            // Transformers leaves out what the tokenizer lacks, and an undefined variable prints nothing.
            if let Some(token) = token {
                context.insert(name.to_owned(), token.as_str().into());
            }
        }
        self.environment
            .get_template("chat")
            .map_err(failed)?
            .render(Value::from(Serde(context)))
            .map_err(failed)
    }
}

/// The message with its line and what caused it.
fn describe(e: &Error) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Transformers' `{% generation %}` marks what the assistant says, for training; it prints what is inside.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // The tag may be as short as `{%%}`, but its two ends share no byte.
        let Some(len) = rest[start + 2..].find("%}").map(|at| at + 2) else { break };
        let tag = &rest[start + 2..start + len];
        let (open, inner, close) = {
            let inner = tag.trim_start_matches(['-', '+']);
            let open = &tag[..tag.len() - inner.len()];
            let trimmed = inner.trim_end_matches(['-', '+']);
            (open, trimmed, &inner[trimmed.len()..])
        };
        out.push_str(&rest[..start]);
        match inner.trim() {
            "generation" => out.push_str(&format!("{{%{open} if true {close}%}}")),
            "endgeneration" => out.push_str(&format!("{{%{open} endif {close}%}}")),
            _ => out.push_str(&rest[start..start + len + 2]),
        }
        rest = &rest[start + len + 2..];
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let invalid = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    // Accepted as transformers does; the output is never ASCII only, and keys keep their order.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let json = serde_json::to_value(&value).map_err(invalid)?;
    Ok(Value::from_safe_string(python_json::dumps(&json, indent).map_err(invalid)?))
}

#[cfg(test)]
mod tests;
