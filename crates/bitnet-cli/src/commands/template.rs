//! `bitnet template`: the prompt that a conversation becomes.

use super::vocabulary;
use crate::failure::Failure;
use crate::hub;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet template model.gguf messages.json
  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | bitnet template model.gguf -")]
pub struct Template {
    /// Model, or org/repo[:file-or-quant][@revision] of the hub
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A JSON list of messages, or an object with `messages` and further variables such as `tools`; - is standard input
    #[arg(value_name = "MESSAGES")]
    messages: PathBuf,
    /// Do not open the assistant's turn at the end
    #[arg(long)]
    no_generation_prompt: bool,
    /// Print {"prompt": "..."}
    #[arg(long)]
    json: bool,
}

impl Template {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let model = hub::locate(&self.model, quiet)?;
        let tokenizer = vocabulary::open(&model)?;
        let template = vocabulary::template(&tokenizer, &model)?;
        let mut text = Vec::new();
        if self.messages.as_os_str() == "-" {
            std::io::stdin().read_to_end(&mut text)?;
        } else {
            text = std::fs::read(&self.messages)
                .map_err(|e| Failure::Usage(format!("{}: {e}", self.messages.display())))?;
        }
        let value: Value = serde_json::from_slice(&text)
            .map_err(|e| Failure::Usage(format!("{} is no JSON: {e}", self.messages.display())))?;
        let (messages, extra) = match value {
            Value::Object(mut object) => (object.shift_remove("messages").unwrap_or_default(), object),
            messages => (messages, Map::new()),
        };
        if !messages.is_array() {
            return Err(Failure::Usage(format!("{} holds no list of messages", self.messages.display())));
        }
        let prompt =
            template.render(&messages, !self.no_generation_prompt, &extra).map_err(Failure::at(&model))?;
        let mut out = std::io::stdout().lock();
        if self.json {
            return Ok(writeln!(out, "{}", json!({"prompt": prompt}))?);
        }
        out.write_all(prompt.as_bytes())?;
        // A file or a pipe gets the prompt to the last byte.
        if out.is_terminal() && !prompt.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}
