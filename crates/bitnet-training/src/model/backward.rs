//! The way back through the layers.

use super::linear::Place;
use super::state::{Gradients, Input, State};
use super::{Layer, Model, Projection};
use crate::{Array, Batch};

impl Model {
    /// From the gradients of the residual stream behind the last layer to those of all parameters below the head.
    pub(super) fn layers_backward(&mut self, batch: &Batch) {
        let layers = std::mem::take(&mut self.layers);
        let (mut room, mut scratch) = (std::mem::take(&mut self.room), std::mem::take(&mut self.scratch));
        for (l, layer) in layers.iter().enumerate().rev() {
            let s = if self.recompute { 0 } else { l };
            let (input, mut state) =
                (std::mem::take(&mut self.inputs[l]), std::mem::take(&mut self.states[s]));
            if self.recompute {
                let mut h = Array::default();
                self.ops.copy(&input, &mut h);
                self.layer(batch, layer, &mut state, &mut scratch, &mut h);
            }
            self.layer_backward(batch, l, layer, &input, &state, &mut room);
            (self.inputs[l], self.states[s]) = (input, state);
        }
        let (hidden, ops) = (self.config.hidden, self.ops.clone());
        if let Some(table) = self.gradient(self.embedding) {
            ops.scatter(&room.h, &batch.ids, hidden, table);
        }
        self.layers = layers;
        (self.room, self.scratch) = (room, scratch);
    }

    /// Gradients of a layer's parameters from those of what it gives, `room.h`, which become those of its input.
    fn layer_backward(
        &mut self,
        batch: &Batch,
        l: usize,
        layer: &Layer,
        h: &Array,
        state: &State,
        room: &mut Gradients,
    ) {
        let shape = self.shape();
        let (m, hidden, ffn, d) = (batch.ids.len(), self.config.hidden, self.config.ffn, shape.head_dim);
        let (q, kv, cols) = (shape.heads * d, shape.kv_heads * d, shape.qkv_cols());
        let Gradients { h: dh, input, inner, own, wide, .. } = room;
        let whole = [Place { stride: hidden, first: 0 }];

        let dx = input.sized(m * ffn);
        // Without a norm inside the block, the projection's input is what the block made.
        self.project_backward(&state.gated, (&layer.down, &whole), &state.down_input, dh, own, dx);
        let dgated = self.sub_norm_backward(layer.ffn_sub_norm, &state.gated, input, inner);
        self.concentrate_activations(&state.gated, dgated);
        self.ops.gate_backward(&state.gate_up, dgated, ffn, self.config.activation, wide);
        let dx = input.sized(m * hidden);
        let places = [0, ffn].map(|first| Place { stride: 2 * ffn, first });
        let (x, inputs) = (&state.ffn_shared, &state.ffn_input);
        self.project_backward(x, (&layer.gate_up, &places), inputs, wide, own, dx);
        self.norm_backward(layer.ffn_norm, &state.middle, self.config.eps, dx, true, dh);

        let dx = input.sized(m * q);
        self.project_backward(&state.attn, (&layer.o, &whole), &state.o_input, dh, own, dx);
        let dattn = self.sub_norm_backward(layer.attn_sub_norm, &state.attn, input, inner);
        let (dqkv, gave) = (&mut *wide, (&state.attn, &state.sums));
        let terms = self.precision.terms;
        self.ops.attend_backward(&state.qkv, shape, &batch.spans, gave, dattn, terms, dqkv);
        if self.watched.0 == Some(l) {
            self.ops.add(dqkv, &self.watched_gradients);
        }
        self.rotate(batch, dqkv, true);
        if let Some(norms) = layer.head_norms {
            self.norm_heads_backward(norms, &state.heads, dqkv, own);
        }
        let dx = input.sized(m * hidden);
        let places = [0, q, q + kv].map(|first| Place { stride: cols, first });
        let (x, inputs) = (&state.qkv_shared, &state.qkv_input);
        self.project_backward(x, (&layer.qkv, &places), inputs, wide, own, dx);
        self.norm_backward(layer.attn_norm, h, self.config.eps, dx, true, dh);
    }

    /// Gradients of some projections' weights, and of what went into them, `x`: set in `dx`. `room` is for those of what the norms
    /// of their own gave.
    fn project_backward(
        &mut self,
        x: &Array,
        (projections, places): (&[Projection], &[Place]),
        inputs: &[Input],
        dy: &Array,
        room: &mut Array,
        dx: &mut Array,
    ) {
        for (i, (p, place)) in projections.iter().zip(places).enumerate() {
            match (p.norm, self.config.projection_norms) {
                (Some(norm), Some(eps)) => {
                    let inner = room.sized(dx.len());
                    self.linear_backward(&inputs[i], p.weight, dy, *place, false, inner);
                    self.norm_backward(norm, x, eps, inner, i > 0, dx);
                }
                _ => self.linear_backward(&inputs[0], p.weight, dy, *place, i > 0, dx),
            }
        }
    }

    /// Gradients of a norm's weight, and of its input `x`: set, or added to `dx`.
    pub(super) fn norm_backward(
        &mut self,
        place: usize,
        x: &Array,
        eps: f32,
        dy: &Array,
        add: bool,
        dx: &mut Array,
    ) {
        let range = self.parameters.list()[place].range.clone();
        let dw = self.parameters.trained_range(place).map(|range| self.gradients.part_mut(range));
        self.ops.rms_norm_backward((x, self.values.part(range), eps), dy, add, dx, dw);
    }

    /// The gradients of what goes into a norm, or `dy` where there is no norm.
    fn sub_norm_backward<'a>(
        &mut self,
        place: Option<usize>,
        x: &Array,
        dy: &'a mut Array,
        inner: &'a mut Array,
    ) -> &'a mut Array {
        let Some(place) = place else { return dy };
        let dx = inner.sized(x.len());
        self.norm_backward(place, x, self.config.eps, dy, false, dx);
        dx
    }
}
