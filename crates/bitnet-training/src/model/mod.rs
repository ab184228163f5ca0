//! The transformer with its way back, over [`Ops`].

mod backward;
mod concentrate;
mod distill;
mod dropout;
mod forward;
mod frozen;
mod head;
mod heads;
mod linear;
mod magnitude;
mod precision;
mod quantize;
mod rounded;
mod sparsity;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use crate::ops::{View, ViewMut};
use crate::parameters::LowRank;
use crate::{Array, Batch, Ops, Optimizer, Parameters, Quantized, Rates, TrainError};
use bitnet_core::AttentionShape;
use bitnet_cpu::{Side, Store, Target, Terms, TernaryWeights, Values};
use bitnet_memory::Tag;
use bitnet_model::{ModelConfig, Role};
use bitnet_quant::spec::rope_angles;
use std::sync::Arc;

use concentrate::Activity;
pub use concentrate::Objectives;
pub use distill::{Distillation, Losses, Totals};
use dropout::Dropout;
use frozen::Copies;
pub(crate) use frozen::{Frozen, read as read_frozen};
use magnitude::Lengths;
pub use precision::{Activations, ExtraNorms, Precision, Ramp};
use state::{Gradients, Scratch, State};

/// Places in the list of a projection, and of the norm of its own input where it has one.
#[derive(Clone, Copy)]
struct Projection {
    weight: usize,
    norm: Option<usize>,
}

/// Places of a layer's parameters in the list.
struct Layer {
    attn_norm: usize,
    qkv: [Projection; 3],
    /// Norms of heads of q and of k.
    head_norms: Option<(usize, usize)>,
    attn_sub_norm: Option<usize>,
    o: [Projection; 1],
    ffn_norm: usize,
    gate_up: [Projection; 2],
    ffn_sub_norm: Option<usize>,
    down: [Projection; 1],
}

/// A model in training: parameters, and room for a pass forward and back.
///
/// Sequences of a [`Batch`] lie one behind the other; each sees itself alone.
pub struct Model {
    ops: Ops,
    config: ModelConfig,
    parameters: Parameters,
    precision: Precision,
    objectives: Objectives,
    activations: Activity,
    /// Whether the way back computes a layer's states again instead of having kept them.
    recompute: bool,
    /// All parameters but what is frozen.
    pub values: Array,
    /// By place in the list: matrices that have no values, since nothing trains them.
    frozen: Arc<[Option<Frozen>]>,
    /// Gradients of those that are trained; [`Model::backward`] adds to them.
    pub gradients: Array,
    layers: Vec<Layer>,
    embedding: usize,
    final_norm: usize,
    head: Option<usize>,
    /// By place in the list.
    low_rank: Vec<Option<LowRank>>,
    /// The same, of rows with magnitudes.
    lengths: Vec<Lengths>,
    /// In passes of training of adapters.
    dropout: Option<Dropout>,
    /// By place in the list; empty for parameters that are not quantized.
    quantized: Vec<Quantized>,
    /// Trits among them for products with quantized inputs.
    prepared: Vec<Option<TernaryWeights>>,
    /// By place in the list.
    copies: Vec<Copies>,
    /// The share of quantized weights in what passes use, by layer.
    strength: Vec<f32>,
    inverse: Vec<f32>,
    /// `[positions, head_dim/2]`.
    rope: (Array, Array),
    /// The residual stream before each layer.
    inputs: Vec<Array>,
    states: Vec<State>,
    /// Behind the last layer, and behind the final norm.
    last: (Array, Array),
    /// The layer whose queries, keys and values of the last pass are kept, where there is one, and these.
    watched: (Option<usize>, Array),
    /// What is added to their gradients.
    watched_gradients: Array,
    scratch: Scratch,
    room: Gradients,
}

