//! Small random models: what the oracle computes with, and the checkpoint that says the same in bytes.

use crate::files::{self, Gguf, Key, Stored};
use crate::oracle::{self, Act, Layer, Local, Mat, Model};
use crate::tensors::{self, Float, Noise, Scales};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, non_camel_case_types, reason = "the names are the formats' own")]
pub enum Store {
    /// Random floats: master weights, or dense ones.
    Float(Float),
    /// Floats of one magnitude.
    Trits(Float),
    Q8_0,
    Q4_0,
    Q4_1,
    Q6_K,
    Q1_0,
    Q2_0 {
        group: usize,
    },
    I2_S,
    TQ1_0(Scales),
    TQ2_0(Scales),
    /// Hugging Face's packed bytes with a `weight_scale` beside them.
    Packed {
        scales: Scales,
        divisor: bool,
    },
}

/// Who named the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Transformers,
    /// Classes without a head.
    Bare,
    OneBitLlm,
    Gguf,
}

/// An architecture, stated anew.
#[derive(Clone, Copy, Debug)]
pub struct Arch {
    /// The name in files.
    pub name: &'static str,
    family: Family,
    sub_norms: bool,
    qk_norms: bool,
    act: Act,
    interleaved: bool,
    /// Norms on the outputs of blocks, a scaled embedding, and norms stored less 1 in transformers' files.
    gemma: bool,
    /// Norms before projections.
    input_norms: bool,
}

const LLAMA_CLASS: Arch = Arch {
    name: "LlamaForCausalLM",
    family: Family::Transformers,
    sub_norms: false,
    qk_norms: false,
    act: Act::Silu,
    interleaved: false,
    gemma: false,
    input_norms: false,
};

#[allow(missing_docs, reason = "the names are the files' own")]
impl Arch {
    pub const LLAMA_HF: Self = LLAMA_CLASS;
    pub const BITNET_HF: Self =
        Self { name: "BitNetForCausalLM", sub_norms: true, act: Act::Relu2, ..LLAMA_CLASS };
    pub const ONE_BIT_LLM_HF: Self =
        Self { name: "BitnetForCausalLM", family: Family::OneBitLlm, sub_norms: true, ..LLAMA_CLASS };
    pub const LLAMA: Self = Self { name: "llama", family: Family::Gguf, interleaved: true, ..LLAMA_CLASS };
    pub const QWEN3: Self = Self { name: "qwen3", family: Family::Gguf, qk_norms: true, ..LLAMA_CLASS };
    pub const MISTRAL_HF: Self = Self { name: "MistralForCausalLM", ..LLAMA_CLASS };
    pub const QWEN3_HF: Self = Self { name: "Qwen3ForCausalLM", qk_norms: true, ..LLAMA_CLASS };
    /// With transformers' `use_rms_norm`.
    pub const BITNET_HF_NORMED: Self = Self { input_norms: true, ..Self::BITNET_HF };
    /// BitNet-embedding-0.6B.
    pub const QWEN3_EMBEDDING: Self =
        Self { name: "Qwen3Model", family: Family::Bare, input_norms: true, ..Self::QWEN3_HF };
    pub const QWEN3_EMBEDDING_GGUF: Self = Self { input_norms: true, ..Self::QWEN3 };
    pub const GEMMA3_HF: Self =
        Self { name: "Gemma3ForCausalLM", act: Act::Gelu, gemma: true, qk_norms: true, ..LLAMA_CLASS };
    pub const GEMMA3: Self = Self { name: "gemma3", family: Family::Gguf, ..Self::GEMMA3_HF };
    /// BitNet-embedding-270M.
    pub const GEMMA3_EMBEDDING: Self =
        Self { name: "Gemma3TextModel", family: Family::Bare, input_norms: true, ..Self::GEMMA3_HF };
    pub const GEMMA3_EMBEDDING_GGUF: Self = Self { input_norms: true, ..Self::GEMMA3 };
    pub const BITNET: Self = Self { name: "bitnet", family: Family::Gguf, sub_norms: true, ..LLAMA_CLASS };
    pub const BITNET_25: Self = Self { name: "bitnet-25", act: Act::Relu2, ..Self::BITNET };
    pub const BITNET_B158: Self = Self { name: "bitnet-b1.58", act: Act::Relu2, ..Self::BITNET };
}

