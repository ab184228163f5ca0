//! Flags that several commands share. Names and defaults are llama.cpp's where it has them.

use crate::config::Config;
use crate::device::DeviceFlag;
use crate::failure::Failure;
use crate::hub::{self, Located};
use crate::lora::LoraFlags;
use crate::stages::StageFlags;
use crate::terminal::Progress;
use crate::tuning::TuningFlag;
use bitnet_core::{ActivationPrecision, KvType};
use bitnet_cpu::{Isa, Kernel};
use bitnet_formats::gguf::Value;
use bitnet_formats::{Checkpoint, Header};
use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{Device, DeviceInfo, DeviceOptions, GenerateOptions, LoadOptions, Model, OpenOptions};
use bitnet_model::ModelConfig;
use clap::builder::{BoolishValueParser, Resettable};
use clap::{ArgAction, Args, Command, FromArgMatches, ValueEnum};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// llama.cpp has short flags of several letters; clap knows them by their long names.
pub fn spell_out(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    // The program is the first word, the command the second.
    let (mut words, mut bench) = (0, false);
    args.map(move |arg| {
        if !arg.as_encoded_bytes().starts_with(b"-") {
            words += 1;
            bench |= words == 2 && arg == "bench";
        }
        match arg.to_str() {
            Some("-ctk") => "--cache-type-k".into(),
            Some("-ctv") => "--cache-type-v".into(),
            Some("-md") => "--draft-model".into(),
            // Elsewhere `-pg` is the prompt "g".
            Some("-pg") if bench => "--pg".into(),
            Some("-ub") => "--ubatch-size".into(),
            _ => arg,
        }
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types, reason = "llama.cpp's name")]
pub enum CacheType {
    F32,
    F16,
    Bf16,
    /// Eight bits, and an f16 scale for each 32 elements
    #[value(name = "q8_0")]
    Q8_0,
}

impl CacheType {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl From<CacheType> for KvType {
    fn from(t: CacheType) -> Self {
        match t {
            CacheType::F32 => Self::F32,
            CacheType::F16 => Self::F16,
            CacheType::Bf16 => Self::BF16,
            CacheType::Q8_0 => Self::Q8_0,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Act {
    /// Per-token int8, as BitNet models are trained
    Int8,
    /// Not quantized, as weight-only models are made for
    Float,
}

impl From<Act> for ActivationPrecision {
    fn from(act: Act) -> Self {
        match act {
            Act::Int8 => Self::Int8,
            Act::Float => Self::Float,
        }
    }
}

/// How a model is loaded and where it runs.
#[derive(Args, Clone, Debug)]
pub struct ModelFlags {
    #[command(flatten)]
    device: DeviceFlag,
    /// Instruction set: scalar; sse, avx2, avxvnni, avx512bw, avx512, avx512-vbmi or amx; on 64-bit ARM neon, dotprod or i8mm [default: the best one of this processor]
    #[arg(long, env = "BITNET_ISA", help_heading = "Device")]
    isa: Option<Isa>,
    /// Kernel of ternary products, and with it how weights lie in memory; changes speed, never the result (`doctor` lists
    /// them) [default: the best one of the instruction set]
    #[arg(long, value_name = "NAME", env = "BITNET_KERNEL", help_heading = "Device")]
    kernel: Option<Kernel>,
    /// Threads of the cpu [default: physical cores]
    #[arg(short, long, env = "BITNET_THREADS", help_heading = "Device")]
    threads: Option<usize>,
    /// Tokens of context [default: the model's own, at most 4096]
    #[arg(short, long, env = "BITNET_CTX_SIZE", help_heading = "Device")]
    ctx_size: Option<usize>,
    /// Tokens of one prefill step (also -ub); changes speed and memory, never the result
    #[arg(
        short,
        long,
        visible_alias = "ubatch-size",
        overrides_with = "batch_size",
        default_value_t = 512,
        env = "BITNET_BATCH_SIZE",
        help_heading = "Device"
    )]
    pub batch_size: usize,
    /// Type of cached keys and values
    #[arg(long, value_enum, default_value_t = CacheType::F16, env = "BITNET_CACHE_TYPE", help_heading = "Device")]
    cache_type: CacheType,
    /// Type of cached keys alone (also -ctk)
    #[arg(long, value_enum, env = "BITNET_CACHE_TYPE_K", help_heading = "Device")]
    cache_type_k: Option<CacheType>,
    /// Type of cached values alone (also -ctv)
    #[arg(long, value_enum, env = "BITNET_CACHE_TYPE_V", help_heading = "Device")]
    cache_type_v: Option<CacheType>,
    /// Activations of ternary products [default: int8; float for weight-only models (Q1_0, Q2_0)]
    #[arg(long, value_enum, env = "BITNET_ACT", help_heading = "Device")]
    act: Option<Act>,
    #[command(flatten)]
    pub tuning: TuningFlag,
}

impl ModelFlags {
    /// How a model is opened; unless it is quiet, a device that was left open is told.
    pub fn options(&self, quiet: bool) -> Result<OpenOptions, Failure> {
        if self.batch_size == 0 {
            return Err(Failure::Usage("--batch-size is 0; a step takes at least one token".to_owned()));
        }
        let Self { isa, kernel, threads, .. } = *self;
        let device = self.device.settle(isa.is_some() || kernel.is_some(), quiet)?;
        Ok(OpenOptions {
            device: DeviceOptions { device, isa, threads, kernel, skip: None },
            load: LoadOptions {
                act: self.act.map(ActivationPrecision::from),
                // 0 is the model's own context in llama.cpp.
                context: self.ctx_size.filter(|c| *c > 0),
                cache: None,
                key: self.cache_type_k.unwrap_or(self.cache_type).into(),
                value: self.cache_type_v.unwrap_or(self.cache_type).into(),
                layers: None,
            },
        })
    }

    /// Opens a model with a bar while it loads, says what it is, and lets it say how it likes to be sampled.
    pub fn open_to_sample(
        &self,
        path: &Path,
        sampling: &mut SamplingFlags,
        quiet: bool,
    ) -> Result<Model, Failure> {
        let checkpoint = bitnet_formats::open(path)?;
        sampling.suit(&checkpoint.header);
        let (mut model, _) = load(path, &checkpoint, self.options(quiet)?, &self.tuning, quiet)?;
        sampling.add_draft(&mut model, self, None, quiet)?;
        sampling.lora.load(&mut model)?;
        Ok(model)
    }

    /// Opens a model with a bar while it loads, and says what it is.
    pub fn open(&self, path: &Path, quiet: bool) -> Result<Model, Failure> {
        Ok(load(path, &bitnet_formats::open(path)?, self.options(quiet)?, &self.tuning, quiet)?.0)
    }
}

/// Prepares a model with a bar while it loads, and says what it is; true where a tuning decided what it runs on.
pub fn load(
    path: &Path,
    checkpoint: &Checkpoint,
    mut options: OpenOptions,
    tuning: &TuningFlag,
    quiet: bool,
) -> Result<(Model, bool), Failure> {
    let config = ModelConfig::read(checkpoint).map_err(Failure::at(path))?;
    let tuned = tuning.settle(&mut options, &config);
    let mut progress = Progress::new("loading", quiet);
    let model = Model::from_checkpoint(checkpoint, &options, &mut |done, all| progress.at(done, all))
        .map_err(Failure::at(path))?;
    progress.finish();
    if !quiet {
        eprintln!("{}", start_line(path, checkpoint, &model, tuned));
    }
    Ok((model, tuned))
}

/// Model, format, bits per weight, kernels, threads, context, template.
fn start_line(path: &Path, checkpoint: &Checkpoint, model: &Model, tuned: bool) -> String {
    let (report, device) = (model.report(), model.device());
    let file = || path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let name = hub::repository(path).unwrap_or_else(file);
    let format = match checkpoint.header {
        Header::HuggingFace { .. } => "safetensors",
        Header::Gguf { .. } => "GGUF",
    };
    let weights = report.ternary_weights + report.dense_weights;
    let bits = report.weight_bytes as f64 * 8.0 / weights.max(1) as f64;
    let act = match report.act {
        ActivationPrecision::Int8 => "int8 activations",
        ActivationPrecision::Float => "float activations",
    };
    let template = match model.tokenizer() {
        None => "no tokenizer",
        Some(t) => match t.template() {
            Ok(Some(_)) => "chat template",
            Ok(None) => "no chat template",
            Err(_) => "a chat template that does not parse",
        },
    };
    format!(
        "{name}: {} ({format}), {} weights at {bits:.2} bits, {act}; {}{}; context {}, {template}",
        model.config().arch.name,
        count(weights),
        runs_on(device),
        if tuned { " (tuned)" } else { "" },
        model.capacity(),
    )
}

/// The device with its kernels.
fn runs_on(info: &DeviceInfo) -> String {
    let DeviceInfo { device, isa, kernel, threads, .. } = info;
    match device {
        Device::Cpu => format!("{device} {kernel}, {threads} threads"),
        Device::Wgpu(_) => format!("{device} {kernel} ({isa})"),
    }
}

/// A number with a unit of thousands.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.1} K", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}

/// Token ids on the command line: `1,2,3` or `1 2 3`.
pub fn ids(text: &str) -> Result<Vec<u32>, Failure> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|p| !p.is_empty());
    let id = |p: &str| p.parse().map_err(|_| Failure::Usage(format!("{p:?} is no token id")));
    parts.map(id).collect()
}

/// Where guesses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Spec {
    None,
    /// What followed the last few tokens the time before
    Ngram,
    /// A smaller model of the same vocabulary: --draft-model
    Draft,
}

