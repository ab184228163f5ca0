//! Ternary weights with f32 activations: weight-only models.

use super::Shares;
use crate::Isa;
use crate::kernels::norm::padded;
use crate::layout::{Block, PanelScale, Panels, TILE};
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};

/// Sixteen rows of one token.
struct Tile<'a> {
    blocks: &'a [Block],
    /// Blocks of a group.
    group: usize,
    scales: &'a [[f32; TILE]],
    x: &'a [f32],
}

impl Kernel for Tile<'_> {
    type Output = [f32; TILE];
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> [f32; TILE] {
        let mut y = l.splat(0.0);
        let parts = self.blocks.chunks(self.group).zip(self.x.chunks(self.group * TILE));
        for ((blocks, x), scale) in parts.zip(self.scales) {
            // Lane `c` of L16 for all sixteen rows lies in vector `c`.
            let mut lane = [l.splat(0.0); TILE];
            for (block, x) in blocks.iter().zip(x.chunks(TILE)) {
                for (c, x) in padded(x).iter().enumerate() {
                    let trits = l.trits(&block.0, 8 * (c as u32 % 4) + 2 * (c as u32 / 4));
                    lane[c] = l.fma(l.splat(*x), trits, lane[c]);
                }
            }
            for width in [8, 4, 2, 1] {
                for i in 0..width {
                    lane[i] = l.add(lane[i], lane[i + width]);
                }
            }
            y = l.fma(lane[0], l.load(scale), y);
        }
        let mut out = [0.0; TILE];
        l.store(y, &mut out);
        out
    }
}

/// `y[m, n] = x[m, k] * w[n, k]^T` with f32 activations.
pub(crate) fn float_linear(isa: Isa, pool: &Pool, w: &Panels, x: &[f32], y: &mut [f32]) {
    let (group, groups, scales) = match &w.scale {
        PanelScale::Rows(v) => (w.width, 1, v),
        PanelScale::Groups { blocks, groups, values } => (*blocks, *groups, values),
    };
    let y = Shares::new(y);
    pool.ranges(w.tiles(), 1, &|range| {
        for tile in range {
            let rows = TILE.min(w.rows - tile * TILE);
            for (t, x) in x.chunks_exact(w.cols).enumerate() {
                let scales = &scales[tile * groups..(tile + 1) * groups];
                let values = dispatch(isa, Tile { blocks: w.tile(tile), group, scales, x });
                // SAFETY: a tile is computed by one thread, and (tile, token) addresses no other output.
                unsafe { y.slice(t * w.rows + tile * TILE, rows) }.copy_from_slice(&values[..rows]);
            }
        }
    });
}
