//! The `Backend` of this crate: every operation checks shapes and hands slices to a kernel.

use crate::Isa;
use crate::cores::physical_cores;
use crate::kernels::ternary::{self, Kernel};
use crate::kernels::{attend, gate, low_rank, norm, rope};
use crate::kv::KvCache;
use crate::memory::{Buffer, Memory, OutOfMemory, Scratch, kept, memory};
use crate::pool::Pool;
use crate::weight::{CpuWeight, Plan};
use bitnet_core::{
    Activation, ActivationPrecision, Backend, BackendError, KV_BLOCK, KvSpan, KvSpec, Logits, LogitsNeed,
    Matrix, OperationTime, Purpose, RopeRows,
};
use bitnet_memory::{Profile, Region, Tag};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What the backend runs on.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Instruction set; the fastest one of the processor when `None`.
    pub isa: Option<Isa>,
    /// Threads; one a physical core when `None`.
    pub threads: Option<usize>,
    /// The kernel of ternary products, and with it the layout of ternary weights; the best one of the instruction set when
    /// `None`.
    pub kernel: Option<Kernel>,
    /// Whether products leave out what a ReLU-squared gate makes zero, which takes layouts of their own. When `None`, they do
    /// unless a kernel is named: then it computes all products.
    pub skip: Option<bool>,
    /// Where all of its memory comes from, which other backends may use too; one of its own ([`crate::memory()`], for inference) when
    /// `None`.
    pub memory: Option<Arc<Memory>>,
}

/// Why the backend could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The processor lacks the instruction set that was asked for.
    #[error("this processor has no {isa}; it has {}", available())]
    NoSuchIsa {
        /// What was asked for.
        isa: Isa,
    },
    /// The processor lacks the instructions of the ternary kernel that was asked for.
    #[error("this processor has no {} for the kernel {kernel}; it runs {}", kernel.isa(), ternary::names())]
    NoSuchKernel {
        /// What was asked for.
        kernel: Kernel,
    },
    /// A thread count that makes no sense.
    #[error("{threads} threads were asked for; 1 to {MAX_THREADS} can be had")]
    Threads {
        /// What was asked for.
        threads: usize,
    },
    /// There is no memory for what measures the machine.
    #[error("there is no memory for {bytes} bytes to be read")]
    Memory {
        /// What was asked for.
        bytes: usize,
    },
    /// The operating system would not start a thread.
    #[error("could not start {threads} threads")]
    Spawn {
        /// What was asked for.
        threads: usize,
        /// Why.
        source: std::io::Error,
    },
}