/// How rotary frequencies are stretched.
#[derive(Clone, Copy, Debug)]
pub enum Scaling {
    /// By a factor.
    Linear(f64),
    /// `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`.
    Llama3([f64; 4]),
    /// `factor`, `original_max_position_embeddings`.
    Yarn([f64; 2]),
}

/// A model to be made up.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names are those of configurations")]
pub struct Spec {
    pub arch: Arch,
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub eps: f64,
    pub theta: f64,
    pub scaling: Option<Scaling>,
    /// Layers that see so many positions: those of odd numbers in Hugging Face files, all in GGUF but every sixth of Gemma's.
    pub window: Option<usize>,
    pub embedding: Store,
    /// Tied when `None`.
    pub head: Option<Store>,
    pub projections: Store,
    /// Parts that are dense in BF16 whatever the other projections are.
    pub dense: &'static [&'static str],
    /// Whether float projections are master weights, made ternary by absmean.
    pub absmean: bool,
    /// Whether inputs of ternary projections are quantized.
    pub int8: bool,
    /// Whether every projection has a `.scale` tensor beside it (GGUF).
    pub factors: bool,
    /// Version of the file (GGUF).
    pub version: u32,
    /// More metadata (GGUF).
    pub keys: &'static [(&'static str, Key<'static>)],
    /// Files of tensors (Hugging Face).
    pub shards: usize,
    /// Changes to `config.json` (Hugging Face).
    pub edit: fn(&mut Value),
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            arch: Arch::LLAMA_HF,
            hidden: 64,
            ffn: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 40,
            eps: 1e-5,
            theta: 10_000.0,
            scaling: None,
            window: None,
            embedding: Store::Float(Float::BF16),
            head: None,
            projections: Store::Float(Float::BF16),
            dense: &[],
            absmean: false,
            int8: true,
            factors: false,
            version: 3,
            keys: &[],
            shards: 1,
            edit: |_| {},
        }
    }
}

/// A tensor's part in a model, its name in transformers, its name in GGUF.
const NAMES: [(&str, &str, &str); 18] = [
    ("embedding", "model.embed_tokens", "token_embd"),
    ("final_norm", "model.norm", "output_norm"),
    ("head", "lm_head", "output"),
    ("attn_norm", "input_layernorm", "attn_norm"),
    ("q", "self_attn.q_proj", "attn_q"),
    ("k", "self_attn.k_proj", "attn_k"),
    ("v", "self_attn.v_proj", "attn_v"),
    ("o", "self_attn.o_proj", "attn_output"),
    ("q_norm", "self_attn.q_norm", "attn_q_norm"),
    ("k_norm", "self_attn.k_norm", "attn_k_norm"),
    ("attn_sub_norm", "self_attn.attn_sub_norm", "attn_sub_norm"),
    ("ffn_norm", "post_attention_layernorm", "ffn_norm"),
    ("gate", "mlp.gate_proj", "ffn_gate"),
    ("up", "mlp.up_proj", "ffn_up"),
    ("down", "mlp.down_proj", "ffn_down"),
    ("ffn_sub_norm", "mlp.ffn_sub_norm", "ffn_sub_norm"),
    // Gemma's own.
    ("attn_post_norm", "post_attention_layernorm", "post_attention_norm"),
    ("ffn_post_norm", "post_feedforward_layernorm", "post_ffw_norm"),
];

