//! Rows and their answers as a table.

use super::input::Input;
use crate::failure::Failure;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Result, Write};

/// Columns behind those of the input.
const ANSWERS: [&str; 5] = ["answer", "finish_reason", "prompt_tokens", "completion_tokens", "error"];

pub struct Table {
    pub names: Vec<String>,
    /// As many cells a row as there are names.
    pub rows: Vec<Vec<Value>>,
}

/// Refuses an input whose columns have names of the output's own.
pub fn check(input: &Input) -> std::result::Result<(), Failure> {
    match input.columns.iter().find(|name| ANSWERS.contains(&name.as_str())) {
        Some(name) => Err(Failure::Usage(format!(
            "the input has a column {name:?}, which is one of the output's own; give it another name"
        ))),
        None => Ok(()),
    }
}

impl Table {
    pub fn new(input: &Input, answers: &[Value]) -> Self {
        let own = ANSWERS.iter().map(|name| (*name).to_owned());
        let rows = input
            .cells
            .iter()
            .zip(answers)
            .map(|(cells, answer)| cells.iter().cloned().chain(columns(answer)).collect());
        Self { rows: rows.collect(), names: input.columns.iter().cloned().chain(own).collect() }
    }

    pub fn csv(&self, file: &mut File) -> Result<()> {
        let mut writer = csv::Writer::from_writer(file);
        writer.write_record(&self.names)?;
        for row in &self.rows {
            writer.write_record(row.iter().map(text))?;
        }
        writer.flush()
    }

    pub fn markdown(&self, file: &mut File) -> Result<()> {
        let mut out = BufWriter::new(file);
        let cell = |text: String| {
            let text = text.replace('\\', "\\\\").replace('|', "\\|");
            text.replace("\r\n", "<br>").replace(['\n', '\r'], "<br>")
        };
        let mut line = |cells: Vec<String>| writeln!(out, "| {} |", cells.join(" | "));
        line(self.names.iter().cloned().map(cell).collect())?;
        line(vec!["---".to_owned(); self.names.len()])?;
        for row in &self.rows {
            line(row.iter().map(|value| cell(text(value))).collect())?;
        }
        out.flush()
    }
}

/// A cell without JSON's quotes; nothing where there is nothing.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What an answer says in [`ANSWERS`].
fn columns(answer: &Value) -> [Value; 5] {
    let (body, status) = match answer.get("response") {
        Some(response) => (&response["body"], response["status_code"].as_u64()),
        None => (answer, None),
    };
    let choice = &body["choices"][0];
    let said = [body.get("text"), choice.get("text"), choice["message"].get("content")];
    let said = said.into_iter().flatten().next().cloned().unwrap_or_default();
    let reason = body.get("finish_reason").unwrap_or(&choice["finish_reason"]).clone();
    let error = match (&body["error"], status) {
        (Value::Null, None | Some(200)) => Value::Null,
        (error, _) => error.get("message").cloned().unwrap_or_else(|| json!(error.to_string())),
    };
    let usage = &body["usage"];
    [said, reason, usage["prompt_tokens"].clone(), usage["completion_tokens"].clone(), error]
}
