//! The `Backend` of this crate: every operation checks shapes and records kernels.

use crate::adapter::{AdapterDetails, WgpuError};
use crate::gpu::Gpu;
use crate::head::HeadScratch;
use crate::kernel::Kernel;
use crate::kv::WgpuKv;
use crate::memory::Part;
use crate::product::word;
use crate::tensor::WgpuTensor;
use crate::weight::{WgpuVector, WgpuWeight};
use bitnet_core::{
    Activation, ActivationPrecision, Backend, BackendError, KV_BLOCK, KvSpan, KvSpec, Logits, LogitsNeed,
    Matrix, OperationTime, Purpose, RopeRows,
};
use bitnet_memory::{Config, DeviceMemory, Pool, Profile, Tag};
use bitnet_quant::spec::SEGMENT;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tokens of a step; a dispatch has no more workgroups in one dimension.
const MAX_TOKENS: usize = 65_535;
/// Bytes that segments of attention may take before they are merged.
const PARTIAL_BYTES: usize = 16 << 20;

/// An adapter with its pipelines and the commands of a step.
pub struct WgpuBackend {
    pub(crate) gpu: Gpu,
    /// Memory of the host.
    pub(crate) memory: Arc<Pool>,
    scratch: Mutex<Scratch>,
}

/// Memory that operations use and leave behind for the next one.
#[derive(Default)]
struct Scratch {
    /// Int8 activations, and what turns products with them into reals.
    int8: (WgpuTensor, WgpuTensor),
    /// Segments of attention.
    partials: WgpuTensor,
    /// What low-rank matrices make of a step.
    low_rank: (WgpuTensor, WgpuTensor),
    /// What an operation makes of a tensor before it takes its place.
    next: WgpuTensor,
    head: HeadScratch,
}

impl WgpuBackend {
    /// Opens the adapter of this number, counted as [`crate::adapters`] has them.
    ///
    /// # Errors
    /// There is none, or its driver refuses.
    pub fn new(number: usize) -> Result<Self, WgpuError> {
        Self::with(number, Profile::Inference.into())
    }

