//! What a layer keeps for the way back.

use bitnet_cpu::{Activations, CpuTraining, Side, Values};

/// The input of some projections, as they see it.
#[derive(Default)]
pub(super) struct Input {
    /// Int8 activations.
    pub(super) int8: Option<Activations>,
    /// As it was, `[m, k]`, where it is not quantized or adapters need it.
    pub(super) float: Vec<f32>,
}

impl Input {
    /// Takes over `x [m, k]`.
    pub(super) fn set(&mut self, ops: &CpuTraining, x: &[f32], k: usize, int8: bool, float: bool) {
        if int8 {
            ops.quantize(x, k, self.int8.get_or_insert_default());
        }
        if float || !int8 {
            self.float.clear();
            self.float.extend_from_slice(x);
        }
    }

    /// Tokens as vectors of features, and what their integers are multiplied with.
    pub(super) fn tokens(&self, k: usize) -> (Side<'_>, Option<&[f32]>) {
        match &self.int8 {
            Some(x) => {
                let (q, stride) = x.integers();
                (Side::rows(Values::I8(q), stride), Some(x.factors()))
            }
            None => (Side::rows(Values::F32(&self.float), k), None),
        }
    }

    /// Features as vectors of tokens, and what their integers are multiplied with.
    pub(super) fn features(&self, k: usize) -> (Side<'_>, Option<&[f32]>) {
        match &self.int8 {
            Some(x) => {
                let (q, stride) = x.integers();
                (Side::columns(Values::I8(q), stride), Some(x.factors()))
            }
            None => (Side::columns(Values::F32(&self.float), k), None),
        }
    }
}

/// States of a layer, all `[m, ...]`.
#[derive(Default)]
pub(super) struct State {
    pub(super) qkv_input: Input,
    /// Rotated queries and keys, and values.
    pub(super) qkv: Vec<f32>,
    /// What attention gives, and of every query and head the largest score and the sum of weights.
    pub(super) attn: Vec<f32>,
    pub(super) sums: Vec<f32>,
    pub(super) o_input: Input,
    /// The residual stream between the blocks.
    pub(super) middle: Vec<f32>,
    pub(super) ffn_input: Input,
    pub(super) gate_up: Vec<f32>,
    pub(super) gated: Vec<f32>,
    pub(super) down_input: Input,
    /// Room for what is normed.
    pub(super) normed: Vec<f32>,
}

/// Gradients of states on the way back.
#[derive(Default)]
pub(super) struct Gradients {
    /// Of the residual stream.
    pub(super) h: Vec<f32>,
    /// Of a projection's input.
    pub(super) input: Vec<f32>,
    /// Of what was normed.
    pub(super) inner: Vec<f32>,
    /// Of stacked projections' outputs.
    pub(super) wide: Vec<f32>,
    /// Logits of some tokens.
    pub(super) logits: Vec<f32>,
}
