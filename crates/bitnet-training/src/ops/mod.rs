//! What models in training compute, on the CPU or on a device.

mod array;
mod device;
mod memory;
mod product;
#[cfg(test)]
mod tests;

use bitnet_core::{
    Activation, AdamStep, At, AttentionShape, BackendError, ColumnsOf, DeviceNorm, Sequences, SgdStep, Terms,
    TernaryMatrix, TrainingDevice,
};
use bitnet_cpu::{CpuTraining, Norm, QuantizedTokens, TernaryWeights};
use bitnet_quant::spec::rotate_half;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

pub use array::Array;
pub(crate) use array::{View, ViewMut};
use device::Device;
pub use memory::memory;
pub(crate) use memory::or_out_of_memory;
pub(crate) use product::{Factor, Side, Store, Target, Values};

/// Elements that a thread adds at a time.
const PIECE: usize = 1 << 14;

/// Threads, and where models are to be trained on one, a device.
///
/// What is not among its operations is computed by the threads, on slices ([`CpuTraining`], which it dereferences to).
#[derive(Clone)]
pub struct Ops {
    cpu: Arc<CpuTraining>,
    device: Option<Arc<Device>>,
}

impl From<Arc<CpuTraining>> for Ops {
    fn from(cpu: Arc<CpuTraining>) -> Self {
        Self { cpu, device: None }
    }
}

impl From<CpuTraining> for Ops {
    fn from(cpu: CpuTraining) -> Self {
        Arc::new(cpu).into()
    }
}

impl Deref for Ops {
    type Target = CpuTraining;
    fn deref(&self) -> &CpuTraining {
        &self.cpu
    }
}

impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Some(device) => device.operations().fmt(f),
            None => write!(f, "{} threads", self.threads()),
        }
    }
}

/// Codes of tokens, `[m, k]`, and what makes each real again.
#[derive(Default)]
pub(crate) struct Tokens {
    host: QuantizedTokens,
    /// Where they are on a device, codes in rows of a multiple of 16, and factors `[m]`.
    device: Option<(Array<i8>, Array)>,
    /// Where they are on the host, for products that run there.
    factors: Array,
}

impl Tokens {
    pub(crate) fn on_cpu(&self) -> &QuantizedTokens {
        &self.host
    }

    pub(crate) fn factors(&self) -> View<'_> {
        match &self.device {
            Some((_, factors)) => factors.into(),
            None => (&self.factors).into(),
        }
    }

    fn stride(&self) -> usize {
        self.device.as_ref().map_or(0, |(codes, _)| codes.stride())
    }

    fn on(&self, device: &Arc<Device>) -> Result<(At<'_>, At<'_>), BackendError> {
        match &self.device {
            Some((codes, factors)) => Ok((At::start(codes.on(device)?), At::start(factors.on(device)?))),
            None => Err(BackendError::Unsupported {
                backend: "training",
                what: "tokens that were quantized elsewhere".to_owned(),
                hint: "this is a defect; please report it",
            }),
        }
    }
}

/// Packed trits, and room for a copy of them on the device that a model computes on.
#[derive(Clone, Copy)]
pub(crate) struct Trits<'a> {
    pub(crate) weights: &'a TernaryWeights,
    pub(crate) copy: &'a OnceLock<Array<u8>>,
}

impl<'a> Trits<'a> {
    /// In the canonical form, and the trits of its rows.
    fn on(&self, device: &Arc<Device>) -> Result<(At<'a>, usize), BackendError> {
        let (rows, cols) = (self.weights.rows(), self.weights.cols());
        if self.copy.get().is_none() {
            let mut trits = vec![0; rows * cols];
            trits.chunks_exact_mut(cols).enumerate().for_each(|(r, trits)| self.weights.trits(r, trits));
            let matrix = TernaryMatrix::from_trits(rows, cols, &trits, bitnet_core::Scale::Tensor(1.0))?;
            let _ = self.copy.set(matrix.codes().to_vec().into());
        }
        let codes = self.copy.get().expect("it was made");
        Ok((At::start(codes.on(device)?), codes.len() / rows.max(1) * 4))
    }
}

impl Ops {
    /// Threads beside a device, which computes what it can.
    pub fn on(cpu: Arc<CpuTraining>, device: Box<dyn TrainingDevice>) -> Self {
        Self { cpu, device: Some(Arc::new(Device::new(device))) }
    }

