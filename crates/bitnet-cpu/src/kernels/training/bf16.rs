//! Products of dense matrices whose terms are bf16 (rule 19 of `docs/numerics.md`): what AMX computes in one instruction, and other
//! instruction sets in the same order.
//!
//! Terms come in blocks of 32. In a block the even terms are one chain of fused multiply-adds from +0, the odd ones another, and the sum of both
//! is added to the total. What is rounded to bf16 becomes zero below 2^-50, so that no product of two terms, and no sum of
//! such products, is a denormal, which AMX would take for zero.

#[cfg(target_arch = "x86_64")]
mod amx;
mod pairs;

use super::product::{DEPTH, Side, Store, Target, checked};
use crate::Isa;
use crate::memory::{Buffer, Memory, at_least};
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};
use pairs::{Arrange, Order, Pairs, TERMS, TILE};
use std::ops::Range;

/// Rows and columns that are multiplied together: two tiles of each.
const SQUARE: usize = 2 * TILE;
/// Columns of the right side that are arranged at a time.
const COLUMNS: usize = 4096;

/// Both sides of a product, arranged; reused from one to the next.
#[derive(Default)]
pub(crate) struct Room {
    left: Buffer<Pairs>,
    right: Buffer<Pairs>,
}

/// A tile of sums, `[row][column]`.
type Sums = [[f32; TILE]; TILE];

/// `c[i, j] = sum over p of a[i, p] * b[j, p]` for `m` times `n` elements and `k` terms, all terms rounded to bf16.
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
    for from in (0..k).step_by(DEPTH) {
        let terms = DEPTH.min(k - from);
        let blocks = terms.div_ceil(TERMS);
        let arrange = |side: Side<'_>, vectors: Range<usize>, order, out: &mut Buffer<Pairs>| {
            let len = vectors.len().next_multiple_of(SQUARE) / TILE * blocks;
            let out = at_least(pool.memory(), out, len);
            pool.chunks_mut(out, blocks, &|tile, out| {
                let first = (vectors.start + tile * TILE).min(vectors.end);
                let vectors = first..(first + TILE).min(vectors.end);
                dispatch(isa, Arrange { side, vectors, terms: from..from + terms, order, out });
            });
        };
        arrange(a, 0..m, Order::Vectors, &mut room.left);
        // A few squares, so that what is read of the right side serves several rows.
        let rows = m.div_ceil(pool.threads() * 2).clamp(1, 4 * SQUARE).next_multiple_of(SQUARE);
        for column in (0..n).step_by(COLUMNS) {
            let columns = COLUMNS.min(n - column);
            arrange(b, column..column + columns, Order::Pairs, &mut room.right);
            let (left, right) = (&room.left, &room.right);
            pool.chunks_mut(values, rows * stride, &|i, c| {
                let (row, count) = (i * rows, c.len() / stride);
                let store = store.of_rows(row, count);
                let squares = count.div_ceil(SQUARE);
                let part = Part {
                    left: &left[row / TILE * blocks..][..squares * 2 * blocks],
                    right: &right[..columns.div_ceil(SQUARE) * 2 * blocks],
                    stride: blocks,
                    blocks,
                    columns,
                    ends: (from == 0, from + terms == k),
                    store,
                    c: Target { values: c, stride, first: first + column },
                };
                part.run(isa, Multiply::new(isa, pool.memory(), &mut Buffer::default()));
            });
        }
    }
}

/// Some rows of `c`, and a part of the sum.
struct Part<'a> {
    /// `[tiles][blocks]`, two tiles for every square.
    left: &'a [Pairs],
    /// The same with tiles of `stride` blocks, of which the first are multiplied.
    right: &'a [Pairs],
    stride: usize,
    blocks: usize,
    columns: usize,
    /// Whether the sum begins and ends here.
    ends: (bool, bool),
    store: Store<'a>,
    c: Target<'a>,
}

