//! Texts that a model in training goes on with.
//!
//! Every token is a pass over the whole sequence, through the weights that steps use: there is no cache beside the training's own states, and
//! what is drawn is short.

use crate::config::SampleConfig;
use crate::model::Model;
use crate::random::{Purpose, bits, uniform};
use crate::{Batch, TrainError};
use bitnet_tokenizer::Tokenizer;
use serde_json::{Map, json};
use std::path::PathBuf;

/// A text that a model went on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What it began with.
    pub prompt: String,
    /// What it made of it.
    pub text: String,
}

/// Prompts as ids.
///
/// # Errors
/// One cannot be encoded, or leaves no room in the model's context.
pub(crate) fn encoded(
    config: &SampleConfig,
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<Vec<Vec<u32>>, TrainError> {
    let encode = |prompt: &String| -> Result<Vec<u32>, String> {
        let mut ids = match config.chat {
            false => tokenizer.encode(prompt, true).map_err(|e| e.to_string())?,
            true => {
                let template = tokenizer.template().map_err(|e| e.to_string())?;
                let template = template.ok_or("the tokenizer has no chat template")?;
                let messages = json!([{"role": "user", "content": prompt}]);
                let text = template.render(&messages, true, &Map::new()).map_err(|e| e.to_string())?;
                tokenizer.encode_chat(&text).map_err(|e| e.to_string())?
            }
        };
        // A post-processor may end what it encodes; more follows.
        if ids.len() > 1 && ids.last() == tokenizer.eos().as_ref() {
            ids.pop();
        }
        match ids.len() {
            0 => Err("it has no token".to_owned()),
            n if n >= context => Err(format!("it has {n} tokens, and the model's context {context}")),
            _ => Ok(ids),
        }
    };
    let fail =
        |prompt: &String, why| TrainError::Data { what: format!("samples.prompts: {prompt:?}: {why}") };
    config.prompts.iter().map(|prompt| encode(prompt).map_err(|why| fail(prompt, why))).collect()
}

/// Goes on with every prompt. What is drawn follows from the seed, the step and the prompt's place.
pub(crate) fn samples(
    model: &mut Model,
    config: &SampleConfig,
    prompts: &[Vec<u32>],
    tokenizer: &Tokenizer,
    (seed, step): (u64, u64),
) -> Result<Vec<Sample>, TrainError> {
    let mut all = Vec::new();
    for (i, (prompt, ids)) in config.prompts.iter().zip(prompts).enumerate() {
        let mut ids = ids.clone();
        let begin = ids.len();
        let end = (begin + config.tokens).min(model.config().context);
        while ids.len() < end {
            let logits = model.next_logits(&ids);
            let index = (ids.len() - begin) as u64;
            let drawn = uniform(bits(seed, Purpose::Samples, step, (i as u64) << 32 | index));
            let id = pick(&logits, config.temperature, drawn);
            if model.config().eos.contains(&id) || Some(id) == tokenizer.eos() {
                break;
            }
            ids.push(id);
        }
        let text = tokenizer.decode(&ids[begin..], true);
        let text =
            text.map_err(|source| TrainError::Tokenizer { path: PathBuf::from("samples.prompts"), source })?;
        all.push(Sample { prompt: prompt.clone(), text });
    }
    Ok(all)
}

impl Model {
    /// Logits `[vocab]` of what follows a sequence.
    pub(crate) fn next_logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let mut batch = Batch::default();
        // The last id is an input, too; what stands for its target is not used.
        batch.push(&[ids, &[0]].concat(), |_| false);
        self.states(&batch);
        self.last_logits()
    }
}

/// The likeliest id, or the one at a place of the distribution.
fn pick(logits: &[f32], temperature: f64, drawn: f64) -> u32 {
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    if temperature == 0.0 {
        return best as u32;
    }
    let weight = |logit: f32| libm::exp(f64::from(logit - logits[best]) / temperature);
    let mut left = drawn * logits.iter().map(|logit| weight(*logit)).sum::<f64>();
    for (id, logit) in logits.iter().enumerate() {
        left -= weight(*logit);
        if left < 0.0 {
            return id as u32;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_has_its_share() {
        let logits = [0.0f32, 2.0, 2.0, -1.0];
        assert_eq!(pick(&logits, 0.0, 0.99), 1);
        for temperature in [0.5, 1.0, 3.0] {
            let n = 4000;
            let mut counts = [0.0f64; 4];
            (0..n).for_each(|i| {
                let drawn = uniform(bits(1, Purpose::Samples, 2, i));
                counts[pick(&logits, temperature, drawn) as usize] += 1.0 / n as f64;
            });
            let weights = logits.map(|l| (f64::from(l) / temperature).exp());
            let sum: f64 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                assert!((count - weight / sum).abs() < 0.03, "{counts:?} {weights:?}");
            }
        }
    }
}
