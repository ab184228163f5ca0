//! Sums and functions in the order of `docs/numerics.md`, from its words alone.

use bitnet_core::{Activation, Terms};

/// The most terms of a part of a sum (rule 18).
pub(super) const DEPTH: usize = 4096;
/// Elements whose squares are summed together for a length.
const PIECE: usize = 1 << 15;

/// One chain of fused multiply-adds.
pub(super) fn chain(k: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, from: f32) -> f32 {
    (0..k).fold(from, |sum, p| f32::mul_add(a(p), b(p), sum))
}

/// Rule 18 or 19, going on from a number.
pub(super) fn total(
    terms: Terms,
    k: usize,
    a: impl Fn(usize) -> f32,
    b: impl Fn(usize) -> f32,
    from: f32,
) -> f32 {
    if terms == Terms::F32 {
        return chain(k, a, b, from);
    }
    let of = |p: usize| if p < k { (round_bf16(a(p)), round_bf16(b(p))) } else { (0.0, 0.0) };
    (0..k).step_by(32).fold(from, |sum, block| {
        let half = |odd: usize| {
            (0..16).fold(0.0f32, |sum, i| {
                let (a, b) = of(block + 2 * i + odd);
                a.mul_add(b, sum)
            })
        };
        sum + (half(0) + half(1))
    })
}

/// Rounded to bf16, ties to even; zero below 2^-50.
fn round_bf16(x: f32) -> f32 {
    if x.abs() < 2.0f32.powi(-50) {
        return 0.0;
    }
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

fn fold(mut lane: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lane[i] += lane[i + width];
        }
    }
    lane[0]
}

/// Rule 2 of a sum.
pub(super) fn sum16(n: usize, of: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    (0..n).for_each(|i| lanes[i % 16] += of(i));
    fold(lanes)
}

/// Rule 2 of a dot product.
pub(super) fn dot16(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    (0..a.len()).for_each(|i| lanes[i % 16] = a[i].mul_add(b[i], lanes[i % 16]));
    fold(lanes)
}

/// Rule 7.
pub(super) fn magnitude(values: &[f32], cols: usize) -> f32 {
    let mut total = 0.0f64;
    for row in values.chunks(cols.max(1)) {
        let mut lane = [0.0f64; 16];
        row.iter().enumerate().for_each(|(i, v)| lane[i % 16] += f64::from(v.abs()));
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lane[i] += lane[i + width];
            }
        }
        total += lane[0];
    }
    ((total / values.len().max(1) as f64) as f32).max(1e-5)
}

/// The sum of squares of a gradient: sixteen lanes a piece, in double precision.
pub(super) fn pieces(x: &[f32]) -> f64 {
    let of_piece = |piece: &[f32]| {
        let mut lanes = [0.0f64; 16];
        piece.iter().enumerate().for_each(|(i, g)| lanes[i % 16] += f64::from(*g) * f64::from(*g));
        lanes.iter().sum::<f64>()
    };
    x.chunks(PIECE).map(of_piece).sum()
}

/// Rule 9.
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-104.0, 89.0);
    let k = (x * f32::from_bits(0x3fb8_aa3b)).round_ties_even();
    let r = (-k).mul_add(f32::from_bits(0x3f31_8000), x);
    let r = (-k).mul_add(f32::from_bits(0xb95e_8083), r);
    let coefficients = [0x3ab5_121a, 0x3c09_1cf1, 0x3d2a_ac79, 0x3e2a_aa49, 0x3eff_fffe].map(f32::from_bits);
    let p = coefficients[1..].iter().chain(&[1.0, 1.0]).fold(coefficients[0], |p, c| p.mul_add(r, *c));
    let k = k as i32;
    let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    p * power(k >> 1) * power(k - (k >> 1))
}

const CUBE: f32 = 0.044_715;
const SLOPE: f32 = 1.595_769_2;

/// Rule 9: `act(g) * u`.
pub(super) fn gated(act: Activation, g: f32, u: f32) -> f32 {
    let steep = match act {
        Activation::Relu2 => return if g > 0.0 { (g * g) * u } else { 0.0 },
        Activation::Silu => g,
        Activation::Gelu => (g * g * CUBE).mul_add(g, g) * SLOPE,
    };
    g / (1.0 + exp(-steep)) * u
}

/// An activation and its slope.
pub(super) fn slope(act: Activation, g: f32) -> (f32, f32) {
    let square = g * g;
    let (inner, steep) = match act {
        Activation::Relu2 => {
            let t = if g > 0.0 { g } else { 0.0 };
            return (t * t, t + t);
        }
        Activation::Silu => (g, 1.0),
        Activation::Gelu => ((square * CUBE).mul_add(g, g) * SLOPE, square.mul_add(3.0 * CUBE, 1.0) * SLOPE),
    };
    let sigmoid = 1.0 / (1.0 + exp(0.0 - inner));
    let rest = match act {
        Activation::Gelu => (g * (1.0 - sigmoid)).mul_add(steep, 1.0),
        _ => g.mul_add(1.0 - sigmoid, 1.0),
    };
    (g * sigmoid, sigmoid * rest)
}
