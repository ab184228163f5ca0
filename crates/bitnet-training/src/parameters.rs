//! The parameters of a model, one behind the other.

use crate::config::LoraConfig;
use crate::random::normal;
use crate::{TrainError, WeightQuantizer};
use bitnet_core::Matrix;
use bitnet_formats::Checkpoint;
use bitnet_model::{ModelConfig, ModelTensors, Origin, Role, Slot};
use bitnet_quant::dense::dequantize_row;
use std::ops::Range;

/// What a parameter is of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A tensor of the model itself.
    Tensor,
    /// The learned steps of a projection's quantizer.
    Steps,
    /// A low-rank matrix beside a projection, the one that its input goes into.
    LowRankA,
    /// The other one.
    LowRankB,
    /// Lengths of the rows of the sum (DoRA).
    Magnitude,
}

/// A tensor among all parameters.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name in a Hugging Face checkpoint.
    pub name: String,
    /// What it, or the tensor that it is a part of, is for; and its shape.
    pub slot: Slot,
    /// What it is of the tensor in this slot.
    pub part: Part,
    /// Whether it is quantized in every forward pass.
    pub quantized: bool,
    /// Where it lies; empty where it is frozen.
    pub range: Range<usize>,
}

impl Parameter {
    /// The shape in files.
    pub fn shape(&self) -> Vec<usize> {
        match self.part {
            Part::Steps | Part::Magnitude => vec![self.slot.cols],
            _ => self.slot.shape(),
        }
    }

    /// Whether it is a tensor of the model itself.
    pub(crate) fn is_tensor(&self) -> bool {
        self.part == Part::Tensor
    }

    /// Whether it is a matrix, which is what weight decay is for.
    pub fn is_matrix(&self) -> bool {
        self.shape().len() == 2
    }
}

/// Where each tensor lies in a buffer of all parameters. Those that are trained lie at its end: gradients and the buffers of an optimizer begin
/// with the first of them.
#[derive(Clone, Debug)]
pub struct Parameters {
    list: Vec<Parameter>,
    layers: usize,
    /// The place in the list of the first one that is trained.
    first: usize,
    quantizer: WeightQuantizer,
    adapter: Option<LoraConfig>,
}

/// Low-rank matrices beside a projection (arXiv 2106.09685): places in the list, and what their product is multiplied with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowRank {
    /// `[rank, k]`.
    pub(crate) a: usize,
    /// `[n, rank]`.
    pub(crate) b: usize,
    /// `[n]`, where rows of the sum have lengths of their own.
    pub(crate) magnitude: Option<usize>,
    pub(crate) scale: f32,
}

impl Parameters {
    /// The tensors of a model, in the order of a file.
    pub fn new(config: &ModelConfig, tensors: &ModelTensors<'_>) -> Self {
        let arch = config.arch;
        let names = match arch.origin {
            Origin::Gguf => arch.in_other_files().unwrap_or(arch),
            Origin::HuggingFace => arch,
        };
        let mut end = 0;
        let list = tensors.slots().into_iter().map(|slot| {
            let start = end;
            end += slot.rows * slot.cols;
            let quantized = slot.role.is_projection() && !tensors.is_kept_dense(&slot);
            let name = names.tensor_name(slot.role, slot.layer);
            Parameter { name, slot, part: Part::Tensor, quantized, range: start..end }
        });
        let quantizer = WeightQuantizer::Absmean;
        Self { list: list.collect(), layers: config.layers, first: 0, quantizer, adapter: None }
    }

    /// Matrices have no values: they stay as their file has them, and nothing is trained.
    pub(crate) fn frozen(mut self) -> Self {
        let mut end = 0;
        for p in &mut self.list {
            let len = if p.slot.role.is_norm() { p.range.len() } else { 0 };
            p.range = end..end + len;
            end += len;
        }
        self.first = self.list.len();
        self
    }

