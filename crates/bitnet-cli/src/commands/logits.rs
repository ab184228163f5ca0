//! `bitnet logits`: exact numbers for comparison.

use crate::args::{ModelFlags, ModelPath, ids};
use crate::commands::vocabulary;
use crate::failure::Failure;
use bitnet_formats::safetensors_file::{TensorInfo, Writer};
use bitnet_model::{Rows, StepOutput};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet logits model.gguf --tokens 128000,791,6864 -o out.safetensors
  bitnet logits model.gguf \"The capital\" -o out.safetensors --hidden --cache-type f32")]
pub struct Logits {
    #[command(flatten)]
    model: ModelPath,
    /// A text instead of --tokens
    #[arg(value_name = "TEXT", conflicts_with = "tokens", required_unless_present = "tokens")]
    text: Option<String>,
    /// Token ids, as given: nothing is put in front
    #[arg(long, value_name = "IDS")]
    tokens: Option<String>,
    /// The safetensors file to write: `logits` f32 [tokens, vocab]
    #[arg(short, long)]
    output: PathBuf,
    /// Write the residual stream too: `hidden.embed`, `hidden.layer0`, ..., `hidden.final_norm`, f32 [tokens, hidden]
    #[arg(long)]
    hidden: bool,
    /// Print one JSON object about what was written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ModelFlags,
}

impl Logits {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let path = self.model.locate(quiet)?;
        let mut model = self.flags.open(&path, quiet)?;
        let ids = match (&self.tokens, &self.text) {
            (Some(tokens), _) => ids(tokens)?,
            (None, text) => vocabulary::encode(&model, text.as_deref().unwrap_or_default(), &path)?,
        };
        let (mut logits, mut hidden) = (Vec::new(), Vec::<Vec<f32>>::new());
        let want = StepOutput { rows: Rows::All, keep_hidden: self.hidden, ..StepOutput::default() };
        model.evaluate(&ids, self.flags.batch_size, want, &mut |out| {
            logits.extend_from_slice(&out.logits);
            hidden.resize_with(out.hidden.len(), Vec::new);
            for (all, step) in hidden.iter_mut().zip(&out.hidden) {
                all.extend_from_slice(step);
            }
        })?;
        let config = model.config();
        let mut tensors = vec![("logits".to_owned(), config.vocab, logits)];
        for (stage, values) in hidden.into_iter().enumerate() {
            let name = match stage {
                0 => "hidden.embed".to_owned(),
                s if s <= config.layers => format!("hidden.layer{}", s - 1),
                _ => "hidden.final_norm".to_owned(),
            };
            tensors.push((name, config.hidden, values));
        }
        let infos = tensors
            .iter()
            .map(|(name, width, _)| TensorInfo {
                name: name.clone(),
                dtype: "F32",
                shape: vec![ids.len(), *width],
            })
            .collect();
        let written = Writer::create(&self.output, &[], infos).and_then(|mut writer| {
            for (.., values) in &tensors {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                writer.write(&bytes)?;
            }
            writer.finish()
        });
        // A target that cannot be written is no fault of the model.
        written.map_err(|e| Failure::Runtime(crate::failure::chain(&e)))?;
        if self.json {
            let shapes: Map<String, Value> =
                tensors.iter().map(|(name, width, _)| (name.clone(), json!([ids.len(), width]))).collect();
            writeln!(std::io::stdout(), "{}", json!({"output": self.output, "tensors": shapes}))?;
        } else if !quiet {
            eprintln!("{} tokens written to {}", ids.len(), self.output.display());
        }
        Ok(())
    }
}
