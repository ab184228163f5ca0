//! What a layer keeps for the way back.

use super::distill::Pair;
use crate::ops::{Side, Tokens, Values, View};
use crate::quantizer::{InputCodes, InputQuantizer, int4};
use crate::{Array, Ops};

/// The input of some projections, as they see it.
#[derive(Default)]
pub(super) struct Input {
    /// Quantized activations.
    codes: Option<Tokens>,
    /// What is multiplied where it is not quantized and not [`Input::float`].
    turned: Array,
    /// As it was, `[m, k]`, where it is not quantized or adapters need it.
    pub(super) float: Array,
    /// Whether tokens were turned by a Hadamard matrix.
    pub(super) hadamard: bool,
}

impl Input {
    /// Takes over `x [m, k]`; `float` where adapters need it as it was.
    pub(super) fn set(&mut self, ops: &Ops, x: &Array, k: usize, how: InputQuantizer, float: bool) {
        self.hadamard = how.hadamard;
        let turned = how.turned(ops, x, k).map(Array::from);
        let codes = how.codes != InputCodes::Float;
        if codes {
            let tokens = self.codes.get_or_insert_default();
            let x = turned.as_ref().unwrap_or(x);
            match how.codes {
                InputCodes::Int4 => ops.quantize_with(k, tokens, |cpu, tokens| int4(cpu, x, k, tokens)),
                _ => ops.quantize(x, k, tokens),
            }
        }
        if float || (!codes && turned.is_none()) {
            ops.copy(x, &mut self.float);
        }
        if !codes {
            self.turned = turned.unwrap_or_default();
        }
    }

    /// The input where it is not quantized.
    fn real(&self) -> Values<'_> {
        Values::from(if self.turned.is_empty() { &self.float } else { &self.turned })
    }

    /// The quantized activations.
    pub(super) fn codes(&self) -> Option<&Tokens> {
        self.codes.as_ref()
    }

    /// Tokens as vectors of features, and what their integers are multiplied with.
    pub(super) fn tokens(&self, k: usize) -> (Side<'_>, Option<View<'_>>) {
        match &self.codes {
            Some(tokens) => (Side::rows(Values::Tokens(tokens), k), Some(tokens.factors())),
            None => (Side::rows(self.real(), k), None),
        }
    }

    /// Features as vectors of tokens, and what their integers are multiplied with.
    pub(super) fn features(&self, k: usize) -> (Side<'_>, Option<View<'_>>) {
        match &self.codes {
            Some(tokens) => (Side::columns(Values::Tokens(tokens), k), Some(tokens.factors())),
            None => (Side::columns(self.real(), k), None),
        }
    }
}

/// States of a layer, all `[m, ...]`.
#[derive(Default)]
pub(super) struct State {
    /// One for all three, or one each where each has a norm of its own, with what goes into these.
    pub(super) qkv_input: [Input; 3],
    pub(super) qkv_shared: Array,
    /// Queries and keys before the norms of their heads.
    pub(super) heads: (Array, Array),
    /// Rotated queries and keys, and values.
    pub(super) qkv: Array,
    /// What attention gives, and of every query and head the largest score and the sum of weights.
    pub(super) attn: Array,
    pub(super) sums: Array,
    pub(super) o_input: [Input; 1],
    /// The residual stream between the blocks.
    pub(super) middle: Array,
    pub(super) ffn_input: [Input; 2],
    pub(super) ffn_shared: Array,
    pub(super) gate_up: Array,
    pub(super) gated: Array,
    pub(super) down_input: [Input; 1],
}

/// Room that one layer after the other uses on the way forward.
#[derive(Default)]
pub(super) struct Scratch {
    /// What is normed.
    pub(super) normed: Array,
    /// What is normed for one projection.
    pub(super) own: Array,
    /// What a block gives.
    pub(super) out: Array,
}

/// Gradients of states on the way back.
#[derive(Default)]
pub(super) struct Gradients {
    /// Of the residual stream.
    pub(super) h: Array,
    /// Of a projection's input.
    pub(super) input: Array,
    /// Of what was normed.
    pub(super) inner: Array,
    /// Of what was normed for one projection.
    pub(super) own: Array,
    /// Of stacked projections' outputs.
    pub(super) wide: Array,
    /// Logits of some tokens.
    pub(super) logits: Array,
    pub(super) pair: Pair,
}
