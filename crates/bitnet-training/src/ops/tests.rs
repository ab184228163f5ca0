//! The trainer over a device with memory of its own, which here is the CPU once more.

use super::*;
use bitnet_core::{DeviceSide, DeviceStore, DeviceValues, Memory, Product};
use bitnet_cpu as cpu;
use std::sync::{Mutex, PoisonError};

/// A device whose memory nobody reaches but by copies, and whose operations are the CPU's.
pub(crate) struct Elsewhere {
    cpu: Arc<CpuTraining>,
    failure: Arc<Mutex<Option<BackendError>>>,
    /// Requests for memory until one fails.
    left: Mutex<Option<usize>>,
}

struct Bytes(Mutex<Vec<u8>>);

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Elsewhere {
    pub(crate) fn new(cpu: Arc<CpuTraining>) -> Self {
        Self { cpu, failure: Arc::default(), left: Mutex::default() }
    }

    /// One that has no memory any more behind so many requests.
    pub(crate) fn failing(cpu: Arc<CpuTraining>, left: usize) -> Self {
        Self { left: Some(left).into(), ..Self::new(cpu) }
    }
}

fn with<T>(memory: &Memory, f: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let bytes = memory.held::<Bytes>().expect("this device's memory");
    f(&mut bytes.0.lock().unwrap())
}

fn floats(at: At<'_>, len: usize) -> Vec<f32> {
    with(at.memory, |bytes| bytemuck::pod_collect_to_vec(&bytes[at.first * 4..(at.first + len) * 4]))
}

fn put(at: At<'_>, values: &[f32]) {
    with(at.memory, |bytes| {
        bytes[at.first * 4..][..values.len() * 4].copy_from_slice(bytemuck::cast_slice(values))
    });
}

fn put_bytes(at: At<'_>, values: &[i8]) {
    with(at.memory, |bytes| bytes[at.first..][..values.len()].copy_from_slice(bytemuck::cast_slice(values)));
}

/// Everything behind a place.
fn rest(at: At<'_>) -> Vec<f32> {
    floats(at, at.memory.bytes() / 4 - at.first)
}

/// The elements of `vectors` vectors, row after row.
fn side(side: DeviceSide<'_>, vectors: usize, k: usize) -> (Vec<f32>, bool) {
    let last = if side.columns { (k.max(1) - 1) * side.stride + vectors } else { vectors * side.stride };
    let values: Vec<f32> = match side.values {
        DeviceValues::F32(at) => {
            // The last row may end early.
            floats(at, last.min(at.memory.bytes() / 4 - at.first))
        }
        DeviceValues::I8(at) => {
            assert!(at.first.is_multiple_of(16) && side.stride.is_multiple_of(16));
            with(at.memory, |b| b[at.first..].iter().map(|b| f32::from(*b as i8)).collect())
        }
        DeviceValues::Trits(at) => with(at.memory, |b| {
            let trits = |b: &u8| [0, 2, 4, 6].map(|shift| f32::from(*b >> shift & 3) - 1.0);
            b[at.first..].iter().flat_map(trits).collect()
        }),
    };
    let factors = side.factors.map(|at| floats(at, k));
    let of = |v: usize, p: usize| {
        let i = if side.columns { p * side.stride + v } else { v * side.stride + p };
        values[i] * factors.as_ref().map_or(1.0, |f| f[p])
    };
    let all = (0..vectors).flat_map(|v| (0..k).map(move |p| (v, p))).map(|(v, p)| of(v, p)).collect();
    (all, !matches!(side.values, DeviceValues::F32(_)) && side.factors.is_none())
}

impl TrainingDevice for Elsewhere {
    fn name(&self) -> &str {
        "elsewhere"
    }

    fn memory(&self, bytes: usize) -> Result<Memory, BackendError> {
        let mut left = self.left.lock().unwrap();
        match left.as_mut() {
            Some(0) => Err(BackendError::OutOfMemory { bytes, what: "training" }),
            other => {
                other.into_iter().for_each(|left| *left -= 1);
                // No number: what is used before it is written shows.
                Ok(Memory::new(bytes, Bytes(Mutex::new(vec![0xff; bytes]))))
            }
        }
    }

