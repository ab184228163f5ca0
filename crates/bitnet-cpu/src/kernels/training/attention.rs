//! Causal attention of whole sequences, and the way back. Forward it is rules 10 and 11 of `docs/numerics.md`; backward the weights of
//! the softmax are computed again from the maximum and the sum that the forward pass keeps for each query.

use super::bf16;
use super::product::{Side, Small, Store, Target, Values};
use crate::Isa;
use crate::kernels::norm::padded;
use crate::memory::{Buffer, Memory, zeros};
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_core::AttentionShape;
use bitnet_core::Terms;
use bitnet_quant::spec::SEGMENT;
use std::ops::Range;

/// Queries that are worked on together; it divides [`SEGMENT`].
const QUERIES: usize = 64;

/// Sequences side by side: the rows of each in `[m, cols]`, and how their heads lie.
#[derive(Clone, Copy)]
pub(crate) struct Sequences<'a> {
    /// Rotated queries and keys, and values: `[m, qkv_cols]`.
    pub(crate) qkv: &'a [f32],
    pub(crate) shape: AttentionShape,
    /// Rows of each sequence; its first row is position 0.
    pub(crate) spans: &'a [Range<usize>],
}

/// `[m, heads]` pairs: the largest score of a query, and the sum of its weights.
type Sums = [f32];

/// `out [m, heads * d]`, and of every query what the way back needs.
pub(crate) fn forward(isa: Isa, pool: &Pool, s: Sequences<'_>, out: &mut [f32], sums: &mut Sums) {
    let heads = s.shape.heads;
    let (out, sums) = (Shares::new(out), Shares::new(sums));
    pool.ranges(s.spans.len() * heads, 1, &|tasks| {
        for task in tasks {
            let rows = s.spans[task / heads].clone();
            dispatch(
                isa,
                Forward { memory: pool.memory(), s, rows, head: task % heads, out: &out, sums: &sums },
            );
        }
    });
}

/// `dqkv [m, qkv_cols]` from `dout [m, heads * d]`, with what [`forward`] gave.
pub(crate) fn backward(
    isa: Isa,
    pool: &Pool,
    s: Sequences<'_>,
    (out, sums): (&[f32], &Sums),
    dout: &[f32],
    terms: Terms,
    dqkv: &mut [f32],
) {
    let groups = s.shape.kv_heads;
    let dqkv = Shares::new(dqkv);
    pool.ranges(s.spans.len() * groups, 1, &|tasks| {
        for task in tasks {
            let rows = s.spans[task / groups].clone();
            let (group, dqkv) = (task % groups, &dqkv);
            dispatch(
                isa,
                Backward { isa, memory: pool.memory(), terms, s, rows, group, out, sums, dout, dqkv },
            );
        }
    });
}

/// Where the parts of a query head lie in a row of `qkv`.
#[derive(Clone, Copy)]
struct Columns {
    q: usize,
    k: usize,
    v: usize,
}

impl Sequences<'_> {
    fn columns(&self, head: usize) -> Columns {
        let AttentionShape { heads, kv_heads, head_dim: d } = self.shape;
        let group = head / (heads / kv_heads);
        Columns { q: head * d, k: (heads + group) * d, v: (heads + kv_heads + group) * d }
    }

    /// Rows of a sequence as vectors of a head's elements.
    fn heads_of(&self, first: usize, column: usize) -> Side<'_> {
        let cols = self.shape.qkv_cols();
        Side::rows(Values::F32(&self.qkv[first * cols + column..]), cols)
    }

    /// The elements of a head as vectors of rows.
    fn elements_of(&self, first: usize, column: usize) -> Side<'_> {
        let cols = self.shape.qkv_cols();
        Side::columns(Values::F32(&self.qkv[first * cols + column..]), cols)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }
}

