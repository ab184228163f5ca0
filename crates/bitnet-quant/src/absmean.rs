//! Absmean ternary quantization of BitNet b1.58 (arXiv 2402.17764).

use bitnet_core::{Scale, ShapeError, TernaryMatrix};

/// The smallest mean magnitude that the quantizer divides by.
pub const MEAN_FLOOR: f32 = 1e-5;

/// Mean magnitude of row-major `[rows, cols]` values (rule 7 of `docs/numerics.md`), floored at [`MEAN_FLOOR`].
///
/// Per row an L16 sum in f64, rows added ascending in f64, one rounding to f32. Torch sums in another order and may differ
/// by 2 ulp.
pub fn mean_magnitude(values: &[f32], cols: usize) -> f32 {
    let mut total = 0.0f64;
    for row in values.chunks(cols.max(1)) {
        let mut lane = [0.0f64; 16];
        for group in row.chunks(16) {
            for (lane, v) in lane.iter_mut().zip(group) {
                *lane += f64::from(v.abs());
            }
        }
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lane[i] += lane[i + width];
            }
        }
        total += lane[0];
    }
    ((total / values.len().max(1) as f64) as f32).max(MEAN_FLOOR)
}

/// Quantizes real weights `[rows, cols]` to trits with one scale.
///
/// `s = 1/mean`, `trit = clamp(round_half_even(w * s), -1, 1)`; the multiplier that turns trits back is `1/s`.
///
/// ```
/// let w = bitnet_quant::absmean::absmean(&[0.9, -1.1, 0.1, 1.9], 2, 2).unwrap();
/// assert_eq!([w.trit(0, 0), w.trit(0, 1), w.trit(1, 0), w.trit(1, 1)], [1, -1, 0, 1]);
/// assert_eq!(w.scale_at(0, 0), 1.0);
/// ```
pub fn absmean(values: &[f32], rows: usize, cols: usize) -> Result<TernaryMatrix, ShapeError> {
    let s = 1.0 / mean_magnitude(values, cols);
    let trits: Vec<i8> = values.iter().map(|w| (w * s).round_ties_even().clamp(-1.0, 1.0) as i8).collect();
    TernaryMatrix::from_trits(rows, cols, &trits, Scale::Tensor(1.0 / s))
}
