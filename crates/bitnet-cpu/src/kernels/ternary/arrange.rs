//! Activations for the products of several tokens.

use crate::kernels::quantize::Quantized;
use crate::pool::{Pool, Shares};

/// Tokens of a register tile side by side: `[tiles of tokens][columns/4][tokens of the tile][4]`. What a product reads is then
/// one stream, and its loads never compete for a cache set.
#[derive(Default)]
pub(crate) struct Arranged {
    data: Vec<i8>,
    cols: usize,
}

impl Arranged {
    /// Takes over the activations of all tokens; `cols` is a multiple of four that the quantized rows hold.
    pub(super) fn fill(&mut self, pool: &Pool, from: &Quantized, cols: usize, tokens: usize) {
        let m = from.d.len();
        self.cols = cols;
        self.data.resize(m * cols, 0);
        let data = Shares::new(&mut self.data);
        pool.ranges(m.div_ceil(tokens), 1, &|range| {
            for first in range.map(|i| i * tokens) {
                let count = tokens.min(m - first);
                // SAFETY: a tile of tokens is arranged by one thread.
                let out = unsafe { data.slice(first * cols, count * cols) }.as_chunks_mut::<4>().0;
                for t in 0..count {
                    let row = &from.q[(first + t) * from.stride..][..cols];
                    for (out, x) in out[t..].iter_mut().step_by(count).zip(row.as_chunks::<4>().0) {
                        *out = *x;
                    }
                }
            }
        });
    }

    /// The tile of `count` tokens that begins with token `first`.
    pub(super) fn tokens(&self, first: usize, count: usize) -> &[i8] {
        &self.data[first * self.cols..(first + count) * self.cols]
    }
}
