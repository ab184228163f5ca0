//! Uploads of a model: through page-locked memory, on a stream of their own, so that the device copies one part while it puts the one
//! before where kernels want it, and the host reads the next one.

use super::{Driver, check, sys};
use crate::error::CudaError;
use crate::memory::Buffer;
use std::sync::Arc;

/// Parts that are under way at once.
pub(crate) const PARTS: usize = 2;

/// Memory for parts of an upload, and a stream that copies them.
pub(crate) struct Staging {
    driver: Arc<Driver>,
    stream: sys::CUstream,
    parts: Vec<Part>,
    /// Bytes of a part.
    bytes: usize,
    /// The part that is used next.
    next: usize,
}

struct Part {
    /// Page-locked memory of the host.
    host: *mut u8,
    device: Buffer,
    /// `host` was read, and what it held is on the device.
    copied: sys::CUevent,
    /// Nothing reads `device` any more.
    used: sys::CUevent,
}

// SAFETY: handles of the driver may be used from any thread, and `host` is this value's own.
unsafe impl Send for Staging {}

impl Staging {
    /// Memory for parts of so many bytes, as each of `buffers` has.
    pub(crate) fn new(
        driver: &Arc<Driver>,
        buffers: [Buffer; PARTS],
        bytes: usize,
    ) -> Result<Self, CudaError> {
        assert!(buffers.iter().all(|buffer| buffer.bytes() >= bytes), "room for a part");
        driver.bind()?;
        let mut own = Self {
            driver: Arc::clone(driver),
            stream: std::ptr::null_mut(),
            parts: Vec::with_capacity(PARTS),
            bytes,
            next: 0,
        };
        // SAFETY: the context is current, and `stream` is where the handle goes.
        check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&mut own.stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32)
        })?;
        for device in buffers {
            let none = std::ptr::null_mut();
            let (copied, used): (sys::CUevent, sys::CUevent) = (none, none);
            own.parts.push(Part { host: none.cast(), device, copied, used });
            let Some(part) = own.parts.last_mut() else { continue };
            let mut host = std::ptr::null_mut();
            // SAFETY: `host` is where the address goes.
            check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut host, bytes) })?;
            part.host = host.cast();
            for event in [&mut part.copied, &mut part.used] {
                let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
                // SAFETY: the context is current, and `event` is where the handle goes.
                check("cuEventCreate", unsafe { sys::cuEventCreate(event, flags) })?;
            }
        }
        Ok(own)
    }

    /// Bytes that a part has room for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Has a part copied to the device. What the driver's stream gets behind this, and up to [`Staging::release`], may read it at the
    /// address that this gives. The bytes are copied before this returns.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<u64, CudaError> {
        self.copy(bytes, None)
    }

    /// Has a part copied to its place, which nothing that is under way may use; the driver's stream has it behind this.
    pub(crate) fn put_into(&mut self, bytes: &[u8], to: &Buffer, at: usize) -> Result<(), CudaError> {
        assert!(at + bytes.len() <= to.bytes(), "bytes that go into a buffer");
        self.copy(bytes, Some(to.address() + at as u64)).map(drop)
    }

    fn copy(&mut self, bytes: &[u8], place: Option<u64>) -> Result<u64, CudaError> {
        assert!(bytes.len() <= self.bytes, "bytes of a part");
        self.driver.bind()?;
        let part = &self.parts[self.next];
        let to = place.unwrap_or(part.device.address());
        if bytes.is_empty() {
            return Ok(to);
        }
        // SAFETY: the event is this value's; one that was never recorded has been reached.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(part.copied) })?;
        // SAFETY: `host` has room for so many bytes, as was seen above, and no copy reads it any more.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), part.host, bytes.len()) };
        // SAFETY: here and below, events and streams are this value's and its driver's.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.stream, part.used, 0) })?;
        // SAFETY: `host` holds the bytes until `copied` is reached, which is waited for before it is written and before it is
        // given back; the part's own buffer and the caller's place have room for them, as was seen above.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, part.host.cast_const().cast(), bytes.len(), self.stream)
        })?;
        // SAFETY: as above.
        check("cuEventRecord", unsafe { sys::cuEventRecord(part.copied, self.stream) })?;
        // SAFETY: as above.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.driver.stream, part.copied, 0) })?;
        if place.is_some() {
            self.next = (self.next + 1) % PARTS;
        }
        Ok(to)
    }

    /// Says that the driver's stream has got all that reads the part that was put last.
    pub(crate) fn release(&mut self) -> Result<(), CudaError> {
        self.driver.bind()?;
        let used = self.parts[self.next].used;
        self.next = (self.next + 1) % PARTS;
        // SAFETY: the event is this value's, and the stream its driver's.
        check("cuEventRecord", unsafe { sys::cuEventRecord(used, self.driver.stream) })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A context that is broken gives errors here, which nobody can do anything about.
        if self.driver.bind().is_err() || self.stream.is_null() {
            return;
        }
        // SAFETY: the stream is this value's. Behind this no copy reads the host's memory, and who reads the device's buffers is on
        // the driver's stream, as they are promised to be.
        unsafe { sys::cuStreamSynchronize(self.stream) };
        for part in &self.parts {
            for event in [part.copied, part.used].into_iter().filter(|event| !event.is_null()) {
                // SAFETY: the event is this value's; the driver keeps it for as long as something waits for it.
                unsafe { sys::cuEventDestroy_v2(event) };
            }
            if !part.host.is_null() {
                // SAFETY: the memory came from `cuMemAllocHost`, and no copy from it is under way.
                unsafe { sys::cuMemFreeHost(part.host.cast()) };
            }
        }
        // SAFETY: nothing runs on it any more.
        unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}
