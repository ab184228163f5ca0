//! What a pass computes at a time.

use std::ops::Range;

/// Tokens of some sequences, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Inputs.
    pub ids: Vec<u32>,
    /// What follows each of them.
    pub targets: Vec<u32>,
    /// Whether a target counts in the loss.
    pub counts: Vec<bool>,
    /// The tokens of each sequence, ascending and without gaps; the first one of each is position 0.
    pub spans: Vec<Range<usize>>,
    /// Which example of a corpus each sequence is of; empty where they are of none.
    pub(crate) examples: Vec<u32>,
}

impl Batch {
    /// Adds a sequence: `ids` are its tokens, and `counts` whether each of them, but the first, counts as a target.
    pub fn push(&mut self, ids: &[u32], counts: impl Fn(usize) -> bool) {
        let from = self.ids.len();
        let Some(inputs) = ids.len().checked_sub(1).filter(|n| *n > 0) else { return };
        self.ids.extend_from_slice(&ids[..inputs]);
        self.targets.extend_from_slice(&ids[1..]);
        self.counts.extend((1..ids.len()).map(counts));
        self.spans.push(from..from + inputs);
    }

    /// Targets that count.
    pub fn counted(&self) -> usize {
        self.counts.iter().filter(|c| **c).count()
    }

    /// The position of every token in its sequence.
    pub(crate) fn positions(&self) -> Vec<u32> {
        self.spans.iter().flat_map(|span| 0..span.len() as u32).collect()
    }
}
