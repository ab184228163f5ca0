//! The CUDA backend: every operation of the forward pass on NVIDIA GPUs, with the bits of the processor's, and those of training.
//!
//! Floats follow the order of `docs/numerics.md`, so that a model gives the same answer here as there, `==`, whatever shares a step
//! and however a prompt is cut. The crate knows the driver, kernels and the layouts that they read; it knows no file format
//! and no model.
//!
//! The kernels (`kernels/`) are compiled ahead, for Ampere (compute capability 8.0) and newer, and are part of the program
//! (`generated/`): neither building nor running it needs a CUDA toolkit. The driver is looked for when [`devices`] or
//! [`CudaBackend::new`] is called, and need not be there.
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
#[allow(unsafe_code, reason = "calls the driver")]
mod driver;
mod error;
#[allow(unsafe_code, reason = "answers for the parameters of kernels")]
mod gpu;
mod head;
mod kernels;
mod kv;
mod memory;
mod product;
mod tensor;
mod training;
mod weight;

pub use backend::{CudaBackend, CudaVector};
pub use driver::{DeviceDetails, devices};
pub use error::CudaError;
pub use kv::CudaKv;
pub use tensor::CudaTensor;
pub use training::CudaTraining;
pub use weight::{CudaWeight, OneToken};
