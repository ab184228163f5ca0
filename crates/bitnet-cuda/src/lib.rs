//! The CUDA backend: every operation of the forward pass on NVIDIA GPUs, with the bits of the processor's, and those of training.
//!
//! Floats follow the order of `docs/numerics.md`, so that a model gives the same answer here as there, `==`, whatever shares a step
//! and however a prompt is cut. The crate knows the driver, kernels and the layouts that they read; it knows no file format
//! and no model.
//!
//! Several GPUs may share the rows of one model: [`CudaRows`].
//!
//! The kernels (`kernels/`) are compiled ahead, for Ampere (compute capability 8.0) and newer, and are part of the program
//! (`generated/`): neither building nor running it needs a CUDA toolkit. The driver is looked for when [`devices`] or
//! [`CudaBackend::new`] is called, and need not be there. So is NVRTC, NVIDIA's run-time compiler, which makes kernels for fixed sizes
//! where a [`Tuning`] wants such.
//!
//! ```
//! match bitnet_cuda::devices() {
//!     Ok(devices) => devices.iter().for_each(|device| println!("{}", device.name)),
//!     Err(why) => println!("{why}"),
//! }
//! ```
#![deny(unsafe_code)]

mod attention;
mod backend;
mod cache;
#[allow(unsafe_code, reason = "calls the driver")]
mod driver;
mod error;
mod fixed;
#[allow(unsafe_code, reason = "answers for the parameters of kernels")]
mod gpu;
mod head;
mod kernels;
mod kv;
mod memory;
#[allow(unsafe_code, reason = "calls the run-time compiler")]
mod nvrtc;
mod product;
mod rows;
mod tensor;
mod training;
mod tuning;
mod weight;

pub use backend::{CudaBackend, CudaVector};
pub use cache::KernelCache;
pub use driver::{DeviceDetails, devices, free_memory};
pub use error::{CompileError, CudaError};
pub use fixed::{FixedKernel, UnknownKernel};
pub use kv::CudaKv;
pub use nvrtc::compiler;
pub use rows::{CudaRows, CudaRowsKv, CudaRowsTensor, CudaRowsVector, CudaRowsWeight};
pub use tensor::CudaTensor;
pub use training::CudaTraining;
pub use tuning::{Choices, ProductShape, Tuning};
pub use weight::{CudaWeight, OneToken};
