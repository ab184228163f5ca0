//! Head and loss, some tokens at a time: logits of all of them are never there at once.

use super::Model;
use super::distill::{Distillation, Losses};
use super::forward::sized;
use crate::Batch;
use bitnet_cpu::{Norm, Side, Store, Target, Values};

/// Floats of logits at a time: 64 MiB. Each time all of a large head is read, twice.
const LOGITS: usize = 1 << 24;
/// The most tokens at a time.
const TOKENS: usize = 512;

impl Model {
    /// Logits `[count, vocab]` of tokens behind the final norm.
    pub(super) fn logits(&self, tokens: Side<'_>, logits: &mut [f32], count: usize) {
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        self.parts(self.table(), &mut |ids, head| {
            let target = Target { values: &mut *logits, stride: vocab, first: ids.start };
            let head = Side::rows(Values::F32(head), hidden);
            self.product((count, ids.len(), hidden), tokens, head, Store::Set(1.0), target);
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
        let dx = sized(&mut room.input, if back { m * hidden } else { 0 });
        let step = (LOGITS / vocab).clamp(1, TOKENS);
        let mut divergence = 0.0;
        for from in (0..m).step_by(step) {
            let count = step.min(m - from);
            let x = &x[from * hidden..(from + count) * hidden];
            let logits = sized(&mut room.logits, count * vocab);
            let tokens = Side::rows(Values::F32(x), hidden);
            self.logits(tokens, logits, count);
            let (targets, counts) = (&batch.targets[from..from + count], &batch.counts[from..from + count]);
            let weights = &weights[from..from + count];
            let beside = beside.filter(|(_, how)| how.logits > 0.0);
            if let Some((teacher, how)) = beside {
                room.pair.student.clear();
                room.pair.student.extend_from_slice(logits);
                divergence +=
                    self.soften(teacher, how, from..from + count, (counts, weights), &mut room.pair);
            }
            self.ops.cross_entropy(logits, targets, &of_loss[from..from + count], &mut |i, loss| {
                each(from + i, loss)
            });
            if beside.is_some() {
                logits.iter_mut().zip(&room.pair.student).for_each(|(all, soft)| *all += soft);
            }
            if !back {
                continue;
            }
            let dx = &mut dx[from * hidden..(from + count) * hidden];
            self.parts(place, &mut |ids, head| {
                let store = if ids.start == 0 { Store::Set(1.0) } else { Store::Continue };
                let dlogits = Side::rows(Values::F32(&logits[ids.start..]), vocab);
                let columns = Side::columns(Values::F32(head), hidden);
                let target = Target { values: &mut *dx, stride: hidden, first: 0 };
                self.product((count, hidden, ids.len()), dlogits, columns, store, target);
            });
            let dlogits = Values::F32(logits);
            let Some(range) = self.parameters.trained_range(place) else { continue };
            let (ops, terms) = (&self.ops, self.precision.terms);
            let target = Target { values: &mut self.gradients[range], stride: hidden, first: 0 };
            let features = Side::columns(Values::F32(x), hidden);
            let ids = Side::columns(dlogits, vocab);
            ops.product(terms, (vocab, hidden, count), ids, features, Store::Add(1.0), target);
        }
        if back {
            let range = self.parameters.list()[self.final_norm].range.clone();
            let dh = sized(&mut room.h, m * hidden);
            let norm = Norm { x: &h, w: &self.values[range], eps: self.config.eps };
            let dw = self.parameters.trained_range(self.final_norm).map(|range| &mut self.gradients[range]);
            self.ops.rms_norm_backward(norm, dx, false, dh, dw);
        }
        self.room = room;
        self.last = (h, x);
        divergence
    }
}
