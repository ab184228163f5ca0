//! Activations for the products of several tokens.

use super::table::Gemm;
use crate::kernels::quantize::Int8;
use crate::memory::{OutOfMemory, Scratch};
use crate::pool::{Pool, Shares};

/// Tokens of a register tile side by side: `[tiles of tokens][columns/C][tokens of the tile][C]`, with C columns of a token
/// together. What a product reads is then one stream, and its loads never compete for a cache set.
pub(crate) struct Arranged<'a> {
    data: &'a [i8],
    /// Columns of a token, those of padding included.
    cols: usize,
}

impl<'a> Arranged<'a> {
    /// The activations of all tokens, in the order that `gemm` reads.
    pub(super) fn new(
        pool: &Pool,
        from: Int8<'_>,
        cols: usize,
        gemm: &Gemm,
        scratch: &'a Scratch<'_>,
    ) -> Result<Self, OutOfMemory> {
        let m = from.d.len();
        let (tokens, cols) = (gemm.tokens, cols.next_multiple_of(gemm.columns));
        let arranged = scratch.buffer::<i8>(m * cols)?;
        let data = Shares::new(arranged);
        pool.ranges(m.div_ceil(tokens), 1, &|range| {
            for first in range.map(|i| i * tokens) {
                let count = tokens.min(m - first);
                // SAFETY: a tile of tokens is arranged by one thread.
                let out = unsafe { data.slice(first * cols, count * cols) };
                for t in 0..count {
                    let row = &from.q[(first + t) * from.stride..][..cols];
                    match gemm.columns {
                        64 => spread::<64>(row, out, t, count),
                        _ => spread::<4>(row, out, t, count),
                    }
                }
            }
        });
        Ok(Self { data: arranged, cols })
    }

    /// The tile of `count` tokens that begins with token `first`.
    pub(super) fn tokens(&self, first: usize, count: usize) -> &[i8] {
        &self.data[first * self.cols..(first + count) * self.cols]
    }
}

/// Writes the row of token `t` to its places among `count` tokens.
fn spread<const C: usize>(row: &[i8], out: &mut [i8], t: usize, count: usize) {
    for (out, x) in out.as_chunks_mut::<C>().0[t..].iter_mut().step_by(count).zip(row.as_chunks::<C>().0) {
        *out = *x;
    }
}
