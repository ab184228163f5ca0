//! The device's memory: blocks of the driver's, of which the project's pool gives pieces to whoever computes.

use crate::driver::Driver;
use crate::error::CudaError;
use bitnet_memory::{Block, DeviceSource, Piece, Source};
use std::sync::{Arc, Mutex, PoisonError};

/// What the driver aligns its memory to.
const GRANULE: usize = 256;

/// Gives memory of a device.
pub(crate) struct CudaSource {
    driver: Arc<Driver>,
    /// Why there was none the last time.
    refusal: Mutex<Option<CudaError>>,
}

impl CudaSource {
    pub(crate) fn new(driver: Arc<Driver>) -> Self {
        Self { driver, refusal: Mutex::default() }
    }

    /// Why the pool got no memory.
    pub(crate) fn refusal(&self) -> CudaError {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(CudaError::OutOfMemory)
    }
}

impl Source for CudaSource {
    type Block = CudaBlock;

    fn granule(&self) -> usize {
        GRANULE
    }

    fn allocate(&self, bytes: usize) -> Option<CudaBlock> {
        let bytes = bytes.checked_next_multiple_of(GRANULE)?;
        match self.driver.allocate(bytes) {
            Ok(address) => Some(CudaBlock { driver: Arc::clone(&self.driver), address, bytes }),
            Err(e) => {
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                None
            }
        }
    }
}

impl DeviceSource for CudaSource {
    fn free_and_total_bytes(&self) -> Option<(u64, u64)> {
        let (free, total) = self.driver.memory().ok()?;
        Some((free as u64, total as u64))
    }
}

/// Memory of a device, which only its driver reads and writes.
pub(crate) struct CudaBlock {
    driver: Arc<Driver>,
    address: u64,
    bytes: usize,
}

impl Block for CudaBlock {
    fn len_bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CudaBlock {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

/// Pieces that nobody needs any more but that work under way may still use.
pub(crate) type Retired = Mutex<Vec<Piece<CudaSource>>>;

/// Takes out what has retired so far.
pub(crate) fn take_retired(retired: &Retired) -> Vec<Piece<CudaSource>> {
    std::mem::take(&mut *retired.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Memory of a device. It goes back to the pool when what is under way has ended.
pub(crate) struct Buffer {
    /// `None` only while this is dropped.
    piece: Option<Piece<CudaSource>>,
    address: u64,
    bytes: usize,
    retired: Arc<Retired>,
}

impl Buffer {
    pub(crate) fn new(piece: Piece<CudaSource>, bytes: usize, retired: &Arc<Retired>) -> Self {
        let address = piece.block().address + piece.offset() as u64;
        Self { piece: Some(piece), address, bytes, retired: Arc::clone(retired) }
    }

    /// Where it begins, for a kernel.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it goes back to whom these do.
    pub(crate) fn is_of(&self, retired: &Arc<Retired>) -> bool {
        Arc::ptr_eq(&self.retired, retired)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).extend(self.piece.take());
    }
}
