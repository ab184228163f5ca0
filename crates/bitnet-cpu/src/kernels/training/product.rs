//! Products of dense matrices (rule 18 of `docs/numerics.md`): every element is one chain of fused multiply-adds over `k`, ascending,
//! so tiles, threads and instruction sets cannot change it.

use super::trits::RUN;
use crate::memory::{Buffer, Memory, at_least, zeros};
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};
use crate::{Isa, TernaryWeights};

/// The most terms of a part of a sum: longer sums go on from the stored result, or are added part by part.
pub const DEPTH: usize = 4096;
/// Columns of the right side that are arranged at a time.
const COLUMNS: usize = 2048;
/// Floats of the left side that a thread works on at a time: half of a second-level cache.
const LEFT: usize = 1 << 17;

/// Elements of a stored matrix.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Integers.
    I8(&'a [i8]),
    /// Packed trits, times their scales where groups of columns have them; else scales are the caller's affair.
    Trits(&'a TernaryWeights),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::Trits(w) => w.rows() * w.cols(),
        }
    }
}

/// One side of a product `c[i, j] = sum over p of a[i, p] * b[j, p]`: vectors of length `k`, which are rows or columns of what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    pub(super) values: Values<'a>,
    /// Elements from one vector to the next, and from one element of a vector to the next. One of them is 1.
    pub(super) vector: usize,
    pub(super) step: usize,
    /// What element `p` of every vector is multiplied with.
    pub(super) factors: Option<&'a [f32]>,
}

impl<'a> Side<'a> {
    /// The rows of a row-major matrix, `stride` elements apart.
    pub fn rows(values: Values<'a>, stride: usize) -> Self {
        Self { values, vector: stride, step: 1, factors: None }
    }

    /// The columns of a row-major matrix whose rows lie `stride` elements apart.
    pub fn columns(values: Values<'a>, stride: usize) -> Self {
        Self { values, vector: 1, step: stride, factors: None }
    }

    /// Multiplies element `p` of every vector with `factors[p]`.
    pub fn scaled(self, factors: &'a [f32]) -> Self {
        Self { factors: Some(factors), ..self }
    }

    pub(super) fn check(&self, vectors: usize, k: usize) {
        let last = (vectors.max(1) - 1) * self.vector + (k.max(1) - 1) * self.step;
        assert!(vectors == 0 || k == 0 || last < self.values.len(), "a side of the product is too short");
        assert!(self.factors.is_none_or(|f| f.len() >= k), "factors of a side");
    }

    /// Vectors `first..first + count`, elements `from..from + k`, as `[k, width]`; what is left of the width is zero.
    #[inline(always)]
    fn arrange(&self, first: usize, count: usize, from: usize, k: usize, width: usize, out: &mut [f32]) {
        let out = &mut out[..k * width];
        match self.values {
            Values::F32(v) => self.copy(v, |v| v, (first, count), from, width, out),
            Values::I8(v) => self.copy(v, f32::from, (first, count), from, width, out),
            Values::Trits(w) => self.unpack(w, (first, count), from, width, out),
        }
        if let Some(factors) = self.factors {
            for (out, factor) in out.chunks_exact_mut(width).zip(&factors[from..from + k]) {
                out.iter_mut().for_each(|v| *v *= factor);
            }
        }
    }

    #[inline(always)]
    fn copy<T: Copy>(
        &self,
        values: &[T],
        real: impl Fn(T) -> f32,
        (first, count): (usize, usize),
        from: usize,
        width: usize,
        out: &mut [f32],
    ) {
        if self.step == 1 {
            if count < width {
                out.fill(0.0);
            }
            for v in 0..count {
                let vector = &values[(first + v) * self.vector + from..];
                for (out, value) in out.chunks_exact_mut(width).zip(vector) {
                    out[v] = real(*value);
                }
            }
        } else {
            for (p, out) in out.chunks_exact_mut(width).enumerate() {
                let (own, rest) = out.split_at_mut(count);
                let values = &values[(from + p) * self.step + first..][..count];
                own.iter_mut().zip(values).for_each(|(own, value)| *own = real(*value));
                rest.fill(0.0);
            }
        }
    }
}

