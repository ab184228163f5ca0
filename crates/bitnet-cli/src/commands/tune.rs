//! `bitnet tune`: measures what can be chosen, and saves what was fastest.

mod gpu;

use crate::args::{Act, ModelPath};
use crate::device::DeviceFlag;
use crate::failure::Failure;
use crate::shipped;
use crate::terminal::Progress;
use crate::tuning::{Choice, Rates, TuningFlag, products, shape};
use bitnet_core::{Activation, ActivationPrecision};
use bitnet_cpu::{Isa, Kernel, physical_cores};
use bitnet_formats::Checkpoint;
use bitnet_inference::sample::{Sampler, SamplerOptions};
use bitnet_inference::{Device, DeviceOptions, GenerateError, LoadOptions, Model, OpenOptions};
use bitnet_model::{ModelConfig, StepOutput};
use clap::Args;
use gpu::GpuTuner;
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

#[derive(Args)]
#[command(after_help = "\
Every kernel that runs here and is more than plain code is measured with as many threads as there are cores, the best ones with other numbers of threads
too: a prompt and an answer of random tokens. Later commands use what was fastest for a model of this shape where neither
--isa nor --kernel names another one; with --threads, what was fastest with that many. It changes speed, never a result.

Of an NVIDIA GPU, the best kernel for each product of many tokens is found, up to steps of 512. Where NVRTC is found (libnvrtc, a part of
NVIDIA's CUDA toolkit), kernels are compiled for the model's sizes too, and used where a step of one token is faster with them: their code
is kept in the user's cache folder. A tuning is for the GPU's name, its driver and this version's kernels.

Examples:
  bitnet tune model.gguf
  bitnet tune model.gguf --device cuda:0
  bitnet tune model.gguf --seconds 60 --json")]
pub struct Tune {
    #[command(flatten)]
    model: ModelPath,
    /// Seconds after which nothing new is measured
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Activations of ternary products [default: int8; float for weight-only models (Q1_0, Q2_0)]
    #[arg(long, value_enum, env = "BITNET_ACT", help_heading = "Device")]
    act: Option<Act>,
    #[command(flatten)]
    device: DeviceFlag,
    #[command(flatten)]
    tuning: TuningFlag,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Layers beyond this many bytes are not loaded: each is like the others, most caches hold less, and what loading takes is time in which
/// nothing is measured.
const ENOUGH: usize = 1 << 28;
/// Tokens of the measured prefill and decoding.
const PROMPT: usize = 128;
const ANSWER: usize = 16;
/// A kernel whose second token takes this many times as long as the best one's needs no further look, nor one whose prompt does and whose
/// answer is no faster.
const HOPELESS: f64 = 2.0;
/// What is this near to the best is measured again.
const NEAR: f64 = 1.15;
/// What a prompt of 512 and an answer of 128 tokens take decides.
const TYPICAL: (f64, f64) = (512.0, 128.0);

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    kernel: Kernel,
    skip: bool,
    threads: usize,
}

/// Tokens a second of a candidate, measured once or more.
struct Measured {
    candidate: Candidate,
    /// Prefill and decoding; empty for a hopeless one.
    samples: Vec<(f64, f64)>,
}

impl Measured {
    fn mean(&self, of: impl Fn(&(f64, f64)) -> f64) -> f64 {
        self.samples.iter().map(of).sum::<f64>() / self.samples.len() as f64
    }

    /// Seconds of the typical request.
    fn cost(&self) -> f64 {
        match self.samples.is_empty() {
            true => f64::INFINITY,
            false => TYPICAL.0 / self.mean(|s| s.0) + TYPICAL.1 / self.mean(|s| s.1),
        }
    }
}

struct Tuner<'a> {
    checkpoint: &'a Checkpoint,
    load: LoadOptions,
    deadline: Instant,
    /// The longest that a candidate took.
    longest: Duration,
    measured: Vec<Measured>,
    progress: Progress,
    budget: Duration,
}

