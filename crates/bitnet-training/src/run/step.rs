//! A step of a run, and why it may come to nothing.

use super::Run;
use super::objective::Sums;
use super::workers::{Passed, Step};
use crate::model::Losses;
use crate::{Rates, TrainError, clip};
use bitnet_core::BackendError;

/// A step that was taken.
pub(super) struct Taken {
    pub sums: Sums,
    pub rate: f64,
    pub norm: f64,
    pub tokens: usize,
    /// Of activations and of weights.
    pub concentration: (f64, f64),
    /// What is told of a teacher's lessons besides.
    pub learned: Option<Losses>,
}

impl Run<'_> {
    /// Takes a step.
    pub(super) fn step(&mut self) -> Result<Taken, TrainError> {
        let train = &self.config.train;
        let t = self.progress.step;
        let per_step = (train.batch * train.accumulate) as u64;
        let (corpus, rows) = &self.train;
        let batches: Vec<_> = (0..train.accumulate as u64)
            .map(|i| rows.shuffled(corpus, t * per_step + i * train.batch as u64, train.batch))
            .collect();
        let tokens = batches.iter().map(|b| b.ids.len()).sum();
        self.workers.quantize(Some(t))?;
        let step = Step {
            batches: &batches,
            objective: &self.objective,
            beside: self.config.objectives,
            reference: &self.reference,
            random: (self.config.seed, t * train.accumulate as u64),
        };
        let Passed { sums, learned, concentration } = match self.workers.backward(&step) {
            Ok(passed) => passed,
            Err(layer) => {
                self.workers.check().map_err(|source| self.failed(t + 1, source))?;
                return Err(self.diverged(t + 1, layer));
            }
        };
        let norm = self.workers.model().gradient_norm();
        self.workers.check().map_err(|source| self.failed(t + 1, source))?;
        if !norm.is_finite() {
            return Err(self.diverged(t + 1, self.workers.model().not_finite_behind()));
        }
        let (rate, decay) = (train.schedule.rate(t), train.schedule.decay(t));
        let rates = Rates { rate, decay, scale: clip(norm, train.clip), step: t + 1 };
        let (buffers, average) = self.buffers.split_at_mut(train.optimizer.buffers());
        let model = self.workers.model_mut();
        model.update(&train.optimizer, rates, buffers);
        if let (Some(decay), Some(average)) = (train.average, average.first_mut()) {
            let start = model.parameters().start();
            let (old, new) = (decay as f32, (1.0 - decay) as f32);
            let values = model.values.part(start..model.values.len());
            model.ops().average((old, new), values, average);
        }
        self.progress.step += 1;
        Ok(Taken {
            sums,
            concentration,
            rate,
            norm,
            tokens,
            learned: self.workers.are_taught().then_some(learned),
        })
    }

    /// `layer` is the first one behind which something is no number.
    fn diverged(&self, step: u64, layer: usize) -> TrainError {
        let layers = self.workers.model().config().layers;
        let place = match layer {
            l if l < layers => format!("layer {l}"),
            _ => "the head, or on the way back".to_owned(),
        };
        TrainError::Diverged { step, place, kept: self.kept() }
    }

    /// A device gave up.
    fn failed(&self, step: u64, source: BackendError) -> TrainError {
        TrainError::Device { step, kept: self.kept(), source }
    }

    /// Which checkpoint there is.
    fn kept(&self) -> String {
        match self.checkpoints.steps().last() {
            Some(step) => format!("{} is from before", self.checkpoints.path(*step).display()),
            None => "there is no checkpoint from before".to_owned(),
        }
    }
}