impl Part<'_> {
    fn run(mut self, isa: Isa, mut multiply: Multiply<'_>) {
        let (blocks, stride) = (self.blocks, self.stride);
        let mut sums = [[[0.0; TILE]; TILE]; 4];
        for (j, right) in self.right.chunks_exact(2 * stride).enumerate() {
            let right = [&right[..blocks], &right[stride..stride + blocks]];
            multiply.take(right);
            for (i, left) in self.left.chunks_exact(2 * blocks).enumerate() {
                let left = [&left[..blocks], &left[blocks..]];
                let at = |t: usize| (i * SQUARE + t / 2 * TILE, j * SQUARE + t % 2 * TILE);
                sums.as_flattened_mut().as_flattened_mut().fill(0.0);
                if self.store.goes_on(self.ends.0) {
                    (0..4).for_each(|t| self.load(at(t), &mut sums[t]));
                }
                multiply.run(left, right, &mut sums);
                (0..4).for_each(|t| dispatch(isa, Keep { part: &mut self, at: at(t), sums: &sums[t] }));
            }
        }
    }

    /// Rows of the target that a tile covers.
    #[inline(always)]
    fn place(&self, (row, column): (usize, usize)) -> impl Iterator<Item = Range<usize>> + use<> {
        let (stride, first) = (self.c.stride, self.c.first);
        let columns = TILE.min(self.columns.saturating_sub(column));
        let rows = TILE.min(self.c.values.len().div_ceil(stride).saturating_sub(row));
        let rows = if columns == 0 { 0 } else { rows };
        (row..row + rows).map(move |row| {
            let from = row * stride + first + column;
            from..from + columns
        })
    }

    fn load(&self, at: (usize, usize), sums: &mut Sums) {
        for (range, sums) in self.place(at).zip(sums) {
            sums[..range.len()].copy_from_slice(&self.c.values[range]);
        }
    }
}

/// Puts a tile of sums where it belongs.
struct Keep<'a, 'p> {
    part: &'a mut Part<'p>,
    at: (usize, usize),
    sums: &'a Sums,
}

impl Kernel for Keep<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { part, at, sums } = self;
        for (r, (range, sums)) in part.place(at).zip(sums).enumerate() {
            let out = &mut part.c.values[range];
            let (factor, add) = match part.store {
                Store::Add(factor) => (factor, true),
                // A sum that goes on is kept as it is.
                _ if !part.ends.1 => (1.0, false),
                Store::Set(factor) => (factor, false),
                Store::Continue => (1.0, false),
                Store::SetRows(factors, factor) => (factors[at.0 + r] * factor, false),
            };
            let sum = l.mul(l.load(sums), l.splat(factor));
            match out.as_mut_array::<TILE>() {
                Some(out) if add => l.store(l.add(l.load(out), sum), out),
                Some(out) => l.store(sum, out),
                None => {
                    let mut lanes = [0.0; TILE];
                    l.store(sum, &mut lanes);
                    for (out, sum) in out.iter_mut().zip(lanes) {
                        *out = if add { *out + sum } else { sum };
                    }
                }
            }
        }
    }
}

/// Multiplies two tiles of rows with two tiles of columns.
enum Multiply<'a> {
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Tiles),
    /// With the columns at hand as f32: `[tiles][blocks][terms]`.
    Lanes(Isa, &'a Memory, &'a mut Buffer<[f32; TILE]>),
}

impl<'a> Multiply<'a> {
    /// On the registers of AMX, if that is the instruction set; else `wide` is room for columns.
    fn new(isa: Isa, memory: &'a Memory, wide: &'a mut Buffer<[f32; TILE]>) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx {
            return Self::Amx(amx::Tiles::new());
        }
        Self::Lanes(isa, memory, wide)
    }

    /// Prepares the columns that the following products have in common.
    fn take(&mut self, right: [&[Pairs]; 2]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => {}
            Self::Lanes(isa, memory, wide) => {
                let wide = at_least(memory, wide, (right[0].len() + right[1].len()) * TERMS);
                dispatch(*isa, Widen { right, wide });
            }
        }
    }

    /// Adds to `sums [2 of rows][2 of columns]`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "lanes have them widened"))]
    fn run(&self, left: [&[Pairs]; 2], right: [&[Pairs]; 2], sums: &mut [Sums; 4]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(tiles) => tiles.multiply(left, right, sums),
            Self::Lanes(isa, _, wide) => dispatch(*isa, Square { left, right: wide, sums }),
        }
    }
}

/// Columns as f32, even terms of a block before the odd ones.
struct Widen<'a> {
    right: [&'a [Pairs]; 2],
    wide: &'a mut [[f32; TILE]],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let blocks = self.right.into_iter().flatten();
        for (block, wide) in blocks.zip(self.wide.as_chunks_mut::<TERMS>().0) {
            let (even, odd) = wide.split_at_mut(TILE);
            even.iter_mut().zip(&block.0).for_each(|(wide, pairs)| *wide = pairs.map(pairs::even));
            odd.iter_mut().zip(&block.0).for_each(|(wide, pairs)| *wide = pairs.map(pairs::odd));
        }
    }
}

struct Square<'a> {
    left: [&'a [Pairs]; 2],
    right: &'a [[f32; TILE]],
    sums: &'a mut [Sums; 4],
}

