//! What a run is told: a TOML file, and changes to it.

mod section;
#[cfg(test)]
mod tests;

use crate::TrainError;
use crate::model::Precision;
use crate::optimizer::Optimizer;
use crate::run::Kind;
use crate::schedule::{Schedule, Shape};
use section::Section;
use serde_json::{Value as Json, json};
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
    /// Where the model comes from.
    pub model: ModelSource,
    /// What is quantized.
    pub precision: Precision,
    /// What is trained on.
    pub data: DataConfig,
    /// Low-rank matrices, where those are trained and nothing else.
    pub lora: Option<LoraConfig>,
    /// How.
    pub train: TrainConfig,
    /// The file with all changes, as it is kept beside the checkpoints.
    pub text: String,
}

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// Weights of a Hugging Face directory.
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
    /// Names of projections, or ends of their modules' paths.
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// What the product of the matrices is multiplied with.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilized { libm::sqrt(rank) } else { rank }
    }
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

/// How it is trained.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// Rows of a pass.
    pub batch: usize,
    /// Passes of a step.
    pub accumulate: usize,
    /// The optimizer.
    pub optimizer: Optimizer,
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
        // A run that is gone on with stays of its kind.
        table.entry("kind").or_insert_with(|| kind.name().into());
        let kept = table.to_string();
        let mut s = Section::new(origin, table);
        if let Some(said) = s.text("kind")?
            && said != kind.name()
        {
            return Err(s.error("kind", format!("is {said:?}, and the command is {}", kind.name())));
        }
        let need = |s: &Section<'_>, key: &str| s.error(key, "is missing");
        let output = s.text("output")?.ok_or_else(|| need(&s, "output"))?.into();
        let seed = s.count("seed", 0)?.unwrap_or(0);
        let threads = s.size("threads")?;
        let (model, precision) = model(s.section("model")?)?;
        let lora = if kind == Kind::Lora { Some(lora(s.section("lora")?)?) } else { None };
        let data = data(s.section("data")?)?;
        let train = train(s.section("train")?, kind)?;
        s.finish()?;
        Ok(Self { kind, output, seed, threads, model, precision, lora, data, train, text: kept })
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

/// Keys of a fresh model.
const FRESH: [&str; 13] = [
    "tokenizer",
    "architecture",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "untied_embeddings",
    "initializer_range",
];

fn model(mut s: Section<'_>) -> Result<(ModelSource, Precision), TrainError> {
    let ternary = s.choice("weights", true, &[("ternary", true), ("float", false)])?;
    // Dense models are run with float activations.
    let precision = Precision { ternary_weights: ternary, int8_activations: ternary };
    let source = match s.text("init")? {
        Some(path) => {
            s.refuse(&FRESH, "does not go with model.init, whose model has its own")?;
            ModelSource::Checkpoint(path.into())
        }
        None => {
            let tokenizer = s.text("tokenizer")?.ok_or_else(|| {
                s.error("init", "is missing: a directory of weights, or tokenizer and sizes")
            })?;
            let architecture = s.choice(
                "architecture",
                ("BitNetForCausalLM", "bitnet", "relu2"),
                &[
                    ("BitNetForCausalLM", ("BitNetForCausalLM", "bitnet", "relu2")),
                    ("LlamaForCausalLM", ("LlamaForCausalLM", "llama", "silu")),
                ],
            )?;
            let mut size = |key| s.size(key)?.ok_or_else(|| s.error(key, "is missing"));
            let (hidden, ffn) = (size("hidden_size")?, size("intermediate_size")?);
            let (layers, heads) = (size("num_hidden_layers")?, size("num_attention_heads")?);
            let kv_heads = s.size("num_key_value_heads")?.unwrap_or(heads);
            let context = s.size("max_position_embeddings")?.unwrap_or(2048);
            let theta = s.number("rope_theta", (1.0, f64::MAX))?.unwrap_or(500_000.0);
            let eps = s.number("rms_norm_eps", (0.0, 1.0))?.unwrap_or(1e-5);
            let tied = !s.flag("untied_embeddings")?;
            let mut config = json!({
                "architectures": [architecture.0],
                "model_type": architecture.1,
                "hidden_act": architecture.2,
                "hidden_size": hidden,
                "intermediate_size": ffn,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "max_position_embeddings": context,
                "rope_theta": theta,
                "rms_norm_eps": eps,
                "tie_word_embeddings": tied,
            });
            if let Some(head_dim) = s.size("head_dim")? {
                config["head_dim"] = json!(head_dim);
            }
            let deviation = s.number("initializer_range", (0.0, 10.0))?.unwrap_or(0.02);
            ModelSource::Fresh { config, tokenizer: tokenizer.into(), deviation }
        }
    };
    s.finish()?;
    Ok((source, precision))
}

