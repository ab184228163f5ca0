//! What passes between two devices: one waits for the other, and copies its memory.

use super::{Driver, check};
use crate::error::CudaError;
use crate::memory::Buffer;
use cudarc::driver::sys::{self, CUresult};
use std::ptr::{null, null_mut};

/// Rows of bytes of a buffer, and where they go: all in bytes but for the height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rectangle {
    /// Where the first row begins, and how far the next one is.
    pub(crate) from: usize,
    pub(crate) from_pitch: usize,
    /// The same of where they go.
    pub(crate) to: usize,
    pub(crate) to_pitch: usize,
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
}

impl Rectangle {
    /// The way back.
    pub(crate) fn turned_round(self) -> Self {
        let Self { from, from_pitch, to, to_pitch, .. } = self;
        Self { from: to, from_pitch: to_pitch, to: from, to_pitch: from_pitch, ..self }
    }
}

impl Driver {
    /// Lets this device reach another one's memory, where the machine has a way for it: copies then take that, and not the one over the
    /// host.
    pub(crate) fn reach(&self, other: &Self) -> Result<(), CudaError> {
        if self.context == other.context {
            return Ok(());
        }
        self.bind()?;
        let mut there_is = 0;
        // SAFETY: both are devices of the driver's, and `there_is` is where the answer goes.
        check("cuDeviceCanAccessPeer", unsafe {
            sys::cuDeviceCanAccessPeer(&mut there_is, self.device, other.device)
        })?;
        if there_is == 0 {
            return Ok(());
        }
        // SAFETY: the context is held until `other` is dropped; 0 is the only flag there is.
        match unsafe { sys::cuCtxEnablePeerAccess(other.context, 0) } {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => check("cuCtxEnablePeerAccess", code),
        }
    }

    /// Marks what is under way, for another device to wait for.
    pub(crate) fn mark(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: event and stream are this driver's.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.mark, self.stream) })
    }

    /// Has what comes next wait until the other device is at its mark.
    pub(crate) fn wait_for(&self, other: &Self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream is this driver's; the event is of `other`, and may be of another context.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.stream, other.mark, 0) })
    }

    /// Has bytes of another device copied behind what is under way here: from a buffer and an offset to a buffer and an offset.
    pub(crate) fn copy_from(
        &self,
        other: &Self,
        (from, from_at): (&Buffer, usize),
        (to, to_at): (&Buffer, usize),
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(from_at + bytes <= from.bytes() && to_at + bytes <= to.bytes(), "bytes that are copied");
        self.bind()?;
        let (from, to) = (from.address() + from_at as u64, to.address() + to_at as u64);
        if self.context == other.context {
            // SAFETY: it was seen above that both have the bytes.
            return check("cuMemcpyDtoDAsync", unsafe {
                sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream)
            });
        }
        // SAFETY: as above, and each address is one of the context that stands beside it.
        check("cuMemcpyPeerAsync", unsafe {
            sys::cuMemcpyPeerAsync(to, self.context, from, other.context, bytes, self.stream)
        })
    }

    /// Has a rectangle of another device's buffer, which may be this one's own, copied behind what is under way here.
    pub(crate) fn copy_rectangle(
        &self,
        other: &Self,
        from: &Buffer,
        to: &Buffer,
        r: &Rectangle,
    ) -> Result<(), CudaError> {
        if r.height <= 1 {
            return self.copy_from(other, (from, r.from), (to, r.to), r.width * r.height);
        }
        let end = |begin: usize, pitch: usize| begin + pitch * (r.height - 1) + r.width;
        assert!(r.width <= r.from_pitch && r.width <= r.to_pitch, "rows of a rectangle");
        assert!(end(r.from, r.from_pitch) <= from.bytes(), "a rectangle that is copied");
        assert!(end(r.to, r.to_pitch) <= to.bytes(), "room for a rectangle");
        self.bind()?;
        let (from, to) = (from.address() + r.from as u64, to.address() + r.to as u64);
        if self.context == other.context {
            let copy = sys::CUDA_MEMCPY2D {
                srcXInBytes: 0,
                srcY: 0,
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                srcHost: null(),
                srcDevice: from,
                srcArray: null_mut(),
                srcPitch: r.from_pitch,
                dstXInBytes: 0,
                dstY: 0,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstHost: null_mut(),
                dstDevice: to,
                dstArray: null_mut(),
                dstPitch: r.to_pitch,
                WidthInBytes: r.width,
                Height: r.height,
            };
            // SAFETY: it was seen above that both have the rectangle; the driver reads what describes it before it returns.
            return check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream) });
        }
        let copy = sys::CUDA_MEMCPY3D_PEER {
            srcXInBytes: 0,
            srcY: 0,
            srcZ: 0,
            srcLOD: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: null(),
            srcDevice: from,
            srcArray: null_mut(),
            srcContext: other.context,
            srcPitch: r.from_pitch,
            srcHeight: r.height,
            dstXInBytes: 0,
            dstY: 0,
            dstZ: 0,
            dstLOD: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: null_mut(),
            dstDevice: to,
            dstArray: null_mut(),
            dstContext: self.context,
            dstPitch: r.to_pitch,
            dstHeight: r.height,
            WidthInBytes: r.width,
            Height: r.height,
            Depth: 1,
        };
        // SAFETY: as above, and each address is one of the context that stands beside it.
        check("cuMemcpy3DPeerAsync", unsafe { sys::cuMemcpy3DPeerAsync(&copy, self.stream) })
    }
}
