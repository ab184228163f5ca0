//! How much of the feed-forward blocks' inner activations is zero.

use super::Model;
use crate::Batch;

impl Model {
    /// The share of zeros among the inputs of each layer's down projection, before they are normed: of [`bitnet_core::Activation::Relu2`]
    /// about half or more, which need not be read when the model is run.
    pub fn sparsity(&mut self, batch: &Batch) -> Vec<f64> {
        // States of all layers are to be looked at behind the pass.
        let recompute = std::mem::take(&mut self.recompute);
        self.forward(batch, true);
        self.recompute = recompute;
        let share =
            |gated: &[f32]| gated.iter().filter(|x| **x == 0.0).count() as f64 / gated.len().max(1) as f64;
        self.states[..self.layers.len()].iter().map(|state| share(&state.gated)).collect()
    }
}
