//! `bitnet bench`: speed, with the flags and in the rows of llama-bench.

mod counts;
mod limit;
mod memory;
mod report;
mod table;
mod test;
mod together;

use crate::args::{self, Act, CacheType, ModelPath};
use crate::device::{DeviceFlag, Settled};
use crate::failure::Failure;
use crate::shipped;
use crate::terminal::Progress;
use crate::tuning::TuningFlag;
use bitnet_core::{BackendError, KV_BLOCK, OperationTime};
use bitnet_cpu::{Isa, Kernel};
use bitnet_formats::Checkpoint;
use bitnet_inference::engine::EngineOptions;
use bitnet_inference::{Device, DeviceOptions, GenerateError, LoadOptions, Model, OpenOptions};
use bitnet_model::{ModelConfig, ModelError};
use clap::Args;
use counts::{Counts, Pair};
use limit::Probes;
use memory::{Level, pool};
use report::{Form, Report, Row};
use std::path::Path;
use std::time::{Duration, Instant};
use test::{Sample, Sizes, Test};
use together::{Load, Together};

#[derive(Args)]
#[command(after_help = "\
Numbers may be lists (1,2), ranges (1-4, 512-2048+512, 128-1024*2), and flags may be repeated; every combination is measured.

Examples:
  bitnet bench model.gguf
  bitnet bench model.gguf -p 128,512 -n 64 -r 3 -t 1,2 -o json
  bitnet bench model.gguf -p 0 -n 64 -d 0,4096 --roofline
  bitnet bench model.gguf -p 128 -n 64 --concurrency 1,4,16
  bitnet bench model.gguf -p 0 -n 64 --memory=detailed
  bitnet bench model.gguf -p 128 -n 16 -r 1 --device wgpu:0 --profile")]
pub struct Bench {
    #[command(flatten)]
    model: ModelPath,
    /// Tokens of the prefill tests (ppN); 0 leaves them out
    #[arg(short = 'p', long, default_value = "512", value_delimiter = ',', value_name = "N")]
    n_prompt: Vec<Counts>,
    /// Tokens of the generation tests (tgN); 0 leaves them out
    #[arg(short, long, default_value = "128", value_delimiter = ',', value_name = "N")]
    n_gen: Vec<Counts>,
    /// Tests of a prompt and an answer together (also -pg)
    #[arg(long, value_name = "PP,TG")]
    pg: Vec<Pair>,
    /// Tokens in the cache before a test begins
    #[arg(short = 'd', long, default_value = "0", value_delimiter = ',', value_name = "N")]
    n_depth: Vec<Counts>,
    /// Repetitions of each test
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Begin without a run that is not counted
    #[arg(long)]
    no_warmup: bool,
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t = Form::Md)]
    output: Form,
    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Answer as many requests at once, each with a prompt of -p and an answer of -n tokens, through the engine that serves: rows
    /// ppN+tgN xC with all tokens a second, the answers' tokens a second, and the times to the first token and between tokens
    #[arg(long, value_delimiter = ',', value_name = "C", conflicts_with_all = ["roofline", "pg", "n_depth"])]
    concurrency: Vec<Counts>,
    /// Between the repetitions, measure what memory and the best int8 instruction allow, and print each row's share of it
    #[arg(long)]
    roofline: bool,
    /// Print what the model's memory was asked for, by what it is for and by size; LEVEL says how much is counted on the way: off,
    /// minimal, standard, detailed or debug [default: standard]. It is for the processor; of a GPU standard is counted
    #[arg(long, value_enum, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "standard")]
    memory: Option<Level>,
    /// Print what the device's time went to, by kind of operation, for devices that measure it (wgpu:N with timestamps); each operation is
    /// waited for, so rows are slower than without
    #[arg(long)]
    profile: bool,
    /// Tokens of one prefill step are the smaller of this ...
    #[arg(
        short,
        long,
        default_value = "2048",
        value_delimiter = ',',
        value_name = "N",
        help_heading = "Device"
    )]
    batch_size: Vec<Counts>,
    /// ... and this (also -ub)
    #[arg(long, default_value = "512", value_delimiter = ',', value_name = "N", help_heading = "Device")]
    ubatch_size: Vec<Counts>,
    #[command(flatten)]
    device: DeviceFlag,
    /// Types of cached keys and values
    #[arg(long, value_enum, default_value = "f16", value_delimiter = ',', help_heading = "Device")]
    cache_type: Vec<CacheType>,
    /// Types of cached keys alone (also -ctk)
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Device")]
    cache_type_k: Vec<CacheType>,
    /// Types of cached values alone (also -ctv)
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Device")]
    cache_type_v: Vec<CacheType>,
    /// Threads of the cpu [default: physical cores]
    #[arg(
        short,
        long,
        value_delimiter = ',',
        value_name = "N",
        env = "BITNET_THREADS",
        help_heading = "Device"
    )]
    threads: Vec<Counts>,
    /// Kernels of ternary products (`doctor` lists them) [default: the best one of the instruction set]
    #[arg(long, value_delimiter = ',', value_name = "NAME", env = "BITNET_KERNEL", help_heading = "Device")]
    kernel: Vec<Kernel>,
    /// Instruction set: scalar; avx2, avx512 or amx; on 64-bit ARM neon, dotprod or i8mm [default: the best one of this processor]
    #[arg(long, env = "BITNET_ISA", help_heading = "Device")]
    isa: Option<Isa>,
    /// Activations of ternary products [default: int8; float for weight-only models (Q1_0, Q2_0)]
    #[arg(long, value_enum, env = "BITNET_ACT", help_heading = "Device")]
    act: Option<Act>,
    #[command(flatten)]
    tuning: TuningFlag,
}

