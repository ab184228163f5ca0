//! GGUF files.

use super::shape::{Family, Names};
use super::{Format, Progress, Result, Role, Synth, Weights, vocabulary};
use bitnet_core::{DenseType, TernaryMatrix};
use bitnet_formats::TensorType;
use bitnet_formats::gguf::{Metadata, Strings, TensorInfo, Value, Writer};
use bitnet_quant::dense::quantize_row;
use bitnet_quant::packing::{I2_S, Packing, Q2_0_G64, TQ1_0, TQ2_0};

static NAMES: Names = Names {
    embedding: "token_embd.weight",
    final_norm: "output_norm.weight",
    head: "output.weight",
    layer: [
        "blk.{}.attn_norm.weight",
        "blk.{}.attn_q.weight",
        "blk.{}.attn_k.weight",
        "blk.{}.attn_v.weight",
        "blk.{}.attn_sub_norm.weight",
        "blk.{}.attn_output.weight",
        "blk.{}.ffn_norm.weight",
        "blk.{}.ffn_gate.weight",
        "blk.{}.ffn_up.weight",
        "blk.{}.ffn_sub_norm.weight",
        "blk.{}.ffn_down.weight",
    ],
};

/// Rows of a table that are made at a time.
const ROWS: usize = 1024;

/// How projections are stored.
#[derive(Clone, Copy)]
enum Storage {
    Ternary(&'static Packing),
    Dense(DenseType),
}

/// The storage and `general.file_type` of a format.
fn storage(format: Format) -> (Storage, u32) {
    match format {
        Format::GgufTq1 => (Storage::Ternary(&TQ1_0), 36),
        Format::GgufTq2 => (Storage::Ternary(&TQ2_0), 37),
        Format::GgufQ2 => (Storage::Ternary(&Q2_0_G64), 42),
        Format::GgufQ4 => (Storage::Dense(DenseType::Q4_0), 2),
        Format::GgufBf16 => (Storage::Dense(DenseType::BF16), 32),
        _ => (Storage::Ternary(&I2_S), 40),
    }
}

/// A projection in its storage.
fn projection(storage: Storage, matrix: &TernaryMatrix) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match storage {
        Storage::Ternary(packing) => (packing.pack)(matrix, &mut bytes)?,
        Storage::Dense(dtype) => {
            let mut values = vec![0.0; matrix.cols()];
            for row in 0..matrix.rows() {
                for (col, value) in values.iter_mut().enumerate() {
                    *value = f32::from(matrix.trit(row, col)) * matrix.scale_at(row, col);
                }
                quantize_row(dtype, &values, &mut bytes)
                    .ok_or_else(|| format!("rows of {} cannot be {}", matrix.cols(), dtype.name()))?;
            }
        }
    }
    Ok(bytes)
}

pub(super) fn write(synth: &Synth, weights: &Weights) -> Result<()> {
    let (storage, file_type) = storage(synth.format);
    let table = synth.embedding.unwrap_or(DenseType::Q6_K);
    let items = weights.shape.items(&NAMES);
    let infos: Vec<TensorInfo> = items
        .iter()
        .map(|item| TensorInfo {
            name: item.name.clone(),
            shape: if item.role == Role::Norm { vec![item.cols] } else { vec![item.rows, item.cols] },
            ttype: match item.role {
                Role::Table => TensorType::Dense(table),
                Role::Norm => TensorType::Dense(DenseType::F32),
                Role::Residual | Role::Projection => match storage {
                    Storage::Ternary(packing) => TensorType::Ternary(packing),
                    Storage::Dense(dtype) => TensorType::Dense(dtype),
                },
            },
        })
        .collect();
    let mut writer = Writer::create(&synth.output, &metadata(synth, file_type), &infos)?;
    let mut progress = Progress { all: items.len(), said: 0 };
    for (index, item) in items.iter().enumerate() {
        match item.role {
            Role::Table | Role::Norm => {
                let dtype = if item.role == Role::Norm { DenseType::F32 } else { table };
                for first in (0..item.rows).step_by(ROWS) {
                    let rows = ROWS.min(item.rows - first);
                    let values = weights.floats(index, item, first, rows);
                    let mut bytes = Vec::new();
                    for row in values.chunks_exact(item.cols) {
                        quantize_row(dtype, row, &mut bytes).ok_or_else(|| {
                            format!("rows of {} cannot be {}; try F16", item.cols, dtype.name())
                        })?;
                    }
                    writer.write(&bytes)?;
                }
            }
            Role::Residual | Role::Projection => {
                writer.write(&projection(storage, &weights.ternary(index, item)?)?)?;
            }
        }
        progress.at(index + 1);
    }
    Ok(writer.finish()?)
}

fn metadata(synth: &Synth, file_type: u32) -> Metadata {
    let s = synth.shape;
    let arch = synth.gguf_arch.as_deref().unwrap_or(match s.family {
        Family::BitNet => "bitnet-b1.58",
        Family::OneBitLlm => "bitnet",
        Family::Llama => "llama",
    });
    let mut m: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String(arch.into())),
        ("general.name".into(), Value::String(format!("random weights, shape {}", s.name))),
        ("general.file_type".into(), Value::U32(file_type)),
    ];
    let sizes = [
        ("vocab_size", s.vocab),
        ("context_length", s.context),
        ("embedding_length", s.hidden),
        ("block_count", s.layers),
        ("feed_forward_length", s.ffn),
        ("rope.dimension_count", s.head_dim),
        ("attention.head_count", s.heads),
        ("attention.head_count_kv", s.kv_heads),
    ];
    m.extend(sizes.map(|(key, n)| (format!("{arch}.{key}"), Value::U32(n as u32))));
    m.push((format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5)));
    m.push((format!("{arch}.rope.freq_base"), Value::F32(s.theta)));
    if synth.no_tokenizer {
        m.push(("tokenizer.ggml.model".into(), Value::String("no_vocab".into())));
    } else {
        let tokens = vocabulary::tokens(s.vocab);
        // 3 is a control token, 5 an unused one.
        let types = (0..s.vocab as u32).map(|id| {
            Value::I32(if id < 256 {
                1
            } else if id <= vocabulary::EOT {
                3
            } else {
                5
            })
        });
        let mut key = |name: &str, value| m.push((format!("tokenizer.{name}"), value));
        key("ggml.model", Value::String("gpt2".into()));
        key("ggml.pre", Value::String("llama-bpe".into()));
        key("ggml.token_type", Value::Array(types.collect()));
        key("ggml.tokens", Value::Strings(tokens.iter().collect()));
        key("ggml.merges", Value::Strings(Strings::default()));
        key("ggml.bos_token_id", Value::U32(vocabulary::BOS));
        key("ggml.eos_token_id", Value::U32(vocabulary::EOS));
        key("ggml.eot_token_id", Value::U32(vocabulary::EOT));
        key("ggml.add_bos_token", Value::Bool(true));
        key("chat_template", Value::String(vocabulary::TEMPLATE.into()));
    }
    Metadata(m)
}
