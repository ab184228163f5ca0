//! Ternary products (rules 5 and 6 of `docs/numerics.md`).
//!
//! Kernels compute the integer sums `code * q` of whole tiles; what turns them into outputs is shared and exact. Codes are
//! 0, 1, 2, so the sum of the activations is taken off once a token.

mod arrange;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod scalar;
mod table;

pub(crate) use float::float_linear;
pub(crate) use table::names;
pub use table::{Kernel, UnknownKernel};

use crate::Isa;
use crate::kernels::quantize::{Quantized, quantize};
use crate::layout::{Line, PanelScale, Panels, TILE};
use crate::pool::{Pool, Shares};
use crate::simd::{self, Lanes, dispatch};
use arrange::Arranged;
use std::cell::RefCell;
use table::TernaryKernel;

/// Tokens from which the product unpacks weights once for all of them.
const GEMM_TOKENS: usize = 4;

/// What a thread keeps between products.
#[derive(Default)]
struct Local {
    /// Integer sums of the tiles at hand.
    sums: Vec<[i32; TILE]>,
    /// Unpacked weights.
    panel: Vec<Line>,
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::default();
}

/// Activations in the forms that products want, kept for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    quantized: Quantized,
    arranged: Arranged,
}

/// `y[m, n] = x[m, k] * w[n, k]^T` with int8 activations. The kernel is one of the layout of `w`.
pub(crate) fn ternary_linear(
    isa: Isa,
    kernel: Kernel,
    pool: &Pool,
    w: &Panels,
    x: &[f32],
    scratch: &mut Scratch,
    y: &mut [f32],
) {
    assert!(std::ptr::eq(kernel.0.layout, w.layout), "{kernel} does not read {}", w.layout.name);
    let m = x.len() / w.cols.max(1);
    quantize(isa, pool, x, w.cols, &mut scratch.quantized);
    let quantized = &scratch.quantized;
    let zeros = (0..m).map(|t| total(&quantized.q[t * quantized.stride..][..w.cols])).collect();
    let out = Output { isa, w, quantized, zeros, y: Shares::new(y) };
    match &w.scale {
        PanelScale::Groups { .. } => grouped(kernel.0, pool, m, &out),
        PanelScale::Rows(_) if m < GEMM_TOKENS => few(kernel.0, pool, m, &out),
        PanelScale::Rows(_) => many(kernel.0, pool, m, &out, &mut scratch.arranged),
    }
}

/// What turns integer sums into outputs.
struct Output<'a> {
    isa: Isa,
    w: &'a Panels,
    quantized: &'a Quantized,
    /// `[m]`: sums of the activations, which stand for the code of a zero trit.
    zeros: Vec<i32>,
    y: Shares<'a, f32>,
}

/// Rule 5 for neighbouring tiles and tokens: `y = (sum - zero) * (d * scale)`.
struct Rescale<'a> {
    out: &'a Output<'a>,
    /// `[tiles][tokens]`.
    sums: &'a [[i32; TILE]],
    scales: &'a [[f32; TILE]],
    tile: usize,
    token: usize,
    tokens: usize,
}

impl simd::Kernel for Rescale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let tokens = self.token..self.token + self.tokens;
        let (d, zeros) = (&self.out.quantized.d[tokens.clone()], &self.out.zeros[tokens]);
        for (i, sums) in self.sums.chunks_exact(self.tokens).enumerate() {
            let (tile, scale) = (self.tile + i, l.load(&self.scales[self.tile + i]));
            for (t, ((sum, d), zero)) in sums.iter().zip(d).zip(zeros).enumerate() {
                let y = l.mul(l.difference(sum, *zero), l.mul(l.splat(*d), scale));
                // SAFETY: a tile is computed by one thread, and (tile, token) addresses no other output.
                let out = unsafe { self.out.place(tile, self.token + t) };
                match out.as_mut_array() {
                    Some(out) => l.store(y, out),
                    None => {
                        let mut lanes = [0.0; TILE];
                        l.store(y, &mut lanes);
                        out.copy_from_slice(&lanes[..out.len()]);
                    }
                }
            }
        }
    }
}

