//! `bitnet inspect`: what a model is made of, from its headers.

use super::histogram;
use super::report::Report;
use crate::args::ModelPath;
use crate::commands::convert::role_json;
use crate::failure::Failure;
use crate::hub;
use crate::shipped;
use crate::terminal::Progress;
use bitnet_formats::Checkpoint;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet inspect model.gguf
  bitnet inspect model-directory --tensors
  bitnet inspect model.gguf --hist
  bitnet inspect model.gguf --diff model-directory
  bitnet inspect model.gguf --json | jq .types")]
pub struct Inspect {
    #[command(flatten)]
    model: ModelPath,
    /// List every tensor, also what a training checkpoint has beside the model (optimizer state)
    #[arg(long)]
    tensors: bool,
    /// Say how the weights of each tensor are spread instead: shares of trits, and their scales; histograms of other weights
    #[arg(long, conflicts_with_all = ["tensors", "diff"])]
    hist: bool,
    /// Say which tensors, scales and metadata of another model differ instead
    #[arg(long, value_name = "FILE2", conflicts_with = "tensors")]
    diff: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let path = &*self.model.locate(quiet)?;
        let checkpoint = shipped::open(path)?;
        if let Some(other) = &self.diff {
            return self.compare(&checkpoint, &hub::locate(other, quiet)?, quiet);
        }
        if self.hist {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            histogram::print(path, &checkpoint, self.json, &mut out)?;
            return Ok(out.flush()?);
        }
        let report = Report::new(path, &checkpoint)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        match self.json {
            true => writeln!(out, "{}", report.json())?,
            false => report.print(&mut out, self.tensors)?,
        }
        Ok(out.flush()?)
    }
}

impl Inspect {
    /// Differences of another model.
    fn compare(&self, checkpoint: &Checkpoint, path: &Path, quiet: bool) -> Result<(), Failure> {
        let other = shipped::open(path)?;
        let threads = bitnet_cpu::physical_cores();
        let mut progress = Progress::new("comparing", quiet);
        let tensors =
            bitnet_convert::compare(checkpoint, &other, threads, &mut |done, all| progress.at(done, all))
                .map_err(Failure::at(path))?;
        progress.finish();
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
