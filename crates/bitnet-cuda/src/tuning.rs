//! What is known of the speed of a GPU's kernels, and what is found out: whoever keeps it gives it to the next backend.

use crate::cache::KernelCache;
use crate::driver::DeviceDetails;
use crate::error::CompileError;
use crate::fixed::{FixedKernel, SOURCES_HASH};
use crate::nvrtc::compiler;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A product of ternary weights with many tokens, for which there are several kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductShape {
    /// Rows of the result; of a gated product, those of one half.
    pub rows: usize,
    /// Columns of the weights.
    pub cols: usize,
    /// Tokens, rounded up in steps of half their magnitude.
    pub tokens: usize,
    /// Whether it is of a gate and an up projection.
    pub gated: bool,
}

/// What was found to be fastest on one kind of GPU. Results do not depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Kernels of products by their names; one that there is not counts as unknown.
    pub products: BTreeMap<ProductShape, String>,
    /// Kernels that are worth being compiled for fixed sizes.
    pub fixed: Vec<FixedKernel>,
}

/// Choices that a backend goes by, and adds to: which of the kernels for a product is best is measured when its shape is first met;
/// kernels for fixed sizes are for the caller to [`compile`](Self::compile), compare and [`want`](Self::want).
///
/// One tuning is for GPUs of one kind, with one driver; [`identity`](Self::identity) tells them apart.
#[derive(Debug, Default)]
pub struct Tuning {
    state: Mutex<State>,
    /// Changes with the kernels for fixed sizes that are to be run.
    version: AtomicU64,
    cache: Option<KernelCache>,
    tell: Option<fn(&FixedKernel)>,
}

#[derive(Debug, Default)]
struct State {
    products: BTreeMap<ProductShape, String>,
    /// What launches could run, where that is asked.
    met: Option<BTreeSet<FixedKernel>>,
    wanted: Vec<FixedKernel>,
    /// Machine code by kernel and architecture.
    images: HashMap<(FixedKernel, String), Arc<[u8]>>,
    target: Option<Target>,
    trouble: Option<CompileError>,
}

/// What kernels are compiled for.
#[derive(Clone, Debug)]
struct Target {
    architecture: String,
    /// The driver's version.
    driver: i32,
}

impl Target {
    /// What the cache knows a kernel by.
    fn key(&self, kernel: &FixedKernel) -> String {
        format!("kernels {SOURCES_HASH}, {}, driver {}: {kernel}", self.architecture, self.driver)
    }
}

impl Tuning {
    /// Goes by these choices. `cache` keeps machine code for the next process; what it lost is compiled anew when a GPU is opened,
    /// each kernel in about a second.
    pub fn new(choices: Choices, cache: Option<KernelCache>) -> Self {
        let Choices { products, fixed } = choices;
        let version = AtomicU64::new(u64::from(!fixed.is_empty()));
        let state = Mutex::new(State { products, wanted: fixed, ..State::default() });
        Self { state, version, cache, tell: None }
    }

    /// Has `tell` hear of each kernel before it is compiled, which takes about a second.
    pub fn telling(self, tell: fn(&FixedKernel)) -> Self {
        Self { tell: Some(tell), ..self }
    }

    /// What choices are good for: the kind of GPU, the driver, the kernels.
    pub fn identity(device: &DeviceDetails) -> String {
        let DeviceDetails { name, driver, .. } = device;
        format!("{name}, {}, driver {driver}, kernels {}", device.architecture(), &SOURCES_HASH[..16])
    }

    /// What is known by now.
    pub fn choices(&self) -> Choices {
        let state = self.locked();
        Choices { products: state.products.clone(), fixed: state.wanted.clone() }
    }

    /// Notes from here on which kernels could be compiled for the sizes that they run with.
    pub fn observe(&self) {
        self.locked().met.get_or_insert_default();
    }

    /// What was noted since [`observe`](Self::observe).
    pub fn met(&self) -> Vec<FixedKernel> {
        self.locked().met.iter().flatten().cloned().collect()
    }

    /// Has a kernel ready for the GPU that was opened last: from the cache, or compiled.
    ///
    /// # Errors
    /// There is no compiler, or it refuses; or no GPU was opened.
    pub fn compile(&self, kernel: &FixedKernel) -> Result<(), CompileError> {
        let Some(target) = self.locked().target.clone() else { return Err(CompileError::NoDevice) };
        let key = target.key(kernel);
        let id = (kernel.clone(), target.architecture);
        if self.locked().images.contains_key(&id) {
            return Ok(());
        }
        let kept = self.cache.as_ref().and_then(|cache| cache.get(&key));
        let image = match kept {
            Some(image) => image,
            None => {
                compiler()?;
                if let Some(tell) = self.tell {
                    tell(kernel);
                }
                let image = kernel.compile(&id.1)?;
                // A folder that cannot be written to costs the next process the same second, and this one nothing.
                let _ = self.cache.as_ref().map(|cache| cache.put(&key, &image));
                image
            }
        };
        self.locked().images.insert(id, image.into());
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Has launches run these kernels from the next step on, as far as they are compiled, and no others for fixed sizes.
    pub fn want(&self, kernels: Vec<FixedKernel>) {
        self.locked().wanted = kernels;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Why a kernel that is wanted could not be compiled when a GPU was opened.
    pub fn trouble(&self) -> Option<CompileError> {
        self.locked().trouble.clone()
    }

    /// Makes ready what is wanted for a GPU that is opened. Where that cannot be, kernels that were compiled ahead do the same.
    pub(crate) fn open(&self, device: &DeviceDetails) {
        let wanted = {
            let mut state = self.locked();
            state.target = Some(Target { architecture: device.architecture(), driver: device.driver });
            state.wanted.clone()
        };
        for kernel in wanted {
            if let Err(e) = self.compile(&kernel) {
                self.locked().trouble = Some(e);
            }
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What is wanted and compiled for an architecture.
    pub(crate) fn images(&self, architecture: &str) -> Vec<(FixedKernel, Arc<[u8]>)> {
        let state = self.locked();
        let image = |kernel: &FixedKernel| {
            let image = state.images.get(&(kernel.clone(), architecture.to_owned()))?;
            Some((kernel.clone(), Arc::clone(image)))
        };
        state.wanted.iter().filter_map(image).collect()
    }

    #[cfg(test)]
    pub(crate) fn key(&self, kernel: &FixedKernel) -> String {
        self.locked().target.as_ref().expect("a GPU was opened").key(kernel)
    }

    pub(crate) fn observes(&self) -> bool {
        self.locked().met.is_some()
    }

    pub(crate) fn note(&self, kernels: Vec<FixedKernel>) {
        if let Some(met) = &mut self.locked().met {
            met.extend(kernels);
        }
    }

    /// The name of the best kernel, as far as it is known.
    pub(crate) fn best(&self, shape: &ProductShape) -> Option<String> {
        self.locked().products.get(shape).cloned()
    }

    pub(crate) fn set_best(&self, shape: ProductShape, name: &str) {
        self.locked().products.insert(shape, name.to_owned());
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
