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
mod processors;
mod queue;
mod request;
mod sequence;
#[cfg(test)]
mod tests;

pub use adapters::{AdapterInfo, OpenedAdapter};
pub use bitnet_model::AdapterUse;
pub use memory::Pools;
pub use moving::Takeover;
pub use request::{Event, Logprob, News, Request, RequestId};

use crate::prepared::{Files, Weights};
use crate::{Device, DeviceInfo, FinishReason, Forms, GenerateError, GenerateOptions, OpenError, Pooling};
use adapters::{Adapters, Chosen};
use bitnet_core::{KV_BLOCK, Logits, LogitsRow, OperationTime};
use bitnet_memory::{Level, Monitor, Need, Pressure};
use bitnet_model::{Adapter, Decoder, ModelConfig, ModelError, Span};
use bitnet_tokenizer::Tokenizer;
use blocks::Prefix;
use cache::Cache;
use draft::Draft;
use memory::Watch;
use moving::Fallback;
use processors::{Processors, Turn};
use queue::Queue;
use sequence::{Common, Sequence};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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

/// Where an engine stands, and what it did since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Answers in the making.
    pub running: usize,
    /// Answers that wait.
    pub waiting: usize,
    /// Blocks that are held.
    pub held_blocks: usize,
    /// Blocks in all.
    pub blocks: usize,
    /// Tokens of prompts that were looked for in the cache.
    pub prefix_queries: u64,
    /// Those that were found.
    pub prefix_hits: u64,
    /// Tokens guessed ahead.
    pub drafted: u64,
    /// Those that were right.
    pub accepted: u64,
    /// How short memory is, where it is watched ([`Engine::watch_memory`]).
    pub memory_pressure: Level,
    /// Bytes that were given back to the system because memory was short.
    pub memory_freed_bytes: u64,
    /// Times that an answer was sent back to wait.
    pub preempted: u64,
    /// Times that another device took over because one had failed.
    pub takeovers: u64,
    /// Steps that ran.
    pub steps: u64,
    /// Time that the decoder took of them; the rest is the engine's own.
    pub decoder_time: Duration,
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

    /// Looks at the memory of the system and of devices between steps. When it is short, blocks that hold nothing go back to the system,
    /// then prefixes that nobody uses; then [`Engine::submit`] refuses, and of several answers in the making the one that was admitted
    /// last waits. What pools keep for the next step goes back when the last answer has ended.
    pub fn watch_memory(&mut self, monitor: Arc<Monitor>) {
        self.watch = Some(Watch::new(monitor));
        self.watch_devices();
    }

    /// Has the memory of the devices watched that it runs on now.
    fn watch_devices(&self) {
        let Some(watch) = &self.watch else { return };
        let draft = self.draft.as_ref().map(|draft| &draft.cache);
        for cache in [&self.cache].into_iter().chain(draft) {
            watch.devices(&*cache.decoder);
        }
    }

    /// With nothing left to do, gives back what pools keep, if memory is short.
    fn rest(&mut self) {
        if self.stats.memory_pressure == Level::None || !self.is_idle() {
            return;
        }
        let draft = self.draft.as_ref().map(|draft| &draft.cache);
        let caches = [&self.cache].into_iter().chain(draft);
        self.stats.memory_freed_bytes +=
            caches.map(|cache| Pools::of(&*cache.decoder).release()).sum::<u64>();
        self.largest_step = 0;
    }

    /// How short memory is, after what can be given back was.
    fn relieve(&mut self) -> Option<Pressure> {
        let draft = self.draft.as_mut().map(|draft| &mut draft.cache);
        let (pressure, freed) = self.watch.as_mut()?.relieve([&mut self.cache].into_iter().chain(draft));
        self.stats.memory_pressure = pressure.level;
        self.stats.memory_freed_bytes += freed;
        Some(pressure)
    }

    /// Whether a model guesses.
    pub fn has_draft(&self) -> bool {
        self.draft.is_some()
    }

    /// Loads an adapter that peft saved. It acts on requests that do not choose adapters with `scale`; with 0, only on those that
    /// choose it. Requests that are running go on as they are.
    ///
    /// # Errors
    /// The files are damaged, or are no adapter of this model.
    pub fn load_adapter(&mut self, path: &Path, scale: f32) -> Result<u32, OpenError> {
        self.add_adapter(OpenedAdapter::open(path)?, scale)
    }

    /// Loads an adapter as [`Engine::load_adapter`] does, but for reading its files: what is left is done in a moment.
    ///
    /// # Errors
    /// It is no adapter of this model.
    pub fn add_adapter(&mut self, opened: OpenedAdapter, scale: f32) -> Result<u32, OpenError> {
        if !scale.is_finite() {
            return Err(OpenError::AdapterScale { scale });
        }
        let OpenedAdapter { path, hash, files } = opened;
        let (id, adapter) = (self.adapters.next, Adapter::read(&files, self.config())?);
        self.cache.decoder.load_adapter(id, &adapter)?;
        self.adapters.next += 1;
        self.adapters.held.insert(id, adapter);
        self.adapters.list.push(AdapterInfo { id, path, hash, scale });
        Ok(id)
    }

    /// Unloads an adapter: no request may choose it any more, those that have it keep it to their end.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn unload_adapter(&mut self, id: u32) -> Result<(), GenerateError> {
        let at = self.adapters.list.iter().position(|a| a.id == id);
        self.adapters.list.remove(at.ok_or(GenerateError::UnknownAdapter { id })?);
        self.adapters.leaving.push(id);
        self.let_adapters_go();
        Ok(())
    }

    /// Gives back the memory of adapters that are unloaded and that nobody goes through.
    fn let_adapters_go(&mut self) {
        let (queue, running, decoder) = (&self.queue, &self.running, &mut self.cache.decoder);
        let Adapters { leaving, held, .. } = &mut self.adapters;
        leaving.retain(|id| {
            let uses = |s: &Sequence| s.adapters.iter().any(|a| a.id == *id);
            let used = running.iter().any(uses) || queue.any(uses);
            if !used {
                decoder.unload_adapter(*id);
                held.remove(id);
            }
            used
        });
    }

    /// The adapters that requests may choose.
    pub fn adapters(&self) -> &[AdapterInfo] {
        &self.adapters.list
    }

    /// Sets how strongly adapters act on requests that do not choose any; those that are not named get 0.
    ///
    /// # Errors
    /// A number that no adapter has, or a scale that means nothing.
    pub fn set_adapter_scales(&mut self, scales: &[AdapterUse]) -> Result<(), GenerateError> {
        let chosen = self.adapters.choose(Some(scales))?;
        for adapter in &mut self.adapters.list {
            adapter.scale = chosen.iter().find(|a| a.id == adapter.id).map_or(0.0, |a| a.scale);
        }
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.cache.decoder.config()
    }

    /// Where the memory of its model comes from, at present.
    pub fn pools(&self) -> Pools {
        Pools::of(&*self.cache.decoder)
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

    /// What its model and cache are known by in sessions.
    pub(crate) fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// The adapters of requests that choose none.
    pub(crate) fn chosen_by_default(&self) -> Chosen {
        self.adapters.choose(None).expect("adapters that are loaded can be chosen")
    }

    /// The blocks that hold the beginning of some ids, and how many of these.
    pub(crate) fn cached(&self, adapters: &Chosen, ids: &[u32]) -> (Vec<u32>, usize) {
        // The last id of a prompt is not looked for.
        let Prefix { mut blocks, part } = self.cache.blocks.find(adapters, &[ids, &[0]].concat());
        let positions = blocks.len() * KV_BLOCK + part.map_or(0, |(_, positions)| positions);
        blocks.extend(part.map(|(block, _)| block));
        (blocks, positions)
    }

    /// Puts the keys and values of some ids into the tree, for prompts that begin with them.
    ///
    /// # Errors
    /// Too few blocks can be had: so many.
    pub(crate) fn keep(&mut self, adapters: &Chosen, ids: &[u32], data: &[u8]) -> Result<(), usize> {
        let have = if self.options.prefix_cache { self.cache.blocks.available() } else { 0 };
        if ids.len().div_ceil(KV_BLOCK) > have {
            return Err(have);
        }
        let mut held: Vec<u32> = Vec::new();
        for (tokens, bytes) in ids.chunks(KV_BLOCK).zip(data.chunks_exact(self.cache.decoder.block_bytes())) {
            let block = self.cache.blocks.take().expect("as many as are needed can be had");
            self.cache.decoder.load_block(block, bytes);
            held.push(match tokens.len() {
                KV_BLOCK => self.cache.blocks.link(adapters, held.last().copied(), block, tokens),
                _ => block,
            });
        }
        self.cache.blocks.release(adapters, held, ids);
        Ok(())
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

    /// Where it stands.
    pub fn stats(&self) -> Stats {
        let blocks = self.cache.blocks.count();
        Stats {
            running: self.running.len(),
            waiting: self.queue.len(),
            held_blocks: blocks - self.cache.blocks.available(),
            blocks,
            ..self.stats
        }
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

    /// Ends what fulfils a condition.
    fn end_all(&mut self, reason: FinishReason, condition: impl Fn(&Sequence) -> bool) {
        let mut ended = self.queue.remove(&condition);
        ended.extend(self.running.extract_if(.., |s| condition(s)));
        for sequence in ended {
            self.end(sequence, reason);
        }
    }

    fn end(&mut self, mut sequence: Sequence, reason: FinishReason) {
        for sibling in std::mem::take(&mut sequence.siblings) {
            self.end(sibling, reason);
        }
        self.release(&mut sequence);
        sequence.end(reason, &mut self.events);
    }

    fn fail(&mut self, mut sequence: Sequence, error: &Arc<GenerateError>) {
        for sibling in std::mem::take(&mut sequence.siblings) {
            self.fail(sibling, error);
        }
        self.release(&mut sequence);
        self.events.push(sequence.event(News::Failed(Arc::clone(error))));
    }

    /// Ends all that run.
    fn fail_all(&mut self, error: GenerateError) {
        let error = Arc::new(error);
        for sequence in std::mem::take(&mut self.running) {
            self.fail(sequence, &error);
        }
    }

    /// Gives back a sequence's blocks.
    fn release(&mut self, sequence: &mut Sequence) {
        sequence.drop_guesses();
        self.cache.leave(&mut sequence.place, &sequence.ids);
        if let Some(draft) = &mut self.draft {
            draft.cache.leave(&mut sequence.draft, &sequence.ids);
        }
    }

    /// Runs one step, if there is anything to do, and adds what came of it to `events`.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        self.step_at(Instant::now(), events);
    }

    /// Runs a step at a time.
    fn step_at(&mut self, now: Instant, events: &mut Vec<Event>) {
        let begin = Instant::now();
        self.end_all(FinishReason::Deadline, |s| s.deadline.is_some_and(|at| at <= now));
        let pressure = self.relieve();
        if pressure.is_some_and(|pressure| pressure.level == Level::Critical) && !self.running.is_empty() {
            if self.running.len() > 1 {
                self.send_back();
            }
        } else {
            self.admit();
        }
        if !self.running.is_empty() {
            let turn = self.processors();
            match self.guess() {
                Err(e) => self.step_failed(e),
                Ok(()) => {
                    self.plan();
                    self.make_room();
                    if !self.running.is_empty() {
                        self.run(begin);
                    }
                }
            }
            drop(turn);
        }
        self.let_adapters_go();
        events.append(&mut self.events);
        self.rest();
    }

    /// Gives seats to those who wait, while there are seats, blocks, and tokens in the budget.
    fn admit(&mut self) {
        while let Some(next) = self.queue.next() {
            let seats: usize = self.running.iter().map(|s| 1 + s.siblings.len()).sum();
            let tokens = self.running.len();
            if seats + 1 + next.siblings.len() > self.options.seats
                || (tokens >= self.options.budget && tokens > 0)
            {
                return;
            }
            let prefix = match next.cache_prompt {
                true => self.cache.blocks.find(&next.adapters, &next.ids),
                false => Default::default(),
            };
            // What a prefix holds and nobody uses is not there to be given away.
            let idle = prefix.blocks.iter().filter(|b| self.cache.blocks.holders(**b) == 0).count();
            let need =
                (next.ids.len() + 1).div_ceil(KV_BLOCK).min(self.cache.blocks.count()) - prefix.blocks.len();
            if need + idle > self.cache.blocks.available() && !self.running.is_empty() {
                return;
            }
            let mut sequence = self.queue.pop().expect("somebody is next");
            if sequence.cache_prompt && !sequence.preempted {
                self.stats.prefix_queries += sequence.ids.len() as u64;
            }
            let place = self.cache.enter(&sequence.adapters, prefix);
            if !sequence.preempted {
                self.stats.prefix_hits += place.computed as u64;
            }
            sequence.admitted(place);
            let at = self.running.partition_point(|s| s.priority >= sequence.priority);
            self.running.insert(at, sequence);
        }
    }

    /// Waits until other engines leave it as many processors as it has threads there, if it takes turns with them.
    fn processors(&self) -> Option<Turn<'static>> {
        let DeviceInfo { device, threads, .. } = &self.device;
        (self.options.take_turns && device.has(Device::Cpu)).then(|| Processors::of_process().turn(*threads))
    }

    /// Guesses what the answers in the making go on with.
    fn guess(&mut self) -> Result<(), ModelError> {
        let capacity = self.common.capacity;
        if let Some(draft) = &mut self.draft {
            return draft.guess(&mut self.running, self.options.budget, capacity);
        }
        for sequence in &mut self.running {
            let guesses = draft::lookup(&sequence.ids, sequence.most_guesses(capacity));
            sequence.guess_all(guesses);
        }
        Ok(())
    }

    /// Settles how many tokens of each sequence the next step runs.
    fn plan(&mut self) {
        let decoding = self.running.iter().filter(|s| s.is_decoding()).count();
        let mut left = self.options.budget.saturating_sub(decoding);
        let mut sharing = self.running.len() - decoding;
        for sequence in &mut self.running {
            if sequence.is_decoding() {
                sequence.plan(1);
                continue;
            }
            let share = (left / sharing).max(1);
            sequence.plan(share.min(sequence.missing()));
            left = left.saturating_sub(sequence.chunk);
            sharing -= 1;
        }
    }

    /// Gives every sequence the blocks that its step writes to. When there are none left, the last one goes back to wait.
    fn make_room(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            if self.cache.make_room(&mut sequence.place, sequence.chunk) {
                at += 1;
                continue;
            }
            self.send_back();
        }
    }

    /// Sends the answer that was admitted last back to wait.
    fn send_back(&mut self) {
        let mut last = self.running.pop().expect("somebody is running");
        self.release(&mut last);
        last.preempted = true;
        self.stats.preempted += 1;
        self.queue.push(last);
    }

    /// Runs the step and hands out its logits.
    fn run(&mut self, begin: Instant) {
        let spans: Vec<Span<'_>> = self
            .running
            .iter()
            .map(|s| Span {
                start: s.place.computed,
                ids: &s.ids[s.place.computed..s.place.computed + s.chunk],
                blocks: &s.place.blocks,
                needs: &s.needs,
                states: s.states.clone(),
                adapters: &s.adapters,
            })
            .collect();
        let tokens = self.running.iter().map(|s| s.chunk).sum();
        self.largest_step = self.largest_step.max(memory::workspace_bytes(self.config(), tokens));
        let decoding = Instant::now();
        let decoded = self.cache.decoder.batch(&spans, &mut self.logits, &mut self.states);
        let took = begin.elapsed();
        self.stats.steps += 1;
        self.stats.decoder_time += decoding.elapsed();
        if let Err(e) = decoded {
            return self.step_failed(e);
        }
        let (logits, states) = (std::mem::take(&mut self.logits), std::mem::take(&mut self.states));
        let mut rows = logits.rows();
        let mut state_rows = states.chunks_exact(self.cache.decoder.config().hidden);
        for mut sequence in std::mem::take(&mut self.running) {
            sequence.pool(state_rows.by_ref().take(sequence.states.len()), &mut self.events);
            let rows: Vec<LogitsRow<'_>> = rows.by_ref().take(sequence.needs.len()).collect();
            self.stats.drafted += sequence.guesses as u64;
            self.queue.charge(&sequence.client, sequence.chunk);
            let len = sequence.len();
            let ran = sequence.ran(&rows, took, &self.common, &mut self.events);
            self.settle(&mut sequence, len + ran.as_ref().unwrap_or(&0));
            match ran {
                Err(e) => self.fail(sequence, &Arc::new(e)),
                Ok(right) => {
                    self.stats.accepted += right as u64;
                    if sequence.is_past_prompt() {
                        self.fork(&mut sequence, rows.last());
                    }
                    self.seat(sequence);
                }
            }
        }
        drop(rows);
        (self.logits, self.states) = (logits, states);
    }

    /// Goes on with a sequence in the next step, or ends it.
    fn seat(&mut self, sequence: Sequence) {
        match sequence.finish {
            // Without an answer it ends with its prompt.
            Some(reason) if sequence.is_past_prompt() => self.end(sequence, reason),
            _ => self.running.push(sequence),
        }
    }

    /// Puts a sequence's places in order behind a step: what it took back is forgotten, and what the draft model computed beyond
    /// the first `right` ids too.
    fn settle(&mut self, sequence: &mut Sequence, right: usize) {
        let last = sequence.len() - 1;
        if sequence.finish.is_none() {
            self.cache.rewind(&mut sequence.place, last);
        }
        self.cache.link(&mut sequence.place, &sequence.ids);
        if let Some(draft) = &mut self.draft {
            draft.cache.rewind(&mut sequence.draft, right.min(last));
        }
    }

    /// Begins the further answers to a prompt that is computed, with the row of logits behind it.
    fn fork(&mut self, first: &mut Sequence, row: Option<&LogitsRow<'_>>) {
        for mut sequence in std::mem::take(&mut first.siblings) {
            let place = self.cache.share(&first.place);
            let begun = sequence.begin(first, place, row, &self.common, &mut self.events);
            let len = sequence.len();
            self.settle(&mut sequence, len);
            match begun {
                Ok(()) => self.seat(sequence),
                Err(e) => self.fail(sequence, &Arc::new(e)),
            }
        }
    }
}
