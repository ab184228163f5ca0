//! The passes of a step, by one worker or by several side by side.

use super::objective::{Objective, Sums};
use crate::model::{Distillation, Losses, Model, Objectives, Totals};
use crate::{Array, Batch, Ops, TrainError};
use bitnet_core::BackendError;

/// Models with the same values, each with threads of its own. The first one leads: it is the one that the optimizer changes, and others
/// are given what became of it.
///
/// The gradient of a batch begins with zero, and those of a step's batches are added in the order of batches. So which worker a batch goes to,
/// and how many there are, changes no bit.
pub(super) struct Workers {
    lead: Worker,
    others: Vec<Worker>,
    how: Option<Distillation>,
    /// Gradients of the batches so far, where a step has several.
    sum: Array,
}

struct Worker {
    model: Model,
    teacher: Option<Model>,
}

/// What passes add up to.
#[derive(Default)]
pub(super) struct Passed {
    pub(super) sums: Sums,
    /// Divergences from a teacher: means over the whole step.
    pub(super) learned: Losses,
    /// The mean concentration of activations, and of weights, where those are objectives.
    pub(super) concentration: (f64, f64),
}

/// A step's batches, and what they are measured with.
pub(super) struct Step<'a> {
    pub(super) batches: &'a [Batch],
    pub(super) objective: &'a Objective,
    pub(super) beside: Objectives,
    pub(super) reference: &'a [f64],
    /// What the random numbers of dropout follow from: the seed, and the number of the first pass.
    pub(super) random: (u64, u64),
}

impl Workers {
    /// One for each set of threads; the model and the teacher are the first one's.
    ///
    /// # Errors
    /// Weights cannot be prepared.
    pub(super) fn new(
        all: Vec<Ops>,
        model: Model,
        teacher: Option<(Model, Distillation)>,
    ) -> Result<Self, TrainError> {
        let (teacher, how) = teacher.unzip();
        let others = all.into_iter().skip(1).map(|ops| {
            let teacher = teacher.as_ref().map(|teacher| teacher.beside(ops.clone()));
            let mut teacher = teacher.transpose()?;
            if let Some(teacher) = &mut teacher {
                teacher.quantize()?;
            }
            Ok(Worker { model: model.beside(ops)?, teacher })
        });
        let others = others.collect::<Result<_, TrainError>>()?;
        Ok(Self { lead: Worker { model, teacher }, others, how, sum: Array::default() })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// Threads of all of them.
    pub(super) fn threads(&self) -> usize {
        let others = self.others.iter().map(|worker| worker.model.ops().threads());
        self.lead.model.ops().threads() + others.sum::<usize>()
    }

    /// What each computes on.
    pub(super) fn names(&self) -> Vec<String> {
        self.models().map(|model| model.ops().name().to_owned()).collect()
    }

    /// What went wrong on devices.
    ///
    /// # Errors
    /// That.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        self.models().try_for_each(|model| model.ops().check())
    }

    fn models(&self) -> impl Iterator<Item = &Model> {
        std::iter::once(&self.lead).chain(&self.others).map(|worker| &worker.model)
    }

    /// The first one's model.
    pub(super) fn model(&self) -> &Model {
        &self.lead.model
    }

    /// The first one's model. Others have its values from the next [`Workers::quantize`] or [`Workers::backward`] on.
    pub(super) fn model_mut(&mut self) -> &mut Model {
        &mut self.lead.model
    }

    /// Whether there is a teacher.
    pub(super) fn are_taught(&self) -> bool {
        self.how.is_some()
    }

    /// Quantizes everyone's weights for a step, or as they will be run.
    pub(super) fn quantize(&mut self, step: Option<u64>) -> Result<(), TrainError> {
        let start = self.lead.model.parameters().start();
        for worker in &mut self.others {
            worker.model.values[start..].copy_from_slice(&self.lead.model.values[start..]);
        }
        self.side_by_side(self.count(), &|worker, _| match step {
            Some(t) => worker.model.quantize_for(t),
            None => worker.model.quantize(),
        })
        .into_iter()
        .collect()
    }

