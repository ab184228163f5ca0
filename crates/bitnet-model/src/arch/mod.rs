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

/// Which layers see a sliding window, where a file gives one and does not name the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None, whatever the file says.
    None,
    /// All.
    All,
    /// Those behind the first `max_window_layers`.
    After,
    /// All but every sixth, or whatever number the file gives.
    AllBut,
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
    /// RMSNorm on what attention and the feed-forward block give.
    pub post_norms: bool,
    /// Norm weights, but those of projections, are stored less 1.
    pub norms_less_one: bool,
    /// There never is a head but the embedding.
    pub headless: bool,
    /// The embedding is multiplied with the square root of its width.
    pub scaled_embedding: bool,
    /// Float projections are master weights, made ternary by absmean.
    pub ternary: bool,
    /// Rows of q and k are stored for interleaved rotation.
    pub interleaved: bool,
    /// Layers that see a sliding window.
    pub windows: Windows,
    /// The name of the same architecture in the other kind of checkpoint.
    pub counterpart: &'static str,
    /// `model_type` of a `config.json`; empty in GGUF rows.
    pub model_type: &'static str,
    pub(crate) names: &'static Names,
}

/// Llama's class in transformers: what others are told by their differences from.
const LLAMA: Architecture = Architecture {
    name: "LlamaForCausalLM",
    origin: Origin::HuggingFace,
    activation: Activation::Silu,
    sub_norms: false,
    qk_norms: false,
    post_norms: false,
    norms_less_one: false,
    headless: false,
    scaled_embedding: false,
    ternary: false,
    interleaved: false,
    windows: Windows::None,
    counterpart: "llama",
    model_type: "llama",
    names: &names::TRANSFORMERS,
};

const GGUF: Architecture =
    Architecture { origin: Origin::Gguf, model_type: "", names: &names::GGUF, ..LLAMA };

const GEMMA3: Architecture = Architecture {
    activation: Activation::Gelu,
    qk_norms: true,
    post_norms: true,
    norms_less_one: true,
    scaled_embedding: true,
    windows: Windows::AllBut,
    counterpart: "gemma3",
    model_type: "gemma3_text",
    ..LLAMA
};

/// Every architecture.
pub static ARCHS: &[Architecture] = &[
    // Microsoft's BitNet b1.58 2B-4T, in transformers.
    Architecture {
        name: "BitNetForCausalLM",
        activation: Activation::Relu2,
        sub_norms: true,
        ternary: true,
        counterpart: "bitnet-b1.58",
        model_type: "bitnet",
        ..LLAMA
    },
    // 1bitLLM's reproductions of the paper (0.7B, 1.3B, 3B).
    Architecture {
        name: "BitnetForCausalLM",
        sub_norms: true,
        ternary: true,
        counterpart: "bitnet",
        names: &names::ONE_BIT_LLM,
        ..LLAMA
    },
    // HF1BitLLM, Falcon3 and Falcon-E.
    LLAMA,
    Architecture {
        name: "MistralForCausalLM",
        windows: Windows::All,
        counterpart: "llama",
        model_type: "mistral",
        ..LLAMA
    },
    // Ternary-Bonsai, unpacked.
    Architecture {
        name: "Qwen3ForCausalLM",
        qk_norms: true,
        windows: Windows::After,
        counterpart: "qwen3",
        model_type: "qwen3",
        ..LLAMA
    },
    // Without a head: embedding models. BitNet-embedding-0.6B has norms before its projections.
    Architecture {
        name: "Qwen3Model",
        qk_norms: true,
        windows: Windows::After,
        counterpart: "qwen3",
        model_type: "qwen3",
        headless: true,
        names: &names::BARE,
        ..LLAMA
    },
    Architecture { name: "Gemma3ForCausalLM", names: &names::GEMMA3, ..GEMMA3 },
    // BitNet-embedding-270M has norms before its projections.
    Architecture { name: "Gemma3TextModel", headless: true, names: &names::BARE_GEMMA3, ..GEMMA3 },
    // 1bitLLM in llama.cpp.
    Architecture { name: "bitnet", sub_norms: true, ternary: true, counterpart: "BitnetForCausalLM", ..GGUF },
    // 2B-4T in bitnet.cpp and ik_llama.cpp, under two names.
    Architecture {
        name: "bitnet-25",
        activation: Activation::Relu2,
        sub_norms: true,
        ternary: true,
        counterpart: "BitNetForCausalLM",
        ..GGUF
    },
    Architecture {
        name: "bitnet-b1.58",
        activation: Activation::Relu2,
        sub_norms: true,
        ternary: true,
        counterpart: "BitNetForCausalLM",
        ..GGUF
    },
    Architecture {
        name: "llama",
        interleaved: true,
        windows: Windows::All,
        counterpart: "LlamaForCausalLM",
        ..GGUF
    },
    // Ternary-Bonsai.
    Architecture { name: "qwen3", qk_norms: true, counterpart: "Qwen3ForCausalLM", ..GGUF },
    // Converters for llama.cpp add the 1 to norms; the one for BitNet embeddings does not (see `ModelConfig`).
    Architecture {
        name: "gemma3",
        origin: Origin::Gguf,
        counterpart: "Gemma3ForCausalLM",
        model_type: "",
        names: &names::GGUF,
        norms_less_one: false,
        ..GEMMA3
    },
];

impl Architecture {
    /// The row of a name.
    pub fn find(origin: Origin, name: &str) -> Option<&'static Self> {
        ARCHS.iter().find(|a| a.origin == origin && a.name == name)
    }
}