impl Model {
    /// A model of these values.
    ///
    /// # Errors
    /// Its architecture has parts that cannot be trained.
    pub fn new(
        ops: impl Into<Ops>,
        config: ModelConfig,
        parameters: Parameters,
        values: Vec<f32>,
        precision: Precision,
        recompute: bool,
    ) -> Result<Self, TrainError> {
        let arch = config.arch;
        for (has, what) in [
            (arch.post_norms, "norms behind attention and feed-forward blocks"),
            (
                config.projection_norms.is_some() && (arch.sub_norms || parameters.adapter().is_some()),
                "norms of projections' own inputs beside norms inside blocks or low-rank matrices",
            ),
            (config.norms_less_one, "norms that are stored less 1"),
            (config.local.is_some(), "sliding windows"),
            (arch.scaled_embedding, "a scaled embedding"),
        ] {
            if has {
                return Err(TrainError::Unsupported { arch: arch.name, what });
            }
        }
        let find = |role, layer| parameters.find(role, layer);
        let need = |role, layer| find(role, layer).expect("every body has this tensor");
        let projection = |role: Role, layer| Projection {
            weight: need(role, layer),
            norm: role.input_norm().and_then(|norm| find(norm, layer)),
        };
        let layers = (0..parameters.layers()).map(|l| Layer {
            attn_norm: need(Role::AttnNorm, l),
            qkv: [Role::Q, Role::K, Role::V].map(|role| projection(role, l)),
            head_norms: find(Role::QNorm, l).zip(find(Role::KNorm, l)),
            attn_sub_norm: find(Role::AttnSubNorm, l),
            o: [projection(Role::O, l)],
            ffn_norm: need(Role::FfnNorm, l),
            gate_up: [Role::Gate, Role::Up].map(|role| projection(role, l)),
            ffn_sub_norm: find(Role::FfnSubNorm, l),
            down: [projection(Role::Down, l)],
        });
        let layers: Vec<Layer> = layers.collect();
        Ok(Self {
            ops: ops.into(),
            layers,
            embedding: need(Role::Embedding, 0),
            final_norm: need(Role::FinalNorm, 0),
            head: find(Role::Head, 0),
            frozen: Arc::new([]),
            dropout: None,
            quantized: vec![Quantized::default(); parameters.list().len()],
            prepared: parameters.list().iter().map(|_| None).collect(),
            copies: parameters.list().iter().map(|_| Copies::default()).collect(),
            strength: vec![1.0; config.layers],
            inverse: config.inverse_frequencies(),
            rope: Default::default(),
            inputs: Vec::new(),
            states: Vec::new(),
            last: Default::default(),
            watched: Default::default(),
            watched_gradients: Array::default(),
            scratch: Scratch::default(),
            room: Gradients::default(),
            gradients: Array::zeros(parameters.trained_len(), Tag::Gradients),
            lengths: parameters.list().iter().map(|_| Lengths::default()).collect(),
            low_rank: (0..parameters.list().len()).map(|place| parameters.low_rank(place)).collect(),
            config,
            parameters,
            values: Array::tagged(&values, Tag::Weights),
            precision,
            objectives: Objectives::default(),
            activations: Activity::default(),
            recompute,
        })
    }

    /// A model of the same values beside this one, on other threads.
    ///
    /// # Errors
    /// There are none: what this model is can be trained.
    pub(crate) fn beside(&self, ops: impl Into<Ops>) -> Result<Self, TrainError> {
        let (config, parameters, values) =
            (self.config.clone(), self.parameters.clone(), self.values.to_vec());
        let model = Self::new(ops, config, parameters, values, self.precision, self.recompute)?;
        Ok(Self { frozen: Arc::clone(&self.frozen), ..model })
    }

    /// With matrices that have no values, by their places in the list.
    pub(crate) fn with_frozen(self, frozen: Vec<Option<Frozen>>) -> Self {
        Self { frozen: frozen.into(), ..self }
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where each tensor lies in `values` and `gradients`.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What computes.
    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Leaves out inputs of adapters, as their settings say, in passes from here on; `pass` and the seed say which. `None` ends it.
    pub fn set_dropout(&mut self, seed: u64, pass: Option<u64>) {
        let share = self.parameters.adapter().map_or(0.0, |lora| lora.dropout);
        self.dropout = pass.filter(|_| share > 0.0).map(|pass| Dropout { share, seed, pass });
    }

    /// Makes all gradients zero.
    pub fn forget_gradients(&mut self) {
        self.ops.fill(&mut self.gradients, 0.0);
    }

    /// The L2 norm of all gradients; see [`crate::norm`].
    pub fn gradient_norm(&self) -> f64 {
        self.ops.length(&self.gradients)
    }

    /// Takes a step of an optimizer with the present gradients.
    pub fn update(&mut self, optimizer: &Optimizer, rates: Rates, buffers: &mut [Array]) {
        optimizer.step(&self.ops, &self.parameters, rates, &mut self.values, &self.gradients, buffers);
    }

    /// The gradients of a parameter; `None` when it is not trained.
    fn gradient(&mut self, place: usize) -> Option<ViewMut<'_>> {
        self.parameters.trained_range(place).map(|range| self.gradients.part_mut(range))
    }

