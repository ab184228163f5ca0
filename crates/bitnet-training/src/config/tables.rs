//! The tables of a configuration.

use super::section::Section;
use super::{DataConfig, DistillConfig, LoraConfig, ModelSource, SampleConfig, TrainConfig};
use crate::TrainError;
use crate::optimizer::{Adam, Optimizer};
use crate::preference::Dpo;
use crate::run::Kind;
use crate::schedule::{Schedule, Shape};
use crate::{Activations, Bits, ExtraNorms, Objectives, Precision, Ramp, WeightQuantizer};
use bitnet_cpu::Terms;
use bitnet_inference::{Device, Placement};
use serde_json::json;
use std::path::PathBuf;

/// Keys of a fresh model.
const FRESH: [&str; 13] = [
    "tokenizer",
    "architecture",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "untied_embeddings",
    "initializer_range",
];

pub(super) fn model(mut s: Section<'_>, kind: Kind) -> Result<ModelSource, TrainError> {
    let source = match s.text("init")? {
        Some(path) => {
            s.refuse(&FRESH, "does not go with model.init, whose model has its own")?;
            ModelSource::Checkpoint(path.into())
        }
        None if kind == Kind::Qat => {
            return Err(s.error("init", "is missing: a directory of the weights that are to become ternary"));
        }
        None if kind == Kind::Lora => {
            return Err(s.error("init", "is missing: the model that the adapter is for"));
        }
        None => {
            let tokenizer = s.text("tokenizer")?.ok_or_else(|| {
                s.error("init", "is missing: a directory of weights, or tokenizer and sizes")
            })?;
            let architecture = s.choice(
                "architecture",
                ("BitNetForCausalLM", "bitnet", "relu2"),
                &[
                    ("BitNetForCausalLM", ("BitNetForCausalLM", "bitnet", "relu2")),
                    ("LlamaForCausalLM", ("LlamaForCausalLM", "llama", "silu")),
                    ("Qwen3ForCausalLM", ("Qwen3ForCausalLM", "qwen3", "silu")),
                ],
            )?;
            let mut size = |key| s.size(key)?.ok_or_else(|| s.error(key, "is missing"));
            let (hidden, ffn) = (size("hidden_size")?, size("intermediate_size")?);
            let (layers, heads) = (size("num_hidden_layers")?, size("num_attention_heads")?);
            let kv_heads = s.size("num_key_value_heads")?.unwrap_or(heads);
            let context = s.size("max_position_embeddings")?.unwrap_or(2048);
            let theta = s.number("rope_theta", (1.0, f64::MAX))?.unwrap_or(500_000.0);
            let eps = s.number("rms_norm_eps", (0.0, 1.0))?.unwrap_or(1e-5);
            let tied = !s.flag("untied_embeddings")?;
            let mut config = json!({
                "architectures": [architecture.0],
                "model_type": architecture.1,
                "hidden_act": architecture.2,
                "hidden_size": hidden,
                "intermediate_size": ffn,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "max_position_embeddings": context,
                "rope_theta": theta,
                "rms_norm_eps": eps,
                "tie_word_embeddings": tied,
            });
            if let Some(head_dim) = s.size("head_dim")? {
                config["head_dim"] = json!(head_dim);
            }
            let deviation = s.number("initializer_range", (0.0, 10.0))?.unwrap_or(0.02);
            ModelSource::Fresh { config, tokenizer: tokenizer.into(), deviation }
        }
    };
    s.finish()?;
    Ok(source)
}

