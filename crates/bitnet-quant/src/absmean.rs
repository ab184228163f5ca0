//! Absmean ternary quantization of BitNet b1.58 (arXiv 2402.17764).
//!
//! It takes two passes over the weights, and both of them row by row, so that a tensor need not lie in memory as floats.

use bitnet_core::{Scale, ShapeError, TernaryMatrix};

/// The smallest mean magnitude that the quantizer divides by.
pub const MEAN_FLOOR: f32 = 1e-5;

/// Mean magnitude of the values of some rows (rule 7 of `docs/numerics.md`).
///
/// Per row an L16 sum in f64, rows added ascending in f64, one rounding to f32. Torch sums in another order and may differ
/// by 2 ulp.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeanMagnitude {
    total: f64,
    values: usize,
}

impl MeanMagnitude {
    /// Adds a row.
    pub fn row(&mut self, row: &[f32]) {
        let mut lane = [0.0f64; 16];
        let (groups, tail) = row.as_chunks::<16>();
        for group in groups {
            for (lane, v) in lane.iter_mut().zip(group) {
                *lane += f64::from(v.abs());
            }
        }
        for (lane, v) in lane.iter_mut().zip(tail) {
            *lane += f64::from(v.abs());
        }
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lane[i] += lane[i + width];
            }
        }
        self.total += lane[0];
        self.values += row.len();
    }

    /// The mean of all rows so far, floored at [`MEAN_FLOOR`].
    pub fn mean(&self) -> f32 {
        ((self.total / self.values.max(1) as f64) as f32).max(MEAN_FLOOR)
    }
}

/// Mean magnitude of row-major `[rows, cols]` values.
pub fn mean_magnitude(values: &[f32], cols: usize) -> f32 {
    let mut mean = MeanMagnitude::default();
    values.chunks(cols.max(1)).for_each(|row| mean.row(row));
    mean.mean()
}

/// Quantizes one row with `s = 1/mean` into canonical codes, `[row_bytes(row.len())]`.
///
/// `trit = clamp(round_half_even(w * s), -1, 1)`: what is above one half in magnitude is not zero, and a tie is.
pub fn quantize_row(row: &[f32], s: f32, codes: &mut [u8]) {
    let code = |w: f32| {
        let x = w * s;
        1 + u8::from(x > 0.5) - u8::from(x < -0.5)
    };
    let (fours, tail) = row.as_chunks::<4>();
    let (packed, padding) = codes.split_at_mut(fours.len());
    for (four, byte) in fours.iter().zip(packed) {
        let [a, b, c, d] = four.map(code);
        *byte = a | b << 2 | c << 4 | d << 6;
    }
    padding.fill(0b0101_0101);
    for (i, w) in tail.iter().enumerate() {
        padding[0] = padding[0] & !(3 << (2 * i)) | code(*w) << (2 * i);
    }
}

/// Quantizes real weights `[rows, cols]` to trits with one scale.
///
/// `s = 1/mean`; the multiplier that turns trits back is `1/s`.
///
/// ```
/// let w = bitnet_quant::absmean::absmean(&[0.9, -1.1, 0.1, 1.9], 2, 2).unwrap();
/// assert_eq!([w.trit(0, 0), w.trit(0, 1), w.trit(1, 0), w.trit(1, 1)], [1, -1, 0, 1]);
/// assert_eq!(w.scale_at(0, 0), 1.0);
/// ```
pub fn absmean(values: &[f32], rows: usize, cols: usize) -> Result<TernaryMatrix, ShapeError> {
    if values.len() != rows * cols {
        return Err(ShapeError { what: "weights", rows, cols, need: rows * cols, got: values.len() });
    }
    let s = 1.0 / mean_magnitude(values, cols);
    let mut codes = vec![0; rows * TernaryMatrix::row_bytes(cols)];
    let rows_of_codes = codes.chunks_exact_mut(TernaryMatrix::row_bytes(cols).max(1));
    for (row, codes) in values.chunks_exact(cols.max(1)).zip(rows_of_codes) {
        quantize_row(row, s, codes);
    }
    TernaryMatrix::new(rows, cols, codes.into(), Scale::Tensor(1.0 / s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_zero_and_padding_is_zero() {
        let ties = [0.5, -0.5, 1.5, -1.5, 0.500_000_06, -0.500_000_06, 0.0, -0.0, 1e30, -1e30];
        let mut codes = [0xff; 32];
        quantize_row(&ties, 1.0, &mut codes);
        let m = TernaryMatrix::new(1, 10, codes.to_vec().into(), Scale::Tensor(1.0)).unwrap();
        let got: Vec<i8> = (0..10).map(|c| m.trit(0, c)).collect();
        let want: Vec<i8> = ties.iter().map(|w: &f32| w.round_ties_even().clamp(-1.0, 1.0) as i8).collect();
        assert_eq!(got, want);
        assert!(codes[3..].iter().all(|b| *b == 0b0101_0101));
    }
}