    fn value(&self, place: usize) -> View<'_> {
        self.values.part(self.parameters.list()[place].range.clone())
    }

    /// The place of what makes logits.
    fn table(&self) -> usize {
        self.head.unwrap_or(self.embedding)
    }

    fn shape(&self) -> AttentionShape {
        self.config.shape
    }

    /// Cosines and sines of positions `0..end`.
    fn prepare_rope(&mut self, end: usize) {
        let half = self.inverse.len();
        if self.rope.0.len() >= end * half {
            return;
        }
        let [mut cos, mut sin] = [&mut self.rope.0, &mut self.rope.1].map(|of| std::mem::take(of).into_vec());
        while cos.len() < end * half {
            let position = (cos.len() / half) as u32;
            rope_angles(position, &self.inverse, self.config.rope.attention_factor(), &mut cos, &mut sin);
        }
        self.rope = (cos.into(), sin.into());
    }

    /// The mean cross-entropy in nats of a batch's counted targets; gradients are left alone.
    pub fn loss(&mut self, batch: &Batch) -> f64 {
        self.forward(batch, false);
        self.head_loss(batch, batch.counted(), false) / batch.counted().max(1) as f64
    }

    /// Adds to the gradients those of the sum of cross-entropies divided by `total`, and gives that sum in nats, undivided. Of several
    /// batches with one `total`, the sum of all their counted targets, the gradients are those of one batch of all.
    pub fn backward(&mut self, batch: &Batch, total: usize) -> f64 {
        self.forward(batch, true);
        let sum = self.head_loss(batch, total, true);
        self.layers_backward(batch);
        sum
    }

    /// The log-likelihood in nats of every sequence's counted targets together; gradients are left alone.
    pub fn log_likelihoods(&mut self, batch: &Batch) -> Vec<f64> {
        self.forward(batch, false);
        self.sequence_sums(batch)
    }

    /// Adds to the gradients those of a loss that depends on log-likelihoods of sequences: `slopes` is given what
    /// [`Model::log_likelihoods`] gives, and gives the derivative of the loss by each.
    pub fn backward_by_sequence(&mut self, batch: &Batch, slopes: &mut dyn FnMut(&[f64]) -> Vec<f64>) {
        self.forward(batch, true);
        let slopes = slopes(&self.sequence_sums(batch));
        let mut weights = vec![0.0; batch.ids.len()];
        for (span, slope) in batch.spans.iter().zip(slopes) {
            for i in span.clone().filter(|i| batch.counts[*i]) {
                // A cross-entropy is a log-likelihood with the other sign.
                weights[i] = -slope as f32;
            }
        }
        self.head(batch, &weights, true, None, &mut |_, _| {});
        self.layers_backward(batch);
    }

    /// Log-likelihoods of the sequences of the last pass forward.
    fn sequence_sums(&mut self, batch: &Batch) -> Vec<f64> {
        let mut each = vec![0.0; batch.ids.len()];
        let weights = vec![0.0; batch.ids.len()];
        self.head(batch, &weights, false, None, &mut |i, loss| {
            each[i] = if batch.counts[i] { -loss } else { 0.0 }
        });
        batch.spans.iter().map(|span| each[span.clone()].iter().sum()).collect()
    }

    /// States behind the final norm, `[tokens, hidden]`, of a batch.
    pub fn states(&mut self, batch: &Batch) -> &[f32] {
        self.forward(batch, false);
        &self.last.1
    }

    /// Logits `[vocab]` behind the last token of the last pass.
    pub(crate) fn last_logits(&self) -> Vec<f32> {
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        let state = &self.last.1[self.last.1.len() - hidden..];
        let state = Side::rows(Values::F32(state), hidden);
        let mut logits = vec![0.0; vocab];
        self.parts(self.table(), &mut |ids, head| {
            let target = Target { values: &mut logits, stride: vocab, first: ids.start };
            let head = Side::rows(Values::F32(head.host()), hidden);
            // As inference makes them, whatever steps are taken with.
            self.ops.cpu().product(Terms::F32, (1, ids.len(), hidden), state, head, Store::Set(1.0), target);
        });
        logits
    }

    /// The first layer behind which a state of the last pass is no number; the number of layers means the head.
    pub(crate) fn not_finite_behind(&self) -> usize {
        let bad = |x: &Array| x.iter().any(|v| !v.is_finite());
        // The input of a layer is what the one before it gave.
        let behind = self.inputs.iter().skip(1).take(self.layers.len() - 1).chain([&self.last.0]);
        behind.map(bad).position(|bad| bad).unwrap_or(self.layers.len())
    }
}
