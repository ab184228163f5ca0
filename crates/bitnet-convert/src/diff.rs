//! What two checkpoints say differently beside their tensors.

use crate::ConvertError;
use bitnet_formats::gguf::Value as Entry;
use bitnet_formats::{Checkpoint, Header};
use bitnet_model::{ModelConfig, RopeScaling};
use serde_json::Value;

/// Something that two checkpoints say differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is called.
    pub key: String,
    /// What the first says, if anything.
    pub left: Option<String>,
    /// What the second says, if anything.
    pub right: Option<String>,
}

/// Compares metadata key by key where both files are of one kind, else the settings that both have; and tokenizers and chat
/// templates in any case.
pub fn differences(a: &Checkpoint, b: &Checkpoint) -> Result<Vec<Difference>, ConvertError> {
    let mut found = Vec::new();
    match (&a.header, &b.header) {
        (Header::Gguf { metadata: x, .. }, Header::Gguf { metadata: y, .. }) => {
            let keys = x.0.iter().chain(y.0.iter().filter(|(k, _)| x.get(k).is_none())).map(|(k, _)| k);
            keys.for_each(|k| entries(&mut found, k, x.get(k), y.get(k)));
        }
        (
            Header::HuggingFace { config: x, generation_config: p, .. },
            Header::HuggingFace { config: y, generation_config: q, .. },
        ) => {
            json(&mut found, "config", Some(x), Some(y));
            json(&mut found, "generation_config", Some(p), Some(q));
        }
        _ => {
            let (x, y) = (settings(&ModelConfig::read(a)?), settings(&ModelConfig::read(b)?));
            for ((key, x), (_, y)) in x.into_iter().zip(y) {
                note(&mut found, key, Some(x), Some(y));
            }
        }
    }
    tokenizers(&mut found, a, b)?;
    Ok(found)
}

fn note(found: &mut Vec<Difference>, key: &str, left: Option<String>, right: Option<String>) {
    // Long texts begin alike more often than not; whoever wants all of them has `inspect`.
    let short = |s: String| match s.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &s[..end]),
        None => s,
    };
    if left != right {
        found.push(Difference { key: key.to_owned(), left: left.map(short), right: right.map(short) });
    }
}

fn entries(found: &mut Vec<Difference>, key: &str, x: Option<&Entry>, y: Option<&Entry>) {
    if let (Some(Entry::Array(x)), Some(Entry::Array(y))) = (x, y) {
        if x.len() != y.len() {
            let count = |v: &[Entry]| Some(format!("{} elements", v.len()));
            return note(found, key, count(x), count(y));
        }
        let first = x.iter().zip(y).position(|(x, y)| x != y);
        return first
            .into_iter()
            .for_each(|i| entries(found, &format!("{key}[{i}]"), Some(&x[i]), Some(&y[i])));
    }
    let shown = |v: Option<&Entry>| {
        v.map(|v| match v {
            Entry::Array(v) => format!("{} elements", v.len()),
            Entry::String(s) => s.clone(),
            other => format!("{other:?}"),
        })
    };
    note(found, key, shown(x), shown(y));
}

fn json(found: &mut Vec<Difference>, key: &str, x: Option<&Value>, y: Option<&Value>) {
    match (x, y) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
            keys.for_each(|k| json(found, &format!("{key}.{k}"), x.get(k), y.get(k)));
        }
        _ => note(found, key, x.map(Value::to_string), y.map(Value::to_string)),
    }
}

/// What a model is computed from, and where a text ends.
fn settings(c: &ModelConfig) -> Vec<(&'static str, String)> {
    let counterpart = c.arch.in_other_files();
    let mut names = [Some(c.arch.name), counterpart.map(|a| a.name)].map(Option::unwrap_or_default);
    names.sort_unstable();
    vec![
        ("architecture", names.join(" / ")),
        ("hidden size", c.hidden.to_string()),
        ("feed-forward size", c.ffn.to_string()),
        ("layers", c.layers.to_string()),
        ("heads", c.shape.heads.to_string()),
        ("key and value heads", c.shape.kv_heads.to_string()),
        ("head size", c.shape.head_dim.to_string()),
        ("vocabulary", c.vocab.to_string()),
        ("context", c.context.to_string()),
        ("rope theta", (c.rope.theta as f32).to_string()),
        ("rope factors", format!("{:?}", c.rope_factors())),
        ("rope scaling", format!("{:?}", c.rope.scaling.filter(|s| !matches!(s, RopeScaling::Llama3(_))))),
        ("norm epsilon", format!("{:e}", c.eps)),
        ("activation", format!("{:?}", c.activation)),
        ("beginning of text", format!("{:?}", c.bos)),
        ("end of text", format!("{:?}", c.eos)),
    ]
}

fn tokenizers(found: &mut Vec<Difference>, a: &Checkpoint, b: &Checkpoint) -> Result<(), ConvertError> {
    let (x, y) = (bitnet_inference::tokenizer(a)?, bitnet_inference::tokenizer(b)?);
    let (Some(x), Some(y)) = (&x, &y) else {
        let there = |t: bool| Some(if t { "there is one" } else { "there is none" }.to_owned());
        note(found, "tokenizer", there(x.is_some()), there(y.is_some()));
        return Ok(());
    };
    let (size_x, size_y) = (x.vocab_size(), y.vocab_size());
    note(found, "tokenizer: tokens", Some(size_x.to_string()), Some(size_y.to_string()));
    let other = (0..size_x.min(size_y) as u32).find(|id| x.piece(*id) != y.piece(*id));
    if let Some(id) = other {
        note(found, &format!("tokenizer: token {id}"), x.piece(id), y.piece(id));
    }
    for (key, p, q) in [("beginning of text", x.bos(), y.bos()), ("end of text", x.eos(), y.eos())] {
        let text = |id: Option<u32>| id.map(|id| id.to_string());
        note(found, &format!("tokenizer: {key}"), text(p), text(q));
    }
    let template = |t: &bitnet_tokenizer::Tokenizer| match t.template() {
        Ok(template) => template.map(|t| t.source().to_owned()),
        Err(e) => Some(e.to_string()),
    };
    note(found, "chat template", template(x), template(y));
    Ok(())
}
