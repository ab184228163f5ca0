//! A run from its first step, or from its last checkpoint, to its end.

mod event;
mod metrics;
#[cfg(test)]
mod tests;

use crate::checkpoint::{Checkpoints, Progress};
use crate::config::RunConfig;
use crate::data::{Corpus, Rows, Skipped, Split};
use crate::export::Trained;
use crate::model::{Distillation, Losses, Model, Totals};
use crate::source::{Beside, Origin};
use crate::{Rates, TrainError, clip, norm};
use bitnet_cpu::CpuTraining;
use bitnet_formats::write_file;
use metrics::Metrics;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use event::{Event, Kind, Outcome, Start, Stopped};

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
    Run::new(config, resume, each)?.go(stop, each)
}

struct Run<'a> {
    config: &'a RunConfig,
    model: Model,
    teacher: Option<(Model, Distillation)>,
    beside: Beside,
    buffers: Vec<Vec<f32>>,
    progress: Progress,
    checkpoints: Checkpoints,
    metrics: Metrics,
    train: (Corpus, Rows),
    /// `None`: what is kept of the files to train on.
    validation: Option<Corpus>,
    validation_rows: Rows,
}

impl<'a> Run<'a> {
    fn new(config: &'a RunConfig, resume: bool, each: &mut dyn FnMut(Event)) -> Result<Self, TrainError> {
        let output = &config.output;
        let checkpoints = Checkpoints::of(output);
        if !resume && !checkpoints.steps().is_empty() {
            let what = format!(
                "there are checkpoints of a run in {}: --resume goes on with it, another output begins anew",
                output.display()
            );
            return Err(TrainError::Data { what });
        }
        let origin = Origin::read(&config.model, Some(&config.precision), config.seed)?;
        let Origin { config: body, mut parameters, mut values, tokenizer, beside, .. } = origin;
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
        let ops = Arc::new(CpuTraining::new(None, config.threads)?);
        let threads = ops.threads();
        let vocab = body.vocab;
        let terms = config.precision.terms;
        let teacher = match &config.distill {
            Some(distill) => Some(crate::teacher::teacher(&ops, distill, (&body, &tokenizer), terms)?),
            None => None,
        };
        let mut model = Model::new(ops, body, parameters, values, config.precision, config.train.recompute)?;
        let maker = crate::data::Maker {
            tokenizer: &tokenizer,
            identity: &beside.identity,
            kind: config.kind,
            vocab,
            threads,
        };
        let (mut skipped, folder) = (Skipped::default(), output.join("data"));
        let train = Corpus::of(&config.data.train, &folder, &maker, &mut skipped)?;
        let validation = match &config.data.validation[..] {
            [] => None,
            files => Some(Corpus::of(files, &folder, &maker, &mut skipped)?),
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
        let train_config = &config.train;
        let mut buffers = vec![vec![0.0; model.gradients.len()]; train_config.buffers().len()];
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
        let metrics = Metrics::open(&output.join("metrics.jsonl"), progress.step)?;
        Ok(Self {
            config,
            model,
            teacher,
            beside,
            buffers,
            progress,
            checkpoints,
            metrics,
            train: (train, rows),
            validation,
            validation_rows,
        })
    }

    fn go(mut self, stop: &AtomicBool, each: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
        let train = &self.config.train;
        let steps = train.schedule.steps;
        each(Event::Begin(Start {
            parameters: self.model.gradients.len(),
            rows: (self.train.1.len(), self.validation_rows.len()),
            step: self.progress.step,
            steps,
            threads: self.model.ops().threads(),
        }));
        if let Some(how) = self.config.precision.run_otherwise() {
            each(Event::RunOtherwise { how });
        }
        let (mut loss, mut validation, mut stopped) = (None, None, Stopped::Done);
        let (mut begin, mut tokens, mut since) = (Instant::now(), 0, self.progress.step);
        let mut saved = None;
        while self.progress.step < steps {
            if stop.load(Ordering::Relaxed) {
                stopped = Stopped::Interrupted;
                break;
            }
            let taken = self.step()?;
            tokens += taken.tokens;
            loss = Some(taken.loss);
            let step = self.progress.step;
            let last = step == steps;
            if step.is_multiple_of(train.log_every) || last {
                let seconds = begin.elapsed().as_secs_f64();
                let speed = tokens as f64 / seconds.max(1e-9);
                let rest = seconds / (step - since) as f64 * (steps - step) as f64;
                let mut line = json!({"step": step, "loss": taken.loss, "rate": taken.rate,
                    "grad_norm": taken.norm, "tokens": taken.tokens, "tokens_per_second": speed});
                for (key, value) in taken.learned.as_ref().and_then(|l| l.as_object()).into_iter().flatten() {
                    line[key] = value.clone();
                }
                self.metrics.write(line)?;
                each(Event::Steps {
                    step,
                    steps,
                    loss: taken.loss,
                    rate: taken.rate,
                    norm: taken.norm,
                    speed,
                    left: Duration::try_from_secs_f64(rest).unwrap_or_default(),
                });
                (begin, tokens, since) = (Instant::now(), 0, step);
            }
            let due = train.validate_every > 0 && step.is_multiple_of(train.validate_every);
            let mut improved = false;
            if (due || last) && self.validation_rows.len() > 0 {
                let value = self.validate()?;
                improved = self.progress.best.is_none_or(|(_, best)| value < best);
                if improved {
                    (self.progress.best, self.progress.stale) = (Some((step, value)), 0);
                } else {
                    self.progress.stale += 1;
                }
                validation = Some(value);
                self.metrics
                    .write(json!({"step": step, "validation_loss": value, "perplexity": value.exp()}))?;
                each(Event::Validation { step, loss: value, best: improved });
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
        let total: usize = batches.iter().map(|b| b.counted()).sum();
        let tokens = batches.iter().map(|b| b.ids.len()).sum();
        self.model.quantize_for(t)?;
        self.model.gradients.fill(0.0);
        let mut sum = Losses::default();
        for (i, batch) in batches.iter().enumerate() {
            self.model.set_dropout(self.config.seed, Some(t * train.accumulate as u64 + i as u64));
            match &mut self.teacher {
                None => sum.targets += self.model.backward(batch, total),
                Some((teacher, how)) => {
                    let totals = Totals { counted: total, tokens };
                    let losses = self.model.backward_beside(teacher, batch, totals, how);
                    sum.targets += losses.targets;
                    sum.logits += losses.logits;
                    sum.relations += losses.relations;
                }
            }
            if !(sum.targets + sum.logits + sum.relations).is_finite() {
                return Err(self.diverged(t + 1));
            }
        }
        self.model.set_dropout(self.config.seed, None);
        self.model.through_quantizers();
        let ops = Arc::clone(self.model.ops());
        let norm = norm(&ops, &self.model.gradients);
        if !norm.is_finite() {
            return Err(self.diverged(t + 1));
        }
        let (rate, decay) = (train.schedule.rate(t), train.schedule.decay(t));
        let rates = Rates { rate, decay, scale: clip(norm, train.clip), step: t + 1 };
        let (buffers, average) = self.buffers.split_at_mut(train.optimizer.buffers());
        self.model.update(&train.optimizer, rates, buffers);
        if let (Some(decay), Some(average)) = (train.average, average.first_mut()) {
            let start = self.model.parameters().start();
            crate::optimizer::average(&ops, decay, &self.model.values[start..], average);
        }
        self.progress.step += 1;
        let loss = sum.targets / total.max(1) as f64;
        let learned = self.teacher.is_some().then(|| {
            json!({"logits_divergence": sum.logits / total.max(1) as f64,
                "relations_divergence": sum.relations / tokens.max(1) as f64})
        });
        Ok(Taken { loss, rate, norm, tokens, learned })
    }

    fn diverged(&self, step: u64) -> TrainError {
        let (layer, layers) = (self.model.not_finite_behind(), self.model.config().layers);
        let place = match layer {
            l if l < layers => format!("layer {l}"),
            _ => "the head, or on the way back".to_owned(),
        };
        let kept = match self.checkpoints.steps().last() {
            Some(step) => format!("{} is from before", self.checkpoints.path(*step).display()),
            None => "there is no checkpoint from before".to_owned(),
        };
        TrainError::Diverged { step, place, kept }
    }

    /// Puts the average of parameters, where one is kept, in their place, or back.
    fn swap_average(&mut self) {
        if let Some(average) = self.buffers.get_mut(self.config.train.optimizer.buffers()) {
            let start = self.model.parameters().start();
            self.model.values[start..].swap_with_slice(average);
        }
    }

    /// The mean loss on what is not trained on.
    fn validate(&mut self) -> Result<f64, TrainError> {
        self.swap_average();
        let corpus = self.validation.as_ref().unwrap_or(&self.train.0);
        self.model.quantize()?;
        let (mut sum, mut counted) = (0.0, 0);
        for first in (0..self.validation_rows.len()).step_by(self.config.train.batch) {
            let batch = self.validation_rows.plain(corpus, first, self.config.train.batch);
            sum += self.model.loss(&batch) * batch.counted() as f64;
            counted += batch.counted();
        }
        self.swap_average();
        Ok(sum / counted.max(1) as f64)
    }

    fn trained(&self) -> Trained<'_> {
        let model = &self.model;
        Trained {
            ops: model.ops(),
            parameters: model.parameters(),
            values: &model.values,
            beside: &self.beside,
        }
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

/// A step that was taken.
struct Taken {
    loss: f64,
    rate: f64,
    norm: f64,
    tokens: usize,
    /// What is told of a teacher's lessons besides.
    learned: Option<serde_json::Value>,
}
