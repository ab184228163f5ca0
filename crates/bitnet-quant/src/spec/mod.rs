//! The scalar specification: one number for one model and one prompt.
//!
//! Every float operation of inference is defined here, in plain scalar Rust, to the last rounding. Kernels on every
//! instruction set equal these functions by `==`, so results do not depend on instruction set, thread count, batch or
//! chunking. The rules are written out in `docs/numerics.md`; each function names the rule it states. Inputs are finite:
//! weights are checked when they are prepared.
//!
//! f32, round to nearest even, denormals kept. `mul_add` is a fused multiply-add and happens only where it is written.

mod attention;
mod cache;
mod elementwise;
mod linear;
mod reduce;
mod rope;

pub use attention::{SEGMENT, attend_head};
pub use cache::{Q8_BLOCK, quantize_q8};
pub use elementwise::{EXP_C, EXP_HI, EXP_LN2_HI, EXP_LN2_LO, EXP_LO, EXP_LOG2E};
pub use elementwise::{GELU_CUBE, GELU_SLOPE, exp, gate_gelu, gate_relu2, gate_silu, gelu, rms_norm, silu};
pub use linear::{ACT_FLOOR, add_low_rank, bitlinear, bitlinear_float, dense_dot, quantize_row};
pub use reduce::{LANES, fold16, l16_dot, l16_sum};
pub use rope::{inverse_frequencies, rope_angles, rotate_half};

#[cfg(test)]
mod tests;
