//! A run from its first step, or from its last checkpoint, to its end.

mod begin;
mod event;
mod health;
mod metrics;
mod objective;
mod step;
mod tensorboard;
#[cfg(test)]
mod tests;
mod workers;

use crate::checkpoint::{Checkpoints, Progress};
use crate::config::RunConfig;
use crate::data::{Corpus, Rows};
use crate::export::Trained;
use crate::model::Objectives;
use crate::ops::or_out_of_memory;
use crate::source::Beside;
use crate::{Array, TrainError, process_memory, sample};
use bitnet_core::Activation;
use bitnet_tokenizer::Tokenizer;
use health::Health;
use metrics::Metrics;
use objective::{Objective, Sums};
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use workers::Workers;

pub use event::{Event, Kind, Outcome, Preferences, Start, Stopped};

/// Runs. With `resume` it goes on from the newest checkpoint that is whole, or begins where there is none; without, the output must have no
/// checkpoints. `stop` ends it behind the present step, with a checkpoint.
///
/// # Errors
/// [`TrainError`]; checkpoints stay as they are.
pub fn run(
    config: &RunConfig,
    resume: bool,
    stop: &AtomicBool,
    each: &mut dyn FnMut(Event),
) -> Result<Outcome, TrainError> {
    or_out_of_memory(|| Run::new(config, resume, each)?.go(stop, each))
}

struct Run<'a> {
    config: &'a RunConfig,
    workers: Workers,
    beside: Beside,
    tokenizer: Tokenizer,
    /// What samples begin with.
    prompts: Vec<Vec<u32>>,
    buffers: Vec<Array>,
    progress: Progress,
    checkpoints: Checkpoints,
    metrics: Metrics,
    objective: Objective,
    train: (Corpus, Rows),
    /// Log-likelihoods of the examples of each corpus under the model at the start, where they are asked for.
    reference: Vec<f64>,
    validation_reference: Vec<f64>,
    /// `None`: what is kept of the files to train on.
    validation: Option<Corpus>,
    validation_rows: Rows,
}