/// How an answer is sampled and when it ends.
#[derive(Args, Clone, Debug)]
pub struct SamplingFlags {
    /// Tokens to generate at most; -1 is as many as the context holds
    #[arg(
        short = 'n',
        long,
        default_value_t = 512,
        allow_negative_numbers = true,
        env = "BITNET_PREDICT",
        help_heading = "Sampling"
    )]
    predict: i64,
    /// Temperature; 0 is greedy [default: the model's own, or 0.8]
    #[arg(long, allow_negative_numbers = true, env = "BITNET_TEMP", help_heading = "Sampling")]
    temp: Option<f64>,
    /// Keep the K most likely tokens; 0 keeps all [default: the model's own, or 40]
    #[arg(long, env = "BITNET_TOP_K", help_heading = "Sampling")]
    top_k: Option<usize>,
    /// Keep the most likely tokens that reach this probability together; 1 keeps all [default: the model's own, or 0.95]
    #[arg(long, env = "BITNET_TOP_P", help_heading = "Sampling")]
    top_p: Option<f64>,
    /// Keep tokens at least this fraction as likely as the best; 0 keeps all
    #[arg(long, default_value_t = 0.05, env = "BITNET_MIN_P", help_heading = "Sampling")]
    min_p: f64,
    /// Keep the tokens of typical surprise that reach this probability together; 1 keeps all
    #[arg(
        long,
        visible_alias = "typical-p",
        default_value_t = 1.0,
        env = "BITNET_TYPICAL",
        help_heading = "Sampling"
    )]
    typical: f64,
    /// Penalty for repeated tokens; 1 is none
    #[arg(long, default_value_t = 1.0, env = "BITNET_REPEAT_PENALTY", help_heading = "Sampling")]
    repeat_penalty: f64,
    /// How many of the last tokens the penalties look at; -1 is all, 0 none
    #[arg(
        long,
        default_value_t = 64,
        allow_negative_numbers = true,
        env = "BITNET_REPEAT_LAST_N",
        help_heading = "Sampling"
    )]
    repeat_last_n: i64,
    /// Subtracted from a token's logit for each time it was seen lately
    #[arg(
        long,
        default_value_t = 0.0,
        allow_negative_numbers = true,
        env = "BITNET_FREQUENCY_PENALTY",
        help_heading = "Sampling"
    )]
    frequency_penalty: f64,
    /// Subtracted from a token's logit if it was seen lately
    #[arg(
        long,
        default_value_t = 0.0,
        allow_negative_numbers = true,
        env = "BITNET_PRESENCE_PENALTY",
        help_heading = "Sampling"
    )]
    presence_penalty: f64,
    /// Add to a token's logit, as ID+BIAS or ID-BIAS (15043+1, 15043-1, 15043-inf); may be repeated
    #[arg(short, long, value_name = "ID+BIAS", help_heading = "Sampling")]
    logit_bias: Vec<String>,
    /// Seed; -1 takes a new one
    #[arg(short, long, default_value_t = -1, allow_negative_numbers = true, env = "BITNET_SEED", help_heading = "Sampling")]
    seed: i64,
    /// End the answer before this text; may be repeated
    #[arg(
        short = 'r',
        long = "stop",
        visible_alias = "reverse-prompt",
        value_name = "TEXT",
        help_heading = "Sampling"
    )]
    stop: Vec<String>,
    /// Never let the answer contain this text, in whatever case its ASCII letters are; may be repeated
    #[arg(long = "banned-string", value_name = "TEXT", help_heading = "Sampling")]
    banned: Vec<String>,
    /// Never end at an end token: they are banned
    #[arg(long, help_heading = "Sampling")]
    ignore_eos: bool,
    /// Guess tokens ahead and let one step check them; changes speed, never the answer [default: draft with --draft-model, else none]
    #[arg(long, value_enum, env = "BITNET_SPEC", help_heading = "Sampling")]
    spec: Option<Spec>,
    /// Model that guesses (also -md): a path, or one of the hub
    #[arg(
        long,
        visible_alias = "model-draft",
        value_name = "MODEL",
        env = "BITNET_DRAFT_MODEL",
        help_heading = "Sampling"
    )]
    draft_model: Option<PathBuf>,
    /// Tokens to guess ahead at most
    #[arg(
        long,
        visible_alias = "draft-max",
        default_value_t = 4,
        value_name = "N",
        env = "BITNET_DRAFT",
        help_heading = "Sampling"
    )]
    draft: usize,
    #[command(flatten)]
    stages: StageFlags,
    #[command(flatten)]
    pub lora: LoraFlags,
}