    /// Another quantizer than absmean for the projections, with its learned steps behind all tensors.
    pub fn with_quantizer(mut self, quantizer: WeightQuantizer) -> Self {
        self.quantizer = quantizer;
        let mut steps = Vec::new();
        let mut start = self.len();
        for p in self.list.iter().filter(|p| p.quantized && quantizer.steps(p.slot.rows) > 0) {
            let cols = quantizer.steps(p.slot.rows);
            steps.push(Parameter {
                name: format!("{}_steps", p.name),
                slot: Slot { rows: 1, cols, ..p.slot },
                part: Part::Steps,
                quantized: false,
                range: start..start + cols,
            });
            start += cols;
        }
        self.list.extend(steps);
        self
    }

    /// Puts low-rank matrices beside the projections that the settings name, and leaves everything else as it is.
    ///
    /// # Errors
    /// A name is of no projection.
    pub fn with_adapters(mut self, lora: &LoraConfig) -> Result<Self, TrainError> {
        self.first = self.list.len();
        let projections: Vec<Parameter> =
            self.tensors().filter(|p| p.slot.role.is_projection()).cloned().collect();
        let module = |p: &Parameter| p.name.trim_end_matches(".weight").to_owned();
        let is = |target: &str, p: &Parameter| {
            let module = module(p);
            if target.contains('*') {
                return crate::pattern::matches(target, &module);
            }
            module.strip_suffix(target).is_some_and(|head| head.is_empty() || head.ends_with('.'))
        };
        if let Some(target) = lora.targets.iter().find(|t| !projections.iter().any(|p| is(t, p))) {
            let what = format!("lora.targets names {target}, and the model has no such projection");
            return Err(TrainError::Data { what });
        }
        let mut lora = lora.clone();
        let chosen: Vec<&Parameter> =
            projections.iter().filter(|p| lora.targets.iter().any(|t| is(t, p))).collect();
        if lora.targets.iter().any(|t| t.contains('*')) {
            // Of patterns, peft knows others: it is told the modules.
            lora.targets = chosen.iter().map(|p| module(p)).collect();
        }
        for p in chosen {
            let (rank, n, k) = (lora.rank, p.slot.rows, p.slot.cols);
            let parts = [
                ("A.weight", Part::LowRankA, rank, k),
                ("B.weight", Part::LowRankB, n, rank),
                ("magnitude_vector", Part::Magnitude, 1, n),
            ];
            for (side, part, rows, cols) in parts.into_iter().take(if lora.dora { 3 } else { 2 }) {
                let start = self.len();
                self.list.push(Parameter {
                    name: format!("base_model.model.{}.lora_{side}", module(p)),
                    slot: Slot { rows, cols, ..p.slot },
                    part,
                    quantized: false,
                    range: start..start + rows * cols,
                });
            }
        }
        self.adapter = Some(lora);
        Ok(self)
    }

    /// Leaves tensors whose names fit a pattern, and those of some layers (first and last), as they are: they go before those that are
    /// trained, and `values` along with them.
    ///
    /// # Errors
    /// A pattern fits no name, there is no such layer, or nothing is left to train.
    pub(crate) fn freeze(
        mut self,
        values: &[f32],
        patterns: &[String],
        layers: Option<(usize, usize)>,
    ) -> Result<(Self, Vec<f32>), TrainError> {
        let fits = |pattern: &String, p: &Parameter| crate::pattern::matches(pattern, &p.name);
        let fail = |what: String| Err(TrainError::Data { what });
        if let Some(pattern) = patterns.iter().find(|pattern| !self.tensors().any(|p| fits(pattern, p))) {
            return fail(format!("train.freeze names {pattern}, and no tensor of the model is called so"));
        }
        if let Some((_, last)) = layers.filter(|(_, last)| *last >= self.layers) {
            let count = self.layers;
            return fail(format!(
                "train.freeze_layers ends with {last}, and the model has the layers 0 to {}",
                count - 1
            ));
        }
        let in_layer = |p: &Parameter| !matches!(p.slot.role, Role::Embedding | Role::FinalNorm | Role::Head);
        let frozen = |p: &Parameter| {
            patterns.iter().any(|pattern| fits(pattern, p))
                || layers.is_some_and(|(a, b)| in_layer(p) && (a..=b).contains(&p.slot.layer))
        };
        // Steps stay with the weights that they are for.
        let of: Vec<(Role, usize)> =
            self.tensors().filter(|p| frozen(p)).map(|p| (p.slot.role, p.slot.layer)).collect();
        let (still, trained): (Vec<Parameter>, Vec<Parameter>) =
            self.list.into_iter().partition(|p| of.contains(&(p.slot.role, p.slot.layer)));
        if trained.is_empty() {
            return fail("train.freeze and train.freeze_layers leave nothing to train".to_owned());
        }
        self.first = still.len();
        self.list = still.into_iter().chain(trained).collect();
        let mut moved = Vec::with_capacity(values.len());
        for p in &mut self.list {
            let start = moved.len();
            moved.extend_from_slice(&values[p.range.clone()]);
            p.range = start..moved.len();
        }
        Ok((self, moved))
    }

