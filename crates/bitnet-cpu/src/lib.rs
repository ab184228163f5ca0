//! The CPU backend: one weight layout, kernels for each operation and instruction set, and a thread pool.
//!
//! It knows instruction sets and memory layouts; it knows no file format and no model. Every kernel equals the scalar
//! specification in `bitnet_quant::spec` bit for bit, whatever the instruction set and the number of threads.

mod backend;
mod cores;
mod isa;
mod kernels;
mod kv;
mod layout;
mod machine;
mod memory;
mod pool;
mod roofline;
mod self_test;
mod simd;
#[cfg(test)]
mod testing;
mod training;
mod weight;

pub use backend::{CpuBackend, CpuError, CpuOptions, CpuTensor, MAX_THREADS};
pub use bitnet_core::Terms;
pub use cores::{physical_cores, processor_name};
pub use isa::{Isa, UnknownIsa};
pub use kernels::ternary::{Kernel, UnknownKernel};
pub use kv::KvCache;
pub use machine::{Cache, Machine, Node};
pub use memory::memory;
pub use roofline::Roofline;
pub use self_test::{SelfTest, Verdict, self_test};
pub use training::{CpuTraining, DEPTH, Norm, QuantizedTokens, Side, Store, Target, TernaryWeights, Values};
pub use weight::CpuWeight;
