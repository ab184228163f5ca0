//! Ternary weights with f32 activations: weight-only models.

use super::Shares;
use crate::Isa;
use crate::kernels::norm::padded;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{PanelScale, Panels, TILE, TILE2};
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};

/// Sixteen rows of one token.
struct Tile<'a> {
    blocks: &'a [[u8; BLOCK]],
    /// Blocks of a group.
    group: usize,
    scales: &'a [[f32; TILE]],
    x: &'a [f32],
}

/// The words of a block, one a row.
#[inline(always)]
fn words(block: &[u8; BLOCK]) -> [u32; TILE] {
    std::array::from_fn(|r| u32::from_le_bytes(std::array::from_fn(|j| block[4 * r + j])))
}

impl Kernel for Tile<'_> {
    type Output = [f32; TILE];
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> [f32; TILE] {
        let mut y = l.splat(0.0);
        let parts = self.blocks.chunks(self.group).zip(self.x.chunks(self.group * COLUMNS));
        for ((blocks, x), scale) in parts.zip(self.scales) {
            // Lane `c` of L16 for all sixteen rows lies in vector `c`.
            let mut lane = [l.splat(0.0); TILE];
            for (block, x) in blocks.iter().zip(x.chunks(COLUMNS)) {
                let words = words(block);
                for (c, x) in padded(x).iter().enumerate() {
                    let trits = l.trits(&words, 8 * (c as u32 % 4) + 2 * (c as u32 / 4));
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
    assert!(std::ptr::eq(w.layout, &TILE2), "float products read two-bit tiles");
    let (group, groups, scales) = match &w.scale {
        PanelScale::Rows(v) => (w.tile_bytes / BLOCK, 1, v),
        PanelScale::Groups { cols, groups, values } => (cols / COLUMNS, *groups, values),
    };
    let y = Shares::new(y);
    pool.ranges(w.tiles(), 1, &|range| {
        for tile in range {
            let rows = TILE.min(w.rows - tile * TILE);
            for (t, x) in x.chunks_exact(w.cols).enumerate() {
                let scales = &scales[tile * groups..(tile + 1) * groups];
                let values = dispatch(isa, Tile { blocks: w.tile(tile).as_chunks().0, group, scales, x });
                // SAFETY: a tile is computed by one thread, and (tile, token) addresses no other output.
                unsafe { y.slice(t * w.rows + tile * TILE, rows) }.copy_from_slice(&values[..rows]);
            }
        }
    });
}
