//! Operations of training beside those of the numerics page.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_testkit::training::{Nearness, conformance};
use bitnet_wgpu::{WgpuTraining, adapters};

/// The first adapter; says so where there is none.
fn device() -> Option<WgpuTraining> {
    if adapters().is_empty() {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "no adapter");
        println!("not run: no adapter");
        return None;
    }
    Some(WgpuTraining::new(0).unwrap())
}

/// Rule 22: 2^-17, and one integer where a number lies on a boundary.
const NEAR: f32 = 1.0 / 131_072.0;
const RULE: Nearness = Nearness {
    products: NEAR,
    products_bf16: NEAR,
    elements: NEAR,
    norms: NEAR,
    codes: 1.0,
    gates: NEAR,
    losses: NEAR,
    attention: NEAR,
    attention_bf16: 1.0 / 2048.0,
};

#[test]
fn every_operation_of_training_is_as_near_as_rule_22_asks() {
    let Some(device) = device() else { return };
    println!("{device:?}");
    conformance(&device, RULE);
}