impl Output<'_> {
    fn token(&self, t: usize) -> &[i8] {
        &self.quantized.q[t * self.quantized.stride..][..self.quantized.stride]
    }

    /// Where the outputs of a tile and a token go: sixteen, or fewer in the last tile.
    ///
    /// # Safety
    /// No other slice of the same tile and token may be in use.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn place(&self, tile: usize, t: usize) -> &mut [f32] {
        let first = tile * TILE;
        // SAFETY: the caller's promise; tiles and tokens do not overlap.
        unsafe { self.y.slice(t * self.w.rows + first, TILE.min(self.w.rows - first)) }
    }

    /// Rule 5 for tiles from `tile` on and tokens from `token` on; `sums [tiles][tokens]` holds `code * q`.
    fn rescale(&self, sums: &[[i32; TILE]], tile: usize, token: usize, tokens: usize) {
        let PanelScale::Rows(scales) = &self.w.scale else { return };
        dispatch(self.isa, Rescale { out: self, sums, scales, tile, token, tokens });
    }
}

fn total(q: &[i8]) -> i32 {
    q.iter().map(|q| i32::from(*q)).sum()
}

fn few(kernel: &TernaryKernel, pool: &Pool, m: usize, out: &Output<'_>) {
    let tiles = out.w.tiles();
    let grain = (tiles / (pool.threads() * 6)).clamp(1, 32);
    pool.ranges(tiles, grain, &|range| {
        LOCAL.with_borrow_mut(|Local { sums, .. }| {
            sums.resize(range.len(), [0; TILE]);
            for t in 0..m {
                (kernel.gemv)(out.w.tiles_of(range.clone()), out.w.tile_bytes, out.token(t), sums);
                out.rescale(sums, range.start, t, 1);
            }
        });
    });
}

fn many(kernel: &TernaryKernel, pool: &Pool, m: usize, out: &Output<'_>, arranged: &mut Arranged) {
    let gemm = &kernel.gemm;
    arranged.fill(pool, out.quantized, out.w.cols.next_multiple_of(4), gemm.tokens);
    pool.ranges(out.w.tiles().div_ceil(gemm.tiles), 1, &|range| {
        for first in range.map(|i| i * gemm.tiles) {
            let last = out.w.tiles().min(first + gemm.tiles);
            LOCAL.with_borrow_mut(|Local { sums, panel }| {
                (gemm.unpack)(out.w.tiles_of(first..last), out.w.tile_bytes, panel);
                for from in (0..m).step_by(gemm.tokens) {
                    let tokens = gemm.tokens.min(m - from);
                    sums.resize((last - first) * tokens, [0; TILE]);
                    (gemm.multiply)(panel, arranged.tokens(from, tokens), sums, tokens);
                    out.rescale(sums, first, from, tokens);
                }
            });
        }
    });
}

/// Rule 6: a scale for every group of columns.
fn grouped(kernel: &TernaryKernel, pool: &Pool, m: usize, out: &Output<'_>) {
    let PanelScale::Groups { cols, groups, values } = &out.w.scale else { return };
    let group_bytes = (out.w.layout.tile_bytes)(*cols);
    pool.ranges(out.w.tiles(), 1, &|range| {
        for tile in range {
            for t in 0..m {
                let mut y = [0.0f32; TILE];
                let parts = out.w.tile(tile).chunks(group_bytes).zip(out.token(t).chunks(*cols));
                for ((part, q), scale) in parts.zip(&values[tile * groups..]) {
                    let mut sum = [[0; TILE]];
                    (kernel.gemv)(part, part.len(), q, &mut sum);
                    let zero = total(q);
                    y = std::array::from_fn(|r| ((sum[0][r] - zero) as f32).mul_add(scale[r], y[r]));
                }
                let y = y.map(|y| y * out.quantized.d[t]);
                // SAFETY: a tile is computed by one thread, and (tile, token) addresses no other output.
                let out = unsafe { out.place(tile, t) };
                out.copy_from_slice(&y[..out.len()]);
            }
        }
    });
}

#[cfg(test)]
mod tests;
