//! Operations of training on the CPU, on plain slices.

use crate::cores::physical_cores;
use crate::kernels::training::{attention, gate as gate_backward, loss, product};
use crate::kernels::{gate, norm, quantize};
use crate::pool::Pool;
use crate::{CpuError, Isa, MAX_THREADS};
use bitnet_core::{Activation, AttentionShape};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub use product::{Side, Store, Target, Values};

/// Kernels of one instruction set on a pool of threads, forward and backward.
///
/// Matrices are f32 and row-major; `m` tokens, `n` output and `k` input features. What an operation gives is the same on every instruction
/// set and with any number of threads; what inference computes too is computed here in the same order (`docs/numerics.md`).
pub struct CpuTraining {
    isa: Isa,
    pool: Pool,
    room: Mutex<product::Room>,
}

impl CpuTraining {
    /// Starts the threads; the fastest instruction set and one thread a physical core when `None`.
    ///
    /// # Errors
    /// The processor lacks the instruction set, or there cannot be so many threads.
    pub fn new(isa: Option<Isa>, threads: Option<usize>) -> Result<Self, CpuError> {
        let isa = isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(CpuError::NoSuchIsa { isa });
        }
        let threads = threads.unwrap_or_else(physical_cores);
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(CpuError::Threads { threads });
        }
        let pool = Pool::new(threads).map_err(|source| CpuError::Spawn { threads, source })?;
        Ok(Self { isa, pool, room: Mutex::default() })
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

    /// `c[i, j] = sum over p of a[i, p] * b[j, p]` for the sizes `(m, n, k)`: each element one chain of fused multiply-adds, ascending.
    ///
    /// # Panics
    /// A side or the target is too short.
    pub fn product(
        &self,
        sizes: (usize, usize, usize),
        a: Side<'_>,
        b: Side<'_>,
        store: Store<'_>,
        c: Target<'_>,
    ) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        product::product(self.isa, &self.pool, sizes, a, b, store, c, &mut room);
    }

    /// `y = x / rms(x) * w` for every row of `x [m, n]`; `w` is `[n]`.
    pub fn rms_norm(&self, x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "rows of a norm");
        norm::rms_norm(self.isa, &self.pool, x, w, eps, y);
    }

    /// Int8 activations of every row of `x [m, k]`: `q [m, k]`, and `d [m]`, which makes integers real again.
    pub fn quantize(&self, x: &[f32], k: usize, q: &mut [i8], d: &mut [f32]) {
        assert_eq!((x.len(), x.len()), (q.len(), d.len() * k), "rows to quantize");
        quantize::rows(self.isa, &self.pool, x, k, q, d);
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
        attention::backward(self.isa, &self.pool, sequences, out, sums, dout, dqkv);
    }

    /// Rows of `logits [m, vocab]` become the gradients of `sum of weights[i] * cross-entropy of row i`; gives each row's cross-entropy in
    /// nats through `each`, in their order.
    pub fn cross_entropy(
        &self,
        logits: &mut [f32],
        targets: &[u32],
        weights: &[f32],
        each: &mut dyn FnMut(usize, f64),
    ) {
        let m = targets.len();
        assert!(weights.len() == m && (m == 0 || logits.len().is_multiple_of(m)), "targets of logits");
        let mut parts = vec![0.0; m * 3];
        loss::cross_entropy(self.isa, &self.pool, logits, targets, weights, &mut parts);
        for (i, part) in parts.as_chunks::<3>().0.iter().enumerate() {
            let [max, sum, wanted] = part.map(f64::from);
            each(i, libm::log(sum) + max - wanted);
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
