//! `metrics.jsonl`, a line an event, and the same for TensorBoard.

use super::health::LayerHealth;
use super::tensorboard::EventFile;
use crate::TrainError;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// TensorBoard's names for keys of a line; it makes a group of those with one beginning.
const TAGS: [(&str, &str); 17] = [
    ("loss", "train/loss"),
    ("rate", "train/learning_rate"),
    ("grad_norm", "train/gradient_norm"),
    ("accuracy", "train/preferred"),
    ("margin", "train/margin"),
    ("logits_divergence", "train/logits_divergence"),
    ("relations_divergence", "train/relations_divergence"),
    ("weight_concentration", "train/weight_concentration"),
    ("activation_concentration", "train/activation_concentration"),
    ("validation_loss", "validation/loss"),
    ("perplexity", "validation/perplexity"),
    ("validation_accuracy", "validation/preferred"),
    ("validation_margin", "validation/margin"),
    ("tokens", "speed/tokens"),
    ("tokens_per_second", "speed/tokens_per_second"),
    ("resident_bytes", "memory/resident_bytes"),
    ("peak_bytes", "memory/peak_bytes"),
];

pub(super) struct Metrics {
    path: PathBuf,
    file: File,
    events: EventFile,
}

impl Metrics {
    /// Opens the files of an output folder behind what they have of steps up to `step`; what is of later steps, which will be taken again,
    /// goes.
    pub(super) fn open(output: &Path, step: u64) -> Result<Self, TrainError> {
        let path = output.join("metrics.jsonl");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let of_past = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value.and_then(|v| v.get("step")?.as_u64()).is_some_and(|s| s <= step)
        };
        let kept: String = before.lines().filter(of_past).flat_map(|line| [line, "\n"]).collect();
        bitnet_formats::write_file(&path, kept.as_bytes())?;
        let file = File::options().append(true).open(&path).map_err(TrainError::io(&path))?;
        Ok(Self { path, file, events: EventFile::open(&output.join("tensorboard"), step)? })
    }

    /// Writes an object that has a `step`.
    pub(super) fn write(&mut self, line: Value) -> Result<(), TrainError> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(TrainError::io(&self.path))?;
        let step = line["step"].as_u64().unwrap_or_default();
        let number = |(key, tag): &(&str, &str)| Some(((*tag).to_owned(), line.get(*key)?.as_f64()?));
        let scalars: Vec<(String, f64)> = TAGS.iter().filter_map(number).collect();
        if !scalars.is_empty() {
            self.events.scalars(step, &scalars)?;
        }
        let samples = line.get("samples").and_then(Value::as_array).into_iter().flatten();
        for (i, sample) in samples.enumerate() {
            let [prompt, text] = ["prompt", "text"].map(|key| sample[key].as_str().unwrap_or_default());
            self.events.text(step, &format!("samples/{}", i + 1), &literal(&format!("{prompt}{text}")))?;
        }
        Ok(())
    }

    /// Writes what is told of projections, where there are any.
    pub(super) fn health(&mut self, step: u64, layers: &[LayerHealth]) -> Result<(), TrainError> {
        if layers.is_empty() {
            return Ok(());
        }
        let (mut told, mut scalars) = (Vec::new(), Vec::new());
        for layer in layers {
            let LayerHealth { tensor, scale, zeros, flips, clipped, snr, gradient } = layer;
            told.push(json!({"tensor": tensor, "scale": scale, "zeros": zeros, "flips": flips,
                "clipped": clipped, "snr_db": snr, "grad_norm": gradient}));
            let name = tensor.trim_start_matches("model.").trim_end_matches(".weight");
            for (key, value) in [
                ("scale", scale),
                ("zeros", zeros),
                ("flips", flips),
                ("clipped", clipped),
                ("snr_db", snr),
                ("gradient_norm", gradient),
            ] {
                scalars.push((format!("health_{key}/{name}"), *value));
            }
        }
        self.write(json!({"step": step, "health": told}))?;
        self.events.scalars(step, &scalars)
    }
}

/// A text that markdown leaves as it is: every line indented.
fn literal(text: &str) -> String {
    text.lines().flat_map(|line| ["    ", line, "\n"]).collect()
}
