//! One model on several GPUs, each of which has some of the rows of every matrix.
//!
//! Every element of a product is computed by one device, as one device alone would compute it, and copied to the others: the bits are
//! those of one device. What needs whole rows of activations (norms, sums, quantization) every device does for itself.

mod backend;
mod cut;
mod exchange;
mod head;

use crate::backend::{CudaBackend, CudaVector};
use crate::kv::CudaKv;
use crate::tensor::CudaTensor;
use crate::weight::CudaWeight;
use bitnet_core::{BackendError, KvSpec};
use cut::Cut;
use std::sync::Arc;

/// Several GPUs that share the rows of matrices, and the heads of attention with their part of the cache.
///
/// One GPU may be there twice; it is then two with half the memory each.
pub struct CudaRows {
    devices: Vec<CudaBackend>,
    /// In which proportion they share rows and heads.
    shares: Vec<f64>,
}

/// Activations `[rows, cols]`: whole on every device, or each has its columns.
#[derive(Default)]
pub struct CudaRowsTensor {
    /// The whole of it, on each device.
    whole: Vec<CudaTensor>,
    /// What each device makes of it.
    pieces: Vec<CudaTensor>,
    /// As long as it is not whole, which columns these are.
    cut: Option<Arc<Cut>>,
    /// Rows of the pieces.
    rows: usize,
}

impl CudaRowsTensor {
    /// Its rows, whole or not.
    fn rows(&self) -> usize {
        match self.cut {
            Some(_) => self.rows,
            None => self.whole.first().map_or(0, |whole| whole.rows),
        }
    }

    /// The tensor of each device; only attention knows what to do with pieces.
    fn whole(&self) -> &[CudaTensor] {
        assert!(self.cut.is_none(), "stacked q, k and v are for attention alone");
        &self.whole
    }
}

/// A norm's weight, on each device.
pub struct CudaRowsVector(Vec<CudaVector>);

/// Matrices stacked by rows, of which each device has some.
pub struct CudaRowsWeight {
    rows: usize,
    cols: usize,
    /// Of each device; `None`, where it has no rows.
    parts: Vec<Option<CudaWeight>>,
    /// Which rows these are; `None`, each device has all.
    cut: Option<Arc<Cut>>,
    /// Whether each device keeps what it makes of products with it.
    kept: bool,
}

/// The heads of a cache.
pub struct CudaRowsKv {
    spec: KvSpec,
    /// Of each device; `None`, where it has no heads.
    parts: Vec<Option<CudaKv>>,
    /// How columns of stacked q, k and v, and of what attention gives, go with the heads.
    stacked: Arc<Cut>,
    attended: Arc<Cut>,
}

impl CudaRows {
    /// Puts GPUs side by side that share rows in these proportions, a positive number for each.
    ///
    /// # Errors
    /// One of them fails.
    ///
    /// # Panics
    /// There are none, or there are not as many shares.
    pub fn new(mut devices: Vec<CudaBackend>, shares: Vec<f64>) -> Result<Self, BackendError> {
        assert!(!devices.is_empty() && devices.len() == shares.len(), "each of several devices has a share");
        let failure = Arc::clone(devices[0].gpu.failure());
        for device in &mut devices {
            device.gpu.fail_with(&failure);
        }
        for (at, device) in devices.iter().enumerate() {
            for (_, other) in devices.iter().enumerate().filter(|(other, _)| *other != at) {
                let reached = device.gpu.driver.reach(&other.gpu.driver);
                reached.map_err(|e| device.gpu.error(e, 0, "a way to another GPU"))?;
            }
        }
        Ok(Self { devices, shares })
    }

    /// The GPUs.
    pub fn devices(&self) -> &[CudaBackend] {
        &self.devices
    }

    /// A tensor's tensors, one a device.
    fn each<'a>(&self, tensors: &'a mut Vec<CudaTensor>) -> &'a mut [CudaTensor] {
        tensors.resize_with(self.devices.len(), CudaTensor::default);
        tensors
    }

    /// Begins a step of so many tokens on all devices.
    fn begin(&self, tokens: usize) -> Result<(), BackendError> {
        for device in &self.devices[1..] {
            device.gpu.begin(tokens);
        }
        // Asks last, when what is left of a step that failed has been dropped everywhere.
        self.devices[0].begin(tokens).map(drop)
    }

    /// Passes an outcome on; behind an error, nothing of the step is left on any device.
    fn told<T>(&self, outcome: Result<T, BackendError>) -> Result<T, BackendError> {
        if outcome.is_err() {
            // Memory goes back where all have stopped, since they read each other's.
            for device in &self.devices {
                let _ = device.gpu.driver.synchronize();
            }
            self.devices.iter().for_each(|device| device.gpu.abandon());
        }
        outcome
    }

    /// Waits for all devices; what went wrong on any of them is the error.
    fn wait(&self) -> Result<(), BackendError> {
        self.devices.iter().try_for_each(|device| device.gpu.read(&[], |_| ()))
    }
}
