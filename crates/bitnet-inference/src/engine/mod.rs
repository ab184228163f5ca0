//! Many answers at once, step by step.
//!
//! A step runs one token of every answer in the making and, with what is left of its budget, pieces of prompts; requests come and go
//! between steps. An answer depends on its request alone: numbers do not depend on what shares a step (docs/numerics.md), a
//! sampler on nothing but logits and ids. So neither company, nor a prefix from the cache, nor being sent back to wait, nor guessing
//! ahead changes a token.
//!
//! When blocks run out, the answer that was admitted last gives its own back and waits; they are computed again later.

mod adapters;
mod banned;
mod blocks;
mod cache;
mod draft;
mod memory;
mod moving;
mod prefixes;
mod processors;
mod queue;
mod request;
mod sequence;
mod stats;
mod step;
#[cfg(test)]
mod tests;

pub use adapters::{AdapterInfo, OpenedAdapter};
pub use bitnet_model::AdapterUse;
pub use memory::Pools;
pub use moving::Takeover;
pub use request::{Event, Logprob, News, Request, RequestId};
pub use stats::Stats;

use crate::prepared::{Files, Weights};
use crate::{DeviceInfo, FinishReason, Forms, GenerateError, GenerateOptions, OpenError, Pooling};
use adapters::Adapters;
use bitnet_core::{KV_BLOCK, Logits, OperationTime};
use bitnet_memory::Need;
use bitnet_model::{Decoder, ModelConfig};
use bitnet_tokenizer::Tokenizer;
use cache::Cache;
use draft::Draft;
use memory::Watch;
use moving::Fallback;
use queue::Queue;
use sequence::{Common, Sequence};
use std::sync::{Arc, OnceLock};

/// How an engine shares out its steps.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Tokens of a step at most, though each admitted request has at least one.
    pub budget: usize,
    /// Answers in the making at once.
    pub seats: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Whether prompts begin with what the cache holds of them.
    pub prefix_cache: bool,
    /// Whether a step on the processor waits until the steps of other engines that take turns leave it as many cores as it has threads.
    /// Without it threads share cores as the system has them, which measures as fast or up to a twentieth faster on a machine of two.
    pub take_turns: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { budget: 512, seats: 16, queue: 1024, prefix_cache: true, take_turns: false }
    }
}

/// A model that answers many requests.
pub struct Engine {
    cache: Cache,
    draft: Option<Draft>,
    watch: Option<Watch>,
    common: Common,
    adapters: Adapters,
    pooling: Option<Pooling>,
    device: DeviceInfo,
    files: Arc<Files>,
    /// What takes over when the device fails.
    fallback: Option<Fallback>,
    identity: [u8; 32],
    options: EngineOptions,
    queue: Queue,
    /// In the order in which they give way: the last one first.
    running: Vec<Sequence>,
    /// Refusals and ends that the next step tells of.
    events: Vec<Event>,
    logits: Logits,
    states: Vec<f32>,
    stats: Stats,
    /// Bytes of the largest step so far, whose memory is there for the next.
    largest_step: u64,
    requests: RequestId,
}

impl Engine {
    /// An engine over weights on a device.
    pub(crate) fn new(weights: Weights, tokenizer: Option<Arc<Tokenizer>>, options: EngineOptions) -> Self {
        let Weights { decoder, device, identity, files } = weights;
        let config = decoder.config();
        let mut end_ids = config.eos.clone();
        for id in tokenizer.iter().flat_map(|t| t.end_tokens()) {
            if !end_ids.contains(&id) {
                end_ids.push(id);
            }
        }
        let forms =
            tokenizer.as_ref().map(|t| Arc::new(Forms::new(Arc::clone(t), config.vocab, end_ids.clone())));
        let common = Common {
            tokenizer,
            forms,
            tokens: OnceLock::new(),
            end_ids,
            vocab: config.vocab,
            capacity: decoder.capacity(),
        };
        Self {
            common,
            adapters: Adapters::default(),
            pooling: None,
            device,
            files,
            fallback: None,
            identity,
            cache: Cache::new(decoder, options.prefix_cache),
            draft: None,
            watch: None,
            options,
            queue: Queue::default(),
            running: Vec::new(),
            events: Vec::new(),
            logits: Logits::default(),
            states: Vec::new(),
            stats: Stats::default(),
            largest_step: 0,
            requests: 0,
        }
    }

    /// The same engine with other options; it has to be idle, and forgets all prefixes.
    pub(crate) fn with_options(self, options: EngineOptions) -> Self {
        let keep = options.prefix_cache;
        Self {
            cache: Cache::new(self.cache.decoder, keep),
            draft: self.draft.map(|draft| Draft::new(draft.cache.decoder, draft.files, keep)),
            queue: Queue::default(),
            stats: Stats::default(),
            options,
            ..self
        }
    }

