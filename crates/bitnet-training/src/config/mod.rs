//! What a run is told: a TOML file, and changes to it.

mod section;
mod tables;
#[cfg(test)]
mod tests;

use crate::model::{Objectives, Precision};
use crate::optimizer::Optimizer;
use crate::preference::Dpo;
use crate::run::Kind;
use crate::schedule::Schedule;
use crate::{Parameter, TrainError, WeightQuantizer};
use bitnet_cpu::{CpuTraining, Terms};
use bitnet_inference::Device;
use section::Section;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A whole run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Pre-training or fine-tuning.
    pub kind: Kind,
    /// The folder that gets checkpoints, metrics and the model.
    pub output: PathBuf,
    /// What random numbers follow from.
    pub seed: u64,
    /// Threads; one a physical core when `None`. They change no bit.
    pub threads: Option<usize>,
    /// Where it is computed: each worker on one of these, in turn.
    pub devices: Vec<Device>,
    /// Why it is computed there, where nobody named a device.
    pub chosen: Option<String>,
    /// Where the model comes from.
    pub model: ModelSource,
    /// What is quantized.
    pub precision: Precision,
    /// What is trained on.
    pub data: DataConfig,
    /// Low-rank matrices, where those are trained and nothing else.
    pub lora: Option<LoraConfig>,
    /// The objective over pairs of answers, where those are trained on.
    pub dpo: Option<Dpo>,
    /// Texts that the model goes on with while it is trained.
    pub samples: SampleConfig,
    /// What is learned from another model, where there is one.
    pub distill: Option<DistillConfig>,
    /// What is made small.
    pub objectives: Objectives,
    /// How.
    pub train: TrainConfig,
    /// The file with all changes, as it is kept beside the checkpoints.
    pub text: String,
}

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// Weights of a Hugging Face directory; under an adapter, of any file that is run.
    Checkpoint(PathBuf),
    /// Fresh ones.
    Fresh {
        /// The `config.json`, but for the vocabulary.
        config: Json,
        /// A directory with a tokenizer.
        tokenizer: PathBuf,
        /// Standard deviation of matrices.
        deviation: f64,
    },
}

/// Low-rank matrices beside projections.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Their product is multiplied with `alpha / rank`.
    pub alpha: f64,
    /// Or with `alpha / sqrt(rank)`.
    pub rank_stabilized: bool,
    /// Whether rows of the sum of weights and matrices get lengths that are learned (DoRA, arXiv 2402.09353).
    pub dora: bool,
    /// Whether the sum of trits and matrices, in units of the weights' scale, is rounded to trits: what comes out are those that changed.
    pub trits: bool,
    /// Names of projections, ends of their modules' paths, or patterns of the whole path in which `*` stands for anything.
    pub targets: Vec<String>,
    /// The share of an adapter's inputs that are left out in each pass of training, at random; the others are made larger by as much.
    pub dropout: f64,
}

impl LoraConfig {
    /// What the product of the matrices is multiplied with.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilized { libm::sqrt(rank) } else { rank }
    }
}

/// What is learned from another model; see [`crate::Distillation`].
#[derive(Clone, Debug, PartialEq)]
pub struct DistillConfig {
    /// A Hugging Face directory of a model with the same tokens.
    pub teacher: PathBuf,
    /// The weight of the divergence of distributions.
    pub logits: f64,
    /// What logits are divided by first.
    pub temperature: f64,
    /// The weight of relations.
    pub relations: f64,
    /// The layer that is compared; the last one when `None`.
    pub layer: Option<usize>,
    /// The same of the teacher.
    pub teacher_layer: Option<usize>,
    /// Heads of relations; as many as the student's keys have when `None`.
    pub heads: Option<usize>,
    /// Whether likeness is the cosine.
    pub cosine: bool,
    /// Whether tokens are compared with those before them only.
    pub causal: bool,
    /// Whether queries and keys are compared as they are before they are rotated.
    pub unrotated: bool,
}

/// What is trained on.
#[derive(Clone, Debug)]
pub struct DataConfig {
    /// Files to train on.
    pub train: Vec<PathBuf>,
    /// Files to validate on.
    pub validation: Vec<PathBuf>,
    /// Share of the examples of `train` that is kept for validation instead.
    pub validation_share: f64,
    /// Tokens of a row.
    pub sequence: usize,
    /// Whether examples that are longer than a row are left out and counted, instead of ending the run.
    pub drop_long: bool,
}

/// Texts that the model goes on with while it is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleConfig {
    /// Their beginnings.
    pub prompts: Vec<String>,
    /// Whether those are what a user says, through the chat template, instead of the beginning of a text.
    pub chat: bool,
    /// Tokens at most.
    pub tokens: usize,
    /// 0 takes the likeliest token each time; else what logits are divided by before one is drawn.
    pub temperature: f64,
    /// Steps from one time to the next; 0: with every validation. The last step always has them.
    pub every: u64,
}

/// How it is trained.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// Rows of a pass.
    pub batch: usize,
    /// Passes of a step.
    pub accumulate: usize,
    /// Models side by side, each with its share of threads, that share out a step's passes. They change no bit.
    pub workers: usize,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Patterns of names of tensors that are left as they are.
    pub freeze: Vec<String>,
    /// The first and the last layer of those that are left as they are.
    pub freeze_layers: Option<(usize, usize)>,
    /// The decay, from one step to the next, of an average of the parameters, which is then what is validated and exported.
    pub average: Option<f64>,
    /// Learning rate and weight decay; it has the number of steps.
    pub schedule: Schedule,
    /// The largest norm of the gradient.
    pub clip: Option<f64>,
    /// Whether states are computed again on the way back, instead of having been kept.
    pub recompute: bool,
    /// Steps from one line of progress to the next.
    pub log_every: u64,
    /// Steps from one checkpoint to the next.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept; the one with the best validation loss stays too.
    pub keep: usize,
    /// Steps from one validation to the next; 0: only at the end.
    pub validate_every: u64,
    /// Validations without a better loss before the run ends.
    pub patience: Option<u64>,
    /// Whether the model is written with bf16 weights, which may round a weight across a threshold; else f32.
    pub bf16: bool,
}