    /// Those that are trained.
    pub fn trained(&self) -> &[Parameter] {
        &self.list[self.first..]
    }

    /// Floats of those that are trained.
    pub fn trained_len(&self) -> usize {
        self.len() - self.start()
    }

    /// The first float that is trained.
    pub(crate) fn start(&self) -> usize {
        self.list.get(self.first).map_or(self.len(), |p| p.range.start)
    }

    /// Where one of those that are trained lies in buffers of them.
    pub(crate) fn of_trained(&self, p: &Parameter) -> Range<usize> {
        p.range.start - self.start()..p.range.end - self.start()
    }

    /// The same by its place in the list; `None` when it is not trained.
    pub(crate) fn trained_range(&self, place: usize) -> Option<Range<usize>> {
        (place >= self.first).then(|| self.of_trained(&self.list[place]))
    }

    /// The settings of low-rank matrices, where it is they that are trained.
    pub(crate) fn adapter(&self) -> Option<&LoraConfig> {
        self.adapter.as_ref()
    }

    /// The low-rank matrices beside a projection.
    pub(crate) fn low_rank(&self, place: usize) -> Option<LowRank> {
        let lora = self.adapter.as_ref()?;
        let (a, b) = (self.beside(place, Part::LowRankA)?, self.beside(place, Part::LowRankB)?);
        let magnitude = self.beside(place, Part::Magnitude);
        Some(LowRank { a, b, magnitude, scale: lora.scale() as f32 })
    }

    /// The place of another part of a tensor.
    pub(crate) fn beside(&self, place: usize, part: Part) -> Option<usize> {
        let of = &self.list[place];
        let is = |p: &Parameter| (p.part, p.slot.role, p.slot.layer) == (part, of.slot.role, of.slot.layer);
        self.list.iter().position(is).filter(|_| of.part == Part::Tensor)
    }

    /// The tensors of the model itself.
    pub fn tensors(&self) -> impl Iterator<Item = &Parameter> {
        self.list.iter().filter(|p| p.is_tensor())
    }

    /// How projections are quantized.
    pub fn quantizer(&self) -> WeightQuantizer {
        self.quantizer
    }