impl Family {
    fn name(self, part: &str, layer: Option<usize>, gemma: bool) -> String {
        if let Some(projection) = part.strip_suffix("_in") {
            let stem = self.name(projection, layer, gemma);
            let stem = stem.strip_suffix(".weight").unwrap();
            return match self {
                Self::Gguf => format!("{stem}_norm_in.weight"),
                Self::Bare => format!("{stem}.norm.weight"),
                _ => format!("{stem}.rms_norm.weight"),
            };
        }
        let (_, transformers, gguf) = NAMES.iter().find(|n| n.0 == part).unwrap();
        let transformers =
            if self == Self::Bare { transformers.trim_start_matches("model.") } else { transformers };
        let stem = match (self, part) {
            (Self::Gguf, _) => gguf,
            (_, "ffn_norm") if gemma => "pre_feedforward_layernorm",
            (Self::OneBitLlm, "attn_sub_norm") => "self_attn.inner_attn_ln",
            (Self::OneBitLlm, "ffn_sub_norm") => "mlp.ffn_layernorm",
            _ => transformers,
        };
        match (self, layer) {
            (_, None) => format!("{stem}.weight"),
            (Self::Gguf, Some(l)) => format!("blk.{l}.{stem}.weight"),
            (Self::Bare, Some(l)) => format!("layers.{l}.{stem}.weight"),
            (_, Some(l)) => format!("model.layers.{l}.{stem}.weight"),
        }
    }
}

/// A model and its checkpoint.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// What the oracle computes with.
    pub model: Model,
    /// What the file holds.
    pub tensors: Vec<Stored>,
    /// What the configuration says.
    pub spec: Spec,
}

impl Spec {
    /// Makes the model that a seed stands for.
    pub fn build(&self, seed: u64) -> Synthetic {
        let mut maker = Maker { spec: self, noise: Noise(seed), tensors: Vec::new(), layer: None };
        let embedding = maker.matrix("embedding", self.vocab, self.hidden, self.embedding);
        let layers = (0..self.layers).map(|l| maker.layer(l)).collect();
        maker.layer = None;
        let final_norm = maker.norm("final_norm", self.hidden);
        let head = self.head.map(|store| maker.matrix("head", self.vocab, self.hidden, store));
        let (mut frequencies, mut rotation) = (oracle::frequencies(self.theta, self.head_dim), 1.0);
        match self.scaling {
            None => {}
            Some(Scaling::Linear(factor)) => frequencies.iter_mut().for_each(|f| *f /= factor),
            Some(Scaling::Yarn([factor, original])) => {
                (frequencies, rotation) = oracle::yarn(&frequencies, self.theta, factor, original);
            }
            Some(Scaling::Llama3([factor, low, high, original])) => {
                let scaled = oracle::llama3(&frequencies, factor, low, high, original);
                if self.arch.family == Family::Gguf {
                    let factors: Vec<f32> =
                        frequencies.iter().zip(&scaled).map(|(f, s)| (f / s) as f32).collect();
                    maker.push("rope_freqs.weight".into(), &[factors.len()], F32, f32_bytes(&factors));
                }
                frequencies = scaled;
            }
        }
        let model = Model {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            eps: self.eps,
            frequencies,
            rotation,
            act: self.arch.act,
            embedding_scale: if self.arch.gemma { (self.hidden as f64).sqrt() } else { 1.0 },
            embedding,
            layers,
            final_norm,
            head,
        };
        Synthetic { model, tensors: maker.tensors, spec: *self }
    }

    /// The first of twenty models of which no activation on the way of `ids` is nearer to an int8 rounding boundary than `gap`,
    /// and what the oracle makes of it.
    ///
    /// # Panics
    /// When there is none.
    pub fn clear(&self, ids: &[u32], gap: f64) -> (Synthetic, oracle::Output) {
        let models = (1..20).map(|seed| self.build(seed));
        let mut runs = models.map(|made| (made.model.forward(ids), made)).map(|(out, made)| (made, out));
        runs.find(|(_, out)| out.gap >= gap).expect("one of twenty models has no activation near a boundary")
    }