    /// The name of the device, or `cpu`.
    pub fn name(&self) -> &str {
        self.device.as_ref().map_or("cpu", |device| device.operations().name())
    }

    /// What went wrong on the device since this was asked last.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<(), BackendError> {
        match self.device.as_ref().and_then(|device| device.failure()) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// The threads.
    pub(crate) fn cpu(&self) -> &CpuTraining {
        &self.cpu
    }

    pub(crate) fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    fn device(&self) -> Option<&Arc<Device>> {
        self.device.as_ref()
    }

    /// Runs something on the device and keeps what goes wrong; whether there is one.
    fn try_on(&self, f: impl FnOnce(&Arc<Device>, &dyn TrainingDevice) -> Result<(), BackendError>) -> bool {
        let Some(device) = &self.device else { return false };
        device.note(f(device, device.operations()));
        true
    }

    /// A copy.
    pub(crate) fn copy(&self, from: &Array, to: &mut Array) {
        to.sized(from.len());
        if !self.try_on(|device, on| {
            let from = At::start(from.on(device)?);
            let to = At::start(to.written_on(device)?);
            let len = to.memory.bytes() / 4;
            on.mix(from, 1.0, from, 0.0, to, len);
            Ok(())
        }) {
            to.copy_from_slice(from);
        }
    }