fn lora(mut s: Section<'_>) -> Result<LoraConfig, TrainError> {
    let rank = s.size("rank")?.unwrap_or(8);
    if rank > 4096 {
        return Err(s.error("rank", format!("is {rank}; it may be 4096 at most")));
    }
    let mut targets = s.texts("targets")?;
    if targets.is_empty() {
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        targets = all.map(str::to_owned).to_vec();
    }
    let config = LoraConfig {
        rank,
        alpha: s.number("alpha", (0.0, 1e6))?.unwrap_or(2.0 * rank as f64),
        rank_stabilized: s.flag("rank_stabilized")?,
        targets,
    };
    s.finish()?;
    Ok(config)
}

fn data(mut s: Section<'_>) -> Result<DataConfig, TrainError> {
    let paths = |texts: Vec<String>| texts.into_iter().map(PathBuf::from).collect::<Vec<_>>();
    let train = paths(s.texts("train")?);
    if train.is_empty() {
        return Err(s.error("train", "is missing: files to train on"));
    }
    let config = DataConfig {
        train,
        validation: paths(s.texts("validation")?),
        validation_share: s.number("validation_share", (0.0, 0.9))?.unwrap_or(0.0),
        sequence: s.size("sequence")?.unwrap_or(512),
        drop_long: s.choice("too_long", false, &[("error", false), ("drop", true)])?,
    };
    s.finish()?;
    Ok(config)
}

fn train(mut s: Section<'_>, kind: Kind) -> Result<TrainConfig, TrainError> {
    let steps = s.count("steps", 1)?.ok_or_else(|| s.error("steps", "is missing"))?;
    let any = (0.0, f64::MAX);
    let pretrain = kind == Kind::Pretrain;
    let optimizer = match s.choice("optimizer", "adamw", &[("adamw", "adamw"), ("sgd", "sgd")])? {
        "sgd" => Optimizer::Sgd {
            momentum: s.number("momentum", (0.0, 1.0))?.unwrap_or(0.9),
            nesterov: s.flag("nesterov")?,
        },
        _ => Optimizer::AdamW {
            betas: s.betas("betas")?.unwrap_or((0.9, 0.95)),
            eps: s.number("eps", (0.0, 1.0))?.unwrap_or(1e-8),
        },
    };
    let base = s.number("rate", any)?.unwrap_or(if pretrain { 1.5e-3 } else { 2e-4 });
    let words =
        ["two-stage", "constant", "linear", "cosine", "exponential", "warmup-stable-decay"].map(|w| (w, w));
    let shape = match s.choice("schedule", if pretrain { "two-stage" } else { "cosine" }, &words)? {
        "two-stage" => Shape::TwoStage { second: s.number("second_rate", any)?.unwrap_or(base * 2.0 / 3.0) },
        "linear" => Shape::Linear,
        "cosine" => Shape::Cosine,
        "exponential" => Shape::Exponential,
        "warmup-stable-decay" => {
            Shape::WarmupStableDecay { decay: s.number("decay_share", (0.0, 1.0))?.unwrap_or(0.2) }
        }
        _ => Shape::Constant,
    };
    let floor = match shape {
        Shape::Constant | Shape::TwoStage { .. } => 0.0,
        _ => s.number("floor", (0.0, 1.0))?.unwrap_or(0.1),
    };
    let schedule = Schedule {
        shape,
        base,
        floor,
        warmup: s.count("warmup", 0)?.unwrap_or(steps / 20),
        steps,
        weight_decay: s.number("weight_decay", (0.0, 1.0))?.unwrap_or(if pretrain { 0.1 } else { 0.0 }),
    };
    let config = TrainConfig {
        batch: s.size("batch")?.unwrap_or(8),
        accumulate: s.size("accumulate")?.unwrap_or(1),
        optimizer,
        schedule,
        clip: Some(s.number("clip", any)?.unwrap_or(1.0)).filter(|c| *c > 0.0),
        recompute: s.flag("gradient_checkpointing")?,
        log_every: s.count("log_every", 1)?.unwrap_or(10),
        checkpoint_every: s.count("checkpoint_every", 1)?.unwrap_or(200),
        keep: s.size("keep")?.unwrap_or(2),
        validate_every: s.count("validate_every", 1)?.unwrap_or(0),
        patience: s.count("patience", 1)?,
        bf16: s.choice("export", true, &[("bf16", true), ("f32", false)])?,
    };
    s.finish()?;
    Ok(config)
}
