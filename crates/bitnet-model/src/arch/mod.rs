//! One row an architecture: what the configuration does not say.

mod names;
mod role;

pub(crate) use names::Names;
pub use role::{Role, Slot};

use bitnet_core::Activation;

/// Which kind of checkpoint spells an architecture's name so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `architectures[0]` of a Hugging Face `config.json`.
    HuggingFace,
    /// `general.architecture` of a GGUF file.
    Gguf,
}

/// What an architecture is made of.
#[derive(Debug)]
pub struct Architecture {
    /// The name in the file.
    pub name: &'static str,
    /// The kind of file.
    pub origin: Origin,
    /// The nonlinearity of the feed-forward block, where the file does not say.
    pub activation: Activation,
    /// RMSNorm before the output and down projections.
    pub sub_norms: bool,
    /// RMSNorm on every head of q and k.
    pub qk_norms: bool,
    /// Float projections are master weights, made ternary by absmean.
    pub ternary: bool,
    /// Rows of q and k are stored for interleaved rotation.
    pub interleaved: bool,
    /// The name of the same architecture in the other kind of checkpoint.
    pub counterpart: &'static str,
    /// `model_type` of a `config.json`; empty in GGUF rows.
    pub model_type: &'static str,
    pub(crate) names: &'static Names,
}

/// Every architecture.
pub static ARCHS: &[Architecture] = &[
    // Microsoft's BitNet b1.58 2B-4T, in transformers.
    Architecture {
        name: "BitNetForCausalLM",
        origin: Origin::HuggingFace,
        activation: Activation::Relu2,
        sub_norms: true,
        qk_norms: false,
        ternary: true,
        interleaved: false,
        counterpart: "bitnet-b1.58",
        model_type: "bitnet",
        names: &names::TRANSFORMERS,
    },
    // 1bitLLM's reproductions of the paper (0.7B, 1.3B, 3B).
    Architecture {
        name: "BitnetForCausalLM",
        origin: Origin::HuggingFace,
        activation: Activation::Silu,
        sub_norms: true,
        qk_norms: false,
        ternary: true,
        interleaved: false,
        counterpart: "bitnet",
        model_type: "llama",
        names: &names::ONE_BIT_LLM,
    },
    // HF1BitLLM, Falcon3 and Falcon-E.
    Architecture {
        name: "LlamaForCausalLM",
        origin: Origin::HuggingFace,
        activation: Activation::Silu,
        sub_norms: false,
        qk_norms: false,
        ternary: false,
        interleaved: false,
        counterpart: "llama",
        model_type: "llama",
        names: &names::TRANSFORMERS,
    },
    // Ternary-Bonsai, unpacked.
    Architecture {
        name: "Qwen3ForCausalLM",
        origin: Origin::HuggingFace,
        activation: Activation::Silu,
        sub_norms: false,
        qk_norms: true,
        ternary: false,
        interleaved: false,
        counterpart: "qwen3",
        model_type: "qwen3",
        names: &names::TRANSFORMERS,
    },
    // 1bitLLM in llama.cpp.
    Architecture {
        name: "bitnet",
        origin: Origin::Gguf,
        activation: Activation::Silu,
        sub_norms: true,
        qk_norms: false,
        ternary: true,
        interleaved: false,
        counterpart: "BitnetForCausalLM",
        model_type: "",
        names: &names::GGUF,
    },
    // 2B-4T in bitnet.cpp and ik_llama.cpp, under two names.
    Architecture {
        name: "bitnet-25",
        origin: Origin::Gguf,
        activation: Activation::Relu2,
        sub_norms: true,
        qk_norms: false,
        ternary: true,
        interleaved: false,
        counterpart: "BitNetForCausalLM",
        model_type: "",
        names: &names::GGUF,
    },
    Architecture {
        name: "bitnet-b1.58",
        origin: Origin::Gguf,
        activation: Activation::Relu2,
        sub_norms: true,
        qk_norms: false,
        ternary: true,
        interleaved: false,
        counterpart: "BitNetForCausalLM",
        model_type: "",
        names: &names::GGUF,
    },
    Architecture {
        name: "llama",
        origin: Origin::Gguf,
        activation: Activation::Silu,
        sub_norms: false,
        qk_norms: false,
        ternary: false,
        interleaved: true,
        counterpart: "LlamaForCausalLM",
        model_type: "",
        names: &names::GGUF,
    },
    // Ternary-Bonsai.
    Architecture {
        name: "qwen3",
        origin: Origin::Gguf,
        activation: Activation::Silu,
        sub_norms: false,
        qk_norms: true,
        ternary: false,
        interleaved: false,
        counterpart: "Qwen3ForCausalLM",
        model_type: "",
        names: &names::GGUF,
    },
];

impl Architecture {
    /// The row of a name.
    pub fn find(origin: Origin, name: &str) -> Option<&'static Self> {
        ARCHS.iter().find(|a| a.origin == origin && a.name == name)
    }
}
