//! Optimizers over all parameters at once, which lie one behind the other.

mod muon;

use crate::ops::{self, View, ViewMut};
use crate::{Array, Ops, Parameter, Parameters};
use bitnet_cpu::{CpuTraining, Terms};

/// Elements that a thread works on at a time. For the norm of a gradient it decides the order of a sum.
const PIECE: usize = 1 << 15;

/// What becomes of a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Adam (arXiv 1412.6980), with weight decay beside it (arXiv 1711.05101): `p *= 1 - lr wd` before the step.
    AdamW(Adam),
    /// Adam with weight decay in the gradient: `g + wd p`.
    Adam(Adam),
    /// `buffer = momentum * buffer + g`, `p -= lr * buffer`, or with Nesterov's look ahead `p -= lr * (g + momentum * buffer)`. Weight decay
    /// is beside it, as in AdamW.
    Sgd {
        /// Decay of the buffer.
        momentum: f64,
        /// Whether to look ahead.
        nesterov: bool,
    },
    /// SGD with Nesterov's momentum for the matrices of projections, each made orthogonal before the step and as large as AdamW's would be;
    /// AdamW for all other parameters. Weight decay is beside both.
    Muon {
        /// Decay of the projections' buffer.
        momentum: f64,
        /// For the others.
        adam: Adam,
        /// Of the products that make matrices orthogonal.
        terms: Terms,
    },
}

/// Settings of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Decay of both averages.
    pub betas: (f64, f64),
    /// Added to the root of the second.
    pub eps: f64,
}

/// What a step is taken with.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Learning rate.
    pub rate: f64,
    /// Weight decay of matrices; norms and steps have none.
    pub decay: f64,
    /// What gradients are multiplied with: see [`clip`].
    pub scale: f32,
    /// The number of the step, counted from 1.
    pub step: u64,
}

impl Optimizer {
    /// How many buffers of the parameters' size it keeps.
    pub fn buffers(&self) -> usize {
        self.names().len()
    }

    /// Names of the buffers in checkpoints. What is momentum for projections in Muon is Adam's first average for the others.
    pub(crate) fn names(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW(_) | Self::Adam(_) | Self::Muon { .. } => &["exp_avg", "exp_avg_sq"],
            Self::Sgd { .. } => &["momentum_buffer"],
        }
    }

    /// Whether one of the buffers is used for a parameter.
    pub(crate) fn keeps(&self, buffer: usize, parameter: &Parameter) -> bool {
        !matches!(self, Self::Muon { .. }) || buffer == 0 || !is_hidden_matrix(parameter)
    }

    /// Takes a step of what is trained of `values`, with `gradients` and the buffers of the steps before (zero at first), which are of its size.
    pub fn step(
        &self,
        ops: &Ops,
        parameters: &Parameters,
        rates: Rates,
        values: &mut Array,
        gradients: &Array,
        buffers: &mut [Array],
    ) {
        for parameter in parameters.trained() {
            let (own, range) = (parameter.range.clone(), parameters.of_trained(parameter));
            let rates = Rates { decay: if parameter.is_matrix() { rates.decay } else { 0.0 }, ..rates };
            let matrix = is_hidden_matrix(parameter).then_some((parameter.slot.rows, parameter.slot.cols));
            let buffers = buffers.iter_mut().map(|b| b.part_mut(range.clone())).collect();
            self.apply(ops, rates, matrix, values.part_mut(own), gradients.part(range), buffers);
        }
    }

    /// A step of one parameter; `matrix` are the rows and columns of a projection.
    pub(crate) fn apply(
        &self,
        ops: &Ops,
        rates: Rates,
        matrix: Option<(usize, usize)>,
        mut values: ViewMut<'_>,
        gradients: View<'_>,
        mut buffers: Vec<ViewMut<'_>>,
    ) {
        let mut rest = buffers.drain(..);
        let mut first = rest.next().expect("every optimizer has a buffer");
        let mut second = || rest.next().expect("Adam has two buffers");
        match (*self, matrix) {
            (Self::AdamW(adam), _) | (Self::Muon { adam, .. }, None) => {
                let keep = (1.0 - rates.rate * rates.decay) as f32;
                adam.apply(ops, rates, (keep, 0.0), values, gradients, (first, second()));
            }
            (Self::Adam(adam), _) => {
                adam.apply(ops, rates, (1.0, rates.decay as f32), values, gradients, (first, second()));
            }
            (Self::Sgd { momentum, nesterov }, _) => {
                sgd(ops, rates, (momentum, nesterov), values, gradients, first);
            }
            (Self::Muon { momentum, terms, .. }, Some(sizes)) => {
                let (momentum, scale) = (momentum as f32, rates.scale);
                let mut along = vec![0.0; gradients.len()];
                for ((along, buffer), g) in along.iter_mut().zip(first.host()).zip(gradients.host()) {
                    let g = g * scale;
                    *buffer = momentum * *buffer + g;
                    *along = g + momentum * *buffer;
                }
                muon::orthogonal(ops, terms, &mut along, sizes);
                let (keep, rate) = ((1.0 - rates.rate * rates.decay) as f32, rates.rate as f32);
                values.host().iter_mut().zip(&along).for_each(|(p, along)| *p = *p * keep - rate * along);
            }
        }
    }
}

