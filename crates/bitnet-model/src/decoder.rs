//! The seam: below it everything is static and typed, above it everything is host data.

use crate::{LoadReport, ModelConfig, ModelError};
use bitnet_core::LogitsNeed;

/// Which rows of logits a step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// None: the step only fills the cache.
    None,
    /// The last token's.
    #[default]
    Last,
    /// Every token's.
    All,
}

/// What a step is asked for and what it gives; its memory is reused from step to step.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Which logits to compute.
    pub rows: Rows,
    /// Which logits of the last token are enough, where `rows` is [`Rows::Last`].
    pub need: LogitsNeed,
    /// Whether to keep the residual stream.
    pub keep_hidden: bool,
    /// The ids of `logits`, ascending; empty when they are `[rows, vocab]`.
    pub ids: Vec<u32>,
    /// `[rows, vocab]`, or one logit for each of `ids`.
    pub logits: Vec<f32>,
    /// With `keep_hidden`: the embedding, the residual stream behind each layer, and the final norm, each
    /// `[tokens, hidden]`.
    pub hidden: Vec<Vec<f32>>,
}

/// A model with the cache of one sequence.
pub trait Decoder: Send {
    /// The configuration.
    fn config(&self) -> &ModelConfig;
    /// What loading it took.
    fn report(&self) -> &LoadReport;
    /// Tokens in the cache.
    fn position(&self) -> usize;
    /// Tokens the cache can hold.
    fn capacity(&self) -> usize;
    /// Forgets the tokens from `position` on. A position beyond the present one changes nothing.
    fn rewind(&mut self, position: usize);
    /// Runs `ids` behind what is in the cache. However a prompt is cut into steps, the numbers are the same.
    fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), ModelError>;
}
