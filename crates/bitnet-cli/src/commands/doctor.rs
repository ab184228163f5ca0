//! `bitnet doctor`: what this machine offers, its GPUs and limits of memory among it, whether every kernel on it is right, whether the hub answers, and the model
//! that is part of the program.

use crate::failure::{Failure, chain};
use crate::hub::HubFlags;
use crate::shipped;
use crate::tuning::{Measured, TuningFlag};
use bitnet_cpu::{CpuBackend, CpuOptions, Kernel, Machine, SelfTest, Verdict, processor_name, self_test};
use bitnet_hub::{Hub, Settings};
use bitnet_inference::{AdapterKind, Device, GpuDetails, Speed, cuda, cuda_trouble, gpus};
use bitnet_memory::{Limit, Readings, System};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet doctor
  bitnet doctor --measure          # how fast devices are, which --device auto goes by from then on
  bitnet doctor --json | jq .failed")]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Measure how fast each device is, and keep it beside what `bitnet tune` found
    #[arg(long)]
    measure: bool,
    #[command(flatten)]
    tuning: TuningFlag,
    #[command(flatten)]
    hub: HubFlags,
}

impl Doctor {
    pub fn execute(self) -> Result<(), Failure> {
        let backend = CpuBackend::new(CpuOptions::default()).map_err(|e| Failure::Runtime(e.to_string()))?;
        let results = self_test().map_err(|e| Failure::Runtime(chain(&e)))?;
        let failed = results.iter().filter(|r| r.verdict == Verdict::Wrong).count();
        let features = features();
        let (file, tuned) = self.tuning.known();
        let file = file.map(|file| file.display().to_string());
        let ops: Vec<&[SelfTest]> = results.chunk_by(|a, b| a.op == b.op).collect();
        // Ternary products have kernels of their own; all else goes by the instruction set.
        let chosen = |tests: &[SelfTest]| {
            let own = |t: &SelfTest| Kernel::all().any(|k| k.name() == t.kernel);
            if tests.iter().any(own) { backend.kernel().name() } else { backend.isa().name() }
        };
        let hub = Access::of(&self.hub);
        let (gpus, machine) = (gpus(), Machine::detect());
        if self.measure {
            self.tuning.save_speeds(measure(&gpus))?;
        }
        let speeds = self.tuning.speeds();
        let (compiler, tuned_gpus) = (cuda::compiler(), self.tuning.known_gpus());
        let memory = System::default().read();
        let mut out = std::io::stdout().lock();
        if self.json {
            let kernels: Map<String, Value> = ops
                .iter()
                .map(|tests| {
                    let passed = tests
                        .iter()
                        .map(|t| {
                            let passed = match t.verdict {
                                Verdict::Passed => json!(true),
                                Verdict::Wrong => json!(false),
                                Verdict::NotRun => Value::Null,
                            };
                            (t.kernel.to_owned(), passed)
                        })
                        .collect();
                    let object = json!({"chosen": chosen(tests), "passed": Value::Object(passed)});
                    (tests[0].op.to_owned(), object)
                })
                .collect();
            let object = json!({
                "version": env!("CARGO_PKG_VERSION"), "target": std::env::consts::ARCH, "features": features,
                "isa": backend.isa().name(), "threads": backend.threads(), "machine": of_machine(&machine), "kernels": kernels, "failed": failed,
                "gpus": gpus.iter().map(|gpu| json!({
                    "device": gpu.device.to_string(), "name": gpu.name, "api": gpu.api,
                    "kind": gpu.kind, "driver": gpu.driver, "memory": gpu.memory,
                })).collect::<Vec<_>>(),
                "nvrtc": compiler.as_ref().map_or(Value::Null, |(major, minor)| json!(format!("{major}.{minor}"))),
                "speeds": speeds,
                "memory": memory.limits.iter().map(|limit| json!({
                    "limit": limit.kind.to_string(), "bytes": limit.limit_bytes, "used": limit.used_bytes,
                })).collect::<Vec<_>>(),
                "hub": hub.json(),
                "shipped": {"model": shipped::NAME, "bytes": shipped::size()},
                "tuning": {"file": file, "models": tuned.iter().cloned().collect::<BTreeMap<_, _>>(), "gpus": tuned_gpus},
            });
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "bitnet {} for {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)?;
            writeln!(out, "CPU features     {}", if features.is_empty() { "none used" } else { &features })?;
            writeln!(out, "instruction set  {} (best of this processor)", backend.isa())?;
            writeln!(out, "threads          {} (physical cores)", backend.threads())?;
            for line in limits(&memory) {
                writeln!(out, "memory           {line}")?;
            }
            for (what, line) in in_lines(&machine) {
                writeln!(out, "{what:<16} {line}")?;
            }
            if gpus.is_empty() {
                writeln!(out, "GPUs             none found")?;
            }
            for gpu in &gpus {
                let device = gpu.device.to_string();
                writeln!(out, "{device:<16} {}, {}, {}: {}", gpu.name, gpu.kind, gpu.api, gpu.driver)?;
            }
            if let Some(why) = cuda_trouble() {
                writeln!(out, "cuda             cannot be used: {why}")?;
            }
            if gpus.iter().any(|gpu| matches!(gpu.device, Device::Cuda(_))) {
                writeln!(out, "NVRTC            {}", nvrtc(&compiler))?;
            }
            for (device, Measured { name, speed: Speed { read, int8, float } }) in &speeds {
                let [read, int8, float] = [read, int8, float].map(|per_second| per_second / 1e9);
                writeln!(
                    out,
                    "measured         {device} ({name}): {read:.1} GB/s of weights, {int8:.0} GOPS int8, {float:.0} GFLOPS f32"
                )?;
            }
            if speeds.is_empty() {
                writeln!(out, "measured         nothing; --measure does it")?;
            }
            writeln!(out, "hub              {}", hub.line())?;
            writeln!(out, "own model        {}, {:.1} MB", shipped::NAME, shipped::size() as f64 / 1e6)?;
            let file = file.as_deref().unwrap_or("no file");
            writeln!(out, "tuned models     {} ({file})", tuned.len())?;
            for (shape, choices) in &tuned {
                if let Some(best) = choices.first() {
                    let zeros = if best.skip { " that leaves out zeros" } else { "" };
                    writeln!(out, "  {shape}: {}{zeros}, {} threads", best.kernel, best.threads)?;
                }
            }
            for (gpu, known) in &tuned_gpus {
                let (products, fixed) = (known.products.len(), known.fixed.len());
                writeln!(out, "  {gpu}: {products} products, {fixed} kernels for fixed sizes")?;
                for (shape, rates) in &known.models {
                    writeln!(
                        out,
                        "    {shape}: prefill {:.0}, decode {:.0} tokens/s",
                        rates.prefill, rates.decode
                    )?;
                }
            }
            let width = results.iter().map(|r| r.op.len()).max().unwrap_or(0);
            writeln!(out, "\n{:<width$} {:<14} self-test of every kernel", "operation", "kernel")?;
            for tests in ops {
                let of = |verdict, word: &str| {
                    let names = tests.iter().filter(|t| t.verdict == verdict).map(|t| t.kernel);
                    let names = names.collect::<Vec<_>>().join(", ");
                    if names.is_empty() { names } else { format!("{word}: {names}") }
                };
                let verdicts = [
                    of(Verdict::Wrong, "WRONG"),
                    of(Verdict::Passed, "ok"),
                    of(Verdict::NotRun, "not run, no such instructions"),
                ];
                let verdicts = verdicts.iter().filter(|v| !v.is_empty()).cloned().collect::<Vec<_>>();
                writeln!(out, "{:<width$} {:<14} {}", tests[0].op, chosen(tests), verdicts.join("; "))?;
            }
        }
        match failed {
            0 => Ok(()),
            n => Err(Failure::Runtime(format!(
                "{n} kernels gave wrong numbers on this machine; do not trust its results"
            ))),
        }
    }
}

