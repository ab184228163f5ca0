//! Text while it is being generated: whole characters only.

use crate::{Tokenizer, TokenizerError};
use std::sync::Arc;

/// Turns ids into text one by one. What it gives, put together, is the decoding of all ids.
#[derive(Clone)]
pub struct DecodeStream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Ids that the next decoding needs for its context, and the ones behind them.
    ids: Vec<u32>,
    /// How many of `ids` have been given as text.
    given: usize,
    /// The text of those.
    context: String,
}

impl DecodeStream {
    /// Begins a text; `skip_special` leaves special tokens out.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), given: 0, context: String::new() }
    }

    /// The text that `id` completes; `None` while a character is incomplete, or when the token has no text.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        self.ids.push(id);
        self.advance(false)
    }

    /// The rest, with U+FFFD for what never became a character.
    pub fn finish(&mut self) -> Result<Option<String>, TokenizerError> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<Option<String>, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        // An unfinished character decodes to U+FFFD at the end.
        if text.len() <= self.context.len() || (!last && text.ends_with('\u{fffd}')) {
            return Ok(None);
        }
        // Some decoders look at neighbours (a space at the very beginning of a text is dropped), so ids are decoded behind
        // those given before, whose text is then cut off.
        let new = match text.strip_prefix(self.context.as_str()) {
            Some(new) => new.to_owned(),
            None => text.chars().skip(self.context.chars().count()).collect(),
        };
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        self.context = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(Some(new))
    }
}
