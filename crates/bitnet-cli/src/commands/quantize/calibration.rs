//! What is left of a model on a text: what it predicts, and its states behind every layer, beside those of its parent.

use crate::commands::eval::divergence::{self, Base, compare};
use crate::commands::eval::report::Divergence;
use crate::commands::eval::windows::{Windows, each_rows};
use crate::commands::{eval, vocabulary};
use crate::failure::Failure;
use crate::terminal::Progress;
use bitnet_inference::Model;
use serde_json::{Value, json};
use std::path::Path;

/// Tokens of a step before the first that is compared.
const BATCH: usize = 128;

/// A text, and the tokens of the windows that it is cut into.
pub struct CalibrationText {
    text: String,
    window: usize,
}

impl CalibrationText {
    /// Windows as `bitnet eval` has them: 512 tokens, or as many as there are.
    pub fn new(model: &Path, text: String) -> Result<Self, Failure> {
        let tokens = vocabulary::open(model)?.encode(&text, true)?.len();
        if tokens < 4 {
            return Err(Failure::Usage(format!(
                "the calibration text has {tokens} tokens; it takes 4 at least"
            )));
        }
        Ok(Self { text, window: eval::CONTEXT.min(tokens) })
    }
}

/// Both models on all windows of a text.
pub struct Calibrated {
    pub divergence: Divergence,
    /// Of the states behind each layer.
    pub states: Vec<StateError>,
}

/// How far the states behind a layer are from the parent's.
#[derive(Clone, Copy, Debug, Default)]
pub struct StateError {
    difference: f64,
    parent: f64,
    child: f64,
    product: f64,
}

impl StateError {
    fn add(&mut self, parent: &[f32], child: &[f32]) {
        for (p, c) in parent.iter().zip(child) {
            let (p, c) = (f64::from(*p), f64::from(*c));
            self.difference += (p - c) * (p - c);
            self.parent += p * p;
            self.child += c * c;
            self.product += p * c;
        }
    }

    /// Mean squared difference, relative to the parent's mean square.
    pub fn mse(&self) -> f64 {
        self.difference / self.parent.max(f64::MIN_POSITIVE)
    }

    /// Cosine of the angle between both.
    pub fn cosine(&self) -> f64 {
        self.product / (self.parent.sqrt() * self.child.sqrt()).max(f64::MIN_POSITIVE)
    }
}

impl Calibrated {
    /// Runs both models.
    pub fn new(
        parent: &mut Model,
        child: &mut Model,
        path: &Path,
        text: &CalibrationText,
        threads: usize,
        quiet: bool,
    ) -> Result<Self, Failure> {
        let size = text.window.min(parent.capacity()).min(child.capacity());
        let windows = Windows::new(parent, path, &text.text, size, None, None)?;
        let (vocab, layers) = (parent.config().vocab, parent.config().layers);
        let (mut divergence, mut states) = (Divergence::default(), vec![StateError::default(); layers]);
        let mut progress = Progress::of("calibrating", "windows", 0, quiet);
        for at in 0..windows.len() {
            let (ids, from) = windows.get(at);
            let (mut logits, mut hidden) = (Vec::new(), vec![Vec::new(); layers]);
            each_rows(parent, &ids, from, BATCH, true, &mut |_, out| {
                logits.extend_from_slice(&out.logits);
                // The first are the embedding's, the last the final norm's.
                hidden.iter_mut().zip(&out.hidden[1..]).for_each(|(all, h)| all.extend_from_slice(h));
            })?;
            let mut seen = 0;
            each_rows(child, &ids, from, BATCH, true, &mut |position, out| {
                let next = &ids[position + 1..];
                divergence.extend(divergence::rows(&out.logits, vocab, threads, |row, own| {
                    let base = &logits[(position - from + row) * vocab..][..vocab];
                    compare(own, Base::Logits(base), next[row])
                }));
                for ((error, parent), child) in states.iter_mut().zip(&hidden).zip(&out.hidden[1..]) {
                    error.add(&parent[seen..seen + child.len()], child);
                }
                seen += out.hidden[1].len();
            })?;
            progress.at(at + 1, windows.len());
        }
        progress.finish();
        Ok(Self { divergence, states })
    }

    /// One object.
    pub fn json(&self) -> Value {
        let state =
            |(layer, s): (usize, &StateError)| json!({"layer": layer, "mse": s.mse(), "cosine": s.cosine()});
        json!({
            "states": self.states.iter().enumerate().map(state).collect::<Vec<_>>(),
            "divergence": self.divergence.json(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_parent() {
        let mut error = StateError::default();
        error.add(&[3.0, 0.0], &[3.0, 1.0]);
        error.add(&[0.0, 4.0], &[0.0, 4.0]);
        assert!((error.mse() - 1.0 / 25.0).abs() < 1e-12);
        assert!((error.cosine() - 25.0 / (5.0 * 26f64.sqrt())).abs() < 1e-12);
    }
}
