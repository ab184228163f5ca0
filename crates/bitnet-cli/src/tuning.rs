//! What `bitnet tune` found to be fastest on this machine: one file a machine, an entry a shape of model; and of GPUs an entry for each
//! kind, driver and state of the kernels (`tuning/gpu.rs`).

mod gpu;

use crate::failure::Failure;
use crate::folders;
use bitnet_core::{Activation, ActivationPrecision};
use bitnet_cpu::{Isa, Kernel, physical_cores, processor_name};
use bitnet_inference::{Device, DeviceOptions, OpenOptions, Speed};
use bitnet_model::ModelConfig;
use clap::Args;
pub use gpu::{GpuTuning, Rates, products};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where the file is.
#[derive(Args, Clone, Debug)]
pub struct TuningFlag {
    /// File with what `bitnet tune` found out [default: one for this machine in the user's configuration folder]
    #[arg(long, value_name = "FILE", env = "BITNET_TUNING", help_heading = "Device")]
    tuning: Option<PathBuf>,
    /// On NVIDIA GPUs, run only kernels that were compiled ahead, also where `bitnet tune` found those that it compiled for the model's
    /// sizes to be faster; results are the same
    #[arg(long, env = "BITNET_NO_FIXED_KERNELS", help_heading = "Device")]
    no_fixed_kernels: bool,
}

/// The fastest kernel with a number of threads, and how fast it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub threads: usize,
    pub kernel: String,
    /// Whether products leave out what a closed gate makes zero.
    pub skip: bool,
    /// Tokens a second.
    pub prefill: f64,
    pub decode: f64,
}

/// Choices for a shape of model, the fastest first.
pub type Choices = Vec<Choice>;

/// A machine's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// The version that measured: kernels of another one have other speeds.
    version: String,
    processor: String,
    cores: usize,
    isa: String,
    models: BTreeMap<String, Choices>,
    /// By the name of the device.
    #[serde(default)]
    devices: BTreeMap<String, Measured>,
    /// By what they are good for.
    #[serde(default)]
    gpus: BTreeMap<String, GpuTuning>,
}

/// What `bitnet doctor --measure` found out about a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What the device calls itself: another one of the same number has another speed.
    pub name: String,
    pub speed: Speed,
}

impl Tuning {
    /// Nothing is known of this machine.
    fn empty() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            processor: processor_name(),
            cores: physical_cores(),
            isa: Isa::detect().name().to_owned(),
            models: BTreeMap::new(),
            devices: BTreeMap::new(),
            gpus: BTreeMap::new(),
        }
    }

    /// The file's tuning; `Ok(None)` where there is no file, and an error that says why a file cannot be used.
    fn read(path: &Path) -> Result<Option<Self>, String> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| e.to_string())?,
        };
        let found: Self = serde_json::from_str(&text).map_err(|e| format!("it is damaged: {e}"))?;
        let here = Self::empty();
        if found.version != here.version {
            return Err(format!("version {} made it, this is {}", found.version, here.version));
        }
        if (&found.processor, found.cores, &found.isa) != (&here.processor, here.cores, &here.isa) {
            let machine = |t: &Self| format!("{}, {} cores, {}", t.processor, t.cores, t.isa);
            return Err(format!("it is for {}, this is {}", machine(&found), machine(&here)));
        }
        let choices = || found.models.values().flatten();
        if let Some(odd) = choices().find(|c| !c.kernel.parse().is_ok_and(Kernel::is_available)) {
            return Err(format!("it names a kernel {:?}, which does not run here", odd.kernel));
        }
        if let Some(odd) = found.gpus.values().find_map(GpuTuning::unknown) {
            return Err(format!("it is damaged: it names a kernel {odd:?}"));
        }
        match choices().any(|c| !(1..=bitnet_cpu::MAX_THREADS).contains(&c.threads)) {
            true => Err("it is damaged: a number of threads makes no sense".to_owned()),
            false => Ok(Some(found)),
        }
    }
}

/// What speed depends on in a model.
pub fn shape(config: &ModelConfig, act: Option<ActivationPrecision>) -> String {
    let heads = config.shape;
    let (query, kv) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let activation = match config.activation {
        Activation::Relu2 => "relu2",
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
    };
    let act = if act == Some(ActivationPrecision::Float) { ", float activations" } else { "" };
    let ModelConfig { layers, hidden, ffn, vocab, .. } = config;
    format!("{layers} layers of {hidden}, {query} + 2 * {kv}, {ffn} {activation}; vocabulary {vocab}{act}")
}

impl TuningFlag {
    fn path(&self) -> Option<PathBuf> {
        self.tuning.clone().or_else(|| {
            let here = Tuning::empty();
            // FNV: as short as a name needs, and the same everywhere.
            let machine = format!("{} {} {}", here.processor, here.cores, here.isa);
            let hash = machine.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            Some(folders::config()?.join(format!("tuning-{hash:016x}.json")))
        })
    }

    /// The file's tuning. A file that cannot be used is warned of and counts as none.
    fn read(&self) -> Option<Tuning> {
        let path = self.path()?;
        Tuning::read(&path).unwrap_or_else(|why| {
            eprintln!("warning: {} is ignored: {why}; `bitnet tune` writes it anew", path.display());
            None
        })
    }

