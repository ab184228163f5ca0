//! One answer in the making.

mod answer;

use super::adapters::Chosen;
use super::banned::Banned;
use super::cache::Place;
use super::request::{Event, News, Request, RequestId};
use crate::embed::{Pool, Pooling};
use crate::sample::Sampler;
use crate::stop::StopStrings;
use crate::{Constraint, FinishReason, Forms, GenerateError, Timings};
use bitnet_core::{LogitsNeed, LogitsRow};
use bitnet_tokenizer::{DecodeStream, TokenBytes, Tokenizer};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Tokens whose logits are computed in one step where those of the prompt are wanted: each takes four bytes for every id.
const LOGPROB_CHUNK: usize = 32;

/// What an engine's sequences share.
pub(super) struct Common {
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub forms: Option<Arc<Forms>>,
    /// What ids stand for, once somebody needs it.
    pub tokens: OnceLock<Vec<TokenBytes>>,
    pub end_ids: Vec<u32>,
    pub vocab: usize,
    pub capacity: usize,
}

impl Common {
    /// Ids of the tokens with one of some texts in them, ascending.
    fn breakers(&self, texts: &[String]) -> Vec<u32> {
        let Some(tokenizer) = &self.tokenizer else { return Vec::new() };
        let tokens = self.tokens.get_or_init(|| tokenizer.token_bytes(self.vocab));
        let breaks = |token: &TokenBytes| match token {
            TokenBytes::Text(bytes) => texts
                .iter()
                .any(|text| !text.is_empty() && bytes.windows(text.len()).any(|w| w == text.as_bytes())),
            TokenBytes::Special(_) => false,
        };
        (0..).zip(tokens).filter(|(_, token)| breaks(token)).map(|(id, _)| id).collect()
    }
}

pub(super) struct Sequence {
    pub request: RequestId,
    pub choice: usize,
    pub client: Arc<str>,
    pub priority: i32,
    pub deadline: Option<Instant>,
    pub cache_prompt: bool,
    pub adapters: Chosen,
    /// Prompt and answer, and what is guessed behind them while a step is being made ready.
    pub ids: Vec<u32>,
    /// How many ids at the end of `ids` are guesses.
    pub guesses: usize,
    /// Where it lies in the cache.
    pub place: Place,
    /// Where it lies in the draft model's cache.
    pub draft: Place,
    /// Whether it was sent back to wait.
    pub preempted: bool,
    /// Further answers, which begin when the prompt is computed.
    pub siblings: Vec<Sequence>,
    /// Tokens of this step, and which logits of the last ones are wanted.
    pub chunk: usize,
    pub needs: Vec<LogitsNeed>,
    /// Tokens of this step whose states are wanted.
    pub states: Range<usize>,
    pub timings: Timings,
    ahead: usize,
    prompt_len: usize,
    max_tokens: Option<usize>,
    sampler: Sampler,
    stream: Option<DecodeStream>,
    banned: Option<Banned>,
    stop: StopStrings,
    stop_ids: Vec<u32>,
    form: Option<Constraint>,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    /// What becomes of the prompt's states, where its vector is asked for.
    pool: Option<Pool>,
    /// Tokens of the prompt whose log-probabilities have been given; the first has none.
    prompt_given: usize,
    since: Instant,
    pub finish: Option<FinishReason>,
}

impl Sequence {
    /// The answers of a request, all but the first as siblings of that one.
    pub fn new(
        id: RequestId,
        request: &Request,
        adapters: &Chosen,
        common: &Common,
    ) -> Result<Self, GenerateError> {
        let mut first = Self::choice(id, 0, request, adapters, common)?;
        // A seed that nobody asked for is drawn once.
        let seed = first.sampler.seed();
        for choice in 1..request.choices {
            let mut request = request.clone();
            request.sampling.seed = Some(seed.wrapping_add(choice as u64));
            request.prompt_logprobs = None;
            first.siblings.push(Self::choice(id, choice, &request, adapters, common)?);
        }
        Ok(first)
    }

    fn choice(
        request_id: RequestId,
        choice: usize,
        request: &Request,
        adapters: &Chosen,
        common: &Common,
    ) -> Result<Self, GenerateError> {
        let mut sampling = request.sampling.clone();
        let mut stop_ids = request.stop_ids.clone();
        if sampling.dry_multiplier > 0.0 {
            sampling.dry_breakers = common.breakers(&request.dry_breakers);
        }
        // A form is complete when an end token follows.
        if request.ignore_eos && request.form.is_none() {
            let known = common.end_ids.iter().filter(|id| (**id as usize) < common.vocab);
            sampling.logit_bias.extend(known.map(|id| (*id, f64::NEG_INFINITY)));
        } else {
            stop_ids.extend(&common.end_ids);
        }
        Ok(Self {
            request: request_id,
            choice,
            client: Arc::clone(&request.client),
            priority: request.priority,
            deadline: request.deadline,
            cache_prompt: request.cache_prompt
                && request.prompt_logprobs.is_none()
                // States are not in the cache.
                && request.embedding.is_none_or(|e| e.pooling == Pooling::Last),
            adapters: Chosen::clone(adapters),
            ids: request.prompt.clone(),
            guesses: 0,
            place: Place::default(),
            draft: Place::default(),
            preempted: false,
            siblings: Vec::new(),
            chunk: 0,
            needs: Vec::new(),
            states: 0..0,
            timings: Timings::default(),
            ahead: request.draft,
            prompt_len: request.prompt.len(),
            max_tokens: request.max_tokens,
            sampler: Sampler::new(sampling, common.vocab)?,
            stream: common.tokenizer.as_ref().map(|t| DecodeStream::new(Arc::clone(t), true)),
            banned: Banned::new(&request.banned)?,
            stop: StopStrings::new(request.stop.clone()),
            stop_ids,
            form: request.form.clone(),
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            pool: request.embedding.map(Pool::new),
            prompt_given: 1,
            since: Instant::now(),
            finish: match request.embedding {
                Some(_) => Some(FinishReason::Stop),
                None => (request.max_tokens == Some(0)).then_some(FinishReason::Length),
            },
        })
    }