impl Side<'_> {
    /// [`Side::copy`] of packed trits.
    #[inline(always)]
    fn unpack(
        &self,
        w: &TernaryWeights,
        (first, count): (usize, usize),
        from: usize,
        width: usize,
        out: &mut [f32],
    ) {
        if count < width {
            out.fill(0.0);
        }
        let k = out.len() / width.max(1);
        if self.step == 1 {
            for v in 0..count {
                for p in (0..k).step_by(RUN) {
                    let run: [f32; RUN] = w.run(first + v, from + p, RUN.min(k - p));
                    let out = out[p * width..].chunks_mut(width);
                    out.zip(run).for_each(|(out, value)| out[v] = value);
                }
            }
        } else {
            for (p, out) in out.chunks_exact_mut(width).enumerate() {
                for (i, out) in out[..count].chunks_mut(RUN).enumerate() {
                    let run: [f32; RUN] = w.run(from + p, first + i * RUN, out.len());
                    out.copy_from_slice(&run[..out.len()]);
                }
            }
        }
    }
}

/// What becomes of a sum.
#[derive(Clone, Copy, Debug)]
pub enum Store<'a> {
    /// It takes the element's place, times a factor.
    Set(f32),
    /// The same, the factor being one of the row times another.
    SetRows(&'a [f32], f32),
    /// Times a factor it is added.
    Add(f32),
    /// It goes on from the element, which [`Store::Set`] with a factor of 1 left there of the terms before, and takes its place: terms that
    /// come in several calls, each but the last of a multiple of [`DEPTH`], give what they give in one.
    Continue,
}

impl Store<'_> {
    /// The same for some of the rows.
    pub(super) fn of_rows(self, row: usize, count: usize) -> Self {
        match self {
            Self::SetRows(rows, factor) => Self::SetRows(&rows[row..row + count], factor),
            other => other,
        }
    }

    /// Whether sums begin with what is stored, in the first part of their terms or in a later one.
    pub(super) fn goes_on(self, first: bool) -> bool {
        match self {
            Self::Add(_) => false,
            Self::Continue => true,
            Self::Set(_) | Self::SetRows(..) => !first,
        }
    }
}

/// Elements of `c`, row-major, of which a product writes some columns.
pub struct Target<'a> {
    /// The rows.
    pub values: &'a mut [f32],
    /// Elements of a row.
    pub stride: usize,
    /// The first column that is written.
    pub first: usize,
}

/// Room for a product, reused from one to the next.
#[derive(Default)]
pub(crate) struct Room {
    right: Buffer<f32>,
}

/// Rows and registers' columns of a tile.
const fn tile_rows<L: Lanes>() -> usize {
    if L::REGISTERS >= 32 { 12 } else { 6 }
}

const fn tile_columns<L: Lanes>() -> usize {
    if L::REGISTERS >= 32 { 32 } else { 16 }
}

struct Columns;

impl Kernel for Columns {
    type Output = (usize, usize);
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> (usize, usize) {
        (tile_rows::<L>(), tile_columns::<L>())
    }
}

/// The rows of a target that a product of these sizes writes: it has room for them, both sides are long enough, and where there are no terms, sums
/// of none are set already.
pub(super) fn checked<'c>(
    (m, n, k): (usize, usize, usize),
    a: Side<'_>,
    b: Side<'_>,
    store: Store<'_>,
    c: Target<'c>,
) -> Target<'c> {
    a.check(m, k);
    b.check(n, k);
    let Target { values, stride, first } = c;
    assert!(first + n <= stride && m * stride <= values.len(), "the target of a product");
    if let Store::SetRows(rows, _) = store {
        assert!(rows.len() >= m, "factors of rows");
    }
    let values = &mut values[..m * stride];
    if k == 0 && !matches!(store, Store::Add(_) | Store::Continue) {
        values.chunks_exact_mut(stride).for_each(|row| row[first..first + n].fill(0.0));
    }
    Target { values, stride, first }
}

