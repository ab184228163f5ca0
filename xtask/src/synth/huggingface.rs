//! Hugging Face directories.

use super::shape::{Family, Names};
use super::{Format, Progress, Result, Role, Synth, Weights, vocabulary};
use bitnet_core::DenseType;
use bitnet_formats::safetensors_file::{TensorInfo, Writer};
use bitnet_quant::dense::quantize_row;
use bitnet_quant::packing::HF;
use serde_json::{Value, json};
use std::path::Path;

const fn names(sub_norms: [&'static str; 2]) -> Names {
    Names {
        embedding: "model.embed_tokens.weight",
        final_norm: "model.norm.weight",
        head: "lm_head.weight",
        layer: [
            "model.layers.{}.input_layernorm.weight",
            "model.layers.{}.self_attn.q_proj.weight",
            "model.layers.{}.self_attn.k_proj.weight",
            "model.layers.{}.self_attn.v_proj.weight",
            sub_norms[0],
            "model.layers.{}.self_attn.o_proj.weight",
            "model.layers.{}.post_attention_layernorm.weight",
            "model.layers.{}.mlp.gate_proj.weight",
            "model.layers.{}.mlp.up_proj.weight",
            sub_norms[1],
            "model.layers.{}.mlp.down_proj.weight",
        ],
    }
}

static BITNET: Names =
    names(["model.layers.{}.self_attn.attn_sub_norm.weight", "model.layers.{}.mlp.ffn_sub_norm.weight"]);
static ONE_BIT_LLM: Names =
    names(["model.layers.{}.self_attn.inner_attn_ln.weight", "model.layers.{}.mlp.ffn_layernorm.weight"]);

pub(super) fn write(synth: &Synth, weights: &Weights) -> Result<()> {
    let (shape, packed) = (synth.shape, synth.format == Format::HfPacked);
    if packed && shape.family == Family::OneBitLlm {
        return Err("1bitLLM's models are published as master weights; use --format hf-bf16".into());
    }
    let table = synth.embedding.unwrap_or(DenseType::BF16);
    if table.block().0 > 1 {
        return Err(
            format!("{} cannot be the type of an embedding in safetensors; try BF16", table.name()).into()
        );
    }
    std::fs::create_dir_all(&synth.output)?;
    let items = shape.items(if shape.family == Family::OneBitLlm { &ONE_BIT_LLM } else { &BITNET });
    let mut infos = Vec::new();
    for item in &items {
        let (dtype, dims) = match item.role {
            Role::Table => (table.name(), vec![item.rows, item.cols]),
            Role::Norm => ("BF16", vec![item.cols]),
            _ if packed => ("U8", vec![item.rows / 4, item.cols]),
            _ => ("BF16", vec![item.rows, item.cols]),
        };
        infos.push(TensorInfo { name: item.name.clone(), dtype, shape: dims });
        if dtype == "U8" {
            infos.push(TensorInfo { name: format!("{}_scale", item.name), dtype: "BF16", shape: vec![1] });
        }
    }
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let mut writer = Writer::create(&synth.output.join("model.safetensors"), &metadata, infos)?;
    let mut progress = Progress { all: items.len(), said: 0 };
    for (index, item) in items.iter().enumerate() {
        let mut bytes = Vec::new();
        match item.role {
            Role::Table | Role::Norm => {
                let dtype = if item.role == Role::Norm { DenseType::BF16 } else { table };
                for first in (0..item.rows).step_by(1024) {
                    let values = weights.floats(index, item, first, 1024.min(item.rows - first));
                    bytes.clear();
                    quantize_row(dtype, &values, &mut bytes).ok_or("the type has blocks")?;
                    writer.write(&bytes)?;
                }
            }
            _ if packed => {
                (HF.pack)(&weights.ternary(index, item)?, &mut bytes)?;
                writer.write(&bytes)?;
                let scale = weights.scale(item);
                let stored = if shape.family == Family::Llama { 1.0 / scale } else { scale };
                writer.write(&half::bf16::from_f32(stored).to_le_bytes())?;
            }
            _ => {
                let m = weights.ternary(index, item)?;
                let scale = weights.scale(item);
                for row in 0..item.rows {
                    let values: Vec<f32> =
                        (0..item.cols).map(|c| f32::from(m.trit(row, c)) * scale).collect();
                    bytes.clear();
                    quantize_row(DenseType::BF16, &values, &mut bytes).ok_or("the type has blocks")?;
                    writer.write(&bytes)?;
                }
            }
        }
        progress.at(index + 1);
    }
    writer.finish()?;
    let file = |name: &str, value: Value| write_json(&synth.output.join(name), &value);
    file("config.json", config(synth, packed))?;
    file(
        "generation_config.json",
        json!({"bos_token_id": vocabulary::BOS, "eos_token_id": [vocabulary::EOS, vocabulary::EOT]}),
    )?;
    if !synth.no_tokenizer {
        file("tokenizer.json", tokenizer(shape.vocab))?;
        let tokens = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": vocabulary::TEMPLATE});
        file("tokenizer_config.json", tokens)?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(std::fs::write(path, serde_json::to_string_pretty(value)? + "\n")?)
}

fn config(synth: &Synth, packed: bool) -> Value {
    let s = synth.shape;
    let mut config = json!({
        "architectures": [match s.family {
            Family::BitNet => "BitNetForCausalLM",
            Family::OneBitLlm => "BitnetForCausalLM",
            Family::Llama => "LlamaForCausalLM",
        }],
        "model_type": match s.family { Family::BitNet => "bitnet", _ => "llama" },
        "hidden_size": s.hidden,
        "intermediate_size": s.ffn,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "vocab_size": s.vocab,
        "max_position_embeddings": s.context,
        "rope_theta": s.theta,
        "rms_norm_eps": 1e-5,
        "hidden_act": match s.family { Family::BitNet => "relu2", _ => "silu" },
        "tie_word_embeddings": s.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": vocabulary::BOS,
        "eos_token_id": vocabulary::EOS,
    });
    config["quantization_config"] = match s.family {
        Family::BitNet => json!({
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": if packed { "offline" } else { "online" },
        }),
        Family::Llama => json!({"quant_method": "bitnet", "modules_to_not_convert": null}),
        Family::OneBitLlm => Value::Null,
    };
    config
}

fn tokenizer(vocab: usize) -> Value {
    let tokens = vocabulary::tokens(vocab);
    let ids: serde_json::Map<String, Value> =
        tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id.into())).collect();
    let special: Vec<Value> = vocabulary::SPECIAL
        .iter()
        .map(|(id, text)| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let bos = vocabulary::SPECIAL[0].1;
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary::BOS], "tokens": [bos]}},
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": []},
    })
}
