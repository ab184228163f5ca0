//! Pairs of bf16 terms in 32-bit words, in the two orders that matrix instructions read.

use crate::TernaryWeights;
use crate::kernels::training::product::{Side, Values};
use crate::simd::{Kernel, Lanes};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Vectors of a tile; pairs of a block.
pub(super) const TILE: usize = 16;
/// Terms of a block.
pub(super) const TERMS: usize = 2 * TILE;
/// What has a smaller exponent becomes zero: magnitudes below 2^-50.
const SMALLEST: u32 = (127 - 50) << 23;

/// A block of a tile: 16 vectors of 16 pairs, the even term in the lower half of a word.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Pairs(pub(super) [[u32; TILE]; TILE]);

impl Pairs {
    pub(super) const ZERO: Self = Self([[0; TILE]; TILE]);
}

/// How the words of a block lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `[vector][pair]`.
    Vectors,
    /// `[pair][vector]`.
    Pairs,
}

/// The even term of a pair.
#[inline(always)]
pub(super) fn even(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// The odd term of a pair.
#[inline(always)]
pub(super) fn odd(pair: u32) -> f32 {
    f32::from_bits(pair & 0xFFFF_0000)
}

/// The bits of the nearest bf16, ties to even, in the upper half of a word.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7FFF_FFFF;
    let near = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000;
    let number = if magnitude > 0x7F80_0000 { 0x7FC0_0000 } else { near };
    if magnitude < SMALLEST { 0 } else { number }
}

#[inline(always)]
fn pair(even: f32, odd: f32) -> u32 {
    round(even) >> 16 | round(odd)
}

/// Arranges up to [`TILE`] vectors of a side, block after block; what is left of vectors and terms is zero.
pub(super) struct Arrange<'a> {
    pub(super) side: Side<'a>,
    pub(super) vectors: Range<usize>,
    pub(super) terms: Range<usize>,
    pub(super) order: Order,
    /// `[blocks]`.
    pub(super) out: &'a mut [Pairs],
}

impl Kernel for Arrange<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let stride = self.side.vector.max(self.side.step);
        match self.side.values {
            Values::F32(values) => self.blocks(Slice { values, stride, real: |v| v }),
            Values::I8(values) => self.blocks(Slice { values, stride, real: f32::from }),
            Values::Trits(weights) => self.blocks(weights),
        }
    }
}

/// A row-major matrix.
trait Stored: Copy {
    /// Elements of a row from `first` on: `count` of them, and zeros behind.
    fn run<const N: usize>(self, row: usize, first: usize, count: usize) -> [f32; N];
}

/// One whose rows lie `stride` elements apart.
#[derive(Clone, Copy)]
struct Slice<'a, T, F> {
    values: &'a [T],
    stride: usize,
    real: F,
}

impl<T: Copy, F: Fn(T) -> f32 + Copy> Stored for Slice<'_, T, F> {
    #[inline(always)]
    fn run<const N: usize>(self, row: usize, first: usize, count: usize) -> [f32; N] {
        let from = row * self.stride + first;
        head(&self.values[from..from + count], self.real)
    }
}

impl Stored for &TernaryWeights {
    #[inline(always)]
    fn run<const N: usize>(self, row: usize, first: usize, count: usize) -> [f32; N] {
        TernaryWeights::run(self, row, first, count)
    }
}

impl Arrange<'_> {
    #[inline(always)]
    fn blocks(self, values: impl Stored) {
        let Self { side, vectors, terms, order, out } = self;
        let natural = if side.step == 1 { Order::Vectors } else { Order::Pairs };
        for (from, out) in terms.clone().step_by(TERMS).zip(out) {
            let count = TERMS.min(terms.end - from);
            let factors: [f32; TERMS] = match side.factors {
                Some(own) => head(&own[from..from + count], |v| v),
                None => [1.0; TERMS],
            };
            *out = Pairs::ZERO;
            if natural == Order::Vectors {
                for (vector, out) in vectors.clone().zip(&mut out.0) {
                    let mut x: [f32; TERMS] = values.run(vector, from, count);
                    if side.factors.is_some() {
                        x.iter_mut().zip(&factors).for_each(|(x, factor)| *x *= factor);
                    }
                    for (out, [even, odd]) in out.iter_mut().zip(x.as_chunks::<2>().0) {
                        *out = pair(*even, *odd);
                    }
                }
            } else {
                for (p, out) in out.0.iter_mut().enumerate().take(count.div_ceil(2)) {
                    let mut both = [[0.0f32; TILE]; 2];
                    for (i, x) in both.iter_mut().enumerate().take(count - 2 * p) {
                        *x = values.run(from + 2 * p + i, vectors.start, vectors.len());
                        if side.factors.is_some() {
                            x.iter_mut().for_each(|x| *x *= factors[2 * p + i]);
                        }
                    }
                    for ((out, even), odd) in out.iter_mut().zip(both[0]).zip(both[1]) {
                        *out = pair(even, odd);
                    }
                }
            }
            if natural != order {
                transpose(&mut out.0);
            }
        }
    }
}

/// The first `N` values as they are, and zeros where there are fewer.
#[inline(always)]
fn head<T: Copy, const N: usize>(values: &[T], real: impl Fn(T) -> f32) -> [f32; N] {
    let mut out = [0.0; N];
    match values.first_chunk::<N>() {
        Some(all) => out.iter_mut().zip(all).for_each(|(out, v)| *out = real(*v)),
        None => out.iter_mut().zip(values).for_each(|(out, v)| *out = real(*v)),
    }
    out
}

/// Rows become columns: blocks of 8, 4, 2 and 1 change places.
#[inline(always)]
fn transpose(x: &mut [[u32; TILE]; TILE]) {
    swap::<8>(x);
    swap::<4>(x);
    swap::<2>(x);
    swap::<1>(x);
}

#[inline(always)]
fn swap<const S: usize>(x: &mut [[u32; TILE]; TILE]) {
    for i in (0..TILE).filter(|i| i & S == 0) {
        let (a, b) = (x[i], x[i + S]);
        x[i] = std::array::from_fn(|j| if j & S == 0 { a[j] } else { b[j - S] });
        x[i + S] = std::array::from_fn(|j| if j & S == 0 { a[j + S] } else { b[j] });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_even_and_drops_what_is_tiny() {
        let near = |x: f32| f32::from_bits(round(x));
        for (x, want) in [
            (1.0, 1.0),
            (-127.0, -127.0),
            (257.0, 256.0),
            (259.0, 260.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (2f32.powi(-50), 2f32.powi(-50)),
            (2f32.powi(-50) * 0.999, 0.0),
            (-1e-30, 0.0),
        ] {
            assert_eq!(near(x).to_bits(), f32::to_bits(want), "{x}");
        }
        assert!(near(f32::NAN).is_nan() && near(f32::from_bits(0xFFFF_FFFF)).is_nan());
    }

    #[test]
    fn rows_become_columns() {
        let mut x: [[u32; TILE]; TILE] =
            std::array::from_fn(|i| std::array::from_fn(|j| (i * TILE + j) as u32));
        transpose(&mut x);
        assert!((0..TILE).all(|i| (0..TILE).all(|j| x[i][j] as usize == j * TILE + i)));
    }
}
