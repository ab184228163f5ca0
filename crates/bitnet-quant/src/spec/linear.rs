//! BitLinear and dense products.

use super::l16_dot;
use bitnet_core::{Scale, TernaryMatrix};

/// The smallest absolute maximum that activation quantization divides by.
pub const ACT_FLOOR: f32 = 1e-5;

/// Rule 4: quantizes one token `x [k]` to int8 and returns `d = 1/s`, which turns the integers back into reals.
///
/// `s = 127 / max(absmax, 1e-5)`, `q = clamp(round_half_even(x * s), -128, 127)`.
pub fn quantize_row(x: &[f32], q: &mut [i8]) -> f32 {
    let absmax = x.iter().fold(ACT_FLOOR, |m, v| if v.abs() > m { v.abs() } else { m });
    let s = 127.0 / absmax;
    for (q, &x) in q.iter_mut().zip(x) {
        let z = (x * s).round_ties_even();
        // Written as comparisons so that what is not a number has a defined result, -128.
        let z = if z > -128.0 { z } else { -128.0 };
        *q = if z < 127.0 { z } else { 127.0 } as i8;
    }
    1.0 / s
}

/// Rules 5 and 6: one token through a ternary matrix with int8 activations: `q [k]`, `d = 1/s`, `y [n]`.
pub fn bitlinear(w: &TernaryMatrix, q: &[i8], d: f32, y: &mut [f32]) {
    for (row, y) in y.iter_mut().enumerate() {
        let sum = |from: usize, to: usize| -> i32 {
            (from..to).map(|col| i32::from(w.trit(row, col)) * i32::from(q[col])).sum()
        };
        *y = match w.scale() {
            Scale::Tensor(s) => sum(0, w.cols()) as f32 * (d * s),
            Scale::Rows(s) => sum(0, w.cols()) as f32 * (d * s[row]),
            Scale::Groups { size, .. } => {
                let mut t = 0.0f32;
                for from in (0..w.cols()).step_by(*size) {
                    let to = w.cols().min(from + size);
                    t = (sum(from, to) as f32).mul_add(w.scale_at(row, from), t);
                }
                t * d
            }
        };
    }
}

/// Rule 6: one token through a ternary matrix with f32 activations: `x [k]`, `y [n]`.
///
/// L16 within a group, groups merged ascending by fused multiply-add; one scale a row is one group.
pub fn bitlinear_float(w: &TernaryMatrix, x: &[f32], y: &mut [f32]) {
    for (row, y) in y.iter_mut().enumerate() {
        let size = match w.scale() {
            Scale::Groups { size, .. } => *size,
            _ => w.cols().max(1),
        };
        let mut t = 0.0f32;
        for from in (0..w.cols()).step_by(size) {
            let to = w.cols().min(from + size);
            let trits: Vec<f32> = (from..to).map(|col| f32::from(w.trit(row, col))).collect();
            t = l16_dot(&x[from..to], &trits).mul_add(w.scale_at(row, from), t);
        }
        *y = t;
    }
}

/// Rule 13: one output of a dense product: the row is dequantized by its format's formula, then L16.
pub fn dense_dot(dequantized_row: &[f32], x: &[f32]) -> f32 {
    l16_dot(dequantized_row, x)
}

/// Rule 15: adds to the products `y [n]` of one token `x [k]` what an adapter of rank `r` makes of it: `a` is `[r, k]`, `b` is `[n, r]`.
pub fn add_low_rank(a: &[f32], b: &[f32], scale: f32, x: &[f32], y: &mut [f32]) {
    let inner: Vec<f32> = a.chunks_exact(x.len()).map(|a| l16_dot(a, x)).collect();
    for (y, b) in y.iter_mut().zip(b.chunks_exact(inner.len())) {
        *y = l16_dot(b, &inner).mul_add(scale, *y);
    }
}
