//! Ternary products (rules 5 and 6 of `docs/numerics.md`).
//!
//! Kernels compute the integer sums `code * q` of whole tiles; what turns them into outputs is shared and exact. Codes are
//! 0, 1, 2, so the sum of the activations is taken off once a token.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod scalar;

pub(crate) use float::float_linear;

use crate::Isa;
use crate::kernels::quantize::{Quantized, quantize};
use crate::layout::{Block, PanelScale, Panels, TILE};
use crate::pool::{Pool, Shares};
use std::cell::RefCell;

/// `out[tile][r] = sum of code * q` over the blocks of consecutive tiles, `width` blocks each, for one token `q [16 * width]`.
type Gemv = fn(blocks: &[Block], width: usize, q: &[i8], out: &mut [[i32; TILE]]);

/// The same for tokens `[m, stride]` at once; `out` is `[tiles][m]`.
type Gemm = fn(blocks: &[Block], width: usize, q: &[i8], stride: usize, out: &mut [[i32; TILE]]);

struct TernaryKernel {
    isa: Isa,
    gemv: Gemv,
    gemm: Gemm,
    /// Tiles that one call of `gemm` takes.
    gemm_tiles: usize,
}

/// Best first.
static TABLE: &[TernaryKernel] = &[
    #[cfg(target_arch = "x86_64")]
    TernaryKernel { isa: Isa::Avx512, gemv: avx512::gemv, gemm: avx512::gemm, gemm_tiles: 2 },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel { isa: Isa::Avx2, gemv: avx2::gemv, gemm: avx2::gemm, gemm_tiles: 1 },
    TernaryKernel { isa: Isa::Scalar, gemv: scalar::gemv, gemm: scalar::gemm, gemm_tiles: 1 },
];

fn kernel(isa: Isa) -> &'static TernaryKernel {
    TABLE.iter().find(|k| k.isa == isa).expect("every instruction set has a row in the table")
}

/// Tokens from which the product unpacks weights once for all of them.
const GEMM_TOKENS: usize = 4;

thread_local! {
    /// Integer sums of the tiles at hand.
    static SUMS: RefCell<Vec<[i32; TILE]>> = const { RefCell::new(Vec::new()) };
}

/// `y[m, n] = x[m, k] * w[n, k]^T` with int8 activations; `quantized` is scratch.
pub(crate) fn ternary_linear(
    isa: Isa,
    pool: &Pool,
    w: &Panels,
    x: &[f32],
    quantized: &mut Quantized,
    y: &mut [f32],
) {
    let m = x.len() / w.cols.max(1);
    quantize(isa, pool, x, w.cols, quantized);
    let kernel = kernel(isa);
    let out = Output { w, quantized, y: Shares::new(y) };
    match &w.scale {
        PanelScale::Groups { .. } => grouped(kernel, pool, m, &out),
        PanelScale::Rows(_) if m < GEMM_TOKENS => few(kernel, pool, m, &out),
        PanelScale::Rows(_) => many(kernel, pool, m, &out),
    }
}

/// What turns integer sums into outputs.
struct Output<'a> {
    w: &'a Panels,
    quantized: &'a Quantized,
    y: Shares<'a, f32>,
}

impl Output<'_> {
    fn token(&self, t: usize) -> &[i8] {
        &self.quantized.q[t * self.quantized.stride..][..self.quantized.stride]
    }

    /// Writes the outputs of one tile and token, rows of padding left out.
    fn store(&self, tile: usize, t: usize, values: &[f32; TILE]) {
        let first = tile * TILE;
        let rows = TILE.min(self.w.rows - first);
        // SAFETY: a tile is computed by one thread, and (tile, token) addresses no other output.
        unsafe { self.y.slice(t * self.w.rows + first, rows) }.copy_from_slice(&values[..rows]);
    }

    /// Rule 5 for one tile and token; `sum` holds `code * q`, `zero` the sum of `q`.
    fn rescale(&self, scales: &[[f32; TILE]], tile: usize, t: usize, sum: &[i32; TILE], zero: i32) {
        let d = self.quantized.d[t];
        let scale = &scales[tile];
        self.store(tile, t, &std::array::from_fn(|r| (sum[r] - zero) as f32 * (d * scale[r])));
    }

    fn row_scales(&self) -> &[[f32; TILE]] {
        match &self.w.scale {
            PanelScale::Rows(v) => v,
            PanelScale::Groups { .. } => &[],
        }
    }
}

fn total(q: &[i8]) -> i32 {
    q.iter().map(|q| i32::from(*q)).sum()
}

fn few(kernel: &TernaryKernel, pool: &Pool, m: usize, out: &Output<'_>) {
    let tiles = out.w.tiles();
    let grain = (tiles / (pool.threads() * 6)).clamp(1, 32);
    let zeros: [i32; GEMM_TOKENS] = std::array::from_fn(|t| if t < m { total(out.token(t)) } else { 0 });
    pool.ranges(tiles, grain, &|range| {
        SUMS.with_borrow_mut(|sums| {
            sums.resize(range.len(), [0; TILE]);
            let blocks = &out.w.blocks[range.start * out.w.width..range.end * out.w.width];
            for (t, zero) in zeros.iter().enumerate().take(m) {
                (kernel.gemv)(blocks, out.w.width, out.token(t), sums);
                for (tile, sum) in range.clone().zip(&*sums) {
                    out.rescale(out.row_scales(), tile, t, sum, *zero);
                }
            }
        });
    });
}

fn many(kernel: &TernaryKernel, pool: &Pool, m: usize, out: &Output<'_>) {
    let zeros: Vec<i32> = (0..m).map(|t| total(out.token(t))).collect();
    let step = kernel.gemm_tiles;
    pool.ranges(out.w.tiles().div_ceil(step), 1, &|range| {
        for first in range.map(|i| i * step) {
            let last = out.w.tiles().min(first + step);
            SUMS.with_borrow_mut(|sums| {
                sums.resize((last - first) * m, [0; TILE]);
                let blocks = &out.w.blocks[first * out.w.width..last * out.w.width];
                (kernel.gemm)(blocks, out.w.width, &out.quantized.q, out.quantized.stride, sums);
                for (tile, sums) in (first..last).zip(sums.chunks_exact(m)) {
                    for (t, sum) in sums.iter().enumerate() {
                        out.rescale(out.row_scales(), tile, t, sum, zeros[t]);
                    }
                }
            });
        }
    });
}

/// Rule 6: a scale for every group of columns.
fn grouped(kernel: &TernaryKernel, pool: &Pool, m: usize, out: &Output<'_>) {
    let PanelScale::Groups { blocks, groups, values } = &out.w.scale else { return };
    pool.ranges(out.w.tiles(), 1, &|range| {
        for tile in range {
            for t in 0..m {
                let mut y = [0.0f32; TILE];
                let parts = out.w.tile(tile).chunks(*blocks).zip(out.token(t).chunks(*blocks * TILE));
                for ((part, q), scale) in parts.zip(&values[tile * groups..]) {
                    let mut sum = [[0; TILE]];
                    (kernel.gemv)(part, part.len(), q, &mut sum);
                    let zero = total(q);
                    y = std::array::from_fn(|r| ((sum[0][r] - zero) as f32).mul_add(scale[r], y[r]));
                }
                out.store(tile, t, &y.map(|y| y * out.quantized.d[t]));
            }
        }
    });
}

#[cfg(test)]
mod tests;
