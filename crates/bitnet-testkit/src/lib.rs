//! What tests of several crates share: the reference data in `tests/fixtures` with its tolerances, an independent forward
//! pass in double precision, what every backend and every device that trains is asked, tensors and files made byte by byte, and a hub to
//! download from.
//!
//! Nothing here uses the crates under test, but for the traits that backends and devices are asked through. Functions panic with the evidence; they run in tests only.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test kit fails by panicking")]

pub mod adapter;
pub mod conformance;
pub mod files;
pub mod golden;
pub mod hub;
pub mod models;
pub mod oracle;
pub mod synthetic;
pub mod tensors;
pub mod tiny;
pub mod training;
