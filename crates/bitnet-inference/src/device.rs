//! The device table: the one place that names concrete backends.

use crate::OpenError;
use bitnet_core::{Activation, ActivationPrecision};
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
    /// Whether products leave out what a ReLU-squared gate makes zero; when `None`, unless a kernel is named.
    pub skip: Option<bool>,
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
    /// Whether products leave out what a ReLU-squared gate makes zero.
    pub skips: bool,
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
    let DeviceOptions { isa, threads, kernel, skip } = *device;
    let backend = CpuBackend::new(CpuOptions { isa, threads, kernel, skip })?;
    let (isa, kernel) = (backend.isa().name(), backend.kernel().name());
    let (skips, threads) = (backend.skips(), backend.threads());
    let model = load(Arc::new(backend), checkpoint, options, progress)?;
    let gated = model.config().activation == Activation::Relu2;
    let skips = skips && gated && model.report().act == ActivationPrecision::Int8;
    Ok((Box::new(model), DeviceInfo { device: "cpu", isa, kernel, skips, threads }))
}
