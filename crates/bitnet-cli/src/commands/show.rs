//! `bitnet show`: a model with where it is from, its licence and its metadata.

use super::report::Report;
use crate::args::ModelPath;
use crate::failure::Failure;
use crate::shipped;
use bitnet_formats::gguf::Value as Gguf;
use bitnet_formats::{Checkpoint, Header};
use bitnet_hub::snapshot_of;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// Bytes of a model card that are read: its licence stands at the beginning.
const CARD_BYTES: usize = 64 << 10;

/// A text of more characters is shown by its length.
const LONG: usize = 120;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet show microsoft/bitnet-b1.58-2B-4T-gguf
  bitnet show model.gguf --json | jq .licence")]
pub struct Show {
    #[command(flatten)]
    model: ModelPath,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let path = &*self.model.locate(quiet)?;
        let checkpoint = shipped::open(path)?;
        let report = Report::new(path, &checkpoint)?;
        let origin = snapshot_of(path);
        let (licence, metadata) = (licence(&checkpoint), metadata(&checkpoint));
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.json {
            let mut object = Map::new();
            object.insert("repository".to_owned(), json!(origin.as_ref().map(|o| o.repo.as_str())));
            object.insert("commit".to_owned(), json!(origin.as_ref().map(|o| &o.commit)));
            object.insert("licence".to_owned(), json!(licence));
            object.insert("metadata".to_owned(), Value::Object(metadata));
            if let Value::Object(rest) = report.json() {
                object.extend(rest);
            }
            writeln!(out, "{}", Value::Object(object))?;
            return Ok(out.flush()?);
        }
        if let Some(origin) = origin {
            writeln!(out, "{:<14} {}\n{:<14} {}", "repository", origin.repo, "commit", origin.commit)?;
        }
        writeln!(out, "{:<14} {}", "licence", licence.as_deref().unwrap_or("not stated"))?;
        report.print(&mut out, true)?;
        writeln!(out, "\nmetadata:")?;
        let width = metadata.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in &metadata {
            writeln!(out, "{key:<width$}  {}", brief(value))?;
        }
        Ok(out.flush()?)
    }
}

/// What the file, or the model card beside it, states.
fn licence(checkpoint: &Checkpoint) -> Option<String> {
    match &checkpoint.header {
        Header::Gguf { metadata, .. } => metadata.str("general.license").map(str::to_owned),
        Header::HuggingFace { dir, .. } => card_licence(&dir.join("README.md")),
    }
}

/// `license:` of the block between dashes with which a model card begins.
fn card_licence(card: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(card).ok()?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, CARD_BYTES as u64), &mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    (lines.next()?.trim_end() == "---").then_some(())?;
    let value = |key: &str| {
        let mut block = text.lines().skip(1).take_while(|l| l.trim_end() != "---");
        let value =
            block.find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    // A licence that is on no list is called `other`, and has a name beside it.
    match value("license")? {
        other if other == "other" => value("license_name").or(Some(other)),
        known => Some(known),
    }
}

/// What stands beside the tensors. Of lists of a GGUF file (vocabularies) the length stands for them.
fn metadata(checkpoint: &Checkpoint) -> Map<String, Value> {
    match &checkpoint.header {
        Header::Gguf { metadata, .. } => metadata.0.iter().map(|(k, v)| (k.clone(), value(v))).collect(),
        Header::HuggingFace { config, generation_config, .. } => {
            let of = |from: &Value, prefix: &str| {
                let entries = from.as_object().cloned().unwrap_or_default();
                entries.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v)).collect::<Vec<_>>()
            };
            of(config, "").into_iter().chain(of(generation_config, "generation.")).collect()
        }
    }
}

fn value(value: &Gguf) -> Value {
    match value {
        Gguf::String(s) => json!(s),
        Gguf::Bool(b) => json!(b),
        Gguf::Strings(list) => json!({"values": list.len()}),
        Gguf::Array(list) => json!({"values": list.len()}),
        Gguf::F32(f) => json!(f),
        Gguf::F64(f) => json!(f),
        Gguf::I8(n) => json!(n),
        Gguf::I16(n) => json!(n),
        Gguf::I32(n) => json!(n),
        Gguf::I64(n) => json!(n),
        Gguf::U8(n) => json!(n),
        Gguf::U16(n) => json!(n),
        Gguf::U32(n) => json!(n),
        Gguf::U64(n) => json!(n),
    }
}

/// A value on one line.
fn brief(value: &Value) -> String {
    let text = match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    match text.chars().count() {
        long if long > LONG => format!("({long} characters)"),
        _ => text.replace(|c: char| c.is_control(), " "),
    }
}
