//! What models in training compute, on the CPU or on a device.

mod array;
mod device;
mod elements;
mod layers;
mod memory;
mod product;
mod steps;
#[cfg(test)]
mod tests;
mod tokens;

use bitnet_core::{BackendError, TrainingDevice};
use bitnet_cpu::CpuTraining;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

pub use array::Array;
pub(crate) use array::{View, ViewMut};
use device::Device;
pub use memory::memory;
pub(crate) use memory::or_out_of_memory;
pub(crate) use product::{Factor, Side, Store, Target, Values};
pub(crate) use steps::{Adam, Sgd};
pub(crate) use tokens::{Tokens, Trits};

/// Threads, and where models are to be trained on one, a device.
///
/// What is not among its operations is computed by the threads, on slices ([`CpuTraining`], which it dereferences to).
#[derive(Clone)]
pub struct Ops {
    cpu: Arc<CpuTraining>,
    device: Option<Arc<Device>>,
}

impl From<Arc<CpuTraining>> for Ops {
    fn from(cpu: Arc<CpuTraining>) -> Self {
        Self { cpu, device: None }
    }
}

impl From<CpuTraining> for Ops {
    fn from(cpu: CpuTraining) -> Self {
        Arc::new(cpu).into()
    }
}

impl Deref for Ops {
    type Target = CpuTraining;
    fn deref(&self) -> &CpuTraining {
        &self.cpu
    }
}

impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Some(device) => device.operations().fmt(f),
            None => write!(f, "{} threads", self.threads()),
        }
    }
}

impl Ops {
    /// Threads beside a device, which computes what it can.
    pub fn on(cpu: Arc<CpuTraining>, device: Box<dyn TrainingDevice>) -> Self {
        Self { cpu, device: Some(Arc::new(Device::new(device))) }
    }

    /// The name of the device, or `cpu`.
    pub fn name(&self) -> &str {
        self.device.as_ref().map_or("cpu", |device| device.operations().name())
    }

    /// What went wrong on the device since this was asked last.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<(), BackendError> {
        match self.device.as_ref().and_then(|device| device.failure()) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// The threads.
    pub(crate) fn cpu(&self) -> &CpuTraining {
        &self.cpu
    }

    pub(crate) fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    fn device(&self) -> Option<&Arc<Device>> {
        self.device.as_ref()
    }

    /// Runs something on the device and keeps what goes wrong; whether there is one.
    fn try_on(&self, f: impl FnOnce(&Arc<Device>, &dyn TrainingDevice) -> Result<(), BackendError>) -> bool {
        let Some(device) = &self.device else { return false };
        device.note(f(device, device.operations()));
        true
    }
}
