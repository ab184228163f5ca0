//! `bitnet merge`: an adapter becomes a part of its model.

use crate::failure::Failure;
use crate::hub;
use bitnet_training::{Merged, merge};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
#[command(
    long_about = "Add an adapter to the weights of its model, and write the sum as a Hugging Face directory.\n\n\
        Of a ternary model the adapter is added to the master weights (packed weights get masters of the same trits and scale first), and the \
        sum is made ternary when it is run: another function than the adapter beside the weights. What is printed for each projection \
        says by how much: the share of trits that changed, and how much of what the adapter adds is lost (0 is nothing, 1 as much as \
        all of it). `bitnet run --lora` loses nothing, where the adapter is LoRA; DoRA is run merged only.\n\n\
        An adapter of trits (`lora.trits` of `bitnet train lora`) loses nothing: its trits take the place of others in a copy of the model's packed files, \
        a directory or a GGUF file, and all else stays as it is, bit for bit. --scale and --dtype are not for those.",
    after_help = "\
Examples:
  bitnet merge bitnet-b1.58-2B-4T-bf16 adapter merged
  bitnet merge bitnet-b1.58-2B-4T-bf16 adapter merged-f32 --dtype f32 --scale 0.5 --json"
)]
pub struct Merge {
    #[arg(value_name = "MODEL", help = hub::MODEL_HELP)]
    input: PathBuf,
    /// The adapter: a directory that peft or `bitnet train` saved
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// The directory to write, or the GGUF file
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// What the adapter's additions are multiplied with
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Type of the weights [default: bf16]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Threads [default: physical cores]
    #[arg(short, long, env = "BITNET_THREADS")]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// Half the size
    Bf16,
    /// The sum as it is
    F32,
}

impl Merge {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        if !self.scale.is_finite() {
            return Err(Failure::Usage("--scale is no number".to_owned()));
        }
        let model = hub::locate(&self.input, quiet)?;
        let bf16 = self.dtype.map(|dtype| dtype == Dtype::Bf16);
        let report = merge(&model, &self.adapter, &self.output, self.scale, bf16, self.threads)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let part = |m: &Merged| json!({"tensor": m.tensor, "changed": m.changed, "lost": m.lost});
            let parts: Vec<_> = report.iter().map(part).collect();
            writeln!(out, "{}", json!({"output": self.output, "projections": parts}))?;
        } else if !quiet {
            let width = report.iter().map(|m| m.tensor.len()).max().unwrap_or(0);
            writeln!(out, "{:<width$} {:>9} {:>6}", "projection", "changed", "lost")?;
            for m in &report {
                let changed = m.changed.map_or("-".to_owned(), |c| format!("{:.3} %", c * 100.0));
                let lost = m.lost.map_or("-".to_owned(), |l| format!("{l:.3}"));
                writeln!(out, "{:<width$} {changed:>9} {lost:>6}", m.tensor)?;
            }
            writeln!(out, "\n{}", self.output.display())?;
        }
        Ok(())
    }
}
