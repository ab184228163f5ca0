//! Memory of a device, kept for the next who asks.

use super::locked;
use crate::gpu::Gpu;
use bitnet_core::{BackendError, Memory};
use std::sync::{Arc, Mutex, Weak};
use wgpu::Buffer;

/// Buffers that nobody holds. All of them together have no more bytes than were in use at once.
#[derive(Default)]
pub(super) struct Pool(Mutex<Buffers>);

#[derive(Default)]
struct Buffers {
    /// The one that was given back last comes last.
    spare: Vec<Buffer>,
    spare_bytes: u64,
    used_bytes: u64,
    most_used_bytes: u64,
}

/// A buffer that goes back where it came from.
pub(super) struct Held {
    pub(super) buffer: Buffer,
    pool: Weak<Pool>,
}

impl Held {
    /// Whose it is.
    pub(super) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        self.pool.as_ptr() == Arc::as_ptr(pool)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            locked(&pool.0).give_back(self.buffer.clone());
        }
    }
}

impl Buffers {
    /// The smallest one that is large enough, and no more than a quarter too large.
    fn take(&mut self, bytes: u64) -> Option<Buffer> {
        let fits = |b: &Buffer| (bytes..=bytes.saturating_add(bytes / 4 + 4096)).contains(&b.size());
        let of_pool = self.spare.iter().enumerate().rev().filter(|(_, b)| fits(b));
        let (at, _) = of_pool.min_by_key(|(_, b)| b.size())?;
        let buffer = self.spare.remove(at);
        self.spare_bytes -= buffer.size();
        Some(buffer)
    }

    fn give_back(&mut self, buffer: Buffer) {
        self.used_bytes -= buffer.size();
        self.spare_bytes += buffer.size();
        self.spare.push(buffer);
        let excess = |b: &Self| b.spare_bytes > b.most_used_bytes;
        while excess(self) && !self.spare.is_empty() {
            self.spare_bytes -= self.spare.remove(0).size();
        }
    }

    fn count(&mut self, buffer: &Buffer) {
        self.used_bytes += buffer.size();
        self.most_used_bytes = self.most_used_bytes.max(self.used_bytes);
    }
}

impl Pool {
    /// Memory of this size at least. Where the device has no more, it gets back first what lies here.
    pub(super) fn take(self: &Arc<Self>, gpu: &Gpu, bytes: usize) -> Result<Held, BackendError> {
        let mut buffers = locked(&self.0);
        let buffer = match buffers.take(bytes.saturating_add(7) as u64) {
            Some(buffer) => buffer,
            None => match gpu.large(bytes) {
                Err(BackendError::OutOfMemory { .. }) if !buffers.spare.is_empty() => {
                    buffers.spare.clear();
                    buffers.spare_bytes = 0;
                    // Commands that use them hold them still.
                    gpu.submit();
                    gpu.settle()?;
                    gpu.large(bytes)?
                }
                other => other?,
            },
        };
        buffers.count(&buffer);
        Ok(Held { buffer, pool: Arc::downgrade(self) })
    }

    /// Bytes that lie here, and those that were in use at once.
    #[cfg(test)]
    pub(super) fn spare_and_most_used(&self) -> (u64, u64) {
        let buffers = locked(&self.0);
        (buffers.spare_bytes, buffers.most_used_bytes)
    }

    /// The buffer of this memory.
    pub(super) fn buffer<'m>(self: &Arc<Self>, memory: &'m Memory) -> Option<&'m Buffer> {
        memory.held::<Held>().filter(|held| held.is_of(self)).map(|held| &held.buffer)
    }
}
