//! What the crew is made of. Its model in the tests puts loom's parts of the same names in their place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, fence};
pub(super) use std::sync::{Arc, Mutex, MutexGuard};
pub(super) use std::thread;
use std::time::{Duration, Instant};

/// The standard library's cell by the two calls that a model can watch.
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Gives `f` the pointer, to read by.
    pub(super) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Gives `f` the pointer, to write by.
    pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Looks for `done` for a while; true if it came.
pub(super) fn spin(time: Duration, done: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        // The clock costs more than a look.
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() >= time {
            return false;
        }
    }
}