    fn upload(&self, memory: &Memory, from: usize, bytes: &[u8]) {
        assert!(from.is_multiple_of(4) && bytes.len().is_multiple_of(4));
        with(memory, |to| to[from..][..bytes.len()].copy_from_slice(bytes));
    }

    fn download(&self, memory: &Memory, from: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        with(memory, |all| bytes.copy_from_slice(&all[from..][..bytes.len()]));
        match self.failure() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn failure(&self) -> Option<BackendError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn product(&self, product: &Product<'_>) {
        let Product { terms, sizes: (m, n, k), a, b, store, c, stride, first } = *product;
        let ((a, whole), (b, both)) = (side(a, m, k), side(b, n, k));
        let terms = if whole && both { Terms::F32 } else { terms };
        let mut values = floats(c, m * stride);
        let scales = |factor| match factor {
            bitnet_core::Factor::Value(v) => vec![v; m * n],
            bitnet_core::Factor::One(at) => vec![floats(at, 1)[0]; m * n],
            bitnet_core::Factor::Rows(at) => {
                floats(at, m).into_iter().flat_map(|v| std::iter::repeat_n(v, n)).collect()
            }
            bitnet_core::Factor::Columns(at) => floats(at, n).repeat(m),
        };
        let (how, rows, scale) = match store {
            DeviceStore::Continue => (cpu::Store::Continue, None, vec![]),
            DeviceStore::Set { rows, scale } => {
                (cpu::Store::Set(1.0), rows.map(|at| floats(at, m)), scales(scale))
            }
            DeviceStore::Add { scale: bitnet_core::Factor::Value(v) } => (cpu::Store::Add(v), None, vec![]),
            DeviceStore::Add { scale } => (cpu::Store::Add(scales(scale)[0]), None, vec![]),
        };
        let target = cpu::Target { values: &mut values, stride, first };
        let (a, b) = (cpu::Side::rows(cpu::Values::F32(&a), k), cpu::Side::rows(cpu::Values::F32(&b), k));
        self.cpu.product(terms, (m, n, k), a, b, how, target);
        for (i, scale) in scale.into_iter().enumerate() {
            values[i / n * stride + first + i % n] *= rows.as_ref().map_or(1.0, |rows| rows[i / n]) * scale;
        }
        put(c, &values);
    }

    fn mix(&self, x: At<'_>, a: f32, y: At<'_>, b: f32, to: At<'_>, len: usize) {
        let term = |at, factor| if factor == 0.0 { vec![0.0; len] } else { floats(at, len) };
        let mixed: Vec<f32> = term(x, a)
            .iter()
            .zip(&term(y, b))
            .map(|(x, y)| if b == 0.0 { a * x } else { a * x + b * y })
            .collect();
        put(to, &mixed);
    }

    fn fill(&self, to: At<'_>, len: usize, value: f32) {
        put(to, &vec![value; len]);
    }

    fn columns(&self, from: ColumnsOf<'_>, to: ColumnsOf<'_>, rows: usize, count: usize) {
        for row in 0..rows {
            let values = floats(from.at.skip(row * from.stride + from.first), count);
            put(to.at.skip(row * to.stride + to.first), &values);
        }
    }

    fn gather(&self, table: At<'_>, ids: &[u32], n: usize, to: At<'_>) {
        for (i, id) in ids.iter().enumerate() {
            put(to.skip(i * n), &floats(table.skip(*id as usize * n), n));
        }
    }

    fn scatter(&self, from: At<'_>, ids: &[u32], n: usize, table: At<'_>) {
        for (i, id) in ids.iter().enumerate() {
            let row = table.skip(*id as usize * n);
            let sum: Vec<f32> =
                floats(row, n).iter().zip(floats(from.skip(i * n), n)).map(|(a, b)| a + b).collect();
            put(row, &sum);
        }
    }

    fn norm(&self, norm: DeviceNorm<'_>, y: At<'_>) {
        let (m, n) = norm.sizes;
        let mut out = vec![0.0; m * n];
        self.cpu.rms_norm(&floats(norm.x, m * n), &floats(norm.w, n), norm.eps, &mut out);
        put(y, &out);
    }

    fn norm_backward(&self, norm: DeviceNorm<'_>, dy: At<'_>, add: bool, dx: At<'_>, dw: Option<At<'_>>) {
        let (m, n) = norm.sizes;
        let (x, w) = (floats(norm.x, m * n), floats(norm.w, n));
        let mut out = if add { floats(dx, m * n) } else { vec![0.0; m * n] };
        let mut of_w = dw.map(|dw| floats(dw, n));
        let norm = Norm { x: &x, w: &w, eps: norm.eps };
        self.cpu.rms_norm_backward(norm, &floats(dy, m * n), add, &mut out, of_w.as_deref_mut());
        put(dx, &out);
        dw.into_iter().zip(of_w).for_each(|(dw, of_w)| put(dw, &of_w));
    }

    fn quantize(&self, x: At<'_>, (m, k): (usize, usize), codes: At<'_>, stride: usize, d: At<'_>) {
        let mut tokens = QuantizedTokens::default();
        self.cpu.quantize(&floats(x, m * k), k, &mut tokens);
        let (own, own_stride) = tokens.integers();
        for row in 0..m {
            let mut wide = vec![0; stride];
            wide[..k].copy_from_slice(&own[row * own_stride..][..k]);
            put_bytes(codes.skip(row * stride), &wide);
        }
        put(d, tokens.factors());
    }

    fn absmean(&self, masters: At<'_>, (m, k): (usize, usize), codes: At<'_>, stride: usize, scale: At<'_>) {
        let mut quantized = crate::Quantized::default();
        let (masters, absmean) = (floats(masters, m * k), crate::WeightQuantizer::Absmean);
        absmean.quantize(&self.cpu, &masters, k, &[], crate::Rounding::Nearest, &mut quantized);
        for row in 0..m {
            let mut wide = vec![0; stride];
            wide[..k].copy_from_slice(&quantized.codes[row * k..][..k]);
            put_bytes(codes.skip(row * stride), &wide);
        }
        put(scale, &quantized.scales);
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
        let mut all = Array::from(floats(qkv, positions.len() * shape.qkv_cols()));
        let tables = (&rest(cos).into(), &rest(sin).into());
        Ops::from(Arc::clone(&self.cpu)).rotate(&mut all, shape, positions, tables, back);
        put(qkv, &all);
    }

    fn attend(&self, s: Sequences<'_>, out: At<'_>, sums: At<'_>) {
        let (q, heads) = (s.shape.heads * s.shape.head_dim, s.shape.heads);
        let qkv = floats(s.qkv, s.rows * s.shape.qkv_cols());
        let (mut o, mut of) = (floats(out, s.rows * q), floats(sums, s.rows * heads * 2));
        self.cpu.attend(&qkv, s.shape, s.spans, &mut o, &mut of);
        put(out, &o);
        put(sums, &of);
    }

    fn attend_backward(
        &self,
        s: Sequences<'_>,
        (out, sums): (At<'_>, At<'_>),
        dout: At<'_>,
        terms: Terms,
        dqkv: At<'_>,
    ) {
        let (q, heads, cols) = (s.shape.heads * s.shape.head_dim, s.shape.heads, s.shape.qkv_cols());
        let (out, sums) = (floats(out, s.rows * q), floats(sums, s.rows * heads * 2));
        let (qkv, dout) = (floats(s.qkv, s.rows * cols), floats(dout, s.rows * q));
        let mut gradients = floats(dqkv, s.rows * cols);
        self.cpu.attend_backward(&qkv, s.shape, s.spans, (&out, &sums), &dout, terms, &mut gradients);
        put(dqkv, &gradients);
    }

    fn gate(&self, gate_up: At<'_>, (m, n): (usize, usize), act: Activation, out: At<'_>) {
        let mut o = vec![0.0; m * n];
        self.cpu.gate(&floats(gate_up, m * 2 * n), n, act, &mut o);
        put(out, &o);
    }

    fn gate_backward(
        &self,
        gate_up: At<'_>,
        dout: At<'_>,
        (m, n): (usize, usize),
        act: Activation,
        out: At<'_>,
    ) {
        let mut o = vec![0.0; m * 2 * n];
        self.cpu.gate_backward(&floats(gate_up, m * 2 * n), &floats(dout, m * n), n, act, &mut o);
        put(out, &o);
    }

    fn cross_entropy(&self, logits: At<'_>, vocab: usize, targets: &[u32], weights: &[f32], parts: At<'_>) {
        let mut rows = floats(logits, targets.len() * vocab);
        let mut of = vec![0.0; targets.len() * 3];
        self.cpu.cross_entropy(&mut rows, targets, weights, &mut of);
        put(logits, &rows);
        put(parts, &of);
    }

    fn length(&self, x: At<'_>, len: usize) -> Result<f64, BackendError> {
        Ok(crate::norm(&self.cpu, &floats(x, len)))
    }

    fn adam(&self, s: &AdamStep<'_>) {
        let [mut p, g, mut m, mut v] = [s.p, s.gradient, s.m, s.v].map(|at| floats(at, s.len));
        for (((p, m), v), g) in p.iter_mut().zip(&mut m).zip(&mut v).zip(&g) {
            let g = g * s.scale + s.pull * *p;
            *m = s.first.0 * *m + s.first.1 * g;
            *v = s.second.0 * *v + s.second.1 * (g * g);
            *p = *p * s.keep - s.step * (*m / (v.sqrt() / s.root + s.eps));
        }
        [(s.p, p), (s.m, m), (s.v, v)].into_iter().for_each(|(at, values)| put(at, &values));
    }

    fn sgd(&self, s: &SgdStep<'_>) {
        let [mut p, g, mut buffer] = [s.p, s.gradient, s.buffer].map(|at| floats(at, s.len));
        for ((p, buffer), g) in p.iter_mut().zip(&mut buffer).zip(&g) {
            let g = g * s.scale;
            *buffer = s.momentum * *buffer + g;
            let along = if s.nesterov { g + s.momentum * *buffer } else { *buffer };
            *p = *p * s.keep - s.rate * along;
        }
        [(s.p, p), (s.buffer, buffer)].into_iter().for_each(|(at, values)| put(at, &values));
    }
}

fn elsewhere() -> Ops {
    let cpu = Arc::new(CpuTraining::new(None, Some(2)).unwrap());
    Ops::on(Arc::clone(&cpu), Box::new(Elsewhere::new(cpu)))
}

#[test]
fn arrays_are_where_they_were_last_used() {
    let ops = elsewhere();
    let mut x = Array::from(vec![1.0f32, 2.0, 3.0]);
    ops.add(&mut x, &Array::from(vec![1.0; 3]));
    assert_eq!(*x, [2.0, 3.0, 4.0]);
    x[1] = 0.0;
    let mut y = Array::default();
    ops.copy(&x, &mut y);
    ops.fill(x.part_mut(0..2), 7.0);
    assert_eq!((&*x, &*y), (&[7.0, 7.0, 4.0][..], &[2.0, 0.0, 4.0][..]));
    ops.add(&mut x, &y);
    assert_eq!(*x, [9.0, 7.0, 8.0]);
    // Rows of integers lie further apart on a device.
    let (mut codes, mut scales) = (Array::default(), Array::default());
    assert!(ops.absmean(
        (&Array::from(vec![0.5, -2.0, 0.1, 3.0, 0.0, -1.0])).into(),
        3,
        &mut codes,
        &mut scales
    ));
    assert_eq!((&*codes, codes.len(), codes.stride()), (&[0, -1, 0, 1, 0, -1][..], 6, 16));
    let again = codes.clone();
    let mut product = Array::default();
    let (a, b) = (Side::rows(&y, 3), Side::rows(Values::Codes(&again), 3));
    let store = Store::Set(Factor::scales(&scales));
    ops.product(Terms::F32, (1, 2, 3), a, b, store, Target::whole(product.sized(2), 2));
    assert_eq!(*product, [0.0 * scales[0], (2.0 - 4.0) * scales[0]]);
}

#[test]
fn what_goes_wrong_is_told_once() {
    let cpu = Arc::new(CpuTraining::new(None, Some(2)).unwrap());
    let ops = Ops::on(Arc::clone(&cpu), Box::new(Elsewhere::failing(cpu, 1)));
    let mut x = Array::from(vec![1.0f32; 4]);
    ops.add(&mut x, &Array::from(vec![1.0; 4]));
    assert!(matches!(ops.check(), Err(BackendError::OutOfMemory { bytes: 16, .. })));
    ops.check().unwrap();
}