/// What the run-time compiler is good for here.
fn nvrtc(compiler: &Result<(i32, i32), cuda::CompileError>) -> String {
    match compiler {
        Ok((major, minor)) => {
            format!(
                "{major}.{minor}: `bitnet tune` compares kernels that it compiles with those that were compiled ahead"
            )
        }
        Err(why) => format!("{}; kernels that were compiled ahead do without", chain(why)),
    }
}

/// Every device but those that are only a processor's pretence. One that cannot be measured is told of and left out.
fn measure(gpus: &[GpuDetails]) -> BTreeMap<String, Measured> {
    let real = gpus.iter().filter(|gpu| gpu.made_by != AdapterKind::Software);
    let devices = std::iter::once((Device::Cpu, processor_name()))
        .chain(real.map(|gpu| (gpu.device, gpu.name.clone())));
    let measured = devices.filter_map(|(device, name)| match device.measure() {
        Ok(speed) => Some((device.to_string(), Measured { name, speed })),
        Err(e) => {
            eprintln!("warning: {device} cannot be measured: {}", chain(&e));
            None
        }
    });
    measured.collect()
}

fn of_machine(machine: &Machine) -> Value {
    let Machine { nodes, caches } = machine;
    json!({
        "nodes": nodes.iter().map(|n| json!({"node": n.number, "processors": n.processors, "memory": n.memory})).collect::<Vec<_>>(),
        "caches": caches.iter().map(|c| json!({"level": c.level, "kind": c.kind, "bytes": c.bytes, "shared_by": c.shared_by}))
            .collect::<Vec<_>>(),
    })
}

