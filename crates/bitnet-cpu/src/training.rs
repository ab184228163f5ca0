//! Operations of training on the CPU, on plain slices.

use crate::cores::physical_cores;
use crate::kernels::quantize::{self, Quantized};
use crate::kernels::ternary::{self, Kernel, Place};
use crate::kernels::training::{
    attention, bf16, divergence, gate as gate_backward, loss, norm as norm_backward, product,
};
use crate::kernels::{gate, norm};
use crate::layout::Panels;
use crate::memory::{Memory, memory};
use crate::pool::Pool;
use crate::{CpuError, Isa, MAX_THREADS};
use bitnet_core::{Activation, AttentionShape, BackendError, Scale, Terms, TernaryMatrix};
use bitnet_memory::Profile;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

pub use norm_backward::Norm;
pub use product::{DEPTH, Side, Store, Target, Values};

/// Kernels of one instruction set on a pool of threads, forward and backward.
///
/// Matrices are f32 and row-major; `m` tokens, `n` output and `k` input features. What an operation gives is the same on every instruction
/// set and with any number of threads; what inference computes too is computed here in the same order (`docs/numerics.md`).
pub struct CpuTraining {
    isa: Isa,
    pool: Pool,
    room: Mutex<Room>,
}

/// What products leave behind for the next one.
#[derive(Default)]
struct Room {
    f32: product::Room,
    bf16: bf16::Room,
    ternary: ternary::Room,
}

/// Int8 activations of tokens, or of fewer bits.
#[derive(Default)]
pub struct QuantizedTokens(Quantized);

impl QuantizedTokens {
    /// The integers, `[m, stride]` with zeros behind a token's own, and the stride.
    pub fn integers(&self) -> (&[i8], usize) {
        (&self.0.q, self.0.stride)
    }

    /// `[m]`: what a token's integers are multiplied with to be real again.
    pub fn factors(&self) -> &[f32] {
        &self.0.d
    }
}

/// Ternary weights in the layout of inference: two bits each.
pub struct TernaryWeights(pub(crate) Panels);

impl TernaryWeights {
    /// Output features, `n`.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Input features, `k`.
    pub fn cols(&self) -> usize {
        self.0.cols
    }

    /// The weights of a row, `[k]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        self.0.dequantize_row(row, out);
    }

    /// All codes, in an order that is the same everywhere.
    pub fn codes(&self) -> &[u8] {
        self.0.codes()
    }
}

impl fmt::Debug for TernaryWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TernaryWeights({} x {})", self.rows(), self.cols())
    }
}

impl CpuTraining {
    /// Starts the threads, with memory of their own; the fastest instruction set and one thread a physical core when `None`.
    ///
    /// # Errors
    /// The processor lacks the instruction set, or there cannot be so many threads.
    pub fn new(isa: Option<Isa>, threads: Option<usize>) -> Result<Self, CpuError> {
        let threads = threads.unwrap_or_else(physical_cores);
        Self::of(isa, threads, 0..threads, memory(Profile::Training.into()))
    }

