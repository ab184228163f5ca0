//! The `Backend` of this crate: every operation checks shapes and records kernels.

use crate::attention::{Sent, SentPlaces, SentRope, bytes_of, word};
use crate::driver::{DeviceDetails, Launch};
use crate::error::CudaError;
use crate::gpu::{Gpu, Sum, elements};
use crate::head::{Asked, HeadScratch};
use crate::kv::CudaKv;
use crate::memory::Buffer;
use crate::product::number;
use crate::tensor::{CudaTensor, Int8, int8_words};
use crate::tuning::Tuning;
use crate::weight::{CudaWeight, OneToken};
use bitnet_core::{
    Activation, ActivationPrecision, Backend, BackendError, KV_BLOCK, KvSpan, KvSpec, Logits, LogitsNeed,
    Matrix, OperationTime, Purpose, RopeRows,
};
use bitnet_memory::{DeviceMemory, Pool, Profile, Tag};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tokens of a step; a grid has no more blocks in its second dimension.
const MAX_TOKENS: usize = 65_535;
/// A GPU with its kernels and the commands of a step.
pub struct CudaBackend {
    pub(crate) gpu: Gpu,
    /// Memory of the host.
    pub(crate) memory: Arc<Pool>,
    scratch: Mutex<Scratch>,
    one_token: OneToken,
}

/// Memory that operations use and leave behind for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) int8: Int8,
    /// What was sent of the step's tokens.
    places: SentPlaces,
    rope: SentRope,
    /// Segments of attention.
    partials: CudaTensor,
    /// What low-rank matrices make of a step.
    low_rank: (CudaTensor, CudaTensor),
    /// What an operation makes of a tensor before it takes its place.
    next: CudaTensor,
    pub(crate) head: HeadScratch,
}

impl CudaBackend {
    /// Opens the GPU of this number, counted as [`crate::devices`] has them.
    ///
    /// # Errors
    /// There is no such GPU, no driver, or one that is too old.
    pub fn new(number: usize) -> Result<Self, CudaError> {
        Self::open(number, Arc::default(), OneToken::default())
    }

    /// The same, with what is known of the speed of its kernels. What is found out on the way is added.
    ///
    /// # Errors
    /// As of [`CudaBackend::new`].
    pub fn with(number: usize, tuning: Arc<Tuning>) -> Result<Self, CudaError> {
        Self::open(number, tuning, OneToken::default())
    }

    /// The same, with a choice of what products of one token read.
    ///
    /// # Errors
    /// As of [`CudaBackend::new`].
    pub fn with_layout(number: usize, one_token: OneToken) -> Result<Self, CudaError> {
        Self::open(number, Arc::default(), one_token)
    }

    fn open(number: usize, tuning: Arc<Tuning>, one_token: OneToken) -> Result<Self, CudaError> {
        Ok(Self {
            gpu: Gpu::open(number, tuning)?,
            memory: Arc::new(Pool::new(Profile::Inference)),
            scratch: Mutex::default(),
            one_token,
        })
    }

    /// Bytes of the GPU's memory that nobody uses.
    ///
    /// # Errors
    /// The GPU has failed.
    pub fn free_memory(&self) -> Result<usize, CudaError> {
        Ok(self.gpu.driver.memory()?.0)
    }

    /// The GPU in use.
    pub fn device(&self) -> &DeviceDetails {
        self.gpu.driver.details()
    }

    /// Begins a step of so many tokens, and gives what went wrong in the one before, of which nobody has asked since.
    pub(crate) fn begin(&self, tokens: usize) -> Result<usize, BackendError> {
        self.gpu.begin(tokens);
        self.gpu.check()?;
        if tokens > MAX_TOKENS {
            return Err(BackendError::Unsupported {
                backend: "cuda",
                what: format!("a step of {tokens} tokens; {MAX_TOKENS} are the most"),
                hint: "a smaller --batch-size would do",
            });
        }
        Ok(tokens)
    }

