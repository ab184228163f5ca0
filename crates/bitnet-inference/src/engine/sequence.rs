//! One answer in the making.

use super::adapters::Chosen;
use super::request::{Event, Logprob, News, Request, RequestId, logprob};
use crate::embed::{Pool, Pooling};
use crate::sample::{OptionError, Sampler};
use crate::stop::StopStrings;
use crate::{Constraint, FinishReason, Forms, GenerateError, Timings};
use bitnet_core::{LogitsNeed, LogitsRow};
use bitnet_tokenizer::{DecodeStream, TokenBytes, Tokenizer};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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
    /// Prompt and answer; during a step, what is guessed behind them too.
    pub ids: Vec<u32>,
    /// How many of `ids` have their keys and values in `blocks`.
    pub computed: usize,
    pub blocks: Vec<u32>,
    /// Whether it was sent back to wait.
    pub preempted: bool,
    /// Further answers, which begin when the prompt is computed.
    pub siblings: Vec<Sequence>,
    /// Tokens of this step, and which logits of the last ones are wanted.
    pub chunk: usize,
    pub needs: Vec<LogitsNeed>,
    /// Tokens of this step whose states are wanted.
    pub states: Range<usize>,
    /// How many ids at the end of `ids` are guesses.
    pub guesses: usize,
    pub timings: Timings,
    draft: usize,
    prompt_len: usize,
    max_tokens: Option<usize>,
    sampler: Sampler,
    stream: Option<DecodeStream>,
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
        let seed = first.seed();
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
    ) -> Result<Self, OptionError> {
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
            computed: 0,
            blocks: Vec::new(),
            preempted: false,
            siblings: Vec::new(),
            chunk: 0,
            needs: Vec::new(),
            states: 0..0,
            guesses: 0,
            timings: Timings::default(),
            draft: request.draft,
            prompt_len: request.prompt.len(),
            max_tokens: request.max_tokens,
            sampler: Sampler::new(sampling, common.vocab)?,
            stream: common.tokenizer.as_ref().map(|t| DecodeStream::new(Arc::clone(t), true)),
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

    pub fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// Ids without a key and a value.
    pub fn missing(&self) -> usize {
        self.ids.len() - self.computed
    }

    /// Whether a step of one token continues it.
    pub fn is_decoding(&self) -> bool {
        self.missing() == 1 && self.ids.len() > self.prompt_len
    }

    /// Whether anything of it has to be computed.
    pub fn wants_nothing(&self) -> bool {
        self.finish.is_some() && self.prompt_logprobs.is_none() && self.pool.is_none()
    }

    /// Whether its prompt is computed.
    pub fn is_past_prompt(&self) -> bool {
        self.ids.len() > self.prompt_len || self.missing() == 0
    }

    /// It got a seat.
    pub fn admitted(&mut self, cached: usize) {
        if self.timings.tokens == 0 {
            self.timings.queued = self.since.elapsed();
            (self.timings.cached_tokens, self.timings.prompt_tokens) = (cached, self.prompt_len - cached);
        }
        self.computed = cached;
        if let Some(pool) = &mut self.pool {
            pool.clear();
        }
    }

    /// Settles that the next step runs so many of the missing tokens, and guesses behind the last one.
    pub fn plan(&mut self, tokens: usize, capacity: usize) {
        let wants_prompt = self.prompt_logprobs.is_some() && self.computed < self.prompt_len;
        self.chunk = if wants_prompt { tokens.min(LOGPROB_CHUNK) } else { tokens };
        self.needs.clear();
        self.states = match self.pool.as_ref().map(Pool::pooling) {
            Some(Pooling::Mean) => 0..self.chunk,
            Some(Pooling::Last) if self.chunk == self.missing() => self.chunk - 1..self.chunk,
            Some(Pooling::Cls) if self.computed == 0 => 0..1,
            _ => 0..0,
        };
        if wants_prompt {
            self.needs.resize(self.chunk, LogitsNeed::All);
        }
        if self.chunk < self.missing() || self.max_tokens == Some(0) || self.pool.is_some() {
            return;
        }
        if self.is_decoding() && self.draft > 0 {
            let left = self.max_tokens.map_or(usize::MAX, |max| max - self.timings.tokens - 1);
            let most = self.draft.min(left).min(capacity - self.ids.len() - 1);
            let guesses = super::draft::lookup(&self.ids, most);
            self.guesses = guesses.len();
            self.ids.extend(guesses);
            self.chunk += self.guesses;
        }
        if !wants_prompt {
            let all = self.logprobs.is_some() || self.form.is_some();
            for end in self.ids.len() - self.guesses..=self.ids.len() {
                self.needs.push(if all { LogitsNeed::All } else { self.sampler.need(&self.ids[..end]) });
            }
        }
    }

    /// Takes back what was guessed.
    pub fn drop_guesses(&mut self) {
        self.ids.truncate(self.ids.len() - std::mem::take(&mut self.guesses));
    }

    /// The step has run: takes the states of its tokens, as many as were wanted, and gives the vector once it is complete.
    pub fn pool<'a>(&mut self, states: impl Iterator<Item = &'a [f32]>, events: &mut Vec<Event>) {
        let Some(pool) = &mut self.pool else { return };
        states.for_each(|state| pool.take(state));
        if self.computed + self.chunk == self.prompt_len {
            let vector = pool.vector();
            events.push(self.event(News::Embedding(vector)));
        }
    }

    /// The step has run: takes its rows of logits, as many as were wanted, and gives what comes of them. Returns how many guesses
    /// came true.
    pub fn ran(
        &mut self,
        rows: &[LogitsRow<'_>],
        took: Duration,
        common: &Common,
        events: &mut Vec<Event>,
    ) -> Result<usize, GenerateError> {
        let from = self.computed;
        let guesses = self.ids.split_off(self.ids.len() - std::mem::take(&mut self.guesses));
        self.computed = (from + self.chunk).min(self.ids.len());
        match self.timings.tokens {
            0 => self.timings.prompt += took,
            _ => self.timings.generation += took,
        }
        let mut rows = rows;
        if let Some(top) = self.prompt_logprobs.filter(|_| from < self.prompt_len) {
            let news: Vec<Logprob> = rows
                .iter()
                .zip(from + 1..self.prompt_len)
                // After a wait they are computed once more.
                .filter(|(_, at)| *at >= self.prompt_given)
                .map(|(row, at)| logprob(row.1, self.ids[at], top))
                .collect();
            self.prompt_given += news.len();
            if self.prompt_given >= self.prompt_len {
                self.prompt_logprobs = None;
            }
            if !news.is_empty() {
                events.push(self.event(News::Prompt(news)));
            }
            rows = if self.computed == self.ids.len() { &rows[rows.len() - 1..] } else { &[] };
        }
        if self.finish.is_some() {
            return Ok(0);
        }
        let mut right = 0;
        for (at, row) in rows.iter().enumerate() {
            let id = self.draw(row)?;
            self.accept(id, row, common, events)?;
            if self.finish.is_some() || guesses.get(at) != Some(&id) {
                break;
            }
            // Its key and value are there already.
            self.computed += 1;
            right += 1;
        }
        Ok(right)
    }

    /// Begins behind the prompt that `first`, another answer to it, has computed: with the row of logits there.
    pub fn begin(
        &mut self,
        first: &Self,
        row: Option<&LogitsRow<'_>>,
        common: &Common,
        events: &mut Vec<Event>,
    ) -> Result<(), GenerateError> {
        let (cached_tokens, prompt, queued) = (self.prompt_len, first.timings.prompt, first.timings.queued);
        self.timings = Timings { cached_tokens, prompt, queued, ..self.timings };
        self.computed = self.prompt_len;
        let Some(row) = row.filter(|_| self.finish.is_none()) else { return Ok(()) };
        let id = self.draw(row)?;
        self.accept(id, row, common, events)
    }

    /// The next token.
    fn draw(&mut self, row: &LogitsRow<'_>) -> Result<u32, GenerateError> {
        let Some(form) = &mut self.form else { return Ok(self.sampler.sample(row.0, row.1, &self.ids)?) };
        let allowed = form.allowed()?;
        let id = self.sampler.sample_among(row.0, row.1, &self.ids, Some(&|id| allowed.is_allowed(id)))?;
        form.follow(id)?;
        Ok(id)
    }

    /// A token of the answer.
    fn accept(
        &mut self,
        id: u32,
        row: &LogitsRow<'_>,
        common: &Common,
        events: &mut Vec<Event>,
    ) -> Result<(), GenerateError> {
        self.ids.push(id);
        self.timings.tokens += 1;
        let logprob = self.logprobs.map(|top| logprob(row.1, id, top));
        let mut text = String::new();
        if self.stop_ids.contains(&id) {
            self.finish = Some(FinishReason::Stop);
        } else {
            if let Some(stream) = &mut self.stream {
                text = stream.push(id)?.unwrap_or_default();
            }
            let (given, stopped) = self.stop.push(&text);
            text = given;
            if stopped {
                self.finish = Some(FinishReason::Stop);
                // What is held back lies behind the stop string.
                self.stream = None;
            } else if self.max_tokens.is_some_and(|max| self.timings.tokens >= max)
                || self.ids.len() >= common.capacity
            {
                self.finish = Some(FinishReason::Length);
            }
        }
        events.push(self.event(News::Piece { id: Some(id), text, logprob }));
        Ok(())
    }

    /// The last events: text that was held back, and the end.
    pub fn end(&mut self, reason: FinishReason, events: &mut Vec<Event>) {
        let tail = match self.stream.as_mut().map_or(Ok(None), DecodeStream::finish) {
            Ok(tail) => tail.unwrap_or_default(),
            Err(e) => return events.push(self.event(News::Failed(Arc::new(e.into())))),
        };
        let (mut text, stopped) = self.stop.push(&tail);
        if !stopped {
            text += &self.stop.finish();
        }
        if !text.is_empty() {
            events.push(self.event(News::Piece { id: None, text, logprob: None }));
        }
        let stop = self.stop.found().map(str::to_owned);
        events.push(self.event(News::Finished { reason, stop, timings: self.timings }));
    }

    pub fn event(&self, news: News) -> Event {
        Event { request: self.request, choice: self.choice, news }
    }
}