pub(super) fn quantize(mut s: Section<'_>, kind: Kind, seed: u64) -> Result<Precision, TrainError> {
    let words = ["absmean", "absmedian", "twn", "lsq", "seq", "none"].map(|w| (w, w));
    let word = s.choice("weights", "absmean", &words)?;
    let weights = match word {
        "absmedian" => WeightQuantizer::Absmedian,
        "twn" => WeightQuantizer::Twn,
        "lsq" => WeightQuantizer::Lsq {
            bits: bits(&mut s, &[Bits::Ternary, Bits::Two, Bits::Three, Bits::Four, Bits::Eight])?,
            rows: s.choice("steps", false, &[("tensor", false), ("row", true)])?,
        },
        "seq" => WeightQuantizer::Seq {
            bits: bits(&mut s, &[Bits::One, Bits::Ternary, Bits::Two, Bits::Three, Bits::Four])?,
        },
        "none" => WeightQuantizer::Float,
        _ => WeightQuantizer::Absmean,
    };
    if kind == Kind::Lora && weights.steps(1) > 0 {
        let what =
            format!("is {word}, whose steps are learned with the weights, and lora leaves those alone");
        return Err(s.error("weights", what));
    }
    let rounded = !matches!(weights, WeightQuantizer::Float | WeightQuantizer::Twn)
        && weights != (WeightQuantizer::Seq { bits: Bits::One });
    let stochastic = s.choice("rounding", false, &[("nearest", false), ("stochastic", true)])?;
    if stochastic && !rounded {
        return Err(s.error("rounding", "is stochastic, and these weights are not rounded"));
    }
    if stochastic && kind == Kind::Lora {
        return Err(s.error("rounding", "is stochastic, and an adapter leaves weights as they are run"));
    }
    let ternary = weights.is_ternary();
    let default = if ternary { Activations::Int8 } else { Activations::Float };
    let words = [
        ("int8", Activations::Int8),
        ("int4", Activations::Int4),
        ("a4.8", Activations::A48),
        ("none", Activations::Float),
    ];
    let activations = s.choice("activations", default, &words)?;
    let hadamard = s.flag("hadamard")?;
    if hadamard && !ternary {
        return Err(s.error("hadamard", "is true, and weights are not ternary"));
    }
    let top_k = s.number("top_k", (1e-3, 1.0))?;
    if hadamard && top_k.is_some() {
        return Err(s.error("top_k", "does not go with hadamard, which leaves no element small"));
    }
    let top_k = top_k.or((activations == Activations::A48 && !hadamard).then_some(0.5)).filter(|k| *k < 1.0);
    let ramp = Ramp {
        steps: s.count("ramp", 0)?.unwrap_or(0),
        by_layer: s.choice("ramp_order", false, &[("together", false), ("layers", true)])?,
    };
    if ramp.steps > 0 && weights == WeightQuantizer::Float {
        return Err(s.error("ramp", "is set, and weights are not quantized"));
    }
    if ramp.steps > 0 && kind == Kind::Lora {
        return Err(s.error("ramp", "is set, and an adapter leaves weights as they are run"));
    }
    let converts = matches!(kind, Kind::Qat | Kind::Distill) && ternary;
    let extra_norms = s.choice(
        "extra_norms",
        if converts { ExtraNorms::Auto } else { ExtraNorms::None },
        &[
            ("none", ExtraNorms::None),
            ("blocks", ExtraNorms::Blocks),
            ("projections", ExtraNorms::Projections),
            ("auto", ExtraNorms::Auto),
        ],
    )?;
    if extra_norms != ExtraNorms::None && (!ternary || kind == Kind::Lora) {
        return Err(s.error("extra_norms", "are for ternary weights that are trained"));
    }
    if kind == Kind::Qat && weights == WeightQuantizer::Float {
        return Err(s.error("weights", "is none, and qat is for weights that are quantized"));
    }
    s.finish()?;
    let stochastic = stochastic.then_some(seed);
    let terms = Terms::F32;
    Ok(Precision { weights, stochastic, activations, top_k, hadamard, ramp, extra_norms, terms })
}

/// Bits of a weight, those of three values when nothing is said.
fn bits(s: &mut Section<'_>, allowed: &[Bits]) -> Result<Bits, TrainError> {
    const NAMES: [(Bits, f64); 6] = [
        (Bits::One, 1.0),
        (Bits::Ternary, 1.58),
        (Bits::Two, 2.0),
        (Bits::Three, 3.0),
        (Bits::Four, 4.0),
        (Bits::Eight, 8.0),
    ];
    let Some(number) = s.number("bits", (1.0, 8.0))? else { return Ok(Bits::Ternary) };
    let known = NAMES.iter().filter(|(bits, _)| allowed.contains(bits));
    known.clone().find(|(_, n)| *n == number).map(|(bits, _)| *bits).ok_or_else(|| {
        let all: Vec<String> = known.map(|(_, n)| n.to_string()).collect();
        s.error("bits", format!("is {number}; it is one of {}", all.join(", ")))
    })
}

pub(super) fn lora(mut s: Section<'_>) -> Result<LoraConfig, TrainError> {
    let rank = s.size("rank")?.unwrap_or(8);
    if rank > 4096 {
        return Err(s.error("rank", format!("is {rank}; it may be 4096 at most")));
    }
    let mut targets = s.texts("targets")?;
    if targets.is_empty() {
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        targets = all.map(str::to_owned).to_vec();
    }
    let config = LoraConfig {
        rank,
        alpha: s.number("alpha", (0.0, 1e6))?.unwrap_or(2.0 * rank as f64),
        rank_stabilized: s.flag("rank_stabilized")?,
        dora: s.flag("dora")?,
        trits: s.flag("trits")?,
        targets,
        dropout: s.number("dropout", (0.0, 0.99))?.unwrap_or(0.0),
    };
    if config.trits && config.dora {
        return Err(s.error("dora", "does not go with lora.trits, whose sum has the lengths of its trits"));
    }
    if config.trits && config.dropout > 0.0 {
        return Err(s.error("dropout", "does not go with lora.trits, whose matrices see no inputs"));
    }
    s.finish()?;
    Ok(config)
}