    /// The learned steps of a tensor; none where there are none.
    pub(crate) fn steps<'a>(&self, place: usize, values: &'a [f32]) -> &'a [f32] {
        self.beside(place, Part::Steps).map_or(&[], |steps| &values[self.list[steps].range.clone()])
    }

    /// Sets the steps of quantizers by the weights that they are for.
    fn begin_steps(&self, values: &mut [f32]) {
        for (place, p) in self.list.iter().enumerate().filter(|(_, p)| p.quantized) {
            if let Some(steps) = self.beside(place, Part::Steps) {
                let first = self.quantizer.first_steps(&values[p.range.clone()], p.slot.cols);
                values[self.list[steps].range.clone()].copy_from_slice(&first);
            }
        }
    }

    /// Values at first: `base`, and behind it adapters that add nothing: `B` is zero, `A` comes from a normal distribution. Magnitudes follow
    /// from the weights ([`crate::Model::begin_magnitudes`]).
    pub(crate) fn begin(&self, mut base: Vec<f32>, seed: u64) -> Vec<f32> {
        base.resize(self.len(), 0.0);
        for (stream, p) in self.trained().iter().enumerate().filter(|_| self.adapter.is_some()) {
            if p.part == Part::LowRankA {
                // The variance of peft's uniform distribution; of matrices whose product is to reach the next trit, 1.
                let deviation = match self.adapter {
                    Some(LoraConfig { trits: true, .. }) => 1.0,
                    _ => libm::sqrt(1.0 / (3.0 * p.slot.cols as f64)),
                };
                for (i, v) in base[p.range.clone()].iter_mut().enumerate() {
                    *v = (deviation * normal(seed, (self.first + stream) as u64, i as u64)) as f32;
                }
            }
        }
        base
    }

    /// All of them.
    pub fn list(&self) -> &[Parameter] {
        &self.list
    }

    /// Floats in all.
    pub fn len(&self) -> usize {
        self.list.last().map_or(0, |p| p.range.end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// The place of a tensor in the list; `None` when the model has none for this.
    pub(crate) fn find(&self, role: Role, layer: usize) -> Option<usize> {
        let is = |p: &Parameter| (p.part, p.slot.role, p.slot.layer) == (Part::Tensor, role, layer);
        self.list.iter().position(is)
    }

    /// Fresh values: norms are 1, matrices come from a normal distribution of this standard deviation, steps follow from these.
    pub fn fresh(&self, seed: u64, deviation: f64) -> Vec<f32> {
        let mut values = vec![1.0; self.len()];
        for (stream, p) in self.list.iter().enumerate().filter(|(_, p)| p.is_matrix()) {
            for (i, v) in values[p.range.clone()].iter_mut().enumerate() {
                *v = (deviation * normal(seed, stream as u64, i as u64)) as f32;
            }
        }
        self.begin_steps(&mut values);
        values
    }

    /// The values of a checkpoint. Of packed weights, which have no masters any more, masters are made that by absmean become the same
    /// trits and, but for rounding, the same scale; other quantizers get the weights as they are. Norms that the checkpoint's model has
    /// not are 1.
    ///
    /// # Errors
    /// A tensor is missing, has another shape or cannot be trained.
    pub fn read(&self, checkpoint: &Checkpoint, tensors: &ModelTensors<'_>) -> Result<Vec<f32>, TrainError> {
        let mut values = vec![0.0; self.len()];
        let there = tensors.slots();
        for p in self.tensors() {
            let out = &mut values[p.range.clone()];
            let at = |source| TrainError::Model { path: checkpoint.path.clone(), source };
            if p.slot.role.is_norm() && !there.contains(&p.slot) {
                out.fill(1.0);
                continue;
            }
            if p.slot.role.is_norm() {
                out.copy_from_slice(&tensors.vector(&p.slot).map_err(at)?);
                continue;
            }
            if p.range.is_empty() {
                continue;
            }
            let dense = match tensors.masters(&p.slot).map_err(at)? {
                Some(masters) => Matrix::Dense(masters),
                None => tensors.matrix(&p.slot).map_err(at)?,
            };
            match dense {
                Matrix::Dense(m) => {
                    for (r, out) in out.chunks_exact_mut(p.slot.cols).enumerate() {
                        dequantize_row(m.dtype(), m.row(r), out);
                    }
                    m.data().release();
                }
                Matrix::Ternary(m) => {
                    let cols = p.slot.cols;
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = f32::from(m.trit(i / cols, i % cols)) * m.scale_at(i / cols, i % cols);
                    }
                    if p.quantized && self.quantizer == WeightQuantizer::Absmean {
                        let present = out.iter().filter(|v| **v != 0.0).count();
                        let factor = out.len() as f32 / present.max(1) as f32;
                        out.iter_mut().for_each(|v| *v *= factor);
                    }
                }
            }
        }
        self.begin_steps(&mut values);
        match self.not_finite(&values) {
            Some(name) => Err(TrainError::NotFinite { path: checkpoint.path.clone(), name: name.to_owned() }),
            None => Ok(values),
        }
    }

    /// The first tensor with a value that is no number.
    pub(crate) fn not_finite(&self, values: &[f32]) -> Option<&str> {
        let bad = |p: &&Parameter| values[p.range.clone()].iter().any(|v| !v.is_finite());
        self.list.iter().find(bad).map(|p| p.name.as_str())
    }
}
