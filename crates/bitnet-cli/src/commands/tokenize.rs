//! `bitnet tokenize`: ids of a text.

use super::vocabulary;
use crate::failure::Failure;
use crate::hub;
use bitnet_tokenizer::Tokenizer;
use clap::Args;
use serde_json::{Value, json};
use std::io::{BufRead, Read, Write};
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet tokenize model.gguf \"Hello world\"
  bitnet tokenize tokenizer.json --json < text.txt
  printf '\"one\"\\n\"two\"\\n' | bitnet tokenize model.gguf --lines")]
pub struct Tokenize {
    /// Model, org/repo[:file-or-quant][@revision] of the hub, tokenizer.json or tokenizer.model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The text; standard input when absent
    text: Option<String>,
    /// Print {"ids": [...], "pieces": [...]}
    #[arg(long)]
    json: bool,
    /// Read one JSON string a line from standard input and print one object a line
    #[arg(long, conflicts_with = "text")]
    lines: bool,
    /// Put nothing in front of the text
    #[arg(long)]
    no_special: bool,
}

impl Tokenize {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let model = hub::locate(&self.model, quiet)?;
        let tokenizer = vocabulary::open(&model)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.lines {
            for (number, line) in std::io::stdin().lock().lines().enumerate() {
                let line = line?;
                let text: String = serde_json::from_str(&line)
                    .map_err(|e| Failure::Usage(format!("line {} is no JSON string: {e}", number + 1)))?;
                writeln!(out, "{}", object(&tokenizer, &text, !self.no_special)?)?;
            }
            return Ok(out.flush()?);
        }
        let text = match self.text {
            Some(text) => text,
            None => {
                let mut bytes = Vec::new();
                std::io::stdin().read_to_end(&mut bytes)?;
                String::from_utf8(bytes)
                    .map_err(|_| Failure::Usage("standard input is not UTF-8".to_owned()))?
            }
        };
        if self.json {
            writeln!(out, "{}", object(&tokenizer, &text, !self.no_special)?)?;
        } else {
            let ids = tokenizer.encode(&text, !self.no_special)?;
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            writeln!(out, "{}", ids.join(" "))?;
        }
        Ok(out.flush()?)
    }
}

fn object(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Value, Failure> {
    let ids = tokenizer.encode(text, special)?;
    let pieces: Vec<String> = ids.iter().map(|id| tokenizer.piece(*id).unwrap_or_default()).collect();
    Ok(json!({"ids": ids, "pieces": pieces}))
}