impl Run<'_> {
    fn go(mut self, stop: &AtomicBool, each: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
        let train = &self.config.train;
        let steps = train.schedule.steps;
        each(Event::Begin(Start {
            parameters: self.workers.model().gradients.len(),
            rows: (self.train.1.len(), self.validation_rows.len()),
            train: self.train.0.set.clone(),
            validation: self.validation.as_ref().map(|corpus| corpus.set.clone()),
            step: self.progress.step,
            steps,
            threads: self.workers.threads(),
            devices: self.workers.names(),
        }));
        if let Some(how) = self.config.precision.run_otherwise() {
            each(Event::RunOtherwise { how });
        }
        let (mut loss, mut validation, mut stopped) = (None, None, Stopped::Done);
        let (mut begin, mut tokens, mut since) = (Instant::now(), 0, self.progress.step);
        let mut saved = None;
        self.workers.quantize(None)?;
        let mut health = Health::new(self.workers.model());
        while self.progress.step < steps {
            if stop.load(Ordering::Relaxed) {
                stopped = Stopped::Interrupted;
                break;
            }
            let taken = self.step()?;
            tokens += taken.tokens;
            loss = Some(taken.sums.mean());
            let step = self.progress.step;
            let last = step == steps;
            if step.is_multiple_of(train.log_every) || last {
                let seconds = begin.elapsed().as_secs_f64();
                let speed = tokens as f64 / seconds.max(1e-9);
                let rest = seconds / (step - since) as f64 * (steps - step) as f64;
                let mut line = json!({"step": step, "loss": taken.sums.mean(), "rate": taken.rate,
                    "grad_norm": taken.norm, "tokens": taken.tokens, "tokens_per_second": speed});
                let preferences = self.objective.preferences(&taken.sums);
                if let Some(Preferences { accuracy, margin }) = preferences {
                    line["accuracy"] = json!(accuracy);
                    line["margin"] = json!(margin);
                }
                if let Some(learned) = taken.learned {
                    line["logits_divergence"] = json!(learned.logits);
                    line["relations_divergence"] = json!(learned.relations);
                }
                let Objectives { size, sparsity, .. } = self.config.objectives;
                if sparsity > 0.0 {
                    line["activation_concentration"] = json!(taken.concentration.0);
                }
                if size > 0.0 {
                    line["weight_concentration"] = json!(taken.concentration.1);
                }
                let memory = process_memory();
                if let Some(memory) = memory {
                    line["resident_bytes"] = json!(memory.resident_bytes);
                    line["peak_bytes"] = json!(memory.peak_bytes);
                }
                self.metrics.write(line)?;
                each(Event::Steps {
                    step,
                    steps,
                    loss: taken.sums.mean(),
                    rate: taken.rate,
                    norm: taken.norm,
                    speed,
                    left: Duration::try_from_secs_f64(rest).unwrap_or_default(),
                    preferences,
                    memory,
                });
                self.workers.quantize(None)?;
                self.metrics.health(step, &health.look(self.workers.model()))?;
                (begin, tokens, since) = (Instant::now(), 0, step);
            }
            let due = train.validate_every > 0 && step.is_multiple_of(train.validate_every);
            let mut improved = false;
            if (due || last) && self.validation_rows.len() > 0 {
                let sums = self.validate()?;
                let (value, preferences) = (sums.mean(), self.objective.preferences(&sums));
                improved = self.progress.best.is_none_or(|(_, best)| value < best);
                if improved {
                    (self.progress.best, self.progress.stale) = (Some((step, value)), 0);
                } else {
                    self.progress.stale += 1;
                }
                validation = Some(value);
                let mut line = json!({"step": step, "validation_loss": value});
                match preferences {
                    Some(Preferences { accuracy, margin }) => {
                        line["validation_accuracy"] = json!(accuracy);
                        line["validation_margin"] = json!(margin);
                    }
                    None => line["perplexity"] = json!(value.exp()),
                }
                if let Some(shares) = self.sparsity() {
                    line["activation_sparsity"] = json!(shares);
                }
                self.metrics.write(line)?;
                each(Event::Validation { step, loss: value, best: improved, preferences });
            }
            let every = self.config.samples.every;
            let sampled = if every > 0 { step.is_multiple_of(every) } else { due };
            if (sampled || last) && !self.prompts.is_empty() {
                self.sample(each)?;
            }
            let early = train.patience.is_some_and(|p| self.progress.stale >= p) && !last;
            if step.is_multiple_of(train.checkpoint_every) || last || improved || early {
                saved = Some(self.save(each)?);
            }
            if early {
                stopped = Stopped::Early;
                break;
            }
        }
        let step = self.progress.step;
        let checkpoint = match saved.filter(|(of, _)| *of == step) {
            Some((_, path)) => path,
            None if self.checkpoints.path(step).exists() => self.checkpoints.path(step),
            None => self.save(each)?.1,
        };
        let model = (stopped != Stopped::Interrupted)
            .then(|| self.config.output.join(if self.config.lora.is_some() { "adapter" } else { "model" }));
        if let Some(path) = &model {
            self.swap_average();
            let exported = self.trained().export(path, train.bf16);
            self.swap_average();
            exported?;
        }
        Ok(Outcome { stopped, step, loss, validation, checkpoint, model })
    }

    /// Puts the average of parameters, where one is kept, in their place, or back.
    fn swap_average(&mut self) {
        if let Some(average) = self.buffers.get_mut(self.config.train.optimizer.buffers()) {
            let model = self.workers.model_mut();
            let start = model.parameters().start();
            model.values[start..].swap_with_slice(average);
        }
    }

    /// The loss on what is not trained on.
    fn validate(&mut self) -> Result<Sums, TrainError> {
        self.swap_average();
        let (corpus, reference) = match &self.validation {
            Some(corpus) => (corpus, &self.validation_reference),
            None => (&self.train.0, &self.reference),
        };
        self.workers.quantize(None)?;
        let firsts = (0..self.validation_rows.len()).step_by(self.config.train.batch);
        let batch = |first| self.validation_rows.plain(corpus, first, self.config.train.batch);
        let mut sums = Sums::default();
        // As many at a time as there are workers.
        let mut batches = firsts.map(batch).peekable();
        while batches.peek().is_some() {
            let some: Vec<_> = batches.by_ref().take(self.workers.count()).collect();
            sums.add(self.workers.measure(&some, &self.objective, reference));
        }
        self.swap_average();
        Ok(sums)
    }

    /// Lets the model go on with the prompts.
    fn sample(&mut self, each: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let (config, step) = (self.config, self.progress.step);
        self.workers.quantize(None)?;
        let samples = sample::samples(
            self.workers.model_mut(),
            &config.samples,
            &self.prompts,
            &self.tokenizer,
            (config.seed, step),
        )?;
        let told = samples.iter().map(|s| json!({"prompt": s.prompt, "text": s.text}));
        self.metrics.write(json!({"step": step, "samples": told.collect::<Vec<_>>()}))?;
        each(Event::Samples { step, samples });
        Ok(())
    }

    fn trained(&self) -> Trained<'_> {
        let model = self.workers.model();
        Trained {
            ops: model.ops(),
            parameters: model.parameters(),
            values: &model.values,
            frozen: model.all_frozen(),
            beside: &self.beside,
        }
    }

    /// The share of zeros that products can leave out, layer by layer, in some of what is not trained on.
    fn sparsity(&mut self) -> Option<Vec<f64>> {
        let zeros = self.workers.model().config().activation == Activation::Relu2;
        let corpus = self.validation.as_ref().unwrap_or(&self.train.0);
        // States of all layers are kept for it: of a single row where there is to be little room for them.
        let rows = if self.config.train.recompute { 1 } else { self.config.train.batch };
        zeros.then(|| self.workers.model_mut().sparsity(&self.validation_rows.plain(corpus, 0, rows)))
    }

    fn save(&self, each: &mut dyn FnMut(Event)) -> Result<(u64, PathBuf), TrainError> {
        let train = &self.config.train;
        let progress = &self.progress;
        let path = self.checkpoints.write(&self.trained(), train, &self.buffers, progress)?;
        self.checkpoints.prune(train.keep, progress.best.map(|(step, _)| step))?;
        each(Event::Checkpoint(path.clone()));
        Ok((progress.step, path))
    }
}
