//! The device table: the one place that names concrete backends.

mod choice;
mod opened;
mod placement;
mod speed;
mod split;
mod training;

use crate::OpenError;
use bitnet_cpu::{Isa, Kernel};
use bitnet_cuda::CudaError;
use bitnet_formats::Checkpoint;
use bitnet_memory::Pool;
use bitnet_model::{Decoder, LoadOptions, ModelConfig, Pipeline, Sizes};
use bitnet_wgpu::AdapterKind;
use opened::{Opened, load_rows};
use split::Parts;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use bitnet_cpu::memory;
pub use choice::{Candidate, choose};
pub use placement::Placement;
pub use speed::Speed;
pub use split::Split;

/// A device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by the number that its driver gives it.
    Cuda(usize),
    /// A GPU by its number among those that Vulkan, Metal or DirectX 12 have.
    Wgpu(usize),
}

/// A GPU as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuDetails {
    /// How it is asked for.
    pub device: Device,
    /// What it calls itself.
    pub name: String,
    /// What makes its numbers.
    pub made_by: AdapterKind,
    /// The same in words.
    pub kind: &'static str,
    /// Bytes of its memory, where its driver tells.
    pub memory: Option<u64>,
    /// The interface that it is reached by: `cuda`, `vulkan`, `metal` or `dx12`.
    pub api: &'static str,
    /// Its driver, or what it can do, as far as that is known.
    pub driver: String,
}

impl Device {
    /// Bytes of the processor's memory that are left, where that is known.
    fn processor_memory() -> Option<u64> {
        let readings = bitnet_memory::System::default().read();
        readings.limits.iter().map(bitnet_memory::Limit::left_bytes).min()
    }

    /// The names of all devices here, each with what it is.
    pub fn list() -> String {
        let name = |gpu: GpuDetails| format!("{} ({}, {}, {})", gpu.device, gpu.name, gpu.api, gpu.kind);
        let names = std::iter::once("cpu".to_owned()).chain(gpus().into_iter().map(name));
        names.collect::<Vec<_>>().join("; ")
    }
}

/// Why NVIDIA's GPUs cannot be used although their driver is there.
pub fn cuda_trouble() -> Option<CudaError> {
    let error = bitnet_cuda::devices().err()?;
    (!matches!(error, CudaError::NoDriver | CudaError::NoDevice)).then_some(error)
}

/// The GPUs that there are: NVIDIA's first, then all that are reached through other interfaces.
pub fn gpus() -> Vec<GpuDetails> {
    let cuda = bitnet_cuda::devices().unwrap_or_default();
    let cuda = cuda.into_iter().enumerate().map(|(n, gpu)| GpuDetails {
        device: Device::Cuda(n),
        name: gpu.name,
        made_by: AdapterKind::Discrete,
        kind: AdapterKind::Discrete.name(),
        memory: Some(gpu.memory as u64),
        api: "cuda",
        driver: format!(
            "compute capability {}.{}, {} multiprocessors, {} MiB",
            gpu.capability.0,
            gpu.capability.1,
            gpu.processors,
            gpu.memory >> 20
        ),
    });
    let wgpu = bitnet_wgpu::adapters().into_iter().enumerate().map(|(n, gpu)| GpuDetails {
        device: Device::Wgpu(n),
        name: gpu.name,
        made_by: gpu.kind,
        kind: gpu.kind.name(),
        memory: None,
        api: gpu.api,
        driver: gpu.driver,
    });
    cuda.chain(wgpu).collect()
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Wgpu(n) => write!(f, "wgpu:{n}"),
        }
    }
}

/// No device has such a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no device; cpu, cuda:N and wgpu:N are")]
pub struct UnknownDevice {
    name: String,
}

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice { name: name.to_owned() };
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            Some(("cuda", n)) => n.parse().map(Self::Cuda).map_err(|_| unknown()),
            Some(("wgpu", n)) => n.parse().map(Self::Wgpu).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

