//! The adapter that tests run on.

use bitnet_wgpu::{WgpuBackend, adapters};

/// The first adapter; says so where there is none.
///
/// # Panics
/// Where there is none and `REQUIRE_DEVICE` is 1.
pub fn backend() -> Option<WgpuBackend> {
    if adapters().is_empty() {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "no adapter");
        println!("not run: no adapter");
        return None;
    }
    Some(WgpuBackend::new(0).unwrap())
}
