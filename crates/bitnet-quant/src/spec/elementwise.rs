//! RMSNorm, the exponential, and the gated activations.

use super::l16_dot;

/// Below this, `exp` takes its argument for this: the result is 0.
pub const EXP_LO: f32 = -104.0;
/// Above this, `exp` takes its argument for this: the result is infinite.
pub const EXP_HI: f32 = 89.0;
/// log2(e), bits `0x3fb8aa3b`.
pub const EXP_LOG2E: f32 = f32::from_bits(0x3fb8_aa3b);
/// High part of ln 2 (0.693359375), bits `0x3f318000`: its product with any |k| < 2^15 is exact.
pub const EXP_LN2_HI: f32 = f32::from_bits(0x3f31_8000);
/// Low part of ln 2 (-2.12194440e-4), bits `0xb95e8083`.
pub const EXP_LN2_LO: f32 = f32::from_bits(0xb95e_8083);
/// Coefficients of r^2 .. r^6, a Remez fit of `exp(r)` over |r| <= ln(2)/2 with relative error 3.1e-9 before rounding.
pub const EXP_C: [f32; 5] = [
    f32::from_bits(0x3eff_fffe),
    f32::from_bits(0x3e2a_aa49),
    f32::from_bits(0x3d2a_ac79),
    f32::from_bits(0x3c09_1cf1),
    f32::from_bits(0x3ab5_121a),
];

/// Rule 9: `exp(x)`, within 2 ulp for normal results. Not a number counts as [`EXP_LO`].
pub fn exp(x: f32) -> f32 {
    let x = if x > EXP_LO { x } else { EXP_LO };
    let x = if x < EXP_HI { x } else { EXP_HI };
    let k = (x * EXP_LOG2E).round_ties_even();
    let r = (-k).mul_add(EXP_LN2_HI, x);
    let r = (-k).mul_add(EXP_LN2_LO, r);
    let mut p = EXP_C[4];
    for c in [EXP_C[3], EXP_C[2], EXP_C[1], EXP_C[0], 1.0, 1.0] {
        p = p.mul_add(r, c);
    }
    // 2^k as two factors, so that denormal results are rounded once and 2^128 overflows to infinity.
    let k = k as i32;
    let (low, high) = (k >> 1, k - (k >> 1));
    let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    p * power(low) * power(high)
}

/// Rule 9: `x / (1 + exp(-x))`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `silu(g) * u`.
pub fn gate_silu(g: f32, u: f32) -> f32 {
    silu(g) * u
}

/// What GELU's cubic term is multiplied with.
pub const GELU_CUBE: f32 = 0.044_715;
/// `2 * sqrt(2 / pi)`.
pub const GELU_SLOPE: f32 = 1.595_769_2;

/// Rule 9: GELU by its approximation with tanh, `x / (1 + exp(-(c * 2 sqrt(2 / pi))))` with `c = fma(x * x * 0.044715, x, x)`.
pub fn gelu(x: f32) -> f32 {
    let c = (x * x * GELU_CUBE).mul_add(x, x);
    x / (1.0 + exp(-(c * GELU_SLOPE)))
}

/// `gelu(g) * u`.
pub fn gate_gelu(g: f32, u: f32) -> f32 {
    gelu(g) * u
}

/// Rule 9: `(t * t) * u` with `t = max(g, 0)`; a channel whose gate is not above zero is exactly +0.
pub fn gate_relu2(g: f32, u: f32) -> f32 {
    if g > 0.0 { (g * g) * u } else { 0.0 }
}

/// Rule 3: `y = (x * r) * w` with `r = 1 / sqrt(L16(x, x) / n + eps)`; `x`, `w` and `y` are `[n]`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let r = 1.0 / (l16_dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = (x * r) * w;
    }
}
