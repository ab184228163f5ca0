//! How a run begins: the model, what it is trained on, and what a checkpoint has of both.

use super::metrics::Metrics;
use super::objective::{self, Objective};
use super::workers::Workers;
use super::{Event, Run};
use crate::checkpoint::{Checkpoints, Progress};
use crate::config::{ModelSource, RunConfig};
use crate::data::{Corpus, Rows, Split};
use crate::model::Model;
use crate::ops::memory;
use crate::source::Origin;
use crate::{Array, Ops, TrainError, sample};
use bitnet_cpu::CpuTraining;
use bitnet_formats::write_file;
use bitnet_inference::Device;
use bitnet_memory::Tag;
use std::sync::Arc;

impl<'a> Run<'a> {
    pub(super) fn new(
        config: &'a RunConfig,
        resume: bool,
        each: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        if let Some(why) = &config.chosen {
            each(Event::Device { device: config.devices[0], why: why.clone() });
        }
        Self::over(shared_out(config.threads, config.train.workers, &config.devices)?, config, resume, each)
    }

    /// With what each worker computes on.
    pub(super) fn over(
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
