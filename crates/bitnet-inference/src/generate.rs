//! One answer: an engine with a single request.

use crate::engine::{News, Request, RequestId};
use crate::sample::{SamplerOptions, fresh_seed};
use crate::{Form, GenerateError, Model};
use bitnet_model::AdapterUse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How an answer is to be made.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The sampler chain.
    pub sampling: SamplerOptions,
    /// Tokens at most; `None` is bounded by the context alone.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer and do not appear in it.
    pub stop: Vec<String>,
    /// Texts that the answer may not contain; see [`Request::banned`].
    pub banned: Vec<String>,
    /// End tokens are banned instead of obeyed.
    pub ignore_eos: bool,
    /// Tokens of one prefill step. Changes speed and memory, no bit.
    pub batch: usize,
    /// What the answer has to look like; it ends when that is complete.
    pub form: Option<Form>,
    /// See [`Request::dry_breakers`].
    pub dry_breakers: Vec<String>,
    /// Tokens to guess ahead; see [`Request::draft`].
    pub draft: usize,
    /// See [`Request::adapters`].
    pub adapters: Option<Vec<AdapterUse>>,
    /// Set from outside to end the answer after the present step.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            sampling: SamplerOptions::default(),
            max_tokens: Some(512),
            stop: Vec::new(),
            banned: Vec::new(),
            ignore_eos: false,
            batch: 512,
            form: None,
            dry_breakers: Request::default().dry_breakers,
            draft: 0,
            adapters: None,
            cancel: None,
        }
    }
}

impl From<GenerateOptions> for Request {
    /// A request without a prompt and without a form, which has to be compiled first. The size of steps is the engine's own affair, and it is told who is cancelled.
    fn from(o: GenerateOptions) -> Self {
        Self {
            sampling: o.sampling,
            max_tokens: o.max_tokens,
            stop: o.stop,
            banned: o.banned,
            ignore_eos: o.ignore_eos,
            dry_breakers: o.dry_breakers,
            draft: o.draft,
            adapters: o.adapters,
            ..Self::default()
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// As many tokens as were allowed, or the context is full.
    Length,
    /// Somebody cancelled it.
    Cancelled,
    /// Its time was over.
    Deadline,
}

impl FinishReason {
    /// The word that clients of the OpenAI API know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        }
    }
}

/// A token of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its id; `None` for text that was held back until the end.
    pub id: Option<u32>,
    /// Text that is complete with it; may be empty.
    pub text: String,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Time until the request was admitted.
    pub queued: Duration,
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that the cache held already.
    pub cached_tokens: usize,
    /// Time for them.
    pub prompt: Duration,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Time from the first one on.
    pub generation: Duration,
    /// Steps behind the first token.
    pub steps: usize,
    /// Tokens guessed ahead.
    pub drafted: usize,
    /// Those that were right, each of which saved a step.
    pub accepted: usize,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prompt_per_second(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt)
    }

    /// Tokens that a step of generation brought: more than one where guesses came true.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens.saturating_sub(1) as f64 / self.steps.max(1) as f64
    }

    /// Tokens of generation a second: the first one comes with the prompt.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.tokens.saturating_sub(1), self.generation)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// An answer in the making: an iterator over its pieces.
pub struct Generation<'a> {
    model: &'a mut Model,
    request: RequestId,
    cancel: Option<Arc<AtomicBool>>,
    seed: u64,
    /// What came and was not asked for yet.
    news: VecDeque<News>,
    tokens: Vec<u32>,
    timings: Timings,
    finish: Option<FinishReason>,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(
        model: &'a mut Model,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        let engine = &mut model.engine;
        engine.set_budget(options.batch.max(1));
        let seed = options.sampling.seed.unwrap_or_else(fresh_seed);
        let cancel = options.cancel.clone();
        let mut request = Request { prompt: prompt.to_vec(), ..engine.request(options)? };
        request.sampling.seed = Some(seed);
        let request = engine.submit(&request)?;
        let (news, tokens, timings) = Default::default();
        Ok(Self { model, request, cancel, seed, news, tokens, timings, finish: None })
    }

    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// What it took, once it has ended.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Tokens of the answer so far, the end token among them.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.finish.is_none() {
            match self.news.pop_front() {
                None => {
                    let engine = &mut self.model.engine;
                    if self.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed)) {
                        engine.cancel(self.request);
                    }
                    let mut events = Vec::new();
                    engine.step(&mut events);
                    self.news
                        .extend(events.into_iter().filter(|e| e.request == self.request).map(|e| e.news));
                }
                Some(News::Prompt(_) | News::Embedding(_)) => {}
                Some(News::Piece { id, text, .. }) => {
                    self.tokens.extend(id);
                    return Some(Ok(Piece { id, text }));
                }
                Some(News::Finished { reason, timings, .. }) => {
                    (self.finish, self.timings) = (Some(reason), timings);
                }
                Some(News::Failed(e)) => {
                    self.finish = Some(FinishReason::Cancelled);
                    return Some(Err(Arc::into_inner(e).expect("one answer fails alone")));
                }
            }
        }
        None
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        // Nobody wants the rest.
        self.model.engine.cancel(self.request);
        self.model.engine.step(&mut Vec::new());
    }
}
