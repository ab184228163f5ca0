//! Which logits a token needs, and those that a step gives.

use bitnet_memory::Buffer;
use std::ops::Range;

/// Which rows of the head a token needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogitsNeed {
    /// All of them.
    #[default]
    All,
    /// Those of the `k` largest logits (of equal ones, the lower ids) and those of `also`. A backend may prove that the others
    /// need not be computed; every logit that it gives is the exact one.
    Top {
        /// How many of the largest.
        k: usize,
        /// Ids wanted besides.
        also: Vec<u32>,
    },
}

/// A token's logits: whose they are, ascending (empty, there is one for every id), and they.
pub type LogitsRow<'a> = (&'a [u32], &'a [f32]);

/// Logits of some tokens; the memory is reused from step to step, and is of the pool of the backend that gave them first.
#[derive(Debug, Default)]
pub struct Logits {
    /// Ids of the tokens that have not a logit for every one, ascending for each.
    pub ids: Buffer<u32>,
    /// Logits of all tokens; where each has all, they are `[tokens, vocab]`.
    pub values: Buffer<f32>,
    /// Where a token's part of `ids` and of `values` lies.
    pub rows: Vec<(Range<usize>, Range<usize>)>,
}

impl Logits {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.values.clear();
        self.rows.clear();
    }

    /// Enters so many tokens that have a logit for every id: `values` holds theirs and nothing else.
    pub fn push_full(&mut self, tokens: usize) {
        let vocab = self.values.len() / tokens.max(1);
        self.rows.extend((0..tokens).map(|t| (0..0, t * vocab..(t + 1) * vocab)));
    }

    /// The tokens' logits, in their order.
    pub fn rows(&self) -> impl Iterator<Item = LogitsRow<'_>> {
        self.rows.iter().map(|(ids, values)| (&self.ids[ids.clone()], &self.values[values.clone()]))
    }
}
