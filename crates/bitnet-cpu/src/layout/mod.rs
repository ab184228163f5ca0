//! How prepared ternary weights lie in memory: one file and one row of [`LAYOUTS`] for each layout.
//!
//! Rows come in tiles of sixteen, in every layout; what a tile looks like inside is the layout's affair. Tiles follow each
//! other without gaps, so that a product reads one sequential stream. Products that leave out rows or columns have an order
//! of their own, [`by_row`] and [`by_column`], from which tiles of [`TILE2`] are made again where all are needed.

pub(crate) mod base3;
pub(crate) mod by_column;
pub(crate) mod by_row;
pub(crate) mod i2_s;
pub(crate) mod tile2;
pub(crate) mod tl1;
pub(crate) mod tl2;

use crate::memory::{Buffer, Memory, kept};
use crate::pool::Pool;
use bitnet_core::{BackendError, Bytes, Scale, TernaryMatrix};
use bitnet_memory::Tag;
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use std::ops::Range;

pub(crate) use base3::BASE3;
pub(crate) use by_column::STRIPE_TILES;
pub(crate) use i2_s::I2_S;
pub(crate) use tile2::TILE2;
use tile2::{BLOCK, COLUMNS};
pub(crate) use tl1::TL1;
pub(crate) use tl2::TL2;

/// Rows of a tile.
pub(crate) const TILE: usize = 16;

/// The least that a thread reads at a time: some two microseconds of a stream.
const STREAM_BYTES: usize = 1 << 15;

/// A way to arrange sixteen rows of trits.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The name in kernel names.
    pub(crate) name: &'static str,
    /// Columns of a block; a tile has whole blocks.
    pub(crate) columns: usize,
    /// Bytes that sixteen rows of a block take, whole cache lines.
    pub(crate) bytes: usize,
    /// The packing of files in which sixteen rows of whole blocks are such a tile as they lie.
    pub(crate) packing: Option<&'static str>,
    /// Packs up to sixteen canonical rows, each padded with zero trits; rows that are missing become zero trits too.
    pub(crate) pack: fn(rows: &[&[u8]], cols: usize, tile: &mut [u8]),
    /// One code (`trit + 1`) of a packed tile.
    pub(crate) code: fn(tile: &[u8], row: usize, col: usize) -> u8,
}

impl Layout {
    /// Bytes of a tile of `cols` columns.
    pub(crate) fn tile_bytes(&self, cols: usize) -> usize {
        cols.div_ceil(self.columns) * self.bytes
    }

    /// The codes of a matrix where its file has them, if they are tiles of this layout there.
    pub(crate) fn in_file<'a>(&self, m: &'a TernaryMatrix) -> Option<&'a Bytes> {
        let packed = m.in_file().filter(|packed| Some(packed.packing) == self.packing)?;
        let whole = m.rows().is_multiple_of(TILE) && m.cols().is_multiple_of(self.columns);
        (whole && packed.bytes.len() == m.rows() / TILE * self.tile_bytes(m.cols())).then_some(&packed.bytes)
    }
}

/// Every layout.
#[cfg(test)]
pub(crate) static LAYOUTS: &[&Layout] = &[&TILE2, &BASE3, &I2_S, &TL1, &TL2];

/// A cache line of weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// The scales of stacked matrices, arranged for sixteen rows at a time.
pub(crate) enum PanelScale {
    /// One scale a row, `[rows padded to 16]`.
    Rows(Buffer<[f32; 16]>),
    /// One scale for `cols` columns of a row, `[tiles][groups]`.
    Groups { cols: usize, groups: usize, values: Buffer<[f32; 16]> },
}

/// In which order the weights of a matrix follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[tiles][tile_bytes]`, a tile as its layout says.
    Tiles,
    /// See [`by_row`].
    Rows,
    /// See [`by_column`].
    Columns,
}

/// Where codes lie.
enum Codes {
    /// In memory of their own.
    Own(Buffer<Line>),
    /// Where their file has them, in the order of tiles.
    File(Bytes),
}

/// Stacked ternary matrices in tiles.
pub(crate) struct Panels {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// How the tiles look that products read.
    pub(crate) layout: &'static Layout,
    /// Bytes of a tile.
    pub(crate) tile_bytes: usize,
    pub(crate) order: Order,
    codes: Codes,
    pub(crate) scale: PanelScale,
}

/// The bytes of cache lines.
pub(crate) fn bytes(lines: &[Line]) -> &[u8] {
    bytemuck::cast_slice(lines)
}

