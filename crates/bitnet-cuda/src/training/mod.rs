//! The operations of training on a GPU.

mod attention;
mod product;
mod rows;
#[allow(unsafe_code, reason = "answers for the parameters of kernels")]
mod stream;

use crate::error::CudaError;
use bitnet_core::{
    Activation, AdamStep, At, AttentionShape, BackendError, ColumnsOf, DeviceNorm, Memory, Product,
    Sequences, SgdStep, Terms, TrainingDevice,
};
use bitnet_memory::Tag;
use std::fmt;
use stream::{Stream, bits};

/// An NVIDIA GPU that trains.
///
/// Operations are launches on one stream, in the order in which they are asked for; nothing waits but [`TrainingDevice::download`] and
/// [`TrainingDevice::length`]. Memory that is given back is kept for who asks next: with one stream it may be used again at once.
///
/// What is computed is the processor's, `==`: products with [`Terms::F32`] and products of integers, attention and its way back with
/// [`Terms::F32`], norms, quantization, gates, the loss, the optimizers' steps, lengths; rows of one id are added in their order.
/// With [`Terms::Bf16`] terms are rounded as the processor rounds them, and sums are near: products and the way back through attention are made by
/// tensor cores, whose order is the hardware's. Every result is the same each time.
///
/// Sums of integers have room for 131,071 terms of int8, or 2^23 of int8 by trits.
pub struct CudaTraining {
    stream: Stream,
}

impl CudaTraining {
    /// The GPU of this number, counted as [`crate::devices`] has them.
    ///
    /// # Errors
    /// There is no driver, or no such GPU, or one that the kernels are not for.
    pub fn new(number: usize) -> Result<Self, CudaError> {
        Ok(Self { stream: Stream::open(number)? })
    }
}

impl fmt::Debug for CudaTraining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaTraining({})", self.stream.name())
    }
}

/// Kernels know activations by number (`gated` in `kernels/device.cuh`).
fn number(act: Activation) -> u64 {
    match act {
        Activation::Relu2 => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
    }
}

/// Little-endian bytes of words.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The last row that ids name, and one more.
fn rows_of(ids: &[u32]) -> usize {
    ids.iter().max().map_or(0, |id| *id as usize + 1)
}

impl TrainingDevice for CudaTraining {
    fn name(&self) -> &str {
        self.stream.name()
    }

    fn memory(&self, bytes: usize, tag: Tag) -> Result<Memory, BackendError> {
        Ok(Memory::new(bytes, self.stream.take(bytes, tag, "training")?))
    }

    fn upload(&self, memory: &Memory, from: usize, bytes: &[u8]) {
        self.stream.upload(memory, from, bytes);
    }

    fn download(&self, memory: &Memory, from: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        self.stream.download(memory, from, bytes)
    }

    fn failure(&self) -> Option<BackendError> {
        self.stream.failure()
    }

    fn product(&self, product: &Product<'_>) {
        product::product(&self.stream, product);
    }

    fn mix(&self, x: At<'_>, a: f32, y: At<'_>, b: f32, to: At<'_>, len: usize) {
        let s = &self.stream;
        let params = [s.floats(to, len), s.floats(x, len), bits(a), s.floats(y, len), bits(b), len as u64];
        s.run_elements(s.kernels.train_mix, len, &params);
    }

    fn fill(&self, to: At<'_>, len: usize, value: f32) {
        let s = &self.stream;
        s.run_elements(s.kernels.train_fill, len, &[s.floats(to, len), bits(value), len as u64]);
    }

    fn columns(&self, from: ColumnsOf<'_>, to: ColumnsOf<'_>, rows: usize, count: usize) {
        let (s, n) = (&self.stream, rows * count);
        if n == 0 {
            return;
        }
        let at = |of: ColumnsOf<'_>| s.floats(of.at.skip(of.first), (rows - 1) * of.stride + count);
        let params = [at(to), to.stride as u64, at(from), from.stride as u64, count as u64, n as u64];
        s.run_elements(s.kernels.train_columns, n, &params);
    }

    fn gather(&self, table: At<'_>, ids: &[u32], n: usize, to: At<'_>) {
        let (s, all) = (&self.stream, ids.len() * n);
        let (table, to) = (s.floats(table, rows_of(ids) * n), s.floats(to, all));
        let Some(given) = s.given(&words(ids)) else { return };
        let params = [to, table, given.address(), n as u64, all as u64];
        s.run_elements(s.kernels.train_gather, all, &params);
    }

