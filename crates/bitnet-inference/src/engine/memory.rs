//! What the engine gives back when memory is short, and what a request needs of it.

use super::cache::Cache;
use bitnet_memory::{Monitor, Pressure, Responses, Stage};
use bitnet_model::ModelConfig;
use std::sync::Arc;

/// A monitor, and what an engine does about what it says.
pub(super) struct Watch {
    monitor: Arc<Monitor>,
    responses: Responses<Cache>,
    /// The last reading that was responded to.
    reading: u64,
}

impl Watch {
    pub fn new(monitor: Arc<Monitor>) -> Self {
        let mut responses = Responses::default();
        responses.register(Stage::Trim, 0, "free blocks", |cache: &mut Cache, _| cache.trim());
        responses.register(Stage::Shrink, 0, "prefixes", Cache::shrink);
        Self { monitor, responses, reading: 0 }
    }

    /// How short memory is, and the bytes that caches have given back because of it.
    pub fn relieve<'a>(&mut self, caches: impl Iterator<Item = &'a mut Cache>) -> (Pressure, u64) {
        let pressure = self.monitor.pressure();
        let mut freed = 0;
        if pressure.reading != self.reading {
            self.reading = pressure.reading;
            for cache in caches {
                freed += self.responses.run(cache, &pressure).iter().map(|f| f.bytes).sum::<u64>();
            }
        }
        (pressure, freed)
    }
}

/// About what a step of so many tokens takes besides weights and cache: rows of the residual stream and its copies, of queries, keys and
/// values, of both halves of the feed-forward network, and of logits. Backends keep that memory for the next step.
pub(super) fn workspace_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    let row = 6 * config.hidden + 4 * config.ffn;
    4 * (tokens as u64 * row as u64 + config.vocab as u64)
}
