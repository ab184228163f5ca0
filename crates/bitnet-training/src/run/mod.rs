//! A run from its first step, or from its last checkpoint, to its end.

mod event;
mod health;
mod metrics;
mod objective;
mod tensorboard;
#[cfg(test)]
mod tests;
mod workers;

use crate::checkpoint::{Checkpoints, Progress};
use crate::config::{ModelSource, RunConfig};
use crate::data::{Corpus, Rows, Split};
use crate::export::Trained;
use crate::model::{Losses, Model, Objectives};
use crate::ops::{memory, or_out_of_memory};
use crate::source::{Beside, Origin};
use crate::{Array, Ops, Rates, TrainError, clip, process_memory, sample};
use bitnet_core::{Activation, BackendError};
use bitnet_cpu::CpuTraining;
use bitnet_formats::write_file;
use bitnet_inference::Device;
use bitnet_memory::Tag;
use bitnet_tokenizer::Tokenizer;
use health::Health;
use metrics::Metrics;
use objective::{Objective, Sums};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use workers::{Passed, Step, Workers};

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

impl<'a> Run<'a> {
    fn new(config: &'a RunConfig, resume: bool, each: &mut dyn FnMut(Event)) -> Result<Self, TrainError> {
        if let Some(why) = &config.chosen {
            each(Event::Device { device: config.devices[0], why: why.clone() });
        }
        Self::over(shared_out(config.threads, config.train.workers, &config.devices)?, config, resume, each)
    }

