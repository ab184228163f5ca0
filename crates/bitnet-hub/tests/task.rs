//! Futures, polled by the smallest executor there is.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_hub::{Event, Patterns, Task};
use bitnet_testkit::hub::Mood;
use common::{Lab, noise, parse};
use std::fs;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn a_model_is_downloaded_counted_and_cleared() {
    let lab = Lab::with_file(200_000);
    let (sender, events) = channel();
    let hub = lab.hub();
    let model =
        hub.pre_download(&parse("org/name@main"), &Patterns::default(), move |e| sender.send(e).unwrap());
    let model = block_on(model).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), noise(200_000));
    let bytes: u64 =
        events.iter().map(|e| if let Event::Received { bytes, .. } = e { bytes } else { 0 }).sum();
    assert_eq!(bytes, 200_000);
    assert_eq!(block_on(hub.cache_stats()).unwrap().size_bytes, 200_000);
    assert_eq!(block_on(hub.clear_cache()).unwrap().in_use.len(), 1);
    drop(model);
    assert_eq!(block_on(hub.clear_cache()).unwrap().freed_bytes, 200_000);
}

#[test]
fn a_future_that_is_dropped_stops_its_work() {
    let lab = Lab::with_file(200_000);
    lab.server.fault("/lfs/", 999, Mood::Slow(1000, Duration::from_millis(10)));
    let (sender, events) = channel();
    let task = lab.hub().pre_download(&parse("org/name"), &Patterns::default(), move |e| {
        let _ = sender.send(e);
    });
    events.iter().find(|e| matches!(e, Event::Received { .. })).unwrap();
    drop(task);
    // The sender goes with the thread: this ends only when the work does.
    let bytes: u64 =
        events.iter().map(|e| if let Event::Received { bytes, .. } = e { bytes } else { 0 }).sum();
    assert!(bytes < 200_000, "{bytes}");
    assert!(!lab.names().iter().any(|n| n.starts_with("snapshots/")));
}

#[test]
fn a_panic_comes_to_whoever_waits() {
    let task: Task<()> = Task::begin(|_| std::panic::panic_any(7));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(task)));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&7));
}
