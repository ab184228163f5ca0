//! The device table: the one place that names concrete backends.

use crate::OpenError;
use bitnet_core::{Activation, ActivationPrecision};
use bitnet_cpu::{CpuBackend, CpuOptions, Isa, Kernel};
use bitnet_formats::Checkpoint;
use bitnet_model::{Decoder, LoadOptions, load};
use bitnet_wgpu::{AdapterDetails, AdapterKind, WgpuBackend};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU by its number in [`gpus`].
    Wgpu(usize),
}

impl Device {
    /// The best device for models here, and why it is: the first discrete GPU, else the first integrated one, else the
    /// processor. What a processor only pretends to be is never taken.
    pub fn auto() -> (Self, String) {
        let gpus = gpus();
        let of = |kind| gpus.iter().position(|gpu| gpu.kind == kind);
        match of(AdapterKind::Discrete).or_else(|| of(AdapterKind::Integrated)) {
            Some(n) => (Self::Wgpu(n), format!("{}, {}", gpus[n].name, gpus[n].kind.name())),
            None => (Self::Cpu, "there is no GPU".to_owned()),
        }
    }

    /// The names of all devices here, each with what it is.
    pub fn list() -> String {
        let name = |(n, gpu): (usize, &AdapterDetails)| {
            format!("{} ({}, {}, {})", Self::Wgpu(n), gpu.name, gpu.api, gpu.kind.name())
        };
        let gpus = gpus();
        let names = std::iter::once("cpu".to_owned()).chain(gpus.iter().enumerate().map(name));
        names.collect::<Vec<_>>().join("; ")
    }
}

/// The GPUs that there are, in the order of their numbers.
pub fn gpus() -> Vec<AdapterDetails> {
    bitnet_wgpu::adapters()
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Wgpu(n) => write!(f, "wgpu:{n}"),
        }
    }
}

/// No device has such a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no device; cpu and wgpu:N are")]
pub struct UnknownDevice {
    name: String,
}

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            Some(("wgpu", n)) => {
                n.parse().map(Self::Wgpu).map_err(|_| UnknownDevice { name: name.to_owned() })
            }
            _ => Err(UnknownDevice { name: name.to_owned() }),
        }
    }
}

/// What a model is to run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOptions {
    /// The device; what follows is for the processor alone.
    pub device: Device,
    /// Instruction set; the fastest one there is when `None`.
    pub isa: Option<Isa>,
    /// Threads; one a physical core when `None`.
    pub threads: Option<usize>,
    /// Ternary kernel; the best one of the instruction set when `None`.
    pub kernel: Option<Kernel>,
    /// Whether products leave out what a ReLU-squared gate makes zero; when `None`, unless a kernel is named.
    pub skip: Option<bool>,
}

/// What a model runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device.
    pub device: Device,
    /// Instruction set of its kernels; of a GPU, the interface that it is reached by.
    pub isa: &'static str,
    /// Its ternary kernel; of a GPU, its name.
    pub kernel: String,
    /// Whether products leave out what a ReLU-squared gate makes zero.
    pub skips: bool,
    /// Threads of the processor in use.
    pub threads: usize,
}

/// Prepares a checkpoint's weights on a device.
pub(crate) fn decoder(
    checkpoint: &Checkpoint,
    options: &DeviceOptions,
    load_options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Box<dyn Decoder>, DeviceInfo), OpenError> {
    let DeviceOptions { device, isa, threads, kernel, skip } = *options;
    match device {
        Device::Cpu => {
            let backend = CpuBackend::new(CpuOptions { isa, threads, kernel, skip })?;
            let (isa, kernel) = (backend.isa().name(), backend.kernel().name().to_owned());
            let (skips, threads) = (backend.skips(), backend.threads());
            let model = load(Arc::new(backend), checkpoint, load_options, progress)?;
            let gated = model.config().activation == Activation::Relu2;
            let skips = skips && gated && model.report().act == ActivationPrecision::Int8;
            Ok((Box::new(model), DeviceInfo { device, isa, kernel, skips, threads }))
        }
        Device::Wgpu(number) => {
            let backend = WgpuBackend::new(number)?;
            let (isa, kernel) = (backend.adapter().api, backend.adapter().name.clone());
            let model = load(Arc::new(backend), checkpoint, load_options, progress)?;
            Ok((Box::new(model), DeviceInfo { device, isa, kernel, skips: false, threads: 1 }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_back() {
        for device in [Device::Cpu, Device::Wgpu(0), Device::Wgpu(12)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for name in ["", "gpu", "wgpu", "wgpu:", "wgpu:-1", "wgpu:x", "cpu:0", "cuda:0"] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}