/// `c[i, j] = sum over p of a[i, p] * b[j, p]` for `m` times `n` elements and `k` terms.
#[allow(clippy::too_many_arguments, reason = "two sides, three sizes, and where the result goes")]
pub(crate) fn product(
    isa: Isa,
    pool: &Pool,
    (m, n, k): (usize, usize, usize),
    a: Side<'_>,
    b: Side<'_>,
    store: Store<'_>,
    c: Target<'_>,
    room: &mut Room,
) {
    let Target { values, stride, first } = checked((m, n, k), a, b, store, c);
    let (tile, width) = dispatch(isa, Columns);
    for from in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - from);
        let rows = LEFT / depth.max(1);
        let fair = m.div_ceil(pool.threads() * 4);
        let rows = rows.min(fair).max(1).next_multiple_of(tile);
        for column in (0..n).step_by(COLUMNS) {
            let columns = COLUMNS.min(n - column);
            let strips = columns.div_ceil(width);
            let right = at_least(pool.memory(), &mut room.right, strips * width * depth);
            pool.chunks_mut(right, width * depth, &|strip, out| {
                let at = column + strip * width;
                dispatch(
                    isa,
                    Arrange { side: b, first: at, count: width.min(n - at), from, k: depth, width, out },
                );
            });
            let right = &*right;
            pool.chunks_mut(values, rows * stride, &|i, c| {
                let (row, count) = (i * rows, c.len() / stride);
                let store = store.of_rows(row, count);
                let block = Block {
                    memory: pool.memory(),
                    a,
                    row,
                    count,
                    from,
                    depth,
                    right,
                    columns,
                    ends: (from == 0, from + depth == k),
                    store,
                    c: Target { values: c, stride, first: first + column },
                };
                dispatch(isa, block);
            });
        }
    }
}

struct Arrange<'a> {
    side: Side<'a>,
    first: usize,
    count: usize,
    from: usize,
    k: usize,
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Arrange<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        self.side.arrange(self.first, self.count, self.from, self.k, self.width, self.out);
    }
}

/// Some rows of `c`, and a part of the sum.
struct Block<'a> {
    memory: &'a Memory,
    a: Side<'a>,
    row: usize,
    count: usize,
    from: usize,
    depth: usize,
    /// Strips of columns, `[depth, width]` each.
    right: &'a [f32],
    columns: usize,
    /// Whether the sum begins and ends here.
    ends: (bool, bool),
    store: Store<'a>,
    c: Target<'a>,
}

impl Kernel for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        if L::REGISTERS >= 32 {
            self.tiles::<L, 12, 2>(l);
        } else {
            self.tiles::<L, 6, 1>(l);
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn tiles<L: Lanes, const R: usize, const V: usize>(mut self, l: L) {
        let (k, width) = (self.depth, 16 * V);
        let mut left: Buffer<f32> = zeros(self.memory, self.count.next_multiple_of(R) * k);
        for (i, out) in left.chunks_exact_mut(R * k).enumerate() {
            let rows = R.min(self.count - i * R);
            self.a.arrange(self.row + i * R, rows, self.from, k, R, out);
        }
        for (s, right) in self.right.chunks_exact(width * k).enumerate() {
            let columns = width.min(self.columns - s * width);
            for (i, left) in left.chunks_exact(R * k).enumerate() {
                let rows = R.min(self.count - i * R);
                let mut sums = [[l.splat(0.0); V]; R];
                if self.store.goes_on(self.ends.0) {
                    sums = self.load::<L, R, V>(l, i * R, s * width, (rows, columns));
                }
                let sums = tile::<L, R, V>(l, left, right, sums);
                self.keep::<L, R, V>(l, sums, (i * R, s * width), (rows, columns));
            }
        }
    }

    #[inline(always)]
    fn load<L: Lanes, const R: usize, const V: usize>(
        &self,
        l: L,
        row: usize,
        column: usize,
        (rows, columns): (usize, usize),
    ) -> [[L::F; V]; R] {
        let mut sums = [[l.splat(0.0); V]; R];
        for (r, sums) in sums.iter_mut().enumerate().take(rows) {
            let from = &self.c.values[(row + r) * self.c.stride + self.c.first + column..][..columns];
            for (v, sum) in sums.iter_mut().enumerate() {
                let mut lanes = [0.0; 16];
                let there = from.get(v * 16..).unwrap_or_default();
                let count = there.len().min(16);
                lanes[..count].copy_from_slice(&there[..count]);
                *sum = l.load(&lanes);
            }
        }
        sums
    }

    #[inline(always)]
    fn keep<L: Lanes, const R: usize, const V: usize>(
        &mut self,
        l: L,
        sums: [[L::F; V]; R],
        (row, column): (usize, usize),
        (rows, columns): (usize, usize),
    ) {
        for (r, sums) in sums.iter().enumerate().take(rows) {
            let at = (row + r) * self.c.stride + self.c.first + column;
            let out = &mut self.c.values[at..at + columns];
            let (factor, add) = match self.store {
                Store::Add(factor) => (factor, true),
                // A sum that goes on is kept as it is.
                _ if !self.ends.1 => (1.0, false),
                Store::Set(factor) => (factor, false),
                Store::Continue => (1.0, false),
                Store::SetRows(factors, factor) => (factors[row + r] * factor, false),
            };
            let factor = l.splat(factor);
            for (sum, out) in sums.iter().zip(out.chunks_mut(16)) {
                let sum = l.mul(*sum, factor);
                match out.first_chunk_mut::<16>() {
                    Some(out) if add => l.store(l.add(l.load(out), sum), out),
                    Some(out) => l.store(sum, out),
                    None => {
                        let mut lanes = [0.0; 16];
                        l.store(sum, &mut lanes);
                        for (out, sum) in out.iter_mut().zip(lanes) {
                            *out = if add { *out + sum } else { sum };
                        }
                    }
                }
            }
        }
    }
}

