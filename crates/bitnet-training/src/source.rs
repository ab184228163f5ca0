//! Where a run's model comes from: its configuration, its weights and the small files beside them.

use crate::config::ModelSource;
use crate::model::{Frozen, read_frozen};
use crate::{ExtraNorms, Parameters, Precision, TrainError, WeightQuantizer};
use bitnet_core::Activation;
use bitnet_cpu::CpuTraining;
use bitnet_formats::gguf::Metadata;
use bitnet_formats::{Checkpoint, Header, TOKENIZER_FILES, TensorType};
use bitnet_model::{Architecture, ModelConfig, ModelTensors, Slot};
use bitnet_tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A model before the first step.
pub(crate) struct Origin {
    pub(crate) config: ModelConfig,
    pub(crate) parameters: Parameters,
    pub(crate) values: Vec<f32>,
    /// Matrices that have no values, by their places in the list.
    pub(crate) frozen: Vec<Option<Frozen>>,
    /// Whether projections are ternary.
    pub(crate) ternary: bool,
    pub(crate) tokenizer: Tokenizer,
    /// What is written beside weights.
    pub(crate) beside: Beside,
}

/// What stands beside weights in a directory of a model.
pub(crate) struct Beside {
    /// `config.json`, without the type of weights.
    pub(crate) config: Value,
    /// Names and contents of small files.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Tells tokenizers apart.
    pub(crate) identity: String,
    /// What the model is called: where it was read from.
    pub(crate) name: String,
}

impl Origin {
    /// Reads or makes a model, whose projections are to be quantized so; where `None`, as they are.
    pub(crate) fn read(
        source: &ModelSource,
        precision: Option<&Precision>,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let (dir, checkpoint, mut config) = match source {
            ModelSource::Checkpoint(path) => {
                let checkpoint = open(path)?;
                let Header::HuggingFace { dir, config, .. } = &checkpoint.header else {
                    let what = "it is a GGUF file, beside whose weights only adapters are trained; they themselves are in a Hugging Face \
                        directory, which `bitnet convert` makes of it";
                    return Err(TrainError::Checkpoint { path: path.clone(), what: what.to_owned() });
                };
                (dir.clone(), Some(path.clone()), config.clone())
            }
            ModelSource::Fresh { config, tokenizer, .. } => (tokenizer.clone(), None, config.clone()),
        };
        let (tokenizer, mut beside) = beside(&dir)?;
        if checkpoint.is_none() {
            config["vocab_size"] = json!(tokenizer.vocab_size());
            for (key, id) in [("bos_token_id", tokenizer.bos()), ("eos_token_id", tokenizer.eos())] {
                if let Some(id) = id {
                    config[key] = json!(id);
                }
            }
        } else if let Ok(bytes) = std::fs::read(dir.join("generation_config.json")) {
            beside.files.push(("generation_config.json".to_owned(), bytes));
        }
        // Reading weights needs to know what they mean now; what is written are masters.
        let mut read = match &checkpoint {
            Some(path) => bitnet_formats::open(path)?,
            None => empty(&dir, &config)?,
        };
        let (model, quantizer) = known(&mut read, precision)?;
        let ternary = quantizer.is_ternary();
        let at = |source| TrainError::Model { path: dir.clone(), source };
        let tensors = ModelTensors::new(&read, &model);
        describe(&mut config, model.arch, quantizer, precision.is_some_and(|p| p.hadamard));
        let extra = precision.map_or(ExtraNorms::None, |p| p.extra_norms);
        let target = with_norms(extra, &mut config, &model, &tensors)?;
        let empty = empty(&dir, &config)?;
        let model = if target { ModelConfig::read(&empty).map_err(at)? } else { model.clone() };
        let parameters = match target {
            true => Parameters::new(&model, &ModelTensors::new(&empty, &model)),
            false => Parameters::new(&model, &tensors),
        };
        let parameters = parameters.with_quantizer(quantizer);
        let values = match source {
            ModelSource::Checkpoint(_) => {
                tensors.check().map_err(at)?;
                parameters.read(&read, &tensors)?
            }
            ModelSource::Fresh { deviation, .. } => parameters.fresh(seed, *deviation),
        };
        beside.config = config;
        Ok(Self { config: model, parameters, values, frozen: Vec::new(), ternary, tokenizer, beside })
    }