pub(super) fn dpo(mut s: Section<'_>) -> Result<Dpo, TrainError> {
    let beta = s.number("beta", (0.0, 100.0))?.unwrap_or(0.1);
    if beta == 0.0 {
        return Err(s.error("beta", "is 0, which leaves nothing to learn"));
    }
    let label_smoothing = s.number("label_smoothing", (0.0, 0.499))?.unwrap_or(0.0);
    s.finish()?;
    Ok(Dpo { beta, label_smoothing })
}

pub(super) fn samples(mut s: Section<'_>) -> Result<SampleConfig, TrainError> {
    let prompts = s.texts("prompts")?;
    if prompts.is_empty() {
        s.refuse(&["chat", "tokens", "temperature", "every"], "has no effect without samples.prompts")?;
    }
    let config = SampleConfig {
        prompts,
        chat: s.flag("chat")?,
        tokens: s.size("tokens")?.unwrap_or(40),
        temperature: s.number("temperature", (0.0, 100.0))?.unwrap_or(0.0),
        every: s.count("every", 1)?.unwrap_or(0),
    };
    s.finish()?;
    Ok(config)
}

pub(super) fn distill(mut s: Section<'_>) -> Result<DistillConfig, TrainError> {
    let teacher =
        s.text("teacher")?.ok_or_else(|| s.error("teacher", "is missing: a directory of a model"))?;
    let any = (0.0, f64::MAX);
    let index = |n: Option<u64>| n.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let config = DistillConfig {
        teacher: teacher.into(),
        logits: s.number("logits", any)?.unwrap_or(1.0),
        temperature: s.number("temperature", (1e-3, 1e3))?.unwrap_or(2.0),
        relations: s.number("relations", any)?.unwrap_or(1.0),
        layer: index(s.count("layer", 0)?),
        teacher_layer: index(s.count("teacher_layer", 0)?),
        heads: s.size("relation_heads")?,
        cosine: s.choice("likeness", false, &[("dot", false), ("cosine", true)])?,
        causal: s.flag("causal")?,
        unrotated: s.flag("unrotated")?,
    };
    if config.logits == 0.0 && config.relations == 0.0 {
        return Err(s.error("logits", "and relations are 0: nothing is learned from the teacher"));
    }
    s.finish()?;
    Ok(config)
}

pub(super) fn objectives(
    mut s: Section<'_>,
    quantized: bool,
    taught: bool,
) -> Result<Objectives, TrainError> {
    let any = (0.0, f64::MAX);
    let objectives = Objectives {
        loss: s.number("loss", any)?.unwrap_or(1.0),
        size: s.number("size", any)?.unwrap_or(0.0),
        sparsity: s.number("sparsity", any)?.unwrap_or(0.0),
    };
    if objectives.size > 0.0 && !quantized {
        return Err(s.error("size", "is set, and no weights are trained that are quantized"));
    }
    if objectives == (Objectives { loss: 0.0, size: 0.0, sparsity: 0.0 }) && !taught {
        return Err(s.error("loss", "is 0, which leaves nothing to learn"));
    }
    s.finish()?;
    Ok(objectives)
}

pub(super) fn data(mut s: Section<'_>) -> Result<DataConfig, TrainError> {
    let paths = |texts: Vec<String>| texts.into_iter().map(PathBuf::from).collect::<Vec<_>>();
    let train = paths(s.texts("train")?);
    if train.is_empty() {
        return Err(s.error("train", "is missing: files to train on"));
    }
    let config = DataConfig {
        train,
        validation: paths(s.texts("validation")?),
        validation_share: s.number("validation_share", (0.0, 0.9))?.unwrap_or(0.0),
        sequence: s.size("sequence")?.unwrap_or(512),
        drop_long: s.choice("too_long", false, &[("error", false), ("drop", true)])?,
    };
    s.finish()?;
    Ok(config)
}