    /// Lets another model, of the same vocabulary, guess tokens ahead for requests that want it; see [`Request::draft`].
    ///
    /// # Errors
    /// The vocabularies differ.
    pub fn set_draft(&mut self, draft: Self) -> Result<(), OpenError> {
        let vocabulary = |engine: &Self| (engine.common.vocab, engine.common.tokenizer.clone());
        draft::check_vocabulary(vocabulary(self), vocabulary(&draft))?;
        self.draft = Some(Draft::new(draft.cache.decoder, draft.files, self.options.prefix_cache));
        Ok(())
    }

    /// Whether a model guesses.
    pub fn has_draft(&self) -> bool {
        self.draft.is_some()
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.cache.decoder.config()
    }

    /// What its devices have spent on each kind of operation since this was last called, the longest first. The first call begins to measure, and
    /// from then on steps take longer.
    ///
    /// # Errors
    /// A device does not measure its operations.
    pub fn profile(&self) -> Result<Vec<OperationTime>, GenerateError> {
        Ok(self.cache.decoder.profile()?)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.common.tokenizer.as_ref()
    }

    /// Tokens that one sequence may have.
    pub fn capacity(&self) -> usize {
        self.common.capacity
    }

    /// Which states the model's vectors are made of, as far as its files say.
    pub fn pooling(&self) -> Option<Pooling> {
        self.pooling
    }

    pub(crate) fn set_pooling(&mut self, pooling: Option<Pooling>) {
        self.pooling = pooling;
    }

    /// Ids that end a text: those of the configuration and the vocabulary's own end tokens.
    pub fn end_ids(&self) -> &[u32] {
        &self.common.end_ids
    }

    /// The compiler of forms for its vocabulary.
    pub fn forms(&self) -> Option<&Arc<Forms>> {
        self.common.forms.as_ref()
    }

    /// A request without a prompt, whose form is compiled.
    pub(crate) fn request(&self, options: GenerateOptions) -> Result<Request, GenerateError> {
        let compile = |form| self.forms().ok_or(GenerateError::NoTokenizer)?.compile(form);
        let form = options.form.as_ref().map(compile).transpose()?;
        Ok(Request { form, ..options.into() })
    }

    /// How steps are shared out.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// Sets the tokens of a step.
    pub(crate) fn set_budget(&mut self, budget: usize) {
        self.options.budget = budget;
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.len() == 0 && self.events.is_empty()
    }

    /// The decoder for a sequence outside the engine, which has to be idle; the cache's prefixes are forgotten.
    pub(crate) fn lend(&mut self) -> &mut dyn Decoder {
        assert!(self.is_idle(), "nobody is being served");
        self.cache.blocks.clear();
        &mut *self.cache.decoder
    }

    /// The decoder.
    pub(crate) fn decoder(&self) -> &dyn Decoder {
        &*self.cache.decoder
    }

    /// Takes a request.
    ///
    /// # Errors
    /// The prompt is empty, too long or holds an unknown id; an option has a value that means nothing; too many wait already; memory is
    /// short.
    pub fn submit(&mut self, request: &Request) -> Result<RequestId, GenerateError> {
        self.check(&request.prompt, usize::from(request.embedding.is_none()))?;
        let most = if request.embedding.is_some() { 1 } else { self.options.seats };
        if !(1..=most).contains(&request.choices) {
            return Err(GenerateError::Choices { asked: request.choices, most });
        }
        if self.queue.len() >= self.options.queue {
            return Err(GenerateError::QueueFull { waiting: self.queue.len() });
        }
        if let Some(pressure) = self.relieve() {
            let tokens = request.prompt.len();
            let blocks = self.cache.blocks.unwritten(tokens.div_ceil(KV_BLOCK));
            let step = memory::workspace_bytes(self.config(), tokens.min(self.options.budget));
            let step = step.saturating_sub(self.largest_step);
            let cache = blocks as u64 * self.cache.decoder.block_bytes() as u64;
            pressure.admit(&Need { mapped_bytes: step, resident_bytes: step + cache, device_bytes: step })?;
        }
        let adapters = self.adapters.choose(request.adapters.as_deref())?;
        let mut sequence = Sequence::new(self.requests, request, &adapters, &self.common)?;
        self.requests += 1;
        if sequence.wants_nothing() {
            for mut s in std::mem::take(&mut sequence.siblings).into_iter().chain([sequence]) {
                s.end(FinishReason::Length, &mut self.events);
            }
        } else {
            self.queue.push(sequence);
        }
        Ok(self.requests - 1)
    }

    /// Refuses a prompt that is empty, holds an unknown id, or leaves no room for `answer` tokens.
    pub(crate) fn check(&self, ids: &[u32], answer: usize) -> Result<(), GenerateError> {
        let Common { vocab, capacity, .. } = self.common;
        if ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
            return Err(GenerateError::UnknownId { id: *id, vocab });
        }
        if ids.len() + answer > capacity {
            return Err(GenerateError::PromptTooLong { tokens: ids.len(), capacity });
        }
        Ok(())
    }

    /// Ends a request's answers where they are. Nothing happens where it has ended.
    pub fn cancel(&mut self, request: RequestId) {
        self.end_all(FinishReason::Cancelled, |s| s.request == request);
    }
}