    /// Every element becomes this one.
    pub(crate) fn fill<'a>(&self, to: impl Into<ViewMut<'a>>, value: f32) {
        let mut to = to.into();
        let len = to.len();
        if self.device.is_none() {
            return to.host().fill(value);
        }
        self.try_on(|device, on| {
            on.fill(to.written_on(device)?, len, value);
            Ok(())
        });
    }

    /// `x += y`.
    pub(crate) fn add<'a>(&self, x: &mut Array, y: impl Into<View<'a>>) {
        let y = y.into();
        let len = x.len();
        assert_eq!(len, y.len(), "what is added");
        if self.device.is_none() {
            let y = y.host();
            return self.cpu.chunks(x, PIECE, &|i, x| {
                x.iter_mut().zip(&y[i * PIECE..]).for_each(|(x, y)| *x += y);
            });
        }
        self.try_on(|device, on| {
            let x = At::start(x.changed_on(device)?);
            on.mix(x, 1.0, y.on(device)?, 1.0, x, len);
            Ok(())
        });
    }

    /// `average = old * average + new * values`.
    pub(crate) fn average(&self, (old, new): (f32, f32), values: View<'_>, average: &mut Array) {
        let len = average.len();
        assert_eq!(len, values.len(), "what is averaged");
        if self.device.is_none() {
            let values = values.host();
            return self.cpu.chunks(average, PIECE, &|i, average| {
                average.iter_mut().zip(&values[i * PIECE..]).for_each(|(a, v)| *a = old * *a + new * v);
            });
        }
        self.try_on(|device, on| {
            let average = At::start(average.changed_on(device)?);
            on.mix(average, old, values.on(device)?, new, average, len);
            Ok(())
        });
    }

    /// Rows of a table, `[ids, n]`.
    pub(crate) fn gather(&self, table: View<'_>, ids: &[u32], n: usize, to: &mut Array) {
        to.sized(ids.len() * n);
        if self.device.is_none() {
            let table = table.host();
            return self.cpu.chunks(to, n, &|i, to| to.copy_from_slice(&table[ids[i] as usize * n..][..n]));
        }
        self.try_on(|device, on| {
            on.gather(table.on(device)?, ids, n, At::start(to.written_on(device)?));
            Ok(())
        });
    }

    /// Adds rows to those of a table, in the order of ids: one may stand more than once.
    pub(crate) fn scatter(&self, from: &Array, ids: &[u32], n: usize, mut table: ViewMut<'_>) {
        if self.device.is_none() {
            let table = table.host();
            for (id, from) in ids.iter().zip(from.chunks_exact(n)) {
                let row = &mut table[*id as usize * n..][..n];
                row.iter_mut().zip(from).for_each(|(row, from)| *row += from);
            }
            return;
        }
        self.try_on(|device, on| {
            on.scatter(At::start(from.on(device)?), ids, n, table.changed_on(device)?);
            Ok(())
        });
    }

    /// Columns `first..first + count` of rows of `stride`, row after row.
    pub(crate) fn take_columns(
        &self,
        from: &Array,
        stride: usize,
        (first, count): (usize, usize),
        to: &mut Array,
    ) {
        let rows = from.len() / stride;
        to.sized(rows * count);
        if self.device.is_none() {
            let from = &**from;
            return self.cpu.chunks(to, count, &|row, to| {
                to.copy_from_slice(&from[row * stride + first..][..count]);
            });
        }
        self.try_on(|device, on| {
            let from = ColumnsOf { at: At::start(from.on(device)?), stride, first };
            let to = ColumnsOf { at: At::start(to.written_on(device)?), stride: count, first: 0 };
            on.columns(from, to, rows, count);
            Ok(())
        });
    }

    /// The way back of [`Ops::take_columns`].
    pub(crate) fn put_columns(
        &self,
        from: &Array,
        (first, count): (usize, usize),
        to: &mut Array,
        stride: usize,
    ) {
        let rows = to.len() / stride;
        if self.device.is_none() {
            let from = &**from;
            return self.cpu.chunks(to, stride, &|row, to| {
                to[first..first + count].copy_from_slice(&from[row * count..][..count]);
            });
        }
        self.try_on(|device, on| {
            let from = ColumnsOf { at: At::start(from.on(device)?), stride: count, first: 0 };
            let to = ColumnsOf { at: At::start(to.changed_on(device)?), stride, first };
            on.columns(from, to, rows, count);
            Ok(())
        });
    }

    /// `y = x / rms(x) * w` for every row.
    pub(crate) fn rms_norm<'a>(&self, x: impl Into<View<'a>>, w: View<'_>, eps: f32, y: &mut Array) {
        let x = x.into();
        y.sized(x.len());
        if self.device.is_none() {
            return self.cpu.rms_norm(x.host(), w.host(), eps, y);
        }
        self.try_on(|device, on| {
            let sizes = (x.len() / w.len(), w.len());
            let norm = DeviceNorm { x: x.on(device)?, w: w.on(device)?, sizes, eps };
            on.norm(norm, At::start(y.written_on(device)?));
            Ok(())
        });
    }

    /// See [`CpuTraining::rms_norm_backward`].
    pub(crate) fn rms_norm_backward(
        &self,
        (x, w, eps): (&Array, View<'_>, f32),
        dy: &Array,
        add: bool,
        dx: &mut Array,
        dw: Option<ViewMut<'_>>,
    ) {
        let mut dw = dw;
        if self.device.is_none() {
            let norm = Norm { x, w: w.host(), eps };
            return self.cpu.rms_norm_backward(norm, dy, add, dx, dw.as_mut().map(|dw| dw.host()));
        }
        self.try_on(|device, on| {
            let sizes = (x.len() / w.len(), w.len());
            let norm = DeviceNorm { x: At::start(x.on(device)?), w: w.on(device)?, sizes, eps };
            let dy = At::start(dy.on(device)?);
            let dx = At::start(if add { dx.changed_on(device)? } else { dx.written_on(device)? });
            let dw = dw.as_mut().map(|dw| dw.changed_on(device)).transpose()?;
            on.norm_backward(norm, dy, add, dx, dw);
            Ok(())
        });
    }

    /// Int8 codes of every row of `x [m, k]`.
    pub(crate) fn quantize(&self, x: &Array, k: usize, out: &mut Tokens) {
        if self.device.is_none() {
            self.cpu.quantize(x, k, &mut out.host);
            return self.keep_factors(out);
        }
        let sizes = (x.len() / k, k);
        let (codes, factors) = out.device.get_or_insert_default();
        codes.sized_in_rows(sizes);
        factors.sized(sizes.0);
        self.try_on(|device, on| {
            let (x, stride) = (At::start(x.on(device)?), codes.stride());
            let (codes, factors) = (codes.written_on(device)?, factors.written_on(device)?);
            on.quantize(x, sizes, At::start(codes), stride, At::start(factors));
            Ok(())
        });
    }

    /// Codes that `f` makes on the host.
    pub(crate) fn quantize_with(
        &self,
        k: usize,
        out: &mut Tokens,
        f: impl FnOnce(&CpuTraining, &mut QuantizedTokens),
    ) {
        f(&self.cpu, &mut out.host);
        self.keep_factors(out);
        if self.device.is_none() {
            return;
        }
        let (codes, stride) = out.host.integers();
        let rows = codes.chunks_exact(stride.max(1)).flat_map(|row| &row[..k]).copied().collect();
        out.device = Some((Array::in_rows(rows, k), out.factors.clone()));
    }

    fn keep_factors(&self, out: &mut Tokens) {
        let factors = out.host.factors();
        out.factors.sized(factors.len()).copy_from_slice(factors);
    }

    /// Trits and the scale of master weights by absmean; `false` where the caller has to make them.
    pub(crate) fn absmean(
        &self,
        masters: View<'_>,
        cols: usize,
        codes: &mut Array<i8>,
        scales: &mut Array,
    ) -> bool {
        let sizes = (masters.len() / cols, cols);
        self.try_on(|device, on| {
            codes.sized_in_rows(sizes);
            scales.sized(1);
            let (masters, stride) = (masters.on(device)?, codes.stride());
            let (codes, scales) = (codes.written_on(device)?, scales.written_on(device)?);
            on.absmean(masters, sizes, At::start(codes), stride, At::start(scales));
            Ok(())
        })
    }

    /// Turns queries and keys in rows of `qkv` by the angles of their positions, or back.
    pub(crate) fn rotate(
        &self,
        qkv: &mut Array,
        shape: AttentionShape,
        positions: &[u32],
        (cos, sin): (&Array, &Array),
        back: bool,
    ) {
        let (d, half) = (shape.head_dim, shape.head_dim / 2);
        let turned = (shape.heads + shape.kv_heads) * d;
        if self.device.is_none() {
            let (cos, sin) = (&**cos, &**sin);
            return self.cpu.chunks(qkv, shape.qkv_cols(), &|row, qkv| {
                let at = positions[row] as usize * half;
                let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
                for head in qkv[..turned].chunks_exact_mut(d) {
                    if back {
                        rotate_back(head, cos, sin);
                    } else {
                        rotate_half(head, cos, sin);
                    }
                }
            });
        }
        self.try_on(|device, on| {
            let (cos, sin) = (At::start(cos.on(device)?), At::start(sin.on(device)?));
            on.rotate(At::start(qkv.changed_on(device)?), shape, positions, cos, sin, back);
            Ok(())
        });
    }

    /// See [`CpuTraining::attend`].
    pub(crate) fn attend(
        &self,
        qkv: &Array,
        shape: AttentionShape,
        spans: &[Range<usize>],
        out: &mut Array,
        sums: &mut Array,
    ) {
        let m = qkv.len() / shape.qkv_cols();
        out.sized(m * shape.heads * shape.head_dim);
        sums.sized(m * shape.heads * 2);
        if self.device.is_none() {
            return self.cpu.attend(qkv, shape, spans, out, sums);
        }
        self.try_on(|device, on| {
            let sequences = Sequences { qkv: At::start(qkv.on(device)?), rows: m, shape, spans };
            let (out, sums) = (out.written_on(device)?, sums.written_on(device)?);
            on.attend(sequences, At::start(out), At::start(sums));
            Ok(())
        });
    }

    /// See [`CpuTraining::attend_backward`].
    #[allow(clippy::too_many_arguments, reason = "what went in, what came out, and the gradients of both")]
    pub(crate) fn attend_backward(
        &self,
        qkv: &Array,
        shape: AttentionShape,
        spans: &[Range<usize>],
        (out, sums): (&Array, &Array),
        dout: &Array,
        terms: Terms,
        dqkv: &mut Array,
    ) {
        let m = qkv.len() / shape.qkv_cols();
        dqkv.sized(qkv.len());
        if self.device.is_none() {
            return self.cpu.attend_backward(qkv, shape, spans, (out, sums), dout, terms, dqkv);
        }
        self.try_on(|device, on| {
            let sequences = Sequences { qkv: At::start(qkv.on(device)?), rows: m, shape, spans };
            let gave = (At::start(out.on(device)?), At::start(sums.on(device)?));
            let dout = At::start(dout.on(device)?);
            on.attend_backward(sequences, gave, dout, terms, At::start(dqkv.written_on(device)?));
            Ok(())
        });
    }

    /// `out [m, n] = act(gate) * up` from rows `[gate | up]`.
    pub(crate) fn gate(&self, gate_up: &Array, n: usize, act: Activation, out: &mut Array) {
        out.sized(gate_up.len() / 2);
        if self.device.is_none() {
            return self.cpu.gate(gate_up, n, act, out);
        }
        self.try_on(|device, on| {
            let sizes = (out.len() / n, n);
            on.gate(At::start(gate_up.on(device)?), sizes, act, At::start(out.written_on(device)?));
            Ok(())
        });
    }

    /// The gradients of `gate_up` from those of `out`.
    pub(crate) fn gate_backward(
        &self,
        gate_up: &Array,
        dout: &Array,
        n: usize,
        act: Activation,
        out: &mut Array,
    ) {
        out.sized(gate_up.len());
        if self.device.is_none() {
            return self.cpu.gate_backward(gate_up, dout, n, act, out);
        }
        self.try_on(|device, on| {
            let (gate_up, dout_at) = (At::start(gate_up.on(device)?), At::start(dout.on(device)?));
            let sizes = (dout.len() / n, n);
            on.gate_backward(gate_up, dout_at, sizes, act, At::start(out.written_on(device)?));
            Ok(())
        });
    }

    /// See [`CpuTraining::cross_entropy`].
    pub(crate) fn cross_entropy(
        &self,
        logits: &mut Array,
        targets: &[u32],
        weights: &[f32],
        parts: ViewMut<'_>,
    ) {
        let mut parts = parts;
        if self.device.is_none() {
            return self.cpu.cross_entropy(logits, targets, weights, parts.host());
        }
        let vocab = logits.len() / targets.len().max(1);
        self.try_on(|device, on| {
            let logits = At::start(logits.changed_on(device)?);
            on.cross_entropy(logits, vocab, targets, weights, parts.changed_on(device)?);
            Ok(())
        });
    }

    /// The length of a vector; no number where the device failed.
    pub(crate) fn length(&self, x: &Array) -> f64 {
        let Some(device) = &self.device else { return crate::norm(&self.cpu, x) };
        let length = x.on(device).and_then(|at| device.operations().length(At::start(at), x.len()));
        device.note(length).unwrap_or(f64::NAN)
    }

    /// A step of Adam; `false` where the caller has to take it.
    pub(crate) fn adam(
        &self,
        step: &Adam,
        p: ViewMut<'_>,
        gradient: View<'_>,
        m: ViewMut<'_>,
        v: ViewMut<'_>,
    ) -> bool {
        let (mut p, mut m, mut v) = (p, m, v);
        self.try_on(|device, on| {
            let gradient = gradient.on(device)?;
            let len = p.len();
            let (p, m, v) = (p.changed_on(device)?, m.changed_on(device)?, v.changed_on(device)?);
            let Adam { scale, pull, keep, step, root, first, second, eps } = *step;
            on.adam(&AdamStep { p, gradient, m, v, len, scale, pull, keep, step, root, first, second, eps });
            Ok(())
        })
    }

    /// A step of SGD; `false` where the caller has to take it.
    pub(crate) fn sgd(&self, step: &Sgd, p: ViewMut<'_>, gradient: View<'_>, buffer: ViewMut<'_>) -> bool {
        let (mut p, mut buffer) = (p, buffer);
        self.try_on(|device, on| {
            let gradient = gradient.on(device)?;
            let len = p.len();
            let (p, buffer) = (p.changed_on(device)?, buffer.changed_on(device)?);
            let Sgd { scale, momentum, keep, rate, nesterov } = *step;
            on.sgd(&SgdStep { p, gradient, buffer, len, scale, momentum, keep, rate, nesterov });
            Ok(())
        })
    }
}

/// Numbers of a step of Adam; see [`AdamStep`].
#[derive(Clone, Copy)]
pub(crate) struct Adam {
    pub(crate) scale: f32,
    pub(crate) pull: f32,
    pub(crate) keep: f32,
    pub(crate) step: f32,
    pub(crate) root: f32,
    pub(crate) first: (f32, f32),
    pub(crate) second: (f32, f32),
    pub(crate) eps: f32,
}

/// Numbers of a step of SGD; see [`SgdStep`].
#[derive(Clone, Copy)]
pub(crate) struct Sgd {
    pub(crate) scale: f32,
    pub(crate) momentum: f32,
    pub(crate) keep: f32,
    pub(crate) rate: f32,
    pub(crate) nesterov: bool,
}

/// Undoes [`rotate_half`]; the same is the way back of gradients.
fn rotate_back(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (u, v) = (*a, *b);
        *a = u * c + v * s;
        *b = v * c - u * s;
    }
}
