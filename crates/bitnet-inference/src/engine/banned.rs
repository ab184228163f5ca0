//! Texts that an answer may not contain.
//!
//! A token whose text could still become part of one is held back. When one is complete, the tokens from the one that it began in on are
//! taken back, and that one is banned where it stood; the model goes on from there. So an answer is a function of its request as
//! ever: which tokens were taken back depends on nothing else. When no token is left at a position, the one before it is taken back too.

use super::request::Logprob;
use crate::GenerateError;
use crate::stop::overlap;
use bitnet_tokenizer::DecodeStream;
use std::collections::{BTreeMap, VecDeque};

/// Texts that a request may ban at most.
pub(super) const MOST_TEXTS: usize = 1024;
/// How often tokens of one answer are taken back at most: each time costs a step.
const MOST_RETURNS: usize = 4096;

/// What a token changes and taking it back has to restore.
pub(super) struct Before {
    pub stream: Option<DecodeStream>,
    pub surprise: f64,
}

/// A token that may have to be taken back.
pub(super) struct Held {
    pub id: u32,
    pub text: String,
    pub logprob: Option<Logprob>,
    pub before: Before,
}

/// What is banned, and the tokens that are held back for it.
pub(super) struct Banned {
    /// In lower case, as far as ASCII goes.
    texts: Vec<String>,
    held: VecDeque<Held>,
    /// Ids that led to a banned text, by the number of ids before them.
    ids: BTreeMap<usize, Vec<u32>>,
    returns: usize,
}

/// Tokens that have to be taken back: how many, and what was there before them.
pub(super) struct Return {
    pub tokens: usize,
    pub before: Before,
}

impl Banned {
    /// `None` where nothing is banned. Empty texts ban nothing.
    pub fn new(texts: &[String]) -> Result<Option<Self>, GenerateError> {
        if texts.len() > MOST_TEXTS {
            return Err(GenerateError::TooManyBanned { texts: texts.len(), most: MOST_TEXTS });
        }
        let texts: Vec<String> =
            texts.iter().filter(|t| !t.is_empty()).map(|t| t.to_ascii_lowercase()).collect();
        Ok((!texts.is_empty()).then(|| Self {
            texts,
            held: VecDeque::new(),
            ids: BTreeMap::new(),
            returns: 0,
        }))
    }

    /// Ids that may not stand behind so many others.
    pub fn ids(&self, position: usize) -> &[u32] {
        self.ids.get(&position).map_or(&[], Vec::as_slice)
    }

    /// Takes a token, the last of `len` ids: tells what has to be taken back, or gives the tokens that are certain.
    pub fn push(&mut self, token: Held, len: usize) -> Result<Result<Vec<Held>, Return>, GenerateError> {
        self.held.push_back(token);
        let text = self.text();
        let found = self.texts.iter().filter_map(|banned| text.find(banned.as_str())).min();
        if let Some(at) = found {
            let mut end = 0;
            let first = self.held.iter().position(|held| {
                end += held.text.len();
                at < end
            });
            let tokens = self.held.len() - first.expect("the text lies in the held tokens");
            return self.take_back(tokens, len).map(Err);
        }
        let keep = self.texts.iter().map(|banned| overlap(&text, banned)).max().unwrap_or(0);
        let (mut end, certain) = (0, text.len() - keep);
        let count = self.held.iter().take_while(|held| {
            end += held.text.len();
            end <= certain
        });
        let count = count.count();
        Ok(Ok(self.release(count, len)))
    }

    /// No id is left behind `len` ids: takes the last one back.
    pub fn give_up(&mut self, len: usize) -> Result<Return, GenerateError> {
        self.take_back(1, len)
    }

    /// The tokens that were held back, now that no more come: behind them there is `tail`, a text without an id, which is cut off
    /// where it would complete a banned one.
    pub fn finish(&mut self, tail: &mut String) -> Vec<Held> {
        let held = self.text().len();
        let text = self.text() + &tail.to_ascii_lowercase();
        if let Some(at) = self.texts.iter().filter_map(|banned| text.find(banned.as_str())).min() {
            tail.truncate(at.saturating_sub(held));
        }
        self.held.drain(..).collect()
    }

    fn text(&self) -> String {
        self.held.iter().map(|held| held.text.to_ascii_lowercase()).collect()
    }

    /// The first `count` tokens, of which nothing is taken back any more.
    fn release(&mut self, count: usize, len: usize) -> Vec<Held> {
        let certain = len - self.held.len() + count;
        self.ids = self.ids.split_off(&certain);
        self.held.drain(..count).collect()
    }

    fn take_back(&mut self, tokens: usize, len: usize) -> Result<Return, GenerateError> {
        self.returns += 1;
        let at = self.held.len().checked_sub(tokens).filter(|_| self.returns <= MOST_RETURNS);
        let mut back = self.held.split_off(at.ok_or(GenerateError::Banned)?);
        let first = back.pop_front().ok_or(GenerateError::Banned)?;
        let position = len - tokens;
        // What was banned behind other tokens means nothing now.
        self.ids.split_off(&(position + 1));
        self.ids.entry(position).or_default().push(first.id);
        Ok(Return { tokens, before: first.before })
    }
}