impl SamplingFlags {
    pub fn options(&self, flags: &ModelFlags) -> Result<GenerateOptions, Failure> {
        let defaults = SamplerOptions::default();
        let mut sampling = SamplerOptions {
            // llama.cpp takes what is below 0 as greedy.
            temperature: self.temp.map_or(defaults.temperature, |temp| if temp < 0.0 { 0.0 } else { temp }),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p,
            typical_p: self.typical,
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repeat_last_n: usize::try_from(self.repeat_last_n).unwrap_or(usize::MAX),
            logit_bias: self.logit_bias.iter().map(|b| bias(b)).collect::<Result<_, _>>()?,
            seed: u64::try_from(self.seed).ok(),
            ..SamplerOptions::default()
        };
        self.stages.apply(&mut sampling);
        let defaults = GenerateOptions::default();
        Ok(GenerateOptions {
            sampling,
            max_tokens: usize::try_from(self.predict).ok(),
            stop: self.stop.clone(),
            banned: self.banned.clone(),
            ignore_eos: self.ignore_eos,
            batch: flags.batch_size,
            form: None,
            dry_breakers: self.stages.breakers(defaults.dry_breakers),
            draft: if self.spec()? == Spec::None { 0 } else { self.draft },
            adapters: None,
            cancel: None,
        })
    }

