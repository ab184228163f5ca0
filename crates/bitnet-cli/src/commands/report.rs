//! What a model is made of, from its headers.

use crate::args::count;
use crate::failure::Failure;
use bitnet_core::Activation;
use bitnet_formats::{Checkpoint, Header, Tensor, TensorType};
use bitnet_model::{ModelConfig, RopeScaling};
use bitnet_tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A tensor as a model counts it.
struct Row<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: &'static str,
    weights: u64,
    bytes: u64,
}

impl Row<'_> {
    fn json(&self) -> Value {
        json!({"name": self.name, "shape": self.shape, "type": self.kind, "bytes": self.bytes})
    }
}

fn row<'a>(checkpoint: &Checkpoint, t: &'a Tensor) -> Row<'a> {
    let mut shape = t.shape.clone();
    // Four rows of a packed Hugging Face projection share a byte.
    let packed =
        matches!(t.ttype, TensorType::U8) && checkpoint.tensor(&format!("{}_scale", t.name)).is_some();
    if let (true, Some(rows)) = (packed, shape.first_mut()) {
        *rows *= 4;
    }
    Row {
        name: &t.name,
        weights: shape.iter().map(|d| *d as u64).product(),
        kind: if packed { "HF packed" } else { t.ttype.name() },
        bytes: t.data.len() as u64,
        shape,
    }
}

#[derive(Default)]
struct Total {
    tensors: usize,
    weights: u64,
    bytes: u64,
}

impl Total {
    fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.weights.max(1) as f64
    }

    fn json(&self) -> Value {
        json!({"tensors": self.tensors, "weights": self.weights, "bytes": self.bytes, "bits_per_weight": self.bits()})
    }
}

/// A model's headers, read.
pub struct Report<'a> {
    checkpoint: &'a Checkpoint,
    config: ModelConfig,
    tokenizer: Option<Tokenizer>,
    format: String,
    rows: Vec<Row<'a>>,
    /// Of tensors that are no part of the model.
    others: Vec<Row<'a>>,
    types: BTreeMap<&'static str, Total>,
    all: Total,
}

impl<'a> Report<'a> {
    pub fn new(path: &Path, checkpoint: &'a Checkpoint) -> Result<Self, Failure> {
        let config = ModelConfig::read(checkpoint).map_err(Failure::at(path))?;
        let tokenizer = bitnet_inference::tokenizer(checkpoint).map_err(Failure::at(path))?;
        let rows: Vec<Row<'_>> = checkpoint.tensors().iter().map(|t| row(checkpoint, t)).collect();
        let (mut types, mut all) = (BTreeMap::<&str, Total>::new(), Total::default());
        for row in &rows {
            for total in [types.entry(row.kind).or_default(), &mut all] {
                total.tensors += 1;
                total.weights += row.weights;
                total.bytes += row.bytes;
            }
        }
        let format = match &checkpoint.header {
            Header::HuggingFace { .. } => format!("Hugging Face {}", checkpoint.container),
            Header::Gguf { version, .. } => format!("GGUF version {version}"),
        };
        let others = checkpoint.others.iter().map(|t| row(checkpoint, t)).collect();
        Ok(Self { checkpoint, config, tokenizer, format, rows, others, types, all })
    }

    /// One object.
    pub fn json(&self) -> Value {
        let Self { checkpoint, config: c, tokenizer, format, rows, others, types, all } = self;
        let template = tokenizer.as_ref().map_or(Ok(None), |t| t.template());
        json!({
            "path": checkpoint.path,
            "format": format,
            "architecture": c.arch.name,
            "name": c.name,
            "hidden_size": c.hidden,
            "feed_forward_size": c.ffn,
            "layers": c.layers,
            "heads": c.shape.heads,
            "kv_heads": c.shape.kv_heads,
            "head_dim": c.shape.head_dim,
            "vocabulary": c.vocab,
            "context": c.context,
            "rope_theta": c.rope.theta,
            "norm_epsilon": c.eps,
            "activation": activation(c.activation),
            "bos": c.bos,
            "eos": c.eos,
            "total": all.json(),
            "types": types.iter().map(|(k, v)| ((*k).to_owned(), v.json())).collect::<serde_json::Map<_, _>>(),
            "tensors": rows.iter().map(Row::json).collect::<Vec<_>>(),
            "other_tensors": others.iter().map(Row::json).collect::<Vec<_>>(),
            "tokenizer": tokenizer.as_ref().map(|t| json!({"kind": t.kind(), "tokens": t.vocab_size(), "bos": t.bos(), "eos": t.eos()})),
            "chat_template": template.ok().flatten().map(|t| t.source()),
        })
    }

