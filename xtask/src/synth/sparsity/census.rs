//! What a forward pass really finds: a backend that counts.

use super::Sparsity;
use bitnet_core::{
    Activation, ActivationPrecision, Backend, BackendError, KvSpan, KvSpec, Logits, LogitsNeed, Matrix,
    OperationTime, Purpose, RopeRows,
};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_memory::Pool;
use bitnet_model::{Decoder, LoadOptions, ModelConfig, Rows, StepOutput, load};
use bitnet_quant::spec;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Tokens of the forward pass.
const TOKENS: u32 = 64;

/// Runs a model over some tokens and counts.
pub(in crate::synth) fn measure(path: &Path) -> crate::synth::Result<Sparsity> {
    let checkpoint = bitnet_formats::open(path)?;
    let backend = Arc::new(Census {
        inner: CpuBackend::new(CpuOptions::default())?,
        ffn: ModelConfig::read(&checkpoint)?.ffn,
        gated: Mutex::default(),
        gates: Share::default(),
        zeros: Share::default(),
    });
    let options = LoadOptions { context: Some(TOKENS as usize), ..LoadOptions::default() };
    let mut model = load(backend.clone(), &checkpoint, &options, &mut |_, _| {})?;
    let ids: Vec<u32> = (0..TOKENS).map(|i| i * 37 % 256).collect();
    model.step(&ids, &mut StepOutput { rows: Rows::None, ..StepOutput::default() })?;
    Ok(Sparsity { gates: backend.gates.get(), zeros: backend.zeros.get() })
}

/// Of how many numbers how many are counted.
#[derive(Default)]
struct Share {
    counted: AtomicU64,
    all: AtomicU64,
}

impl Share {
    fn add<T>(&self, items: &[T], counts: impl Fn(&T) -> bool) {
        self.counted.fetch_add(items.iter().filter(|item| counts(item)).count() as u64, Relaxed);
        self.all.fetch_add(items.len() as u64, Relaxed);
    }

    fn get(&self) -> f64 {
        self.counted.load(Relaxed) as f64 / self.all.load(Relaxed) as f64
    }
}

/// The CPU backend, watched: the product behind a gate is `down`.
struct Census {
    inner: CpuBackend,
    ffn: usize,
    /// The width of what the next product takes, if that is what a gate gave.
    gated: Mutex<Option<usize>>,
    gates: Share,
    zeros: Share,
}

impl Census {
    fn values(&self, x: &<CpuBackend as Backend>::Tensor) -> Vec<f32> {
        let mut values = Vec::new();
        self.inner.download(x, &mut values).expect("the CPU has its tensors at hand");
        values
    }
}

impl Backend for Census {
    type Tensor = <CpuBackend as Backend>::Tensor;
    type Vector = <CpuBackend as Backend>::Vector;
    type Weight = <CpuBackend as Backend>::Weight;
    type Kv = <CpuBackend as Backend>::Kv;

    fn profile(&self) -> Result<Vec<OperationTime>, BackendError> {
        self.inner.profile()
    }

    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, out: &mut Self::Tensor) {
        let cols = std::mem::take(&mut *self.gated.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(cols) = cols {
            let host = self.values(x);
            let mut quantized = vec![0; cols];
            for row in host.chunks_exact(cols) {
                spec::quantize_row(row, &mut quantized);
                self.zeros.add(&quantized, |q| *q == 0);
            }
        }
        self.inner.linear(x, w, out);
    }

    fn gate(&self, gate_up: &Self::Tensor, act: Activation, out: &mut Self::Tensor) {
        let host = self.values(gate_up);
        for row in host.chunks_exact(2 * self.ffn) {
            self.gates.add(&row[..self.ffn], |gate| *gate <= 0.0);
        }
        *self.gated.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.ffn);
        self.inner.gate(gate_up, act, out);
    }

    fn memory(&self) -> &Arc<Pool> {
        self.inner.memory()
    }
    fn upload(&self, values: &[f32], cols: usize, out: &mut Self::Tensor) -> Result<(), BackendError> {
        self.inner.upload(values, cols, out)
    }
    fn tensor(&self) -> Self::Tensor {
        self.inner.tensor()
    }
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, BackendError> {
        self.inner.vector(values)
    }
    fn prepare(
        &self,
        stacked: &[Matrix],
        act: ActivationPrecision,
        purpose: Purpose,
    ) -> Result<Self::Weight, BackendError> {
        self.inner.prepare(stacked, act, purpose)
    }
    fn weight_bytes(&self, w: &Self::Weight) -> (usize, usize) {
        self.inner.weight_bytes(w)
    }
    fn kv(&self, spec: KvSpec) -> Result<Self::Kv, BackendError> {
        self.inner.kv(spec)
    }
    fn copy_block(&self, kv: &mut Self::Kv, from: u32, to: u32) {
        self.inner.copy_block(kv, from, to);
    }
    fn block_bytes(&self, kv: &Self::Kv) -> usize {
        self.inner.block_bytes(kv)
    }
    fn save_block(&self, kv: &Self::Kv, block: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        self.inner.save_block(kv, block, out)
    }
    fn load_block(&self, kv: &mut Self::Kv, block: u32, bytes: &[u8]) {
        self.inner.load_block(kv, block, bytes);
    }
    fn embed(&self, w: &Self::Weight, ids: &[u32], out: &mut Self::Tensor) -> Result<(), BackendError> {
        self.inner.embed(w, ids, out)
    }
    fn rms_norm(&self, x: &Self::Tensor, w: &Self::Vector, eps: f32, out: &mut Self::Tensor) {
        self.inner.rms_norm(x, w, eps, out);
    }
    fn rms_norm_heads(
        &self,
        x: &mut Self::Tensor,
        first: usize,
        count: usize,
        head_dim: usize,
        w: &Self::Vector,
        eps: f32,
    ) {
        self.inner.rms_norm_heads(x, first, count, head_dim, w, eps);
    }
    fn add_low_rank(
        &self,
        x: &Self::Tensor,
        rows: Range<usize>,
        ab: (&Self::Weight, &Self::Weight),
        scale: f32,
        y: &mut Self::Tensor,
        first: usize,
    ) {
        self.inner.add_low_rank(x, rows, ab, scale, y, first);
    }
    fn rope_append(
        &self,
        qkv: &mut Self::Tensor,
        rope: RopeRows<'_>,
        kv: &mut Self::Kv,
        layer: usize,
        spans: &[KvSpan<'_>],
    ) -> Result<(), BackendError> {
        self.inner.rope_append(qkv, rope, kv, layer, spans)
    }
    fn attend(
        &self,
        qkv: &Self::Tensor,
        kv: &Self::Kv,
        layer: usize,
        spans: &[KvSpan<'_>],
        window: Option<usize>,
        out: &mut Self::Tensor,
    ) {
        self.inner.attend(qkv, kv, layer, spans, window, out);
    }
    fn join(&self, parts: &[Self::Tensor], out: &mut Self::Tensor) {
        self.inner.join(parts, out);
    }
    fn scale(&self, x: &mut Self::Tensor, factor: f32) {
        self.inner.scale(x, factor);
    }
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) {
        self.inner.add(x, y);
    }
    fn head(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        needs: &[LogitsNeed],
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        self.inner.head(x, w, needs, out)
    }
    fn keep_rows(&self, x: &mut Self::Tensor, rows: &[usize]) {
        self.inner.keep_rows(x, rows);
    }
    fn download(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<(), BackendError> {
        self.inner.download(x, out)
    }
}
