//! The way forward, in the order of operations of inference.

use super::linear::Place;
use super::state::{Input, Scratch, State};
use super::{Layer, Model, Projection};
use crate::quantizer::InputQuantizer;
use crate::{Array, Batch};

impl Model {
    /// Runs all layers. The states of every layer are kept where the way back follows, unless they are computed again there.
    pub(super) fn forward(&mut self, batch: &Batch, keep: bool) {
        let all = self.layers.len();
        self.prepare_rope(batch.spans.iter().map(|s| s.len()).max().unwrap_or(0));
        // Where states are computed again, and where nothing goes back, one layer's room serves all.
        let (inputs, states) = (if keep { all } else { 1 }, if keep && !self.recompute { all } else { 1 });
        self.inputs.resize_with(self.inputs.len().max(inputs), Array::default);
        self.states.resize_with(self.states.len().max(states), State::default);
        let mut h = std::mem::take(&mut self.last.0);
        self.embed(batch, &mut h);
        let mut scratch = std::mem::take(&mut self.scratch);
        for l in 0..all {
            let (i, s) = (l.min(inputs - 1), l.min(states - 1));
            let (mut input, mut state) =
                (std::mem::take(&mut self.inputs[i]), std::mem::take(&mut self.states[s]));
            self.ops.copy(&h, &mut input);
            self.layer(batch, &self.layers[l], &mut state, &mut scratch, &mut h);
            if self.watched.0 == Some(l) {
                self.ops.copy(&state.qkv, &mut self.watched.1);
            }
            (self.inputs[i], self.states[s]) = (input, state);
        }
        self.scratch = scratch;
        let mut out = std::mem::take(&mut self.last.1);
        self.ops.rms_norm(&h, self.value(self.final_norm), self.config.eps, &mut out);
        self.last = (h, out);
    }

    /// Runs a layer on the residual stream `h [m, hidden]`, and leaves in `state` what the way back needs besides its input.
    pub(super) fn layer(
        &self,
        batch: &Batch,
        layer: &Layer,
        state: &mut State,
        scratch: &mut Scratch,
        h: &mut Array,
    ) {
        let (ops, eps) = (&self.ops, self.config.eps);
        let (m, shape) = (batch.ids.len(), self.shape());
        let (hidden, ffn, d) = (self.config.hidden, self.config.ffn, shape.head_dim);
        let (q, kv, cols) = (shape.heads * d, shape.kv_heads * d, shape.qkv_cols());
        let (of_norms, of_blocks) = (self.precision.input(false), self.precision.input(true));
        let Scratch { normed, own, out } = scratch;

        ops.rms_norm(&*h, self.value(layer.attn_norm), eps, normed);
        let qkv = state.qkv.sized(m * cols);
        let at = |first| Place { stride: cols, first };
        let places = [at(0), at(q), at(q + kv)];
        self.project(normed, hidden, (&layer.qkv, &places), of_norms, &mut state.qkv_input, own, qkv);
        if layer.qkv[0].norm.is_some() {
            ops.copy(normed, &mut state.qkv_shared);
        }
        if let Some(norms) = layer.head_norms {
            self.norm_heads(norms, qkv, &mut state.heads, normed);
        }
        self.rotate(batch, qkv, false);
        ops.attend(qkv, shape, &batch.spans, &mut state.attn, &mut state.sums);
        let whole = [Place { stride: hidden, first: 0 }];
        let x = self.sub_norm(layer.attn_sub_norm, &state.attn, normed);
        let out = out.sized(m * hidden);
        self.project(x, q, (&layer.o, &whole), of_blocks, &mut state.o_input, own, out);
        ops.add(h, &*out);
        ops.copy(h, &mut state.middle);

        ops.rms_norm(&*h, self.value(layer.ffn_norm), eps, normed);
        let gate_up = state.gate_up.sized(m * 2 * ffn);
        let places = [0, ffn].map(|first| Place { stride: 2 * ffn, first });
        self.project(normed, hidden, (&layer.gate_up, &places), of_norms, &mut state.ffn_input, own, gate_up);
        if layer.gate_up[0].norm.is_some() {
            ops.copy(normed, &mut state.ffn_shared);
        }
        ops.gate(gate_up, ffn, self.config.activation, &mut state.gated);
        let x = self.sub_norm(layer.ffn_sub_norm, &state.gated, normed);
        self.project(x, ffn, (&layer.down, &whole), of_blocks, &mut state.down_input, own, out);
        ops.add(h, &*out);
    }

    /// Products of `x [m, k]` with some projections, each written to its columns of `out`. `inputs` keeps what they saw: one for all, or
    /// one each where each has a norm of its own, for which there is `room`.
    #[allow(clippy::too_many_arguments, reason = "what goes in, how, what is kept, and what comes out")]
    fn project(
        &self,
        x: &Array,
        k: usize,
        (projections, places): (&[Projection], &[Place]),
        how: InputQuantizer,
        inputs: &mut [Input],
        room: &mut Array,
        out: &mut Array,
    ) {
        let shared = projections[0].norm.is_none();
        let adapters = !self.rounds() && projections.iter().any(|p| self.low_rank[p.weight].is_some());
        for (i, (p, place)) in projections.iter().zip(places).enumerate() {
            let input = &mut inputs[if shared { 0 } else { i }];
            if let (Some(norm), Some(eps)) = (p.norm, self.config.projection_norms) {
                self.ops.rms_norm(x, self.value(norm), eps, room);
                input.set(&self.ops, room, k, how, adapters);
            } else if i == 0 {
                input.set(&self.ops, x, k, how, adapters);
            }
            self.linear(input, p.weight, out, *place);
        }
    }

    /// What goes into an output or down projection: normed, where the architecture has a norm there.
    fn sub_norm<'a>(&self, place: Option<usize>, x: &'a Array, out: &'a mut Array) -> &'a Array {
        let Some(place) = place else { return x };
        self.ops.rms_norm(x, self.value(place), self.config.eps, out);
        out
    }

    /// The rows of a batch's ids, `[m, hidden]`.
    fn embed(&self, batch: &Batch, h: &mut Array) {
        let hidden = self.config.hidden;
        if !self.is_frozen(self.embedding) {
            return self.ops.gather(self.value(self.embedding), &batch.ids, hidden, h);
        }
        self.ops.chunks(h.sized(batch.ids.len() * hidden), hidden, &|i, out| {
            self.row(self.embedding, batch.ids[i] as usize, out);
        });
    }

    /// Rotates q and k of every row by its position in its sequence, or back.
    pub(super) fn rotate(&self, batch: &Batch, qkv: &mut Array, back: bool) {
        self.ops.rotate(qkv, self.shape(), &batch.positions(), (&self.rope.0, &self.rope.1), back);
    }
}
