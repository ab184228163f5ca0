//! The portable GPU backend: every operation of the forward pass ([`WgpuBackend`]) and of training ([`WgpuTraining`]) in WGSL, run by [`wgpu`]
//! over Vulkan, Metal or DirectX 12.
//!
//! It knows adapters, shaders and the layouts that they read; it knows no file format and no model. Integers are those of the
//! specification (`bitnet_quant::spec`); floats are within the bounds that `docs/numerics.md` gives for it, because WGSL
//! leaves the rounding of divisions and of fused multiply-adds to the driver. On one adapter, the bits do not depend on how a
//! prompt is cut or what shares a step.
//!
//! Nothing is looked for before [`adapters`], [`WgpuBackend::new`] or [`WgpuTraining::new`] is called, and no GPU or driver need be there.
//!
//! ```
//! for adapter in bitnet_wgpu::adapters() {
//!     println!("{}", adapter.name);
//! }
//! ```
#![forbid(unsafe_code)]

mod adapter;
mod backend;
mod gpu;
mod head;
mod kernel;
mod kv;
mod memory;
mod product;
mod tensor;
mod training;
mod weight;

pub use adapter::{AdapterDetails, AdapterKind, WgpuError, adapters};
pub use backend::WgpuBackend;
pub use kv::WgpuKv;
pub use tensor::WgpuTensor;
pub use training::WgpuTraining;
pub use weight::{WgpuVector, WgpuWeight};
