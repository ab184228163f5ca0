//! What a layer keeps for the way back.

use super::distill::Pair;
use crate::quantizer::{InputCodes, InputQuantizer, int4};
use bitnet_cpu::{CpuTraining, QuantizedTokens, Side, Values};

/// The input of some projections, as they see it.
#[derive(Default)]
pub(super) struct Input {
    /// Quantized activations.
    codes: Option<QuantizedTokens>,
    /// What is multiplied where it is not quantized and not [`Input::float`].
    turned: Vec<f32>,
    /// As it was, `[m, k]`, where it is not quantized or adapters need it.
    pub(super) float: Vec<f32>,
    /// Whether tokens were turned by a Hadamard matrix.
    pub(super) hadamard: bool,
}

impl Input {
    /// Takes over `x [m, k]`; `float` where adapters need it as it was.
    pub(super) fn set(&mut self, ops: &CpuTraining, x: &[f32], k: usize, how: InputQuantizer, float: bool) {
        self.hadamard = how.hadamard;
        let turned = how.turned(ops, x, k);
        let codes = how.codes != InputCodes::Float;
        if codes {
            let tokens = self.codes.get_or_insert_default();
            let x = turned.as_deref().unwrap_or(x);
            match how.codes {
                InputCodes::Int4 => int4(ops, x, k, tokens),
                _ => ops.quantize(x, k, tokens),
            }
        }
        if float || (!codes && turned.is_none()) {
            self.float.clear();
            self.float.extend_from_slice(x);
        }
        if !codes {
            self.turned = turned.unwrap_or_default();
        }
    }

    /// The input where it is not quantized.
    fn real(&self) -> Values<'_> {
        Values::F32(if self.turned.is_empty() { &self.float } else { &self.turned })
    }

    /// The quantized activations.
    pub(super) fn codes(&self) -> Option<&QuantizedTokens> {
        self.codes.as_ref()
    }

    /// Tokens as vectors of features, and what their integers are multiplied with.
    pub(super) fn tokens(&self, k: usize) -> (Side<'_>, Option<&[f32]>) {
        match &self.codes {
            Some(tokens) => {
                let (q, stride) = tokens.integers();
                (Side::rows(Values::I8(q), stride), Some(tokens.factors()))
            }
            None => (Side::rows(self.real(), k), None),
        }
    }

    /// Features as vectors of tokens, and what their integers are multiplied with.
    pub(super) fn features(&self, k: usize) -> (Side<'_>, Option<&[f32]>) {
        match &self.codes {
            Some(tokens) => {
                let (q, stride) = tokens.integers();
                (Side::columns(Values::I8(q), stride), Some(tokens.factors()))
            }
            None => (Side::columns(self.real(), k), None),
        }
    }
}

/// States of a layer, all `[m, ...]`.
#[derive(Default)]
pub(super) struct State {
    /// One for all three, or one each where each has a norm of its own, with what goes into these.
    pub(super) qkv_input: [Input; 3],
    pub(super) qkv_shared: Vec<f32>,
    /// Queries and keys before the norms of their heads.
    pub(super) heads: (Vec<f32>, Vec<f32>),
    /// Rotated queries and keys, and values.
    pub(super) qkv: Vec<f32>,
    /// What attention gives, and of every query and head the largest score and the sum of weights.
    pub(super) attn: Vec<f32>,
    pub(super) sums: Vec<f32>,
    pub(super) o_input: [Input; 1],
    /// The residual stream between the blocks.
    pub(super) middle: Vec<f32>,
    pub(super) ffn_input: [Input; 2],
    pub(super) ffn_shared: Vec<f32>,
    pub(super) gate_up: Vec<f32>,
    pub(super) gated: Vec<f32>,
    pub(super) down_input: [Input; 1],
}

/// Room that one layer after the other uses on the way forward.
#[derive(Default)]
pub(super) struct Scratch {
    /// What is normed.
    pub(super) normed: Vec<f32>,
    /// What is normed for one projection.
    pub(super) own: Vec<f32>,
    /// What a block gives.
    pub(super) out: Vec<f32>,
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
    /// Of what was normed for one projection.
    pub(super) own: Vec<f32>,
    /// Of stacked projections' outputs.
    pub(super) wide: Vec<f32>,
    /// Logits of some tokens.
    pub(super) logits: Vec<f32>,
    pub(super) pair: Pair,
}
