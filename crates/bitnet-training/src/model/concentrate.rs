//! Objectives beside the loss: few weights and few activations that are not zero.
//!
//! What is made small is the ratio of the 1-norm of a vector to its 2-norm, divided by the root of its length: 1 when all magnitudes are
//! equal, near 0 when few elements have all of the weight (Hoyer, JMLR 5, 2004). It does not depend on the vector's scale, and neither do trits.

use super::Model;
use crate::Array;
use bitnet_cpu::CpuTraining;

/// Elements that a thread sums at a time. It decides the order of sums.
const PIECE: usize = 1 << 14;

/// What a run makes small, each times its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objectives {
    /// The cross-entropy of targets, or the loss of pairs.
    pub loss: f64,
    /// The mean concentration of projections' master weights: more trits become zero, and what is stored can be packed smaller.
    pub size: f64,
    /// The mean concentration, over layers and tokens, of what goes into down projections: fewer columns of them are read.
    pub sparsity: f64,
}

impl Default for Objectives {
    fn default() -> Self {
        Self { loss: 1.0, size: 0.0, sparsity: 0.0 }
    }
}

/// Norms of a vector.
#[derive(Clone, Copy, Default)]
struct Norms {
    one: f64,
    square: f64,
}

impl Norms {
    fn of(x: &[f32]) -> Self {
        x.iter().fold(Self::default(), |n, x| {
            let x = f64::from(*x);
            Self { one: n.one + x.abs(), square: n.square + x * x }
        })
    }

    fn add(self, other: Self) -> Self {
        Self { one: self.one + other.one, square: self.square + other.square }
    }

    /// Of a vector of `len` elements; 0 of one that is zero.
    fn ratio(self, len: usize) -> f64 {
        if self.square > 0.0 { self.one / libm::sqrt(self.square * len as f64) } else { 0.0 }
    }

    /// Adds to `d` the gradient of `weight * ratio` at a part `x` of the vector.
    fn slope(self, len: usize, weight: f64, x: &[f32], d: &mut [f32]) {
        if self.square <= 0.0 {
            return;
        }
        let factor = weight / libm::sqrt(self.square * len as f64);
        let (sign, pull) = (factor as f32, (factor * self.one / self.square) as f32);
        for (d, x) in d.iter_mut().zip(x) {
            let along = if *x == 0.0 { 0.0 } else { sign.copysign(*x) };
            *d += along - pull * x;
        }
    }
}

/// The sum of concentrations of the rows of `x [m, n]`, whose gradient, times `weight`, is added to `d [m, n]`.
pub(super) fn rows(ops: &CpuTraining, x: &[f32], n: usize, weight: f64, d: &mut [f32]) -> f64 {
    let mut norms = vec![Norms::default(); x.len() / n];
    ops.chunks(&mut norms, 1, &|row, norms| norms[0] = Norms::of(&x[row * n..][..n]));
    ops.chunks(d, n, &|row, d| norms[row].slope(n, weight, &x[row * n..][..n], d));
    norms.iter().map(|norms| norms.ratio(n)).sum()
}

/// The concentration of a vector, whose gradient, times `weight`, is added to `d`.
fn whole(ops: &CpuTraining, x: &[f32], weight: f64, d: &mut [f32]) -> f64 {
    let mut parts = vec![Norms::default(); x.len().div_ceil(PIECE)];
    let piece = |i: usize| &x[i * PIECE..x.len().min((i + 1) * PIECE)];
    ops.chunks(&mut parts, 1, &|i, part| part[0] = Norms::of(piece(i)));
    let norms = parts.into_iter().fold(Norms::default(), Norms::add);
    ops.chunks(d, PIECE, &|i, d| norms.slope(x.len(), weight, piece(i), d));
    norms.ratio(x.len())
}