    /// Leaves the gradients of what a step is to make small with the first one: those of master weights.
    ///
    /// # Errors
    /// How many layers are sound of the model whose loss is no number.
    pub(super) fn backward(&mut self, step: &Step<'_>) -> Result<Passed, usize> {
        let total: usize = step.batches.iter().map(|b| step.objective.count(b)).sum();
        let tokens = step.batches.iter().map(|b| b.ids.len()).sum();
        let (how, (seed, first)) = (self.how, step.random);
        let mut passed = Passed::default();
        for from in (0..step.batches.len()).step_by(self.count()) {
            let batches = &step.batches[from..step.batches.len().min(from + self.count())];
            let results = self.side_by_side(batches.len(), &|worker, i| {
                let (model, batch) = (&mut worker.model, &batches[i]);
                model.forget_gradients();
                model.set_dropout(seed, Some(first + (from + i) as u64));
                model.set_objectives(step.beside, tokens);
                let mut passed = match (&mut worker.teacher, how) {
                    (Some(teacher), Some(how)) => {
                        let totals = Totals { counted: total, tokens };
                        let losses = model.backward_beside(teacher, batch, totals, &how);
                        let learned = Losses {
                            logits: losses.logits / total.max(1) as f64,
                            relations: losses.relations / tokens.max(1) as f64,
                            ..Losses::default()
                        };
                        Passed {
                            sums: Sums::tokens(batch.counted(), losses.targets),
                            learned,
                            ..Passed::default()
                        }
                    }
                    _ => {
                        let sums = step.objective.backward(model, batch, total, step.reference);
                        Passed { sums, ..Passed::default() }
                    }
                };
                model.set_dropout(seed, None);
                passed.concentration.0 = model.activation_concentration();
                let loss = passed.sums.loss + passed.learned.logits + passed.learned.relations;
                if loss.is_finite() { Ok(passed) } else { Err(model.not_finite_behind()) }
            });
            for result in results {
                let Passed { sums, learned, concentration } = result?;
                passed.sums.add(sums);
                passed.concentration.0 += concentration.0;
                passed.learned.logits += learned.logits;
                passed.learned.relations += learned.relations;
            }
            if step.batches.len() > 1 {
                self.add_up(from == 0, batches.len());
            }
        }
        if step.batches.len() > 1 {
            std::mem::swap(&mut self.lead.model.gradients, &mut self.sum);
        }
        self.lead.model.through_quantizers();
        passed.concentration.1 = self.lead.model.concentrate_weights();
        Ok(passed)
    }

    /// Adds the gradients of the first so many workers to the sum, which they begin where they are the step's first.
    fn add_up(&mut self, begin: bool, count: usize) {
        let Self { lead, others, sum, .. } = self;
        let ops = lead.model.ops().clone();
        sum.sized(lead.model.gradients.len());
        if begin {
            std::mem::swap(sum, &mut lead.model.gradients);
        }
        let models = std::iter::once(&lead.model).chain(others.iter().map(|worker| &worker.model));
        for model in models.take(count).skip(usize::from(begin)) {
            match ops.is_on_device() || model.ops().is_on_device() {
                // From one device to another by way of the host.
                true => ops.add(sum, &model.gradients.clone()),
                false => ops.add(sum, &model.gradients),
            }
        }
    }

    /// Measures batches, in their order; gradients are left alone.
    pub(super) fn measure(&mut self, batches: &[Batch], objective: &Objective, reference: &[f64]) -> Sums {
        let mut all = Sums::default();
        for batches in batches.chunks(self.count()) {
            let sums = self.side_by_side(batches.len(), &|worker, i| {
                objective.measure(&mut worker.model, &batches[i], reference)
            });
            sums.into_iter().for_each(|sums| all.add(sums));
        }
        all
    }

    /// Lets the first so many workers do something at the same time, and gives what they gave in their order.
    fn side_by_side<T: Send>(
        &mut self,
        count: usize,
        f: &(dyn Fn(&mut Worker, usize) -> T + Sync),
    ) -> Vec<T> {
        let Self { lead, others, .. } = self;
        std::thread::scope(|scope| {
            let others = others.iter_mut().take(count - 1).enumerate();
            let threads: Vec<_> = others.map(|(i, worker)| scope.spawn(move || f(worker, i + 1))).collect();
            let first = f(lead, 0);
            let rest = threads.into_iter().map(|thread| match thread.join() {
                Ok(given) => given,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            std::iter::once(first).chain(rest).collect()
        })
    }
}
