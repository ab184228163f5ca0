//! What a sequence makes of logits: tokens that are drawn, held back, taken back and given away, up to the end.

use super::super::banned::{Before, Held};
use super::super::request::{Event, Logprob, News, logprob};
use super::{Common, Place, Sequence};
use crate::sample::SampleError;
use crate::{FinishReason, GenerateError, Timings};
use bitnet_core::LogitsRow;
use bitnet_tokenizer::DecodeStream;
use std::sync::Arc;
use std::time::Duration;

impl Sequence {
    /// The step has run: takes its rows of logits, as many as were wanted, and gives what comes of them. Returns how many guesses
    /// came true.
    pub fn ran(
        &mut self,
        rows: &[LogitsRow<'_>],
        took: Duration,
        common: &Common,
        events: &mut Vec<Event>,
    ) -> Result<usize, GenerateError> {
        let from = self.place.computed;
        let guesses = self.ids.split_off(self.len());
        self.guesses = 0;
        self.place.computed = (from + self.chunk).min(self.ids.len());
        match self.timings.tokens {
            0 => self.timings.prompt += took,
            _ => {
                self.timings.generation += took;
                self.timings.steps += 1;
            }
        }
        let mut rows = rows;
        if let Some(top) = self.prompt_logprobs.filter(|_| from < self.prompt_len) {
            self.give_prompt(rows, from, top, events);
            rows = if self.place.computed == self.ids.len() { &rows[rows.len() - 1..] } else { &[] };
        }
        if self.finish.is_some() {
            return Ok(0);
        }
        let mut right = 0;
        for (at, row) in rows.iter().enumerate() {
            let id = self.draw(row, common, events)?;
            if self.finish.is_some() || id.is_none() || guesses.get(at) != id.as_ref() {
                break;
            }
            // Its key and value are there already.
            self.place.computed += 1;
            right += 1;
        }
        self.timings.drafted += guesses.len();
        self.timings.accepted += right;
        Ok(right)
    }

    /// The log-probabilities of the prompt's tokens in the rows behind `from`.
    fn give_prompt(&mut self, rows: &[LogitsRow<'_>], from: usize, top: usize, events: &mut Vec<Event>) {
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
    }

    /// Begins behind the prompt that `first`, another answer to it, has computed: with a place there and the row of logits.
    pub fn begin(
        &mut self,
        first: &Self,
        place: Place,
        row: Option<&LogitsRow<'_>>,
        common: &Common,
        events: &mut Vec<Event>,
    ) -> Result<(), GenerateError> {
        let (cached_tokens, prompt, queued) = (self.prompt_len, first.timings.prompt, first.timings.queued);
        self.timings = Timings { cached_tokens, prompt, queued, ..self.timings };
        self.place = place;
        match row.filter(|_| self.finish.is_none()) {
            Some(row) => self.draw(row, common, events).map(drop),
            None => Ok(()),
        }
    }

    /// The next token; `None` where it led to a banned text, and some were taken back.
    fn draw(
        &mut self,
        row: &LogitsRow<'_>,
        common: &Common,
        events: &mut Vec<Event>,
    ) -> Result<Option<u32>, GenerateError> {
        let before = self.banned.as_ref().map(|_| self.before());
        let banned = self.banned.as_ref().map_or(&[][..], |banned| banned.ids(self.ids.len()));
        let drawn = match &mut self.form {
            None => self.sampler.sample_without(row.0, row.1, &self.ids, banned),
            Some(form) => {
                let allowed = form.allowed()?;
                let may = |id: u32| allowed.is_allowed(id) && !banned.contains(&id);
                self.sampler.sample_among(row.0, row.1, &self.ids, Some(&may))
            }
        };
        let id = match (drawn, &mut self.banned) {
            (Err(SampleError::NothingLeft { .. }), Some(banned))
                if !banned.ids(self.ids.len()).is_empty() =>
            {
                let back = banned.give_up(self.ids.len())?;
                self.take_back(back.tokens, back.before)?;
                return Ok(None);
            }
            (drawn, _) => drawn?,
        };
        if let Some(form) = &mut self.form {
            form.follow(id)?;
        }
        self.accept(id, row, before, common, events)
    }

    /// What taking the next token back has to restore.
    fn before(&self) -> Before {
        Before { stream: self.stream.clone(), surprise: self.sampler.surprise() }
    }

    /// Takes the last ids back.
    fn take_back(&mut self, ids: usize, before: Before) -> Result<(), GenerateError> {
        self.ids.truncate(self.ids.len() - ids);
        self.timings.tokens -= ids;
        self.stream = before.stream;
        self.sampler.set_surprise(before.surprise);
        self.form.as_mut().map_or(Ok(()), |form| form.take_back(ids))
    }

    /// A token of the answer; `None` where it was taken back.
    fn accept(
        &mut self,
        id: u32,
        row: &LogitsRow<'_>,
        before: Option<Before>,
        common: &Common,
        events: &mut Vec<Event>,
    ) -> Result<Option<u32>, GenerateError> {
        self.ids.push(id);
        self.timings.tokens += 1;
        let logprob = self.logprobs.map(|top| logprob(row.1, id, top));
        if self.stop_ids.contains(&id) {
            self.finish = Some(FinishReason::Stop);
            self.flush(&mut String::new(), events);
            self.give(id, String::new(), logprob, events);
            return Ok(Some(id));
        }
        let text = match &mut self.stream {
            Some(stream) => stream.push(id)?.unwrap_or_default(),
            None => String::new(),
        };
        let len = self.ids.len();
        let certain = match (&mut self.banned, before) {
            (Some(banned), Some(before)) => match banned.push(Held { id, text, logprob, before }, len)? {
                Ok(certain) => certain,
                Err(back) => {
                    self.take_back(back.tokens, back.before)?;
                    return Ok(None);
                }
            },
            _ => {
                self.give(id, text, logprob, events);
                Vec::new()
            }
        };
        for held in certain {
            self.give(held.id, held.text, held.logprob, events);
        }
        let full = self.max_tokens.is_some_and(|max| self.timings.tokens >= max) || len >= common.capacity;
        if full && self.finish.is_none() {
            self.finish = Some(FinishReason::Length);
        }
        Ok(Some(id))
    }

    /// Gives a token away that is not taken back any more. Behind a stop string nothing is given.
    fn give(&mut self, id: u32, text: String, logprob: Option<Logprob>, events: &mut Vec<Event>) {
        if self.stop.found().is_some() {
            self.timings.tokens -= 1;
            return;
        }
        let (text, stopped) = self.stop.push(&text);
        if stopped {
            self.finish = Some(FinishReason::Stop);
            // What is held back lies behind the stop string.
            self.stream = None;
        }
        events.push(self.event(News::Piece { id: Some(id), text, logprob }));
    }

    /// Gives away what was held back for fear of a banned text; `tail` is text without an id behind it.
    fn flush(&mut self, tail: &mut String, events: &mut Vec<Event>) {
        let held = self.banned.as_mut().map_or_else(Vec::new, |banned| banned.finish(tail));
        for held in held {
            self.give(held.id, held.text, held.logprob, events);
        }
    }

    /// The last events: text that was held back, and the end.
    pub fn end(&mut self, mut reason: FinishReason, events: &mut Vec<Event>) {
        let tail = match self.stream.as_mut().map_or(Ok(None), DecodeStream::finish) {
            Ok(tail) => tail,
            Err(e) => return events.push(self.event(News::Failed(Arc::new(e.into())))),
        };
        let mut text = tail.unwrap_or_default();
        self.flush(&mut text, events);
        if self.stop.found().is_none() {
            let (given, stopped) = self.stop.push(&text);
            text = given;
            if !stopped {
                text += &self.stop.finish();
            }
        } else {
            text.clear();
        }
        if self.stop.found().is_some() && reason == FinishReason::Length {
            reason = FinishReason::Stop;
        }
        if !text.is_empty() {
            events.push(self.event(News::Piece { id: None, text, logprob: None }));
        }
        let stop = self.stop.found().map(str::to_owned);
        events.push(self.event(News::Finished { reason, stop, timings: self.timings }));
    }
}