fn available() -> String {
    Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

/// The largest thread count that is taken as meant.
pub const MAX_THREADS: usize = 1024;

/// Elements that a thread adds at a time; a token's alone are not worth a second thread.
const ADD_PIECE: usize = 1 << 14;

/// Activations `[rows, cols]`, row-major; or why there are none.
///
/// Where there is no memory for what an operation gives, that is what it gives, and so does each operation that takes it, until somebody
/// who can be told asks: who wants it on the host, or in the cache.
#[derive(Default)]
pub struct CpuTensor {
    rows: usize,
    cols: usize,
    data: Buffer<f32>,
    failed: Option<OutOfMemory>,
}

impl CpuTensor {
    fn data(&self) -> Result<&[f32], OutOfMemory> {
        self.failed.map_or(Ok(&*self.data), Err)
    }

    fn data_mut(&mut self) -> Result<&mut [f32], OutOfMemory> {
        self.failed.map_or(Ok(&mut *self.data), Err)
    }

    /// Gives the tensor a shape; what it held is undefined.
    fn shape(&mut self, memory: &Memory, rows: usize, cols: usize) -> Result<&mut [f32], OutOfMemory> {
        (self.rows, self.cols) = (rows, cols);
        memory.fit(&mut self.data, rows * cols)?;
        Ok(&mut self.data)
    }

    /// Has an operation fill the tensor, or change it, and keeps what went wrong.
    fn by(&mut self, operation: impl FnOnce(&mut Self) -> Result<(), OutOfMemory>) {
        self.failed = operation(self).err();
    }
}

/// Kernels of one instruction set on a pool of threads.
pub struct CpuBackend {
    plan: Plan,
    pool: Pool,
    /// What operations need while they run, one after the other.
    scratch: Mutex<Region>,
}

impl CpuBackend {
    /// Starts the threads.
    pub fn new(options: CpuOptions) -> Result<Self, CpuError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(CpuError::NoSuchIsa { isa });
        }
        let kernel = options.kernel.unwrap_or_else(|| Kernel::of(isa));
        if !kernel.is_available() {
            return Err(CpuError::NoSuchKernel { kernel });
        }
        let threads = options.threads.unwrap_or_else(physical_cores);
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(CpuError::Threads { threads });
        }
        let memory = options.memory.unwrap_or_else(|| memory(Profile::Inference.into()));
        let pool = Pool::with(threads, memory).map_err(|source| CpuError::Spawn { threads, source })?;
        let plan = Plan { isa, kernel, skip: options.skip.unwrap_or(options.kernel.is_none()) };
        Ok(Self { plan, pool, scratch: Mutex::default() })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.plan.isa
    }

    /// The ternary kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.plan.kernel
    }

    /// Whether products may leave out what a ReLU-squared gate makes zero.
    pub fn skips(&self) -> bool {
        self.plan.skip
    }

    /// Threads in use, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs an operation that needs memory while it runs.
    fn with_scratch<R>(&self, operation: impl FnOnce(&Scratch<'_>) -> R) -> R {
        let mut region = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        operation(&region.begin(self.memory()))
    }
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Vector = Buffer<f32>;
    type Weight = CpuWeight;
    type Kv = KvCache;

    fn memory(&self) -> &Arc<Memory> {
        self.pool.memory()
    }

    fn profile(&self) -> Result<Vec<OperationTime>, BackendError> {
        Err(BackendError::Unsupported {
            backend: "cpu",
            what: "a profile of its operations".to_owned(),
            hint: "a profiler of the system's, or --device wgpu:0, would do",
        })
    }

    fn tensor(&self) -> CpuTensor {
        CpuTensor::default()
    }

    fn vector(&self, values: &[f32]) -> Result<Buffer<f32>, BackendError> {
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(BackendError::NotFinite { value: *value });
        }
        let mut vector = kept(self.memory(), values.len(), Tag::Weights, "a norm")?;
        vector.copy_from_slice(values);
        Ok(vector)
    }

    fn prepare(
        &self,
        stacked: &[Matrix],
        act: ActivationPrecision,
        purpose: Purpose,
    ) -> Result<CpuWeight, BackendError> {
        CpuWeight::new(&self.pool, self.plan, stacked, act, purpose)
    }

    fn weight_bytes(&self, w: &CpuWeight) -> (usize, usize) {
        w.bytes()
    }

    fn kv(&self, spec: KvSpec) -> Result<KvCache, BackendError> {
        KvCache::new(self.memory(), spec)
    }

    fn copy_block(&self, kv: &mut KvCache, from: u32, to: u32) {
        kv.copy_block(from, to);
    }

    fn discard_block(&self, kv: &mut KvCache, block: u32) -> usize {
        kv.discard_block(block)
    }

    fn block_bytes(&self, kv: &KvCache) -> usize {
        kv.block_bytes()
    }

    fn save_block(&self, kv: &KvCache, block: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        kv.save_block(block, out);
        Ok(())
    }

    fn load_block(&self, kv: &mut KvCache, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), kv.block_bytes(), "bytes of a block");
        kv.load_block(block, bytes);
    }

    fn embed(&self, w: &CpuWeight, ids: &[u32], out: &mut CpuTensor) -> Result<(), BackendError> {
        let row = |id: u32| usize::try_from(id).ok().filter(|row| *row < w.rows);
        if let Some(id) = ids.iter().find(|id| row(**id).is_none()) {
            return Err(BackendError::IdOutOfRange { id: *id, rows: w.rows });
        }
        out.failed = None;
        let out = out.shape(self.memory(), ids.len(), w.cols)?;
        self.pool.chunks_mut(out, w.cols, &|i, out| w.row(ids[i] as usize, out));
        Ok(())
    }

    fn rms_norm(&self, x: &CpuTensor, w: &Buffer<f32>, eps: f32, out: &mut CpuTensor) {
        out.by(|out| {
            let data = x.data()?;
            assert_eq!(x.cols, w.len(), "norm weight");
            let out = out.shape(self.memory(), x.rows, x.cols)?;
            norm::rms_norm(self.plan.isa, &self.pool, data, w, eps, out);
            Ok(())
        });
    }

    fn rms_norm_heads(
        &self,
        x: &mut CpuTensor,
        first: usize,
        count: usize,
        head_dim: usize,
        w: &Buffer<f32>,
        eps: f32,
    ) {
        assert_eq!(w.len(), head_dim, "norm weight");
        x.by(|x| {
            let cols = x.cols;
            norm::rms_norm_heads(self.plan.isa, &self.pool, x.data_mut()?, cols, (first, count), w, eps);
            Ok(())
        });
    }

    fn linear(&self, x: &CpuTensor, w: &CpuWeight, out: &mut CpuTensor) {
        out.by(|out| {
            let (data, m) = (x.data()?, x.rows);
            assert_eq!(x.cols, w.cols, "input features");
            let out = out.shape(self.memory(), m, w.rows)?;
            self.with_scratch(|scratch| w.linear(self.plan.isa, &self.pool, data, m, scratch, out))
        });
    }

    fn add_low_rank(
        &self,
        x: &CpuTensor,
        rows: Range<usize>,
        (a, b): (&CpuWeight, &CpuWeight),
        scale: f32,
        y: &mut CpuTensor,
        first: usize,
    ) {
        let (isa, pool, m) = (self.plan.isa, &self.pool, rows.len());
        y.by(|y| {
            let (data, y_rows, cols) = (x.data()?, y.rows, y.cols);
            let y = y.data_mut()?;
            assert_eq!((x.rows, x.cols, a.rows), (y_rows, a.cols, b.cols), "low-rank matrices");
            self.with_scratch(|scratch| {
                let (inner, sum) = (scratch.buffer(m * a.rows)?, scratch.buffer(m * b.rows)?);
                a.linear(isa, pool, &data[rows.start * x.cols..rows.end * x.cols], m, scratch, inner)?;
                b.linear(isa, pool, inner, m, scratch, sum)?;
                let y = &mut y[rows.start * cols..rows.end * cols];
                low_rank::add_scaled(isa, pool, sum, b.rows, scale, (y, cols, first));
                Ok(())
            })
        });
    }

    fn rope_append(
        &self,
        qkv: &mut CpuTensor,
        rope: RopeRows<'_>,
        kv: &mut KvCache,
        layer: usize,
        spans: &[KvSpan<'_>],
    ) -> Result<(), BackendError> {
        let (rows, cols) = (qkv.rows, qkv.cols);
        let data = qkv.data_mut()?;
        assert_eq!(cols, kv.spec.shape.qkv_cols(), "stacked q, k, v");
        assert_eq!(rows, spans.iter().map(|s| s.len).sum::<usize>(), "tokens of the spans");
        for span in spans {
            let (capacity, need) = (span.blocks.len() * KV_BLOCK, span.end());
            if need > capacity || span.blocks.iter().any(|b| *b as usize >= kv.spec.blocks()) {
                return Err(BackendError::CacheFull { capacity: capacity.min(kv.spec.capacity), need });
            }
        }
        let pool = &self.pool;
        Ok(self.with_scratch(|scratch| rope::rope_append(pool, data, rope, kv, layer, spans, scratch))?)
    }

    fn attend(
        &self,
        qkv: &CpuTensor,
        kv: &KvCache,
        layer: usize,
        spans: &[KvSpan<'_>],
        window: Option<usize>,
        out: &mut CpuTensor,
    ) {
        let (isa, pool, shape) = (self.plan.isa, &self.pool, kv.spec.shape);
        out.by(|out| {
            let data = qkv.data()?;
            assert_eq!(qkv.cols, shape.qkv_cols(), "stacked q, k, v");
            assert_eq!(qkv.rows, spans.iter().map(|s| s.len).sum::<usize>(), "tokens of the spans");
            let out = out.shape(self.memory(), qkv.rows, shape.heads * shape.head_dim)?;
            self.with_scratch(|scratch| {
                attend::attend(isa, pool, data, kv, layer, (spans, window), scratch, out)
            })
        });
    }

    fn gate(&self, gate_up: &CpuTensor, act: Activation, out: &mut CpuTensor) {
        out.by(|out| {
            let (data, n) = (gate_up.data()?, gate_up.cols / 2);
            let out = out.shape(self.memory(), gate_up.rows, n)?;
            gate::gate(self.plan.isa, &self.pool, data, n, act, out);
            Ok(())
        });
    }

    fn gated(
        &self,
        x: &CpuTensor,
        w: &CpuWeight,
        act: Activation,
        wide: &mut CpuTensor,
        out: &mut CpuTensor,
    ) {
        if act != Activation::Relu2 || x.rows != 1 || !w.is_gated() {
            self.linear(x, w, wide);
            return self.gate(wide, act, out);
        }
        out.by(|out| {
            let data = x.data()?;
            assert_eq!(x.cols, w.cols, "input features");
            let out = out.shape(self.memory(), 1, w.rows / 2)?;
            self.with_scratch(|scratch| w.gated(self.plan.isa, &self.pool, data, scratch, out))
        });
    }

    fn join(&self, parts: &[CpuTensor], out: &mut CpuTensor) {
        let (m, cols) = (parts[0].rows, parts.iter().map(|p| p.cols).sum());
        out.by(|out| {
            parts.iter().try_for_each(|p| p.data().map(|_| ()))?;
            assert!(parts.iter().all(|p| p.rows == m), "parts of the same rows");
            self.pool.chunks_mut(out.shape(self.memory(), m, cols)?, cols, &|t, mut row| {
                for part in parts {
                    let (own, rest) = row.split_at_mut(part.cols);
                    own.copy_from_slice(&part.data[t * part.cols..][..part.cols]);
                    row = rest;
                }
            });
            Ok(())
        });
    }

    fn scale(&self, x: &mut CpuTensor, factor: f32) {
        x.by(|x| {
            let scale = |_, x: &mut [f32]| x.iter_mut().for_each(|x| *x *= factor);
            self.pool.chunks_mut(x.data_mut()?, ADD_PIECE, &scale);
            Ok(())
        });
    }

    fn add(&self, x: &mut CpuTensor, y: &CpuTensor) {
        x.by(|x| {
            let (shape, y_shape) = ((x.rows, x.cols), (y.rows, y.cols));
            let (x, y) = (x.data_mut()?, y.data()?);
            assert_eq!(shape, y_shape, "sum of tensors");
            self.pool.chunks_mut(x, ADD_PIECE, &|i, x| {
                for (x, y) in x.iter_mut().zip(&y[i * ADD_PIECE..]) {
                    *x += y;
                }
            });
            Ok(())
        });
    }

    fn head(
        &self,
        x: &CpuTensor,
        w: &CpuWeight,
        needs: &[LogitsNeed],
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        let data = x.data()?;
        assert_eq!((x.rows, x.cols), (needs.len(), w.cols), "tokens and input features");
        let (isa, pool) = (self.plan.isa, &self.pool);
        Ok(self.with_scratch(|scratch| w.head(isa, pool, data, needs, scratch, out))?)
    }

    fn keep_rows(&self, x: &mut CpuTensor, rows: &[usize]) {
        x.by(|x| {
            let cols = x.cols;
            let data = x.data_mut()?;
            for (to, row) in rows.iter().enumerate() {
                data.copy_within(row * cols..(row + 1) * cols, to * cols);
            }
            x.shape(self.memory(), rows.len(), cols).map(|_| ())
        });
    }

    fn upload(&self, values: &[f32], cols: usize, out: &mut CpuTensor) -> Result<(), BackendError> {
        out.shape(self.memory(), values.len() / cols, cols)?.copy_from_slice(values);
        Ok(())
    }

    fn download(&self, x: &CpuTensor, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let data = x.data()?;
        out.clear();
        let bytes = size_of_val(data);
        out.try_reserve(data.len()).map_err(|_| BackendError::OutOfMemory { bytes, what: "states" })?;
        out.extend_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Noise;
    use bitnet_core::{DenseMatrix, DenseType, Scale, TernaryMatrix};
    use bitnet_quant::spec;

    fn backend() -> CpuBackend {
        CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()
    }

    fn tensor(b: &CpuBackend, rows: usize, values: &[f32]) -> CpuTensor {
        let mut tensor = b.tensor();
        tensor.shape(b.memory(), rows, values.len() / rows).unwrap().copy_from_slice(values);
        tensor
    }

    fn dense(values: &[f32], rows: usize) -> Matrix {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Matrix::Dense(DenseMatrix::new(rows, values.len() / rows, DenseType::F32, bytes.into()).unwrap())
    }

    #[test]
    fn a_mixed_stack_gives_every_part_its_columns() {
        let (b, mut noise, k) = (backend(), Noise(3), 64);
        let mut ternary = |rows: usize, scale: Scale| {
            let trits: Vec<i8> = (0..rows * k).map(|_| (noise.next() % 3) as i8 - 1).collect();
            TernaryMatrix::from_trits(rows, k, &trits, scale).unwrap()
        };
        let a = ternary(5, Scale::Tensor(0.5));
        let g = ternary(3, Scale::Groups { size: 32, values: vec![0.25; 6].into() });
        let d = Noise(4).floats(2 * k, 1.0);
        let stack = [Matrix::Ternary(a.clone()), dense(&d, 2), Matrix::Ternary(g.clone())];
        let w = b.prepare(&stack, ActivationPrecision::Float, Purpose::Product).unwrap();
        let x = Noise(5).floats(2 * k, 1.0);
        let input = tensor(&b, 2, &x);
        let (mut out, mut got) = (b.tensor(), Vec::new());
        b.linear(&input, &w, &mut out);
        b.download(&out, &mut got).unwrap();
        for (x, got) in x.chunks(k).zip(got.chunks(10)) {
            let mut want = [0.0; 10];
            spec::bitlinear_float(&a, x, &mut want[..5]);
            for row in 0..2 {
                want[5 + row] = spec::dense_dot(&d[row * k..][..k], x);
            }
            spec::bitlinear_float(&g, x, &mut want[7..]);
            assert_eq!(got, want);
        }
    }

    /// Matrices as a file of a kernel's own layout has them are multiplied where they lie, others beside them are not.
    #[test]
    fn a_file_s_own_bytes_are_multiplied_in_place() {
        let (k, m, mut noise) = (384, 5, Noise(8));
        let mut file = |rows: usize, packing: &bitnet_quant::packing::Packing| {
            let trits: Vec<i8> = (0..rows * k).map(|_| (noise.next() % 3) as i8 - 1).collect();
            let trits = TernaryMatrix::from_trits(rows, k, &trits, Scale::Tensor(1.0)).unwrap();
            let mut bytes = Vec::new();
            (packing.pack)(&trits, &mut bytes).unwrap();
            packing.read(rows, k, &bytes.into()).unwrap().with_scale(Scale::Tensor(0.5)).unwrap()
        };
        let (i2_s, hf) = (&bitnet_quant::packing::I2_S, &bitnet_quant::packing::HF);
        let stack = [file(32, i2_s), file(16, i2_s), file(8, i2_s), file(12, hf), file(48, i2_s)];
        let rows: usize = stack.iter().map(TernaryMatrix::rows).sum();
        let x = Noise(9).floats(m * k, 2.0);
        for kernel in Kernel::available() {
            let options = CpuOptions { threads: Some(2), kernel: Some(kernel), ..CpuOptions::default() };
            let b = CpuBackend::new(options).unwrap();
            let matrices: Vec<Matrix> = stack.iter().cloned().map(Matrix::Ternary).collect();
            let w = b.prepare(&matrices, ActivationPrecision::Int8, Purpose::Product).unwrap();
            // Eight rows are no tile.
            let in_place = if kernel.name().starts_with("i2_s") { (32 + 16 + 48) * k / 4 } else { 0 };
            assert_eq!(b.weight_bytes(&w).1, in_place, "{kernel}");
            for m in [1, m] {
                let input = tensor(&b, m, &x[..m * k]);
                let (mut out, mut got) = (b.tensor(), Vec::new());
                b.linear(&input, &w, &mut out);
                b.download(&out, &mut got).unwrap();
                for (x, got) in x.chunks(k).zip(got.chunks(rows)) {
                    let (mut q, mut want) = (vec![0; k], vec![0.0; rows]);
                    let d = spec::quantize_row(x, &mut q);
                    let mut rest = want.as_mut_slice();
                    for matrix in &stack {
                        let (out, behind) = rest.split_at_mut(matrix.rows());
                        spec::bitlinear(matrix, &q, d, out);
                        rest = behind;
                    }
                    assert_eq!(got, want, "{kernel}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let b = backend();
        let nan = dense(&[0.0, f32::NAN], 1);
        assert!(matches!(
            b.prepare(&[nan], ActivationPrecision::Int8, Purpose::Product),
            Err(BackendError::NotFinite { .. })
        ));
        assert!(b.vector(&[f32::INFINITY]).is_err());
        let w = b.prepare(&[dense(&[1.0, 2.0], 1)], ActivationPrecision::Int8, Purpose::Product).unwrap();
        let mut out = b.tensor();
        assert!(matches!(b.embed(&w, &[1], &mut out), Err(BackendError::IdOutOfRange { id: 1, rows: 1 })));
        assert!(CpuBackend::new(CpuOptions { threads: Some(0), ..CpuOptions::default() }).is_err());
    }
}
