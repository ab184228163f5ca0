//! What a model learns from another one besides targets: its distribution of the next token, and which tokens it finds alike in a layer
//! (BitDistill, arXiv 2510.13998; the relations are MiniLM's, arXiv 2012.15828).

use super::Model;
use crate::{Array, Batch};
use bitnet_cpu::{Side, Store, Target, Terms, Values};
use std::ops::Range;

/// What is learned from a teacher, and how much it weighs beside the cross-entropy of targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// The weight of `KL(teacher || student)` of the counted targets' distributions, a mean over them.
    pub logits: f64,
    /// What logits are divided by first. The divergence is not multiplied with its square.
    pub temperature: f64,
    /// The weight of relations: for queries, keys and values the mean over tokens and heads of `KL(teacher || student)` of the softmax of a
    /// token's likeness to the tokens of its sequence, summed over the three.
    pub relations: f64,
    /// The layer whose queries, keys and values are compared.
    pub layer: usize,
    /// The same of the teacher.
    pub teacher_layer: usize,
    /// Heads that the columns of queries, keys and values are cut into, whatever heads attention has.
    pub heads: usize,
    /// Whether likeness is the cosine; else the dot product over the root of a head's size.
    pub cosine: bool,
    /// Whether tokens are compared with those before them only.
    pub causal: bool,
    /// Whether queries and keys are compared as they are before they are rotated by their positions; else as attention sees them.
    pub unrotated: bool,
}

/// Sums of a batch's losses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Cross-entropies of counted targets, in nats.
    pub targets: f64,
    /// Divergences of counted targets' distributions, not weighted.
    pub logits: f64,
    /// Divergences of relations, summed over tokens and averaged over heads, not weighted.
    pub relations: f64,
}

/// Over how many a step's losses are averaged: those of all its batches.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Targets that count.
    pub counted: usize,
    /// Tokens.
    pub tokens: usize,
}

/// Room for logits of some tokens, the student's and the teacher's.
#[derive(Default)]
pub(super) struct Pair {
    pub(super) student: Array,
    teacher: Array,
}

impl Model {
    /// Adds to the gradients those of the mean cross-entropy and of what is learned from a teacher, a model of the same vocabulary, whose
    /// weights are quantized already.
    pub fn backward_beside(
        &mut self,
        teacher: &mut Self,
        batch: &Batch,
        totals: Totals,
        how: &Distillation,
    ) -> Losses {
        let relations = how.relations > 0.0;
        (self.watched.0, teacher.watched.0) =
            (relations.then_some(how.layer), relations.then_some(how.teacher_layer));
        teacher.forward(batch, false);
        self.forward(batch, true);
        let mut losses = self.head_losses(batch, totals.counted, true, Some((&*teacher, how)));
        if relations {
            if how.unrotated {
                self.watch_unrotated(batch);
                teacher.watch_unrotated(batch);
            }
            losses.relations = self.relate(teacher, batch, totals.tokens, how);
        }
        if relations && how.unrotated {
            let mut gradients = std::mem::take(&mut self.watched_gradients);
            self.rotate(batch, &mut gradients, false);
            self.watched_gradients = gradients;
        }
        self.layers_backward(batch);
        (self.watched.0, teacher.watched.0) = (None, None);
        losses
    }

    /// Takes the rotation off the watched queries and keys.
    fn watch_unrotated(&mut self, batch: &Batch) {
        let mut watched = std::mem::take(&mut self.watched.1);
        self.rotate(batch, &mut watched, true);
        self.watched.1 = watched;
    }

    /// The sum of divergences of some tokens' distributions; `pair.student`, which has their logits, becomes the gradients, weighted.
    pub(super) fn soften(
        &self,
        teacher: &Self,
        how: &Distillation,
        tokens: Range<usize>,
        (counts, weights): (&[bool], &[f32]),
        pair: &mut Pair,
    ) -> f64 {
        let (vocab, hidden) = (self.config.vocab, teacher.config.hidden);
        let x = teacher.last.1.part(tokens.start * hidden..tokens.end * hidden);
        let logits = pair.teacher.sized(tokens.len() * vocab);
        teacher.logits(crate::ops::Side::rows(x, hidden), logits, tokens.len());
        let factor = (1.0 / how.temperature) as f32;
        let rows: Vec<(usize, f32)> = weights.iter().map(|w| (vocab, w * how.logits as f32)).collect();
        let mut sum = 0.0;
        self.ops.divergence(&mut pair.student, &pair.teacher, factor, &rows, &mut |i, kl| {
            sum += if counts[i] { kl } else { 0.0 };
        });
        sum
    }

