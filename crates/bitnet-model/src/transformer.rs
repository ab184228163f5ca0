//! The transformer.

use crate::{Decoder, LoadReport, ModelConfig, ModelError, Rows, StepOutput};
use bitnet_core::{Backend, LogitsNeed, RopeRows};
use bitnet_quant::spec::rope_angles;
use std::sync::Arc;

/// One layer's weights.
pub(crate) struct Layer<B: Backend> {
    pub(crate) attn_norm: B::Vector,
    pub(crate) qkv: B::Weight,
    pub(crate) qk_norms: Option<(B::Vector, B::Vector)>,
    pub(crate) attn_sub_norm: Option<B::Vector>,
    pub(crate) o: B::Weight,
    pub(crate) ffn_norm: B::Vector,
    pub(crate) gate_up: B::Weight,
    pub(crate) ffn_sub_norm: Option<B::Vector>,
    pub(crate) down: B::Weight,
}

/// Weights of a whole model.
pub(crate) struct Weights<B: Backend> {
    pub(crate) embedding: B::Weight,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) final_norm: B::Vector,
    /// `None`: the embedding is the head.
    pub(crate) head: Option<B::Weight>,
}

/// Activations of a step.
struct Activations<B: Backend> {
    /// The residual stream, `[m, hidden]`.
    h: B::Tensor,
    /// Input of a product.
    x: B::Tensor,
    /// Output of a product.
    y: B::Tensor,
    /// A wide product: stacked q, k, v or gate and up.
    wide: B::Tensor,
}

/// Cosines and sines of the positions seen so far, `[positions, head_dim/2]`.
struct RopeTable {
    inverse: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    fn rows(&mut self, start: usize, count: usize) -> RopeRows<'_> {
        let half = self.inverse.len();
        while self.cos.len() < (start + count) * half {
            let position = (self.cos.len() / half) as u32;
            rope_angles(position, &self.inverse, &mut self.cos, &mut self.sin);
        }
        let range = start * half..(start + count) * half;
        RopeRows { cos: &self.cos[range.clone()], sin: &self.sin[range] }
    }
}

/// A model on a backend, with the cache of one sequence.
pub struct Transformer<B: Backend> {
    backend: Arc<B>,
    config: ModelConfig,
    report: LoadReport,
    weights: Weights<B>,
    rope: RopeTable,
    kv: B::Kv,
    capacity: usize,
    position: usize,
    act: Activations<B>,
}

impl<B: Backend> Transformer<B> {
    pub(crate) fn new(
        backend: Arc<B>,
        config: ModelConfig,
        report: LoadReport,
        weights: Weights<B>,
        kv: B::Kv,
        capacity: usize,
    ) -> Self {
        let tensor = || backend.tensor();
        let act = Activations { h: tensor(), x: tensor(), y: tensor(), wide: tensor() };
        let rope = RopeTable { inverse: config.inverse_frequencies(), cos: Vec::new(), sin: Vec::new() };
        Self { backend, config, report, weights, rope, kv, capacity, position: 0, act }
    }

    fn forward(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), ModelError> {
        let (b, c, start) = (&*self.backend, &self.config, self.position);
        let Activations { h, x, y, wide } = &mut self.act;
        let rope = self.rope.rows(start, ids.len());
        let keep = |stage: usize, h: &B::Tensor, out: &mut StepOutput| {
            if out.keep_hidden {
                b.download(h, &mut out.hidden[stage]);
            }
        };
        b.embed(&self.weights.embedding, ids, h)?;
        keep(0, h, out);
        for (l, layer) in self.weights.layers.iter().enumerate() {
            b.rms_norm(h, &layer.attn_norm, c.eps, x);
            b.linear(x, &layer.qkv, wide);
            if let Some((q, k)) = &layer.qk_norms {
                b.rms_norm_heads(wide, 0, c.shape.heads, c.shape.head_dim, q, c.eps);
                b.rms_norm_heads(wide, c.shape.heads, c.shape.kv_heads, c.shape.head_dim, k, c.eps);
            }
            b.rope_append(wide, rope, &mut self.kv, l, start)?;
            b.attend(wide, &self.kv, l, start, y);
            let o = sub_norm(b, layer.attn_sub_norm.as_ref(), c.eps, y, x);
            b.linear(o, &layer.o, wide);
            b.add(h, wide);

            b.rms_norm(h, &layer.ffn_norm, c.eps, x);
            b.gated(x, &layer.gate_up, c.activation, wide, y);
            let gated = sub_norm(b, layer.ffn_sub_norm.as_ref(), c.eps, y, x);
            b.linear(gated, &layer.down, wide);
            b.add(h, wide);
            keep(l + 1, h, out);
        }
        if out.rows == Rows::None && !out.keep_hidden {
            return Ok(());
        }
        if out.rows == Rows::Last && !out.keep_hidden {
            b.keep_rows(h, ids.len() - 1);
        }
        b.rms_norm(h, &self.weights.final_norm, c.eps, x);
        keep(c.layers + 1, x, out);
        if out.rows == Rows::None {
            return Ok(());
        }
        if out.rows == Rows::Last && out.keep_hidden {
            b.keep_rows(x, ids.len() - 1);
        }
        let need = if out.rows == Rows::Last { &out.need } else { &LogitsNeed::All };
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        b.head(x, head, need, &mut out.ids, &mut out.logits);
        Ok(())
    }
}

/// The tensor that goes into the next projection: normed into `out` where the architecture has a norm here.
fn sub_norm<'a, B: Backend>(
    b: &B,
    w: Option<&B::Vector>,
    eps: f32,
    x: &'a B::Tensor,
    out: &'a mut B::Tensor,
) -> &'a B::Tensor {
    match w {
        Some(w) => {
            b.rms_norm(x, w, eps, out);
            out
        }
        None => x,
    }
}

impl<B: Backend> Decoder for Transformer<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn report(&self) -> &LoadReport {
        &self.report
    }
    fn position(&self) -> usize {
        self.position
    }
    fn capacity(&self) -> usize {
        self.capacity
    }
    fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), ModelError> {
        if ids.is_empty() {
            return Err(ModelError::NoTokens);
        }
        let vocab = self.config.vocab;
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
            return Err(ModelError::UnknownId { id: *id, vocab });
        }
        let need = self.position + ids.len();
        if need > self.capacity {
            return Err(ModelError::ContextFull { capacity: self.capacity, need });
        }
        out.ids.clear();
        out.logits.clear();
        out.hidden.resize_with(if out.keep_hidden { self.config.layers + 2 } else { 0 }, Vec::new);
        self.forward(ids, out)?;
        self.position = need;
        Ok(())
    }
}