/// What a model is to run on.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// The device, or several that have a part of the model each.
    pub device: Placement,
    /// How several devices share the model; when `None`, each gets layers, or rows where whole layers cannot be had and rows can.
    pub split: Option<Split>,
    /// In which proportion they share it; when empty, what each holds goes by the memory it has free, and the processor gets the layers that
    /// do not fit on the others.
    pub shares: Vec<f64>,
    /// Of the processor, the instruction set; the fastest one there is when `None`.
    pub isa: Option<Isa>,
    /// Threads of the processor; one a physical core when `None`.
    pub threads: Option<usize>,
    /// Of the processor, the ternary kernel; the best one of the instruction set when `None`.
    pub kernel: Option<Kernel>,
    /// Whether the processor's products leave out what a ReLU-squared gate makes zero; when `None`, unless a kernel is named.
    pub skip: Option<bool>,
    /// Of NVIDIA's GPUs, what is known of their kernels; what is found out on the way is added. Nothing is known when `None`.
    pub kernels: Option<Arc<crate::cuda::Tuning>>,
    /// Where all memory comes from, for models that are to have one pool; one for the model alone ([`memory()`], for inference) when `None`.
    pub memory: Option<Arc<Pool>>,
}

impl DeviceOptions {
    /// The same on another device.
    pub fn on(&self, device: impl Into<Placement>) -> Self {
        Self { device: device.into(), split: None, shares: Vec::new(), ..self.clone() }
    }

    /// Where a model is best put that guesses for one here: whole, on the device that has the results.
    pub fn for_draft(&self) -> Self {
        self.on(self.device.last())
    }
}

/// What a model runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device, or several.
    pub device: Placement,
    /// How many of the layers each of them has: all, where they share rows.
    pub layers: Vec<usize>,
    /// How several devices share the model.
    pub split: Split,
    /// Instruction set of its kernels; of a GPU, the interface that it is reached by; of several devices, each that they have.
    pub isa: String,
    /// Its ternary kernel; of a GPU, its name; of several devices, each that they have.
    pub kernel: String,
    /// Whether products leave out what a ReLU-squared gate makes zero.
    pub skips: bool,
    /// Threads of the processor in use.
    pub threads: usize,
}

/// Prepares the weights of a checkpoint, whose configuration has been read, on a device or on several.
pub(crate) fn decoder(
    (checkpoint, config): (&Checkpoint, &ModelConfig),
    options: &DeviceOptions,
    load: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Box<dyn Decoder>, DeviceInfo), OpenError> {
    let devices = options.device.devices();
    let opened = devices.iter().map(|d| Opened::new(*d, options)).collect::<Result<Vec<_>, _>>()?;
    let all = load.layers_of(config);
    let parts = match devices {
        [_] => Parts::Layers(vec![all]),
        several => {
            let sizes = Sizes::of(checkpoint, config, load)?;
            let free: Vec<_> = several.iter().copied().zip(opened.iter().map(Opened::free)).collect();
            split::parts(&sizes, &free, (options.split, &options.shares))?
        }
    };
    let mut info = DeviceInfo {
        device: options.device.clone(),
        layers: vec![all; devices.len()],
        split: Split::Rows,
        isa: String::new(),
        kernel: String::new(),
        skips: false,
        threads: 1,
    };
    let layers = match parts {
        Parts::Layers(layers) => layers,
        Parts::Rows(shares) => {
            let files = (checkpoint, config);
            let decoder: Box<dyn Decoder> = load_rows(opened, shares, files, load, &mut info, progress)?;
            return Ok((decoder, info));
        }
    };
    (info.layers, info.split) = (layers.clone(), Split::Layers);
    let (mut stages, mut first) = (Vec::new(), 0);
    for (opened, layers) in opened.into_iter().zip(layers) {
        let range = first..first + layers;
        first = range.end;
        stages.push(opened.load((checkpoint, config), load, range, &mut info, progress)?);
    }
    let decoder: Box<dyn Decoder> = match stages.len() {
        1 => stages.remove(0),
        _ => Box::new(Pipeline::new(stages)),
    };
    Ok((decoder, info))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_back() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Wgpu(0), Device::Wgpu(12)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for name in ["", "gpu", "wgpu", "wgpu:", "wgpu:-1", "wgpu:x", "cpu:0", "cuda", "cuda:-1"] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}
