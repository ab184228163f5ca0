//! The same without waiting: futures that any executor can poll, each with a thread of its own that does the work.

use crate::{CacheStats, Cached, Cancel, Event, Hub, HubError, Patterns, Reference, Removed};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

/// Work on another thread. It has begun already; dropping it cancels it, and what had arrived stays for the next time.
#[must_use = "dropped, it is cancelled"]
pub struct Task<T> {
    state: Arc<Mutex<State<T>>>,
    cancel: Cancel,
}

struct State<T> {
    done: Option<thread::Result<T>>,
    waker: Option<Waker>,
}

impl<T: Send + 'static> Task<T> {
    /// Begins something that looks at the flag now and then.
    pub fn begin(work: impl FnOnce(&Cancel) -> T + Send + 'static) -> Self {
        let cancel = Cancel::new();
        let state = Arc::new(Mutex::new(State { done: None, waker: None }));
        let (theirs, flag) = (Arc::clone(&state), cancel.clone());
        thread::spawn(move || {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&flag)));
            let mut state = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            state.done = Some(done);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        });
        Self { state, cancel }
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.done.take() {
            Some(Ok(done)) => Poll::Ready(done),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Hub {
    /// [`pull`](Self::pull), so that a model is there before it is needed.
    pub fn pre_download(
        &self,
        reference: &Reference,
        patterns: &Patterns,
        events: impl Fn(Event) + Sync + Send + 'static,
    ) -> Task<Result<Cached, HubError>> {
        let (hub, reference, patterns) = (self.clone(), reference.clone(), patterns.clone());
        Task::begin(move |cancel| hub.pull(&reference, &patterns, &events, cancel))
    }

    /// [`stats`](Self::stats) on another thread: a cache may have many files.
    pub fn cache_stats(&self) -> Task<Result<CacheStats, HubError>> {
        let hub = self.clone();
        Task::begin(move |_| hub.stats())
    }

    /// [`clear`](Self::clear) on another thread.
    pub fn clear_cache(&self) -> Task<Result<Removed, HubError>> {
        let hub = self.clone();
        Task::begin(move |_| hub.clear())
    }
}
