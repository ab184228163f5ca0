//! A device whose operations are launched as they are asked for, and its memory.

use crate::driver::{Driver, Function, Launch, TRAINING_KERNELS};
use crate::error::CudaError;
use crate::gpu::elements;
use crate::kernels::TrainingKernels;
use crate::memory::{Buffer, CudaSource, Retired, take_retired};
use bitnet_core::{At, BackendError, Memory};
use bitnet_memory::{Pool, Profile, Tag};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) struct Stream {
    name: String,
    pub(super) driver: Arc<Driver>,
    pub(super) kernels: TrainingKernels,
    failure: Mutex<Option<BackendError>>,
    pool: Pool<CudaSource>,
    retired: Arc<Retired>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number among a kernel's parameters.
pub(super) fn bits(x: f32) -> u64 {
    u64::from(x.to_bits())
}

impl Stream {
    pub(super) fn open(number: usize) -> Result<Self, CudaError> {
        let driver = Arc::new(Driver::open(number, TRAINING_KERNELS)?);
        let kernels = TrainingKernels::load(&driver)?;
        let name = format!("cuda:{number}");
        let pool = Pool::with(CudaSource::new(Arc::clone(&driver)), Profile::Training.into());
        Ok(Self { name, driver, kernels, failure: Mutex::default(), pool, retired: Arc::default() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Keeps what went wrong, if nothing did before.
    pub(super) fn fail(&self, error: BackendError) {
        locked(&self.failure).get_or_insert(error);
    }

    /// What went wrong, once.
    pub(super) fn failure(&self) -> Option<BackendError> {
        locked(&self.failure).take()
    }

    fn has_failed(&self) -> bool {
        locked(&self.failure).is_some()
    }

    fn error(&self, error: CudaError, bytes: usize, what: &'static str) -> BackendError {
        match error {
            CudaError::OutOfMemory => BackendError::OutOfMemory { bytes, what },
            error => BackendError::Device { device: self.name.clone(), why: error.to_string() },
        }
    }

    /// Memory without meaning in it.
    pub(super) fn take(&self, bytes: usize, tag: Tag, what: &'static str) -> Result<Buffer, BackendError> {
        // What has it next comes behind what had it last: there is one stream. The driver waits for that before it takes memory back.
        drop(take_retired(&self.retired));
        let piece = self.pool.piece(bytes, tag);
        let piece = piece.map_err(|_| self.error(self.pool.source().refusal(), bytes, what))?;
        Ok(Buffer::new(piece, bytes, &self.retired))
    }

    /// Room that an operation needs while it runs; `None`: there is none, and that is kept.
    pub(super) fn room(&self, bytes: usize) -> Option<Buffer> {
        self.take(bytes, Tag::Scratch, "an operation of training").map_err(|e| self.fail(e)).ok()
    }

    /// What an operation is given by the host.
    pub(super) fn given(&self, bytes: &[u8]) -> Option<Buffer> {
        let piece = self.room(bytes.len())?;
        let sent = self.driver.upload(&piece, 0, bytes);
        sent.map_err(|e| self.fail(self.error(e, bytes.len(), "an upload"))).ok()?;
        Some(piece)
    }

    fn piece<'a>(&self, memory: &'a Memory, from: usize, bytes: usize) -> &'a Buffer {
        let piece: &Buffer = memory.held().expect("memory is that of an NVIDIA GPU");
        assert!(piece.is_of(&self.retired), "memory is that of {}", self.name);
        let end = from.checked_add(bytes).expect("elements that can be counted");
        assert!(end <= memory.bytes(), "bytes {from}..{end} of {memory:?}");
        piece
    }

    /// The address of so many bytes, `from` bytes behind the beginning.
    pub(super) fn bytes(&self, memory: &Memory, from: usize, bytes: usize) -> u64 {
        self.piece(memory, from, bytes).address() + from as u64
    }

    /// The address of so many numbers.
    pub(super) fn floats(&self, at: At<'_>, len: usize) -> u64 {
        if len == 0 {
            return 0;
        }
        self.bytes(at.memory, at.first * 4, len * 4)
    }

    pub(super) fn upload(&self, memory: &Memory, from: usize, bytes: &[u8]) {
        let piece = self.piece(memory, from, bytes.len());
        let sent = self.driver.upload(piece, from, bytes);
        let _ = sent.map_err(|e| self.fail(self.error(e, bytes.len(), "an upload")));
    }

    pub(super) fn download(&self, memory: &Memory, from: usize, out: &mut [u8]) -> Result<(), BackendError> {
        let piece = self.piece(memory, from, out.len());
        self.read(piece, from, out)
    }

    /// Waits for what is under way, and copies bytes of a piece.
    pub(super) fn read(&self, piece: &Buffer, from: usize, out: &mut [u8]) -> Result<(), BackendError> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let read = self.driver.read(&[(piece, from, out.len())], |bytes| out.copy_from_slice(bytes));
        read.map_err(|e| self.error(e, out.len(), "what is read back"))
    }

    /// Launches `grid` blocks of `threads` threads with `shared` bytes.
    pub(super) fn run(
        &self,
        kernel: Function,
        grid: [usize; 3],
        threads: u32,
        shared: usize,
        params: &[u64],
    ) {
        if grid.contains(&0) || self.has_failed() {
            return;
        }
        let launch = Launch::new(kernel, grid, threads, shared, params);
        // SAFETY: the operations of this module give the parameters that their kernels declare, with addresses from `bytes` and `floats`,
        // which see to it that memory has what the shapes ask for, or of pieces made for it. A buffer goes back to the driver when it
        // was waited for everything; until then it is used by what is launched later on the same stream.
        let outcome = unsafe { self.driver.launch(&[launch]) };
        let _ = outcome.map_err(|e| self.fail(self.error(e, 0, "an operation of training")));
    }

    /// Launches threads that take so many elements in strides.
    pub(super) fn run_elements(&self, kernel: Function, n: usize, params: &[u64]) {
        self.run(kernel, elements(n), 256, 0, params);
    }
}
