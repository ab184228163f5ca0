//! The device table: the one place that names concrete backends.

use crate::OpenError;
use bitnet_cpu::{CpuBackend, CpuOptions, Isa, Kernel};
use bitnet_formats::Checkpoint;
use bitnet_model::{Decoder, LoadOptions, load};
use std::sync::Arc;

/// What a model is to run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOptions {
    /// Instruction set; the fastest one there is when `None`.
    pub isa: Option<Isa>,
    /// Threads; one a physical core when `None`.
    pub threads: Option<usize>,
    /// Ternary kernel; the best one of the instruction set when `None`.
    pub kernel: Option<Kernel>,
}

/// What a model runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name of the device.
    pub device: &'static str,
    /// Instruction set of its kernels.
    pub isa: &'static str,
    /// Its ternary kernel.
    pub kernel: &'static str,
    /// Threads in use.
    pub threads: usize,
}

/// Prepares a checkpoint's weights on a device.
pub(crate) fn decoder(
    checkpoint: &Checkpoint,
    device: &DeviceOptions,
    options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Box<dyn Decoder>, DeviceInfo), OpenError> {
    let backend =
        CpuBackend::new(CpuOptions { isa: device.isa, threads: device.threads, kernel: device.kernel })?;
    let (isa, kernel) = (backend.isa().name(), backend.kernel().name());
    let info = DeviceInfo { device: "cpu", isa, kernel, threads: backend.threads() };
    Ok((Box::new(load(Arc::new(backend), checkpoint, options, progress)?), info))
}
