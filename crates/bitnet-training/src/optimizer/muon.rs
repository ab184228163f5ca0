//! Muon: momentum whose singular values are made one (K. Jordan et al., "Muon: An optimizer for hidden layers", 2024).

use bitnet_cpu::{CpuTraining, Side, Store, Target, Terms, Values};

/// Coefficients of an iteration, which lets small singular values grow fast instead of converging to one.
const ITERATION: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;
/// Updates get the size of AdamW's, whose root mean square is about this, so that one learning rate fits all parameters (arXiv 2502.16982).
const SIZE: f64 = 0.2;

/// Makes all singular values of `g [n, k]` about one (Newton and Schulz), times `0.2 sqrt(max(n, k))`. Iterations of bf16 terms are as good.
pub(super) fn orthogonal(ops: &CpuTraining, terms: Terms, g: &mut [f32], (n, k): (usize, usize)) {
    let norm = super::norm(ops, g) as f32;
    let wide = n <= k;
    // The smaller side, and the larger.
    let (small, large) = if wide { (n, k) } else { (k, n) };
    let mut x = vec![0.0; g.len()];
    for (i, x) in x.iter_mut().enumerate() {
        let at = if wide { i } else { (i % large) * small + i / large };
        *x = g[at] / (norm + 1e-7);
    }
    let (a, b, c) = ITERATION;
    let (mut gram, mut square, mut next) =
        (vec![0.0; small * small], vec![0.0; small * small], vec![0.0; x.len()]);
    for _ in 0..ITERATIONS {
        let product = |sizes: (usize, usize, usize), left: Side<'_>, right: Side<'_>, out: &mut [f32]| {
            let target = Target { stride: sizes.1, values: out, first: 0 };
            ops.product(terms, sizes, left, right, Store::Set(1.0), target);
        };
        let rows = |v| Side::rows(Values::F32(v), large);
        product((small, small, large), rows(&x), rows(&x), &mut gram);
        // The Gram matrix is symmetric: its rows are its columns.
        let grams = |v| Side::rows(Values::F32(v), small);
        product((small, small, small), grams(&gram), grams(&gram), &mut square);
        square.iter_mut().zip(&gram).for_each(|(square, gram)| *square = b * gram + c * *square);
        product((small, large, small), grams(&square), Side::columns(Values::F32(&x), large), &mut next);
        x.iter_mut().zip(&next).for_each(|(x, next)| *x = a * *x + next);
    }
    let factor = (SIZE * libm::sqrt(large as f64)) as f32;
    for (i, x) in x.iter().enumerate() {
        let at = if wide { i } else { (i % large) * small + i / large };
        g[at] = factor * x;
    }
}
