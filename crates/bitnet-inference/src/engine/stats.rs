//! What an engine tells of itself.

use super::Engine;
use bitnet_memory::Level;
use std::time::Duration;

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

impl Engine {
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
}
