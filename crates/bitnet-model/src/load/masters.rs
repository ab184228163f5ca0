//! Projections that a file has as floats: what a first pass finds out about them, and the trits they become.
//!
//! Both passes go row by row through the memory map.

use crate::ModelError;
use bitnet_core::{BackendError, DenseMatrix, Scale, ShapeError, TernaryMatrix};
use bitnet_quant::absmean::{MeanMagnitude, quantize_row};
use bitnet_quant::dense::dequantize_row;

/// Columns of the groups that files have scales for, the largest first.
const GROUPS: [usize; 3] = [128, 64, 32];

/// What the first pass found.
pub(super) struct Floats<'a> {
    matrix: &'a DenseMatrix,
    mean: MeanMagnitude,
    /// The largest magnitude, and whether every value but zero has it.
    largest: f32,
    single: bool,
}

impl<'a> Floats<'a> {
    /// Goes over all values, which must be finite.
    pub(super) fn read(name: &str, matrix: &'a DenseMatrix) -> Result<Self, ModelError> {
        let mut floats = Self { matrix, mean: MeanMagnitude::default(), largest: 0.0, single: true };
        let mut bad = None;
        each_row(matrix, |_, row| {
            floats.mean.row(row);
            let largest = row.iter().fold(0.0f32, |m, v| if v.abs() > m { v.abs() } else { m });
            if largest > 0.0 {
                let first = floats.largest == 0.0;
                floats.single &= (first || largest == floats.largest)
                    && row.iter().all(|v| v.abs() == largest || *v == 0.0);
                floats.largest = floats.largest.max(largest);
            }
            if !row.iter().fold(true, |finite, v| finite & v.is_finite()) {
                bad = bad.or_else(|| row.iter().find(|v| !v.is_finite()).copied());
            }
        });
        match bad {
            Some(value) => {
                Err(ModelError::Prepare { name: name.to_owned(), source: BackendError::NotFinite { value } })
            }
            None => Ok(floats),
        }
    }

    /// The one magnitude that every value but zero has; `None` when there are several, or none.
    pub(super) fn magnitude(&self) -> Option<f32> {
        (self.single && self.largest > 0.0).then_some(self.largest)
    }

    /// Values of `-magnitude`, 0 and `magnitude` as trits; `None` when there are others.
    pub(super) fn trits(&self, magnitude: f32) -> Option<TernaryMatrix> {
        let fits = self.largest == 0.0 || self.magnitude() == Some(magnitude);
        // Half the magnitude lies between what becomes 0 and what becomes 1, however the quotient is rounded.
        fits.then(|| quantize(self.matrix, 1.0 / magnitude, magnitude)).transpose().ok().flatten()
    }

    /// The trits of a matrix in which each group of columns has one magnitude, as it is where scales of groups have been
    /// multiplied in; `None` of any other, most of which their first group tells.
    pub(super) fn grouped(&self) -> Option<TernaryMatrix> {
        let m = self.matrix;
        let (size, values) = GROUPS.into_iter().find_map(|size| Some((size, self.magnitudes(size)?)))?;
        let stride = TernaryMatrix::row_bytes(m.cols());
        let mut codes = vec![0; m.rows() * stride];
        each_row(m, |r, row| {
            let signs: Vec<f32> = row.iter().map(|v| if *v == 0.0 { 0.0 } else { v.signum() }).collect();
            quantize_row(&signs, 1.0, &mut codes[r * stride..(r + 1) * stride]);
        });
        let scale = Scale::Groups { size, values: values.into() };
        TernaryMatrix::new(m.rows(), m.cols(), codes.into(), scale).ok()
    }

    /// The one magnitude of each group of `size` columns; a group of zeros may have any.
    fn magnitudes(&self, size: usize) -> Option<Vec<f32>> {
        let m = self.matrix;
        if self.largest == 0.0 || !m.cols().is_multiple_of(size) {
            return None;
        }
        let (mut row, mut values) = (vec![0.0; m.cols()], Vec::with_capacity(m.rows() * m.cols() / size));
        for r in 0..m.rows() {
            dequantize_row(m.dtype(), m.row(r), &mut row);
            for group in row.chunks_exact(size) {
                let largest = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                if !group.iter().all(|v| v.abs() == largest || *v == 0.0) {
                    return None;
                }
                values.push(if largest > 0.0 { largest } else { self.largest });
            }
        }
        Some(values)
    }
}

/// Master weights by absmean.
pub(super) fn absmean(matrix: &DenseMatrix, floats: &Floats<'_>) -> Result<TernaryMatrix, ShapeError> {
    let s = 1.0 / floats.mean.mean();
    quantize(matrix, s, 1.0 / s)
}

fn quantize(matrix: &DenseMatrix, s: f32, scale: f32) -> Result<TernaryMatrix, ShapeError> {
    let stride = TernaryMatrix::row_bytes(matrix.cols());
    let mut codes = vec![0; matrix.rows() * stride];
    each_row(matrix, |r, row| quantize_row(row, s, &mut codes[r * stride..(r + 1) * stride]));
    TernaryMatrix::new(matrix.rows(), matrix.cols(), codes.into(), Scale::Tensor(scale))
}

fn each_row(matrix: &DenseMatrix, mut f: impl FnMut(usize, &[f32])) {
    let mut row = vec![0.0; matrix.cols()];
    for r in 0..matrix.rows() {
        dequantize_row(matrix.dtype(), matrix.row(r), &mut row);
        f(r, &row);
    }
}