    fn is_local(&self, layer: usize) -> bool {
        let Self { arch, window, .. } = self;
        match (window, arch.family, arch.gemma) {
            (None, ..) => false,
            (_, Family::Gguf, true) => !(layer + 1).is_multiple_of(6),
            (_, Family::Gguf, false) => true,
            // Mistral's files do not name them: all are.
            _ if arch.name == Arch::MISTRAL_HF.name => true,
            _ => layer % 2 == 1,
        }
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "architectures": [self.arch.name], "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "vocab_size": self.vocab,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "rms_norm_eps": self.eps,
            "rope_theta": self.theta, "max_position_embeddings": 512, "tie_word_embeddings": self.head.is_none(),
            "hidden_act": match self.arch.act { Act::Relu2 => "relu2", Act::Silu => "silu", Act::Gelu => "gelu_pytorch_tanh" },
        });
        if let Some(window) = self.window {
            config["sliding_window"] = window.into();
            config["use_sliding_window"] = true.into();
            config["layer_types"] = (0..self.layers)
                .map(|l| if self.is_local(l) { "sliding_attention" } else { "full_attention" })
                .collect();
        }
        if self.arch.gemma {
            config["query_pre_attn_scalar"] = self.head_dim.into();
            config["rope_local_base_freq"] = LOCAL_THETA.into();
        }
        match self.scaling {
            None => {}
            Some(Scaling::Linear(factor)) => {
                config["rope_scaling"] = json!({"type": "linear", "factor": factor});
            }
            Some(Scaling::Yarn([factor, original])) => {
                config["rope_scaling"] = json!({"rope_type": "yarn", "factor": factor,
                    "original_max_position_embeddings": original as u64});
            }
            Some(Scaling::Llama3([factor, low, high, original])) => {
                config["rope_scaling"] = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                    "high_freq_factor": high, "original_max_position_embeddings": original as u64});
            }
        }
        config["quantization_config"] = match self.projections {
            Store::Packed { divisor: true, .. } => {
                json!({"quant_method": "bitnet", "modules_to_not_convert": null})
            }
            Store::Packed { divisor: false, .. } => json!({"quant_method": "bitnet",
                "linear_class": "autobitlinear", "quantization_mode": "offline"}),
            _ if self.absmean && self.arch.family == Family::Transformers => json!({"quant_method": "bitnet",
                "linear_class": "autobitlinear", "quantization_mode": "online"}),
            _ => Value::Null,
        };
        (self.edit)(&mut config);
        config
    }
}

impl Synthetic {
    /// Writes the checkpoint into a directory and returns its path.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let s = &self.spec;
        if s.arch.family != Family::Gguf {
            files::huggingface(dir, &s.config(), &self.tensors, s.shards);
            return dir.to_owned();
        }
        let mut file = Gguf::new(s.version);
        file.set("general.architecture", Key::String(s.arch.name));
        let mut set = |key: &str, value: Key<'_>| file.set(&format!("{}.{key}", s.arch.name), value);
        let mut counts = vec![
            ("embedding_length", s.hidden),
            ("feed_forward_length", s.ffn),
            ("block_count", s.layers),
            ("context_length", 512),
            ("attention.head_count", s.heads),
            ("attention.head_count_kv", s.kv_heads),
        ];
        if s.head_dim * s.heads == s.hidden {
            counts.push(("rope.dimension_count", s.head_dim));
        } else {
            counts.extend([("attention.key_length", s.head_dim), ("attention.value_length", s.head_dim)]);
        }
        counts.iter().for_each(|(key, n)| set(key, Key::U32(*n as u32)));
        set("attention.layer_norm_rms_epsilon", Key::F32(s.eps as f32));
        if let Some(window) = s.window {
            set("attention.sliding_window", Key::U32(window as u32));
        }
        set("rope.freq_base", Key::F32(s.theta as f32));
        if let Some(Scaling::Linear(factor) | Scaling::Yarn([factor, _])) = s.scaling {
            set("rope.scaling.factor", Key::F32(factor as f32));
        }
        if let Some(Scaling::Yarn([_, original])) = s.scaling {
            set("rope.scaling.type", Key::String("yarn"));
            set("rope.scaling.original_context_length", Key::U32(original as u32));
        }
        s.keys.iter().for_each(|(key, value)| file.set(key, *value));
        file.tensors = self.tensors.iter().map(|t| (t.clone(), None)).collect();
        let path = dir.join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        path
    }
}

