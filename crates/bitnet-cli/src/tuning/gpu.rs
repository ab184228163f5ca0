//! The part of the file that is about NVIDIA's GPUs: which kernels are fastest for which shapes.

use super::TuningFlag;
use crate::failure::Failure;
use crate::folders;
use bitnet_inference::cuda::{self, Choices, FixedKernel, KernelCache, ProductShape};
use bitnet_inference::{Device, OpenOptions, Placement};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of machine code that are kept: some thousand kernels.
const CACHE_BYTES: u64 = 64 << 20;

/// What was found out about a kind of GPU with one driver and these kernels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuTuning {
    /// Shapes of models that were measured, and how fast they were.
    pub models: BTreeMap<String, Rates>,
    pub products: Vec<Product>,
    /// Kernels that are worth being compiled for fixed sizes.
    pub fixed: Vec<String>,
}

/// Tokens a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub prefill: f64,
    pub decode: f64,
}

/// A product of so many tokens, and its fastest kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub rows: usize,
    pub cols: usize,
    pub tokens: usize,
    pub gated: bool,
    pub kernel: String,
}

impl GpuTuning {
    /// The first text that is no kernel.
    pub fn unknown(&self) -> Option<&str> {
        self.fixed.iter().map(String::as_str).find(|text| text.parse::<FixedKernel>().is_err())
    }

    /// What a backend goes by.
    fn choices(&self) -> Choices {
        let products = self.products.iter().map(|p| {
            let Product { rows, cols, tokens, gated, ref kernel } = *p;
            (ProductShape { rows, cols, tokens, gated }, kernel.clone())
        });
        Choices {
            products: products.collect(),
            fixed: self.fixed.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }

    /// Takes over what was measured of a model. Of kernels that were `compared`, those that are chosen stay, and no others.
    fn learn(&mut self, choices: &Choices, compared: &[FixedKernel]) {
        self.products = products(choices);
        let compared: Vec<String> = compared.iter().map(FixedKernel::to_string).collect();
        self.fixed.retain(|text| !compared.contains(text));
        self.fixed.extend(choices.fixed.iter().map(FixedKernel::to_string));
        self.fixed.sort();
        self.fixed.dedup();
    }
}

/// Products and their kernels, for a file or a reader.
pub fn products(choices: &Choices) -> Vec<Product> {
    let product = |(shape, kernel): (&ProductShape, &String)| {
        let ProductShape { rows, cols, tokens, gated } = *shape;
        Product { rows, cols, tokens, gated, kernel: kernel.clone() }
    };
    choices.products.iter().map(product).collect()
}

/// What the choices for a GPU are good for; `None`, there is no such GPU.
fn identity(number: usize) -> Option<String> {
    cuda::devices().ok()?.get(number).map(cuda::Tuning::identity)
}

/// The first of NVIDIA's GPUs among these devices: they are taken to be alike, since what is only slower on another is right all the same.
pub(super) fn first(devices: &Placement) -> Option<usize> {
    devices.devices().iter().find_map(|device| match device {
        Device::Cuda(number) => Some(*number),
        _ => None,
    })
}

impl TuningFlag {
    /// What the file says of the kernels of NVIDIA's GPUs among these devices; `None`, there are none.
    pub fn kernels(&self, devices: &Placement) -> Option<Arc<cuda::Tuning>> {
        first(devices).map(|number| self.kernels_of(&self.known_gpu(number)))
    }

    /// Gives a GPU what the file says of its like; true where this shape of model was measured.
    pub(super) fn settle_gpu(&self, number: usize, options: &mut OpenOptions, shape: &str) -> bool {
        let known = self.known_gpu(number);
        options.device.kernels.get_or_insert_with(|| self.kernels_of(&known));
        known.models.contains_key(shape)
    }

    fn known_gpu(&self, number: usize) -> GpuTuning {
        identity(number).and_then(|id| self.read()?.gpus.remove(&id)).unwrap_or_default()
    }

    fn kernels_of(&self, known: &GpuTuning) -> Arc<cuda::Tuning> {
        let mut choices = known.choices();
        if self.no_fixed_kernels {
            choices.fixed.clear();
        }
        let tell = |kernel: &FixedKernel| eprintln!("compiling {kernel}, which the cache has lost");
        Arc::new(cuda::Tuning::new(choices, kernel_cache()).telling(tell))
    }

    /// Kernels of a GPU of which nothing is known yet.
    pub fn fresh_kernels(&self) -> Arc<cuda::Tuning> {
        Arc::new(cuda::Tuning::new(Choices::default(), kernel_cache()))
    }

    /// Whether kernels may be compiled for fixed sizes.
    pub fn fixes_kernels(&self) -> bool {
        !self.no_fixed_kernels
    }

    /// Adds what was measured of a shape of model on a GPU, and returns where it went.
    pub fn save_gpu(
        &self,
        number: usize,
        (shape, rates): (String, Rates),
        (choices, compared): (&Choices, &[FixedKernel]),
    ) -> Result<PathBuf, Failure> {
        let identity = identity(number)
            .ok_or_else(|| Failure::Runtime(format!("cuda:{number} went away while it was measured")))?;
        self.change(|tuning| {
            let gpu = tuning.gpus.entry(identity).or_default();
            gpu.models.insert(shape, rates);
            let mut products = gpu.choices().products;
            products.extend(choices.products.clone());
            gpu.learn(&Choices { products, fixed: choices.fixed.clone() }, compared);
        })
    }

    /// What is known of each kind of GPU.
    pub fn known_gpus(&self) -> BTreeMap<String, GpuTuning> {
        self.read().map_or_else(BTreeMap::new, |t| t.gpus)
    }
}

fn kernel_cache() -> Option<KernelCache> {
    let folder = folders::cache()?.join("kernels");
    Some(KernelCache { folder, max_bytes: CACHE_BYTES })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compared_and_lost_goes() {
        let kernel = |rows: usize| format!("gemv rows={rows} tiles=1 up=0 act=0");
        let fixed = |rows: usize| kernel(rows).parse::<FixedKernel>().unwrap();
        let mut gpu = GpuTuning { fixed: vec![kernel(1), kernel(2)], ..GpuTuning::default() };
        let shape = ProductShape { rows: 3, cols: 4, tokens: 24, gated: true };
        let choices = Choices { products: [(shape, "a kernel".to_owned())].into(), fixed: vec![fixed(3)] };
        gpu.learn(&choices, &[fixed(2), fixed(3)]);
        assert_eq!(gpu.fixed, [kernel(1), kernel(3)]);
        assert_eq!(gpu.choices().products, choices.products);
        assert_eq!(gpu.unknown(), None);
    }
}
