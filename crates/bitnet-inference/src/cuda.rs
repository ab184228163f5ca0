//! What is known of the kernels of NVIDIA's GPUs, for those who keep it from one process to the next:
//! [`DeviceOptions::kernels`](crate::DeviceOptions::kernels) takes it. No result depends on it.

pub use bitnet_cuda::{
    Choices, CompileError, DeviceDetails, FixedKernel, KernelCache, ProductShape, Tuning, UnknownKernel,
    compiler, devices, free_memory,
};