struct Forward<'a> {
    memory: &'a Memory,
    s: Sequences<'a>,
    rows: Range<usize>,
    head: usize,
    out: &'a Shares<'a, f32>,
    sums: &'a Shares<'a, f32>,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { memory, s, rows, head, out, sums } = self;
        let (d, len, heads) = (s.shape.head_dim, rows.len(), s.shape.heads);
        let at = s.columns(head);
        let (q, k, v) =
            (s.heads_of(rows.start, at.q), s.heads_of(rows.start, at.k), s.elements_of(rows.start, at.v));
        let (mut keys, mut values) = (Small::new(memory), Small::new(memory));
        let mut scores: Buffer<f32> = zeros(memory, QUERIES * SEGMENT);
        // For every segment and every query: maximum, sum, and `d` outputs.
        let segments = len.div_ceil(SEGMENT);
        let width = 2 + d;
        let mut parts: Buffer<f32> = zeros(memory, segments * len * width);
        for (segment, part) in (0..len).step_by(SEGMENT).zip(parts.chunks_exact_mut(len * width)) {
            let n = SEGMENT.min(len - segment);
            keys.right::<L>(k, segment, n, 0, d);
            values.right::<L>(v, 0, d, segment, n);
            for first in (segment..len).step_by(QUERIES) {
                let count = QUERIES.min(len - first);
                let seen = n.min(first + count - segment);
                let target = Target { values: &mut scores, stride: SEGMENT, first: 0 };
                keys.multiply(l, q, (first, count), (seen, d, d), 0, Store::Set(s.scale()), target);
                for (i, scores) in scores.chunks_exact_mut(SEGMENT).take(count).enumerate() {
                    let valid = n.min(first + i + 1 - segment);
                    scores[valid..seen].fill(0.0);
                    let part = &mut part[(first + i) * width..][..2];
                    (part[0], part[1]) = weigh(l, &mut scores[..valid]);
                }
                let side = Side::rows(Values::F32(&scores), SEGMENT);
                let target = Target { values: &mut part[first * width..], stride: width, first: 2 };
                values.multiply(l, side, (0, count), (d, n, seen), 0, Store::Set(1.0), target);
            }
        }
        let mut o = vec![0.0f32; d];
        for i in 0..len {
            let own = |segment: usize| &parts[(segment * len + i) * width..][..width];
            let last = i / SEGMENT;
            let max = (0..=last).map(|s| own(s)[0]).fold(f32::NEG_INFINITY, |m, s| if s > m { s } else { m });
            let mut total = 0.0f32;
            o.fill(0.0);
            for part in (0..=last).map(own) {
                let mut e = [0.0; 16];
                l.store(l.exp(l.splat(part[0] - max)), &mut e);
                total = fma(l, part[1], e[0], total);
                for (o, part) in o.chunks_mut(16).zip(part[2..].chunks(16)) {
                    let sum = l.fma(l.load(&padded(part)), l.splat(e[0]), l.load(&padded(o)));
                    let mut lanes = [0.0; 16];
                    l.store(sum, &mut lanes);
                    o.copy_from_slice(&lanes[..o.len()]);
                }
            }
            let row = rows.start + i;
            // SAFETY: a row of a head is this task's alone: spans are disjoint (`CpuTraining` checks it), and a head is one task.
            let (out, sums) =
                unsafe { (out.slice((row * heads + head) * d, d), sums.slice((row * heads + head) * 2, 2)) };
            out.iter_mut().zip(&o).for_each(|(out, o)| *out = o / total);
            sums.copy_from_slice(&[max, total]);
        }
    }
}

/// One fused multiply-add.
#[inline(always)]
fn fma<L: Lanes>(l: L, a: f32, b: f32, c: f32) -> f32 {
    let mut lanes = [0.0; 16];
    l.store(l.fma(l.splat(a), l.splat(b), l.splat(c)), &mut lanes);
    lanes[0]
}

