//! The device that operations run on, and what went wrong there.

use bitnet_core::{BackendError, Memory, TrainingDevice};
use bitnet_memory::Tag;
use std::sync::{Mutex, PoisonError};

/// A device that keeps the first thing that goes wrong until somebody asks. What is computed from there on has no meaning.
#[derive(Debug)]
pub(crate) struct Device {
    operations: Box<dyn TrainingDevice>,
    failure: Mutex<Option<BackendError>>,
}

impl Device {
    pub(super) fn new(operations: Box<dyn TrainingDevice>) -> Self {
        Self { operations, failure: Mutex::default() }
    }

    pub(super) fn operations(&self) -> &dyn TrainingDevice {
        &*self.operations
    }

    /// Keeps a failure.
    pub(super) fn note<T>(&self, result: Result<T, BackendError>) -> Option<T> {
        match result {
            Ok(given) => Some(given),
            Err(e) => {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                None
            }
        }
    }

    pub(super) fn failure(&self) -> Option<BackendError> {
        let kept = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.or_else(|| self.operations.failure())
    }

    pub(super) fn memory(&self, bytes: usize, tag: Tag) -> Result<Memory, BackendError> {
        self.operations.memory(bytes, tag)
    }

    /// `bytes` go to the beginning of the memory.
    pub(super) fn upload(&self, memory: &Memory, bytes: &[u8]) {
        let whole = bytes.len() / 4 * 4;
        self.operations.upload(memory, 0, &bytes[..whole]);
        if whole < bytes.len() {
            let mut word = [0; 4];
            word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.operations.upload(memory, whole, &word);
        }
    }

    /// All of a memory; where that fails, bytes that are no number as f32.
    pub(super) fn download(&self, memory: &Memory, bytes: &mut [u8]) {
        if self.note(self.operations.download(memory, 0, bytes)).is_none() {
            bytes.fill(0xff);
        }
    }
}
