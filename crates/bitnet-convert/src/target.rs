//! What can be written: one row a target.

use bitnet_core::DenseType;
use bitnet_quant::packing::{I2_S, I2_S_ARM, Packing, Q1_0, Q2_0_G64, Q2_0_G128, TQ1_0, TQ2_0, Tiled};

/// The kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// One GGUF file.
    Gguf,
    /// A directory with `config.json` and `model.safetensors`.
    HuggingFace,
    /// The same as `mlx-lm` loads it: all floats have one type.
    Mlx,
    /// A directory with `config.json` and `pytorch_model.bin`.
    Torch,
    /// A directory with `config.json`, a graph in `model.onnx` and its tensors in `model.onnx_data`.
    Onnx,
}

impl Container {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gguf => "GGUF",
            Self::HuggingFace => "Hugging Face safetensors",
            Self::Mlx => "MLX safetensors",
            Self::Torch => "PyTorch",
            Self::Onnx => "ONNX",
        }
    }
}

/// How projections are stored.
#[derive(Clone, Copy, Debug)]
pub enum Weights {
    /// Packed trits with their scales inside.
    Packed(&'static Packing),
    /// Trits packed in tiles, which a table has to describe.
    Tiled(Tiled),
    /// Packed uint8 with a `weight_scale` that multiplies: transformers' `AutoBitLinear`.
    AutoBitLinear,
    /// Packed uint8 with a `weight_scale` that divides: transformers' `BitLinear`.
    BitLinear,
    /// One signed byte a trit, with a `weight_scale` that multiplies.
    Int8,
    /// Floats or blocks of them. In GGUF, trits times their scale. In Hugging Face files, master weights where the input
    /// has them; else trits with a `weight_scale` beside them, as transformers' offline mode reads them.
    Dense(DenseType),
}

/// A format that can be written.
#[derive(Debug)]
pub struct Target {
    /// What users call it.
    pub name: &'static str,
    /// The kind of file.
    pub container: Container,
    /// How projections are stored in it.
    pub weights: Weights,
    /// `general.file_type` of a GGUF file, where there is a number for it.
    pub(crate) file_type: Option<u32>,
}

const fn gguf(name: &'static str, weights: Weights, file_type: Option<u32>) -> Target {
    Target { name, container: Container::Gguf, weights, file_type }
}

const fn directory(name: &'static str, container: Container, weights: Weights) -> Target {
    Target { name, container, weights, file_type: None }
}

/// Everything that can be written.
pub static TARGETS: &[Target] = &[
    gguf("i2_s", Weights::Packed(&I2_S), Some(40)),
    gguf("i2_s-arm", Weights::Packed(&I2_S_ARM), Some(40)),
    gguf("tq1_0", Weights::Packed(&TQ1_0), Some(36)),
    gguf("tq2_0", Weights::Packed(&TQ2_0), Some(37)),
    gguf("q1_0", Weights::Packed(&Q1_0), None),
    gguf("q2_0", Weights::Packed(&Q2_0_G64), None),
    gguf("q2_0-g128", Weights::Packed(&Q2_0_G128), None),
    gguf("tl1", Weights::Tiled(Tiled::Tl1), Some(38)),
    gguf("tl2", Weights::Tiled(Tiled::Tl2), Some(39)),
    gguf("q8_0", Weights::Dense(DenseType::Q8_0), Some(7)),
    gguf("f16", Weights::Dense(DenseType::F16), Some(1)),
    gguf("bf16", Weights::Dense(DenseType::BF16), Some(32)),
    gguf("f32", Weights::Dense(DenseType::F32), Some(0)),
    directory("hf-autobitlinear", Container::HuggingFace, Weights::AutoBitLinear),
    directory("hf-bitlinear", Container::HuggingFace, Weights::BitLinear),
    directory("hf-bf16", Container::HuggingFace, Weights::Dense(DenseType::BF16)),
    directory("hf-f16", Container::HuggingFace, Weights::Dense(DenseType::F16)),
    directory("hf-f32", Container::HuggingFace, Weights::Dense(DenseType::F32)),
    directory("mlx", Container::Mlx, Weights::AutoBitLinear),
    directory("pt-autobitlinear", Container::Torch, Weights::AutoBitLinear),
    directory("pt-bitlinear", Container::Torch, Weights::BitLinear),
    directory("pt-bf16", Container::Torch, Weights::Dense(DenseType::BF16)),
    directory("pt-f16", Container::Torch, Weights::Dense(DenseType::F16)),
    directory("pt-f32", Container::Torch, Weights::Dense(DenseType::F32)),
    directory("onnx", Container::Onnx, Weights::Int8),
];

impl Target {
    /// The target of a name, in any case.
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|t| t.name.eq_ignore_ascii_case(name))
    }
}
