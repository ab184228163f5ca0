//! The smallest models that are whole: one layer, a vocabulary, a template. They are what damaged files are made from.

use crate::adapter::{Module, projections};
use crate::files::{Gguf, Key, Stored, huggingface};
use crate::tensors::{Noise, f32s, hf_packed, i2_s, trits};
use serde_json::{Value, json};
use std::path::Path;

const HIDDEN: usize = 32;
const FFN: usize = 64;
const HEADS: usize = 2;
const KV_HEADS: usize = 1;
const HEAD_DIM: usize = 16;
/// Size of the vocabulary.
pub const VOCAB: usize = 24;
/// Positions.
pub const CONTEXT: usize = 64;

const TEMPLATE: &str = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

fn tokens() -> Vec<&'static str> {
    let letters = ["▁", "a", "b", "c", "d", "e", "h", "i", "l", "n", "o", "r", "s", "t", "u", ":", "."];
    [&SPECIAL[..], &letters, &["▁a", "th", "he", "in"]].concat()
}

/// Name in GGUF and in Hugging Face files, rows, columns.
type Projection = (&'static str, &'static str, usize, usize);

const PROJECTIONS: [Projection; 7] = [
    ("attn_q", "self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
    ("attn_k", "self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
    ("attn_v", "self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
    ("attn_output", "self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
    ("ffn_gate", "mlp.gate_proj", FFN, HIDDEN),
    ("ffn_up", "mlp.up_proj", FFN, HIDDEN),
    ("ffn_down", "mlp.down_proj", HIDDEN, FFN),
];

const NORMS: [(&str, &str, usize); 4] = [
    ("attn_norm", "input_layernorm", HIDDEN),
    ("attn_sub_norm", "self_attn.attn_sub_norm", HEADS * HEAD_DIM),
    ("ffn_norm", "post_attention_layernorm", HIDDEN),
    ("ffn_sub_norm", "mlp.ffn_sub_norm", FFN),
];

fn ones(n: usize) -> Vec<u8> {
    1f32.to_le_bytes().repeat(n)
}

/// A GGUF file of architecture `bitnet-b1.58` with `I2_S` projections, an F32 embedding and a `llama` vocabulary.
pub fn gguf() -> Gguf {
    let (mut noise, mut file) = (Noise(1), Gguf::new(3));
    file.set("general.architecture", Key::String("bitnet-b1.58"));
    for (key, value) in [
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("block_count", 1),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("context_length", CONTEXT),
    ] {
        file.set(&format!("bitnet-b1.58.{key}"), Key::U32(value as u32));
    }
    file.set("bitnet-b1.58.attention.layer_norm_rms_epsilon", Key::F32(1e-5));
    file.set("tokenizer.ggml.model", Key::String("llama"));
    file.set("tokenizer.ggml.tokens", Key::Strings(&tokens()));
    let kinds: Vec<i32> = (0..VOCAB).map(|i| [2, 3, 3, 1][i.min(3)]).collect();
    file.set("tokenizer.ggml.token_type", Key::I32s(&kinds));
    file.set("tokenizer.ggml.bos_token_id", Key::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Key::U32(2));
    file.set("tokenizer.chat_template", Key::String(TEMPLATE));
    let embedding = f32s(&mut noise, VOCAB * HIDDEN, 1.0).0;
    file.push("token_embd.weight", &[VOCAB, HIDDEN], 0, embedding);
    for (name, _, rows, cols) in PROJECTIONS {
        let data = i2_s(&trits(&mut noise, rows * cols), 0.25);
        file.push(&format!("blk.0.{name}.weight"), &[rows, cols], 36, data);
    }
    for (name, _, len) in NORMS {
        file.push(&format!("blk.0.{name}.weight"), &[len], 0, ones(len));
    }
    file.push("output_norm.weight", &[HIDDEN], 0, ones(HIDDEN));
    file
}

/// `config.json` of a packed `BitNetForCausalLM`.
pub fn config() -> Value {
    json!({
        "architectures": ["BitNetForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT, "tie_word_embeddings": true, "eos_token_id": 2,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    })
}

/// The tensors that go with [`config`].
pub fn tensors() -> Vec<Stored> {
    let (mut noise, mut all) = (Noise(2), Vec::new());
    let mut push = |name: String, dtype, shape: &[usize], bytes| {
        all.push(Stored { name, shape: shape.to_vec(), ttype: (0, dtype), bytes });
    };
    let embedding = f32s(&mut noise, VOCAB * HIDDEN, 1.0).0;
    push("model.embed_tokens.weight".into(), "F32", &[VOCAB, HIDDEN], embedding);
    for (_, name, rows, cols) in PROJECTIONS {
        let (name, trits) = (format!("model.layers.0.{name}.weight"), trits(&mut noise, rows * cols));
        push(format!("{name}_scale"), "F32", &[1], 0.25f32.to_le_bytes().to_vec());
        push(name, "U8", &[rows / 4, cols], hf_packed(&trits, rows, cols));
    }
    for (_, name, len) in NORMS {
        push(format!("model.layers.0.{name}.weight"), "F32", &[len], ones(len));
    }
    push("model.norm.weight".into(), "F32", &[HIDDEN], ones(HIDDEN));
    all
}

/// `tokenizer.json`: BPE over the same tokens as the GGUF file's.
pub fn tokenizer() -> Value {
    let vocab: serde_json::Map<_, _> =
        tokens().iter().zip(0..).map(|(t, i)| ((*t).into(), json!(i))).collect();
    let added = |(id, token): (usize, &str)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": SPECIAL.into_iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            "merges": [["▁", "a"], ["t", "h"], ["h", "e"], ["i", "n"]]},
    })
}

/// `tokenizer_config.json`.
pub fn tokenizer_config() -> Value {
    json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE})
}

/// What an adapter can be beside.
pub fn modules() -> Vec<Module> {
    projections(1, HIDDEN, FFN, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM)
}

/// Writes a whole Hugging Face directory.
pub fn directory(dir: &Path) {
    let json = |name: &str, value: Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
    huggingface(dir, &config(), &tensors(), 1);
    json("tokenizer.json", tokenizer());
    json("tokenizer_config.json", tokenizer_config());
}

/// A SentencePiece model of the BPE (2) or the unigram (1) kind, of the same pieces.
pub fn sentencepiece(algorithm: u8) -> Vec<u8> {
    let field = |number: u8, data: &[u8]| [&[number << 3 | 2, data.len() as u8], data].concat();
    let mut out = Vec::new();
    for (i, token) in tokens().iter().enumerate() {
        let mut piece = field(1, token.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend((-(i as f32)).to_le_bytes());
        piece.extend([3 << 3, [2, 3, 3, 1][i.min(3)]]);
        out.extend(field(1, &piece));
    }
    out.extend(field(2, &[3 << 3, algorithm]));
    out
}
