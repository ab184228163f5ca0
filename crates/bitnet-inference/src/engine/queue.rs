//! Who is admitted next.
//!
//! The highest priority first. Among equals, whoever was sent back to wait; then the client that has been given the fewest tokens, so
//! that one with a thousand requests does not keep out one with a single one; then who came first.

use super::sequence::Sequence;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Sequence>,
    /// Tokens that clients were given, those of the request that is being served included.
    served: HashMap<Arc<str>, u64>,
}

/// Clients that are remembered without a request of theirs waiting.
const REMEMBERED: usize = 1024;

impl Queue {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn push(&mut self, sequence: Sequence) {
        if !self.served.contains_key(&sequence.client) {
            if self.served.len() >= REMEMBERED {
                let waiting = &self.waiting;
                self.served.retain(|client, _| waiting.iter().any(|s| s.client == *client));
            }
            // A newcomer is not owed what others were given before it came.
            let start = self.waiting.iter().filter_map(|s| self.served.get(&s.client)).min().copied();
            self.served.insert(Arc::clone(&sequence.client), start.unwrap_or(0));
        }
        self.waiting.push(sequence);
    }

    /// Whose turn it is.
    pub fn next(&self) -> Option<&Sequence> {
        self.first().map(|at| &self.waiting[at])
    }

    /// Takes out the one whose turn it is.
    pub fn pop(&mut self) -> Option<Sequence> {
        self.first().map(|at| self.waiting.remove(at))
    }

    fn first(&self) -> Option<usize> {
        let served = |s: &Sequence| self.served.get(&s.client).copied().unwrap_or(0);
        let key = |s: &Sequence| (-i64::from(s.priority), !s.preempted, served(s), s.request);
        (0..self.waiting.len()).min_by_key(|at| key(&self.waiting[*at]))
    }

    /// A client was given so many tokens.
    pub fn charge(&mut self, client: &Arc<str>, tokens: usize) {
        if let Some(served) = self.served.get_mut(client) {
            *served += tokens as u64;
        }
    }

    /// Whether any of those who wait fulfils a condition.
    pub fn any(&self, condition: impl FnMut(&Sequence) -> bool) -> bool {
        self.waiting.iter().any(condition)
    }

    /// Takes out all that fulfil a condition.
    pub fn remove(&mut self, condition: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        self.waiting.extract_if(.., |s| condition(s)).collect()
    }
}