/// The same, to be written.
pub(crate) fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    bytemuck::cast_slice_mut(lines)
}

/// Packs canonical rows of one unit.
type Pack<'a> = &'a (dyn Fn(&[&[u8]], &mut [u8]) + Sync);

/// What is packed at a time.
struct Unit {
    rows: usize,
    lines: usize,
}

impl Panels {
    /// Stacks matrices of equal width by rows. Group scales may not be mixed with others. A matrix whose file has it in this
    /// layout stays there if it is stacked with no other.
    pub(crate) fn new(
        pool: &Pool,
        layout: &'static Layout,
        parts: &[&TernaryMatrix],
    ) -> Result<Self, BackendError> {
        let cols = parts.first().map_or(0, |m| m.cols());
        if let [m] = parts
            && let Some(bytes) = layout.in_file(m)
        {
            let (rows, codes) = (m.rows(), Codes::File(bytes.clone()));
            let (tile_bytes, order, scale) =
                (layout.tile_bytes(cols), Order::Tiles, scales(pool.memory(), parts, rows, cols)?);
            return Ok(Self { rows, cols, layout, tile_bytes, order, codes, scale });
        }
        let unit = Unit { rows: TILE, lines: layout.tile_bytes(cols) / 64 };
        Self::packed(pool, layout, Order::Tiles, unit, parts, &|rows, out| (layout.pack)(rows, cols, out))
    }

    /// The same row by row.
    pub(crate) fn by_row(pool: &Pool, parts: &[&TernaryMatrix]) -> Result<Self, BackendError> {
        let unit = Unit { rows: 1, lines: by_row::row_lines(parts.first().map_or(0, |m| m.cols())) };
        Self::packed(pool, &TILE2, Order::Rows, unit, parts, &|rows, out| by_row::pack(rows[0], out))
    }

    /// The same column by column.
    pub(crate) fn by_column(pool: &Pool, parts: &[&TernaryMatrix]) -> Result<Self, BackendError> {
        let unit = Unit { rows: by_column::STRIPE, lines: parts.first().map_or(0, |m| m.cols()) };
        Self::packed(pool, &TILE2, Order::Columns, unit, parts, &by_column::pack)
    }

    fn packed(
        pool: &Pool,
        layout: &'static Layout,
        order: Order,
        unit: Unit,
        parts: &[&TernaryMatrix],
        pack: Pack<'_>,
    ) -> Result<Self, BackendError> {
        let cols = parts.first().map_or(0, |m| m.cols());
        if let Some(odd) = parts.iter().find(|m| m.cols() != cols) {
            return Err(BackendError::Stack { what: "columns", a: cols, b: odd.cols() });
        }
        let rows: usize = parts.iter().map(|m| m.rows()).sum();
        let scale = scales(pool.memory(), parts, rows, cols)?;
        let len = rows.div_ceil(unit.rows) * unit.lines;
        let mut lines = kept::<Line>(pool.memory(), len, Tag::Weights, "ternary weights")?;
        pool.chunks_mut(bytes_mut(&mut lines), (unit.lines * 64).max(1), &|i, out| {
            let wanted = i * unit.rows..rows.min((i + 1) * unit.rows);
            let mut before = 0;
            let codes: Vec<Cow<'_, [u8]>> = parts
                .iter()
                .map(|m| {
                    let inside = |row: usize| row.clamp(before, before + m.rows()) - before;
                    let rows = inside(wanted.start)..inside(wanted.end);
                    before += m.rows();
                    m.rows_codes(rows)
                })
                .collect();
            let row_bytes = TernaryMatrix::row_bytes(cols).max(1);
            let rows: Vec<&[u8]> = codes.iter().flat_map(|codes| codes.chunks_exact(row_bytes)).collect();
            pack(&rows, out);
        });
        parts.iter().for_each(|m| m.release());
        let codes = Codes::Own(lines);
        Ok(Self { rows, cols, layout, tile_bytes: layout.tile_bytes(cols), order, codes, scale })
    }

    /// All codes, in their order.
    pub(crate) fn codes(&self) -> &[u8] {
        match &self.codes {
            Codes::Own(lines) => bytes(lines),
            Codes::File(bytes) => bytes,
        }
    }

    fn lines(&self) -> &[Line] {
        match &self.codes {
            Codes::Own(lines) => lines,
            Codes::File(_) => unreachable!("files are in the order of tiles"),
        }
    }

