//! The host's memory of arrays.

use crate::TrainError;
use bitnet_memory::{Buffer, OutOfMemory, Pool, Profile, Tag};
use bytemuck::Pod;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

/// The pool that a run's memory on the host comes from: arrays, and what operations need while they run. There is one for the process.
pub fn memory() -> &'static Arc<Pool> {
    static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
    POOL.get_or_init(|| bitnet_cpu::memory(Profile::Training.into()))
}

/// So many zeros.
pub(super) fn zeroed<T: Pod>(len: usize, tag: Tag) -> Buffer<T> {
    or_unwind(memory().zeroed(len, tag))
}

/// These numbers.
pub(super) fn copied<T: Pod>(values: &[T], tag: Tag) -> Buffer<T> {
    let mut buffer = or_unwind(memory().buffer(values.len(), tag));
    buffer.copy_from_slice(values);
    buffer
}

/// Makes a buffer so long; contents have no meaning.
pub(super) fn room<T: Pod>(buffer: &mut Buffer<T>, len: usize, tag: Tag) {
    if len <= buffer.capacity() {
        or_unwind(memory().fit(buffer, len));
    } else {
        *buffer = Buffer::default();
        *buffer = or_unwind(memory().buffer(len, tag));
    }
}

/// Nobody between a run and an array can do without it: what there is no memory for unwinds to [`or_out_of_memory`].
fn or_unwind<T>(outcome: Result<T, OutOfMemory>) -> T {
    outcome.unwrap_or_else(|e| resume_unwind(Box::new(e)))
}

/// What `f` gives, or that there was no memory for one of its arrays.
pub(crate) fn or_out_of_memory<T>(f: impl FnOnce() -> Result<T, TrainError>) -> Result<T, TrainError> {
    // What `f` changes is dropped with it.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|cause| match cause.downcast::<OutOfMemory>() {
        Ok(e) => Err(TrainError::Backend((*e).into())),
        Err(cause) => resume_unwind(cause),
    })
}
