//! The GPU that tests run on.

use bitnet_cuda::{CudaBackend, devices};

/// The first GPU; says so where there is none.
///
/// # Panics
/// Where there is none and `REQUIRE_DEVICE` is 1.
pub fn backend() -> Option<CudaBackend> {
    if let Err(why) = devices() {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "{why}");
        println!("not run: {why}");
        return None;
    }
    Some(CudaBackend::new(0).unwrap())
}
