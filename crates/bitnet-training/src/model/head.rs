//! Head and loss, some tokens at a time: logits of all of them are never there at once.

use super::Model;
use super::distill::{Distillation, Losses};
use crate::ops::{Factor, Side, Store, Target, View};
use crate::{Array, Batch};

/// Floats of logits at a time: 64 MiB. Each time all of a large head is read, twice.
const LOGITS: usize = 1 << 24;
/// The most tokens at a time.
const TOKENS: usize = 512;

impl Model {
    /// Logits `[count, vocab]` of tokens behind the final norm.
    pub(super) fn logits(&self, tokens: Side<'_>, logits: &mut Array, count: usize) {
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        self.parts(self.table(), &mut |ids, head| {
            let target = Target { values: (&mut *logits).into(), stride: vocab, first: ids.start };
            let head = Side::rows(head, hidden);
            let store = Store::Set(Factor::Value(1.0));
            self.product((count, ids.len(), hidden), tokens.clone(), head, store, target);
        });
    }

    /// The sum of cross-entropies in nats of the counted targets; with `back`, the gradient of that sum divided by `total` is added to the
    /// head's and the final norm's gradients, and set as that of the residual stream.
    pub(super) fn head_loss(&mut self, batch: &Batch, total: usize, back: bool) -> f64 {
        self.head_losses(batch, total, back, None).targets
    }

    /// The same, and with a teacher what is learned from its logits.
    pub(super) fn head_losses(
        &mut self,
        batch: &Batch,
        total: usize,
        back: bool,
        beside: Option<(&Self, &Distillation)>,
    ) -> Losses {
        let weight = 1.0 / total.max(1) as f32;
        let weights: Vec<f32> = batch.counts.iter().map(|c| if *c { weight } else { 0.0 }).collect();
        let mut targets = 0.0;
        let each = &mut |i: usize, loss| targets += if batch.counts[i] { loss } else { 0.0 };
        let logits = self.head(batch, &weights, back, beside, each);
        Losses { targets, logits, ..Losses::default() }
    }

    /// Gives the cross-entropy in nats of every target through `each`, in their order; with `back`, the gradient of their sum, each times its
    /// weight, goes where [`Model::head_loss`] says. With a teacher, the sum of what is learned from its logits.
    pub(super) fn head(
        &mut self,
        batch: &Batch,
        weights: &[f32],
        back: bool,
        beside: Option<(&Self, &Distillation)>,
        each: &mut dyn FnMut(usize, f64),
    ) -> f64 {
        let (m, hidden, vocab) = (batch.ids.len(), self.config.hidden, self.config.vocab);
        let place = self.table();
        let of_loss: Vec<f32> = weights.iter().map(|w| w * self.objectives.loss as f32).collect();
        let (h, x) = std::mem::take(&mut self.last);
        let mut room = std::mem::take(&mut self.room);
        let dx = room.input.sized(if back { m * hidden } else { 0 });
        let mut parts = Array::from(vec![0.0; m * 3]);
        let step = (LOGITS / vocab).clamp(1, TOKENS);
        let mut divergence = 0.0;
        for from in (0..m).step_by(step) {
            let count = step.min(m - from);
            let x = x.part(from * hidden..(from + count) * hidden);
            let logits = room.logits.sized(count * vocab);
            self.logits(Side::rows(x.clone(), hidden), logits, count);
            let (targets, counts) = (&batch.targets[from..from + count], &batch.counts[from..from + count]);
            let weights = &weights[from..from + count];
            let beside = beside.filter(|(_, how)| how.logits > 0.0);
            if let Some((teacher, how)) = beside {
                self.ops.copy(logits, &mut room.pair.student);
                divergence +=
                    self.soften(teacher, how, from..from + count, (counts, weights), &mut room.pair);
            }
            let own = parts.part_mut(from * 3..(from + count) * 3);
            self.ops.cross_entropy(logits, targets, &of_loss[from..from + count], own);
            if beside.is_some() {
                self.ops.add(logits, &room.pair.student);
            }
            if !back {
                continue;
            }
            self.parts(place, &mut |ids, head| {
                let store = if ids.start == 0 { Store::Set(Factor::Value(1.0)) } else { Store::Continue };
                let dlogits = Side::rows(View::from(&*logits).skip(ids.start), vocab);
                let target = Target::whole(dx.part_mut(from * hidden..(from + count) * hidden), hidden);
                self.product((count, hidden, ids.len()), dlogits, Side::columns(head, hidden), store, target);
            });
            let Some(range) = self.parameters.trained_range(place) else { continue };
            let (ops, terms) = (&self.ops, self.precision.terms);
            let target = Target::whole(self.gradients.part_mut(range), hidden);
            let (ids, features) = (Side::columns(&*logits, vocab), Side::columns(x, hidden));
            ops.product(terms, (vocab, hidden, count), ids, features, Store::Add(Factor::Value(1.0)), target);
        }
        if back {
            let dh = room.h.sized(m * hidden);
            self.norm_backward(self.final_norm, &h, self.config.eps, dx, false, dh);
        }
        for (i, part) in parts.as_chunks::<3>().0.iter().enumerate() {
            let [max, sum, wanted] = part.map(f64::from);
            each(i, libm::log(sum) + max - wanted);
        }
        self.room = room;
        self.last = (h, x);
        divergence
    }
}
