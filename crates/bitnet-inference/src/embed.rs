//! Embeddings: one vector for a text, from the states behind the model's final norm.

use crate::engine::{News, Request};
use crate::{GenerateError, Model};
use bitnet_formats::{Checkpoint, FormatError, Header, pooling_config};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Which states become the vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's.
    #[default]
    Last,
    /// The mean of all tokens'.
    Mean,
    /// The first token's.
    Cls,
}

/// What an embedding is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// Which states become the vector.
    pub pooling: Pooling,
    /// Whether it is divided by its length.
    pub normalize: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: Pooling::default(), normalize: true }
    }
}

impl Pooling {
    /// What a model was made for, as far as its files say.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, FormatError> {
        match &checkpoint.header {
            Header::Gguf { metadata, .. } => {
                let arch = metadata.str("general.architecture").unwrap_or_default();
                Ok(match metadata.u32(&format!("{arch}.pooling_type")) {
                    Some(1) => Some(Self::Mean),
                    Some(2) => Some(Self::Cls),
                    Some(3) => Some(Self::Last),
                    _ => None,
                })
            }
            Header::HuggingFace { dir, .. } => {
                let Some(config) = pooling_config(dir)? else { return Ok(None) };
                let is = |mode: &str| {
                    config.get(format!("pooling_mode_{mode}")).and_then(Value::as_bool) == Some(true)
                };
                let modes =
                    [("lasttoken", Self::Last), ("mean_tokens", Self::Mean), ("cls_token", Self::Cls)];
                Ok(modes.into_iter().find(|(mode, _)| is(mode)).map(|(_, pooling)| pooling))
            }
        }
    }
}

/// The states of one prompt on their way to its vector.
pub(crate) struct Pool {
    options: EmbedOptions,
    sum: Vec<f64>,
    count: usize,
}

impl Pool {
    pub fn new(options: EmbedOptions) -> Self {
        Self { options, sum: Vec::new(), count: 0 }
    }

    /// Forgets all states.
    pub fn clear(&mut self) {
        self.sum.clear();
        self.count = 0;
    }

    pub fn pooling(&self) -> Pooling {
        self.options.pooling
    }

    /// Takes the state of one more token.
    pub fn take(&mut self, state: &[f32]) {
        self.sum.resize(state.len(), 0.0);
        self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
        self.count += 1;
    }

    /// The vector (rule 16 of `docs/numerics.md`).
    pub fn vector(&self) -> Vec<f32> {
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / self.count as f64).collect();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        let divisor = if self.options.normalize && length > 0.0 { length } else { 1.0 };
        mean.iter().map(|x| (x / divisor) as f32).collect()
    }
}

impl Model {
    /// The vectors of some prompts, `[hidden]` each, in their order. Prompts share steps, which changes no bit.
    ///
    /// # Errors
    /// A prompt is empty, too long or holds an unknown id.
    pub fn embed(
        &mut self,
        prompts: &[Vec<u32>],
        options: EmbedOptions,
    ) -> Result<Vec<Vec<f32>>, GenerateError> {
        let engine = &mut self.engine;
        prompts.iter().try_for_each(|prompt| engine.check(prompt, 0))?;
        let mut vectors = vec![Vec::new(); prompts.len()];
        let (mut waiting, mut running) = (prompts.iter().enumerate(), HashMap::new());
        loop {
            while running.len() < engine.options().seats
                && let Some((at, prompt)) = waiting.next()
            {
                let request =
                    Request { prompt: prompt.clone(), embedding: Some(options), ..Request::default() };
                running.insert(engine.submit(&request)?, at);
            }
            if running.is_empty() {
                return Ok(vectors);
            }
            let mut events = Vec::new();
            engine.step(&mut events);
            let mut failed = None;
            for event in events {
                match event.news {
                    News::Embedding(vector) => vectors[running[&event.request]] = vector,
                    News::Finished { .. } => drop(running.remove(&event.request)),
                    // Those that share a step share its error.
                    News::Failed(e) => failed = Some(e),
                    News::Piece { .. } | News::Prompt(_) => {}
                }
            }
            if let Some(e) = failed {
                running.keys().for_each(|id| engine.cancel(*id));
                engine.step(&mut Vec::new());
                return Err(Arc::into_inner(e).expect("the events that shared it are gone"));
            }
        }
    }
}