/// Whether Muon is for a parameter: matrices inside layers.
fn is_hidden_matrix(parameter: &Parameter) -> bool {
    parameter.is_matrix() && parameter.slot.role.is_projection()
}

impl Adam {
    /// A step of values, multiplied with the first of `decay` before it; the second, times the values, is added to gradients.
    fn apply(
        self,
        ops: &Ops,
        rates: Rates,
        (keep, pull): (f32, f32),
        mut values: ViewMut<'_>,
        gradients: View<'_>,
        (mut first, mut second): (ViewMut<'_>, ViewMut<'_>),
    ) {
        let Self { betas: (b1, b2), eps } = self;
        let (scale, steps) = (rates.scale, rates.step.min(1 << 30) as i32);
        let correction = |b: f64| 1.0 - libm::pow(b, f64::from(steps));
        let (step, root) = ((rates.rate / correction(b1)) as f32, libm::sqrt(correction(b2)) as f32);
        let (rest1, rest2) = ((1.0 - b1) as f32, (1.0 - b2) as f32);
        let (b1, b2, eps) = (b1 as f32, b2 as f32, eps as f32);
        let numbers =
            ops::Adam { scale, pull, keep, step, root, first: (b1, rest1), second: (b2, rest2), eps };
        if ops.adam(&numbers, values.again(), gradients.clone(), first.again(), second.again()) {
            return;
        }
        let (first, second) = (first.host(), second.host());
        let pieces =
            values.host().chunks_mut(PIECE).zip(first.chunks_mut(PIECE)).zip(second.chunks_mut(PIECE));
        let mut pieces: Vec<_> = pieces.zip(gradients.host().chunks(PIECE)).collect();
        ops.chunks(&mut pieces, 1, &|_, piece| {
            let (((p, m), v), g) = &mut piece[0];
            for (((p, m), v), g) in p.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(g.iter()) {
                let g = g * scale + pull * *p;
                *m = b1 * *m + rest1 * g;
                *v = b2 * *v + rest2 * (g * g);
                *p = *p * keep - step * (*m / (v.sqrt() / root + eps));
            }
        });
    }
}

fn sgd(
    ops: &Ops,
    rates: Rates,
    (momentum, nesterov): (f64, bool),
    mut values: ViewMut<'_>,
    gradients: View<'_>,
    mut buffer: ViewMut<'_>,
) {
    let keep = (1.0 - rates.rate * rates.decay) as f32;
    let (momentum, rate, scale) = (momentum as f32, rates.rate as f32, rates.scale);
    let numbers = ops::Sgd { scale, momentum, keep, rate, nesterov };
    if ops.sgd(&numbers, values.again(), gradients.clone(), buffer.again()) {
        return;
    }
    let pieces = values.host().chunks_mut(PIECE).zip(buffer.host().chunks_mut(PIECE));
    let mut pieces: Vec<_> = pieces.zip(gradients.host().chunks(PIECE)).collect();
    ops.chunks(&mut pieces, 1, &|_, piece| {
        let ((p, buffer), g) = &mut piece[0];
        for ((p, buffer), g) in p.iter_mut().zip(buffer.iter_mut()).zip(g.iter()) {
            let g = g * scale;
            *buffer = momentum * *buffer + g;
            let along = if nesterov { g + momentum * *buffer } else { *buffer };
            *p = *p * keep - rate * along;
        }
    });
}

/// The L2 norm of all gradients, summed in double precision.
pub fn norm(ops: &CpuTraining, gradients: &[f32]) -> f64 {
    let mut sums = vec![0.0f64; gradients.len().div_ceil(PIECE)];
    ops.chunks(&mut sums, 1, &|i, sum| {
        let piece = &gradients[i * PIECE..gradients.len().min((i + 1) * PIECE)];
        let mut lanes = [0.0f64; 16];
        for block in piece.chunks(16) {
            lanes.iter_mut().zip(block).for_each(|(lane, g)| *lane += f64::from(*g) * f64::from(*g));
        }
        sum[0] = lanes.iter().sum();
    });
    libm::sqrt(sums.iter().sum())
}

/// What gradients are multiplied with so that their norm is at most `max`: `min(1, max / (norm + 1e-6))`.
pub fn clip(norm: f64, max: Option<f64>) -> f32 {
    max.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0)) as f32
}

#[cfg(test)]
mod tests;