impl Tune {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let path = self.model.locate(quiet)?;
        let checkpoint = shipped::open(&path)?;
        let config = ModelConfig::read(&checkpoint).map_err(Failure::at(&path))?;
        let act = self.act.map(ActivationPrecision::from);
        let bytes: usize = checkpoint.tensors().iter().map(|t| t.data.len()).sum();
        let layers = (ENOUGH / (bytes / config.layers.max(1)).max(1)).clamp(1, config.layers.max(1));
        let load = LoadOptions { act, ..LoadOptions::default() };
        let device = self.device.settle(&checkpoint, &load, &self.tuning, false, quiet)?.device;
        match *device.devices() {
            [Device::Cpu] => {}
            [Device::Cuda(number)] => return self.gpu(number, (&path, &checkpoint, &config), layers, quiet),
            _ => {
                return Err(Failure::Usage(format!(
                    "there is nothing to choose on --device {device}; cpu and cuda:N can be tuned"
                )));
            }
        }
        let context = Some((PROMPT + ANSWER + 2).min(config.context));
        let budget = Duration::from_secs(self.seconds);
        let mut tuner = Tuner {
            checkpoint: &checkpoint,
            load: LoadOptions { act, context, layers: Some(layers), ..LoadOptions::default() },
            deadline: Instant::now() + budget,
            longest: Duration::ZERO,
            measured: Vec::new(),
            progress: Progress::new("measuring", quiet),
            budget,
        };
        let complete = tuner.all(&config).map_err(Failure::at(&path))?;
        let choices = tuner.choices();
        tuner.progress.finish();
        let saved = self.tuning.save(shape(&config, act), choices.clone())?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let object = json!({
                "file": saved.display().to_string(), "shape": shape(&config, act), "complete": complete,
                "layers": layers, "choices": choices,
            });
            writeln!(out, "{object}")?;
        } else {
            for (i, c) in choices.iter().enumerate() {
                let Choice { threads, kernel, prefill, decode, .. } = c;
                let skip = if c.skip { "leaving out zeros" } else { "all products" };
                let threads = format!("{threads} {}", if *threads == 1 { "thread" } else { "threads" });
                let rates = format!("prefill {prefill:.1}, decode {decode:.1} tokens/s");
                writeln!(
                    out,
                    "{threads}: {kernel}, {skip}: {rates}{}",
                    if i == 0 { " (fastest)" } else { "" }
                )?;
            }
        }
        if !quiet {
            self.told(layers, &config, complete, &saved);
        }
        Ok(())
    }
}

