//! The way forward, in the order of operations of inference.

use super::linear::Place;
use super::state::{Input, Scratch, State};
use super::{Layer, Model, Projection};
use crate::Batch;
use crate::quantizer::InputQuantizer;
use bitnet_quant::spec::rotate_half;

/// Elements that a thread adds at a time.
const PIECE: usize = 1 << 14;

/// What a vector is given the size of; its contents have no meaning.
pub(super) fn sized(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    v.resize(len, 0.0);
    v
}

impl Model {
    /// Runs all layers. The states of every layer are kept where the way back follows, unless they are computed again there.
    pub(super) fn forward(&mut self, batch: &Batch, keep: bool) {
        let (hidden, all) = (self.config.hidden, self.layers.len());
        self.prepare_rope(batch.spans.iter().map(|s| s.len()).max().unwrap_or(0));
        // Where states are computed again, and where nothing goes back, one layer's room serves all.
        let (inputs, states) = (if keep { all } else { 1 }, if keep && !self.recompute { all } else { 1 });
        self.inputs.resize_with(self.inputs.len().max(inputs), Vec::new);
        self.states.resize_with(self.states.len().max(states), State::default);
        let mut h = std::mem::take(&mut self.last.0);
        self.ops.chunks(sized(&mut h, batch.ids.len() * hidden), hidden, &|i, out| {
            self.row(self.embedding, batch.ids[i] as usize, out);
        });
        let mut scratch = std::mem::take(&mut self.scratch);
        for l in 0..all {
            let (i, s) = (l.min(inputs - 1), l.min(states - 1));
            let (mut input, mut state) =
                (std::mem::take(&mut self.inputs[i]), std::mem::take(&mut self.states[s]));
            input.clone_from(&h);
            self.layer(batch, &self.layers[l], &mut state, &mut scratch, &mut h);
            if self.watched.0 == Some(l) {
                self.watched.1.clone_from(&state.qkv);
            }
            (self.inputs[i], self.states[s]) = (input, state);
        }
        self.scratch = scratch;
        let mut out = std::mem::take(&mut self.last.1);
        self.ops.rms_norm(&h, self.value(self.final_norm), self.config.eps, sized(&mut out, h.len()));
        self.last = (h, out);
    }

    /// Runs a layer on the residual stream `h [m, hidden]`, and leaves in `state` what the way back needs besides its input.
    pub(super) fn layer(
        &self,
        batch: &Batch,
        layer: &Layer,
        state: &mut State,
        scratch: &mut Scratch,
        h: &mut [f32],
    ) {
        let (ops, eps) = (&self.ops, self.config.eps);
        let (m, shape) = (batch.ids.len(), self.shape());
        let (hidden, ffn, d) = (self.config.hidden, self.config.ffn, shape.head_dim);
        let (q, kv, cols) = (shape.heads * d, shape.kv_heads * d, shape.qkv_cols());
        let (of_norms, of_blocks) = (self.precision.input(false), self.precision.input(true));
        let Scratch { normed, own, out } = scratch;

        ops.rms_norm(h, self.value(layer.attn_norm), eps, sized(normed, m * hidden));
        let qkv = sized(&mut state.qkv, m * cols);
        let at = |first| Place { stride: cols, first };
        let places = [at(0), at(q), at(q + kv)];
        self.project(normed, hidden, (&layer.qkv, &places), of_norms, &mut state.qkv_input, own, qkv);
        if layer.qkv[0].norm.is_some() {
            state.qkv_shared.clone_from(normed);
        }
        if let Some(norms) = layer.head_norms {
            self.norm_heads(norms, qkv, &mut state.heads, normed);
        }
        self.rotate(batch, qkv, false);
        let (attn, sums) = (sized(&mut state.attn, m * q), &mut state.sums);
        ops.attend(qkv, shape, &batch.spans, attn, sized(sums, m * shape.heads * 2));
        let whole = [Place { stride: hidden, first: 0 }];
        let x = self.sub_norm(layer.attn_sub_norm, &state.attn, normed);
        let out = sized(out, m * hidden);
        self.project(x, q, (&layer.o, &whole), of_blocks, &mut state.o_input, own, out);
        self.add(h, out);
        state.middle.clear();
        state.middle.extend_from_slice(h);

        ops.rms_norm(h, self.value(layer.ffn_norm), eps, sized(normed, m * hidden));
        let gate_up = sized(&mut state.gate_up, m * 2 * ffn);
        let places = [0, ffn].map(|first| Place { stride: 2 * ffn, first });
        self.project(normed, hidden, (&layer.gate_up, &places), of_norms, &mut state.ffn_input, own, gate_up);
        if layer.gate_up[0].norm.is_some() {
            state.ffn_shared.clone_from(normed);
        }
        ops.gate(gate_up, ffn, self.config.activation, sized(&mut state.gated, m * ffn));
        let x = self.sub_norm(layer.ffn_sub_norm, &state.gated, normed);
        self.project(x, ffn, (&layer.down, &whole), of_blocks, &mut state.down_input, own, out);
        self.add(h, out);
    }

