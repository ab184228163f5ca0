//! Adapters whose sum with the trits is rounded to trits: weights are `scale * clamp(round(T + s B A))`, and gradients go straight through the
//! rounding, as they do through that of master weights.

use super::linear::sides;
use super::state::Input;
use super::{Frozen, Model};
use crate::ops::{Factor, Side, Store, Target};
use crate::parameters::LowRank;
use crate::trits::rounded;
use crate::{Array, TrainError};

impl Model {
    /// Whether adapters are of this kind.
    pub(super) fn rounds(&self) -> bool {
        self.parameters.adapter().is_some_and(|lora| lora.trits)
    }

    /// Rounds all sums with the present adapters.
    pub(super) fn round(&mut self) -> Result<(), TrainError> {
        for place in 0..self.low_rank.len() {
            let Some(adapter) = self.low_rank[place].filter(|_| self.rounds()) else { continue };
            let p = &self.parameters.list()[place];
            let Some(Frozen::Trits { weights, scales, .. }) =
                self.frozen(place).filter(|f| f.scales().is_some())
            else {
                let what = format!(
                    "lora.trits is true, and {} has no trits with one scale, or one a row; lora.targets can leave it out",
                    p.name
                );
                return Err(TrainError::Data { what });
            };
            let trits = rounded(&self.ops, (&self.parameters, &self.values), weights, adapter);
            let packed = self.ops.prepare((p.slot.rows, p.slot.cols), &trits, scales)?;
            self.prepared[place] = Some(packed);
            self.copies[place].trits.take();
        }
        Ok(())
    }

    /// Gradients of an adapter from those of `m` outputs: `dW = scale * dy^T x`, `dB = s dW A^T`, `dA = s B^T dW`.
    pub(super) fn rounded_backward(
        &mut self,
        input: &Input,
        place: usize,
        adapter: LowRank,
        outputs: Side<'_>,
        m: usize,
    ) {
        let slot = self.parameters.list()[place].slot;
        let (n, k, rank) = (slot.rows, slot.cols, self.rank(adapter));
        let mut dw = Array::default();
        let (outputs, features) = sides(input, outputs, k, self.precision.terms);
        let target = Target::whole(dw.sized(n * k), k);
        self.product((n, k, m), outputs, features, Store::Set(Factor::Value(1.0)), target);
        if let Some(scales) = self.frozen(place).and_then(Frozen::scales) {
            self.ops.chunks(&mut dw, k, &|row, dw| {
                let scale = scales[if scales.len() == 1 { 0 } else { row }];
                dw.iter_mut().for_each(|v| *v *= scale);
            });
        }
        let range = |place| self.parameters.trained_range(place).expect("adapters are trained");
        let (of_a, of_b) = (range(adapter.a), range(adapter.b));
        let value = |place: usize| self.values.part(self.parameters.list()[place].range.clone());
        let (a, b) = (value(adapter.a), value(adapter.b));
        let (ops, terms) = (&self.ops, self.precision.terms);
        let add = Store::Add(Factor::Value(adapter.scale));
        let target = Target::whole(self.gradients.part_mut(of_b), rank);
        ops.product(terms, (n, rank, k), Side::rows(&dw, k), Side::rows(a, k), add.clone(), target);
        let target = Target::whole(self.gradients.part_mut(of_a), k);
        ops.product(terms, (rank, k, n), Side::columns(b, rank), Side::columns(&dw, k), add, target);
    }
}

#[cfg(test)]
mod tests;