impl Tune {
    /// The same of a GPU's kernels.
    fn gpu(
        self,
        number: usize,
        (path, checkpoint, config): (&Path, &Checkpoint, &ModelConfig),
        layers: usize,
        quiet: bool,
    ) -> Result<(), Failure> {
        let act = self.act.map(ActivationPrecision::from);
        let largest = gpu::STEPS.into_iter().max().unwrap_or(PROMPT);
        let load = LoadOptions {
            act,
            context: Some(largest.min(config.context)),
            layers: Some(layers),
            ..LoadOptions::default()
        };
        let kernels = self.tuning.fresh_kernels();
        let mut progress = Progress::new("measuring", quiet);
        let tuner = GpuTuner {
            checkpoint,
            load,
            number,
            fixes: self.tuning.fixes_kernels(),
            deadline: Instant::now() + Duration::from_secs(self.seconds),
            progress: &mut progress,
        };
        let found = tuner.run(&kernels).map_err(Failure::at(path))?;
        progress.finish();
        let choices = kernels.choices();
        let compared: Vec<_> = found.compared.iter().map(|(kernel, _)| kernel.clone()).collect();
        let (shape, rates) = (shape(config, act), Rates { prefill: found.prefill, decode: found.decode });
        let saved = self.tuning.save_gpu(number, (shape.clone(), rates), (&choices, &compared))?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let compared = found.compared.iter().map(|(kernel, share)| {
                json!({"kernel": kernel.to_string(), "time": share, "used": choices.fixed.contains(kernel)})
            });
            let object = json!({
                "file": saved.display().to_string(), "shape": shape, "complete": found.complete,
                "layers": layers, "prefill": found.prefill, "decode": found.decode,
                "products": products(&choices), "fixed": compared.collect::<Vec<_>>(),
                "compiler": found.compiler.as_ref().map(gpu::no_compiler),
            });
            writeln!(out, "{object}")?;
        } else {
            for p in products(&choices) {
                let gated = if p.gated { ", gated" } else { "" };
                writeln!(out, "{} x {}{gated}, to {} tokens: {}", p.rows, p.cols, p.tokens, p.kernel)?;
            }
            for compared in &found.compared {
                writeln!(out, "{}", gpu::line(compared, &choices.fixed))?;
            }
            writeln!(out, "prefill {:.1}, decode {:.1} tokens/s", found.prefill, found.decode)?;
        }
        if !quiet {
            if let Some(why) = &found.compiler {
                eprintln!("{}", gpu::no_compiler(why));
            }
            self.told(layers, config, found.complete, &saved);
        }
        Ok(())
    }

    /// Says how much was measured, and where it went.
    fn told(&self, layers: usize, config: &ModelConfig, complete: bool, saved: &Path) {
        if layers < config.layers {
            eprintln!("measured on {layers} of {} layers", config.layers);
        }
        if !complete {
            eprintln!("time was up before everything was measured; see --seconds");
        }
        eprintln!("saved in {}", saved.display());
    }
}