    pub(crate) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CudaBackend {
    /// Rows of tensors, wherever these are, one behind the other.
    pub(crate) fn join_all(&self, parts: &[&CudaTensor], out: &mut CudaTensor) {
        let (m, cols) = (parts[0].rows, parts.iter().map(|p| p.cols).sum());
        assert!(parts.iter().all(|p| p.rows == m), "parts of the same rows");
        out.shape(&self.gpu, m, cols);
        let mut first = 0;
        for part in parts {
            let sizes = [part.len(), part.cols, cols, first].map(|n| n as u64);
            let params: Vec<u64> = [out.address(), part.address()].into_iter().chain(sizes).collect();
            self.gpu.run(self.gpu.kernels.place, elements(part.len()), 256, 0, &params);
            first += part.cols;
        }
    }

    /// Gives a tensor the rows of these numbers, in this order.
    pub(crate) fn take_rows(&self, x: &mut CudaTensor, rows: &[usize]) {
        // Rows that stay where they are need no copy.
        if !rows.iter().copied().eq(0..rows.len()) {
            let next = &mut self.scratch().next;
            next.shape(&self.gpu, rows.len(), x.cols);
            let numbers = self.gpu.upload(&bytes_of(&rows.iter().copied().map(word).collect::<Vec<_>>()));
            let params = [next.address(), x.address(), numbers, next.len() as u64, x.cols as u64];
            self.gpu.run(self.gpu.kernels.gather, elements(next.len()), 256, 0, &params);
            std::mem::swap(x, next);
        } else if rows.len() != x.rows {
            // A sum that was put off is of all rows.
            self.gpu.settle_sum();
        }
        x.rows = rows.len();
    }
}

pub(crate) fn bytes_of_floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Fills the beginning of `out`, and tells how much of it.
pub(crate) fn put_floats(out: &mut [f32], bytes: &[u8]) -> usize {
    let floats = bytes.as_chunks::<4>().0;
    out.iter_mut().zip(floats).for_each(|(out, b)| *out = f32::from_le_bytes(*b));
    floats.len()
}

pub(crate) fn extend_floats(out: &mut Vec<f32>, bytes: &[u8]) {
    out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
}

/// Bytes that a block shares which norms a row (`kernels/norm.cu`): sixteen lanes with room for whole batches of 32 floats, and four
/// more; weights; int8.
pub(crate) fn row_bytes(cols: usize) -> usize {
    4 * 16 * (cols.div_ceil(512) * 32 + 4) + int8_words(cols) * (16 + 4)
}

impl Backend for CudaBackend {
    type Tensor = CudaTensor;
    type Vector = CudaVector;
    type Weight = CudaWeight;
    type Kv = CudaKv;

    fn memory(&self) -> &Arc<Pool> {
        &self.memory
    }

    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>> {
        vec![self.gpu.memory.clone()]
    }

    fn profile(&self) -> Result<Vec<OperationTime>, BackendError> {
        // A step is a graph whose kernels overlap: around each of them it would be another one.
        Err(BackendError::Unsupported {
            backend: "cuda",
            what: "a profile of its operations".to_owned(),
            hint: "NVIDIA's Nsight Systems, or --device wgpu:0, would do",
        })
    }

    fn tensor(&self) -> CudaTensor {
        CudaTensor::default()
    }

    fn vector(&self, values: &[f32]) -> Result<CudaVector, BackendError> {
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(BackendError::NotFinite { value: *value });
        }
        let data = self.gpu.storage_for(Tag::Weights, 4 * values.len(), "a norm")?;
        self.gpu.write(&data, 0, &bytes_of_floats(values))?;
        Ok(CudaVector { data, len: values.len() })
    }

    fn prepare(
        &self,
        stacked: &[Matrix],
        act: ActivationPrecision,
        purpose: Purpose,
    ) -> Result<CudaWeight, BackendError> {
        let w = CudaWeight::new(&self.gpu, stacked, act, purpose, self.one_token)?;
        // A row of activations must fit into what a block shares.
        let most = self.gpu.driver.max_shared().saturating_sub(1024) / 4;
        if row_bytes(w.cols) > 4 * most {
            return Err(BackendError::Unsupported {
                backend: "cuda",
                what: format!("rows of {} columns; {most} are the most", w.cols),
                hint: "--device cpu would do",
            });
        }
        Ok(w)
    }

    fn weight_bytes(&self, w: &CudaWeight) -> (usize, usize) {
        (w.bytes(), 0)
    }

    fn kv(&self, spec: KvSpec) -> Result<CudaKv, BackendError> {
        CudaKv::new(&self.gpu, spec)
    }

    fn copy_block(&self, kv: &mut CudaKv, from: u32, to: u32) {
        for (buffer, bytes) in kv.buffers() {
            self.gpu.copy((buffer, from as usize * bytes), (buffer, to as usize * bytes), bytes);
        }
    }

    fn block_bytes(&self, kv: &CudaKv) -> usize {
        kv.block_bytes()
    }

    fn save_block(&self, kv: &CudaKv, block: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        let pieces: Vec<_> =
            kv.buffers().map(|(buffer, bytes)| (buffer, block as usize * bytes, bytes)).collect();
        self.gpu.read(&pieces, |bytes| out.extend_from_slice(bytes))
    }

