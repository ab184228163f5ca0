//! From a checkpoint to prepared weights, one tensor after the other.

mod masters;
mod matrix;
mod sizes;
mod tensors;

pub(crate) use matrix::dense_values;
pub use matrix::{absmean_of, in_file_order, trits_of};
pub use sizes::Sizes;
pub use tensors::ModelTensors;

use crate::config::ModelConfig;
use crate::transformer::{End, Layer, Projections, Transformer, Weights};
use crate::{ModelError, Role};
use bitnet_core::{ActivationPrecision, Backend, KV_BLOCK, KvSpec, KvType, Matrix, Purpose};
use bitnet_formats::{Checkpoint, TensorType};
use std::ops::Range;
use std::sync::Arc;

/// How a model is to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Activations of ternary projections; what the checkpoint was trained for when `None`: int8, and f32 for weight-only
    /// models (`Q1_0`, `Q2_0`). The head always sees f32.
    pub act: Option<ActivationPrecision>,
    /// Positions of a sequence; the model's own context, at most [`LoadOptions::DEFAULT_CONTEXT`], when `None`.
    pub context: Option<usize>,
    /// Positions of the cache, which all sequences share; as many as one sequence has when `None`.
    pub cache: Option<usize>,
    /// Type of cached keys.
    pub key: KvType,
    /// Type of cached values.
    pub value: KvType,
    /// Only this many layers, for measuring: the result is no model, but each of its layers takes as long as every other one.
    pub layers: Option<usize>,
}

impl LoadOptions {
    /// The largest context that is taken without being asked for.
    pub const DEFAULT_CONTEXT: usize = 4096;

    /// How many layers of a model are loaded.
    pub fn layers_of(&self, config: &ModelConfig) -> usize {
        self.layers.unwrap_or(config.layers).min(config.layers)
    }

    /// Positions of a sequence.
    fn context_of(&self, config: &ModelConfig) -> Result<usize, ModelError> {
        match self.context {
            None => Ok(config.context.min(Self::DEFAULT_CONTEXT)),
            Some(asked) if asked == 0 || asked > config.context => {
                Err(ModelError::Context { asked, context: config.context })
            }
            Some(asked) => Ok(asked),
        }
    }

    /// A cache of `layers` layers.
    fn cache_of(&self, config: &ModelConfig, layers: usize) -> Result<KvSpec, ModelError> {
        let capacity = self.cache.map_or_else(|| self.context_of(config), Ok)?;
        Ok(KvSpec { layers, shape: config.shape, capacity, key: self.key, value: self.value })
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { act: None, context: None, cache: None, key: KvType::F16, value: KvType::F16, layers: None }
    }
}

/// What loading took.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Activations of ternary projections.
    pub act: ActivationPrecision,
    /// Bytes of all prepared weights.
    pub weight_bytes: usize,
    /// How many of them are read from the file's memory map.
    pub mapped_bytes: usize,
    /// Bytes that a step of one token reads if nothing is left out: all weights but an embedding that is not the head too.
    pub step_bytes: usize,
    /// Weights that are trits.
    pub ternary_weights: u64,
    /// Weights that are not.
    pub dense_weights: u64,
}

