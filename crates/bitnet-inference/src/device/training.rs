//! Devices that models are trained on.

use super::Device;
use crate::OpenError;
use bitnet_core::TrainingDevice;
use bitnet_wgpu::WgpuTraining;

impl Device {
    /// Its operations of training; `None` for the processor, whose are `bitnet_cpu::CpuTraining`'s.
    ///
    /// # Errors
    /// There is no such device, or it cannot be used.
    pub fn training(self) -> Result<Option<Box<dyn TrainingDevice>>, OpenError> {
        Ok(match self {
            Self::Cpu => None,
            Self::Cuda(number) => {
                let device = bitnet_cuda::CudaTraining::new(number);
                Some(Box::new(device.map_err(|source| OpenError::Cuda { number, source })?))
            }
            Self::Wgpu(number) => Some(Box::new(WgpuTraining::new(number)?)),
        })
    }
}
