//! Ends, on a clock that does not wait.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::{LAST_WORDS, LINGER, LOOK, drain};
use crate::{ServeOptions, Server};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Drains a server with an answer that ends after so many seconds, or never; gives how long that takes, and how long clients may
/// read from then on.
fn drained(answer: Option<f64>) -> (Duration, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let drain_timeout = Duration::from_secs(30);
        let server = Server::new(ServeOptions { drain: drain_timeout, ..ServeOptions::default() }).unwrap();
        let ticket = server.ticket(None).unwrap();
        let begin = Instant::now();
        let seen = Arc::clone(&server);
        let answering = tokio::spawn(async move {
            match answer {
                Some(seconds) => sleep(Duration::from_secs_f64(seconds)).await,
                None => std::future::pending().await,
            }
            assert!(seen.is_draining() && seen.ticket(None).is_err(), "nothing new is taken");
            assert_eq!(
                seen.is_ending(),
                begin.elapsed() >= drain_timeout,
                "nothing is ended before its time"
            );
            drop(ticket);
        });
        let over = drain(&server).await;
        if answer.is_some() {
            answering.await.unwrap();
        }
        (begin.elapsed(), over - Instant::now())
    })
}

#[test]
fn a_drain_waits_for_answers_and_then_for_their_last_words() {
    let drain = Duration::from_secs(30);
    for seconds in [0.5, 12.0, 29.0, 31.0, 39.0] {
        let (took, reading) = drained(Some(seconds));
        let answer = Duration::from_secs_f64(seconds);
        assert!((answer..=answer + LOOK).contains(&took), "{seconds}: {took:?}");
        assert_eq!(reading, LINGER.max(drain.saturating_sub(took)), "{seconds}");
    }
    // One that says nothing is not waited for for ever.
    let most = drain + LAST_WORDS;
    let (took, reading) = drained(None);
    assert!((most..=most + LOOK).contains(&took), "{took:?}");
    assert_eq!(reading, LINGER);
}
