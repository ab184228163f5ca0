//! `bitnet quantize`: a ternary model of one that is not.

use crate::commands::convert::{dense_type, print, target};
use crate::failure::Failure;
use crate::hub;
use crate::shipped;
use crate::terminal::Progress;
use bitnet_convert::{ConvertOptions, LayerError, Method, Perplexity, Target, convert, perplexity};
use bitnet_core::DenseType;
use bitnet_inference::{DeviceOptions, OpenOptions};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
#[command(
    long_about = "Make a ternary model of a dense one, or of master weights.\n\n\
        A model that was not trained to be ternary is not a useful one afterwards: expect a perplexity that is many times as \
        high, and train it further. What is printed for each projection says how much of it is left: the mean squared error \
        relative to the mean square (0 is none, 1 is all of it), the cosine of the angle between the weights before and \
        after, and the share of zeros.",
    after_help = "\
Examples:
  bitnet quantize Llama-3.2-1B ternary.gguf --method absmean
  bitnet quantize Llama-3.2-1B ternary --method absmean --to hf-bitlinear --calib wiki.txt"
)]
pub struct Quantize {
    #[arg(value_name = "IN", help = hub::MODEL_HELP)]
    input: PathBuf,
    /// The file to write; for the hf, pt, mlx and onnx targets a directory
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// How weights become trits
    #[arg(long, value_enum)]
    method: MethodName,
    /// What to write; `bitnet help convert` lists the types
    #[arg(long, value_name = "TYPE", value_parser = target, default_value = "i2_s")]
    to: &'static Target,
    /// Type of embedding and head, as in `convert`
    #[arg(long, value_name = "TYPE", value_parser = dense_type)]
    embedding: Option<DenseType>,
    /// A text, to tell the perplexity before and after
    #[arg(long, value_name = "FILE")]
    calib: Option<PathBuf>,
    /// Threads [default: physical cores]
    #[arg(short, long, env = "BITNET_THREADS")]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    /// BitNet b1.58's: the scale is the mean magnitude
    Absmean,
}

impl Quantize {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let threads = self.threads.unwrap_or_else(bitnet_cpu::physical_cores).max(1);
        let text = match &self.calib {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|e| Failure::Runtime(format!("{}: {e}", path.display())))?,
            ),
            None => None,
        };
        let path = hub::locate(&self.input, quiet)?;
        let input = shipped::open(&path)?;
        let device = DeviceOptions { threads: Some(threads), ..DeviceOptions::default() };
        let open = OpenOptions { device, ..OpenOptions::default() };
        let measure = |checkpoint: &bitnet_formats::Checkpoint, text: &str| {
            perplexity(checkpoint, text, &open).map_err(Failure::at(&checkpoint.path))
        };
        let before = text.as_deref().map(|text| measure(&input, text)).transpose()?;
        let MethodName::Absmean = self.method;
        let options = ConvertOptions {
            embedding: self.embedding,
            quantize: Some(Method::Absmean),
            origin: hub::origin(&path),
            threads,
            ..ConvertOptions::new(self.to)
        };
        let mut progress = Progress::new("quantizing", quiet);
        let report = convert(&input, &self.output, &options, &mut |done, all| progress.at(done, all))
            .map_err(Failure::at(&self.input))?;
        progress.finish();
        let after = match &text {
            Some(text) => Some(measure(&bitnet_formats::open(&self.output)?, text)?),
            None => None,
        };
        let mut out = std::io::stdout().lock();
        let both = before.zip(after);
        if self.json {
            let layer = |l: &LayerError| json!({"tensor": l.tensor, "mse": l.mse, "cosine": l.cosine, "zeros": l.zeros});
            let object = json!({
                "output": self.output,
                "layers": report.layers.iter().map(layer).collect::<Vec<_>>(),
                "perplexity": both.map(|(b, a)| json!({"tokens": b.tokens, "before": b.value, "after": a.value})),
            });
            writeln!(out, "{object}")?;
        } else if !quiet {
            layers(&mut out, &report.layers)?;
            print(&mut out, &report)?;
            if let Some((before, after)) = both {
                writeln!(out, "\n{}", sentence(before, after))?;
            }
            writeln!(out, "\n{}", self.output.display())?;
        }
        Ok(())
    }
}

fn layers(out: &mut impl Write, layers: &[LayerError]) -> std::io::Result<()> {
    let width = layers.iter().map(|l| l.tensor.len()).max().unwrap_or(0);
    writeln!(out, "{:<width$} {:>8} {:>8} {:>8}", "projection", "MSE", "cosine", "zeros")?;
    for l in layers {
        writeln!(out, "{:<width$} {:>8.4} {:>8.4} {:>7.1}%", l.tensor, l.mse, l.cosine, l.zeros * 100.0)?;
    }
    writeln!(out)
}

fn sentence(before: Perplexity, after: Perplexity) -> String {
    let tokens = before.tokens;
    format!("perplexity of {tokens} tokens: {:.3} before, {:.3} after", before.value, after.value)
}