    /// Ids, guesses left out.
    pub fn len(&self) -> usize {
        self.ids.len() - self.guesses
    }

    /// Ids without a key and a value.
    pub fn missing(&self) -> usize {
        self.len() - self.place.computed
    }

    /// Whether a step of one token continues it.
    pub fn is_decoding(&self) -> bool {
        self.missing() == 1 && self.len() > self.prompt_len
    }

    /// Whether anything of it has to be computed.
    pub fn wants_nothing(&self) -> bool {
        self.finish.is_some() && self.prompt_logprobs.is_none() && self.pool.is_none()
    }

    /// Whether its prompt is computed.
    pub fn is_past_prompt(&self) -> bool {
        self.len() > self.prompt_len || self.missing() == 0
    }

    /// It got a seat, and a place where so many positions are computed already.
    pub fn admitted(&mut self, place: Place) {
        if self.timings.tokens == 0 {
            self.timings.queued = self.since.elapsed();
            self.timings.cached_tokens = place.computed;
            self.timings.prompt_tokens = self.prompt_len - place.computed;
        }
        self.place = place;
        if let Some(pool) = &mut self.pool {
            pool.clear();
        }
    }

    /// How many tokens may be guessed behind what is there, in a context of `capacity`.
    pub fn most_guesses(&self, capacity: usize) -> usize {
        if !self.is_decoding() {
            return 0;
        }
        let left = self.max_tokens.map_or(usize::MAX, |max| max.saturating_sub(self.timings.tokens + 1));
        self.ahead.min(left).min(capacity.saturating_sub(self.ids.len() + 1))
    }

    /// Guesses what stands in these logits of another model; false where nothing can be drawn from them.
    pub fn guess(&mut self, row: LogitsRow<'_>) -> bool {
        let surprise = self.sampler.surprise();
        let drawn = self.sampler.sample(row.0, row.1, &self.ids);
        self.sampler.set_surprise(surprise);
        let Ok(id) = drawn else { return false };
        self.guess_all(vec![id]);
        true
    }

    /// Adds guesses.
    pub fn guess_all(&mut self, guesses: Vec<u32>) {
        self.guesses += guesses.len();
        self.ids.extend(guesses);
    }

    /// Takes back what was guessed.
    pub fn drop_guesses(&mut self) {
        self.ids.truncate(self.len());
        self.guesses = 0;
    }

    /// The logits that decide what follows the first `len` ids.
    pub fn need(&self, len: usize) -> LogitsNeed {
        let banned = self.banned.as_ref().map_or(&[][..], |banned| banned.ids(len));
        self.sampler.need_without(&self.ids[..len], banned)
    }

    /// Settles that the next step runs so many of the missing tokens, and all guesses if those are all.
    pub fn plan(&mut self, tokens: usize) {
        let wants_prompt = self.prompt_logprobs.is_some() && self.place.computed < self.prompt_len;
        self.chunk = if wants_prompt { tokens.min(LOGPROB_CHUNK) } else { tokens };
        self.needs.clear();
        self.states = match self.pool.as_ref().map(Pool::pooling) {
            Some(Pooling::Mean) => 0..self.chunk,
            Some(Pooling::Last) if self.chunk == self.missing() => self.chunk - 1..self.chunk,
            Some(Pooling::Cls) if self.place.computed == 0 => 0..1,
            _ => 0..0,
        };
        if wants_prompt {
            return self.needs.resize(self.chunk, LogitsNeed::All);
        }
        if self.chunk < self.missing() || self.max_tokens == Some(0) || self.pool.is_some() {
            return;
        }
        self.chunk += self.guesses;
        let all = self.logprobs.is_some() || self.form.is_some();
        for len in self.len()..=self.ids.len() {
            self.needs.push(if all { LogitsNeed::All } else { self.need(len) });
        }
    }

    /// The step has run: takes the states of its tokens, as many as were wanted, and gives the vector once it is complete.
    pub fn pool<'a>(&mut self, states: impl Iterator<Item = &'a [f32]>, events: &mut Vec<Event>) {
        let Some(pool) = &mut self.pool else { return };
        states.for_each(|state| pool.take(state));
        if self.place.computed + self.chunk == self.prompt_len {
            let vector = pool.vector();
            events.push(self.event(News::Embedding(vector)));
        }
    }

    pub fn event(&self, news: News) -> Event {
        Event { request: self.request, choice: self.choice, news }
    }
}