    /// Lines of room that [`Panels::tiles_of`] needs for so many tiles.
    pub(crate) fn room_lines(&self, tiles: usize) -> usize {
        if self.order == Order::Tiles { 0 } else { tiles * self.tile_bytes / 64 }
    }

    /// The tiles of `range`: as they lie, or made in `room` of weights that lie in another order.
    pub(crate) fn tiles_of<'a>(&'a self, range: Range<usize>, room: &'a mut [Line]) -> &'a [u8] {
        if self.order == Order::Tiles {
            return &self.codes()[range.start * self.tile_bytes..range.end * self.tile_bytes];
        }
        let room = &mut room[..range.len() * self.tile_bytes / 64];
        for (tile, out) in range.zip(bytes_mut(room).chunks_exact_mut(self.tile_bytes.max(1))) {
            if self.order == Order::Rows {
                let rows = tile * TILE..self.rows.min((tile + 1) * TILE);
                by_row::tile(self.rows_of(rows), by_row::row_lines(self.cols), self.cols, out);
            } else {
                by_column::tile(self.stripe(tile / STRIPE_TILES), tile % STRIPE_TILES, out);
            }
        }
        bytes(room)
    }

    /// Neighbouring rows of weights in the order of rows.
    pub(crate) fn rows_of(&self, range: Range<usize>) -> &[Line] {
        debug_assert_eq!(self.order, Order::Rows);
        let lines = by_row::row_lines(self.cols);
        &self.lines()[range.start * lines..range.end * lines]
    }

    /// A stripe of weights in the order of columns: a line a column.
    pub(crate) fn stripe(&self, stripe: usize) -> &[Line] {
        debug_assert_eq!(self.order, Order::Columns);
        &self.lines()[stripe * self.cols..(stripe + 1) * self.cols]
    }

    /// The bytes of one tile of weights in the order of tiles.
    pub(crate) fn tile(&self, tile: usize) -> &[u8] {
        debug_assert_eq!(self.order, Order::Tiles);
        &self.codes()[tile * self.tile_bytes..(tile + 1) * self.tile_bytes]
    }

    /// Columns of a tile, those of padding included.
    pub(crate) fn tile_cols(&self) -> usize {
        self.tile_bytes / self.layout.bytes * self.layout.columns
    }

    /// Tiles that a thread multiplies with one token before it looks for more.
    pub(crate) fn grain(&self) -> usize {
        STREAM_BYTES.div_ceil(self.tile_bytes.max(1))
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
        self.codes().len() + scales * size_of::<[f32; 16]>()
    }

    /// How many of them are the file's own.
    pub(crate) fn file_bytes(&self) -> usize {
        match &self.codes {
            Codes::Own(_) => 0,
            Codes::File(bytes) => bytes.len(),
        }
    }

    /// One row, for embedding: trits times scale.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (tile, lane) = (row / TILE, row % TILE);
        let mut room = vec![Line([0; 64]); self.room_lines(1)];
        let codes = self.tiles_of(tile..tile + 1, &mut room);
        for (col, out) in out.iter_mut().enumerate() {
            let trit = f32::from((self.layout.code)(codes, lane, col)) - 1.0;
            let scale = match &self.scale {
                PanelScale::Rows(v) => v[tile][lane],
                PanelScale::Groups { cols, groups, values } => values[tile * groups + col / cols][lane],
            };
            *out = trit * scale;
        }
    }
}

fn scales(
    memory: &Memory,
    parts: &[&TernaryMatrix],
    rows: usize,
    cols: usize,
) -> Result<PanelScale, BackendError> {
    let room = |len| kept(memory, len, Tag::Weights, "scales of weights");
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
        let mut values: Buffer<[f32; 16]> = room(tiles)?;
        for (i, (m, row)) in each_row().enumerate() {
            values[i / TILE][i % TILE] = if cols == 0 { 0.0 } else { finite(m.scale_at(row, 0))? };
        }
        return Ok(PanelScale::Rows(values));
    }
    if !size.is_multiple_of(COLUMNS) {
        return Err(BackendError::Unsupported {
            backend: "cpu",
            what: format!("scales for groups of {size} columns"),
            hint: "groups must be a multiple of 16",
        });
    }
    let groups = cols.div_ceil(size);
    let mut values: Buffer<[f32; 16]> = room(tiles * groups)?;
    for (i, (m, row)) in each_row().enumerate() {
        for g in 0..groups {
            values[i / TILE * groups + g][i % TILE] = finite(m.scale_at(row, g * size))?;
        }
    }
    Ok(PanelScale::Groups { cols: size, groups, values })
}

#[cfg(test)]
mod tests;