    fn scatter(&self, from: At<'_>, ids: &[u32], n: usize, table: At<'_>) {
        let s = &self.stream;
        let (from, table) = (s.floats(from, ids.len() * n), s.floats(table, rows_of(ids) * n));
        // Tokens by id, those of one id in their order.
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|i| ids[*i as usize]);
        let (mut different, mut ends) = (Vec::new(), Vec::new());
        for group in order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]) {
            different.push(ids[group[0] as usize]);
            ends.push(ends.last().map_or(0, |end| *end) + group.len() as u32);
        }
        let count = different.len();
        let Some(given) = s.given(&words(&[different, ends, order].concat())) else { return };
        let at = |words: usize| given.address() + 4 * words as u64;
        let params = [table, from, at(0), at(count), at(2 * count), n as u64];
        s.run(s.kernels.train_scatter, [count, n.div_ceil(256), 1], 256, 0, &params);
    }

    fn norm(&self, norm: DeviceNorm<'_>, y: At<'_>) {
        rows::norm(&self.stream, norm, y);
    }

    fn norm_backward(&self, norm: DeviceNorm<'_>, dy: At<'_>, add: bool, dx: At<'_>, dw: Option<At<'_>>) {
        rows::norm_backward(&self.stream, norm, dy, add, dx, dw);
    }

    fn quantize(&self, x: At<'_>, sizes: (usize, usize), codes: At<'_>, stride: usize, d: At<'_>) {
        rows::quantize(&self.stream, x, sizes, codes, stride, d);
    }

    fn absmean(&self, masters: At<'_>, sizes: (usize, usize), codes: At<'_>, stride: usize, scale: At<'_>) {
        rows::absmean(&self.stream, masters, sizes, codes, stride, scale);
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
        let (s, half, heads) = (&self.stream, shape.head_dim / 2, shape.heads + shape.kv_heads);
        let n = positions.len() * heads * half;
        let angles = rows_of(positions) * half;
        let qkv = s.floats(qkv, positions.len() * shape.qkv_cols());
        let (cos, sin) = (s.floats(cos, angles), s.floats(sin, angles));
        let Some(given) = s.given(&words(positions)) else { return };
        let shape = [heads, half, shape.qkv_cols(), usize::from(back), n].map(|n| n as u64);
        let params = [&[qkv, given.address(), cos, sin], &shape[..]].concat();
        s.run_elements(s.kernels.train_rotate, n, &params);
    }

    fn attend(&self, sequences: Sequences<'_>, out: At<'_>, sums: At<'_>) {
        attention::attend(&self.stream, sequences, out, sums);
    }

    fn attend_backward(
        &self,
        sequences: Sequences<'_>,
        gave: (At<'_>, At<'_>),
        dout: At<'_>,
        terms: Terms,
        dqkv: At<'_>,
    ) {
        attention::attend_backward(&self.stream, sequences, gave, dout, terms, dqkv);
    }

    fn gate(&self, gate_up: At<'_>, (m, n): (usize, usize), act: Activation, out: At<'_>) {
        let (s, all) = (&self.stream, m * n);
        let params = [s.floats(out, all), s.floats(gate_up, 2 * all), n as u64, number(act), all as u64];
        s.run_elements(s.kernels.train_gate, all, &params);
    }

    fn gate_backward(
        &self,
        gate_up: At<'_>,
        dout: At<'_>,
        (m, n): (usize, usize),
        act: Activation,
        out: At<'_>,
    ) {
        let (s, all) = (&self.stream, m * n);
        let (x, dout, dx) = (s.floats(gate_up, 2 * all), s.floats(dout, all), s.floats(out, 2 * all));
        let params = [dx, x, dout, n as u64, number(act), all as u64];
        s.run_elements(s.kernels.train_gate_back, all, &params);
    }

    fn cross_entropy(&self, logits: At<'_>, vocab: usize, targets: &[u32], weights: &[f32], parts: At<'_>) {
        rows::cross_entropy(&self.stream, logits, vocab, targets, weights, parts);
    }

    fn length(&self, x: At<'_>, len: usize) -> Result<f64, BackendError> {
        rows::length(&self.stream, x, len)
    }

    fn adam(&self, step: &AdamStep<'_>) {
        let AdamStep { p, gradient, m, v, len, .. } = *step;
        let s = &self.stream;
        let [p, gradient, m, v] = [p, gradient, m, v].map(|at| s.floats(at, len));
        let numbers = [
            step.scale,
            step.pull,
            step.keep,
            step.step,
            step.root,
            step.first.0,
            step.first.1,
            step.second.0,
            step.second.1,
            step.eps,
        ];
        let params = [&[p, gradient, m, v, len as u64], &numbers.map(bits)[..]].concat();
        s.run_elements(s.kernels.train_adam, len, &params);
    }

    fn sgd(&self, step: &SgdStep<'_>) {
        let SgdStep { p, gradient, buffer, len, scale, momentum, keep, rate, nesterov } = *step;
        let s = &self.stream;
        let [p, gradient, buffer] = [p, gradient, buffer].map(|at| s.floats(at, len));
        let numbers = [scale, momentum, keep, rate].map(bits);
        let params = [&[p, gradient, buffer, len as u64], &numbers[..], &[u64::from(nesterov)]].concat();
        s.run_elements(s.kernels.train_sgd, len, &params);
    }
}
