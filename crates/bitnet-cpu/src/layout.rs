//! The weight layout that all kernels of this backend share.
//!
//! Rows come in tiles of sixteen, columns in blocks of sixteen; a block of 256 codes is 64 bytes, and the blocks of a tile
//! follow each other, so that a product reads one sequential stream. Word `r` of a block belongs to row `r` of the tile;
//! field `f` (bits `2f..2f + 2`) of its byte `j` is the code of column `4f + j`. Thus one load, three shifts and four masks
//! give four vectors whose 32-bit lane `r` holds four neighbouring codes of row `r`: what `vpdpbusd` and its relatives
//! multiply with four broadcast activations, one row a lane, no horizontal sum.

use crate::pool::Pool;
use bitnet_core::{BackendError, Scale, TernaryMatrix};

/// Rows of a tile and columns of a block.
pub(crate) const TILE: usize = 16;

/// Sixteen rows by sixteen columns of two-bit codes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [u32; 16]);

/// Sixteen zero trits of a row.
const ZERO_TRITS: u32 = 0x5555_5555;

/// The scales of stacked matrices, arranged for sixteen rows at a time.
pub(crate) enum PanelScale {
    /// One scale a row, `[rows padded to 16]`.
    Rows(Vec<[f32; 16]>),
    /// One scale for `blocks` blocks of a row, `[tiles][groups]`.
    Groups { blocks: usize, groups: usize, values: Vec<[f32; 16]> },
}

/// Stacked ternary matrices in tiles.
pub(crate) struct Panels {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Blocks of a tile.
    pub(crate) width: usize,
    /// `[tiles][width]`.
    pub(crate) blocks: Vec<Block>,
    pub(crate) scale: PanelScale,
}

/// Transposes the 4 x 4 two-bit fields of sixteen sequential codes.
#[inline]
fn interleave(mut x: u32) -> u32 {
    let t = ((x >> 6) ^ x) & 0x00CC_00CC;
    x ^= t ^ (t << 6);
    let t = ((x >> 12) ^ x) & 0x0000_F0F0;
    x ^ t ^ (t << 12)
}

impl Panels {
    /// Stacks matrices of equal width by rows. Group scales may not be mixed with others.
    pub(crate) fn new(pool: &Pool, parts: &[&TernaryMatrix]) -> Result<Self, BackendError> {
        let cols = parts.first().map_or(0, |m| m.cols());
        if let Some(odd) = parts.iter().find(|m| m.cols() != cols) {
            return Err(BackendError::Stack { what: "columns", a: cols, b: odd.cols() });
        }
        let rows: usize = parts.iter().map(|m| m.rows()).sum();
        let (tiles, width) = (rows.div_ceil(TILE), cols.div_ceil(TILE));
        let scale = scales(parts, rows, cols)?;
        let mut blocks = reserve::<Block>(tiles * width, "ternary weights")?;
        blocks.resize(tiles * width, Block([ZERO_TRITS; 16]));
        let sources: Vec<&[u8]> = parts.iter().flat_map(|m| (0..m.rows()).map(|r| m.row_codes(r))).collect();
        pool.chunks_mut(&mut blocks, width.max(1), &|tile, blocks| {
            let first = tile * TILE;
            for (r, codes) in sources[first..rows.min(first + TILE)].iter().enumerate() {
                for (block, word) in blocks.iter_mut().zip(codes.as_chunks::<4>().0) {
                    block.0[r] = interleave(u32::from_le_bytes(*word));
                }
            }
        });
        Ok(Self { rows, cols, width, blocks, scale })
    }

    /// The blocks of tile `tile`.
    pub(crate) fn tile(&self, tile: usize) -> &[Block] {
        &self.blocks[tile * self.width..(tile + 1) * self.width]
    }

    /// Tiles of sixteen rows.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Bytes that codes and scales occupy.
    pub(crate) fn len_bytes(&self) -> usize {
        let scales = match &self.scale {
            PanelScale::Rows(v) => v.len(),
            PanelScale::Groups { values, .. } => values.len(),
        };
        size_of_val(self.blocks.as_slice()) + scales * size_of::<[f32; 16]>()
    }

