//! How files call the tensors. `{}` stands for the number of the layer.

/// Tensor names of a family.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
    pub(crate) attn_norm: &'static str,
    pub(crate) q: &'static str,
    pub(crate) k: &'static str,
    pub(crate) v: &'static str,
    pub(crate) o: &'static str,
    pub(crate) q_norm: &'static str,
    pub(crate) k_norm: &'static str,
    pub(crate) attn_sub_norm: &'static str,
    pub(crate) ffn_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) ffn_sub_norm: &'static str,
    pub(crate) attn_post_norm: &'static str,
    pub(crate) ffn_post_norm: &'static str,
    /// What stands for `weight` in the name of a projection's own norm.
    pub(crate) input_norm: &'static str,
}

impl Names {
    /// The name of a layer's tensor.
    pub(crate) fn of(template: &str, layer: usize) -> String {
        template.replacen("{}", &layer.to_string(), 1)
    }
}

const BASE: Names = Names {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    attn_norm: "model.layers.{}.input_layernorm.weight",
    q: "model.layers.{}.self_attn.q_proj.weight",
    k: "model.layers.{}.self_attn.k_proj.weight",
    v: "model.layers.{}.self_attn.v_proj.weight",
    o: "model.layers.{}.self_attn.o_proj.weight",
    q_norm: "model.layers.{}.self_attn.q_norm.weight",
    k_norm: "model.layers.{}.self_attn.k_norm.weight",
    attn_sub_norm: "model.layers.{}.self_attn.attn_sub_norm.weight",
    ffn_norm: "model.layers.{}.post_attention_layernorm.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
    ffn_sub_norm: "model.layers.{}.mlp.ffn_sub_norm.weight",
    // Only Gemma has these.
    attn_post_norm: "model.layers.{}.post_attention_layernorm.weight",
    ffn_post_norm: "model.layers.{}.post_feedforward_layernorm.weight",
    // Those of `use_rms_norm`.
    input_norm: ".rms_norm.weight",
};

/// Transformers' Llama and BitNet classes; the latter has the sub-norms.
pub(crate) static TRANSFORMERS: Names = BASE;

pub(crate) static ONE_BIT_LLM: Names = Names {
    attn_sub_norm: "model.layers.{}.self_attn.inner_attn_ln.weight",
    ffn_sub_norm: "model.layers.{}.mlp.ffn_layernorm.weight",
    ..BASE
};

pub(crate) static GEMMA3: Names =
    Names { ffn_norm: "model.layers.{}.pre_feedforward_layernorm.weight", ..BASE };

/// Classes without a head do not say `model`. BitNet embeddings call a projection's own norm `norm`.
const BARE_BASE: Names = Names {
    embedding: "embed_tokens.weight",
    final_norm: "norm.weight",
    head: "lm_head.weight",
    attn_norm: "layers.{}.input_layernorm.weight",
    q: "layers.{}.self_attn.q_proj.weight",
    k: "layers.{}.self_attn.k_proj.weight",
    v: "layers.{}.self_attn.v_proj.weight",
    o: "layers.{}.self_attn.o_proj.weight",
    q_norm: "layers.{}.self_attn.q_norm.weight",
    k_norm: "layers.{}.self_attn.k_norm.weight",
    attn_sub_norm: "layers.{}.self_attn.attn_sub_norm.weight",
    ffn_norm: "layers.{}.post_attention_layernorm.weight",
    gate: "layers.{}.mlp.gate_proj.weight",
    up: "layers.{}.mlp.up_proj.weight",
    down: "layers.{}.mlp.down_proj.weight",
    ffn_sub_norm: "layers.{}.mlp.ffn_sub_norm.weight",
    attn_post_norm: "layers.{}.post_attention_layernorm.weight",
    ffn_post_norm: "layers.{}.post_feedforward_layernorm.weight",
    input_norm: ".norm.weight",
};

pub(crate) static BARE: Names = BARE_BASE;

pub(crate) static BARE_GEMMA3: Names =
    Names { ffn_norm: "layers.{}.pre_feedforward_layernorm.weight", ..BARE_BASE };

pub(crate) static GGUF: Names = Names {
    embedding: "token_embd.weight",
    final_norm: "output_norm.weight",
    head: "output.weight",
    attn_norm: "blk.{}.attn_norm.weight",
    q: "blk.{}.attn_q.weight",
    k: "blk.{}.attn_k.weight",
    v: "blk.{}.attn_v.weight",
    o: "blk.{}.attn_output.weight",
    q_norm: "blk.{}.attn_q_norm.weight",
    k_norm: "blk.{}.attn_k_norm.weight",
    attn_sub_norm: "blk.{}.attn_sub_norm.weight",
    ffn_norm: "blk.{}.ffn_norm.weight",
    gate: "blk.{}.ffn_gate.weight",
    up: "blk.{}.ffn_up.weight",
    down: "blk.{}.ffn_down.weight",
    ffn_sub_norm: "blk.{}.ffn_sub_norm.weight",
    attn_post_norm: "blk.{}.post_attention_norm.weight",
    ffn_post_norm: "blk.{}.post_ffw_norm.weight",
    input_norm: "_norm_in.weight",
};
