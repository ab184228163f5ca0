//! Operations of training beside those of the numerics page.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_testkit::training::{Nearness, conformance};

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
    let Some(device) = common::training() else { return };
    println!("{device:?}");
    conformance(&device, RULE);
}