    /// Reads a model, of any format, whose weights nothing trains: matrices stay as the file has them, but for master weights, of which only
    /// the trits are kept.
    pub(crate) fn frozen(
        ops: &CpuTraining,
        path: &Path,
        precision: Option<&Precision>,
    ) -> Result<Self, TrainError> {
        let mut checkpoint = open(path)?;
        let (config, quantizer) = known(&mut checkpoint, precision)?;
        let at = |source| TrainError::Model { path: path.to_owned(), source };
        let tensors = ModelTensors::new(&checkpoint, &config);
        tensors.check().map_err(at)?;
        let is_trits = |slot: &Slot| slot.role.is_projection() && !tensors.is_kept_dense(slot);
        if config.arch.ternary && !quantizer.is_ternary() && tensors.slots().iter().any(is_trits) {
            let what = format!(
                "{} is run with ternary weights, beside which quantize.weights and quantize.bits cannot give others",
                config.arch.name
            );
            return Err(TrainError::Data { what });
        }
        let parameters = Parameters::new(&config, &tensors).frozen().with_quantizer(quantizer);
        let values = parameters.read(&checkpoint, &tensors)?;
        let frozen = read_frozen(ops, &parameters, &checkpoint, &tensors)?;
        let (tokenizer, beside) = match &checkpoint.header {
            Header::HuggingFace { dir, .. } => beside(dir)?,
            Header::Gguf { metadata, .. } => inside(&checkpoint, metadata)?,
        };
        let ternary = quantizer.is_ternary();
        Ok(Self { config, parameters, values, frozen, ternary, tokenizer, beside })
    }
}

fn open(path: &Path) -> Result<Checkpoint, TrainError> {
    if !path.exists() {
        let what = "there is no such file or directory".to_owned();
        return Err(TrainError::Checkpoint { path: path.to_owned(), what });
    }
    Ok(bitnet_formats::open(path)?)
}

/// What a checkpoint's model is, and what makes its projections what they are when it is run: what was asked for, if anything was.
fn known(
    checkpoint: &mut Checkpoint,
    precision: Option<&Precision>,
) -> Result<(ModelConfig, WeightQuantizer), TrainError> {
    let (mut quantized, mut dense) = (false, false);
    if let Header::HuggingFace { config, .. } = &mut checkpoint.header
        && let Some(q) = config.get_mut("quantization_config").and_then(Value::as_object_mut)
    {
        quantized = true;
        dense = is_dense(q);
        if precision.is_some_and(|p| p.hadamard) {
            // It cannot be run, and is gone on with here.
            q.shift_remove("hadamard");
        }
        if precision.is_some_and(|p| p.weights.is_ternary()) {
            become_ternary(q);
        }
    }
    let model = ModelConfig::read(checkpoint)
        .map_err(|source| TrainError::Model { path: checkpoint.path.clone(), source })?;
    quantized |= checkpoint.tensors().iter().any(|t| matches!(t.ttype, TensorType::Ternary(_)));
    let quantizer = match precision {
        Some(precision) => precision.weights,
        None if (model.arch.ternary || quantized) && !dense => WeightQuantizer::Absmean,
        None => WeightQuantizer::Float,
    };
    Ok((model, quantizer))
}

/// Says in `config` that a model has extra norms; false where it has them already, or is to have none.
fn with_norms(
    extra: ExtraNorms,
    config: &mut Value,
    model: &ModelConfig,
    tensors: &ModelTensors<'_>,
) -> Result<bool, TrainError> {
    let arch = model.arch;
    if extra == ExtraNorms::None || arch.sub_norms || model.projection_norms.is_some() {
        return Ok(false);
    }
    // The body of a BitNet is Llama's with these norms; which class it is follows from the activation.
    let body = match model.activation {
        Activation::Silu => Some("BitnetForCausalLM"),
        Activation::Relu2 => Some("BitNetForCausalLM"),
        Activation::Gelu => None,
    };
    let body = body
        .filter(|_| !arch.qk_norms && !arch.post_norms)
        .and_then(|name| Architecture::find(bitnet_model::Origin::HuggingFace, name));
    // What a file says by its tensors must be said.
    config["vocab_size"] = json!(model.vocab);
    config["tie_word_embeddings"] = json!(!tensors.own_head());
    match (extra, body) {
        (ExtraNorms::Blocks | ExtraNorms::Auto, Some(body)) => {
            config["architectures"] = json!([body.name]);
            config["model_type"] = body.model_type.into();
            if config.get("rope_theta").is_none() {
                config["rope_theta"] = json!(model.rope.theta);
            }
        }
        (ExtraNorms::Blocks, None) => {
            let what = format!(
                "{} has no form with norms inside its blocks; quantize.extra_norms may be projections",
                arch.name
            );
            return Err(TrainError::Data { what });
        }
        _ => {
            config["quantization_config"]["use_rms_norm"] = true.into();
            config["quantization_config"]["rms_norm_eps"] = json!(f64::from(model.eps));
        }
    }
    Ok(true)
}