/// How it is trained; each of so many devices has a worker at least.
pub(super) fn train(
    mut s: Section<'_>,
    kind: Kind,
    devices: usize,
) -> Result<(TrainConfig, Terms), TrainError> {
    let steps = s.count("steps", 1)?.ok_or_else(|| s.error("steps", "is missing"))?;
    let any = (0.0, f64::MAX);
    let pretrain = kind == Kind::Pretrain;
    let terms = s.choice("products", Terms::F32, &[("bf16", Terms::Bf16), ("f32", Terms::F32)])?;
    let words = ["adamw", "adam", "sgd", "muon"].map(|w| (w, w));
    let word = s.choice("optimizer", "adamw", &words)?;
    let mut adam = || -> Result<Adam, TrainError> {
        let betas = s.betas("betas")?.unwrap_or((0.9, 0.95));
        Ok(Adam { betas, eps: s.number("eps", (0.0, 1.0))?.unwrap_or(1e-8) })
    };
    let optimizer = match word {
        "adam" => Optimizer::Adam(adam()?),
        "sgd" => Optimizer::Sgd {
            momentum: s.number("momentum", (0.0, 1.0))?.unwrap_or(0.9),
            nesterov: s.flag("nesterov")?,
        },
        "muon" => {
            let adam = adam()?;
            Optimizer::Muon { momentum: s.number("momentum", (0.0, 1.0))?.unwrap_or(0.95), adam, terms }
        }
        _ => Optimizer::AdamW(adam()?),
    };
    let base = s.number("rate", any)?.unwrap_or(match kind {
        Kind::Pretrain => 1.5e-3,
        Kind::Sft | Kind::Lora | Kind::Qat | Kind::Distill => 2e-4,
        Kind::Dpo => 5e-5,
    });
    let words =
        ["two-stage", "constant", "linear", "cosine", "exponential", "warmup-stable-decay"].map(|w| (w, w));
    let shape = match s.choice("schedule", if pretrain { "two-stage" } else { "cosine" }, &words)? {
        "two-stage" => Shape::TwoStage { second: s.number("second_rate", any)?.unwrap_or(base * 2.0 / 3.0) },
        "linear" => Shape::Linear,
        "cosine" => Shape::Cosine,
        "exponential" => Shape::Exponential,
        "warmup-stable-decay" => {
            Shape::WarmupStableDecay { decay: s.number("decay_share", (0.0, 1.0))?.unwrap_or(0.2) }
        }
        _ => Shape::Constant,
    };
    let floor = match shape {
        Shape::Constant | Shape::TwoStage { .. } => 0.0,
        _ => s.number("floor", (0.0, 1.0))?.unwrap_or(0.1),
    };
    let schedule = Schedule {
        shape,
        base,
        floor,
        warmup: s.count("warmup", 0)?.unwrap_or(steps / 20),
        steps,
        weight_decay: s.number("weight_decay", (0.0, 1.0))?.unwrap_or(if pretrain { 0.1 } else { 0.0 }),
    };
    let accumulate = s.size("accumulate")?.unwrap_or(1);
    let workers = s.size("workers")?.unwrap_or(devices);
    if workers < devices {
        return Err(s.error("workers", format!("is {workers}, and each of the {devices} devices needs one")));
    }
    if !accumulate.is_multiple_of(workers) {
        let what = format!(
            "is {workers}, and the {accumulate} passes of a step (train.accumulate) cannot be shared out equally"
        );
        return Err(s.error("workers", what));
    }
    let config = TrainConfig {
        batch: s.size("batch")?.unwrap_or(8),
        accumulate,
        workers,
        optimizer,
        freeze: if kind == Kind::Lora { Vec::new() } else { s.texts("freeze")? },
        freeze_layers: if kind == Kind::Lora { None } else { s.range("freeze_layers")? },
        average: s.number("ema", (0.0, 1.0))?.filter(|decay| *decay > 0.0),
        schedule,
        clip: Some(s.number("clip", any)?.unwrap_or(1.0)).filter(|c| *c > 0.0),
        recompute: s.flag("gradient_checkpointing")?,
        log_every: s.count("log_every", 1)?.unwrap_or(10),
        checkpoint_every: s.count("checkpoint_every", 1)?.unwrap_or(200),
        keep: s.size("keep")?.unwrap_or(2),
        validate_every: s.count("validate_every", 1)?.unwrap_or(0),
        patience: s.count("patience", 1)?,
        bf16: s.choice("export", true, &[("bf16", true), ("f32", false)])?,
    };
    s.finish()?;
    Ok((config, terms))
}

/// Devices, and why it is these where that was left open.
pub(super) fn devices(s: &mut Section<'_>) -> Result<(Vec<Device>, Option<String>), TrainError> {
    let names = s.texts("device")?;
    if names == ["auto"] {
        // What was measured of devices is about products of inference.
        let (place, why) = Placement::auto(0, &|_, _| None);
        return Ok((place.devices().to_vec(), Some(why)));
    }
    let read = |name: &String| {
        name.parse()
            .map_err(|_| s.error("device", format!("is {name:?}; there are {}; auto", Device::list())))
    };
    let devices: Vec<Device> = names.iter().map(read).collect::<Result<_, _>>()?;
    match devices.iter().enumerate().find(|(i, device)| devices[..*i].contains(device)) {
        Some((_, device)) => Err(s.error("device", format!("names {device} twice"))),
        None if devices.is_empty() => Ok((vec![Device::Cpu], None)),
        None => Ok((devices, None)),
    }
}
