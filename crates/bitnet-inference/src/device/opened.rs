//! Backends of each kind, opened.

use super::{Device, DeviceInfo, DeviceOptions};
use crate::OpenError;
use bitnet_core::{Activation, ActivationPrecision, Backend};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_cuda::{CudaBackend, CudaRows};
use bitnet_formats::Checkpoint;
use bitnet_model::{LoadOptions, LoadReport, ModelConfig, ModelError, Stage, load_stage};
use bitnet_wgpu::WgpuBackend;
use std::ops::Range;
use std::sync::Arc;

/// A device that weights can be prepared on.
pub(super) enum Opened {
    Cpu(Arc<CpuBackend>),
    Cuda(Box<CudaBackend>),
    Wgpu(Arc<WgpuBackend>),
}

impl Opened {
    pub fn new(device: Device, options: &DeviceOptions) -> Result<Self, OpenError> {
        let DeviceOptions { isa, threads, kernel, skip, ref kernels, ref memory, .. } = *options;
        Ok(match device {
            Device::Cpu => {
                let options = CpuOptions { isa, threads, kernel, skip, memory: memory.clone() };
                Self::Cpu(Arc::new(CpuBackend::new(options)?))
            }
            Device::Cuda(number) => {
                let backend = CudaBackend::with(number, kernels.clone().unwrap_or_default());
                Self::Cuda(Box::new(backend.map_err(|source| OpenError::Cuda { number, source })?))
            }
            Device::Wgpu(number) => Self::Wgpu(Arc::new(WgpuBackend::new(number)?)),
        })
    }

    /// Bytes of its memory that nobody uses, where that is known.
    pub fn free(&self) -> Option<u64> {
        match self {
            Self::Cpu(_) => Device::processor_memory(),
            Self::Cuda(backend) => backend.free_memory().ok().map(|bytes| bytes as u64),
            Self::Wgpu(_) => None,
        }
    }

    /// Prepares some of a model's layers, and says in `info` what has them.
    pub fn load(
        self,
        files: (&Checkpoint, &ModelConfig),
        load: &LoadOptions,
        layers: Range<usize>,
        info: &mut DeviceInfo,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Box<dyn Stage>, OpenError> {
        match self {
            Self::Cpu(backend) => {
                add(&mut info.isa, backend.isa().name());
                add(&mut info.kernel, backend.kernel().name());
                let (skips, threads) = (backend.skips(), backend.threads());
                let stage = stage(backend, files, load, layers, progress)?;
                let LoadReport { act, .. } = *stage.report();
                let gated = stage.config().activation == Activation::Relu2;
                info.skips |= skips && gated && act == ActivationPrecision::Int8;
                info.threads = info.threads.max(threads);
                Ok(stage)
            }
            Self::Cuda(backend) => {
                add(&mut info.isa, "cuda");
                add(&mut info.kernel, &backend.device().name);
                stage(Arc::new(*backend), files, load, layers, progress)
            }
            Self::Wgpu(backend) => {
                add(&mut info.isa, backend.adapter().api);
                add(&mut info.kernel, &backend.adapter().name);
                stage(backend, files, load, layers, progress)
            }
        }
    }
}

/// Prepares the rows of a model that NVIDIA's GPUs, with these shares, have of all matrices.
pub(super) fn load_rows(
    opened: Vec<Opened>,
    shares: Vec<f64>,
    (checkpoint, config): (&Checkpoint, &ModelConfig),
    load: &LoadOptions,
    info: &mut DeviceInfo,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Box<dyn Stage>, OpenError> {
    let place = info.device.clone();
    let gpus = opened.into_iter().zip(place.devices()).map(|(opened, device)| match opened {
        Opened::Cuda(backend) => Ok(*backend),
        Opened::Cpu(_) | Opened::Wgpu(_) => Err(OpenError::NoRows { device: *device }),
    });
    let gpus = gpus.collect::<Result<Vec<_>, _>>()?;
    add(&mut info.isa, "cuda");
    gpus.iter().for_each(|gpu| add(&mut info.kernel, &gpu.device().name));
    let rows = CudaRows::new(gpus, shares).map_err(ModelError::from)?;
    stage(Arc::new(rows), (checkpoint, config), load, 0..load.layers_of(config), progress)
}

fn stage<B: Backend>(
    backend: Arc<B>,
    (checkpoint, config): (&Checkpoint, &ModelConfig),
    load: &LoadOptions,
    layers: Range<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Box<dyn Stage>, OpenError> {
    Ok(Box::new(load_stage(backend, checkpoint, config.clone(), load, layers, progress)?))
}

/// Adds a name to a list, if it is not there.
fn add(list: &mut String, name: &str) {
    if list.split(", ").all(|known| known != name) {
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(name);
    }
}