    fn load_block(&self, kv: &mut CudaKv, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), kv.block_bytes(), "bytes of a block");
        // What is recorded may still read the block.
        let mut outcome = self.gpu.read(&[], |_| ());
        let mut rest = bytes;
        for (buffer, bytes) in kv.buffers() {
            let (own, behind) = rest.split_at(bytes);
            outcome = outcome.and_then(|()| self.gpu.write(buffer, block as usize * bytes, own));
            rest = behind;
        }
        if let Err(e) = outcome {
            self.gpu.fail(e);
        }
    }

    fn embed(&self, w: &CudaWeight, ids: &[u32], out: &mut CudaTensor) -> Result<(), BackendError> {
        let gpu = &self.gpu;
        self.begin(ids.len())?;
        let row = |id: u32| usize::try_from(id).ok().filter(|row| *row < w.rows);
        if let Some(id) = ids.iter().find(|id| row(**id).is_none()) {
            return Err(BackendError::IdOutOfRange { id: *id, rows: w.rows });
        }
        out.shape(gpu, ids.len(), w.cols);
        self.embed_rows(w, gpu.upload(&bytes_of(ids)), ids.len(), out);
        Ok(())
    }

    fn rms_norm(&self, x: &CudaTensor, w: &CudaVector, eps: f32, out: &mut CudaTensor) {
        assert_eq!(x.cols, w.len, "norm weight");
        let gpu = &self.gpu;
        out.shape_quantized(gpu, x.rows, x.cols);
        let to = x.address();
        let (from, extra) = gpu.take_sum(to, x.len()).map_or((to, 0), |sum| (sum.x, sum.y));
        let (q, tokens) = out.int8().addresses();
        let sizes = [x.cols, int8_words(x.cols)].map(|n| n as u64);
        let addresses = [from, extra, to, w.data.address(), out.address(), q, tokens];
        let params: Vec<u64> = addresses.into_iter().chain(sizes).chain([u64::from(eps.to_bits())]).collect();
        let (kernel, threads) = gpu.kernels.norm(x.rows);
        gpu.run(kernel, [x.rows, 1, 1], threads, row_bytes(x.cols), &params);
    }

    fn rms_norm_heads(
        &self,
        x: &mut CudaTensor,
        first: usize,
        count: usize,
        head_dim: usize,
        w: &CudaVector,
        eps: f32,
    ) {
        assert_eq!(w.len, head_dim, "norm weight");
        x.quantized = false;
        let sizes = [head_dim, x.cols, first * head_dim, count].map(|n| n as u64);
        let params: Vec<u64> = [x.address(), w.data.address()]
            .into_iter()
            .chain(sizes)
            .chain([u64::from(eps.to_bits())])
            .collect();
        self.gpu.run(self.gpu.kernels.rms_norm_heads, [count.div_ceil(4), x.rows, 1], 128, 0, &params);
    }

    fn linear(&self, x: &CudaTensor, w: &CudaWeight, out: &mut CudaTensor) {
        let Scratch { int8, .. } = &mut *self.scratch();
        self.linear_rows(x, 0..x.rows, w, int8, out);
    }

    fn add_low_rank(
        &self,
        x: &CudaTensor,
        rows: Range<usize>,
        (a, b): (&CudaWeight, &CudaWeight),
        scale: f32,
        y: &mut CudaTensor,
        first: usize,
    ) {
        assert_eq!((x.rows, x.cols, a.rows), (y.rows, a.cols, b.cols), "low-rank matrices");
        y.quantized = false;
        let Scratch { int8, low_rank: (inner, sum), .. } = &mut *self.scratch();
        let (m, row) = (rows.len(), rows.start);
        self.linear_rows(x, rows, a, int8, inner);
        self.linear_rows(inner, 0..m, b, int8, sum);
        let sizes = [sum.len(), sum.cols, y.cols, row, first].map(|n| n as u64);
        let params: Vec<u64> = [y.address(), sum.address()]
            .into_iter()
            .chain(sizes)
            .chain([u64::from(scale.to_bits())])
            .collect();
        self.gpu.run(self.gpu.kernels.add_scaled, elements(sum.len()), 256, 0, &params);
    }

    fn rope_append(
        &self,
        qkv: &mut CudaTensor,
        rope: RopeRows<'_>,
        kv: &mut CudaKv,
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
        qkv.quantized = false;
        let scratch = &mut *self.scratch();
        let (cos, sin) = scratch.rope.send(gpu, rope);
        let Sent { places, tables, .. } = *scratch.places.send(gpu, kv, spans);
        let addresses =
            [qkv.address(), cos, sin, places, tables, kv.keys[layer].address(), kv.values[layer].address()];
        let sizes = [shape.heads, shape.kv_heads, shape.head_dim].map(|n| n as u64);
        let params: Vec<u64> = addresses.into_iter().chain(sizes).collect();
        let threads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim / 2;
        let grid = [threads.div_ceil(128), qkv.rows, 1];
        let launch = Launch::new(kv.kernels.rope_append, grid, 128, 0, &params);
        if self.attention_rotates(kv, spans) {
            qkv.rope = Some((cos, sin));
            gpu.rotate(launch, (qkv.address(), kv.keys[layer].address()));
        } else {
            qkv.rope = None;
            gpu.run_launch(launch, grid);
        }
        Ok(())
    }

    fn attend(
        &self,
        qkv: &CudaTensor,
        kv: &CudaKv,
        layer: usize,
        spans: &[KvSpan<'_>],
        window: Option<usize>,
        out: &mut CudaTensor,
    ) {
        let shape = kv.spec.shape;
        assert_eq!(qkv.cols, shape.qkv_cols(), "stacked q, k, v");
        assert_eq!(qkv.rows, spans.iter().map(|s| s.len).sum::<usize>(), "tokens of the spans");
        out.shape(&self.gpu, qkv.rows, shape.heads * shape.head_dim);
        let Scratch { partials, places, .. } = &mut *self.scratch();
        self.attention(qkv, kv, layer, (spans, window), (partials, places), out);
    }

    fn gate(&self, gate_up: &CudaTensor, act: Activation, out: &mut CudaTensor) {
        let gpu = &self.gpu;
        out.shape(gpu, gate_up.rows, gate_up.cols / 2);
        let n = out.len();
        let params = [out.address(), gate_up.address(), n as u64, out.cols as u64, number(act)];
        gpu.run(gpu.kernels.gate, elements(n), 256, 0, &params);
    }

    fn gated(
        &self,
        x: &CudaTensor,
        w: &CudaWeight,
        act: Activation,
        wide: &mut CudaTensor,
        out: &mut CudaTensor,
    ) {
        let done = {
            let Scratch { int8, .. } = &mut *self.scratch();
            self.gated_rows(x, w, act, int8, out)
        };
        if !done {
            self.linear(x, w, wide);
            self.gate(wide, act, out);
        }
    }

    fn join(&self, parts: &[CudaTensor], out: &mut CudaTensor) {
        self.join_all(&parts.iter().collect::<Vec<_>>(), out);
    }

    fn scale(&self, x: &mut CudaTensor, factor: f32) {
        x.quantized = false;
        let params = [x.address(), x.len() as u64, u64::from(factor.to_bits())];
        self.gpu.run(self.gpu.kernels.scale, elements(x.len()), 256, 0, &params);
    }

    fn add(&self, x: &mut CudaTensor, y: &CudaTensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "sum of tensors");
        let from = x.address();
        x.sum_into(&self.gpu);
        self.gpu.add(Sum { to: x.address(), x: from, y: y.address(), n: x.len() });
    }

    fn head(
        &self,
        x: &CudaTensor,
        w: &CudaWeight,
        needs: &[LogitsNeed],
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        assert_eq!((x.rows, x.cols), (needs.len(), w.cols), "tokens and input features");
        out.clear();
        let scratch = &mut self.scratch().head;
        if let Some(asked) = Asked::new(needs, w.rows) {
            if self.largest(x, w, &asked, scratch, out)? {
                return Ok(());
            }
            out.clear();
        }
        self.all_logits(x, w, scratch, out)
    }

    fn keep_rows(&self, x: &mut CudaTensor, rows: &[usize]) {
        self.take_rows(x, rows);
    }

    fn upload(&self, values: &[f32], cols: usize, out: &mut CudaTensor) -> Result<(), BackendError> {
        let gpu = &self.gpu;
        let rows = self.begin(values.len() / cols)?;
        out.shape(gpu, rows, cols);
        // What is uploaded for a step is gone with it, and the tensor is not.
        let from = gpu.upload(&bytes_of_floats(values));
        let sizes = [values.len(), cols, cols, 0].map(|n| n as u64);
        let params: Vec<u64> = [out.address(), from].into_iter().chain(sizes).collect();
        gpu.run(gpu.kernels.place, elements(values.len()), 256, 0, &params);
        Ok(())
    }

    fn download(&self, x: &CudaTensor, out: &mut Vec<f32>) -> Result<(), BackendError> {
        out.clear();
        let Some(buffer) = x.buffer() else { return self.gpu.check() };
        self.gpu.read(&[(buffer, 0, 4 * x.len())], |bytes| extend_floats(out, bytes))
    }

    fn receive(&self, from: &Self, x: &CudaTensor, out: &mut CudaTensor) -> Result<bool, BackendError> {
        from.gpu.hand_over()?;
        self.begin(x.rows)?;
        out.shape(&self.gpu, x.rows, x.cols);
        // Where there is no memory, the step has failed.
        if let (Some(x_buffer), Some(buffer)) = (x.buffer(), out.buffer()) {
            self.gpu.receive(&from.gpu, x_buffer, buffer, 4 * x.len())?;
        }
        Ok(true)
    }
}

/// A norm's weight, `[len]`.
pub struct CudaVector {
    data: Buffer,
    len: usize,
}
