//! Low-rank adapters (Hu et al., 2021): what peft saved, as matrices of the model's projections.

use crate::config::bad;
use crate::load::dense_values;
use crate::{Architecture, ModelConfig, ModelError, Origin, Role};
use bitnet_core::{DenseMatrix, DenseType};
use bitnet_formats::{AdapterFiles, Tensor, TensorType};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// `peft_type` of adapters that are other trits in place of a model's, and no matrices.
pub const TRITS: &str = "BITNET_TRITS";

/// Projections that an adapter may add to.
const ROLES: [Role; 7] = [Role::Q, Role::K, Role::V, Role::O, Role::Gate, Role::Up, Role::Down];

/// What an adapter adds to one projection `[n, k]`: `(b (a x)) * scale` of the projection's input before it is quantized.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// The projection's layer.
    pub layer: usize,
    /// The projection.
    pub role: Role,
    /// `[r, k]`.
    pub a: DenseMatrix,
    /// `[n, r]`.
    pub b: DenseMatrix,
    /// `alpha / r`, or `alpha / sqrt(r)`.
    pub scale: f64,
    /// `[n]`: what rows of the sum of weights and `b a` times `scale` have as their length instead of their own (DoRA, arXiv 2402.09353).
    pub magnitude: Option<Vec<f32>>,
}

/// An adapter of a model.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// At most one for each projection, layers ascending.
    pub parts: Vec<LowRank>,
}

/// Both matrices of a module, and the magnitudes of its rows.
struct Pair<'a> {
    path: &'a str,
    sides: [Option<&'a Tensor>; 3],
}

impl Adapter {
    /// Finds the projections of a model that the tensors of an adapter belong to.
    ///
    /// # Errors
    /// The adapter asks for more than additions to projections, or does not fit the model.
    pub fn read(files: &AdapterFiles, model: &ModelConfig) -> Result<Self, ModelError> {
        let settings = Settings::read(&files.config)?;
        let mut projections = BTreeMap::new();
        for layer in 0..model.layers {
            projections.extend(ROLES.map(|role| (module(role, layer), (layer, role))));
        }
        let mut found: BTreeMap<(usize, Role), Pair<'_>> = BTreeMap::new();
        for tensor in &files.tensors {
            let wrong = |why| ModelError::AdapterTensor { name: tensor.name.clone(), why };
            let (path, side) = match tensor.name.rsplit_once(".lora_") {
                Some((path, "A.weight")) => (path, 0),
                Some((path, "B.weight")) => (path, 1),
                Some((path, "magnitude_vector" | "magnitude_vector.weight")) if settings.dora => (path, 2),
                _ => return Err(wrong("which is no low-rank matrix of a projection")),
            };
            let path = path.strip_prefix("base_model.model.").unwrap_or(path);
            let path = path.strip_prefix("model.").unwrap_or(path);
            let place =
                projections.get(path).ok_or_else(|| wrong("which is for no projection of the model"))?;
            let pair = found.entry(*place).or_insert(Pair { path, sides: [None; 3] });
            if pair.sides[side].replace(tensor).is_some() {
                return Err(wrong("which stands there twice"));
            }
        }
        if found.is_empty() {
            return Err(bad("adapter", "without tensors", "it must have some"));
        }
        settings.check_targets(found.values().map(|pair| pair.path))?;
        let part = |((layer, role), Pair { path, sides })| {
            let [Some(a), Some(b), magnitude] = sides else {
                let lone = sides.into_iter().flatten().next().map_or_else(String::new, |t| t.name.clone());
                return Err(ModelError::AdapterTensor { name: lone, why: "whose other half is not there" });
            };
            let slot = model.slot(role, layer);
            let rank = a.shape.first().copied().unwrap_or(0);
            if rank == 0 {
                return Err(ModelError::AdapterTensor { name: a.name.clone(), why: "whose rank is 0" });
            }
            if settings.dora && magnitude.is_none() {
                let why = "beside which there are no magnitudes, and use_dora is true";
                return Err(ModelError::AdapterTensor { name: b.name.clone(), why });
            }
            let (a, b) = (matrix(a, rank, slot.cols)?, matrix(b, slot.rows, rank)?);
            let magnitude = magnitude.map(|tensor| dense_values(tensor, &[slot.rows])).transpose()?;
            Ok(LowRank { layer, role, a, b, scale: settings.scale(path, rank)?, magnitude })
        };
        Ok(Self { parts: found.into_iter().map(part).collect::<Result<_, _>>()? })
    }
}

/// What peft calls a projection, behind `model.`: transformers' name of the module, whatever file the model came from.
fn module(role: Role, layer: usize) -> String {
    let llama = Architecture::find(Origin::HuggingFace, "LlamaForCausalLM").expect("it is in the table");
    let name = llama.tensor_name(role, layer);
    name.trim_start_matches("model.").trim_end_matches(".weight").to_owned()
}

