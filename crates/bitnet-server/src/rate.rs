//! How many requests a key has a minute.

use crate::ApiError;
use crate::frame::Client;
use axum::http::StatusCode;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::num::NonZeroU32;
use std::sync::Arc;

/// A bucket of requests for each key: full at the beginning, filled again evenly.
pub(crate) struct Rates {
    limiter: DefaultKeyedRateLimiter<Arc<str>>,
    a_minute: NonZeroU32,
    clock: DefaultClock,
}

impl Rates {
    pub fn new(a_minute: NonZeroU32) -> Self {
        let limiter = RateLimiter::keyed(Quota::per_minute(a_minute));
        Self { limiter, a_minute, clock: DefaultClock::default() }
    }

    /// # Errors
    /// 429 with the time until the next request may come.
    pub fn admit(&self, client: &Client) -> Result<(), ApiError> {
        self.limiter.check_key(&client.name).map_err(|until| {
            let wait = until.wait_time_from(self.clock.now()).as_secs_f64().ceil();
            let message = format!("more than {} requests a minute; wait {wait} s", self.a_minute);
            let error =
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded");
            ApiError { retry_after: Some(wait as u64), ..error }
        })
    }
}
