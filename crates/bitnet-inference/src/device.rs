//! The device table: the one place that names concrete backends.

use crate::OpenError;
use bitnet_cpu::{CpuBackend, CpuOptions, Isa};
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
}

/// What a model runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name of the device.
    pub device: &'static str,
    /// Instruction set of its kernels.
    pub isa: &'static str,
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
    let backend = CpuBackend::new(CpuOptions { isa: device.isa, threads: device.threads })?;
    let info = DeviceInfo { device: "cpu", isa: backend.isa().name(), threads: backend.threads() };
    Ok((Box::new(load(Arc::new(backend), checkpoint, options, progress)?), info))
}