    /// Fills in what the command line leaves open; true where the file had something to say.
    pub fn settle(&self, options: &mut OpenOptions, config: &ModelConfig) -> bool {
        if let Some(number) = gpu::first(&options.device.device) {
            return self.settle_gpu(number, options, &shape(config, options.load.act));
        }
        // Whoever names kernels does not want others, and these are the processor's.
        if !options.device.device.is(Device::Cpu)
            || options.device.isa.is_some()
            || options.device.kernel.is_some()
        {
            return false;
        }
        let tuning = self.read();
        let choices = tuning.as_ref().and_then(|t| t.models.get(&shape(config, options.load.act)));
        let fits = |c: &&Choice| options.device.threads.is_none_or(|threads| threads == c.threads);
        let choice = choices.and_then(|choices| choices.iter().find(fits));
        if let Some(choice) = choice {
            options.device = DeviceOptions {
                threads: Some(choice.threads),
                kernel: choice.kernel.parse().ok(),
                skip: Some(choice.skip),
                kernels: None,
                memory: options.device.memory.take(),
                ..DeviceOptions::default()
            };
        }
        choice.is_some()
    }

    /// What was measured of devices, by their names.
    pub fn speeds(&self) -> BTreeMap<String, Measured> {
        self.read().map_or_else(BTreeMap::new, |t| t.devices)
    }

    /// Adds or replaces the entry of a shape, and returns where it went.
    pub fn save(&self, shape: String, choices: Choices) -> Result<PathBuf, Failure> {
        self.change(|tuning| drop(tuning.models.insert(shape, choices)))
    }

    /// Replaces what was measured of devices, and returns where it went.
    pub fn save_speeds(&self, devices: BTreeMap<String, Measured>) -> Result<PathBuf, Failure> {
        self.change(|tuning| tuning.devices = devices)
    }

    fn change(&self, change: impl FnOnce(&mut Tuning)) -> Result<PathBuf, Failure> {
        let path = self.path().ok_or_else(|| {
            Failure::Runtime("no configuration folder is known; name a file with --tuning".to_owned())
        })?;
        let mut tuning = self.read().unwrap_or_else(Tuning::empty);
        change(&mut tuning);
        write(&path, &tuning)
            .map_err(|e| Failure::Runtime(format!("{} cannot be written: {e}", path.display())))?;
        Ok(path)
    }

    /// The file and the shapes that it knows.
    pub fn known(&self) -> (Option<PathBuf>, Vec<(String, Choices)>) {
        let models = self.read().map_or_else(BTreeMap::new, |t| t.models);
        (self.path(), models.into_iter().collect())
    }
}

/// The file is whole, or as it was before.
fn write(path: &Path, tuning: &Tuning) -> std::io::Result<()> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".tuning-").suffix(".part").tempfile_in(folder)?;
    writeln!(file, "{:#}", serde_json::to_value(tuning)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(threads: usize, kernel: &str) -> Choice {
        Choice { threads, kernel: kernel.to_owned(), skip: true, prefill: 100.0, decode: 10.0 }
    }

    #[test]
    fn entries_are_added_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let flag =
            TuningFlag { tuning: Some(folder.path().join("deep/tuning.json")), no_fixed_kernels: false };
        assert!(flag.read().is_none());
        for (shape, threads) in [("a", 1), ("b", 2), ("a", 3)] {
            flag.save(shape.to_owned(), vec![choice(threads, "tile2-scalar")]).unwrap();
        }
        let (_, known) = flag.known();
        let threads: Vec<_> = known.iter().map(|(shape, c)| (shape.as_str(), c[0].threads)).collect();
        assert_eq!(threads, [("a", 3), ("b", 2)]);
        // Nothing but the file is left.
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_for_this_machine_or_version_is_ignored() {
        let good =
            Tuning { models: [("a".to_owned(), vec![choice(1, "tile2-scalar")])].into(), ..Tuning::empty() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        let refused = |tuning: &Tuning, words: &str| {
            write(&path, tuning).unwrap();
            let why = Tuning::read(&path).unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        write(&path, &good).unwrap();
        assert_eq!(Tuning::read(&path), Ok(Some(good.clone())));
        refused(&Tuning { version: "0.0.0".to_owned(), ..good.clone() }, "version 0.0.0");
        refused(&Tuning { processor: "Z80".to_owned(), ..good.clone() }, "it is for Z80");
        let with = |c: Choice| Tuning { models: [("a".to_owned(), vec![c])].into(), ..good.clone() };
        refused(&with(choice(1, "magic")), "magic");
        refused(&with(choice(0, "tile2-scalar")), "threads");
        let gpu = GpuTuning { fixed: vec!["gemv rows=1".to_owned()], ..GpuTuning::default() };
        refused(&Tuning { gpus: [("a GPU".to_owned(), gpu)].into(), ..good.clone() }, "gemv rows=1");
        let text = std::fs::read(&path).unwrap();
        for cut in [0, 1, text.len() / 2, text.len() - 3] {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert!(Tuning::read(&path).unwrap_err().contains("damaged"), "{cut}");
        }
    }
}