impl Tuner<'_> {
    /// Measures what there is until time is up; false where something was left.
    fn all(&mut self, config: &ModelConfig) -> Result<bool, Failure> {
        let cores = physical_cores();
        let skips =
            config.activation == Activation::Relu2 && self.load.act != Some(ActivationPrecision::Float);
        let with = |kernel, skip, threads| Candidate { kernel, skip, threads };
        let mut complete = true;
        let plain = Isa::detect() == Isa::Scalar;
        for kernel in Kernel::available().filter(|k| plain || k.isa() != Isa::Scalar) {
            complete &= self.measure(with(kernel, skips, cores))?;
        }
        let best = self.best(2);
        for first in best.iter().filter(|_| skips) {
            complete &= self.measure(with(first.kernel, false, cores))?;
        }
        let mut threads = vec![cores / 2, cores / 4, available_parallelism().map_or(1, usize::from)];
        threads.retain(|n| *n > 0 && *n != cores);
        threads.dedup();
        for threads in threads {
            for c in self.best(2) {
                complete &= self.measure(Candidate { threads, ..c })?;
            }
        }
        self.again()?;
        Ok(complete)
    }

    /// Measures what is near the best of its number of threads again, while there is time.
    fn again(&mut self) -> Result<(), Failure> {
        for round in 1..4 {
            let near: Vec<Candidate> = self
                .measured
                .iter()
                .filter(|m| m.samples.len() == round && m.cost() < NEAR * self.cheapest(m.candidate.threads))
                .map(|m| m.candidate)
                .collect();
            for candidate in near {
                if !self.measure(candidate)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn cheapest(&self, threads: usize) -> f64 {
        let costs = self.measured.iter().filter(|m| m.candidate.threads == threads).map(Measured::cost);
        costs.fold(f64::INFINITY, f64::min)
    }

    /// The fastest candidates with as many threads as cores.
    fn best(&self, n: usize) -> Vec<Candidate> {
        let cores = physical_cores();
        let all = self.measured.iter().filter(|m| m.candidate.threads == cores && !m.samples.is_empty());
        let mut all: Vec<_> = all.collect();
        all.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        all.iter().take(n).map(|m| m.candidate).collect()
    }

    /// The fastest candidate of each number of threads, fastest first.
    fn choices(&self) -> Vec<Choice> {
        let mut best: Vec<&Measured> = Vec::new();
        for m in self.measured.iter().filter(|m| !m.samples.is_empty()) {
            match best.iter_mut().find(|b| b.candidate.threads == m.candidate.threads) {
                Some(b) if m.cost() < b.cost() => *b = m,
                Some(_) => {}
                None => best.push(m),
            }
        }
        best.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        best.iter()
            .map(|m| Choice {
                threads: m.candidate.threads,
                kernel: m.candidate.kernel.name().to_owned(),
                skip: m.candidate.skip,
                prefill: m.mean(|s| s.0),
                decode: m.mean(|s| s.1),
            })
            .collect()
    }

    /// Measures a candidate; false where there is no time for it. The first one is always measured.
    fn measure(&mut self, candidate: Candidate) -> Result<bool, Failure> {
        let begin = Instant::now();
        if begin + self.longest > self.deadline && !self.measured.is_empty() {
            return Ok(false);
        }
        let Candidate { kernel, skip, threads } = candidate;
        let device = DeviceOptions {
            threads: Some(threads),
            kernel: Some(kernel),
            skip: Some(skip),
            ..DeviceOptions::default()
        };
        let options = OpenOptions { device, load: self.load };
        let mut model = Model::from_checkpoint(self.checkpoint, &options, &mut |_, _| {})?;
        let samples = self.measured.iter().flat_map(|m| &m.samples);
        let fastest = samples.fold((0.0, 0.0), |(p, d): (f64, f64), s| (p.max(s.0), d.max(s.1)));
        let sample = rates(&mut model, fastest)?;
        let known = self.measured.iter().position(|m| m.candidate == candidate);
        let index = known.unwrap_or_else(|| {
            self.measured.push(Measured { candidate, samples: Vec::new() });
            self.measured.len() - 1
        });
        self.measured[index].samples.extend(sample);
        self.longest = self.longest.max(begin.elapsed());
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.progress.at((self.budget - left).as_millis() as usize, self.budget.as_millis() as usize);
        Ok(true)
    }
}

/// Tokens a second of prefill and of decoding; `None` for what is far slower than the `fastest` of either.
fn rates(model: &mut Model, fastest: (f64, f64)) -> Result<Option<(f64, f64)>, Failure> {
    let vocab = model.config().vocab;
    let sampler = Sampler::new(SamplerOptions::default(), vocab).map_err(GenerateError::from)?;
    let mut out = StepOutput { need: sampler.need(&[]), ..StepOutput::default() };
    let prompt = PROMPT.min(model.capacity());
    // Which ids they are does not matter to speed.
    let ids: Vec<u32> = (0..prompt as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab as u32).collect();
    let answer = ANSWER.min(model.capacity() - 2);
    let mut run = |ids: &[u32], step: usize| -> Result<f64, Failure> {
        let begin = Instant::now();
        for ids in ids.chunks(step) {
            model.step(ids, &mut out)?;
        }
        Ok(ids.len() as f64 / begin.elapsed().as_secs_f64())
    };
    // The first one fetches pages.
    run(&ids[..1], 1)?;
    if run(&ids[..1], 1)? * HOPELESS < fastest.1 {
        return Ok(None);
    }
    let decode = run(&ids[..answer], 1)?;
    model.rewind(0);
    let mut run = |ids: &[u32]| -> Result<f64, Failure> {
        let begin = Instant::now();
        model.step(ids, &mut out)?;
        let rate = ids.len() as f64 / begin.elapsed().as_secs_f64();
        model.rewind(0);
        Ok(rate)
    };
    if run(&ids[..prompt.div_ceil(4)])? * HOPELESS < fastest.0 && decode <= fastest.1 {
        return Ok(None);
    }
    Ok(Some((run(&ids)?, decode)))
}