/// Loads a model; `progress` is told how many of how many layers are done.
pub fn load<B: Backend>(
    backend: Arc<B>,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Transformer<B>, ModelError> {
    load_as(backend, checkpoint, ModelConfig::read(checkpoint)?, options, progress)
}

/// The same for a checkpoint whose configuration has been read: its header is not looked at.
pub fn load_as<B: Backend>(
    backend: Arc<B>,
    checkpoint: &Checkpoint,
    config: ModelConfig,
    options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Transformer<B>, ModelError> {
    let layers = 0..options.layers_of(&config);
    load_stage(backend, checkpoint, config, options, layers, progress)
}

/// Loads some of the layers, for a [`crate::Pipeline`]: the first one brings the embedding along, the last one what is behind it.
pub fn load_stage<B: Backend>(
    backend: Arc<B>,
    checkpoint: &Checkpoint,
    mut config: ModelConfig,
    options: &LoadOptions,
    layers: Range<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Transformer<B>, ModelError> {
    let all_layers = config.layers;
    config.layers = options.layers_of(&config);
    let capacity = options.context_of(&config)?;
    let act = options.act.unwrap_or_else(|| trained_for(checkpoint));
    let report = LoadReport {
        act,
        weight_bytes: 0,
        mapped_bytes: 0,
        step_bytes: 0,
        ternary_weights: 0,
        dense_weights: 0,
    };
    let tensors = ModelTensors::new(checkpoint, &config);
    let whole = config.layers == all_layers;
    let mut loader = Loader { backend: &*backend, tensors, config: &config, report, whole };
    let weights = loader.weights(layers, progress)?;
    let report = loader.report;
    let spec = options.cache_of(&config, weights.range.len())?;
    // A sequence never has more positions than there are.
    let capacity = capacity.min(spec.blocks() * KV_BLOCK);
    Transformer::new(backend, config, report, weights, spec, capacity)
}

/// Weight-only formats were made for activations that are not quantized.
fn trained_for(checkpoint: &Checkpoint) -> ActivationPrecision {
    let weight_only = |t: &TensorType| matches!(t, TensorType::Ternary(p) if p.name.starts_with("Q1_0") || p.name.starts_with("Q2_0"));
    match checkpoint.tensors().iter().any(|t| weight_only(&t.ttype)) {
        true => ActivationPrecision::Float,
        false => ActivationPrecision::Int8,
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    tensors: ModelTensors<'a>,
    config: &'a ModelConfig,
    report: LoadReport,
    /// Whether every layer is loaded.
    whole: bool,
}

impl<B: Backend> Loader<'_, B> {
    fn weights(
        &mut self,
        range: Range<usize>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Weights<B>, ModelError> {
        let c = self.config;
        let (first, last) = (range.start == 0, range.end == c.layers);
        // Whatever the type, the head sees activations as they are: BitNet models are trained so. Where the embedding is the head too,
        // both ends have one.
        let own_head = self.tensors.own_head();
        let is_head = last && !own_head;
        let table = if is_head { Purpose::Head } else { Purpose::Product };
        let embedding = first.then(|| self.stack(&[Role::Embedding], 0, table)).transpose()?;
        // One row of an embedding that is not the head too.
        if !is_head {
            self.report.step_bytes = 0;
        }
        let mut layers = Vec::new();
        for l in range.clone() {
            progress(l, c.layers);
            layers.push(self.layer(l)?);
        }
        progress(range.end, c.layers);
        let end = last.then(|| {
            let norm = self.norm(Role::FinalNorm, 0)?;
            let head = match (own_head, first) {
                (true, _) => Some(Role::Head),
                (false, true) => None,
                (false, false) => Some(Role::Embedding),
            };
            let head = head.map(|role| self.stack(&[role], 0, Purpose::Head)).transpose()?;
            Ok::<_, ModelError>(End { norm, head })
        });
        let end = end.transpose()?;
        if self.whole {
            self.tensors.check()?;
        }
        Ok(Weights { embedding, range, layers, end })
    }

    fn layer(&mut self, l: usize) -> Result<Layer<B>, ModelError> {
        let (arch, activation, kv_heads) =
            (self.config.arch, self.config.activation, self.config.shape.kv_heads);
        Ok(Layer {
            attn_norm: self.norm(Role::AttnNorm, l)?,
            qkv: self.projections(&[Role::Q, Role::K, Role::V], l, Purpose::Attention { kv_heads })?,
            qk_norms: match arch.qk_norms {
                true => Some((self.norm(Role::QNorm, l)?, self.norm(Role::KNorm, l)?)),
                false => None,
            },
            attn_sub_norm: self.norm_if(arch.sub_norms, Role::AttnSubNorm, l)?,
            o: self.projections(&[Role::O], l, Purpose::Product)?,
            attn_post_norm: self.norm_if(arch.post_norms, Role::AttnPostNorm, l)?,
            ffn_norm: self.norm(Role::FfnNorm, l)?,
            gate_up: self.projections(&[Role::Gate, Role::Up], l, Purpose::GateUp(activation))?,
            ffn_sub_norm: self.norm_if(arch.sub_norms, Role::FfnSubNorm, l)?,
            down: self.projections(&[Role::Down], l, Purpose::Down(activation))?,
            ffn_post_norm: self.norm_if(arch.post_norms, Role::FfnPostNorm, l)?,
        })
    }

    /// Projections of one input: one product, or one each where each has a norm of its own.
    fn projections(
        &mut self,
        roles: &[Role],
        layer: usize,
        purpose: Purpose,
    ) -> Result<Projections<B>, ModelError> {
        let Some(eps) = self.config.projection_norms else {
            return Ok(Projections::Stacked(self.stack(roles, layer, purpose)?));
        };
        // Alone, a gate is a product like any other.
        let purpose = if roles.len() == 1 { purpose } else { Purpose::Product };
        let part = |role: &Role| {
            let norm = role.input_norm().expect("a projection's input has a norm");
            Ok((self.norm(norm, layer)?, self.stack(&[*role], layer, purpose)?))
        };
        Ok(Projections::Normed(eps, roles.iter().map(part).collect::<Result<_, ModelError>>()?))
    }

    fn norm_if(&mut self, there: bool, role: Role, layer: usize) -> Result<Option<B::Vector>, ModelError> {
        there.then(|| self.norm(role, layer)).transpose()
    }

    fn norm(&mut self, role: Role, layer: usize) -> Result<B::Vector, ModelError> {
        let values = self.tensors.vector(&self.config.slot(role, layer))?;
        let name = || self.config.arch.tensor_name(role, layer);
        self.backend.vector(&values).map_err(|source| ModelError::Prepare { name: name(), source })
    }

    /// Matrices that share their input, one above the other.
    fn stack(&mut self, roles: &[Role], layer: usize, purpose: Purpose) -> Result<B::Weight, ModelError> {
        let slots = roles.iter().map(|role| self.config.slot(*role, layer));
        let matrices = slots.map(|slot| self.tensors.matrix(&slot)).collect::<Result<_, _>>()?;
        let act = match roles[0].is_table() {
            true => ActivationPrecision::Float,
            false => self.report.act,
        };
        self.prepare(&self.config.arch.tensor_name(roles[0], layer), matrices, act, purpose)
    }

    fn prepare(
        &mut self,
        name: &str,
        stack: Vec<Matrix>,
        act: ActivationPrecision,
        purpose: Purpose,
    ) -> Result<B::Weight, ModelError> {
        let weight = self
            .backend
            .prepare(&stack, act, purpose)
            .map_err(|source| ModelError::Prepare { name: name.to_owned(), source })?;
        let (bytes, mapped) = self.backend.weight_bytes(&weight);
        self.report.weight_bytes += bytes;
        self.report.mapped_bytes += mapped;
        self.report.step_bytes += match stack.as_slice() {
            // What a backend keeps beside a head saves reading the head.
            [Matrix::Dense(head)] if purpose == Purpose::Head => head.data().len(),
            _ => bytes,
        };
        for matrix in &stack {
            let weights = matrix.rows() as u64 * matrix.cols() as u64;
            match matrix {
                Matrix::Ternary(_) => self.report.ternary_weights += weights,
                Matrix::Dense(_) => self.report.dense_weights += weights,
            }
        }
        Ok(weight)
    }
}