/// Scores become weights; gives their maximum and their sum.
#[inline(always)]
fn weigh<L: Lanes>(l: L, scores: &mut [f32]) -> (f32, f32) {
    let mut sum = l.splat(0.0);
    let (blocks, tail) = scores.as_chunks_mut::<16>();
    let mut max = l.splat(f32::NEG_INFINITY);
    for block in blocks.iter() {
        max = l.max(l.load(block), max);
    }
    let mut lanes = [0.0; 16];
    l.store(max, &mut lanes);
    let max = lanes.iter().chain(&*tail).fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
    for block in blocks {
        let e = l.exp(l.sub(l.load(block), l.splat(max)));
        sum = l.add(sum, e);
        l.store(e, block);
    }
    if !tail.is_empty() {
        let mut lanes = [0.0; 16];
        l.store(l.exp(l.sub(l.load(&padded(tail)), l.splat(max))), &mut lanes);
        lanes[tail.len()..].fill(0.0);
        sum = l.add(sum, l.load(&lanes));
        tail.copy_from_slice(&lanes[..tail.len()]);
    }
    (max, l.fold(sum))
}

/// Products of gradients with terms as they are, or rounded.
enum Inner<'m> {
    F32(Small<'m>),
    Bf16(bf16::Small<'m>),
}

impl<'m> Inner<'m> {
    fn new(isa: Isa, memory: &'m Memory, terms: Terms) -> Self {
        match terms {
            Terms::F32 => Self::F32(Small::new(memory)),
            Terms::Bf16 => Self::Bf16(bf16::Small::new(isa, memory)),
        }
    }

    #[inline(always)]
    fn right<L: Lanes>(&mut self, b: Side<'_>, first: usize, n: usize, from: usize, k: usize) {
        match self {
            Self::F32(small) => small.right::<L>(b, first, n, from, k),
            Self::Bf16(small) => small.right(b, first, n, from, k),
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "as for a product")]
    fn multiply<L: Lanes>(
        &mut self,
        l: L,
        a: Side<'_>,
        rows: (usize, usize),
        sizes: (usize, usize, usize),
        from: usize,
        store: Store<'_>,
        c: Target<'_>,
    ) {
        match self {
            Self::F32(small) => small.multiply(l, a, rows, sizes, from, store, c),
            Self::Bf16(small) => small.multiply(a, rows, sizes, from, store, c),
        }
    }
}

struct Backward<'a> {
    isa: Isa,
    memory: &'a Memory,
    /// Of all products but the scores, which are those of the forward pass.
    terms: Terms,
    s: Sequences<'a>,
    rows: Range<usize>,
    group: usize,
    out: &'a [f32],
    sums: &'a Sums,
    dout: &'a [f32],
    dqkv: &'a Shares<'a, f32>,
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { isa, memory, terms, s, rows, group, out, sums, dout, dqkv } = self;
        let (d, len) = (s.shape.head_dim, rows.len());
        let (heads, cols) = (s.shape.heads, s.shape.qkv_cols());
        let share = heads / s.shape.kv_heads;
        let mut keys = Small::new(memory);
        let mut room: [Inner<'_>; 4] = std::array::from_fn(|_| Inner::new(isa, memory, terms));
        let [values, key_elements, queries, douts] = &mut room;
        let zeros = |len| -> Buffer<f32> { zeros(memory, len) };
        let (mut p, mut ds) = (zeros(QUERIES * SEGMENT), zeros(QUERIES * SEGMENT));
        let (mut dk, mut dv, mut dq) = (zeros(len * d), zeros(len * d), zeros(len * d));
        let put = |from: &[f32], column: usize| {
            for (row, from) in rows.clone().zip(from.chunks_exact(d)) {
                // SAFETY: as above: these columns of these rows are this task's alone.
                unsafe { dqkv.slice(row * cols + column, d) }.copy_from_slice(from);
            }
        };
        let at = s.columns(group * share);
        for head in group * share..(group + 1) * share {
            let q_at = head * d;
            let wide = heads * d;
            let dout_rows = &dout[rows.start * wide + q_at..];
            let (q, k, v) =
                (s.heads_of(rows.start, q_at), s.heads_of(rows.start, at.k), s.heads_of(rows.start, at.v));
            // What each query's scores lose: the mean of its weights' gradients.
            let mean: Vec<f32> = rows
                .clone()
                .map(|row| {
                    let of = |x: &[f32]| -> Vec<f32> { x[row * wide + q_at..][..d].to_vec() };
                    dot(l, &of(out), &of(dout))
                })
                .collect();
            dq.fill(0.0);
            for segment in (0..len).step_by(SEGMENT) {
                let n = SEGMENT.min(len - segment);
                keys.right::<L>(k, segment, n, 0, d);
                values.right::<L>(v, segment, n, 0, d);
                key_elements.right::<L>(s.elements_of(rows.start, at.k), 0, d, segment, n);
                for first in (segment..len).step_by(QUERIES) {
                    let count = QUERIES.min(len - first);
                    let seen = n.min(first + count - segment);
                    let target = Target { values: &mut p, stride: SEGMENT, first: 0 };
                    keys.multiply(l, q, (first, count), (seen, d, d), 0, Store::Set(s.scale()), target);
                    let target = Target { values: &mut ds, stride: SEGMENT, first: 0 };
                    let side = Side::rows(Values::F32(dout_rows), wide);
                    values.multiply(l, side, (first, count), (seen, d, d), 0, Store::Set(1.0), target);
                    for i in 0..count {
                        let valid = n.min(first + i + 1 - segment);
                        let of_query = &sums[((rows.start + first + i) * heads + head) * 2..][..2];
                        let (p, ds) = (&mut p[i * SEGMENT..][..seen], &mut ds[i * SEGMENT..][..seen]);
                        soften(
                            l,
                            (of_query[0], of_query[1]),
                            mean[first + i],
                            s.scale(),
                            &mut p[..valid],
                            &mut ds[..valid],
                        );
                        p[valid..].fill(0.0);
                        ds[valid..].fill(0.0);
                    }
                    let side = Side::rows(Values::F32(&ds), SEGMENT);
                    let target = Target { values: &mut dq[first * d..], stride: d, first: 0 };
                    key_elements.multiply(l, side, (0, count), (d, n, seen), 0, Store::Add(1.0), target);
                    let side = Side::columns(Values::F32(&ds), SEGMENT);
                    let target = Target { values: &mut dk[segment * d..], stride: d, first: 0 };
                    queries.right::<L>(s.elements_of(rows.start + first, q_at), 0, d, 0, count);
                    queries.multiply(l, side, (0, seen), (d, count, count), 0, Store::Add(1.0), target);
                    let side = Side::columns(Values::F32(&p), SEGMENT);
                    let target = Target { values: &mut dv[segment * d..], stride: d, first: 0 };
                    douts.right::<L>(
                        Side::columns(Values::F32(&dout_rows[first * wide..]), wide),
                        0,
                        d,
                        0,
                        count,
                    );
                    douts.multiply(l, side, (0, seen), (d, count, count), 0, Store::Add(1.0), target);
                }
            }
            put(&dq, q_at);
        }
        put(&dk, at.k);
        put(&dv, at.v);
    }
}

#[inline(always)]
fn dot<L: Lanes>(l: L, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = l.splat(0.0);
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        sum = l.fma(l.load(&padded(a)), l.load(&padded(b)), sum);
    }
    l.fold(sum)
}

/// Scores `p` become weights, and gradients of weights `ds` become those of products before they are scaled.
#[inline(always)]
fn soften<L: Lanes>(l: L, (max, total): (f32, f32), mean: f32, scale: f32, p: &mut [f32], ds: &mut [f32]) {
    for (p, ds) in p.chunks_mut(16).zip(ds.chunks_mut(16)) {
        let weight = l.div(l.exp(l.sub(l.load(&padded(p)), l.splat(max))), l.splat(total));
        let lost = l.sub(l.load(&padded(ds)), l.splat(mean));
        let gradient = l.mul(l.mul(weight, lost), l.splat(scale));
        let mut lanes = [0.0; 16];
        l.store(weight, &mut lanes);
        p.copy_from_slice(&lanes[..p.len()]);
        l.store(gradient, &mut lanes);
        ds.copy_from_slice(&lanes[..ds.len()]);
    }
}

#[cfg(test)]
mod tests;