/// A model of which there is nothing but the configuration.
fn empty(dir: &Path, config: &Value) -> Result<Checkpoint, TrainError> {
    let header =
        Header::HuggingFace { dir: dir.to_owned(), config: config.clone(), generation_config: Value::Null };
    let fail = |name| TrainError::Checkpoint { path: dir.to_owned(), what: format!("{name} stands twice") };
    Checkpoint::new(dir, header, Vec::new()).map_err(fail)
}

/// Projections as `modules_to_not_convert` names them.
const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Says what projections are in a model that is written: masters which are made ternary when they are used, trits with scales, or dense.
fn describe(config: &mut Value, arch: &Architecture, quantizer: WeightQuantizer, hadamard: bool) {
    let Some(map) = config.as_object_mut() else { return };
    map.shift_remove("dtype");
    let mut q = map.shift_remove("quantization_config").and_then(object).unwrap_or_default();
    if quantizer.is_ternary() {
        let mode = if quantizer.is_of_readers() { "online" } else { "offline" };
        for (key, value) in
            [("quant_method", "bitnet"), ("linear_class", "autobitlinear"), ("quantization_mode", mode)]
        {
            q.insert(key.to_owned(), value.into());
        }
        become_ternary(&mut q);
        if hadamard {
            q.insert("hadamard".to_owned(), true.into());
        } else {
            q.shift_remove("hadamard");
        }
    } else if arch.ternary {
        // Projections of such a body are ternary where nothing else is said.
        q = object(json!({"quant_method": "bitnet", "modules_to_not_convert": PROJECTIONS}))
            .unwrap_or_default();
    } else {
        return;
    }
    map.insert("quantization_config".to_owned(), Value::Object(q));
}

/// Whether all projections of a body are dense.
fn is_dense(quantization: &Map<String, Value>) -> bool {
    quantization.get("modules_to_not_convert") == Some(&json!(PROJECTIONS))
}

/// Takes that back.
fn become_ternary(quantization: &mut Map<String, Value>) {
    if is_dense(quantization) {
        quantization.shift_remove("modules_to_not_convert");
    }
}

fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

/// The tokenizer in a GGUF file.
fn inside(checkpoint: &Checkpoint, metadata: &Metadata) -> Result<(Tokenizer, Beside), TrainError> {
    let path = &checkpoint.path;
    let at = |source| TrainError::Tokenizer { path: path.clone(), source };
    let tokenizer = bitnet_inference::tokenizer(checkpoint).map_err(at)?.ok_or_else(|| {
        TrainError::Checkpoint { path: path.clone(), what: "there is no tokenizer in it".to_owned() }
    })?;
    let vocabulary = bitnet_inference::vocabulary(metadata).map_err(at)?;
    let template = metadata.str("tokenizer.chat_template");
    let identity = crate::hash::hex(&Sha256::digest(format!("{vocabulary:?} {template:?}")));
    let name = path.display().to_string();
    Ok((tokenizer, Beside { config: Value::Null, files: Vec::new(), identity, name }))
}

/// The tokenizer of a directory, and the small files that go along with it.
fn beside(dir: &Path) -> Result<(Tokenizer, Beside), TrainError> {
    let at = |source| TrainError::Tokenizer { path: dir.to_owned(), source };
    let tokenizer = Tokenizer::from_dir(dir).map_err(at)?.ok_or_else(|| TrainError::Checkpoint {
        path: dir.to_owned(),
        what: "there is neither tokenizer.json nor tokenizer.model in it".to_owned(),
    })?;
    let (mut hash, mut files) = (Sha256::new(), Vec::new());
    for name in TOKENIZER_FILES {
        let path: PathBuf = dir.join(name);
        if path.exists() {
            let bytes = std::fs::read(&path).map_err(TrainError::io(&path))?;
            hash.update(name);
            hash.update(Sha256::digest(&bytes));
            files.push((name.to_owned(), bytes));
        }
    }
    let identity = crate::hash::hex(&hash.finalize());
    Ok((tokenizer, Beside { config: Value::Null, files, identity, name: dir.display().to_string() }))
}