    /// With what each worker computes on.
    fn over(
        ops: Vec<Ops>,
        config: &'a RunConfig,
        resume: bool,
        each: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let output = &config.output;
        let checkpoints = Checkpoints::of(output);
        if !resume && !checkpoints.steps().is_empty() {
            let what = format!(
                "there are checkpoints of a run in {}: --resume goes on with it, another output begins anew",
                output.display()
            );
            return Err(TrainError::Data { what });
        }
        let origin = match (&config.lora, &config.model) {
            (Some(_), ModelSource::Checkpoint(path)) => {
                Origin::frozen(&ops[0], path, Some(&config.precision))?
            }
            _ => Origin::read(&config.model, Some(&config.precision), config.seed)?,
        };
        let Origin { config: body, mut parameters, mut values, frozen, tokenizer, beside, .. } = origin;
        if let Some(lora) = &config.lora {
            parameters = parameters.with_adapters(lora)?;
            values = parameters.begin(values, config.seed);
        } else if !config.train.freeze.is_empty() || config.train.freeze_layers.is_some() {
            (parameters, values) =
                parameters.freeze(&values, &config.train.freeze, config.train.freeze_layers)?;
        }
        let (sequence, context) = (config.data.sequence, body.context);
        if sequence > context {
            let what = format!("data.sequence is {sequence}, and the model's context has {context} tokens");
            return Err(TrainError::Data { what });
        }
        let threads = ops.iter().map(|ops| ops.threads()).sum();
        let vocab = body.vocab;
        let terms = config.precision.terms;
        let teacher = match &config.distill {
            Some(distill) => Some(crate::teacher::teacher(&ops[0], distill, (&body, &tokenizer), terms)?),
            None => None,
        };
        let mut model =
            Model::new(ops[0].clone(), body, parameters, values, config.precision, config.train.recompute)?
                .with_frozen(frozen);
        model.begin_magnitudes();
        let maker = crate::data::Maker {
            tokenizer: &tokenizer,
            identity: &beside.identity,
            kind: config.kind,
            vocab,
            threads,
        };
        let folder = output.join("data");
        let train = Corpus::of(&config.data.train, &folder, &maker)?;
        let validation = match &config.data.validation[..] {
            [] => None,
            files => Some(Corpus::of(files, &folder, &maker)?),
        };
        let share = if validation.is_some() { 0.0 } else { config.data.validation_share };
        let pack = |corpus: &Corpus, split| {
            Rows::new(corpus, config.kind, split, sequence, config.data.drop_long, config.seed)
        };
        let rows = pack(&train, Split::Train(share))?;
        let validation_rows = match &validation {
            Some(corpus) => pack(corpus, Split::All)?,
            None => pack(&train, Split::Validation(share))?,
        };
        let mut skipped = train.set.skipped.clone();
        validation.iter().for_each(|corpus| skipped.append(&corpus.set.skipped));
        if skipped.count > 0 {
            each(Event::Skipped(skipped));
        }
        let dropped = rows.dropped + validation_rows.dropped;
        if dropped > 0 {
            each(Event::Dropped(dropped));
        }
        if rows.len() == 0 {
            return Err(TrainError::Data { what: "there is nothing to train on".to_owned() });
        }
        let (mut reference, mut validation_reference) = (Vec::new(), Vec::new());
        if config.dpo.is_some() {
            let mut of = |corpus: &Corpus, rows: &[&Rows]| {
                let mut begin = |pairs| each(Event::Reference(pairs));
                let batch = config.train.batch;
                objective::reference(&mut model, config.precision, corpus, rows, &folder, batch, &mut begin)
            };
            match &validation {
                None => reference = of(&train, &[&rows, &validation_rows])?,
                Some(corpus) => {
                    reference = of(&train, &[&rows])?;
                    validation_reference = of(corpus, &[&validation_rows])?;
                }
            }
        }
        let train_config = &config.train;
        let mut buffers: Vec<Array> = (0..train_config.buffers().len())
            .map(|_| Array::zeros(model.gradients.len(), Tag::Optimizer))
            .collect();
        if train_config.average.is_some() {
            buffers[train_config.optimizer.buffers()]
                .copy_from_slice(&model.values[model.parameters().start()..]);
        }
        let mut progress = Progress::default();
        for step in checkpoints.steps().into_iter().rev() {
            let mut values = std::mem::take(&mut model.values);
            let read = checkpoints.read(step, model.parameters(), &mut values, train_config, &mut buffers);
            model.values = values;
            match read {
                Ok(read) => {
                    progress = read;
                    break;
                }
                // Nothing is trained with what a damaged one may have left in weights: without another one, the run ends here.
                Err(e) if Some(&step) == checkpoints.steps().first() => return Err(e),
                Err(e) => each(Event::Damaged { why: crate::error::chain(&e) }),
            }
        }
        std::fs::create_dir_all(output).map_err(TrainError::io(output))?;
        write_file(&output.join("config.toml"), config.text.as_bytes())?;
        let metrics = Metrics::open(output, progress.step)?;
        Ok(Self {
            config,
            workers: Workers::new(ops, model, teacher)?,
            beside,
            prompts: sample::encoded(&config.samples, &tokenizer, context)?,
            tokenizer,
            buffers,
            progress,
            checkpoints,
            metrics,
            objective: config.dpo.map_or(Objective::Tokens, Objective::Pairs),
            train: (train, rows),
            reference,
            validation_reference,
            validation,
            validation_rows,
        })
    }

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

    /// Takes a step.
    fn step(&mut self) -> Result<Taken, TrainError> {
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

/// The threads of each worker, as equal in number as can be, and the device that it computes on.
fn shared_out(threads: Option<usize>, workers: usize, devices: &[Device]) -> Result<Vec<Ops>, TrainError> {
    let on = |cpu: CpuTraining, worker: usize| -> Result<Ops, TrainError> {
        let device = devices[worker % devices.len()];
        Ok(match device.training()? {
            Some(operations) => Ops::on(cpu.into(), operations),
            None => cpu.into(),
        })
    };
    let threads = threads.unwrap_or_else(bitnet_cpu::physical_cores);
    if threads < workers && workers > 1 {
        let what = format!(
            "train.workers is {workers}, each with a thread at least, and there are {threads} threads"
        );
        return Err(TrainError::Data { what });
    }
    let at = |i| i * threads / workers;
    let cpu = |i| CpuTraining::of(None, threads, at(i)..at(i + 1), Arc::clone(memory()));
    (0..workers).map(|i| on(cpu(i)?, i)).collect()
}

/// A step that was taken.
struct Taken {
    sums: Sums,
    rate: f64,
    norm: f64,
    tokens: usize,
    /// Of activations and of weights.
    concentration: (f64, f64),
    /// What is told of a teacher's lessons besides.
    learned: Option<Losses>,
}