impl Model {
    /// What passes from here on make small; concentrations of activations are averaged over so many tokens, those of a step.
    pub fn set_objectives(&mut self, objectives: Objectives, tokens: usize) {
        self.objectives = objectives;
        self.activations = Activity { tokens, sum: 0.0 };
    }

    /// The mean concentration of activations in the passes back since [`Model::set_objectives`]; 0 where nothing is made of it.
    pub fn activation_concentration(&self) -> f64 {
        let all = self.config.layers * self.activations.tokens;
        self.activations.sum / all.max(1) as f64
    }

    /// Adds to the gradients of master weights those of their concentration, and gives its mean over projections.
    pub fn concentrate_weights(&mut self) -> f64 {
        let weight = self.objectives.size;
        let matrices: Vec<_> = (self.parameters.list().iter().enumerate())
            .filter(|(_, p)| p.quantized)
            .filter_map(|(place, p)| Some((p.range.clone(), self.parameters.trained_range(place)?)))
            .collect();
        if weight == 0.0 || matrices.is_empty() {
            return 0.0;
        }
        let count = matrices.len() as f64;
        let sum: f64 = matrices
            .into_iter()
            .map(|(own, range)| {
                whole(&self.ops, &self.values[own], weight / count, &mut self.gradients[range])
            })
            .sum();
        sum / count
    }

    /// The same of the activations that go into a down projection, `[m, ffn]`, whose gradients are `d`.
    pub(super) fn concentrate_activations(&mut self, gated: &Array, d: &mut Array) {
        let weight = self.objectives.sparsity;
        if weight > 0.0 {
            let all = self.config.layers * self.activations.tokens;
            self.activations.sum += rows(&self.ops, gated, self.config.ffn, weight / all.max(1) as f64, d);
        }
    }
}

/// Concentrations of activations that were seen.
#[derive(Clone, Copy, Default)]
pub(super) struct Activity {
    tokens: usize,
    sum: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_slopes_and_scale_does_not_matter() {
        let ops = CpuTraining::new(None, Some(2)).unwrap();
        let normal = |stream| move |i: usize| crate::random::normal(7, stream, i as u64) as f32;
        let (n, len) = (3000, 2 * PIECE + 3000);
        let x: Vec<f32> = (0..len - len % n).map(normal(1)).map(|x| if x > -0.5 { x } else { 0.0 }).collect();
        let along: Vec<f32> =
            x.iter().enumerate().map(|(i, x)| if *x == 0.0 { 0.0 } else { normal(2)(i) }).collect();
        let moved = |h: f32| -> Vec<f32> { x.iter().zip(&along).map(|(x, a)| x + h * a).collect() };
        type Value = fn(&CpuTraining, &[f32], f64, &mut [f32]) -> f64;
        let by_rows: Value = |ops, x, weight, d| rows(ops, x, 3000, weight, d);
        for value in [by_rows, whole] {
            let of = |x: &[f32]| value(&ops, x, 0.0, &mut vec![0.0; x.len()]);
            let mut d = vec![1.0; x.len()];
            assert_eq!(value(&ops, &x, 1e3, &mut d), of(&x));
            let h = 1e-4;
            let slope = 1e3 * (of(&moved(h)) - of(&moved(-h))) / f64::from(2.0 * h);
            let got: f64 = d.iter().zip(&along).map(|(d, a)| f64::from(d - 1.0) * f64::from(*a)).sum();
            assert!((slope - got).abs() < 1e-2 * slope.abs().max(1.0), "{slope} {got}");
            let doubled: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
            assert_eq!(of(&doubled), of(&x));
        }
        // All magnitudes equal, one element alone, and nothing at all.
        let of = |x: &[f32]| whole(&ops, x, 1.0, &mut vec![0.0; x.len()]);
        assert_eq!((of(&[2.0, -2.0, 2.0, 2.0]), of(&[0.0, 3.0, 0.0, 0.0]), of(&[0.0; 4])), (1.0, 0.5, 0.0));
    }
}
