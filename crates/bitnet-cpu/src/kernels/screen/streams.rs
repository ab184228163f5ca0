//! How rows are read: several streams at a time.
//!
//! The rows of a group are cut into [`STREAMS`] runs, and a row of each is scored side by side. Blocks of `Q6_K` begin anywhere in a cache
//! line, and a processor that follows one stream of them waits for memory more than it computes; with four it fetches as fast as it can.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Runs of rows that are read side by side.
pub(super) const STREAMS: usize = 4;

/// Bytes of a block of `Q6_K`.
pub(super) const BYTES: usize = 210;

/// A row of `Q6_K` blocks, and the next one of its stream.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) blocks: &'a [[u8; BYTES]],
    /// The first byte that was not asked for of the row that comes next, which may lie outside of the weights.
    ahead: *const u8,
}

impl Row<'_> {
    /// Asks for as many bytes of the next row as have a block: whole cache lines, each once.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        let end = self.ahead.wrapping_add(BYTES);
        let mut line = self.ahead.map_addr(|address| address.next_multiple_of(64));
        while line < end {
            // SAFETY: SSE is part of the architecture, and a prefetch reads nothing: one outside of the weights does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
            line = line.wrapping_add(64);
        }
        self.ahead = end;
    }
}

/// Calls `score` with rows that lie side by side in their streams, and where their scores go; with single ones where the rows do not make up all streams.
/// `rows` is `[out.len(), row_bytes]`, and what lies behind them comes next.
#[inline(always)]
pub(super) fn side_by_side(
    rows: &[u8],
    row_bytes: usize,
    out: &mut [f32],
    four: impl Fn([Row<'_>; STREAMS]) -> [f32; STREAMS],
    one: impl Fn([Row<'_>; 1]) -> [f32; 1],
) {
    let run = out.len() / STREAMS;
    let row = |at: usize, ahead: usize| Row {
        blocks: rows[at * row_bytes..(at + 1) * row_bytes].as_chunks().0,
        ahead: rows.as_ptr().wrapping_add(ahead * row_bytes),
    };
    for i in 0..run {
        // Behind the last row of a run comes the first one that the next group has in its place.
        let ahead = if i + 1 < run { i + 1 } else { out.len() };
        let scores = four(std::array::from_fn(|s| row(s * run + i, s * run + ahead)));
        for (s, score) in scores.into_iter().enumerate() {
            out[s * run + i] = score;
        }
    }
    for (at, score) in out.iter_mut().enumerate().skip(run * STREAMS) {
        [*score] = one([row(at, at + 1)]);
    }
}