/// What a model is opened with.
#[derive(Clone)]
struct Setup {
    place: Settled,
    threads: Option<usize>,
    kernel: Option<Kernel>,
    key: CacheType,
    value: CacheType,
}

/// How a model began.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Start {
    /// From opening the file until the model was ready.
    load: Duration,
    /// Whether a tuning decided what it runs on.
    tuned: bool,
}

impl Bench {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let path = &*self.model.locate(quiet)?;
        let begin = Instant::now();
        let checkpoint = shipped::open(path)?;
        let opening = begin.elapsed();
        let config = ModelConfig::read(&checkpoint).map_err(Failure::at(path))?;
        if !self.concurrency.is_empty() {
            return self.together(path, &checkpoint, &config, opening, quiet);
        }
        let tests = self.tests();
        let context = self.context(&tests, &config)?;
        let sizes = self.sizes()?;
        let setups = self.setups(&checkpoint, quiet)?;
        let mut progress = Progress::new("measuring", quiet);
        let all = setups.len() * sizes.len() * tests.len() * self.repetitions as usize;
        let mut report = Report::new(self.form(), path, &checkpoint);
        for (done, setup) in setups.iter().enumerate() {
            let options = self.options(setup, context, None);
            let kernels = options.device.kernels.clone();
            memory::forget_peak();
            let begin = Instant::now();
            let (mut model, tuned) = args::load(path, &checkpoint, options.into(), &self.tuning, quiet)?;
            let start = Start { load: opening + begin.elapsed(), tuned };
            self.spent(|| model.profile())?;
            let probes = if self.roofline { Some(Probes::new(&model)?) } else { None };
            let mut done = done * sizes.len() * tests.len() * self.repetitions as usize;
            for sizes in &sizes {
                for test in &tests {
                    let what = (setup, *sizes, *test);
                    let mut row = self.measure((&mut model, start), what, probes.as_ref(), &mut || {
                        done += 1;
                        progress.at(done, all);
                    })?;
                    row.memory = self.memory.map(|_| model.pools().snapshots());
                    row.kernels = kernels.as_ref().map(|kernels| kernels.choices());
                    report.row(row)?;
                }
            }
        }
        progress.finish();
        report.finish()
    }

    fn options(&self, setup: &Setup, context: usize, cache: Option<usize>) -> OpenOptions {
        let (isa, Setup { place, threads, kernel, .. }) = (self.isa, setup);
        OpenOptions {
            device: DeviceOptions {
                device: place.device.clone(),
                split: place.split,
                shares: place.shares.clone(),
                isa,
                threads: *threads,
                kernel: *kernel,
                skip: None,
                kernels: self.tuning.kernels(&place.device),
                memory: self.memory.map(pool),
            },
            load: LoadOptions {
                act: self.act.map(Into::into),
                context: Some(context),
                cache,
                key: setup.key.into(),
                value: setup.value.into(),
                layers: None,
            },
        }
    }

    /// The rows of --concurrency. Each is measured by a model of its own, whose engine has the seats and the cache for it.
    fn together(
        &self,
        path: &Path,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        opening: Duration,
        quiet: bool,
    ) -> Result<(), Failure> {
        let mut loads = Vec::new();
        for prompt in Counts::all(&self.n_prompt).filter(|n| *n > 0) {
            for answer in Counts::all(&self.n_gen).filter(|n| *n > 0) {
                let requests = Counts::all(&self.concurrency).filter(|n| *n > 0);
                loads.extend(requests.map(|requests| Load { requests, prompt, answer }));
            }
        }
        let Some(longest) = loads.iter().map(|l| l.prompt + l.answer).max() else {
            return Err(Failure::Usage(
                "--concurrency measures prompts and answers; -p, -n and itself are at least 1".to_owned(),
            ));
        };
        if longest > config.context {
            return Err(Failure::Usage(format!(
                "a prompt and its answer need a context of {longest}; the model has {}",
                config.context
            )));
        }
        let (setups, sizes) = (self.setups(checkpoint, quiet)?, self.sizes()?);
        let mut progress = Progress::new("measuring", quiet);
        let all = setups.len() * sizes.len() * loads.len() * self.repetitions as usize;
        let mut report = Report::new(self.form(), path, checkpoint);
        let mut done = 0;
        for setup in &setups {
            for (sizes, load) in sizes.iter().flat_map(|sizes| loads.iter().map(move |load| (sizes, load))) {
                let options = self.options(setup, longest, Some(load.positions(KV_BLOCK)));
                let kernels = options.device.kernels.clone();
                memory::forget_peak();
                let begin = Instant::now();
                let (model, tuned) = args::load(path, checkpoint, options.into(), &self.tuning, quiet)?;
                let start = Start { load: opening + begin.elapsed(), tuned };
                let test = Test { prompt: load.prompt, answer: load.answer, depth: 0 };
                let time = jiff::Timestamp::now();
                let mut row =
                    Row::new((&model, start), (setup.clone(), *sizes, test), time, Vec::new(), None);
                self.spent(|| model.profile())?;
                let pools = model.pools();
                let mut engine = model.into_engine(EngineOptions {
                    budget: sizes.step().max(load.requests),
                    seats: load.requests,
                    queue: load.requests,
                    prefix_cache: false,
                    take_turns: false,
                });
                if !self.no_warmup {
                    Load { answer: 1, ..*load }.run(&mut engine, &mut Together::default())?;
                }
                self.spent(|| engine.profile())?;
                let mut together = Together::default();
                for _ in 0..self.repetitions {
                    let time = load.run(&mut engine, &mut together)?;
                    row.samples.push(Sample { time, first: together.first(0.5) });
                    done += 1;
                    progress.at(done, all);
                }
                row.answered(together);
                row.memory = self.memory.map(|_| pools.snapshots());
                row.spent = self.spent(|| engine.profile())?;
                row.kernels = kernels.as_ref().map(|kernels| kernels.choices());
                report.row(row)?;
            }
        }
        progress.finish();
        report.finish()
    }

    /// One row; `done` is told of every repetition.
    fn measure(
        &self,
        (model, start): (&mut Model, Start),
        (setup, sizes, test): (&Setup, Sizes, Test),
        probes: Option<&Probes>,
        done: &mut dyn FnMut(),
    ) -> Result<Row, Failure> {
        let begin = jiff::Timestamp::now();
        test.fill(model, sizes)?;
        if !self.no_warmup {
            test.warm(model, sizes)?;
        }
        self.spent(|| model.profile())?;
        let (mut samples, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..self.repetitions {
            rates.extend(probes.map(Probes::measure));
            samples.push(test.run(model, sizes)?);
            done();
        }
        let limit = probes.map(|p| p.limit(model, test, sizes, setup, rates));
        let mut row = Row::new((model, start), (setup.clone(), sizes, test), begin, samples, limit);
        row.spent = self.spent(|| model.profile())?;
        Ok(row)
    }

    /// What was spent since this was last called, where that is asked for; the first call begins to measure.
    fn spent(
        &self,
        profile: impl FnOnce() -> Result<Vec<OperationTime>, GenerateError>,
    ) -> Result<Option<Vec<OperationTime>>, Failure> {
        let spent = self.profile.then(profile).transpose();
        spent.map_err(|e| match e {
            GenerateError::Model(ModelError::Backend(e @ BackendError::Unsupported { .. })) => {
                Failure::Usage(format!("--profile: {e}"))
            }
            e => e.into(),
        })
    }

    fn form(&self) -> Form {
        if self.json { Form::Json } else { self.output }
    }

    fn tests(&self) -> Vec<Test> {
        let depths = || Counts::all(&self.n_depth);
        let prompts = Counts::all(&self.n_prompt).map(|prompt| (prompt, 0));
        let answers = Counts::all(&self.n_gen).map(|answer| (0, answer));
        let both = self.pg.iter().map(|pair| (pair.prompt, pair.answer));
        let tests = prompts.chain(answers).chain(both).filter(|(prompt, answer)| prompt + answer > 0);
        tests.flat_map(|(prompt, answer)| depths().map(move |depth| Test { prompt, answer, depth })).collect()
    }

    /// The context that the longest test needs.
    fn context(&self, tests: &[Test], config: &ModelConfig) -> Result<usize, Failure> {
        let Some(longest) = tests.iter().max_by_key(|test| test.len()) else {
            return Err(Failure::Usage("there is nothing to measure; see -p, -n and -pg".to_owned()));
        };
        if longest.len() > config.context {
            return Err(Failure::Usage(format!(
                "{} needs a context of {}; the model has {}",
                longest.name(),
                longest.len(),
                config.context
            )));
        }
        Ok(longest.len())
    }

    fn sizes(&self) -> Result<Vec<Sizes>, Failure> {
        let batches = Counts::all(&self.batch_size);
        let sizes: Vec<Sizes> = batches
            .flat_map(|batch| Counts::all(&self.ubatch_size).map(move |ubatch| Sizes { batch, ubatch }))
            .collect();
        match sizes.iter().any(|s| s.step() == 0) {
            true => Err(Failure::Usage("a batch size is 0; a step takes at least one token".to_owned())),
            false => Ok(sizes),
        }
    }

    fn setups(&self, checkpoint: &Checkpoint, quiet: bool) -> Result<Vec<Setup>, Failure> {
        let kernels = self.isa.is_some() || !self.kernel.is_empty();
        // What is measured does not change on the way.
        let load = LoadOptions::default();
        let place = self.device.settle(checkpoint, &load, &self.tuning, kernels, quiet)?;
        if self.roofline && !place.device.is(Device::Cpu) {
            let hint = format!("leave it out with --device {}", place.device);
            return Err(Failure::Usage(format!("--roofline measures the cpu; {hint}")));
        }
        let mut threads: Vec<Option<usize>> = Counts::all(&self.threads).map(Some).collect();
        let mut kernels: Vec<Option<Kernel>> = self.kernel.iter().copied().map(Some).collect();
        if threads.is_empty() {
            threads.push(None);
        }
        if kernels.is_empty() {
            kernels.push(None);
        }
        let mut setups = Vec::new();
        for &threads in &threads {
            for &kernel in &kernels {
                let setup = |(key, value)| Setup { place: place.clone(), threads, kernel, key, value };
                setups.extend(self.cache_types().into_iter().map(setup));
            }
        }
        Ok(setups)
    }

    /// Types of keys and of values: those that are given alone with each of the others, else both the same.
    fn cache_types(&self) -> Vec<(CacheType, CacheType)> {
        let (keys, values) = (&self.cache_type_k, &self.cache_type_v);
        if keys.is_empty() && values.is_empty() {
            return self.cache_type.iter().map(|t| (*t, *t)).collect();
        }
        let [keys, values] = [keys, values].map(|own| if own.is_empty() { &self.cache_type } else { own });
        keys.iter().flat_map(|key| values.iter().map(|value| (*key, *value))).collect()
    }
}