    /// The sum of divergences of relations; their gradients go to the watched layer's queries, keys and values.
    fn relate(&mut self, teacher: &Self, batch: &Batch, tokens: usize, how: &Distillation) -> f64 {
        let parts = |model: &Self| {
            let shape = model.shape();
            let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
            ([(0, q), (q, kv), (q + kv, kv)], shape.qkv_cols())
        };
        let ((own, cols), (theirs, _)) = (parts(self), parts(teacher));
        let mut gradients = std::mem::take(&mut self.watched_gradients);
        gradients.sized(self.watched.1.len()).fill(0.0);
        let weight = (how.relations / (how.heads * tokens) as f64) as f32;
        let mut sum = 0.0;
        let mut dx = Vec::new();
        let slopes: &mut [f32] = &mut gradients;
        for span in &batch.spans {
            let t = span.len();
            let rows: Vec<(usize, f32)> =
                (0..t).map(|i| (if how.causal { i + 1 } else { t }, weight)).collect();
            for ((first, len), (their_first, their_len)) in own.into_iter().zip(theirs) {
                let (d, their_d) = (len / how.heads, their_len / how.heads);
                for head in 0..how.heads {
                    let at = first + head * d;
                    let x = self.head_of(span, at, d, how.cosine);
                    let y = teacher.head_of(span, their_first + head * their_d, their_d, how.cosine);
                    let scale = |d: usize| if how.cosine { 1.0 } else { 1.0 / (d as f32).sqrt() };
                    let mut scores = self.likeness(&x.rows, d, scale(d));
                    let their_scores = self.likeness(&y.rows, their_d, scale(their_d));
                    self.ops.divergence(&mut scores, &their_scores, 1.0, &rows, &mut |_, kl| sum += kl);
                    // Each score has a row on either side.
                    dx.resize(t * d, 0.0);
                    let columns = Side::columns(Values::F32(&x.rows), d);
                    for (side, store) in [
                        (Side::rows(Values::F32(&scores), t), Store::Set(scale(d))),
                        (Side::columns(Values::F32(&scores), t), Store::Add(scale(d))),
                    ] {
                        let target = Target { values: &mut dx, stride: d, first: 0 };
                        self.ops.cpu().product(Terms::F32, (t, d, t), side, columns, store, target);
                    }
                    for (i, row) in span.clone().enumerate() {
                        let out = &mut slopes[row * cols + at..][..d];
                        x.backward(i, &dx[i * d..][..d], out);
                    }
                }
            }
        }
        self.watched_gradients = gradients;
        sum / how.heads as f64
    }

    /// Some columns of the watched layer's queries, keys or values, of the tokens of a sequence.
    fn head_of(&self, span: &Range<usize>, first: usize, d: usize, cosine: bool) -> Vectors {
        let cols = self.shape().qkv_cols();
        let mut rows: Vec<f32> =
            span.clone().flat_map(|row| self.watched.1[row * cols + first..][..d].iter().copied()).collect();
        let mut lengths = Vec::new();
        for row in rows.chunks_exact_mut(d).filter(|_| cosine) {
            let square: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            let length = (libm::sqrt(square) as f32).max(f32::MIN_POSITIVE);
            row.iter_mut().for_each(|x| *x /= length);
            lengths.push(length);
        }
        Vectors { rows, d, lengths }
    }

    /// Dot products of all rows with all rows, times a factor.
    fn likeness(&self, rows: &[f32], d: usize, factor: f32) -> Vec<f32> {
        let t = rows.len() / d;
        let mut scores = vec![0.0; t * t];
        let target = Target { values: &mut scores, stride: t, first: 0 };
        let side = Side::rows(Values::F32(rows), d);
        self.ops.cpu().product(Terms::F32, (t, t, d), side, side, Store::Set(factor), target);
        scores
    }
}

/// Vectors of a head, `[t, d]`, of length 1 where their lengths are given.
struct Vectors {
    rows: Vec<f32>,
    d: usize,
    lengths: Vec<f32>,
}

impl Vectors {
    /// Adds the gradient of vector `i` as it was, from that of it as it is.
    fn backward(&self, i: usize, dy: &[f32], out: &mut [f32]) {
        let Some(length) = self.lengths.get(i) else {
            out.iter_mut().zip(dy).for_each(|(out, dy)| *out += dy);
            return;
        };
        let y = &self.rows[i * self.d..][..self.d];
        let along: f64 = y.iter().zip(dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum();
        for ((out, y), dy) in out.iter_mut().zip(y).zip(dy) {
            *out += (dy - y * along as f32) / length;
        }
    }
}
