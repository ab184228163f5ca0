//! The operations of training one number after the other, in the order of `docs/numerics.md`.

use super::order::{DEPTH, chain, dot16, exp, gated, magnitude, pieces, slope, sum16, total};
use bitnet_core::{
    Activation, AdamStep, At, AttentionShape, BackendError, ColumnsOf, DeviceNorm, DeviceSide, DeviceStore,
    DeviceValues, Factor, Memory, Product, Sequences, SgdStep, Terms, TrainingDevice,
};
use bitnet_memory::Tag;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Positions of a part of a softmax.
const SEGMENT: usize = 256;
/// Queries whose gradients of keys and values are summed together.
const QUERIES: usize = 64;
/// Rows of a norm whose gradients of the weight are summed together.
const ROWS: usize = 64;

/// A device without kernels: memory is the host's, and every element is computed by itself.
#[derive(Debug, Default)]
pub struct Plain {
    /// Requests for memory that are left until there is none.
    requests: Mutex<Option<usize>>,
    /// Products that are left until it is lost.
    products: Mutex<Option<usize>>,
    lost: Mutex<Option<BackendError>>,
}

impl Plain {
    /// One with all the memory that there is.
    pub const fn new() -> Self {
        Self { requests: Mutex::new(None), products: Mutex::new(None), lost: Mutex::new(None) }
    }

    /// One that has no memory any more behind so many requests.
    pub fn failing(requests: usize) -> Self {
        Self { requests: Some(requests).into(), ..Self::new() }
    }

    /// One that is lost behind so many products.
    pub fn lost(products: usize) -> Self {
        Self { products: Some(products).into(), ..Self::new() }
    }
}

type Room = Mutex<Vec<u8>>;

fn bytes(memory: &Memory) -> MutexGuard<'_, Vec<u8>> {
    let room: &Room = memory.held().expect("memory of this device");
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

fn floats(at: At<'_>, len: usize) -> Vec<f32> {
    let bytes = bytes(at.memory);
    bytes[at.first * 4..][..len * 4].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn put(at: At<'_>, values: &[f32]) {
    let mut bytes = bytes(at.memory);
    let out = &mut bytes[at.first * 4..][..values.len() * 4];
    out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, v)| *out = v.to_le_bytes());
}

fn change(at: At<'_>, len: usize, f: impl FnOnce(&mut [f32])) {
    let mut values = floats(at, len);
    f(&mut values);
    put(at, &values);
}

/// Vectors of a side, `[vectors, k]`.
fn side(side: DeviceSide<'_>, vectors: usize, k: usize) -> Vec<f32> {
    let factors = side.factors.map(|at| floats(at, k));
    let value = |element: usize| match side.values {
        DeviceValues::F32(at) => floats(at.skip(element), 1)[0],
        DeviceValues::I8(at) => f32::from(bytes(at.memory)[at.first + element] as i8),
        DeviceValues::Trits(at) => {
            let code = bytes(at.memory)[at.first + element / 4] >> (2 * (element % 4)) & 3;
            f32::from(code) - 1.0
        }
    };
    let mut out = Vec::with_capacity(vectors * k);
    for i in 0..vectors {
        for p in 0..k {
            let (row, column) = if side.columns { (p, i) } else { (i, p) };
            let factor = factors.as_ref().map_or(1.0, |factors| factors[p]);
            out.push(value(row * side.stride + column) * factor);
        }
    }
    out
}

fn is_whole(side: &DeviceSide<'_>) -> bool {
    side.factors.is_none() && !matches!(side.values, DeviceValues::F32(_))
}

/// One of [`Factor`] for every row and column.
fn factor(factor: Factor<'_>, (m, n): (usize, usize)) -> impl Fn(usize, usize) -> f32 {
    let (rows, columns, values) = match factor {
        Factor::Value(v) => (0, 0, vec![v]),
        Factor::One(at) => (0, 0, floats(at, 1)),
        Factor::Rows(at) => (1, 0, floats(at, m)),
        Factor::Columns(at) => (0, 1, floats(at, n)),
    };
    move |i, j| values[i * rows + j * columns]
}

/// The head of a row, and where its keys and values are.
struct Head {
    q: usize,
    k: usize,
    v: usize,
}

