//! Training on an adapter: [`TrainingDevice`] in WGSL.

mod attention;
mod elementwise;
mod product;
mod recording;
mod rows;
mod shader;

use crate::adapter::{AdapterDetails, WgpuError};
use crate::gpu::{Gpu, locked};
use bitnet_core::{
    Activation, AdamStep, At, AttentionShape, BackendError, ColumnsOf, DeviceNorm, Memory, Product,
    Sequences, SgdStep, Terms, TrainingDevice,
};
use bitnet_memory::{Config, Profile, Snapshot, Tag};
use elementwise::Mix;
use recording::Recording;
use std::fmt;
use std::sync::Mutex;

pub(crate) use shader::Shader;

/// An adapter that trains.
///
/// Memory that is given back is kept for the next who asks. Memory may be larger than what a shader sees at once; an operand of an operation may not,
/// but where elements or rows can be taken one after the other, and there it is.
pub struct WgpuTraining {
    gpu: Gpu,
    /// Dispatches that are recorded. It is held as long as an operation is recorded.
    work: Mutex<usize>,
}

impl WgpuTraining {
    /// Opens the adapter of this number, counted as [`crate::adapters`] has them.
    ///
    /// # Errors
    /// There is none, or its driver refuses.
    pub fn new(number: usize) -> Result<Self, WgpuError> {
        Self::with(number, Profile::Training.into())
    }

    fn with(number: usize, config: Config) -> Result<Self, WgpuError> {
        Ok(Self { gpu: Gpu::open(number, config)?, work: Mutex::default() })
    }

    /// What was counted of the adapter's memory: all buffers that shaders see are pieces of one pool.
    pub fn device_memory(&self) -> Snapshot {
        self.gpu.memory().snapshot()
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &AdapterDetails {
        self.gpu.details()
    }

    /// Records an operation; what is wrong with it is kept.
    fn record(&self, operation: impl FnOnce(&mut Recording<'_>) -> Result<(), BackendError>) {
        let mut work = locked(&self.work);
        if self.gpu.has_failed() {
            return;
        }
        let mut recording = Recording { gpu: &self.gpu, work: &mut work };
        match operation(&mut recording) {
            Ok(()) => recording.send_when_much(),
            Err(e) => self.gpu.fail(e),
        }
    }
}

impl fmt::Debug for WgpuTraining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgpuTraining({}, {})", self.gpu.name(), self.adapter().name)
    }
}

impl TrainingDevice for WgpuTraining {
    fn name(&self) -> &str {
        self.gpu.name()
    }

    fn memory(&self, bytes: usize, tag: Tag) -> Result<Memory, BackendError> {
        // A word more, so that there is one even where it ends.
        let held = self.gpu.large(tag, bytes.saturating_add(4), "training").map_err(|e| match e {
            BackendError::OutOfMemory { what, .. } => BackendError::OutOfMemory { bytes, what },
            e => e,
        })?;
        Ok(Memory::new(bytes, held))
    }

    fn upload(&self, memory: &Memory, from: usize, bytes: &[u8]) {
        self.record(|r| {
            let to = r.buffer(memory, from, bytes.len())?;
            r.gpu.write(to, from, bytes)
        });
    }

    fn download(&self, memory: &Memory, from: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        let mut work = locked(&self.work);
        let r = Recording { gpu: &self.gpu, work: &mut work };
        let source = r.buffer(memory, from, bytes.len())?;
        let mut at = 0;
        r.gpu.read(&[(source, from, bytes.len())], |read| {
            bytes[at..][..read.len()].copy_from_slice(read);
            at += read.len();
        })?;
        *work = 0;
        Ok(())
    }

    fn failure(&self) -> Option<BackendError> {
        self.gpu.check().err()
    }

    fn product(&self, product: &Product<'_>) {
        self.record(|r| product::product(r, product));
    }

