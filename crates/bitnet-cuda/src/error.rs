//! Why a GPU cannot be used.

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library is not there.
    #[error("there is no NVIDIA driver (libcuda is not found)")]
    NoDriver,
    /// The driver is older than the kernels.
    #[error(
        "the NVIDIA driver knows CUDA {}.{}; version 580 or newer, which knows CUDA {}.{}, is needed",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    TooOld {
        /// Version of the driver's interface, 1000 times its major number.
        found: i32,
        /// What the kernels were compiled for.
        needed: i32,
    },
    /// The driver has no GPU.
    #[error("the NVIDIA driver finds no GPU")]
    NoDevice,
    /// There is no GPU of this number.
    #[error("there is no NVIDIA GPU {number}; {found} can be used")]
    NoSuchDevice {
        /// What was asked for.
        number: usize,
        /// How many there are.
        found: usize,
    },
    /// The GPU is older than the kernels.
    #[error(
        "{name} has compute capability {}.{}; 8.0 (Ampere) or newer is needed", capability.0, capability.1
    )]
    Capability {
        /// The GPU.
        name: String,
        /// Major and minor.
        capability: (u32, u32),
    },
    /// A kernel is not in the module.
    #[error("the module has no kernel {name}")]
    NoKernel {
        /// The kernel.
        name: &'static str,
    },
    /// The device has no memory left.
    #[error("the GPU has no memory left")]
    OutOfMemory,
    /// The driver refused or failed.
    #[error("{what}: {why} (error {code})")]
    Failed {
        /// The function that was called.
        what: &'static str,
        /// The driver's number for it.
        code: u32,
        /// What the driver says.
        why: String,
    },
}
