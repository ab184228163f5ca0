//! What tests of several crates share: the reference data in `tests/fixtures` and its tolerances.
//!
//! Helpers panic with the evidence; they run in tests only.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test kit fails by panicking")]

pub mod golden;