    fn mix(&self, x: At<'_>, a: f32, y: At<'_>, b: f32, to: At<'_>, len: usize) {
        self.record(|r| elementwise::mix(r, &Mix { x, a, y, b, to }, len));
    }

    fn fill(&self, to: At<'_>, len: usize, value: f32) {
        self.record(|r| elementwise::fill(r, to, len, value));
    }

    fn columns(&self, from: ColumnsOf<'_>, to: ColumnsOf<'_>, rows: usize, count: usize) {
        self.record(|r| elementwise::columns(r, from, to, rows, count));
    }

    fn gather(&self, table: At<'_>, ids: &[u32], n: usize, to: At<'_>) {
        self.record(|r| elementwise::gather(r, table, ids, n, to));
    }

    fn scatter(&self, from: At<'_>, ids: &[u32], n: usize, table: At<'_>) {
        self.record(|r| elementwise::scatter(r, from, ids, n, table));
    }

    fn norm(&self, norm: DeviceNorm<'_>, y: At<'_>) {
        self.record(|r| rows::norm(r, norm, y));
    }

    fn norm_backward(&self, norm: DeviceNorm<'_>, dy: At<'_>, add: bool, dx: At<'_>, dw: Option<At<'_>>) {
        self.record(|r| rows::norm_backward(r, norm, dy, add, dx, dw));
    }

    fn quantize(&self, x: At<'_>, sizes: (usize, usize), codes: At<'_>, stride: usize, d: At<'_>) {
        self.record(|r| rows::quantize(r, x, sizes, codes, stride, d));
    }

    fn absmean(&self, masters: At<'_>, sizes: (usize, usize), codes: At<'_>, stride: usize, scale: At<'_>) {
        self.record(|r| rows::absmean(r, masters, sizes, codes, stride, scale));
    }

    fn rotate(
        &self,
        qkv: At<'_>,
        shape: AttentionShape,
        positions: &[u32],
        cos: At<'_>,
        sin: At<'_>,
        back: bool,
    ) {
        self.record(|r| elementwise::rotate(r, qkv, shape, positions, (cos, sin), back));
    }

    fn attend(&self, sequences: Sequences<'_>, out: At<'_>, sums: At<'_>) {
        self.record(|r| attention::attend(r, &sequences, out, sums));
    }

    fn attend_backward(
        &self,
        sequences: Sequences<'_>,
        gave: (At<'_>, At<'_>),
        dout: At<'_>,
        terms: Terms,
        dqkv: At<'_>,
    ) {
        self.record(|r| attention::attend_backward(r, &sequences, gave, dout, terms, dqkv));
    }

    fn gate(&self, gate_up: At<'_>, sizes: (usize, usize), act: Activation, out: At<'_>) {
        self.record(|r| elementwise::gate(r, gate_up, sizes, act, out));
    }

    fn gate_backward(
        &self,
        gate_up: At<'_>,
        dout: At<'_>,
        sizes: (usize, usize),
        act: Activation,
        out: At<'_>,
    ) {
        self.record(|r| elementwise::gate_backward(r, (gate_up, dout), sizes, act, out));
    }

    fn cross_entropy(&self, logits: At<'_>, vocab: usize, targets: &[u32], weights: &[f32], parts: At<'_>) {
        self.record(|r| rows::cross_entropy(r, logits, vocab, targets, weights, parts));
    }

    fn length(&self, x: At<'_>, len: usize) -> Result<f64, BackendError> {
        let mut work = locked(&self.work);
        let mut r = Recording { gpu: &self.gpu, work: &mut work };
        let length = rows::length(&mut r, x, len)?;
        *work = 0;
        Ok(length)
    }

    fn adam(&self, step: &AdamStep<'_>) {
        self.record(|r| elementwise::adam(r, step));
    }

    fn sgd(&self, step: &SgdStep<'_>) {
        self.record(|r| elementwise::sgd(r, step));
    }
}

#[cfg(test)]
mod tests;
