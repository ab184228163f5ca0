//! `bitnet inspect`: what a model is made of, from its headers.

use crate::args::{ModelPath, count};
use crate::commands::convert::role_json;
use crate::failure::Failure;
use bitnet_core::Activation;
use bitnet_formats::{Checkpoint, Header, Tensor, TensorType};
use bitnet_model::ModelConfig;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet inspect model.gguf
  bitnet inspect model-directory --tensors
  bitnet inspect model.gguf --diff model-directory
  bitnet inspect model.gguf --json | jq .types")]
pub struct Inspect {
    #[command(flatten)]
    model: ModelPath,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Say which tensors, scales and metadata of another model differ instead
    #[arg(long, value_name = "FILE2", conflicts_with = "tensors")]
    diff: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A tensor as a model counts it.
struct Row<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: &'static str,
    weights: u64,
    bytes: u64,
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

impl Inspect {
    pub fn execute(self) -> Result<(), Failure> {
        let checkpoint = bitnet_formats::open(self.model.get())?;
        if let Some(other) = &self.diff {
            return self.compare(&checkpoint, other);
        }
        let path = self.model.get();
        let config = ModelConfig::read(&checkpoint).map_err(Failure::at(path))?;
        let tokenizer = bitnet_inference::tokenizer(&checkpoint).map_err(Failure::at(path))?;
        let rows: Vec<Row<'_>> = checkpoint.tensors().iter().map(|t| row(&checkpoint, t)).collect();
        let (mut types, mut all) = (BTreeMap::<&str, Total>::new(), Total::default());
        for row in &rows {
            for total in [types.entry(row.kind).or_default(), &mut all] {
                total.tensors += 1;
                total.weights += row.weights;
                total.bytes += row.bytes;
            }
        }
        let template = tokenizer.as_ref().map_or(Ok(None), |t| t.template());
        let format = match &checkpoint.header {
            Header::HuggingFace { .. } => "Hugging Face safetensors".to_owned(),
            Header::Gguf { version, .. } => format!("GGUF version {version}"),
        };
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.json {
            let c = &config;
            let object = json!({
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
                "tensors": rows.iter().map(|r| json!({"name": r.name, "shape": r.shape, "type": r.kind, "bytes": r.bytes})).collect::<Vec<_>>(),
                "tokenizer": tokenizer.as_ref().map(|t| json!({"kind": t.kind(), "tokens": t.vocab_size(), "bos": t.bos(), "eos": t.eos()})),
                "chat_template": template.ok().flatten().map(|t| t.source()),
            });
            writeln!(out, "{object}")?;
            return Ok(out.flush()?);
        }
        let c = &config;
        let mut line = |key: &str, value: String| writeln!(out, "{key:<14} {value}");
        line("file", checkpoint.path.display().to_string())?;
        line("format", format)?;
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
        let scaling =
            if c.rope.scaling.is_some() || c.rope.factors.is_some() { ", llama3 scaling" } else { "" };
        line("rope", format!("theta {}{scaling}", c.rope.theta))?;
        line("norm epsilon", format!("{:e}", c.eps))?;
        line("vocabulary", c.vocab.to_string())?;
        line("context", c.context.to_string())?;
        line("end of text", format!("{:?}", c.eos))?;
        match &tokenizer {
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
        for (kind, t) in &types {
            let mb = t.bytes as f64 / 1e6;
            writeln!(
                out,
                "{kind:<10} {:>8} {:>12} {mb:>12.2} {:>8.3}",
                t.tensors,
                count(t.weights),
                t.bits()
            )?;
        }
        if self.tensors {
            let width = rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
            writeln!(out, "\n{:<width$} {:<10} {:<16} {:>12}", "tensor", "type", "shape", "bytes")?;
            for r in &rows {
                let shape = r.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
                writeln!(out, "{:<width$} {:<10} {shape:<16} {:>12}", r.name, r.kind, r.bytes)?;
            }
        }
        match template {
            Err(e) => writeln!(out, "\n{e}")?,
            Ok(None) => writeln!(out, "\nno chat template")?,
            Ok(Some(template)) => writeln!(out, "\nchat template:\n{}", template.source())?,
        }
        Ok(out.flush()?)
    }
}

impl Inspect {
    /// Differences of another model.
    fn compare(&self, checkpoint: &Checkpoint, path: &Path) -> Result<(), Failure> {
        let other = bitnet_formats::open(path)?;
        let threads = bitnet_cpu::physical_cores();
        let tensors = bitnet_convert::compare(checkpoint, &other, threads).map_err(Failure::at(path))?;
        let settings = bitnet_convert::differences(checkpoint, &other).map_err(Failure::at(path))?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.json {
            let different = tensors.different.iter().map(|(name, c)| (name.clone(), role_json(c)));
            let object = json!({
                "tensors": different.collect::<serde_json::Map<_, _>>(),
                "unmatched": tensors.unmatched,
                "metadata": settings.iter().map(|d| json!({"key": d.key, "left": d.left, "right": d.right})).collect::<Vec<_>>(),
            });
            writeln!(out, "{object}")?;
            return Ok(out.flush()?);
        }
        for d in &settings {
            let side = |s: &Option<String>| s.clone().unwrap_or_else(|| "(absent)".to_owned());
            writeln!(out, "{}\n  - {}\n  + {}", d.key, side(&d.left), side(&d.right))?;
        }
        for name in &tensors.unmatched {
            writeln!(out, "{name}: only one of them has it, or of another shape")?;
        }
        for (name, c) in &tensors.different {
            let mut parts = Vec::new();
            if c.trits_differ > 0 {
                parts.push(format!("{} of {} trits", c.trits_differ, c.trits));
            }
            if c.scales_differ > 0 {
                parts.push(format!(
                    "{} of {} scales, by up to {:.1e}",
                    c.scales_differ, c.scales, c.scale_error
                ));
            }
            if c.values_differ > 0 {
                parts.push(format!(
                    "{} of {} values, by up to {:.1e}",
                    c.values_differ, c.values, c.value_error
                ));
            }
            writeln!(out, "{name}: {}", parts.join("; "))?;
        }
        if settings.is_empty() && tensors.unmatched.is_empty() && tensors.different.is_empty() {
            writeln!(out, "no differences")?;
        }
        Ok(out.flush()?)
    }
}

fn activation(act: Activation) -> &'static str {
    match act {
        Activation::Relu2 => "ReLU squared",
        Activation::Silu => "SiLU",
    }
}