    fn with(number: usize, config: Config) -> Result<Self, WgpuError> {
        let memory = Arc::new(Pool::new(Profile::Inference));
        Ok(Self { gpu: Gpu::open(number, config)?, memory, scratch: Mutex::default() })
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &AdapterDetails {
        self.gpu.details()
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a step of so many tokens: what one before it left recorded is sent off, and what went wrong there, of which nobody has
    /// asked since, is given.
    fn begin(&self, tokens: usize) -> Result<usize, BackendError> {
        self.gpu.submit();
        self.gpu.check()?;
        if tokens > MAX_TOKENS {
            return Err(BackendError::Unsupported {
                backend: "wgpu",
                what: format!("a step of {tokens} tokens; {MAX_TOKENS} are the most"),
                hint: "a smaller --batch-size would do",
            });
        }
        Ok(tokens)
    }

    /// Records an operation on `n` single elements.
    fn elementwise(&self, kernel: Kernel, parts: &[Part<'_>], params: [usize; 5], factor: f32) {
        let n = params[0];
        let params: Vec<u32> = params.into_iter().map(word).chain([factor.to_bits()]).collect();
        // Threads take elements in strides: what no dispatch has room for, it does in rounds.
        self.gpu.run(kernel, parts, &params, [n.div_ceil(64).min(MAX_TOKENS), 1, 1]);
    }
}

/// For each token its position and where the blocks of its sequence begin; behind that, the blocks.
fn describe(spans: &[KvSpan<'_>]) -> Vec<u8> {
    let m: usize = spans.iter().map(|s| s.len).sum();
    let (mut tokens, mut tables) = (Vec::with_capacity(2 * m), Vec::new());
    for span in spans {
        let table = word(2 * m + tables.len());
        tokens.extend((span.start..span.end()).flat_map(|position| [word(position), table]));
        tables.extend_from_slice(&span.blocks[..span.end().div_ceil(KV_BLOCK)]);
    }
    tokens.extend(tables);
    bytes_of(&tokens)
}

pub(crate) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn bytes_of_floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Fills the beginning of `out`, and tells how much of it.
pub(crate) fn put_floats(out: &mut [f32], bytes: &[u8]) -> usize {
    let floats = bytes.as_chunks::<4>().0;
    out.iter_mut().zip(floats).for_each(|(out, b)| *out = f32::from_le_bytes(*b));
    floats.len()
}

fn extend_floats(out: &mut Vec<f32>, bytes: &[u8]) {
    out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
}

impl Backend for WgpuBackend {
    type Tensor = WgpuTensor;
    type Vector = WgpuVector;
    type Weight = WgpuWeight;
    type Kv = WgpuKv;

    fn memory(&self) -> &Arc<Pool> {
        &self.memory
    }

    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>> {
        vec![self.gpu.memory().clone()]
    }

    fn profile(&self) -> Result<Vec<OperationTime>, BackendError> {
        self.gpu.profile()
    }

    fn tensor(&self) -> WgpuTensor {
        WgpuTensor::default()
    }

    fn vector(&self, values: &[f32]) -> Result<WgpuVector, BackendError> {
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(BackendError::NotFinite { value: *value });
        }
        let data = self.gpu.storage(Tag::Weights, 4 * values.len(), "a norm")?;
        self.gpu.write(&data, 0, &bytes_of_floats(values))?;
        Ok(WgpuVector { data, len: values.len() })
    }

    fn prepare(
        &self,
        stacked: &[Matrix],
        act: ActivationPrecision,
        _purpose: Purpose,
    ) -> Result<WgpuWeight, BackendError> {
        WgpuWeight::new(&self.gpu, stacked, act)
    }

    fn weight_bytes(&self, w: &WgpuWeight) -> (usize, usize) {
        (w.bytes(), 0)
    }

    fn kv(&self, spec: KvSpec) -> Result<WgpuKv, BackendError> {
        WgpuKv::new(&self.gpu, spec)
    }

    fn copy_block(&self, kv: &mut WgpuKv, from: u32, to: u32) {
        // No copy has one buffer on both sides.
        let moving = match self.gpu.large(Tag::Scratch, kv.block_bytes(), "a block of the cache") {
            Ok(moving) => moving,
            Err(e) => return self.gpu.fail(e),
        };
        let mut at = 0;
        for (buffer, bytes) in kv.buffers() {
            self.gpu.copy((buffer, from as usize * bytes), (&moving, at), bytes);
            at += bytes;
        }
        at = 0;
        for (buffer, bytes) in kv.buffers() {
            self.gpu.copy((&moving, at), (buffer, to as usize * bytes), bytes);
            at += bytes;
        }
    }

    fn block_bytes(&self, kv: &WgpuKv) -> usize {
        kv.block_bytes()
    }

    fn save_block(&self, kv: &WgpuKv, block: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        let pieces: Vec<_> =
            kv.buffers().map(|(buffer, bytes)| (buffer, block as usize * bytes, bytes)).collect();
        self.gpu.read(&pieces, |bytes| out.extend_from_slice(bytes))
    }

    fn load_block(&self, kv: &mut WgpuKv, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), kv.block_bytes(), "bytes of a block");
        let mut rest = bytes;
        for (buffer, bytes) in kv.buffers() {
            let (own, behind) = rest.split_at(bytes);
            if let Err(e) = self.gpu.write(buffer, block as usize * bytes, own) {
                return self.gpu.fail(e);
            }
            rest = behind;
        }
    }

    fn embed(&self, w: &WgpuWeight, ids: &[u32], out: &mut WgpuTensor) -> Result<(), BackendError> {
        let gpu = &self.gpu;
        self.begin(ids.len())?;
        let row = |id: u32| usize::try_from(id).ok().filter(|row| *row < w.rows);
        if let Some(id) = ids.iter().find(|id| row(**id).is_none()) {
            return Err(BackendError::IdOutOfRange { id: *id, rows: w.rows });
        }
        out.shape(gpu, ids.len(), w.cols);
        self.embed_rows(w, gpu.give(&bytes_of(ids)).part(), ids.len(), out);
        Ok(())
    }

    fn rms_norm(&self, x: &WgpuTensor, w: &WgpuVector, eps: f32, out: &mut WgpuTensor) {
        assert_eq!(x.cols, w.len, "norm weight");
        let gpu = &self.gpu;
        out.shape(gpu, x.rows, x.cols);
        let params = [word(x.cols), word(x.cols), 0, eps.to_bits()];
        gpu.run(Kernel::Norm, &[w.data.all(), x.part(gpu), out.part(gpu)], &params, [x.rows, 1, 1]);
    }

    fn rms_norm_heads(
        &self,
        x: &mut WgpuTensor,
        first: usize,
        count: usize,
        head_dim: usize,
        w: &WgpuVector,
        eps: f32,
    ) {
        assert_eq!(w.len, head_dim, "norm weight");
        let params = [word(head_dim), word(x.cols), word(first * head_dim), eps.to_bits()];
        self.gpu.run(Kernel::NormHeads, &[w.data.all(), x.part(&self.gpu)], &params, [count, x.rows, 1]);
    }

    fn linear(&self, x: &WgpuTensor, w: &WgpuWeight, out: &mut WgpuTensor) {
        let Scratch { int8, .. } = &mut *self.scratch();
        self.linear_rows(x, 0..x.rows, w, int8, out);
    }

    fn add_low_rank(
        &self,
        x: &WgpuTensor,
        rows: Range<usize>,
        (a, b): (&WgpuWeight, &WgpuWeight),
        scale: f32,
        y: &mut WgpuTensor,
        first: usize,
    ) {
        assert_eq!((x.rows, x.cols, a.rows), (y.rows, a.cols, b.cols), "low-rank matrices");
        let Scratch { int8, low_rank: (inner, sum), .. } = &mut *self.scratch();
        let (m, row) = (rows.len(), rows.start);
        self.linear_rows(x, rows, a, int8, inner);
        self.linear_rows(inner, 0..m, b, int8, sum);
        let buffers = [y.part(&self.gpu), sum.part(&self.gpu)];
        self.elementwise(Kernel::AddScaled, &buffers, [sum.len(), sum.cols, y.cols, row, first], scale);
    }

    fn rope_append(
        &self,
        qkv: &mut WgpuTensor,
        rope: RopeRows<'_>,
        kv: &mut WgpuKv,
        layer: usize,
        spans: &[KvSpan<'_>],
    ) -> Result<(), BackendError> {
        let (gpu, shape) = (&self.gpu, kv.spec.shape);
        assert_eq!(qkv.cols, shape.qkv_cols(), "stacked q, k, v");
        assert_eq!(qkv.rows, spans.iter().map(|s| s.len).sum::<usize>(), "tokens of the spans");
        for span in spans {
            let (capacity, need) = (span.blocks.len() * KV_BLOCK, span.end());
            if need > capacity || span.blocks.iter().any(|b| *b as usize >= kv.spec.blocks()) {
                return Err(BackendError::CacheFull { capacity: capacity.min(kv.spec.capacity), need });
            }
        }
        let (cos, sin) = (gpu.give(&bytes_of_floats(rope.cos)), gpu.give(&bytes_of_floats(rope.sin)));
        let spans = gpu.give(&describe(spans));
        let (keys, values) = (kv.keys[layer].all(), kv.values[layer].all());
        let parts = [qkv.part(gpu), cos.part(), sin.part(), spans.part(), keys, values];
        let params = [shape.heads, shape.kv_heads, shape.head_dim].map(word);
        // A thread takes a pair of a query, or a word of the cache, which is one element at least.
        let threads = shape.heads * shape.head_dim / 2 + 2 * shape.kv_heads * shape.head_dim;
        let kernel = Kernel::RopeAppend(kv.spec.key, kv.spec.value);
        gpu.run(kernel, &parts, &params, [threads.div_ceil(64), qkv.rows, 1]);
        Ok(())
    }

    fn attend(
        &self,
        qkv: &WgpuTensor,
        kv: &WgpuKv,
        layer: usize,
        spans: &[KvSpan<'_>],
        window: Option<usize>,
        out: &mut WgpuTensor,
    ) {
        let (gpu, shape) = (&self.gpu, kv.spec.shape);
        assert_eq!(qkv.cols, shape.qkv_cols(), "stacked q, k, v");
        assert_eq!(qkv.rows, spans.iter().map(|s| s.len).sum::<usize>(), "tokens of the spans");
        out.shape(gpu, qkv.rows, shape.heads * shape.head_dim);
        let segments = spans.iter().map(|s| s.end().div_ceil(SEGMENT)).max().unwrap_or(0);
        let spans = gpu.give(&describe(spans));
        let (keys, values) = (kv.keys[layer].all(), kv.values[layer].all());
        let each = shape.heads * segments * (shape.head_dim + 2);
        let at_once = (PARTIAL_BYTES / (4 * each).max(1)).max(1);
        let mut scratch = self.scratch();
        let partials = &mut scratch.partials;
        partials.shape(gpu, at_once.min(qkv.rows), each);
        let (window, scale) = (window.map_or(u32::MAX, word), 1.0 / (shape.head_dim as f32).sqrt());
        for token in (0..qkv.rows).step_by(at_once) {
            let m = at_once.min(qkv.rows - token);
            let sizes = [shape.heads, shape.kv_heads, shape.head_dim, token, segments].map(word);
            let params: Vec<u32> = sizes.into_iter().chain([window, scale.to_bits()]).collect();
            let parts = [qkv.part(gpu), spans.part(), keys, values, partials.part(gpu)];
            let kernel = Kernel::Attend(kv.spec.key, kv.spec.value, gpu.fold());
            gpu.run(kernel, &parts, &params, [segments, shape.heads, m]);
            let params = [shape.heads, shape.head_dim, token, segments].map(word);
            gpu.run(Kernel::Merge, &[partials.part(gpu), out.part(gpu)], &params, [shape.heads, m, 1]);
        }
    }

    fn gate(&self, gate_up: &WgpuTensor, act: Activation, out: &mut WgpuTensor) {
        let gpu = &self.gpu;
        out.shape(gpu, gate_up.rows, gate_up.cols / 2);
        let params = [out.len(), out.cols].map(word);
        let groups = [out.len().div_ceil(64).min(MAX_TOKENS), 1, 1];
        gpu.run(Kernel::Gate(act), &[out.part(gpu), gate_up.part(gpu)], &params, groups);
    }

    fn join(&self, parts: &[WgpuTensor], out: &mut WgpuTensor) {
        let (m, cols) = (parts[0].rows, parts.iter().map(|p| p.cols).sum());
        assert!(parts.iter().all(|p| p.rows == m), "parts of the same rows");
        out.shape(&self.gpu, m, cols);
        let mut first = 0;
        for part in parts {
            let buffers = [out.part(&self.gpu), part.part(&self.gpu)];
            self.elementwise(Kernel::Place, &buffers, [part.len(), part.cols, cols, 0, first], 0.0);
            first += part.cols;
        }
    }

    fn scale(&self, x: &mut WgpuTensor, factor: f32) {
        self.elementwise(Kernel::Scale, &[x.part(&self.gpu)], [x.len(), 0, 0, 0, 0], factor);
    }

    fn add(&self, x: &mut WgpuTensor, y: &WgpuTensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "sum of tensors");
        let buffers = [x.part(&self.gpu), y.part(&self.gpu)];
        self.elementwise(Kernel::Add, &buffers, [x.len(), 0, 0, 0, 0], 0.0);
    }

    fn head(
        &self,
        x: &WgpuTensor,
        w: &WgpuWeight,
        needs: &[LogitsNeed],
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        assert_eq!((x.rows, x.cols), (needs.len(), w.cols), "tokens and input features");
        out.clear();
        self.logits(x, w, needs, &mut self.scratch().head, out)
    }

    fn keep_rows(&self, x: &mut WgpuTensor, rows: &[usize]) {
        // Rows that stay where they are need no copy.
        if !rows.iter().copied().eq(0..rows.len()) {
            let next = &mut self.scratch().next;
            next.shape(&self.gpu, rows.len(), x.cols);
            let numbers: Vec<u32> = rows.iter().copied().map(word).collect();
            let numbers = self.gpu.give(&bytes_of(&numbers));
            let buffers = [next.part(&self.gpu), x.part(&self.gpu), numbers.part()];
            self.elementwise(Kernel::Gather, &buffers, [next.len(), x.cols, 0, 0, 0], 0.0);
            std::mem::swap(x, next);
        }
        x.rows = rows.len();
    }

    fn upload(&self, values: &[f32], cols: usize, out: &mut WgpuTensor) -> Result<(), BackendError> {
        let rows = self.begin(values.len() / cols)?;
        out.shape(&self.gpu, rows, cols);
        self.gpu.write(out.part(&self.gpu).buffer, 0, &bytes_of_floats(values))
    }

    fn download(&self, x: &WgpuTensor, out: &mut Vec<f32>) -> Result<(), BackendError> {
        out.clear();
        let piece = (x.part(&self.gpu).buffer, 0, 4 * x.len());
        self.gpu.read(&[piece], |bytes| extend_floats(out, bytes))
    }
}

#[cfg(test)]
mod tests;