    fn spec(&self) -> Result<Spec, Failure> {
        match (self.spec, &self.draft_model) {
            (None, None) => Ok(Spec::None),
            (None | Some(Spec::Draft), Some(_)) => Ok(Spec::Draft),
            (Some(Spec::Draft), None) => {
                Err(Failure::Usage("--spec draft needs a model that guesses: --draft-model MODEL".to_owned()))
            }
            (Some(_), Some(_)) => {
                Err(Failure::Usage("--draft-model guesses with --spec draft alone".to_owned()))
            }
            (Some(spec), None) => Ok(spec),
        }
    }

    /// Opens the model that guesses, where one is named, and gives it to the one that answers; `cache` as for that one.
    pub fn add_draft(
        &self,
        model: &mut Model,
        flags: &ModelFlags,
        cache: Option<usize>,
        quiet: bool,
    ) -> Result<(), Failure> {
        let Some(path) = self.draft_model.as_deref() else { return Ok(()) };
        let path = hub::locate(path, quiet)?;
        // The device is that of the model that answers, and has been told.
        let mut options = flags.options(true)?;
        options.load.cache = cache;
        let checkpoint = bitnet_formats::open(&path)?;
        let (draft, _) = load(&path, &checkpoint, options, &flags.tuning, quiet)?;
        model.set_draft(draft).map_err(Failure::at(&path))?;
        // One of the hub's cache stays there until the program ends.
        std::mem::forget(path);
        Ok(())
    }
}

