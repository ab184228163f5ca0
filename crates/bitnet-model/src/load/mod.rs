//! From a checkpoint to prepared weights, one tensor after the other.

mod matrix;
mod source;

pub(crate) use matrix::dense_values;

use crate::ModelError;
use crate::arch::Names;
use crate::config::ModelConfig;
use crate::transformer::{Layer, Transformer, Weights};
use bitnet_core::{ActivationPrecision, Backend, KvSpec, KvType, Matrix};
use bitnet_formats::{Checkpoint, TensorType};
use source::Source;
use std::sync::Arc;

/// How a model is to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Activations of ternary projections; what the checkpoint was trained for when `None`: int8, and f32 for weight-only
    /// models (`Q1_0`, `Q2_0`). The head always sees f32.
    pub act: Option<ActivationPrecision>,
    /// Positions of the cache; the model's own context, at most [`LoadOptions::DEFAULT_CONTEXT`], when `None`.
    pub context: Option<usize>,
    /// Type of cached keys.
    pub key: KvType,
    /// Type of cached values.
    pub value: KvType,
}

impl LoadOptions {
    /// The largest context that is taken without being asked for.
    pub const DEFAULT_CONTEXT: usize = 4096;
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { act: None, context: None, key: KvType::F16, value: KvType::F16 }
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
    let config = ModelConfig::read(checkpoint)?;
    let capacity = match options.context {
        None => config.context.min(LoadOptions::DEFAULT_CONTEXT),
        Some(asked) if asked == 0 || asked > config.context => {
            return Err(ModelError::Context { asked, context: config.context });
        }
        Some(asked) => asked,
    };
    let act = options.act.unwrap_or_else(|| trained_for(checkpoint));
    let report = LoadReport { act, weight_bytes: 0, mapped_bytes: 0, ternary_weights: 0, dense_weights: 0 };
    let source = Source::new(checkpoint, &config);
    let mut loader = Loader { backend: &*backend, source, config: &config, report };
    let weights = loader.weights(progress)?;
    let report = loader.report;
    let spec = KvSpec {
        layers: config.layers,
        shape: config.shape,
        capacity,
        key: options.key,
        value: options.value,
    };
    let kv = backend.kv(spec)?;
    Ok(Transformer::new(backend, config, report, weights, kv, capacity))
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
    source: Source<'a>,
    config: &'a ModelConfig,
    report: LoadReport,
}

impl<B: Backend> Loader<'_, B> {
    fn weights(&mut self, progress: &mut dyn FnMut(usize, usize)) -> Result<Weights<B>, ModelError> {
        let c = self.config;
        let n: &Names = c.arch.names;
        let embedding = self.source.table(n.embedding, c.vocab, c.hidden)?;
        // Whatever the type, the head sees activations as they are: BitNet models are trained so.
        let mut embedding = self.prepare(n.embedding, vec![embedding], ActivationPrecision::Float)?;
        let mut layers = Vec::new();
        for l in 0..c.layers {
            progress(l, c.layers);
            layers.push(self.layer(l)?);
        }
        progress(c.layers, c.layers);
        let final_norm = self.norm(n.final_norm, c.hidden)?;
        let own_head = match c.tied {
            Some(tied) => !tied,
            None => self.source.has(n.head),
        };
        let mut head = None;
        if own_head {
            let matrix = self.source.table(n.head, c.vocab, c.hidden)?;
            head = Some(self.prepare(n.head, vec![matrix], ActivationPrecision::Float)?);
        } else {
            self.source.ignore(n.head);
        }
        self.backend.prepare_head(head.as_mut().unwrap_or(&mut embedding))?;
        self.source.finish()?;
        Ok(Weights { embedding, layers, final_norm, head })
    }

    fn layer(&mut self, l: usize) -> Result<Layer<B>, ModelError> {
        let c = self.config;
        let (n, s) = (c.arch.names, c.shape);
        let (q_rows, kv_rows) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let name = |template: &str| Names::of(template, l);
        Ok(Layer {
            attn_norm: self.norm(&name(n.attn_norm), c.hidden)?,
            qkv: {
                let q = self.source.rotated(&name(n.q), s.heads, c.hidden)?;
                let k = self.source.rotated(&name(n.k), s.kv_heads, c.hidden)?;
                let v = self.source.projection(&name(n.v), kv_rows, c.hidden)?;
                self.prepare(&name(n.q), vec![q, k, v], self.report.act)?
            },
            qk_norms: match c.arch.qk_norms {
                true => {
                    Some((self.norm(&name(n.q_norm), s.head_dim)?, self.norm(&name(n.k_norm), s.head_dim)?))
                }
                false => None,
            },
            attn_sub_norm: match c.arch.sub_norms {
                true => Some(self.norm(&name(n.attn_sub_norm), q_rows)?),
                false => None,
            },
            o: {
                let o = self.source.projection(&name(n.o), c.hidden, q_rows)?;
                self.prepare(&name(n.o), vec![o], self.report.act)?
            },
            ffn_norm: self.norm(&name(n.ffn_norm), c.hidden)?,
            gate_up: {
                let gate = self.source.projection(&name(n.gate), c.ffn, c.hidden)?;
                let up = self.source.projection(&name(n.up), c.ffn, c.hidden)?;
                self.prepare(&name(n.gate), vec![gate, up], self.report.act)?
            },
            ffn_sub_norm: match c.arch.sub_norms {
                true => Some(self.norm(&name(n.ffn_sub_norm), c.ffn)?),
                false => None,
            },
            down: {
                let down = self.source.projection(&name(n.down), c.hidden, c.ffn)?;
                self.prepare(&name(n.down), vec![down], self.report.act)?
            },
        })
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<B::Vector, ModelError> {
        let values = self.source.vector(name, len)?;
        self.backend.vector(&values).map_err(|source| ModelError::Prepare { name: name.to_owned(), source })
    }

    fn prepare(
        &mut self,
        name: &str,
        stack: Vec<Matrix>,
        act: ActivationPrecision,
    ) -> Result<B::Weight, ModelError> {
        let weight = self
            .backend
            .prepare(&stack, act)
            .map_err(|source| ModelError::Prepare { name: name.to_owned(), source })?;
        let (bytes, mapped) = self.backend.weight_bytes(&weight);
        self.report.weight_bytes += bytes;
        self.report.mapped_bytes += mapped;
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
