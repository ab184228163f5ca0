//! Where an engine's memory comes from, what it gives back when that is short, and what a request needs of it.

use super::Engine;
use super::cache::Cache;
use bitnet_memory::{DeviceMemory, Level, Monitor, Pool, Pressure, Responses, Snapshot, Stage};
use bitnet_model::{Decoder, ModelConfig};
use std::sync::Arc;

/// The pools of a model's memory.
#[derive(Clone)]
pub struct Pools {
    /// Those of the host's memory, each once; on the processor one has all. Of a model on several devices each may have its own, in
    /// their order.
    pub host: Vec<Arc<Pool>>,
    /// Those of the devices that it runs on.
    pub devices: Vec<Arc<dyn DeviceMemory>>,
}

impl Pools {
    pub(super) fn of(decoder: &dyn Decoder) -> Self {
        Self { host: decoder.memory(), devices: decoder.device_memory() }
    }

    /// What each has counted, under `host` (of several `host 0` and so on) or the device's name.
    pub fn snapshots(&self) -> Vec<(String, Snapshot)> {
        let name = |at| if self.host.len() == 1 { "host".to_owned() } else { format!("host {at}") };
        let host = self.host.iter().enumerate().map(|(at, pool)| (name(at), pool.snapshot()));
        let devices = self.devices.iter().map(|device| (device.name().to_owned(), device.snapshot()));
        host.chain(devices).collect()
    }

    /// Whether the host's memory is in the very same pools.
    pub fn are(&self, others: &Self) -> bool {
        self.host.iter().map(Arc::as_ptr).eq(others.host.iter().map(Arc::as_ptr))
    }

    /// Gives what they keep without use back to the system and the devices; tells how many bytes.
    pub(super) fn release(&self) -> u64 {
        let host = self.host.iter().map(|pool| pool.trim(0) as u64).sum::<u64>();
        host + self.devices.iter().map(|device| device.release()).sum::<u64>()
    }
}

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

    /// What it watches.
    #[cfg(test)]
    pub fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    /// Has the memory of the devices watched that a decoder runs on.
    pub fn devices(&self, decoder: &dyn Decoder) {
        decoder.device_memory().iter().for_each(|device| self.monitor.watch(device));
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

impl Engine {
    /// Where the memory of its model comes from, at present.
    pub fn pools(&self) -> Pools {
        Pools::of(&*self.cache.decoder)
    }

    /// Looks at the memory of the system and of devices between steps. When it is short, blocks that hold nothing go back to the system,
    /// then prefixes that nobody uses; then [`Engine::submit`] refuses, and of several answers in the making the one that was admitted
    /// last waits. What pools keep for the next step goes back when the last answer has ended.
    pub fn watch_memory(&mut self, monitor: Arc<Monitor>) {
        self.watch = Some(Watch::new(monitor));
        self.watch_devices();
    }

    /// Has the memory of the devices watched that it runs on now.
    pub(super) fn watch_devices(&self) {
        let Some(watch) = &self.watch else { return };
        let draft = self.draft.as_ref().map(|draft| &draft.cache);
        for cache in [&self.cache].into_iter().chain(draft) {
            watch.devices(&*cache.decoder);
        }
    }

    /// With nothing left to do, gives back what pools keep, if memory is short.
    pub(super) fn rest(&mut self) {
        if self.stats.memory_pressure == Level::None || !self.is_idle() {
            return;
        }
        let draft = self.draft.as_ref().map(|draft| &draft.cache);
        let caches = [&self.cache].into_iter().chain(draft);
        self.stats.memory_freed_bytes +=
            caches.map(|cache| Pools::of(&*cache.decoder).release()).sum::<u64>();
        self.largest_step = 0;
    }

    /// How short memory is, after what can be given back was.
    pub(super) fn relieve(&mut self) -> Option<Pressure> {
        let draft = self.draft.as_mut().map(|draft| &mut draft.cache);
        let (pressure, freed) = self.watch.as_mut()?.relieve([&mut self.cache].into_iter().chain(draft));
        self.stats.memory_pressure = pressure.level;
        self.stats.memory_freed_bytes += freed;
        Some(pressure)
    }
}

/// About what a step of so many tokens takes besides weights and cache: rows of the residual stream and its copies, of queries, keys and
/// values, of both halves of the feed-forward network, and of logits. Backends keep that memory for the next step.
pub(super) fn workspace_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    let row = 6 * config.hidden + 4 * config.ffn;
    4 * (tokens as u64 * row as u64 + config.vocab as u64)
}