/// Nodes and caches, as far as they are known.
fn in_lines(machine: &Machine) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if machine.nodes.len() > 1 {
        lines.push(("nodes", format!("{}, over which threads are spread", machine.nodes.len())));
    }
    let caches = machine.caches.iter().filter(|cache| cache.kind != "Instruction").map(|cache| {
        let shared =
            if cache.shared_by > 1 { format!(" for {} processors", cache.shared_by) } else { String::new() };
        let size = if cache.bytes < 1 << 20 {
            format!("{} KiB", cache.bytes >> 10)
        } else {
            format!("{} MiB", cache.bytes >> 20)
        };
        format!("L{} {size}{shared}", cache.level)
    });
    let caches = caches.collect::<Vec<_>>().join(", ");
    if !caches.is_empty() {
        lines.push(("caches", caches));
    }
    lines
}

/// What is left of each limit of memory.
fn limits(memory: &Readings) -> Vec<String> {
    if memory.limits.is_empty() {
        return vec!["limits are known on Linux only".to_owned()];
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let line = |limit: &Limit| {
        format!("{:.1} of {:.1} GB left ({})", gb(limit.left_bytes()), gb(limit.limit_bytes), limit.kind)
    };
    memory.limits.iter().map(line).collect()
}

/// Longer than this, a hub that can be used does not take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What came of asking the hub.
enum Access {
    /// It is not asked: settings say so.
    Offline(Settings),
    Answers(Settings),
    Fails(String),
}

impl Access {
    fn of(flags: &HubFlags) -> Self {
        let mut settings = match flags.settings() {
            Ok(settings) if settings.offline => return Self::Offline(settings),
            Ok(settings) => settings,
            Err(failure) => return Self::Fails(failure.message().to_owned()),
        };
        (settings.attempts, settings.timeout) = (1, PATIENCE);
        match Hub::new(settings.clone()).reach() {
            Ok(()) => Self::Answers(settings),
            Err(e) => Self::Fails(chain(&e)),
        }
    }

    fn line(&self) -> String {
        let place = |s: &Settings| format!("{}, cache in {}", s.endpoint, s.cache.display());
        match self {
            Self::Offline(settings) => format!("not asked (offline): {}", place(settings)),
            Self::Answers(settings) => format!("answers: {}", place(settings)),
            Self::Fails(why) => format!("does not answer: {why}"),
        }
    }

    fn json(&self) -> Value {
        let place = |s: &Settings, reachable: Value| json!({"endpoint": s.endpoint, "cache": s.cache, "reachable": reachable});
        match self {
            Self::Offline(settings) => place(settings, Value::Null),
            Self::Answers(settings) => place(settings, json!(true)),
            Self::Fails(why) => json!({"reachable": false, "error": why}),
        }
    }
}

/// The processor's features that some kernel looks for.
fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ];
        found.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected;
        let found = [
            ("neon", is_aarch64_feature_detected!("neon")),
            ("dotprod", is_aarch64_feature_detected!("dotprod")),
            ("i8mm", is_aarch64_feature_detected!("i8mm")),
        ];
        found.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        String::new()
    }
}
