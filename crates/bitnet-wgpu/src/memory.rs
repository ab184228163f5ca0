//! A device's memory: buffers of the driver's, of which the project's pool gives each to whoever asks next.
//!
//! A buffer is never cut: what a command reads and writes is tracked for whole buffers, and the driver's memory was cut by wgpu already.
//! So each piece of a pool is a buffer, and sizes are those of the pool's classes.

use bitnet_memory::{Block, DeviceSource, Piece, Release, Source};
use pollster::block_on;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use wgpu::{
    BindGroupEntry, BindingResource, BufferBinding, BufferDescriptor, BufferSize, BufferUsages, Device,
    ErrorFilter,
};

/// What sizes of buffers are multiples of: bindings and copies then end on whole vectors of words.
const GRANULE: usize = 256;
/// Bytes of a vector of words; a shader may declare that it reads these.
const VECTOR: usize = 16;

/// Buffers that can do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Shaders read and write them.
    Storage,
    /// The host writes them, and they are copied from. They lie in the pool mapped.
    Upload,
    /// They are copied to, and the host reads them. They lie in the pool unmapped.
    Download,
}

/// Gives buffers of one kind.
#[derive(Clone)]
pub(crate) struct WgpuSource {
    device: Device,
    kind: Kind,
    max_bytes: usize,
    /// Tells its buffers from those of other devices.
    number: u64,
    /// Requests that are still served; `usize::MAX`: all.
    #[cfg(test)]
    serves: Arc<AtomicUsize>,
}

impl WgpuSource {
    /// Gives buffers of at most so many bytes that shaders use.
    pub(crate) fn new(device: &Device, number: u64, max_bytes: usize) -> Self {
        Self {
            device: device.clone(),
            number,
            kind: Kind::Storage,
            max_bytes,
            #[cfg(test)]
            serves: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    /// Of the same device, those of another kind.
    pub(crate) fn of(&self, kind: Kind) -> Self {
        Self { kind, ..self.clone() }
    }

    /// After so many requests, of whatever kind of buffer, there is no memory; with `usize::MAX` there is.
    #[cfg(test)]
    pub(crate) fn serve(&self, requests: usize) {
        self.serves.store(requests, Relaxed);
    }

    #[cfg(test)]
    fn is_refused(&self) -> bool {
        let serve = |left| if left == usize::MAX { Some(left) } else { usize::checked_sub(left, 1) };
        self.serves.fetch_update(Relaxed, Relaxed, serve).is_err()
    }
}

impl Source for WgpuSource {
    type Block = WgpuBlock;

    fn granule(&self) -> usize {
        GRANULE
    }

    fn align(&self) -> usize {
        GRANULE
    }

    fn shares_blocks(&self) -> bool {
        false
    }

    fn allocate(&self, bytes: usize) -> Option<WgpuBlock> {
        let bytes = bytes.checked_next_multiple_of(GRANULE).filter(|bytes| *bytes <= self.max_bytes)?;
        #[cfg(test)]
        if self.is_refused() {
            return None;
        }
        let usage = match self.kind {
            Kind::Storage => BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            Kind::Upload => BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC,
            Kind::Download => BufferUsages::MAP_READ | BufferUsages::COPY_DST,
        };
        let scope = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&BufferDescriptor {
            label: None,
            size: bytes as u64,
            usage,
            mapped_at_creation: self.kind == Kind::Upload,
        });
        match block_on(scope.pop()) {
            None => Some(WgpuBlock { buffer, bytes, device: self.number, recorded: AtomicU64::new(0) }),
            Some(_) => None,
        }
    }
}

impl DeviceSource for WgpuSource {
    /// wgpu has no way to ask.
    fn free_and_total_bytes(&self) -> Option<(u64, u64)> {
        None
    }
}

/// A buffer of the driver's.
pub(crate) struct WgpuBlock {
    buffer: wgpu::Buffer,
    bytes: usize,
    device: u64,
    /// The last submission whose commands use it.
    recorded: AtomicU64,
}

impl Block for WgpuBlock {
    fn len_bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory of a device, for as long as it is held; commands that were recorded by then may still use it afterwards, since whoever has it next
/// comes behind them.
pub(crate) struct Buffer(Piece<WgpuSource>);

impl Buffer {
    pub(crate) fn new(piece: Piece<WgpuSource>) -> Self {
        Self(piece)
    }

    /// Bytes that were asked for.
    pub(crate) fn bytes(&self) -> usize {
        self.0.len_bytes()
    }

    /// Whether it was in nobody's hands before, and is zero.
    pub(crate) fn is_fresh(&self) -> bool {
        self.0.is_fresh()
    }

    /// Whether it is a buffer of the device of this number.
    pub(crate) fn is_of(&self, device: u64) -> bool {
        self.0.block().device == device
    }

    /// What the driver knows it by.
    pub(crate) fn handle(&self) -> &wgpu::Buffer {
        &self.0.block().buffer
    }

    /// Notes that commands of a submission use it.
    pub(crate) fn record(&self, submission: u64) {
        self.0.block().recorded.store(submission, Relaxed);
    }

    /// Whether commands of a submission use it.
    pub(crate) fn is_recorded(&self, submission: u64) -> bool {
        self.0.block().recorded.load(Relaxed) == submission
    }

    /// All of it, for a kernel.
    pub(crate) fn all(&self) -> Part<'_> {
        self.part(0, self.bytes())
    }

    /// Some bytes of it.
    pub(crate) fn part(&self, offset: usize, bytes: usize) -> Part<'_> {
        Part { buffer: self, offset, bytes, is_given: false }
    }

    /// Gives it to the driver rather than to the next one who asks.
    pub(crate) fn discard(mut self) {
        self.0.release(Release::Immediate);
    }
}

/// What a kernel sees of a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) buffer: &'a Buffer,
    /// A multiple of what the adapter asks for.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    /// Whether it is the host's, so that kernels only read it.
    pub(crate) is_given: bool,
}

impl<'a> Part<'a> {
    /// Whole vectors, and one where there is nothing: no binding is empty. A buffer has room for them.
    pub(crate) fn entry(&self, binding: u32) -> BindGroupEntry<'a> {
        let size = BufferSize::new(self.bytes.next_multiple_of(VECTOR).max(VECTOR) as u64);
        let part = BufferBinding { buffer: self.buffer.handle(), offset: self.offset as u64, size };
        BindGroupEntry { binding, resource: BindingResource::Buffer(part) }
    }
}

/// Words of the host's for the commands that are recorded next.
pub(crate) struct Given {
    pub(crate) room: Arc<Buffer>,
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

impl Given {
    pub(crate) fn part(&self) -> Part<'_> {
        Part { is_given: true, ..self.room.part(self.offset, self.bytes) }
    }
}
