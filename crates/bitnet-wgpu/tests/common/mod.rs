//! The adapter that tests run on.
#![allow(dead_code, reason = "a test uses some of it")]

use bitnet_wgpu::{WgpuBackend, WgpuTraining, adapters};

/// Whether there is an adapter; says so where there is none.
///
/// # Panics
/// Where there is none and `REQUIRE_DEVICE` is 1.
fn is_there() -> bool {
    let is_there = !adapters().is_empty();
    if !is_there {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "no adapter");
        println!("not run: no adapter");
    }
    is_there
}

/// The first adapter, for inference.
pub fn backend() -> Option<WgpuBackend> {
    is_there().then(|| WgpuBackend::new(0).unwrap())
}

/// The first adapter, for training.
pub fn training() -> Option<WgpuTraining> {
    is_there().then(|| WgpuTraining::new(0).unwrap())
}
