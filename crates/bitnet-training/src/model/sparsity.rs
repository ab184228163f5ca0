//! How much of the feed-forward blocks' inner activations is zero.

use super::Model;
use crate::{Array, Batch};

impl Model {
    /// The share of zeros among the inputs of each layer's down projection, before they are normed: of [`bitnet_core::Activation::Relu2`]
    /// about half or more, which need not be read when the model is run.
    pub fn sparsity(&mut self, batch: &Batch) -> Vec<f64> {
        self.forward(batch, true);
        let share =
            |gated: &Array| gated.iter().filter(|x| **x == 0.0).count() as f64 / gated.len().max(1) as f64;
        if !self.recompute {
            return self.states[..self.layers.len()].iter().map(|state| share(&state.gated)).collect();
        }
        let (mut state, mut scratch) =
            (std::mem::take(&mut self.states[0]), std::mem::take(&mut self.scratch));
        let layers = self.layers.iter().zip(&self.inputs).map(|(layer, input)| {
            let mut h = Array::default();
            self.ops.copy(input, &mut h);
            self.layer(batch, layer, &mut state, &mut scratch, &mut h);
            share(&state.gated)
        });
        let shares = layers.collect();
        (self.states[0], self.scratch) = (state, scratch);
        shares
    }
}
