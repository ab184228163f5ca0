//! The seam: below it everything is static and typed, above it everything is host data.

use crate::{Adapter, AdapterUse, LoadReport, ModelConfig, ModelError};
use bitnet_core::{Logits, LogitsNeed, OperationTime};
use bitnet_memory::{Buffer, DeviceMemory, Pool};
use std::ops::Range;
use std::sync::Arc;

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
    pub ids: Buffer<u32>,
    /// `[rows, vocab]`, or one logit for each of `ids`.
    pub logits: Buffer<f32>,
    /// With `keep_hidden`: the embedding, the residual stream behind each layer, and the final norm, each
    /// `[tokens, hidden]`.
    pub hidden: Vec<Vec<f32>>,
}

/// Consecutive tokens of one sequence in a step of several.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// The position of the first of them.
    pub start: usize,
    /// The tokens.
    pub ids: &'a [u32],
    /// The cache's blocks that hold the sequence's positions, in their order.
    pub blocks: &'a [u32],
    /// Which logits are wanted of the last tokens, an entry for each: none, and the span only fills the cache.
    pub needs: &'a [LogitsNeed],
    /// Tokens, counted in the span, whose states behind the final norm are wanted.
    pub states: Range<usize>,
    /// The adapters that its tokens go through, in the order in which they add.
    pub adapters: &'a [AdapterUse],
}

/// A model with its cache: blocks of positions that sequences hold.
pub trait Decoder: Send {
    /// The configuration.
    fn config(&self) -> &ModelConfig;
    /// What loading it took.
    fn report(&self) -> &LoadReport;
    /// Where memory of the host comes from, each pool once; on the processor that is all of the model's.
    fn memory(&self) -> Vec<Arc<Pool>>;
    /// Memory of the devices that it runs on, where that is not the host's and their drivers tell.
    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>>;
    /// What its devices have spent on each kind of operation since this was last called; the first call begins to measure.
    fn profile(&self) -> Result<Vec<OperationTime>, ModelError>;
    /// Tokens that one sequence may have.
    fn capacity(&self) -> usize;
    /// Blocks of the cache, of [`bitnet_core::KV_BLOCK`] positions each.
    fn blocks(&self) -> usize;
    /// Copies a block into another one.
    fn copy_block(&mut self, from: u32, to: u32);
    /// Gives the memory of a block, which no sequence holds, back to the system until it is written again; tells how many bytes.
    fn discard_block(&mut self, block: u32) -> usize;
    /// Bytes of a block's keys and values.
    fn block_bytes(&self) -> usize;
    /// Appends the keys and values of a block; they mean something to the same model with the same types of cache only.
    fn save_block(&self, block: u32, out: &mut Vec<u8>) -> Result<(), ModelError>;
    /// Fills a block with [`Decoder::block_bytes`] of them.
    fn load_block(&mut self, block: u32, bytes: &[u8]);
    /// Holds an adapter, which sequences may then go through, under a number that no other has.
    fn load_adapter(&mut self, id: u32, adapter: &Adapter) -> Result<(), ModelError>;
    /// Gives an adapter's memory back.
    fn unload_adapter(&mut self, id: u32);
    /// Runs tokens of several sequences, each of which gets the numbers that it would get alone; `out` has the logits that they want,
    /// in their order, and `states` the states, `[rows, hidden]`.
    fn batch(
        &mut self,
        batch: &[Span<'_>],
        out: &mut Logits,
        states: &mut Vec<f32>,
    ) -> Result<(), ModelError>;

    /// Tokens of the sequence that [`Decoder::step`] goes on with. It has the cache to itself; a batch ends it.
    fn position(&self) -> usize;
    /// Forgets its tokens from `position` on. A position beyond the present one changes nothing.
    fn rewind(&mut self, position: usize);
    /// Runs `ids` behind its tokens. However a prompt is cut into steps, the numbers are the same.
    fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), ModelError>;
}
