//! BitLinear: projections with quantized weights and inputs, forward and back.

use super::Model;
use super::frozen::Rows;
use super::state::Input;
use crate::Array;
use crate::ops::{Factor, Side, Store, Target, View};
use crate::parameters::LowRank;
use crate::quantizer::hadamard;
use bitnet_cpu::Terms;
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
    pub(super) fn linear(&self, input: &Input, place: usize, y: &mut Array, at: Place) {
        self.plain(input, place, y, at);
        self.rescale(place, y, at);
    }

    /// The same before rows have their magnitudes.
    pub(super) fn plain(&self, input: &Input, place: usize, y: &mut Array, at: Place) {
        let slot = self.parameters.list()[place].slot;
        let (n, k, m) = (slot.rows, slot.cols, y.len() / at.stride);
        match (input.codes(), self.trits(place)) {
            (Some(x), Some(w)) if !self.ops.is_on_device() => {
                let target = bitnet_cpu::Target { values: y, stride: at.stride, first: at.first };
                self.ops.bitlinear(x.on_cpu(), w, target);
            }
            _ => {
                let (tokens, factors) = input.tokens(k);
                self.weights(place, &mut |Rows { range, values, scales }| {
                    let scales = scales.map_or(Factor::Value(1.0), Factor::scales);
                    let store = match &factors {
                        Some(d) => Store::SetRows(d.clone(), scales),
                        None => Store::Set(scales),
                    };
                    let target =
                        Target { values: (&mut *y).into(), stride: at.stride, first: at.first + range.start };
                    self.product((m, range.len(), k), tokens.clone(), Side::rows(values, k), store, target);
                });
            }
        }
        if let Some(adapter) = self.low_rank[place].filter(|_| !self.rounds()) {
            let inner = self.inner(&self.adapter_input(input, place, k), adapter, m, k);
            let rank = self.rank(adapter);
            let target = Target { values: y.into(), stride: at.stride, first: at.first };
            let (rows, b) = (Side::rows(&inner, rank), Side::rows(self.value(adapter.b), rank));
            self.product((m, n, rank), rows, b, Store::Add(Factor::Value(adapter.scale)), target);
        }
    }

    pub(super) fn rank(&self, adapter: LowRank) -> usize {
        self.parameters.list()[adapter.a].slot.rows
    }

    /// What an adapter sees of an input: as it was before it was quantized, but for what is left out.
    fn adapter_input<'a>(&self, input: &'a Input, place: usize, k: usize) -> Cow<'a, Array> {
        let Some(dropout) = &self.dropout else { return Cow::Borrowed(&input.float) };
        let mut x = input.float.clone();
        dropout.apply(&self.ops, place, &mut x, k);
        Cow::Owned(x)
    }

    /// `x A^T [m, rank]` of what an adapter sees.
    fn inner(&self, x: &Array, adapter: LowRank, m: usize, k: usize) -> Array {
        let rank = self.rank(adapter);
        let mut inner = Array::default();
        let target = Target::whole(inner.sized(m * rank), rank);
        let a = Side::rows(self.value(adapter.a), k);
        self.product((m, rank, k), Side::rows(x, k), a, Store::Set(Factor::Value(1.0)), target);
        inner
    }

    /// Gradients of [`Model::linear`] from `dy`: the weights' are added to the parameters', the input's set in `dx [m, k]`, or added to it.
    /// Both are those of the quantized values: `dx = dy W~`, `dW = dy^T x~`. An adapter's go through the input as it was.
    pub(super) fn linear_backward(
        &mut self,
        input: &Input,
        place: usize,
        dy: &Array,
        at: Place,
        add: bool,
        dx: &mut Array,
    ) {
        let slot = self.parameters.list()[place].slot;
        let (n, k, m) = (slot.rows, slot.cols, dy.len() / at.stride);
        let rescaled = self.rescale_backward(input, place, dy, at);
        let (dy, at) = match &rescaled {
            Some(dy) => (dy, Place { stride: n, first: 0 }),
            None => (dy, at),
        };
        self.weights(place, &mut |Rows { range, values, scales }| {
            let mut weights = Side::columns(values, k);
            let mut scale = Factor::Value(1.0);
            match scales {
                Some(scales) if scales.len() == 1 => scale = Factor::One(scales.into()),
                Some(scales) => weights = weights.scaled(scales.into()),
                None => {}
            }
            let store = match range.start {
                _ if add => Store::Add(scale),
                0 => Store::Set(scale),
                _ => Store::Continue,
            };
            let dy = Side::rows(View::from(dy).skip(at.first + range.start), at.stride);
            self.product((m, k, range.len()), dy, weights, store, Target::whole(&mut *dx, k));
        });
        if input.hadamard {
            hadamard(&self.ops, dx, k);
        }
        let dy = View::from(dy).skip(at.first);
        let outputs = Side::columns(dy.clone(), at.stride);
        let (ops, terms) = (&self.ops, self.precision.terms);
        if let Some(range) = self.parameters.trained_range(place) {
            let target = Target::whole(self.gradients.part_mut(range), k);
            let (outputs, features) = sides(input, outputs.clone(), k, terms);
            ops.product(terms, (n, k, m), outputs, features, Store::Add(Factor::Value(1.0)), target);
        }
        let Some(adapter) = self.low_rank[place] else { return };
        if self.rounds() {
            return self.rounded_backward(input, place, adapter, outputs, m);
        }
        let x = self.adapter_input(input, place, k);
        let (rank, inner) = (self.rank(adapter), self.inner(&x, adapter, m, k));
        let mut dinner = Array::default();
        let target = Target::whole(dinner.sized(m * rank), rank);
        let scale = Factor::Value(adapter.scale);
        let b = Side::columns(self.value(adapter.b), rank);
        self.product((m, rank, n), Side::rows(dy, at.stride), b, Store::Set(scale.clone()), target);
        let a = Side::columns(self.value(adapter.a), k);
        let rows = Side::rows(&dinner, rank);
        let one = Factor::Value(1.0);
        match &self.dropout {
            None => self.product((m, k, rank), rows, a, Store::Add(one.clone()), Target::whole(dx, k)),
            Some(dropout) => {
                let mut part = Array::default();
                let target = Target::whole(part.sized(m * k), k);
                self.product((m, k, rank), rows, a, Store::Set(one.clone()), target);
                dropout.apply(&self.ops, place, &mut part, k);
                self.ops.add(dx, &part);
            }
        }
        let range = |place| self.parameters.trained_range(place).expect("adapters are trained");
        let (of_a, of_b) = (range(adapter.a), range(adapter.b));
        let (ops, terms) = (&self.ops, self.precision.terms);
        let target = Target::whole(self.gradients.part_mut(of_b), rank);
        ops.product(terms, (n, rank, m), outputs, Side::columns(&inner, rank), Store::Add(scale), target);
        let target = Target::whole(self.gradients.part_mut(of_a), k);
        let (dinner, x) = (Side::columns(&dinner, rank), Side::columns(&*x, k));
        ops.product(terms, (rank, k, m), dinner, x, Store::Add(one), target);
    }
}
