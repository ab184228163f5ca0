//! Every operation of training beside the same one computed in the order of `docs/numerics.md`.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_cuda::CudaTraining;
use bitnet_testkit::training::{Nearness, conformance};

/// All but sums of bf16 are the processor's.
#[test]
fn every_operation_is_that_of_the_processor() {
    if common::backend().is_none() {
        return;
    }
    // Sums of bf16 differ by their order, and by weights and gradients of scores that round the other way.
    let near = Nearness { products_bf16: 1.0 / 16_384.0, attention_bf16: 1.0 / 256.0, ..Nearness::EXACT };
    conformance(&CudaTraining::new(0).unwrap(), near);
}
