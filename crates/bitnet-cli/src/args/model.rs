//! How a model is loaded and where it runs.

use super::{SamplingFlags, count};
use crate::device::{DeviceFlag, Settled};
use crate::failure::{Failure, chain};
use crate::hub;
use crate::shipped;
use crate::terminal::Progress;
use crate::tuning::TuningFlag;
use bitnet_core::{ActivationPrecision, KvType};
use bitnet_cpu::{Isa, Kernel};
use bitnet_formats::{Checkpoint, Header};
use bitnet_inference::engine::Takeover;
use bitnet_inference::{
    Device, DeviceInfo, DeviceOptions, LoadOptions, Model, OpenOptions, Placement, Split,
};
use bitnet_model::ModelConfig;
use clap::{Args, ValueEnum};
use std::path::Path;

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
    pub fn options(&self, checkpoint: &Checkpoint, quiet: bool) -> Result<Opening, Failure> {
        let kernels = self.isa.is_some() || self.kernel.is_some();
        let load = self.load()?;
        let Settled { device, split, shares, may_fall_back } =
            self.device.settle(checkpoint, &load, &self.tuning, kernels, quiet)?;
        let device = DeviceOptions { split, shares, ..self.on(device) };
        Ok(Opening { options: OpenOptions { device, load }, may_fall_back })
    }

    fn on(&self, device: Placement) -> DeviceOptions {
        let Self { isa, kernel, threads, .. } = *self;
        DeviceOptions { device, isa, threads, kernel, ..DeviceOptions::default() }
    }

    /// How weights and cache are held.
    pub fn load(&self) -> Result<LoadOptions, Failure> {
        if self.batch_size == 0 {
            return Err(Failure::Usage("--batch-size is 0; a step takes at least one token".to_owned()));
        }
        Ok(LoadOptions {
            act: self.act.map(ActivationPrecision::from),
            // 0 is the model's own context in llama.cpp.
            context: self.ctx_size.filter(|c| *c > 0),
            cache: None,
            key: self.cache_type_k.unwrap_or(self.cache_type).into(),
            value: self.cache_type_v.unwrap_or(self.cache_type).into(),
            layers: None,
        })
    }

    /// Opens a model with a bar while it loads, says what it is, and lets it say how it likes to be sampled.
    pub fn open_to_sample(
        &self,
        path: &Path,
        draft: Option<&Path>,
        sampling: &mut SamplingFlags,
        quiet: bool,
    ) -> Result<Model, Failure> {
        let checkpoint = shipped::open(path)?;
        sampling.suit(&checkpoint.header);
        let (mut model, _) = load(path, &checkpoint, self.options(&checkpoint, quiet)?, &self.tuning, quiet)?;
        if let Some(draft) = draft {
            self.add_draft(draft, &mut model, None, quiet)?;
        }
        sampling.lora.load(&mut model)?;
        Ok(model)
    }

    /// Opens a model that guesses ahead for another one; its cache holds `cache` tokens, or one context.
    pub fn add_draft(
        &self,
        path: &Path,
        model: &mut Model,
        cache: Option<usize>,
        quiet: bool,
    ) -> Result<(), Failure> {
        let load_options = LoadOptions { cache, ..self.load()? };
        let device = self.on(model.device().device.clone()).for_draft();
        let may_fall_back = self.device.may_fall_back(&device.device);
        let opening = Opening { options: OpenOptions { device, load: load_options }, may_fall_back };
        let (draft, _) = load(path, &shipped::open(path)?, opening, &self.tuning, quiet)?;
        model.set_draft(draft).map_err(Failure::at(path))
    }

    /// Opens a model with a bar while it loads, and says what it is.
    pub fn open(&self, path: &Path, quiet: bool) -> Result<Model, Failure> {
        let checkpoint = shipped::open(path)?;
        Ok(load(path, &checkpoint, self.options(&checkpoint, quiet)?, &self.tuning, quiet)?.0)
    }
}

/// How a model is opened.
#[derive(Clone)]
pub struct Opening {
    pub options: OpenOptions,
    /// Whether the cpu takes over when the device fails.
    pub may_fall_back: bool,
}

impl From<OpenOptions> for Opening {
    /// On that device and no other.
    fn from(options: OpenOptions) -> Self {
        Self { options, may_fall_back: false }
    }
}

/// Prepares a model with a bar while it loads, and says what it is; true where a tuning decided what it runs on.
pub fn load(
    path: &Path,
    checkpoint: &Checkpoint,
    opening: Opening,
    tuning: &TuningFlag,
    quiet: bool,
) -> Result<(Model, bool), Failure> {
    let Opening { mut options, may_fall_back } = opening;
    let config = ModelConfig::read(checkpoint).map_err(Failure::at(path))?;
    let mut tuned = tuning.settle(&mut options, &config);
    let mut progress = Progress::new("loading", quiet);
    let mut open = |options: &OpenOptions| {
        Model::from_checkpoint(checkpoint, options, &mut |done, all| progress.at(done, all))
    };
    // Also where nothing else is told: answers will be slow.
    let warn = |takeover: &Takeover| eprintln!("warning: {takeover}");
    let mut on_cpu = options.clone();
    on_cpu.device = on_cpu.device.on(Device::Cpu);
    let model = match open(&options) {
        Err(e) if may_fall_back && e.is_of_device() => {
            let (from, to) = (options.device.device.clone(), Device::Cpu.into());
            warn(&Takeover { from, to, why: chain(&e) });
            tuned = tuning.settle(&mut on_cpu, &config);
            open(&on_cpu)
        }
        opened => opened,
    };
    let mut model = model.map_err(Failure::at(path))?;
    if may_fall_back && !model.device().device.is(Device::Cpu) {
        tuning.settle(&mut on_cpu, &config);
        model.set_fallback(on_cpu.device, warn);
    }
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

/// The device with its kernels, or each of several with its layers, or those that share rows.
fn runs_on(info: &DeviceInfo) -> String {
    let DeviceInfo { device, layers, split, isa, kernel, threads, .. } = info;
    match device.devices() {
        [Device::Cpu] => format!("{device} {kernel}, {threads} threads"),
        [Device::Cuda(_)] => format!("{device} {kernel}"),
        [Device::Wgpu(_)] => format!("{device} {kernel} ({isa})"),
        _ if *split == Split::Rows => format!("{device} (rows of all layers) {kernel}"),
        several => {
            let all: usize = layers.iter().sum();
            let each = several.iter().zip(layers);
            let each = each.map(|(device, layers)| format!("{device} ({layers} of {all} layers)"));
            let each = each.collect::<Vec<_>>().join(", ");
            let threads =
                if device.has(Device::Cpu) { format!(", {threads} threads") } else { String::new() };
            format!("{each} {kernel}{threads}")
        }
    }
}
