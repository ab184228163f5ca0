//! What slots are made of. Their model in the tests puts loom's parts of the same names in their place.

pub(super) use super::fence::Fence;
pub(super) use std::sync::Mutex;
pub(super) use std::sync::atomic::AtomicBool;
pub(super) use std::thread::yield_now;

/// The standard library's cell by the call that a model can watch.
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Gives `f` the pointer, to write by.
    #[inline(always)]
    pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