/// `sums[r] += left[p][r] * right[p]` for `p` ascending; `left` is `[k, R]`, `right` `[k, 16 V]`.
#[inline(always)]
pub(super) fn tile<L: Lanes, const R: usize, const V: usize>(
    l: L,
    left: &[f32],
    right: &[f32],
    mut sums: [[L::F; V]; R],
) -> [[L::F; V]; R] {
    for (left, right) in left.as_chunks::<R>().0.iter().zip(right.as_chunks::<16>().0.chunks_exact(V)) {
        let mut columns = [l.splat(0.0); V];
        for (column, right) in columns.iter_mut().zip(right) {
            *column = l.load(right);
        }
        for r in 0..R {
            let x = l.splat(left[r]);
            for v in 0..V {
                sums[r][v] = l.fma(x, columns[v], sums[r][v]);
            }
        }
    }
    sums
}

/// A product inside a thread's own work: `c[i, j] = store(sum)`, both sides arranged here.
pub(super) struct Small<'m> {
    memory: &'m Memory,
    left: Buffer<f32>,
    right: Buffer<f32>,
}

impl<'m> Small<'m> {
    pub(super) fn new(memory: &'m Memory) -> Self {
        Self { memory, left: Buffer::default(), right: Buffer::default() }
    }

    /// Arranges the right side, which then serves several products.
    #[inline(always)]
    pub(super) fn right<L: Lanes>(&mut self, b: Side<'_>, first: usize, n: usize, from: usize, k: usize) {
        let width = tile_columns::<L>();
        let right = at_least(self.memory, &mut self.right, n.next_multiple_of(width) * k);
        for (s, out) in right.chunks_exact_mut(width * k).enumerate() {
            b.arrange(first + s * width, width.min(n - s * width), from, k, width, out);
        }
    }

