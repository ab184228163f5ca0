//! Where a run's model comes from: its configuration, its weights and the small files beside them.

use crate::config::ModelSource;
use crate::{Parameters, TrainError};
use bitnet_formats::{Checkpoint, Header, TOKENIZER_FILES};
use bitnet_model::{ModelConfig, ModelTensors};
use bitnet_tokenizer::Tokenizer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A model before the first step.
pub(crate) struct Origin {
    pub(crate) config: ModelConfig,
    pub(crate) parameters: Parameters,
    pub(crate) values: Vec<f32>,
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
    /// Reads or makes a model, whose projections are to be ternary or not; where `None`, as they are.
    pub(crate) fn read(source: &ModelSource, ternary: Option<bool>, seed: u64) -> Result<Self, TrainError> {
        let (dir, checkpoint, mut config) = match source {
            ModelSource::Checkpoint(path) => {
                if !path.exists() {
                    let what = "there is no such file or directory".to_owned();
                    return Err(TrainError::Checkpoint { path: path.clone(), what });
                }
                let checkpoint = bitnet_formats::open(path)?;
                let Header::HuggingFace { dir, config, .. } = &checkpoint.header else {
                    let what = "it is a GGUF file; training starts from a Hugging Face directory, which `bitnet convert` makes of it";
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
        let read = match &checkpoint {
            Some(path) => bitnet_formats::open(path)?,
            None => empty(&dir, &config)?,
        };
        let at = |source| TrainError::Model { path: dir.clone(), source };
        let model = ModelConfig::read(&read).map_err(at)?;
        let ternary = ternary.unwrap_or(model.arch.ternary || config.get("quantization_config").is_some());
        if model.arch.ternary && !ternary {
            let what = format!(
                "{} is always run with ternary weights; model.weights cannot be float",
                model.arch.name
            );
            return Err(TrainError::Data { what });
        }
        let tensors = ModelTensors::new(&read, &model);
        let parameters = Parameters::new(&model, &tensors);
        let values = match source {
            ModelSource::Checkpoint(_) => {
                tensors.check().map_err(at)?;
                parameters.read(&read, &tensors)?
            }
            ModelSource::Fresh { deviation, .. } => parameters.fresh(seed, *deviation),
        };
        masters(&mut config, ternary);
        beside.config = config;
        Ok(Self { config: model, parameters, values, ternary, tokenizer, beside })
    }
}

/// A model of which there is nothing but the configuration.
fn empty(dir: &Path, config: &Value) -> Result<Checkpoint, TrainError> {
    let header =
        Header::HuggingFace { dir: dir.to_owned(), config: config.clone(), generation_config: Value::Null };
    let fail = |name| TrainError::Checkpoint { path: dir.to_owned(), what: format!("{name} stands twice") };
    Checkpoint::new(dir, header, Vec::new()).map_err(fail)
}

/// Says that weights are masters which are made ternary when they are used, or that they are dense.
fn masters(config: &mut Value, ternary: bool) {
    let Some(map) = config.as_object_mut() else { return };
    map.shift_remove("dtype");
    if !ternary {
        map.shift_remove("quantization_config");
        return;
    }
    let mut q = map.get("quantization_config").and_then(Value::as_object).cloned().unwrap_or_default();
    for (key, value) in
        [("quant_method", "bitnet"), ("linear_class", "autobitlinear"), ("quantization_mode", "online")]
    {
        q.insert(key.to_owned(), value.into());
    }
    map.insert("quantization_config".to_owned(), Value::Object(q));
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