    /// Some of `all` threads, of which others are others': each is near to the memory that it would be near to were they all in one. What operations
    /// need while they run comes from `memory`; without enough they unwind with [`bitnet_memory::OutOfMemory`].
    ///
    /// # Errors
    /// The processor lacks the instruction set, or there cannot be so many threads.
    pub fn of(
        isa: Option<Isa>,
        all: usize,
        own: Range<usize>,
        memory: Arc<Memory>,
    ) -> Result<Self, CpuError> {
        let isa = isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(CpuError::NoSuchIsa { isa });
        }
        let threads = own.len();
        if !(1..=MAX_THREADS).contains(&threads) || own.end > all {
            return Err(CpuError::Threads { threads });
        }
        let pool = Pool::of(all, own, memory).map_err(|source| CpuError::Spawn { threads, source })?;
        Ok(Self { isa, pool, room: Mutex::default() })
    }

    /// The terms that this processor multiplies faster: with AMX, a step of bf16 takes nearly half the time, and without twice as much.
    pub fn fastest_terms() -> Terms {
        if Isa::detect().multiplies_bf16() { Terms::Bf16 } else { Terms::F32 }
    }

    /// Threads in use, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `f(i, chunk)` for every chunk of `len` elements (the last may be shorter), spread over the threads.
    pub fn chunks<T: Send>(&self, data: &mut [T], len: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        self.pool.chunks_mut(data, len, f);
    }

    /// `c[i, j] = sum over p of a[i, p] * b[j, p]` for the sizes `(m, n, k)`, in the order of rule 18 or 19.
    ///
    /// # Panics
    /// A side or the target is too short.
    pub fn product(
        &self,
        terms: Terms,
        sizes: (usize, usize, usize),
        a: Side<'_>,
        b: Side<'_>,
        store: Store<'_>,
        c: Target<'_>,
    ) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        match terms {
            Terms::F32 => product::product(self.isa, &self.pool, sizes, a, b, store, c, &mut room.f32),
            Terms::Bf16 => bf16::product(self.isa, &self.pool, sizes, a, b, store, c, &mut room.bf16),
        }
    }

    /// Weights `trit * scale` for [`CpuTraining::bitlinear`] of row-major trits `[rows, cols]`, with one scale or one a row.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn prepare(
        &self,
        (rows, cols): (usize, usize),
        trits: &[i8],
        scales: &[f32],
    ) -> Result<TernaryWeights, BackendError> {
        let scale = match scales {
            [scale] => Scale::Tensor(*scale),
            _ => Scale::Rows(scales.into()),
        };
        self.pack(&TernaryMatrix::from_trits(rows, cols, trits, scale)?)
    }

    /// The same of a matrix, whose file's pages are given back.
    ///
    /// # Errors
    /// There is no memory for them, or a scale is no number.
    pub fn pack(&self, matrix: &TernaryMatrix) -> Result<TernaryWeights, BackendError> {
        Ok(TernaryWeights(Panels::new(&self.pool, self.kernel().layout(), &[matrix])?))
    }

    /// `c[m, n] = x[m, k] * w[n, k]^T` as inference computes it (rule 5): sums are integers.
    ///
    /// # Panics
    /// The target is too short.
    pub fn bitlinear(&self, x: &QuantizedTokens, w: &TernaryWeights, c: Target<'_>) {
        let Target { values: y, stride, first } = c;
        assert!(first + w.0.rows <= stride && x.0.d.len() * stride <= y.len(), "the target of a product");
        assert_eq!(x.0.k, w.0.cols, "features of activations and weights");
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Place { y, stride, first };
        ternary::product(self.isa, self.kernel(), &self.pool, &w.0, &x.0, &mut room.ternary, place);
    }

    /// The kernel of ternary products.
    fn kernel(&self) -> Kernel {
        Kernel::of(self.isa).general()
    }

    /// `y = x / rms(x) * w` for every row of `x [m, n]`; `w` is `[n]`.
    pub fn rms_norm(&self, x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "rows of a norm");
        norm::rms_norm(self.isa, &self.pool, x, w, eps, y);
    }

    /// The way back through [`CpuTraining::rms_norm`]: `dx [m, n]`, set or added to, and the weight's gradient `dw [n]`, added to where it is
    /// wanted, from `dy [m, n]`.
    pub fn rms_norm_backward(
        &self,
        norm: Norm<'_>,
        dy: &[f32],
        add: bool,
        dx: &mut [f32],
        dw: Option<&mut [f32]>,
    ) {
        let len = norm.x.len();
        assert!(len == dy.len() && len == dx.len(), "rows of a norm");
        assert!(dw.as_ref().is_none_or(|dw| dw.len() == norm.w.len()), "the weight of a norm");
        norm_backward::backward(self.isa, &self.pool, norm, dy, add, dx, dw);
    }

    /// Int8 activations of every row of `x [m, k]`.
    pub fn quantize(&self, x: &[f32], k: usize, out: &mut QuantizedTokens) {
        quantize::quantize(self.isa, &self.pool, x, k, &mut out.0);
    }

    /// Activations `[m, k]` of a rule of the caller's: `f` sets a token's integers and gives what makes them real again.
    pub fn quantize_by(
        &self,
        (m, k): (usize, usize),
        out: &mut QuantizedTokens,
        f: &(dyn Fn(usize, &mut [i8]) -> f32 + Sync),
    ) {
        quantize::rows(&self.pool, (m, k), &mut out.0, &|token, q| {
            let d = f(token, &mut q[..k]);
            (d, q[..k].iter().map(|q| i32::from(*q)).sum())
        });
    }

    /// `out = act(gate) * up`, `[m, n]`, from rows `[gate | up]` of `gate_up [m, 2n]`.
    pub fn gate(&self, gate_up: &[f32], n: usize, act: Activation, out: &mut [f32]) {
        assert_eq!(gate_up.len(), 2 * out.len(), "rows of a gate");
        gate::gate(self.isa, &self.pool, gate_up, n, act, out);
    }

    /// The gradients of `gate_up` from those of `out`.
    pub fn gate_backward(&self, gate_up: &[f32], dout: &[f32], n: usize, act: Activation, out: &mut [f32]) {
        assert_eq!((gate_up.len(), out.len()), (2 * dout.len(), 2 * dout.len()), "rows of a gate");
        gate_backward::backward(self.isa, &self.pool, gate_up, dout, n, act, out);
    }

    /// Causal attention of the sequences `spans`, ascending rows of `qkv [m, qkv_cols]` (q and k rotated): `out [m, heads * head_dim]`, and
    /// `sums [m, heads, 2]` for the way back.
    ///
    /// # Panics
    /// Spans overlap or lie outside.
    pub fn attend(
        &self,
        qkv: &[f32],
        shape: AttentionShape,
        spans: &[Range<usize>],
        out: &mut [f32],
        sums: &mut [f32],
    ) {
        let m = check_spans(qkv, shape, spans);
        let q = shape.heads * shape.head_dim;
        assert_eq!((out.len(), sums.len()), (m * q, m * shape.heads * 2), "room for attention");
        attention::forward(self.isa, &self.pool, attention::Sequences { qkv, shape, spans }, out, sums);
    }

    /// `dqkv [m, qkv_cols]` from `dout [m, heads * head_dim]`, with what [`CpuTraining::attend`] gave.
    ///
    /// # Panics
    /// Spans overlap or lie outside.
    #[allow(clippy::too_many_arguments, reason = "what went in, what came out, and the gradients of both")]
    pub fn attend_backward(
        &self,
        qkv: &[f32],
        shape: AttentionShape,
        spans: &[Range<usize>],
        (out, sums): (&[f32], &[f32]),
        dout: &[f32],
        terms: Terms,
        dqkv: &mut [f32],
    ) {
        let m = check_spans(qkv, shape, spans);
        assert_eq!((out.len(), dqkv.len()), (dout.len(), qkv.len()), "gradients of attention");
        assert_eq!(
            (out.len(), sums.len()),
            (m * shape.heads * shape.head_dim, m * shape.heads * 2),
            "attention"
        );
        let sequences = attention::Sequences { qkv, shape, spans };
        attention::backward(self.isa, &self.pool, sequences, (out, sums), dout, terms, dqkv);
    }

    /// Rows of `logits [m, vocab]` become the gradients of `sum of weights[i] * cross-entropy of row i`; `parts [m, 3]` gets each row's largest
    /// logit, the sum of `exp(logit - largest)`, and the target's logit: what its cross-entropy follows from.
    pub fn cross_entropy(&self, logits: &mut [f32], targets: &[u32], weights: &[f32], parts: &mut [f32]) {
        let m = targets.len();
        assert!(weights.len() == m && (m == 0 || logits.len().is_multiple_of(m)), "targets of logits");
        assert_eq!(parts.len(), m * 3, "parts of losses");
        loss::cross_entropy(self.isa, &self.pool, logits, targets, weights, parts);
    }

    /// The first elements of each row of `student [m, n]`, as many as `rows` says first, become the gradients of that row's
    /// `weight * KL(teacher || student)`, what is behind them zero; distributions are softmaxes of scores times `factor`. Gives each row's
    /// divergence in nats through `each`, in their order.
    pub fn divergence(
        &self,
        student: &mut [f32],
        teacher: &[f32],
        factor: f32,
        rows: &[(usize, f32)],
        each: &mut dyn FnMut(usize, f64),
    ) {
        let m = rows.len();
        assert!(
            student.len() == teacher.len() && (m == 0 || student.len().is_multiple_of(m)),
            "scores of rows"
        );
        assert!(rows.iter().all(|(valid, _)| (1..=student.len() / m).contains(valid)), "scores of a row");
        let mut parts = vec![0.0; m * 3];
        divergence::divergence(self.isa, &self.pool, student, teacher, factor, rows, &mut parts);
        for (i, part) in parts.as_chunks::<3>().0.iter().enumerate() {
            let [own, theirs, along] = part.map(f64::from);
            each(i, along / theirs + libm::log(own) - libm::log(theirs));
        }
    }
}

/// Rows of `qkv`; spans must ascend and lie inside.
fn check_spans(qkv: &[f32], shape: AttentionShape, spans: &[Range<usize>]) -> usize {
    let m = qkv.len() / shape.qkv_cols();
    let mut end = 0;
    for span in spans {
        assert!(
            end <= span.start && span.start <= span.end && span.end <= m,
            "sequences overlap or lie outside"
        );
        end = span.end;
    }
    m
}
