//! Magnitudes of rows (DoRA, arXiv 2402.09353): a projection with an adapter gives `m / |W + s B A|` times what it gives without them, row by
//! row. As in the paper, the length in the denominator counts as a constant on the way back. What dropout leaves out is left out of
//! the adapter's input alone.

use super::Model;
use super::frozen::Rows;
use super::linear::Place;
use super::state::Input;
use crate::Array;
use crate::ops::{Factor, Side, Store, Target};
use crate::parameters::{LowRank, Part};
use bitnet_cpu::Terms;

/// Columns whose gradients a thread sums at a time.
const PIECE: usize = 64;

/// Rows of a projection's weights, and of their sum with an adapter.
#[derive(Default)]
pub(super) struct Lengths {
    /// Squares of the lengths of the weights' own rows.
    squares: Vec<f64>,
    /// Lengths of the sum's rows at the last [`Model::measure`].
    sum: Vec<f32>,
}

impl Model {
    /// Magnitudes that change nothing: the lengths of the weights' rows.
    pub(crate) fn begin_magnitudes(&mut self) {
        for place in 0..self.low_rank.len() {
            let Some(magnitude) = self.low_rank[place].and_then(|adapter| adapter.magnitude) else {
                continue;
            };
            let squares = self.squares(place);
            let range = self.parameters.list()[magnitude].range.clone();
            for (m, square) in self.values[range].iter_mut().zip(&squares) {
                *m = libm::sqrt(*square) as f32;
            }
            self.lengths[place].squares = squares;
        }
    }

    /// Measures the rows of all sums with their present adapters.
    pub(super) fn measure(&mut self) {
        for place in 0..self.low_rank.len() {
            let Some(adapter) = self.low_rank[place].filter(|adapter| adapter.magnitude.is_some()) else {
                continue;
            };
            if self.lengths[place].squares.is_empty() {
                self.lengths[place].squares = self.squares(place);
            }
            self.lengths[place].sum = self.sums(place, adapter);
        }
    }

    /// Squares of the lengths of a projection's rows.
    fn squares(&self, place: usize) -> Vec<f64> {
        let slot = self.parameters.list()[place].slot;
        let mut squares = vec![0.0; slot.rows];
        self.ops.chunks(&mut squares, 1, &|row, square| {
            let mut values = vec![0.0; slot.cols];
            self.row(place, row, &mut values);
            square[0] = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        });
        squares
    }

    /// Lengths of the rows of `W + s B A`: `|W|^2 + 2 s B (W A^T) + s^2 B (A A^T) B^T`, row by row.
    fn sums(&self, place: usize, adapter: LowRank) -> Vec<f32> {
        let slot = self.parameters.list()[place].slot;
        let (k, rank) = (slot.cols, self.rank(adapter));
        let a = Side::rows(self.value(adapter.a), k);
        let mut along = Array::from(vec![0.0; slot.rows * rank]);
        let mut gram = Array::from(vec![0.0; rank * rank]);
        self.weights(place, &mut |Rows { range, values, scales }| {
            let (scale, scales) = match scales {
                None => (Factor::Value(1.0), None),
                Some(one) if one.len() == 1 => (Factor::One(one.into()), None),
                Some(scales) => (Factor::Value(1.0), Some(scales)),
            };
            let own = range.start * rank..range.end * rank;
            let target = Target::whole(along.part_mut(own), rank);
            let sizes = (range.len(), rank, k);
            self.ops.product(Terms::F32, sizes, Side::rows(values, k), a.clone(), Store::Set(scale), target);
            for (along, scale) in along.chunks_exact_mut(rank).zip(scales.into_iter().flat_map(|s| s.iter()))
            {
                along.iter_mut().for_each(|v| *v *= scale);
            }
        });
        let (target, one) = (Target::whole(&mut gram, rank), Store::Set(Factor::Value(1.0)));
        self.ops.product(Terms::F32, (rank, rank, k), a.clone(), a, one, target);
        let (along, gram) = (&*along, &*gram);
        let (b, s) = (self.value(adapter.b).host(), f64::from(adapter.scale));
        let mut lengths = vec![0.0; slot.rows];
        self.ops.chunks(&mut lengths, 1, &|row, length| {
            let (b, along) = (&b[row * rank..][..rank], &along[row * rank..][..rank]);
            let dot = |x: &[f32], y: &[f32]| {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            let square =
                b.iter().zip(gram.chunks_exact(rank)).map(|(b_i, row)| f64::from(*b_i) * dot(row, b));
            let all =
                self.lengths[place].squares[row] + 2.0 * s * dot(b, along) + s * s * square.sum::<f64>();
            length[0] = libm::sqrt(all.max(0.0)) as f32;
        });
        lengths
    }

    /// What rows of a projection are multiplied with; `None` where they have no magnitudes.
    fn gains(&self, place: usize) -> Option<Vec<f32>> {
        let magnitude = self.value(self.low_rank[place]?.magnitude?).host();
        let lengths = self.lengths[place].sum.iter().zip(magnitude);
        Some(lengths.map(|(length, m)| m / length.max(f32::MIN_POSITIVE)).collect())
    }

    /// Multiplies columns of `y` with the gains of their rows of weights.
    pub(super) fn rescale(&self, place: usize, y: &mut Array, at: Place) {
        let Some(gains) = self.gains(place) else { return };
        self.ops.chunks(y, at.stride, &|_, y| {
            y[at.first..].iter_mut().zip(&gains).for_each(|(y, gain)| *y *= gain);
        });
    }

    /// Adds the gradients of a projection's magnitudes, and gives those of what they rescale, `[m, n]`; `None` where there are no magnitudes.
    pub(super) fn rescale_backward(
        &mut self,
        input: &Input,
        place: usize,
        dy: &Array,
        at: Place,
    ) -> Option<Array> {
        let gains = self.gains(place)?;
        let n = gains.len();
        let mut inner = Array::from(vec![0.0; dy.len() / at.stride * n]);
        self.plain(input, place, &mut inner, Place { stride: n, first: 0 });
        let magnitude = self.parameters.beside(place, Part::Magnitude)?;
        let gradients = &mut self.gradients[self.parameters.trained_range(magnitude)?];
        let (lengths, ops) = (&self.lengths[place].sum, &self.ops);
        let (dy, products) = (&**dy, &*inner);
        ops.chunks(gradients, PIECE, &|piece, gradients| {
            for (i, gradient) in gradients.iter_mut().enumerate() {
                let column = piece * PIECE + i;
                let tokens = dy[at.first..].iter().skip(column).step_by(at.stride);
                let products = products.iter().skip(column).step_by(n);
                let sum: f64 = tokens.zip(products).map(|(dy, y)| f64::from(*dy) * f64::from(*y)).sum();
                *gradient += sum as f32 / lengths[column].max(f32::MIN_POSITIVE);
            }
        });
        ops.chunks(&mut inner, n, &|token, inner| {
            let dy = &dy[token * at.stride + at.first..][..n];
            inner.iter_mut().zip(dy).zip(&gains).for_each(|((inner, dy), gain)| *inner = dy * gain);
        });
        Some(inner)
    }
}

#[cfg(test)]
mod tests;