impl Kernel for Square<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        if L::REGISTERS >= 32 {
            self.tiles::<L, 16>(l);
        } else {
            self.tiles::<L, 4>(l);
        }
    }
}

impl Square<'_> {
    #[inline(always)]
    fn tiles<L: Lanes, const R: usize>(self, l: L) {
        let blocks = self.left[0].len();
        for (t, sums) in self.sums.iter_mut().enumerate() {
            let right = &self.right[t % 2 * blocks * TERMS..][..blocks * TERMS];
            for (left, right) in self.left[t / 2].iter().zip(right.as_chunks::<TERMS>().0) {
                let (even, odd) =
                    (left.0.map(|row| row.map(pairs::even)), left.0.map(|row| row.map(pairs::odd)));
                let rows = even.as_chunks::<R>().0.iter().zip(odd.as_chunks::<R>().0);
                for (sums, (even, odd)) in sums.as_chunks_mut::<R>().0.iter_mut().zip(rows) {
                    let even = chain::<L, R>(l, even, &right[..TILE]);
                    let odd = chain::<L, R>(l, odd, &right[TILE..]);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        l.store(l.add(l.load(sums), l.add(even[i], odd[i])), sums);
                    }
                }
            }
        }
    }
}

/// `sum over p of rows[i][p] * columns[p]` from +0, ascending.
#[inline(always)]
fn chain<L: Lanes, const R: usize>(l: L, rows: &[[f32; TILE]; R], columns: &[[f32; TILE]]) -> [L::F; R] {
    let mut sums = [l.splat(0.0); R];
    for (p, column) in columns.iter().enumerate() {
        let column = l.load(column);
        for i in 0..R {
            sums[i] = l.fma(l.splat(rows[i][p]), column, sums[i]);
        }
    }
    sums
}

/// A product inside a thread's own work, both sides arranged here.
pub(super) struct Small<'m> {
    isa: Isa,
    memory: &'m Memory,
    left: Buffer<Pairs>,
    right: Buffer<Pairs>,
    wide: Buffer<[f32; TILE]>,
}

impl<'m> Small<'m> {
    pub(super) fn new(isa: Isa, memory: &'m Memory) -> Self {
        let (left, right, wide) = Default::default();
        Self { isa, memory, left, right, wide }
    }

    /// Arranges vectors `first..first + n` of the right side, terms `from..from + k`, which then serve several products.
    pub(super) fn right(&mut self, b: Side<'_>, first: usize, n: usize, from: usize, k: usize) {
        let right = &mut self.right;
        arrange(self.isa, self.memory, b, first..first + n, from..from + k, Order::Pairs, right);
    }

    /// The product of vectors `row..row + m` of `a` with `n` vectors of the right side, which has `k` terms; the first `terms` of them are
    /// summed.
    pub(super) fn multiply(
        &mut self,
        a: Side<'_>,
        (row, m): (usize, usize),
        (n, k, terms): (usize, usize, usize),
        from: usize,
        store: Store<'_>,
        c: Target<'_>,
    ) {
        let left = &mut self.left;
        arrange(self.isa, self.memory, a, row..row + m, from..from + terms, Order::Vectors, left);
        let (blocks, stride) = (terms.div_ceil(TERMS), k.div_ceil(TERMS));
        let Target { values, stride: width, first } = c;
        let part = Part {
            left: &self.left,
            right: &self.right[..n.div_ceil(SQUARE) * 2 * stride],
            stride,
            blocks,
            columns: n,
            ends: (true, true),
            store,
            c: Target { values: &mut values[..(m - 1) * width + first + n], stride: width, first },
        };
        part.run(self.isa, Multiply::new(self.isa, self.memory, &mut self.wide));
    }
}

/// Arranges vectors, tile after tile, an even number of them.
fn arrange(
    isa: Isa,
    memory: &Memory,
    side: Side<'_>,
    vectors: Range<usize>,
    terms: Range<usize>,
    order: Order,
    out: &mut Buffer<Pairs>,
) {
    let blocks = terms.len().div_ceil(TERMS);
    let out = at_least(memory, out, vectors.len().next_multiple_of(SQUARE) / TILE * blocks);
    for (tile, out) in out.chunks_exact_mut(blocks).enumerate() {
        let first = (vectors.start + tile * TILE).min(vectors.end);
        let vectors = first..(first + TILE).min(vectors.end);
        dispatch(isa, Arrange { side, vectors, terms: terms.clone(), order, out });
    }
}

#[cfg(test)]
mod tests;