    /// The product of vectors `row..row + m` of `a` with the right side, `n` vectors of `k` elements; `terms` of them are summed.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "as for a product")]
    pub(super) fn multiply<L: Lanes>(
        &mut self,
        l: L,
        a: Side<'_>,
        (row, m): (usize, usize),
        (n, k, terms): (usize, usize, usize),
        from: usize,
        store: Store<'_>,
        c: Target<'_>,
    ) {
        if L::REGISTERS >= 32 {
            self.product::<L, 12, 2>(l, a, (row, m), (n, k, terms), from, store, c);
        } else {
            self.product::<L, 6, 1>(l, a, (row, m), (n, k, terms), from, store, c);
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "as for a product")]
    fn product<L: Lanes, const R: usize, const V: usize>(
        &mut self,
        l: L,
        a: Side<'_>,
        (row, m): (usize, usize),
        (n, k, terms): (usize, usize, usize),
        from: usize,
        store: Store<'_>,
        c: Target<'_>,
    ) {
        let width = 16 * V;
        let left = at_least(self.memory, &mut self.left, R * terms);
        let ends = (true, true);
        let mut block = Block {
            memory: self.memory,
            a,
            row,
            count: m,
            from,
            depth: terms,
            right: &[],
            columns: n,
            ends,
            store,
            c,
        };
        for i in (0..m).step_by(R) {
            let rows = R.min(m - i);
            a.arrange(row + i, rows, from, terms, R, left);
            for (s, right) in self.right.chunks_exact(width * k).take(n.div_ceil(width)).enumerate() {
                let sums = tile::<L, R, V>(l, left, &right[..width * terms], [[l.splat(0.0); V]; R]);
                block.keep::<L, R, V>(l, sums, (i, s * width), (rows, width.min(n - s * width)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};

    /// One element, term after term.
    fn chain(a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, k: usize) -> f32 {
        (0..k).fold(0.0, |sum, p| f32::mul_add(a(p), b(p), sum))
    }

    #[test]
    fn every_element_is_one_chain_whatever_the_sides_are() {
        for_each_isa_and_pool(|isa, pool| {
            let mut room = Room::default();
            for (m, n, k) in [(1, 1, 1), (13, 33, 7), (25, 70, 40), (5, 3, DEPTH + 9), (3, COLUMNS + 5, 2)] {
                let mut noise = Noise((m * n + k) as u32);
                let (x, w) = (noise.floats(m * k, 2.0), noise.floats(n * k, 1.0));
                let bytes: Vec<i8> = (0..n * k).map(|_| (noise.next() % 255) as i8).collect();
                let (rows, terms) = (noise.floats(m, 1.0), noise.floats(k, 1.0));
                let before = noise.floats(m * (n + 2), 1.0);
                let mut check =
                    |a: Side<'_>, b: Side<'_>, store: Store<'_>, want: &dyn Fn(usize, usize) -> f32| {
                        let mut c = before.clone();
                        let target = Target { values: &mut c, stride: n + 2, first: 1 };
                        product(isa, pool, (m, n, k), a, b, store, target, &mut room);
                        for (i, (got, old)) in c.iter().zip(&before).enumerate() {
                            let (row, column) = (i / (n + 2), i % (n + 2));
                            let inside = (1..=n).contains(&column);
                            let want = if inside { want(row, column - 1) } else { *old };
                            assert_eq!(got.to_bits(), want.to_bits(), "{isa} {m} {n} {k} {row} {column}");
                        }
                    };
                let (f, i) = (Values::F32(&x), Values::I8(&bytes));
                check(Side::rows(f, k), Side::rows(i, k), Store::SetRows(&rows, 0.5), &|r, c| {
                    chain(|p| x[r * k + p], |p| f32::from(bytes[c * k + p]), k) * (rows[r] * 0.5)
                });
                check(Side::columns(f, m), Side::columns(Values::F32(&w), n), Store::Set(2.0), &|r, c| {
                    chain(|p| x[p * m + r], |p| w[p * n + c], k) * 2.0
                });
                check(Side::rows(f, k), Side::rows(i, k), Store::Continue, &|r, c| {
                    let b = |p: usize| f32::from(bytes[c * k + p]);
                    (0..k).fold(before[r * (n + 2) + c + 1], |sum, p| f32::mul_add(x[r * k + p], b(p), sum))
                });
                let scaled = Side::columns(i, n).scaled(&terms);
                check(Side::rows(f, k), scaled, Store::Add(0.5), &|r, c| {
                    let part = |from: usize, to: usize| {
                        let b = |p: usize| f32::from(bytes[(from + p) * n + c]) * terms[from + p];
                        chain(|p| x[r * k + from + p], b, to - from) * 0.5
                    };
                    let parts = (0..k).step_by(DEPTH).map(|from| part(from, k.min(from + DEPTH)));
                    parts.fold(before[r * (n + 2) + c + 1], |sum, part| sum + part)
                });
            }
        });
    }
}