    /// One row, for embedding: trits times scale.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (tile, lane) = (row / TILE, row % TILE);
        for (col, out) in out.iter_mut().enumerate() {
            let (block, c) = (col / TILE, col % TILE);
            let word = self.tile(tile)[block].0[lane];
            let trit = ((word >> (8 * (c % 4) + 2 * (c / 4))) & 3) as f32 - 1.0;
            let scale = match &self.scale {
                PanelScale::Rows(v) => v[tile][lane],
                PanelScale::Groups { blocks, groups, values } => values[tile * groups + block / blocks][lane],
            };
            *out = trit * scale;
        }
    }
}

/// An empty vector with room for `len`, or the error that says so.
pub(crate) fn reserve<T>(len: usize, what: &'static str) -> Result<Vec<T>, BackendError> {
    let mut v = Vec::new();
    v.try_reserve_exact(len)
        .map_err(|_| BackendError::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()), what })?;
    Ok(v)
}

fn scales(parts: &[&TernaryMatrix], rows: usize, cols: usize) -> Result<PanelScale, BackendError> {
    let tiles = rows.div_ceil(TILE);
    let each_row = || parts.iter().flat_map(|m| (0..m.rows()).map(move |r| (*m, r)));
    let finite = |s: f32| if s.is_finite() { Ok(s) } else { Err(BackendError::NotFinite { value: s }) };
    let group = |m: &TernaryMatrix| match m.scale() {
        Scale::Groups { size, .. } => *size,
        _ => 0,
    };
    let size = parts.first().map_or(0, |m| group(m));
    if let Some(odd) = parts.iter().find(|m| group(m) != size) {
        return Err(BackendError::Stack { what: "columns that share a scale", a: size, b: group(odd) });
    }
    if size == 0 {
        let mut values = vec![[0.0; 16]; tiles];
        for (i, (m, row)) in each_row().enumerate() {
            values[i / TILE][i % TILE] = if cols == 0 { 0.0 } else { finite(m.scale_at(row, 0))? };
        }
        return Ok(PanelScale::Rows(values));
    }
    if !size.is_multiple_of(TILE) {
        return Err(BackendError::Unsupported {
            backend: "cpu",
            what: format!("scales for groups of {size} columns"),
            hint: "groups must be a multiple of 16",
        });
    }
    let groups = cols.div_ceil(size);
    let mut values = vec![[0.0; 16]; tiles * groups];
    for (i, (m, row)) in each_row().enumerate() {
        for g in 0..groups {
            values[i / TILE * groups + g][i % TILE] = finite(m.scale_at(row, g * size))?;
        }
    }
    Ok(PanelScale::Groups { blocks: size / TILE, groups, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Noise;

    #[test]
    fn every_trit_and_scale_comes_back() {
        let pool = Pool::new(2).unwrap();
        for (rows, cols) in [(1, 1), (15, 17), (33, 130), (16, 256)] {
            let mut noise = Noise(7);
            let matrix = |rows: usize, noise: &mut Noise| {
                let trits: Vec<i8> = (0..rows * cols).map(|_| (noise.next() % 3) as i8 - 1).collect();
                let scale =
                    Scale::Groups { size: 32, values: noise.floats(rows * cols.div_ceil(32), 1.0).into() };
                TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap()
            };
            let (a, b) = (matrix(rows, &mut noise), matrix(3, &mut noise));
            let panels = Panels::new(&pool, &[&a, &b]).unwrap();
            for row in 0..rows + 3 {
                let (m, r) = if row < rows { (&a, row) } else { (&b, row - rows) };
                let mut got = vec![0.0; cols];
                panels.dequantize_row(row, &mut got);
                let want: Vec<f32> = (0..cols).map(|c| f32::from(m.trit(r, c)) * m.scale_at(r, c)).collect();
                assert_eq!(got, want, "{rows} x {cols} row {row}");
            }
        }
    }
}
