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
    #[error("the GPU has no memory left; `nvidia-smi` lists the processes that hold it")]
    OutOfMemory,
    /// Another process has the device, and its compute mode lets no second one in.
    #[error(
        "another process has {name} to itself (`nvidia-smi` lists it): wait for its end, or let several use the GPU with \
         `nvidia-smi -c DEFAULT`"
    )]
    InUse {
        /// The GPU.
        name: String,
    },
    /// The GPU's compute mode lets no process in.
    #[error(
        "{name} is closed to all processes (compute mode \"prohibited\"); `nvidia-smi -c DEFAULT` opens it"
    )]
    Closed {
        /// The GPU.
        name: String,
    },
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

/// Why a kernel could not be compiled for sizes that are known. Those that were compiled ahead give the same results.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The compiler's library is not there.
    #[error("NVRTC (libnvrtc, a part of NVIDIA's CUDA toolkit) is not found")]
    NotFound,
    /// The compiler's library is too old.
    #[error("NVRTC is version {}.{}; {}.{} or newer is needed", found.0, found.1, needed.0, needed.1)]
    TooOld {
        /// Its version, major and minor.
        found: (i32, i32),
        /// The oldest that would do.
        needed: (i32, i32),
    },
    /// The compiler refused the source.
    #[error("NVRTC: {why}")]
    Failed {
        /// What it says.
        why: String,
    },
    /// No GPU has been opened that it could be compiled for.
    #[error("no GPU is open that a kernel could be compiled for")]
    NoDevice,
}