    /// Products of `x [m, k]` with some projections, each written to its columns of `out`. `inputs` keeps what they saw: one for all, or
    /// one each where each has a norm of its own, for which there is `room`.
    #[allow(clippy::too_many_arguments, reason = "what goes in, how, what is kept, and what comes out")]
    fn project(
        &self,
        x: &[f32],
        k: usize,
        (projections, places): (&[Projection], &[Place]),
        how: InputQuantizer,
        inputs: &mut [Input],
        room: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let shared = projections[0].norm.is_none();
        let adapters = !self.rounds() && projections.iter().any(|p| self.low_rank[p.weight].is_some());
        for (i, (p, place)) in projections.iter().zip(places).enumerate() {
            let input = &mut inputs[if shared { 0 } else { i }];
            if let (Some(norm), Some(eps)) = (p.norm, self.config.projection_norms) {
                self.ops.rms_norm(x, self.value(norm), eps, sized(room, x.len()));
                input.set(&self.ops, room, k, how, adapters);
            } else if i == 0 {
                input.set(&self.ops, x, k, how, adapters);
            }
            self.linear(input, p.weight, out, *place);
        }
    }

    /// What goes into an output or down projection: normed, where the architecture has a norm there.
    fn sub_norm<'a>(&self, place: Option<usize>, x: &'a [f32], out: &'a mut Vec<f32>) -> &'a [f32] {
        let Some(place) = place else { return x };
        let out = sized(out, x.len());
        self.ops.rms_norm(x, self.value(place), self.config.eps, out);
        out
    }

    fn add(&self, x: &mut [f32], y: &[f32]) {
        self.ops.chunks(x, PIECE, &|i, x| {
            x.iter_mut().zip(&y[i * PIECE..]).for_each(|(x, y)| *x += y);
        });
    }

    /// Rotates q and k of every row by its position in its sequence, or back.
    pub(super) fn rotate(&self, batch: &Batch, qkv: &mut [f32], back: bool) {
        let shape = self.shape();
        let (d, half) = (shape.head_dim, shape.head_dim / 2);
        let turned = (shape.heads + shape.kv_heads) * d;
        let positions = batch.positions();
        self.ops.chunks(qkv, shape.qkv_cols(), &|row, qkv| {
            let at = positions[row] * half;
            let (cos, sin) = (&self.rope.0[at..at + half], &self.rope.1[at..at + half]);
            for head in qkv[..turned].chunks_exact_mut(d) {
                if back {
                    rotate_back(head, cos, sin);
                } else {
                    rotate_half(head, cos, sin);
                }
            }
        });
    }
}

/// Undoes [`rotate_half`]; the same is the way back of gradients.
fn rotate_back(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (u, v) = (*a, *b);
        *a = u * c + v * s;
        *b = v * c - u * s;
    }
}