fn head(shape: AttentionShape, head: usize) -> Head {
    let AttentionShape { heads, kv_heads, head_dim: d } = shape;
    let group = head / (heads / kv_heads);
    Head { q: head * d, k: (heads + group) * d, v: (heads + kv_heads + group) * d }
}

fn score(q: &[f32], k: &[f32]) -> f32 {
    chain(q.len(), |p| q[p], |p| k[p], 0.0) * (1.0 / (q.len() as f32).sqrt())
}

impl TrainingDevice for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn memory(&self, bytes: usize, _tag: Tag) -> Result<Memory, BackendError> {
        let mut left = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > 1 << 40 || *left == Some(0) {
            return Err(BackendError::OutOfMemory { bytes, what: "training" });
        }
        *left = left.map(|left| left - 1);
        Ok(Memory::new(bytes, Room::new(vec![0xff; bytes])))
    }

    fn upload(&self, memory: &Memory, from: usize, new: &[u8]) {
        bytes(memory)[from..][..new.len()].copy_from_slice(new);
    }

    fn download(&self, memory: &Memory, from: usize, out: &mut [u8]) -> Result<(), BackendError> {
        out.copy_from_slice(&bytes(memory)[from..][..out.len()]);
        self.failure().map_or(Ok(()), Err)
    }

    fn failure(&self) -> Option<BackendError> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn product(&self, product: &Product<'_>) {
        let mut left = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        if *left == Some(0) {
            let lost = BackendError::Device { device: self.name().to_owned(), why: "it was lost".to_owned() };
            *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(lost);
        }
        *left = left.map(|left| left.saturating_sub(1));
        drop(left);
        let Product { terms, sizes: (m, n, k), a, b, store, c, stride, first } = *product;
        let whole = is_whole(&a) && is_whole(&b);
        let (a, b) = (side(a, m, k), side(b, n, k));
        let sum = |i: usize, j: usize, from: usize, to: usize, before: f32| {
            let (x, y) = (&a[i * k..][from..to], &b[j * k..][from..to]);
            if whole {
                let exact: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                return before + exact as f32;
            }
            total(terms, to - from, |p| x[p], |p| y[p], before)
        };
        let factors: &dyn Fn(usize, usize) -> f32 = match store {
            DeviceStore::Set { rows, scale } => {
                let (rows, scale) = (rows.map(|at| floats(at, m)), factor(scale, (m, n)));
                &move |i, j| rows.as_ref().map_or(scale(i, j), |rows| rows[i] * scale(i, j))
            }
            DeviceStore::Add { scale } => &factor(scale, (m, n)),
            DeviceStore::Continue => &|_, _| 1.0,
        };
        for i in 0..m {
            change(c.skip(i * stride + first), n, |row| {
                for (j, c) in row.iter_mut().enumerate() {
                    *c = match store {
                        DeviceStore::Set { .. } => sum(i, j, 0, k, 0.0) * factors(i, j),
                        DeviceStore::Continue => sum(i, j, 0, k, *c),
                        DeviceStore::Add { .. } if whole => *c + sum(i, j, 0, k, 0.0) * factors(i, j),
                        DeviceStore::Add { .. } => (0..k).step_by(DEPTH).fold(*c, |c, from| {
                            c + sum(i, j, from, k.min(from + DEPTH), 0.0) * factors(i, j)
                        }),
                    }
                }
            });
        }
    }

    fn mix(&self, x: At<'_>, a: f32, y: At<'_>, b: f32, to: At<'_>, len: usize) {
        let (x, y) = (floats(x, len), floats(y, len));
        let mixed: Vec<f32> = (0..len)
            .map(|i| match (a == 0.0, b == 0.0) {
                (false, false) => a * x[i] + b * y[i],
                (false, true) => a * x[i],
                (true, false) => b * y[i],
                (true, true) => 0.0,
            })
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
            let own = floats(from.skip(i * n), n);
            change(table.skip(*id as usize * n), n, |row| {
                row.iter_mut().zip(&own).for_each(|(row, own)| *row += own);
            });
        }
    }

    fn norm(&self, norm: DeviceNorm<'_>, y: At<'_>) {
        let (m, n) = norm.sizes;
        let w = floats(norm.w, n);
        for row in 0..m {
            let x = floats(norm.x.skip(row * n), n);
            let r = 1.0 / (dot16(&x, &x) / n as f32 + norm.eps).sqrt();
            let row_y: Vec<f32> = x.iter().zip(&w).map(|(x, w)| (x * r) * w).collect();
            put(y.skip(row * n), &row_y);
        }
    }

    fn norm_backward(&self, norm: DeviceNorm<'_>, dy: At<'_>, add: bool, dx: At<'_>, dw: Option<At<'_>>) {
        let (m, n) = norm.sizes;
        let w = floats(norm.w, n);
        let mut parts = vec![vec![0.0f32; n]; m.div_ceil(ROWS)];
        for row in 0..m {
            let (x, dy) = (floats(norm.x.skip(row * n), n), floats(dy.skip(row * n), n));
            let squares = sum16(n, |i| x[i] * x[i]);
            let along = sum16(n, |i| x[i] * (w[i] * dy[i]));
            let r = 1.0 / (squares / n as f32 + norm.eps).sqrt();
            let back = r * r * r * (along / n as f32);
            change(dx.skip(row * n), n, |dx| {
                for i in 0..n {
                    let d = r * (w[i] * dy[i]) - x[i] * back;
                    dx[i] = if add { dx[i] + d } else { d };
                    parts[row / ROWS][i] += dy[i] * (x[i] * r);
                }
            });
        }
        let Some(dw) = dw else { return };
        change(dw, n, |dw| {
            parts.iter().for_each(|part| dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part));
        });
    }

    fn quantize(&self, x: At<'_>, (m, k): (usize, usize), codes: At<'_>, stride: usize, d: At<'_>) {
        for row in 0..m {
            let x = floats(x.skip(row * k), k);
            let s = 127.0 / x.iter().fold(1e-5f32, |m, v| if v.abs() > m { v.abs() } else { m });
            let mut bytes = bytes(codes.memory);
            let out = &mut bytes[codes.first + row * stride..][..stride];
            out.fill(0);
            out.iter_mut().zip(&x).for_each(|(out, x)| {
                *out = (x * s).round_ties_even().clamp(-128.0, 127.0) as i8 as u8;
            });
            drop(bytes);
            put(d.skip(row), &[1.0 / s]);
        }
    }

    fn absmean(
        &self,
        masters: At<'_>,
        (rows, cols): (usize, usize),
        codes: At<'_>,
        stride: usize,
        scale: At<'_>,
    ) {
        let values = floats(masters, rows * cols);
        let s = 1.0 / magnitude(&values, cols);
        for row in 0..rows {
            let mut bytes = bytes(codes.memory);
            let out = &mut bytes[codes.first + row * stride..][..stride];
            out.fill(0);
            out.iter_mut().zip(&values[row * cols..][..cols]).for_each(|(out, w)| {
                *out = (w * s).round_ties_even().clamp(-1.0, 1.0) as i8 as u8;
            });
        }
        put(scale, &[1.0 / s]);
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
        let (d, half) = (shape.head_dim, shape.head_dim / 2);
        for (row, position) in positions.iter().enumerate() {
            let at = *position as usize * half;
            let (cos, sin) = (floats(cos.skip(at), half), floats(sin.skip(at), half));
            change(qkv.skip(row * shape.qkv_cols()), (shape.heads + shape.kv_heads) * d, |row| {
                for head in row.chunks_exact_mut(d) {
                    for i in 0..half {
                        let (a, b, c, s) = (head[i], head[i + half], cos[i], sin[i]);
                        let turned = if back {
                            (a * c + b * s, b * c - a * s)
                        } else {
                            (a * c - b * s, b * c + a * s)
                        };
                        (head[i], head[i + half]) = turned;
                    }
                }
            });
        }
    }

    fn attend(&self, sequences: Sequences<'_>, out: At<'_>, sums: At<'_>) {
        let Sequences { qkv, rows, shape, spans } = sequences;
        let (d, cols, wide) = (shape.head_dim, shape.qkv_cols(), shape.heads * shape.head_dim);
        let qkv = floats(qkv, rows * cols);
        for (span, h) in spans.iter().flat_map(|span| (0..shape.heads).map(move |h| (span, h))) {
            let at = head(shape, h);
            let of = |row: usize, column: usize| &qkv[(span.start + row) * cols + column..][..d];
            for i in 0..span.len() {
                let parts: Vec<(f32, f32, Vec<f32>)> = (0..=i)
                    .step_by(SEGMENT)
                    .map(|from| {
                        let n = SEGMENT.min(i + 1 - from);
                        let mut s: Vec<f32> =
                            (0..n).map(|j| score(of(i, at.q), of(from + j, at.k))).collect();
                        let max = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        s.iter_mut().for_each(|s| *s = exp(*s - max));
                        let o = (0..d).map(|e| chain(n, |j| s[j], |j| of(from + j, at.v)[e], 0.0)).collect();
                        (max, sum16(n, |j| s[j]), o)
                    })
                    .collect();
                let max = parts.iter().fold(f32::NEG_INFINITY, |m, part| m.max(part.0));
                let (mut sum, mut o) = (0.0f32, vec![0.0f32; d]);
                for (own, weights, part) in &parts {
                    let e = exp(own - max);
                    sum = weights.mul_add(e, sum);
                    o.iter_mut().zip(part).for_each(|(o, part)| *o = part.mul_add(e, *o));
                }
                let row = span.start + i;
                o.iter_mut().for_each(|o| *o /= sum);
                put(out.skip(row * wide + h * d), &o);
                put(sums.skip((row * shape.heads + h) * 2), &[max, sum]);
            }
        }
    }

    fn attend_backward(
        &self,
        sequences: Sequences<'_>,
        (out, sums): (At<'_>, At<'_>),
        dout: At<'_>,
        terms: Terms,
        dqkv: At<'_>,
    ) {
        let Sequences { qkv, rows, shape, spans } = sequences;
        let (d, cols, wide) = (shape.head_dim, shape.qkv_cols(), shape.heads * shape.head_dim);
        let (qkv, out, dout) =
            (floats(qkv, rows * cols), floats(out, rows * wide), floats(dout, rows * wide));
        let sums = floats(sums, rows * shape.heads * 2);
        let share = shape.heads / shape.kv_heads;
        let scale = 1.0 / (d as f32).sqrt();
        for (span, group) in spans.iter().flat_map(|span| (0..shape.kv_heads).map(move |g| (span, g))) {
            let len = span.len();
            let (mut dk, mut dv) = (vec![0.0f32; len * d], vec![0.0f32; len * d]);
            let keys = head(shape, group * share);
            let of = |row: usize, column: usize| &qkv[(span.start + row) * cols + column..][..d];
            let wide_of = |x: &'_ [f32], row: usize, h: usize| -> Vec<f32> {
                x[(span.start + row) * wide + h * d..][..d].to_vec()
            };
            for h in group * share..(group + 1) * share {
                let at = head(shape, h);
                // For every query: weights of positions, and gradients of their products before they are scaled.
                let of_queries: Vec<(Vec<f32>, Vec<f32>)> = (0..len)
                    .map(|i| {
                        let (o, g) = (wide_of(&out, i, h), wide_of(&dout, i, h));
                        let mean = dot16(&o, &g);
                        let [max, sum] = sums[((span.start + i) * shape.heads + h) * 2..][..2] else {
                            unreachable!()
                        };
                        (0..=i)
                            .map(|j| {
                                let weight = exp(score(of(i, at.q), of(j, at.k)) - max) / sum;
                                let v = of(j, at.v);
                                let lost = total(terms, d, |p| g[p], |p| v[p], 0.0) - mean;
                                (weight, (weight * lost) * scale)
                            })
                            .unzip()
                    })
                    .collect();
                for (i, (_, ds)) in of_queries.iter().enumerate() {
                    let mut dq = vec![0.0f32; d];
                    for from in (0..=i).step_by(SEGMENT) {
                        let n = SEGMENT.min(i + 1 - from);
                        for (e, dq) in dq.iter_mut().enumerate() {
                            *dq += total(terms, n, |j| ds[from + j], |j| of(from + j, at.k)[e], 0.0);
                        }
                    }
                    put(dqkv.skip((span.start + i) * cols + at.q), &dq);
                }
                for j in 0..len {
                    for first in (j / QUERIES * QUERIES..len).step_by(QUERIES) {
                        let count = QUERIES.min(len - first);
                        let own = |i: usize| of_queries[first + i].0.get(j).copied().unwrap_or(0.0);
                        let slope = |i: usize| of_queries[first + i].1.get(j).copied().unwrap_or(0.0);
                        for e in 0..d {
                            let q = |i: usize| of(first + i, at.q)[e];
                            let g = |i: usize| dout[(span.start + first + i) * wide + h * d + e];
                            dk[j * d + e] += total(terms, count, slope, q, 0.0);
                            dv[j * d + e] += total(terms, count, own, g, 0.0);
                        }
                    }
                }
            }
            for j in 0..len {
                put(dqkv.skip((span.start + j) * cols + keys.k), &dk[j * d..][..d]);
                put(dqkv.skip((span.start + j) * cols + keys.v), &dv[j * d..][..d]);
            }
        }
    }

    fn gate(&self, gate_up: At<'_>, (m, n): (usize, usize), act: Activation, out: At<'_>) {
        let x = floats(gate_up, m * 2 * n);
        let y: Vec<f32> = (0..m * n)
            .map(|i| {
                let at = i / n * 2 * n + i % n;
                gated(act, x[at], x[at + n])
            })
            .collect();
        put(out, &y);
    }

    fn gate_backward(
        &self,
        gate_up: At<'_>,
        dout: At<'_>,
        (m, n): (usize, usize),
        act: Activation,
        out: At<'_>,
    ) {
        let (x, dout) = (floats(gate_up, m * 2 * n), floats(dout, m * n));
        change(out, m * 2 * n, |out| {
            for (i, d) in dout.iter().enumerate() {
                let at = i / n * 2 * n + i % n;
                let (value, slope) = slope(act, x[at]);
                out[at] = (slope * x[at + n]) * d;
                out[at + n] = value * d;
            }
        });
    }

    fn cross_entropy(&self, logits: At<'_>, vocab: usize, targets: &[u32], weights: &[f32], parts: At<'_>) {
        for (row, (target, weight)) in targets.iter().zip(weights).enumerate() {
            change(logits.skip(row * vocab), vocab, |z| {
                let wanted = z[*target as usize];
                let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                z.iter_mut().for_each(|z| *z = exp(*z - max));
                let sum = sum16(vocab, |i| z[i]);
                let factor = weight / sum;
                z.iter_mut().for_each(|z| *z *= factor);
                z[*target as usize] -= weight;
                put(parts.skip(row * 3), &[max, sum, wanted]);
            });
        }
    }

    fn length(&self, x: At<'_>, len: usize) -> Result<f64, BackendError> {
        Ok(pieces(&floats(x, len)).sqrt())
    }

    fn adam(&self, step: &AdamStep<'_>) {
        let AdamStep { p, gradient, m, v, len, scale, pull, keep, step, root, first, second, eps } = *step;
        let gradient = floats(gradient, len);
        let (mut new_p, mut new_m, mut new_v) = (floats(p, len), floats(m, len), floats(v, len));
        for i in 0..len {
            let g = gradient[i] * scale + pull * new_p[i];
            new_m[i] = first.0 * new_m[i] + first.1 * g;
            new_v[i] = second.0 * new_v[i] + second.1 * (g * g);
            new_p[i] = new_p[i] * keep - step * (new_m[i] / (new_v[i].sqrt() / root + eps));
        }
        put(p, &new_p);
        put(m, &new_m);
        put(v, &new_v);
    }

    fn sgd(&self, step: &SgdStep<'_>) {
        let SgdStep { p, gradient, buffer, len, scale, momentum, keep, rate, nesterov } = *step;
        let gradient = floats(gradient, len);
        let (mut new_p, mut new_buffer) = (floats(p, len), floats(buffer, len));
        for i in 0..len {
            let g = gradient[i] * scale;
            new_buffer[i] = momentum * new_buffer[i] + g;
            let along = if nesterov { g + momentum * new_buffer[i] } else { new_buffer[i] };
            new_p[i] = new_p[i] * keep - rate * along;
        }
        put(p, &new_p);
        put(buffer, &new_buffer);
    }
}