    /// Lines for people; each tensor gets one if they are asked for.
    pub fn print(&self, out: &mut impl Write, tensors: bool) -> Result<(), Failure> {
        let Self { checkpoint, config, tokenizer, format, rows, others, types, all } = self;
        let template = tokenizer.as_ref().map_or(Ok(None), |t| t.template());
        let c = config;
        let mut line = |key: &str, value: String| writeln!(out, "{key:<14} {value}");
        line("file", checkpoint.path.display().to_string())?;
        line("format", format.clone())?;
        line("architecture", c.arch.name.to_owned())?;
        if let Some(name) = &c.name {
            line("name", name.clone())?;
        }
        line("layers", c.layers.to_string())?;
        line("hidden", format!("{}, feed-forward {} ({})", c.hidden, c.ffn, activation(c.activation)))?;
        let s = c.shape;
        line(
            "attention",
            format!("{} heads of {}, {} for keys and values", s.heads, s.head_dim, s.kv_heads),
        )?;
        let scaling = match c.rope.scaling {
            Some(RopeScaling::Linear(factor)) => format!(", linear scaling by {factor}"),
            Some(RopeScaling::Yarn(yarn)) => format!(", yarn scaling by {}", yarn.factor),
            Some(RopeScaling::Llama3(_)) => ", llama3 scaling".to_owned(),
            None if c.rope.factors.is_some() => ", llama3 scaling".to_owned(),
            None => String::new(),
        };
        line("rope", format!("theta {}{scaling}", c.rope.theta))?;
        line("norm epsilon", format!("{:e}", c.eps))?;
        line("vocabulary", c.vocab.to_string())?;
        line("context", c.context.to_string())?;
        line("end of text", format!("{:?}", c.eos))?;
        match tokenizer {
            None => line("tokenizer", "none".to_owned())?,
            Some(t) => line("tokenizer", format!("{}, {} tokens", t.kind(), t.vocab_size()))?,
        }
        line(
            "weights",
            format!(
                "{} in {:.1} MB, {:.2} bits each",
                count(all.weights),
                all.bytes as f64 / 1e6,
                all.bits()
            ),
        )?;
        writeln!(out, "\n{:<10} {:>8} {:>12} {:>12} {:>8}", "type", "tensors", "weights", "MB", "bits")?;
        for (kind, t) in types {
            let mb = t.bytes as f64 / 1e6;
            writeln!(
                out,
                "{kind:<10} {:>8} {:>12} {mb:>12.2} {:>8.3}",
                t.tensors,
                count(t.weights),
                t.bits()
            )?;
        }
        if !others.is_empty() {
            let mb = others.iter().map(|r| r.bytes).sum::<u64>() as f64 / 1e6;
            writeln!(out, "\nbeside the model: {} tensors, {mb:.2} MB", others.len())?;
        }
        if tensors {
            list(out, "tensor", rows)?;
            if !others.is_empty() {
                list(out, "beside the model", others)?;
            }
        }
        match template {
            Err(e) => writeln!(out, "\n{e}")?,
            Ok(None) => writeln!(out, "\nno chat template")?,
            Ok(Some(template)) => writeln!(out, "\nchat template:\n{}", template.source())?,
        }
        Ok(())
    }
}

fn list(out: &mut impl Write, title: &str, rows: &[Row<'_>]) -> std::io::Result<()> {
    let width = rows.iter().map(|r| r.name.len()).chain([title.len()]).max().unwrap_or(0);
    writeln!(out, "\n{title:<width$} {:<10} {:<16} {:>12}", "type", "shape", "bytes")?;
    for r in rows {
        let shape = r.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        writeln!(out, "{:<width$} {:<10} {shape:<16} {:>12}", r.name, r.kind, r.bytes)?;
    }
    Ok(())
}

fn activation(act: Activation) -> &'static str {
    match act {
        Activation::Relu2 => "ReLU squared",
        Activation::Silu => "SiLU",
        Activation::Gelu => "GELU",
    }
}
