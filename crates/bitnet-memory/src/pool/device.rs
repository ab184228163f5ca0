//! A device's pool, and what it says of the device's memory.

use super::{Config, Pool};
use crate::pressure::{DeviceMemory, DeviceUsage};
use crate::source::Source;
use crate::track::Snapshot;
use std::ops::Deref;

/// Gives memory of a device.
pub trait DeviceSource: Source {
    /// Bytes that no process has, and all that there are; `None` where the driver does not say.
    fn free_and_total_bytes(&self) -> Option<(u64, u64)>;
}

/// A pool of a device's memory, under the name that the device is asked for by.
pub struct DevicePool<S: DeviceSource> {
    name: String,
    pool: Pool<S>,
}

impl<S: DeviceSource> DevicePool<S> {
    /// A pool of what `source` gives; `name` is as in `cuda:0`.
    pub fn new(name: String, source: S, config: Config) -> Self {
        Self { name, pool: Pool::with(source, config) }
    }
}

impl<S: DeviceSource> Deref for DevicePool<S> {
    type Target = Pool<S>;

    fn deref(&self) -> &Pool<S> {
        &self.pool
    }
}

impl<S: DeviceSource> DeviceMemory for DevicePool<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn usage(&self) -> Option<DeviceUsage> {
        let (free_bytes, total_bytes) = self.source().free_and_total_bytes()?;
        let idle_bytes = self.pool.snapshot().free_bytes as u64;
        Some(DeviceUsage { total_bytes, free_bytes, idle_bytes })
    }

    fn snapshot(&self) -> Snapshot {
        self.pool.snapshot()
    }

    fn release(&self) -> u64 {
        self.trim(0) as u64
    }
}
