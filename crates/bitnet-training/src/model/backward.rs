//! The way back through the layers.

use super::forward::sized;
use super::linear::Place;
use super::state::{Gradients, State};
use super::{Layer, Model};
use crate::Batch;
use bitnet_cpu::Norm;

impl Model {
    /// From the gradients of the residual stream behind the last layer to those of all parameters below the head.
    pub(super) fn layers_backward(&mut self, batch: &Batch) {
        let layers = std::mem::take(&mut self.layers);
        let mut room = std::mem::take(&mut self.room);
        for (l, layer) in layers.iter().enumerate().rev() {
            let s = if self.recompute { 0 } else { l };
            let (input, mut state) =
                (std::mem::take(&mut self.inputs[l]), std::mem::take(&mut self.states[s]));
            if self.recompute {
                let mut h = input.clone();
                self.layer(batch, layer, &mut state, &mut h);
            }
            self.layer_backward(batch, layer, &input, &state, &mut room);
            (self.inputs[l], self.states[s]) = (input, state);
        }
        let hidden = self.config.hidden;
        if let Some(table) = self.gradient(self.embedding) {
            // In the order of tokens: an id may stand more than once.
            for (id, dh) in batch.ids.iter().zip(room.h.chunks_exact(hidden)) {
                let row = &mut table[*id as usize * hidden..][..hidden];
                row.iter_mut().zip(dh).for_each(|(row, dh)| *row += dh);
            }
        }
        self.layers = layers;
        self.room = room;
    }

    /// Gradients of a layer's parameters from those of what it gives, `room.h`, which become those of its input.
    fn layer_backward(
        &mut self,
        batch: &Batch,
        layer: &Layer,
        h: &[f32],
        state: &State,
        room: &mut Gradients,
    ) {
        let shape = self.shape();
        let (m, hidden, ffn, d) = (batch.ids.len(), self.config.hidden, self.config.ffn, shape.head_dim);
        let (q, kv, cols) = (shape.heads * d, shape.kv_heads * d, shape.qkv_cols());
        let Gradients { h: dh, input, inner, wide, .. } = room;
        let whole = Place { stride: hidden, first: 0 };

        let dx = sized(input, m * ffn);
        self.linear_backward(&state.down_input, layer.down, dh, whole, false, dx);
        let dgated = self.sub_norm_backward(layer.ffn_sub_norm, &state.gated, input, inner);
        let dgate_up = sized(wide, m * 2 * ffn);
        self.ops.gate_backward(&state.gate_up, dgated, ffn, self.config.activation, dgate_up);
        let dx = sized(input, m * hidden);
        for (i, (place, first)) in [(layer.gate, 0), (layer.up, ffn)].into_iter().enumerate() {
            let at = Place { stride: 2 * ffn, first };
            self.linear_backward(&state.ffn_input, place, wide, at, i > 0, dx);
        }
        self.norm_backward(layer.ffn_norm, &state.middle, dx, true, dh);

        let dx = sized(input, m * q);
        self.linear_backward(&state.o_input, layer.o, dh, whole, false, dx);
        let dattn = self.sub_norm_backward(layer.attn_sub_norm, &state.attn, input, inner);
        let dqkv = sized(wide, m * cols);
        let gave = (&state.attn[..], &state.sums[..]);
        let terms = self.precision.terms;
        self.ops.attend_backward(&state.qkv, shape, &batch.spans, gave, dattn, terms, dqkv);
        self.rotate(batch, dqkv, true);
        let dx = sized(input, m * hidden);
        for (i, (place, first)) in [(layer.q, 0), (layer.k, q), (layer.v, q + kv)].into_iter().enumerate() {
            let at = Place { stride: cols, first };
            self.linear_backward(&state.qkv_input, place, wide, at, i > 0, dx);
        }
        self.norm_backward(layer.attn_norm, h, dx, true, dh);
    }

    /// Gradients of a norm's weight, and of its input `x`: set, or added to `dx`.
    fn norm_backward(&mut self, place: usize, x: &[f32], dy: &[f32], add: bool, dx: &mut [f32]) {
        let range = self.parameters.list()[place].range.clone();
        let dw = self.parameters.trained_range(place).map(|range| &mut self.gradients[range]);
        let norm = Norm { x, w: &self.values[range], eps: self.config.eps };
        self.ops.rms_norm_backward(norm, dy, add, dx, dw);
    }

    /// The gradients of what goes into a norm, or `dy` where there is no norm.
    fn sub_norm_backward<'a>(
        &mut self,
        place: Option<usize>,
        x: &[f32],
        dy: &'a [f32],
        inner: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let Some(place) = place else { return dy };
        let dx = sized(inner, x.len());
        self.norm_backward(place, x, dy, false, dx);
        dx
    }
}