impl TrainConfig {
    /// Names of the buffers of the trained parameters' size that a run keeps: the optimizer's, and the average.
    pub(crate) fn buffers(&self) -> Vec<&'static str> {
        let average = self.average.map(|_| "average");
        self.optimizer.names().iter().copied().chain(average).collect()
    }

    /// Whether one of these buffers is used for a parameter.
    pub(crate) fn keeps(&self, buffer: usize, parameter: &Parameter) -> bool {
        buffer >= self.optimizer.buffers() || self.optimizer.keeps(buffer, parameter)
    }
}

impl RunConfig {
    /// Reads a file and applies changes, each `key=value` with a dotted key and a TOML value; a value that is none is a text.
    ///
    /// # Errors
    /// [`TrainError::Config`] names the key.
    pub fn read(path: &Path, kind: Kind, changes: &[String]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io(path))?;
        Self::parse(&path.display().to_string(), &text, kind, changes)
    }

    /// The same of a text; `origin` is what errors call it.
    ///
    /// # Errors
    /// [`TrainError::Config`] names the key.
    pub fn parse(origin: &str, text: &str, kind: Kind, changes: &[String]) -> Result<Self, TrainError> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
            let before = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..before].iter().filter(|b| **b == b'\n').count() + 1;
            let what = format!("line {line}: {}", e.message().replace('\n', "; "));
            TrainError::Config { origin: origin.to_owned(), what }
        })?;
        for change in changes {
            set(&mut table, change)?;
        }
        // A run that is gone on with stays of its kind, and with its products, whatever processor it is gone on with on.
        table.entry("kind").or_insert_with(|| kind.name().into());
        let mut s = Section::new(origin, table.clone());
        let (devices, chosen) = tables::devices(&mut s)?;
        if let Some(Value::Table(train)) = table.get_mut("train") {
            let terms = match devices[0] {
                Device::Cpu => CpuTraining::fastest_terms(),
                Device::Cuda(_) => Terms::Bf16,
                // Shaders multiply f32 in either case.
                Device::Wgpu(_) => Terms::F32,
            };
            let products = if terms == Terms::Bf16 { "bf16" } else { "f32" };
            train.entry("products").or_insert_with(|| products.into());
        }
        let kept = table.to_string();
        let mut s = Section::new(origin, table);
        let _ = s.texts("device")?;
        if let Some(said) = s.text("kind")?
            && said != kind.name()
        {
            return Err(s.error("kind", format!("is {said:?}, and the command is {}", kind.name())));
        }
        let need = |s: &Section<'_>, key: &str| s.error(key, "is missing");
        let output = s.text("output")?.ok_or_else(|| need(&s, "output"))?.into();
        let seed = s.count("seed", 0)?.unwrap_or(0);
        let threads = s.size("threads")?;
        let adapts = kind == Kind::Lora || kind == Kind::Dpo && s.has("lora");
        let of_weights = if adapts { Kind::Lora } else { kind };
        let model = tables::model(s.section("model")?, of_weights)?;
        let mut precision = tables::quantize(s.section("quantize")?, of_weights, seed)?;
        let lora = if adapts { Some(tables::lora(s.section("lora")?)?) } else { None };
        let dpo = if kind == Kind::Dpo { Some(tables::dpo(s.section("dpo")?)?) } else { None };
        let distill =
            if kind == Kind::Distill { Some(tables::distill(s.section("distill")?)?) } else { None };
        let data = tables::data(s.section("data")?)?;
        let samples = tables::samples(s.section("samples")?)?;
        let quantized = precision.weights != WeightQuantizer::Float && lora.is_none();
        let objectives = tables::objectives(s.section("objectives")?, quantized, distill.is_some())?;
        let (train, terms) = tables::train(s.section("train")?, kind, devices.len())?;
        precision.terms = terms;
        if precision.ramp.steps >= train.schedule.steps {
            let (ramp, steps) = (precision.ramp.steps, train.schedule.steps);
            return Err(s.error("quantize.ramp", format!("is {ramp}, and the run has {steps} steps")));
        }
        if lora.as_ref().is_some_and(|lora| lora.trits) && !precision.weights.is_ternary() {
            return Err(s.error("lora.trits", "is true, and quantize.weights are not ternary"));
        }
        if adapts && (!train.freeze.is_empty() || train.freeze_layers.is_some()) {
            return Err(
                s.error("train.freeze", "does not go with lora, which leaves all weights as they are")
            );
        }
        s.finish()?;
        Ok(Self {
            kind,
            output,
            seed,
            threads,
            devices,
            chosen,
            model,
            precision,
            lora,
            data,
            dpo,
            distill,
            samples,
            objectives,
            train,
            text: kept,
        })
    }
}

/// Puts a value where a dotted key says.
fn set(table: &mut Table, change: &str) -> Result<(), TrainError> {
    let fail = |what: &str| TrainError::Config { origin: format!("--set {change}"), what: what.to_owned() };
    let (key, value) = change.split_once('=').ok_or_else(|| fail("it should be key=value"))?;
    let text = Value::String(value.to_owned());
    let value = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v")).unwrap_or(text);
    let mut at = table;
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().filter(|last| !last.is_empty()).ok_or_else(|| fail("it has no key"))?;
    for part in parts {
        let inner = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = inner.as_table_mut().ok_or_else(|| fail("a part of its key is no table"))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}