impl SamplingFlags {
    /// Takes from a model what the flags leave open: what its `generation_config.json`, or the same in GGUF, says.
    pub fn suit(&mut self, header: &Header) {
        let own = |setting: &str, key: &str| match header {
            Header::HuggingFace { generation_config, .. } => generation_config.get(setting)?.as_f64(),
            Header::Gguf { metadata, .. } => match metadata.get(key)? {
                // The decimal that it was rounded from, so that both formats answer alike.
                Value::F32(v) => v.to_string().parse().ok(),
                v => v.as_f64().or_else(|| v.as_u64().map(|n| n as f64)),
            },
        };
        let positive = |v: &f64| v.is_finite() && *v >= 0.0;
        let temp = || own("temperature", "general.sampling.temp").filter(positive);
        let top_k = || own("top_k", "general.sampling.top_k").filter(positive);
        let top_p = || own("top_p", "general.sampling.top_p").filter(|p| (0.0..=1.0).contains(p));
        self.temp = self.temp.or_else(temp);
        self.top_k = self.top_k.or_else(|| top_k().map(|k| k as usize));
        self.top_p = self.top_p.or_else(top_p);
    }

    /// The flags as a parser that knows no defaults: what it does not read stays.
    fn changes() -> Command {
        Self::augment_args_for_update(Command::new("set").no_binary_name(true)).mut_args(|arg| {
            let flag = matches!(arg.get_action(), ArgAction::SetTrue);
            let arg = arg.default_value(Resettable::Reset).env(Resettable::Reset);
            if flag { arg.action(ArgAction::Set).value_parser(BoolishValueParser::new()) } else { arg }
        })
    }

    /// What [`Self::set`] takes.
    pub fn names() -> Vec<String> {
        let command = Self::changes();
        let names = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned));
        // Adapters and a model that guesses are loaded at the start.
        names.filter(|name| !name.starts_with("lora") && name != "draft-model").collect()
    }

    /// Sets a flag by its name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        if !Self::names().iter().any(|known| known == name) {
            return Err(Failure::Usage(format!("{name} cannot be set; /set lists what can")));
        }
        let first_line = |e: clap::Error| {
            let text = e.to_string();
            Failure::Usage(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
        };
        let matches =
            Self::changes().try_get_matches_from([format!("--{name}={value}")]).map_err(first_line)?;
        self.update_from_arg_matches(&matches).map_err(first_line)
    }
}

fn bias(text: &str) -> Result<(u32, f64), Failure> {
    let at = text.find(['+', '-']).unwrap_or(text.len());
    let (id, value) = text.split_at(at);
    match (id.parse(), value.parse()) {
        (Ok(id), Ok(value)) => Ok((id, value)),
        _ => Err(Failure::Usage(format!("--logit-bias {text:?} is not of the form ID+BIAS or ID-BIAS"))),
    }
}

/// A model by position or by `-m`.
#[derive(Args, Clone, Debug)]
pub struct ModelPath {
    #[arg(value_name = "MODEL", help = hub::MODEL_HELP)]
    path: Option<PathBuf>,
    /// The model, by name [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "path")]
    model: Option<PathBuf>,
}

impl ModelPath {
    /// Where it lies; a model of the hub is fetched first if need be.
    pub fn locate(&self, quiet: bool) -> Result<Located, Failure> {
        hub::locate(&named(self.path.clone().or_else(|| self.model.clone()))?, quiet)
    }
}

/// A model that is named, or else the one of the environment or of bitnet.toml.
pub fn named(model: Option<PathBuf>) -> Result<PathBuf, Failure> {
    model.or_else(Config::model).ok_or_else(|| {
        Failure::Usage(
            "no model is named; give MODEL, BITNET_MODEL, or `model` in bitnet.toml (see --help)".to_owned(),
        )
    })
}
