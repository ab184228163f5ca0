//! Reference outputs and how near one has to come. Tolerances are those measured in `tests/fixtures/README.md`.

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The models in Hugging Face form.
pub const MODELS: [&str; 4] = ["bitnet-online", "bitnet-packed", "bitnet-packed-k256", "llama-packed"];

/// Where the reference data lies: beside the crate under test, wherever its tests were built.
pub fn fixtures() -> PathBuf {
    let built = || env!("CARGO_MANIFEST_DIR").into();
    let crate_dir = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(built);
    Path::new(&crate_dir).join("../../tests/fixtures")
}

/// A JSON file of the reference data.
pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

/// An f32 tensor of a safetensors file of the reference data.
pub fn floats(file: &str, tensor: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixtures().join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(tensor).unwrap_or_else(|e| panic!("{file} {tensor}: {e}"));
    assert_eq!(view.dtype(), safetensors::Dtype::F32);
    view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Token ids of a JSON array.
pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A prompt of a model's `reference.json`.
pub struct Prompt {
    /// Its name in the files.
    pub name: String,
    /// Ids to feed as they are.
    pub ids: Vec<u32>,
    /// exp of the mean negative log-likelihood of all ids but the first.
    pub perplexity: f64,
    /// Smallest distance of an activation to an int8 rounding boundary, up to each position.
    gaps: Vec<f64>,
    /// Largest change of a logit when activations are shaken, by position.
    shaken: Vec<f64>,
}

/// All prompts of a model.
pub fn prompts(model: &str) -> Vec<Prompt> {
    let reference = json(&format!("{model}/reference.json"));
    let numbers = |v: &Value| -> Vec<f64> { serde_json::from_value(v.clone()).unwrap() };
    let prompts = reference["prompts"].as_array().unwrap().iter().map(|p| Prompt {
        name: p["name"].as_str().unwrap().to_owned(),
        ids: ids(&p["ids"]),
        perplexity: p["perplexity"].as_f64().unwrap(),
        gaps: numbers(&p["cumulative_gap_by_position"]),
        shaken: numbers(&p["shaken_max_abs_by_position"]),
    });
    prompts.collect()
}

impl Prompt {
    /// Reference logits, `[tokens, vocab]`.
    pub fn logits(&self, model: &str) -> Vec<f32> {
        floats(&format!("{model}/reference.safetensors"), &format!("logits.{}", self.name))
    }

    /// Compares logits `[tokens, vocab]` and returns the largest differences at positions where no activation can round
    /// either way, and at the others.
    ///
    /// # Panics
    /// When a difference is larger than the reference data allows.
    pub fn compare(&self, got: &[f32], want: &[f32]) -> (f32, f32) {
        assert_eq!(got.len(), want.len());
        let vocab = got.len() / self.ids.len();
        let (mut firm, mut loose, mut other_argmax) = (0.0f32, 0.0f32, 0);
        for (i, (got, want)) in got.chunks(vocab).zip(want.chunks(vocab)).enumerate() {
            let diff = max_diff(got, want);
            let certain = self.gaps[i] >= 1e-5 && self.shaken[i] == 0.0;
            let limit = if certain { 2e-4 } else { f64::max(0.3, 3.0 * self.shaken[i]) };
            assert!(f64::from(diff) <= limit, "{} position {i}: {diff} is over {limit}", self.name);
            if certain {
                firm = firm.max(diff)
            } else {
                loose = loose.max(diff)
            }
            other_argmax += usize::from(argmax(got) != argmax(want));
        }
        assert!(other_argmax <= 1, "{}: {other_argmax} positions have another argmax", self.name);
        (firm, loose)
    }
}

/// The largest absolute difference; NaN counts as infinite.
pub fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| {
        if d <= m {
            m
        } else if d.is_nan() {
            f32::INFINITY
        } else {
            d
        }
    })
}

/// The first largest element.
pub fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold(0, |best, (i, v)| if *v > x[best] { i } else { best })
}

/// exp of the mean negative log-likelihood of `ids[1..]` under logits `[tokens, vocab]`.
pub fn perplexity(logits: &[f32], ids: &[u32]) -> f64 {
    let vocab = logits.len() / ids.len();
    let nll: f64 = logits
        .chunks(vocab)
        .zip(&ids[1..])
        .map(|(row, id)| {
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            sum.ln() - f64::from(row[*id as usize] - max)
        })
        .sum();
    (nll / (ids.len() - 1) as f64).exp()
}
