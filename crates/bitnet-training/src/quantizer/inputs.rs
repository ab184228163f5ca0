//! Quantizers of projections' inputs. On the way back all of them are passed straight through.

use bitnet_cpu::{CpuTraining, QuantizedTokens};
use bitnet_quant::spec::fold16;

/// Rows that a thread works on at a time.
const ROWS: usize = 16;

/// What an input becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputCodes {
    /// It stays.
    Float,
    /// Int8, by a token's largest magnitude.
    Int8,
    /// Int4, by a token's mean magnitude (BitNet a4.8, arXiv 2411.04965).
    Int4,
}

/// How the input of some projections is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct InputQuantizer {
    pub(crate) codes: InputCodes,
    /// The share of a token's elements that stay, the largest ones; the others become 0.
    pub(crate) keep: Option<f64>,
    /// Whether tokens are turned by a Hadamard matrix first (BitNet v2, arXiv 2504.18415).
    pub(crate) hadamard: bool,
}

impl InputQuantizer {
    /// Tokens `x [m, k]` as they are quantized, where that is not as they were.
    pub(crate) fn turned(&self, ops: &CpuTraining, x: &[f32], k: usize) -> Option<Vec<f32>> {
        if self.keep.is_none() && !self.hadamard {
            return None;
        }
        let mut turned = x.to_vec();
        ops.chunks(&mut turned, ROWS * k, &|_, rows| {
            for row in rows.chunks_exact_mut(k) {
                if let Some(share) = self.keep {
                    keep_largest(row, share);
                }
                if self.hadamard {
                    hadamard_row(row);
                }
            }
        });
        Some(turned)
    }
}

/// Leaves the largest magnitudes of a row, `ceil(share * len)` of them; of equal ones the first.
fn keep_largest(row: &mut [f32], share: f64) {
    let count = ((share * row.len() as f64).ceil() as usize).clamp(1, row.len());
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    if count < row.len() {
        let magnitude = |i: &u32| row[*i as usize].abs();
        order.select_nth_unstable_by(count, |a, b| magnitude(b).total_cmp(&magnitude(a)).then(a.cmp(b)));
        order[count..].iter().for_each(|i| row[*i as usize] = 0.0);
    }
}

/// Multiplies every row of `x [m, k]` with Sylvester's Hadamard matrix, divided by the root of its size: the largest power of two that
/// divides `k`, block after block. It is its own inverse, and its own way back.
pub(crate) fn hadamard(ops: &CpuTraining, x: &mut [f32], k: usize) {
    ops.chunks(x, ROWS * k, &|_, rows| rows.chunks_exact_mut(k).for_each(hadamard_row));
}

fn hadamard_row(row: &mut [f32]) {
    let size = 1 << row.len().trailing_zeros();
    let root = (size as f32).sqrt();
    for block in row.chunks_exact_mut(size) {
        let mut half = 1;
        while half < size {
            for pair in block.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|v| *v /= root);
    }
}

/// Int4 codes of every row of `x [m, k]`, `clamp(round half even(x sqrt(7) / (b + 1e-5)), -8, 7)` with its mean magnitude `b`, and `d [m]`,
/// which makes them real again: `b / sqrt(7)`. The two factors are not quite each other's inverse; a row of zeros stays one.
pub(crate) fn int4(ops: &CpuTraining, x: &[f32], k: usize, out: &mut QuantizedTokens) {
    let root = 7.0f32.sqrt();
    ops.quantize_by((x.len() / k, k), out, &|row, q| {
        let x = &x[row * k..(row + 1) * k];
        let mut lanes = [0.0f32; 16];
        for block in x.chunks(16) {
            lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += x.abs());
        }
        let mean = fold16(lanes) / k as f32;
        let s = root / (mean + 1e-5);
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x * s).round_ties_even().clamp(-8.0, 7.0) as i8;
        }
        mean / root
    });
}
