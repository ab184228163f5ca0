//! What passes between two devices: one waits for the other, and copies its memory.

use super::{Driver, check};
use crate::error::CudaError;
use crate::memory::Buffer;
use cudarc::driver::sys::{self, CUresult};

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

    /// Has the beginning of another device's buffer copied behind what is under way here.
    pub(crate) fn copy_from(
        &self,
        other: &Self,
        from: &Buffer,
        to: &Buffer,
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(bytes <= from.bytes() && bytes <= to.bytes(), "bytes that are copied");
        self.bind()?;
        if self.context == other.context {
            // SAFETY: it was seen above that both have the bytes.
            return check("cuMemcpyDtoDAsync", unsafe {
                sys::cuMemcpyDtoDAsync_v2(to.address(), from.address(), bytes, self.stream)
            });
        }
        // SAFETY: as above, and each address is one of the context that stands beside it.
        check("cuMemcpyPeerAsync", unsafe {
            sys::cuMemcpyPeerAsync(
                to.address(),
                self.context,
                from.address(),
                other.context,
                bytes,
                self.stream,
            )
        })
    }
}
