//! BitLinear: projections with quantized weights and inputs, forward and back.

use super::Model;
use super::frozen::Rows;
use super::state::Input;
use crate::parameters::LowRank;
use crate::quantizer::hadamard;
use bitnet_cpu::{Side, Store, Target, Terms, Values};
use std::borrow::Cow;

/// Columns `first..` of rows of `stride` elements.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) stride: usize,
    pub(super) first: usize,
}

/// Both sides of a gradient of weights: outputs' gradients, and inputs as products see them.
pub(super) fn sides<'a>(input: &'a Input, outputs: Side<'a>, k: usize, terms: Terms) -> (Side<'a>, Side<'a>) {
    let (features, factors) = input.features(k);
    // Integers are bf16 as they are, so factors go to what is rounded anyway.
    match (factors, terms) {
        (None, _) => (outputs, features),
        (Some(d), Terms::F32) => (outputs, features.scaled(d)),
        (Some(d), Terms::Bf16) => (outputs.scaled(d), features),
    }
}

impl Model {
    /// A product of the precision that was asked for.
    pub(super) fn product(
        &self,
        sizes: (usize, usize, usize),
        a: Side<'_>,
        b: Side<'_>,
        store: Store<'_>,
        c: Target<'_>,
    ) {
        self.ops.product(self.precision.terms, sizes, a, b, store, c);
    }

    /// `y[m, n] = input * W^T`, written to some columns of `y`. With ternary weights and int8 inputs sums are integers, and the result is
    /// that of inference to the bit.
    pub(super) fn linear(&self, input: &Input, place: usize, y: &mut [f32], at: Place) {
        self.plain(input, place, y, at);
        self.rescale(place, y, at);
    }

    /// The same before rows have their magnitudes.
    pub(super) fn plain(&self, input: &Input, place: usize, y: &mut [f32], at: Place) {
        let slot = self.parameters.list()[place].slot;
        let (n, k, m) = (slot.rows, slot.cols, y.len() / at.stride);
        match (input.codes(), self.trits(place)) {
            (Some(x), Some(w)) => {
                self.ops.bitlinear(x, w, Target { values: y, stride: at.stride, first: at.first });
            }
            _ => {
                let (tokens, factors) = input.tokens(k);
                self.weights(place, &mut |Rows { range, values, scale, scales }| {
                    let store = match (factors, scales) {
                        (Some(d), None) => Store::SetRows(d, scale),
                        _ => Store::Set(scale),
                    };
                    let target = Target { values: &mut *y, stride: at.stride, first: at.first + range.start };
                    self.product((m, range.len(), k), tokens, Side::rows(values, k), store, target);
                    let Some(scales) = scales else { return };
                    self.ops.chunks(y, at.stride, &|token, y| {
                        let d = factors.map_or(1.0, |d| d[token]);
                        y[at.first..][..n].iter_mut().zip(scales).for_each(|(y, scale)| *y *= d * scale);
                    });
                });
            }
        }
        if let Some(adapter) = self.low_rank[place].filter(|_| !self.rounds()) {
            let inner = self.inner(&self.adapter_input(input, place, k), adapter, m, k);
            let rank = self.rank(adapter);
            let target = Target { values: y, stride: at.stride, first: at.first };
            let b = Side::rows(Values::F32(self.value(adapter.b)), rank);
            let rows = Side::rows(Values::F32(&inner), rank);
            self.product((m, n, rank), rows, b, Store::Add(adapter.scale), target);
        }
    }

    pub(super) fn rank(&self, adapter: LowRank) -> usize {
        self.parameters.list()[adapter.a].slot.rows
    }

