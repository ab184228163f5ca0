//! `bitnet quantize`: a ternary model of one that is not.

mod calibration;
mod page;

use crate::commands::convert::{dense_type, print, target};
use crate::failure::Failure;
use crate::hub;
use crate::shipped;
use crate::terminal::Progress;
use bitnet_convert::{ConvertOptions, LayerError, Method, Target, convert};
use bitnet_core::DenseType;
use bitnet_formats::Checkpoint;
use bitnet_inference::{DeviceOptions, Model, OpenOptions};
use calibration::{Calibrated, CalibrationText};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(
    long_about = "Make a ternary model of a dense one, or of master weights.\n\n\
        A model that was not trained to be ternary is not a useful one afterwards: expect a perplexity that is many times as \
        high, and train it further. What is printed for each projection says how much of it is left: the mean squared error \
        relative to the mean square (0 is none, 1 is all of it), the cosine of the angle between the weights before and \
        after, and the share of zeros. With --calib both models read a text, and it also says what became of the states behind \
        each layer, of the perplexity, and how far the predictions are from the parent's (Kullback-Leibler divergence); with \
        --report all of it is in a page or in a JSON file.",
    after_help = "\
Examples:
  bitnet quantize Llama-3.2-1B ternary.gguf --method absmean
  bitnet quantize Llama-3.2-1B ternary --method absmean --to hf-bitlinear --calib wiki.txt
  bitnet quantize Llama-3.2-1B ternary.gguf --method absmean --calib wiki.txt --report quality.html"
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
    /// A text, to tell the states, the perplexity and the predictions before and after
    #[arg(long, value_name = "FILE")]
    calib: Option<PathBuf>,
    /// A file for what was found: .html, a page, or .json
    #[arg(long, value_name = "FILE", value_parser = report_file)]
    report: Option<PathBuf>,
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
        // What cannot be calibrated with is known before anything is written.
        let text = match text {
            Some(text) => Some(CalibrationText::new(&path, text)?),
            None => None,
        };
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
        let calibrated = match &text {
            Some(text) => Some(self.calibrate(&input, &path, text, threads, quiet)?),
            None => None,
        };
        let object = || {
            let layer = |l: &LayerError| json!({"tensor": l.tensor, "mse": l.mse, "cosine": l.cosine, "zeros": l.zeros});
            json!({
                "output": self.output,
                "layers": report.layers.iter().map(layer).collect::<Vec<_>>(),
                "calibration": calibrated.as_ref().map(Calibrated::json),
            })
        };
        if let Some(file) = &self.report {
            let text = match file.extension().is_some_and(|e| e == "json") {
                true => format!("{:#}\n", object()),
                false => page::page(&path, &self.output, &report.layers, calibrated.as_ref()),
            };
            bitnet_formats::write_file(file, text.as_bytes())?;
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", object())?;
        } else if !quiet {
            layers(&mut out, &report.layers)?;
            print(&mut out, &report)?;
            if let Some(calibrated) = &calibrated {
                told(&mut out, calibrated)?;
            }
            writeln!(out, "\n{}", self.output.display())?;
        }
        Ok(())
    }

    /// Reads the text with both models.
    fn calibrate(
        &self,
        input: &Checkpoint,
        path: &Path,
        text: &CalibrationText,
        threads: usize,
        quiet: bool,
    ) -> Result<Calibrated, Failure> {
        let device = DeviceOptions { threads: Some(threads), ..DeviceOptions::default() };
        let options = OpenOptions { device, ..OpenOptions::default() };
        let open = |checkpoint: &Checkpoint| {
            Model::from_checkpoint(checkpoint, &options, &mut |_, _| {})
                .map_err(Failure::at(&checkpoint.path))
        };
        let output = bitnet_formats::open(&self.output)?;
        let (mut parent, mut child) = (open(input)?, open(&output)?);
        Calibrated::new(&mut parent, &mut child, path, text, threads, quiet)
    }
}

/// A file whose name says what it is to hold.
fn report_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "json") => Ok(path),
        _ => Err("it ends in neither .html nor .json".to_owned()),
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

/// States behind layers, and predictions, in lines.
fn told(out: &mut impl Write, calibrated: &Calibrated) -> std::io::Result<()> {
    writeln!(out, "\n{:<8} {:>8} {:>8}", "layer", "MSE", "cosine")?;
    for (layer, s) in calibrated.states.iter().enumerate() {
        writeln!(out, "{layer:<8} {:>8.4} {:>8.4}", s.mse(), s.cosine())?;
    }
    let figures = calibrated.divergence.json();
    let number = |pointer: &str| figures.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    writeln!(
        out,
        "\nperplexity of {} tokens: {:.3} before, {:.3} after; KL divergence {:.4} nats a token, median {:.4}; the likeliest token is \
         the same for {:.1} %",
        figures["tokens"],
        number("/base_ppl"),
        number("/ppl"),
        number("/kld/mean"),
        number("/kld/median"),
        number("/same_top") * 100.0
    )
}
