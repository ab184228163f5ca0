//! The segments of a query become its output.

use super::Partials;
use crate::simd::{Kernel, Lanes};
use std::ops::Range;

/// Vectors of a row that are merged at a time, each segment's weight being computed once for all of them.
const CHUNK: usize = 8;

/// The segments of one row become its output (rule 11).
pub(super) struct Merge<'a> {
    pub(super) partials: Partials<'a>,
    /// Rows of the partials, and which of them this is.
    pub(super) rows: usize,
    pub(super) row: usize,
    pub(super) segments: Range<usize>,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.out.len().div_ceil(16);
        let mut max = f32::NEG_INFINITY;
        for segment in self.segments.clone() {
            let m = self.partials.stats[self.part(segment)][0];
            max = if m > max { m } else { max };
        }
        let mut total = l.splat(0.0);
        for segment in self.segments.clone() {
            let sum = l.splat(self.partials.stats[self.part(segment)][1]);
            total = l.fma(sum, self.weight(l, segment, max), total);
        }
        for first in (0..width).step_by(CHUNK) {
            let mut merged = [l.splat(0.0); CHUNK];
            for segment in self.segments.clone() {
                let (e, values) = (
                    self.weight(l, segment, max),
                    &self.partials.values[self.part(segment) * width..][..width],
                );
                for (merged, value) in merged.iter_mut().zip(&values[first..]) {
                    *merged = l.fma(l.load(value), e, *merged);
                }
            }
            for (merged, out) in merged.into_iter().zip(self.out[16 * first..].chunks_mut(16)) {
                let mut lanes = [0.0; 16];
                l.store(l.div(merged, total), &mut lanes);
                out.copy_from_slice(&lanes[..out.len()]);
            }
        }
    }
}

impl Merge<'_> {
    #[inline(always)]
    fn part(&self, segment: usize) -> usize {
        segment * self.rows + self.row
    }

    /// What a segment counts. No closure: that would be compiled without the instruction set.
    #[inline(always)]
    fn weight<L: Lanes>(&self, l: L, segment: usize, max: f32) -> L::F {
        l.exp(l.splat(self.partials.stats[self.part(segment)][0] - max))
    }
}