    /// What an adapter sees of an input: as it was before it was quantized, but for what is left out.
    fn adapter_input<'a>(&self, input: &'a Input, place: usize, k: usize) -> Cow<'a, [f32]> {
        let Some(dropout) = &self.dropout else { return Cow::Borrowed(&input.float) };
        let mut x = input.float.clone();
        dropout.apply(&self.ops, place, &mut x, k);
        Cow::Owned(x)
    }

    /// `x A^T [m, rank]` of what an adapter sees.
    fn inner(&self, x: &[f32], adapter: LowRank, m: usize, k: usize) -> Vec<f32> {
        let rank = self.rank(adapter);
        let mut inner = vec![0.0; m * rank];
        let a = Side::rows(Values::F32(self.value(adapter.a)), k);
        let x = Side::rows(Values::F32(x), k);
        let target = Target { values: &mut inner, stride: rank, first: 0 };
        self.product((m, rank, k), x, a, Store::Set(1.0), target);
        inner
    }

    /// Gradients of [`Model::linear`] from `dy`: the weights' are added to the parameters', the input's set in `dx [m, k]`, or added to it.
    /// Both are those of the quantized values: `dx = dy W~`, `dW = dy^T x~`. An adapter's go through the input as it was.
    pub(super) fn linear_backward(
        &mut self,
        input: &Input,
        place: usize,
        dy: &[f32],
        at: Place,
        add: bool,
        dx: &mut [f32],
    ) {
        let slot = self.parameters.list()[place].slot;
        let (n, k, m) = (slot.rows, slot.cols, dy.len() / at.stride);
        let rescaled = self.rescale_backward(input, place, dy, at);
        let (dy, at) = match &rescaled {
            Some(dy) => (&dy[..], Place { stride: n, first: 0 }),
            None => (dy, at),
        };
        self.weights(place, &mut |Rows { range, values, scale, scales }| {
            let mut weights = Side::columns(values, k);
            if let Some(scales) = scales {
                weights = weights.scaled(scales);
            }
            let store = match range.start {
                _ if add => Store::Add(scale),
                0 => Store::Set(scale),
                _ => Store::Continue,
            };
            let dy = Side::rows(Values::F32(&dy[at.first + range.start..]), at.stride);
            let target = Target { values: &mut *dx, stride: k, first: 0 };
            self.product((m, k, range.len()), dy, weights, store, target);
        });
        let dy = Values::F32(&dy[at.first..]);
        if input.hadamard {
            hadamard(&self.ops, dx, k);
        }
        let outputs = Side::columns(dy, at.stride);
        if let Some(range) = self.parameters.trained_range(place) {
            let (ops, terms) = (&self.ops, self.precision.terms);
            let target = Target { values: &mut self.gradients[range], stride: k, first: 0 };
            let (outputs, features) = sides(input, outputs, k, terms);
            ops.product(terms, (n, k, m), outputs, features, Store::Add(1.0), target);
        }
        let Some(adapter) = self.low_rank[place] else { return };
        if self.rounds() {
            return self.rounded_backward(input, place, adapter, outputs, m);
        }
        let x = self.adapter_input(input, place, k);
        let (rank, inner) = (self.rank(adapter), self.inner(&x, adapter, m, k));
        let mut dinner = vec![0.0; m * rank];
        let target = Target { values: &mut dinner, stride: rank, first: 0 };
        let b = Side::columns(Values::F32(self.value(adapter.b)), rank);
        self.product((m, rank, n), Side::rows(dy, at.stride), b, Store::Set(adapter.scale), target);
        let a = Side::columns(Values::F32(self.value(adapter.a)), k);
        let rows = Side::rows(Values::F32(&dinner), rank);
        match &self.dropout {
            None => {
                let target = Target { values: dx, stride: k, first: 0 };
                self.product((m, k, rank), rows, a, Store::Add(1.0), target);
            }
            Some(dropout) => {
                let mut part = vec![0.0; m * k];
                let target = Target { values: &mut part, stride: k, first: 0 };
                self.product((m, k, rank), rows, a, Store::Set(1.0), target);
                dropout.apply(&self.ops, place, &mut part, k);
                dx.iter_mut().zip(&part).for_each(|(dx, part)| *dx += part);
            }
        }
        let range = |place| self.parameters.trained_range(place).expect("adapters are trained");
        let (of_a, of_b) = (range(adapter.a), range(adapter.b));
        let (ops, terms) = (&self.ops, self.precision.terms);
        let target = Target { values: &mut self.gradients[of_b], stride: rank, first: 0 };
        let inner = Side::columns(Values::F32(&inner), rank);
        ops.product(terms, (n, rank, m), outputs, inner, Store::Add(adapter.scale), target);
        let target = Target { values: &mut self.gradients[of_a], stride: k, first: 0 };
        let x = Side::columns(Values::F32(&x), k);
        ops.product(
            terms,
            (rank, k, m),
            Side::columns(Values::F32(&dinner), rank),
            x,
            Store::Add(1.0),
            target,
        );
    }
}
