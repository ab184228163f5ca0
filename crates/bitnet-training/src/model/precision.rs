//! What is quantized in the forward pass, and how.

use crate::quantizer::{InputCodes, InputQuantizer};
use crate::{Rounding, WeightQuantizer};
use bitnet_cpu::Terms;

/// What is quantized in the forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Weights of projections.
    pub weights: WeightQuantizer,
    /// The seed of random rounding; weights are rounded to the nearest code when `None`, and always when nothing is learned.
    pub stochastic: Option<u64>,
    /// Inputs of projections.
    pub activations: Activations,
    /// The share of a token's inputs of output and down projections that stay, the largest ones; the others become 0 (Q-Sparse,
    /// arXiv 2407.10969).
    pub top_k: Option<f64>,
    /// Whether inputs of output and down projections are turned by a Hadamard matrix (BitNet v2, arXiv 2504.18415).
    pub hadamard: bool,
    /// How quantization of weights comes in.
    pub ramp: Ramp,
    /// Norms that a model gets besides its own.
    pub extra_norms: ExtraNorms,
    /// How the terms of all products are multiplied but those of integers, which are exact.
    pub terms: Terms,
}

/// Norms of the inputs of projections that a model without them gets; their weights are 1 at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraNorms {
    /// None.
    None,
    /// Before output and down projections, whose inputs nothing else norms (BitDistill, arXiv 2510.13998): the body of a BitNet.
    Blocks,
    /// Before every projection, each its own (`use_rms_norm` of a Hugging Face configuration).
    Projections,
    /// The first of these that there is a body for: what a dense model is converted with.
    Auto,
}

/// How inputs of projections are quantized, each token with its own scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Not at all.
    Float,
    /// Int8 by the largest magnitude.
    Int8,
    /// Int4 by the mean magnitude.
    Int4,
    /// BitNet a4.8 (arXiv 2411.04965): int4 behind norms of the residual stream, int8 inside blocks, before output and down projections.
    A48,
}

/// How quantization of weights comes in: passes use `strength * quantized + (1 - strength) * master`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ramp {
    /// Steps until the strength is 1; 0 is from the first step on.
    pub steps: u64,
    /// Whether layers take turns, the first one first; else all go together.
    pub by_layer: bool,
}

impl Ramp {
    /// The strength in one of `layers` layers at step `t`, counted from 0.
    pub fn strength(&self, t: u64, layer: usize, layers: usize) -> f32 {
        if t >= self.steps {
            return 1.0;
        }
        let p = t as f64 / self.steps as f64;
        match self.by_layer {
            true => (p * layers as f64 - layer as f64).clamp(0.0, 1.0) as f32,
            false => p as f32,
        }
    }
}

impl Precision {
    /// BitNet b1.58: ternary weights by absmean, int8 activations; all else in f32.
    pub const BITNET: Self = Self {
        weights: WeightQuantizer::Absmean,
        stochastic: None,
        activations: Activations::Int8,
        top_k: None,
        hadamard: false,
        ramp: Ramp { steps: 0, by_layer: false },
        extra_norms: ExtraNorms::None,
        terms: Terms::F32,
    };

    /// Nothing is quantized.
    pub const FLOAT: Self =
        Self { weights: WeightQuantizer::Float, activations: Activations::Float, ..Self::BITNET };

    /// What of it the inference engine does otherwise with the model that is exported, whose weights are exactly these.
    pub fn run_otherwise(&self) -> Option<&'static str> {
        let ternary = self.weights.is_ternary();
        Some(match self.activations {
            _ if self.hadamard => "the model cannot be run: the engine has no Hadamard transform",
            Activations::Int8 | Activations::Int4 | Activations::A48 if !ternary => {
                "the model will be run with float activations, since its weights are not ternary"
            }
            Activations::Int4 | Activations::A48 => "the model will be run with int8 activations",
            _ if self.top_k.is_some() => {
                "the model will be run with all inputs of output and down projections"
            }
            _ => return None,
        })
    }

    /// Whether inputs of projections are integers.
    pub(super) fn quantizes_inputs(&self) -> bool {
        self.activations != Activations::Float
    }

    /// How inputs are quantized; `inside` blocks, before output and down projections, or else behind norms of the residual stream.
    pub(crate) fn input(&self, inside: bool) -> InputQuantizer {
        let codes = match (self.activations, inside) {
            (Activations::Float, _) => InputCodes::Float,
            (Activations::Int8, _) | (Activations::A48, true) => InputCodes::Int8,
            (Activations::Int4, _) | (Activations::A48, false) => InputCodes::Int4,
        };
        InputQuantizer { codes, keep: self.top_k.filter(|_| inside), hadamard: self.hadamard && inside }
    }

    /// How weights are rounded in the step `t` for a parameter at this place.
    pub(super) fn rounding(&self, t: u64, place: usize) -> Rounding {
        match self.stochastic {
            Some(seed) => Rounding::Stochastic { seed, stream: t << 24 | place as u64 },
            None => Rounding::Nearest,
        }
    }
}
