//! `bitnet detokenize`: text of ids.

use super::vocabulary;
use crate::args::ids;
use crate::failure::Failure;
use crate::hub;
use clap::Args;
use serde_json::json;
use std::io::{BufRead, Read, Write};
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet detokenize model.gguf 128000,9906,1917
  bitnet tokenize model.gguf \"Hello\" | bitnet detokenize model.gguf --no-special")]
pub struct Detokenize {
    /// Model, org/repo[:file-or-quant][@revision] of the hub, tokenizer.json or tokenizer.model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Ids, with commas or spaces between; standard input when absent
    #[arg(value_name = "IDS")]
    ids: Vec<String>,
    /// Print {"text": "..."}
    #[arg(long)]
    json: bool,
    /// Read one JSON list of ids a line from standard input and print one object a line
    #[arg(long, conflicts_with = "ids")]
    lines: bool,
    /// Leave special tokens out
    #[arg(long)]
    no_special: bool,
}

impl Detokenize {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let model = hub::locate(&self.model, quiet)?;
        let tokenizer = vocabulary::open(&model)?;
        let decode = |list: &[u32]| -> Result<String, Failure> {
            if let Some(id) = list.iter().find(|id| tokenizer.piece(**id).is_none()) {
                return Err(Failure::Usage(format!("id {id} is no token of {}", model.display())));
            }
            Ok(tokenizer.decode(list, self.no_special)?)
        };
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.lines {
            for (number, line) in std::io::stdin().lock().lines().enumerate() {
                let list: Vec<u32> = serde_json::from_str(&line?)
                    .map_err(|e| Failure::Usage(format!("line {} is no list of ids: {e}", number + 1)))?;
                writeln!(out, "{}", json!({"text": decode(&list)?}))?;
            }
            return Ok(out.flush()?);
        }
        let text = match self.ids.is_empty() {
            false => self.ids.join(" "),
            true => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            }
        };
        let text = decode(&ids(&text)?)?;
        if self.json {
            writeln!(out, "{}", json!({"text": text}))?;
        } else {
            writeln!(out, "{text}")?;
        }
        Ok(out.flush()?)
    }
}