fn matrix(tensor: &Tensor, rows: usize, cols: usize) -> Result<DenseMatrix, ModelError> {
    if tensor.shape != [rows, cols] {
        let (name, got) = (tensor.name.clone(), tensor.shape.clone());
        return Err(ModelError::TensorShape { name, got, need: vec![rows, cols] });
    }
    match tensor.ttype {
        TensorType::Dense(dtype @ (DenseType::F32 | DenseType::F16 | DenseType::BF16)) => {
            Ok(DenseMatrix::new(rows, cols, dtype, tensor.bytes())?)
        }
        other => Err(ModelError::TensorType {
            name: tensor.name.clone(),
            got: other.name().to_owned(),
            need: "it must be F32, F16 or BF16",
        }),
    }
}

/// `adapter_config.json`.
struct Settings<'a> {
    alpha: f64,
    /// Alphas of modules whose path ends so.
    alphas: Vec<(&'a str, f64)>,
    rank_stabilized: bool,
    /// Whether rows of the sum get magnitudes.
    dora: bool,
    /// Names of the modules that are adapted; none where they are given as a pattern.
    targets: Vec<&'a str>,
}

/// Settings of peft's that change what an adapter computes, and what they are called. Each is off, empty or absent in a plain adapter.
const REFUSED: [(&str, &str); 11] = [
    ("use_qalora", "QA-LoRA is not supported"),
    ("use_bdlora", "block-diagonal LoRA is not supported"),
    ("lora_bias", "adapters with a bias are not supported"),
    ("alora_invocation_tokens", "activated LoRA is not supported"),
    ("kasa_config", "KaSA is not supported"),
    ("velora_config", "VeLoRA is not supported"),
    ("monteclora_config", "MonteCLoRA is not supported"),
    ("modules_to_save", "whole modules beside the low-rank matrices are not supported"),
    ("layer_replication", "repeated layers are not supported"),
    ("target_parameters", "adapters of bare parameters are not supported"),
    ("trainable_token_indices", "trained rows of the embedding are not supported"),
];

/// Ways to begin training that take something off the model's own weights, which peft puts back when it loads the adapter.
const MOVED_WEIGHTS: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl<'a> Settings<'a> {
    fn read(config: &'a Value) -> Result<Self, ModelError> {
        if let Some(kind) = config.get("peft_type").and_then(Value::as_str).filter(|k| *k != "LORA") {
            let need = match kind {
                TRITS => "it is a list of trits, which `bitnet merge` makes those of the model",
                _ => "LORA is known",
            };
            return Err(bad("peft_type", kind, need));
        }
        for (key, need) in REFUSED {
            if let Some(value) = config.get(key).filter(|v| !is_off(v)) {
                return Err(bad(key, value, need));
            }
        }
        if let Some(bias) = config.get("bias").and_then(Value::as_str).filter(|b| *b != "none") {
            return Err(bad("bias", bias, "adapters with a bias are not supported"));
        }
        if let Some(kind) = config.get("init_lora_weights").and_then(Value::as_str)
            && MOVED_WEIGHTS.iter().any(|moved| kind.starts_with(moved))
        {
            return Err(bad(
                "init_lora_weights",
                kind,
                "it moves the model's own weights; convert the adapter to plain LoRA",
            ));
        }
        let alpha = config
            .get("lora_alpha")
            .ok_or_else(|| ModelError::MissingKey { key: "lora_alpha".to_owned() })
            .and_then(|v| number("lora_alpha", v))?;
        let mut alphas = Vec::new();
        for (path, value) in
            config.get("alpha_pattern").and_then(Value::as_object).into_iter().flat_map(Map::iter)
        {
            if !path.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
                return Err(bad("alpha_pattern", path, "only names of modules are known, no patterns"));
            }
            alphas.push((path.as_str(), number("alpha_pattern", value)?));
        }
        let targets = config.get("target_modules").and_then(Value::as_array);
        Ok(Self {
            alpha,
            alphas,
            rank_stabilized: config.get("use_rslora").and_then(Value::as_bool) == Some(true),
            dora: config.get("use_dora").and_then(Value::as_bool) == Some(true),
            targets: targets.into_iter().flatten().filter_map(Value::as_str).collect(),
        })
    }

    /// What the product of a module's matrices is multiplied with.
    fn scale(&self, path: &str, rank: usize) -> Result<f64, ModelError> {
        let own = self.alphas.iter().find(|(module, _)| names(module, path));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        let scale = alpha / if self.rank_stabilized { rank.sqrt() } else { rank };
        if (scale as f32).is_finite() {
            Ok(scale)
        } else {
            Err(bad("lora_alpha", alpha, "it must be an f32"))
        }
    }

    /// Refuses an adapter that names a module which its file has no matrices for.
    fn check_targets<'b>(&self, paths: impl Iterator<Item = &'b str> + Clone) -> Result<(), ModelError> {
        match self.targets.iter().find(|target| !paths.clone().any(|path| names(target, path))) {
            Some(target) => Err(bad("target_modules", target, "the file has no matrices for it")),
            None => Ok(()),
        }
    }
}

/// Whether a module is called so, by its whole path or the end of it.
fn names(module: &str, path: &str) -> bool {
    let module = module.strip_prefix("model.").unwrap_or(module);
    path.strip_suffix(module).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn number(key: &str, value: &Value) -> Result<f64, ModelError> {
    value.as_f64().filter(|v| v.is_finite()).ok_or_else(|| bad(key, value, "it must be a number"))
}