/// Rotation of Gemma's layers with a window.
const LOCAL_THETA: f64 = 10_000.0;

const F32: (u32, &str) = (0, "F32");
const BF16: (u32, &str) = (30, "BF16");

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn float_type(float: Float) -> (u32, &'static str) {
    match float {
        Float::F32 => F32,
        Float::F16 => (1, "F16"),
        Float::BF16 => BF16,
    }
}

struct Maker<'a> {
    spec: &'a Spec,
    noise: Noise,
    tensors: Vec<Stored>,
    layer: Option<usize>,
}

impl Maker<'_> {
    fn push(&mut self, name: String, shape: &[usize], ttype: (u32, &'static str), bytes: Vec<u8>) {
        self.tensors.push(Stored { name, shape: shape.to_vec(), ttype, bytes });
    }

    fn layer(&mut self, layer: usize) -> Layer {
        let Spec { arch, hidden, ffn, heads, kv_heads, head_dim, projections: store, .. } = *self.spec;
        let (q_rows, kv_rows) = (heads * head_dim, kv_heads * head_dim);
        self.layer = Some(layer);
        Layer {
            attn_norm: self.norm("attn_norm", hidden),
            q: self.matrix("q", q_rows, hidden, store),
            k: self.matrix("k", kv_rows, hidden, store),
            v: self.matrix("v", kv_rows, hidden, store),
            qk_norms: arch.qk_norms.then(|| (self.norm("q_norm", head_dim), self.norm("k_norm", head_dim))),
            attn_sub_norm: arch.sub_norms.then(|| self.norm("attn_sub_norm", q_rows)),
            o: self.matrix("o", hidden, q_rows, store),
            attn_post_norm: arch.gemma.then(|| self.norm("attn_post_norm", hidden)),
            local: self.spec.is_local(layer).then(|| Local {
                window: self.spec.window.unwrap(),
                frequencies: arch.gemma.then(|| oracle::frequencies(LOCAL_THETA, head_dim)),
            }),
            ffn_norm: self.norm("ffn_norm", hidden),
            gate: self.matrix("gate", ffn, hidden, store),
            up: self.matrix("up", ffn, hidden, store),
            ffn_sub_norm: arch.sub_norms.then(|| self.norm("ffn_sub_norm", ffn)),
            down: self.matrix("down", hidden, ffn, store),
            ffn_post_norm: arch.gemma.then(|| self.norm("ffn_post_norm", hidden)),
        }
    }

    /// Norm weights: numbers of bf16, which transformers' checkpoints store as such and GGUF as f32.
    fn norm(&mut self, part: &str, len: usize) -> Vec<f64> {
        let Arch { family, gemma, input_norms, .. } = self.spec.arch;
        // Gemma's norms are stored less 1 but where llama.cpp's converter has been.
        let less = gemma && !part.ends_with("_in") && (family != Family::Gguf || input_norms);
        let (mut bytes, mut values) = tensors::bf16s(&mut self.noise, len, if less { 0.0 } else { 1.0 }, 0.4);
        let ttype = if family == Family::Gguf { F32 } else { BF16 };
        if ttype == F32 {
            bytes = f32_bytes(&values.iter().map(|v| *v as f32).collect::<Vec<_>>());
        }
        self.push(family.name(part, self.layer, gemma), &[len], ttype, bytes);
        if less {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        values
    }

    fn matrix(&mut self, part: &str, rows: usize, cols: usize, store: Store) -> Mat {
        let (arch, n, noise) = (self.spec.arch, rows * cols, &mut self.noise);
        let stays_dense = self.spec.dense.contains(&part);
        let store = if stays_dense { Store::Float(Float::BF16) } else { store };
        let name = arch.family.name(part, self.layer, arch.gemma);
        // Files for interleaved rotation hold rows `i` and `i + d/2` of a head next to each other.
        let d = self.spec.head_dim;
        let order: Vec<usize> = match arch.interleaved && (part == "q" || part == "k") {
            true => (0..rows).map(|r| r / d * d + r % 2 * (d / 2) + r % d / 2).collect(),
            false => (0..rows).collect(),
        };
        let mut scale = None;
        let (ttype, (bytes, mut values)) = match store {
            Store::Float(Float::F32) => (F32, tensors::f32s(noise, n, 0.2)),
            Store::Float(Float::F16) => (float_type(Float::F16), tensors::f16s(noise, n, 0.5)),
            Store::Float(Float::BF16) => (BF16, tensors::bf16s(noise, n, 0.0, 0.2)),
            Store::Trits(float) => (float_type(float), tensors::one_magnitude(noise, n, float)),
            Store::Q8_0 => ((8, ""), tensors::q8_0(noise, n)),
            Store::Q4_0 => ((2, ""), tensors::q4_0(noise, n)),
            Store::Q4_1 => ((3, ""), tensors::q4_1(noise, n)),
            Store::Q6_K => ((14, ""), tensors::q6_k(noise, n)),
            Store::Q1_0 => ((41, ""), tensors::q1_0(noise, n)),
            Store::Q2_0 { group } => ((42, ""), tensors::q2_0(noise, n, group)),
            Store::TQ1_0(scales) => ((34, ""), tensors::tq1_0(noise, n, scales)),
            Store::TQ2_0(scales) => ((35, ""), tensors::tq2_0(noise, n, scales)),
            Store::I2_S | Store::Packed { .. } => {
                let (scales, divisor) = match store {
                    Store::Packed { scales, divisor } => (scales, divisor),
                    _ => (Scales::One, false),
                };
                let count = if scales == Scales::One { 1 } else { rows };
                let stored: Vec<f32> = (0..count)
                    .map(|_| 0.09 + 0.03 * noise.unit())
                    .map(|s| if divisor { 1.0 / s } else { s } as f32)
                    .collect();
                let real = |row: usize| {
                    let s = f64::from(stored[row % count]);
                    if divisor { 1.0 / s } else { s }
                };
                let trits = tensors::trits(noise, n);
                let values = trits.iter().enumerate().map(|(i, t)| f64::from(*t) * real(i / cols)).collect();
                if store == Store::I2_S {
                    let trits: Vec<i8> =
                        order.iter().flat_map(|r| &trits[r * cols..][..cols]).copied().collect();
                    ((36, ""), (tensors::i2_s(&trits, stored[0]), values))
                } else {
                    scale = Some((format!("{name}_scale"), stored));
                    ((0, "U8"), (tensors::hf_packed(&trits, rows, cols), values))
                }
            }
        };
        let bytes = match store {
            Store::I2_S | Store::Packed { .. } => bytes,
            _ => {
                let len = bytes.len() / rows;
                order.iter().flat_map(|r| &bytes[r * len..][..len]).copied().collect()
            }
        };
        let projection = self.layer.is_some();
        let masters = projection && self.spec.absmean && !stays_dense && matches!(store, Store::Float(_));
        if masters {
            values = tensors::absmean(&values);
        }
        let blocks = matches!(store, Store::Q8_0 | Store::Q4_0 | Store::Q4_1 | Store::Q6_K);
        let dense = (blocks || matches!(store, Store::Float(_))) && !masters;
        if projection && self.spec.factors {
            let factor = (0.75 + 0.25 * self.noise.unit()) as f32;
            values.iter_mut().for_each(|v| *v *= f64::from(factor));
            scale = Some((name.replace(".weight", ".scale"), vec![factor]));
        }
        let shape = if ttype.1 == "U8" { [rows / 4, cols] } else { [rows, cols] };
        self.push(name, &shape, ttype, bytes);
        if let Some((name, values)) = scale {
            self.push(name, &[values.len()], F32, f32_bytes(&values));
        }
        let norm = (projection && arch.input_norms).then(|| self.norm(&format!("{part}_in"), cols));
        Mat { rows, cols, w: values, int8: projection && self.spec.int8 && !dense, norm }
    }
}
