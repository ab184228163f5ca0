//! bitnet.cpp's `TL1` and `TL2`, made for products by table lookup. Neither can be read without a table of tiles, which the
//! program that wrote the file was compiled with (`kernel_config.ini`); the scale is a tensor of its own.
//!
//! `TL1`: two columns are an index `3a + b + 4`, two indices a byte. `TL2`: three columns are `9a + 3b + c`, its magnitude in
//! four bits and its sign in one; the columns behind the last whole tile are pairs as in `TL1`.

use super::PackingError;
use super::codes::ZEROS;
use bitnet_core::{Scale, TernaryMatrix};

/// How matrices of a shape are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of the matrix (`m`).
    pub rows: usize,
    /// Columns of the matrix (`k`).
    pub cols: usize,
    /// Rows of a tile (`bm`).
    pub tile_rows: usize,
    /// Columns of a tile (`bk`).
    pub tile_cols: usize,
    /// Rows that a vector holds (`bmm`).
    pub lanes: usize,
}

/// Tiles by the shapes of matrices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileTable(pub Vec<Tile>);

impl TileTable {
    /// Reads bitnet.cpp's `kernel_config.ini`; the error says which line is wrong.
    ///
    /// ```
    /// use bitnet_quant::packing::TileTable;
    /// let table = TileTable::parse("[Kernels_0]\nm = 256\nk = 128\nbm = 128\nbk = 64\nbmm = 32\n").unwrap();
    /// assert_eq!(table.find(256, 128).unwrap().tile_cols, 64);
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut sections: Vec<[Option<usize>; 5]> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.starts_with('[') {
                sections.push([None; 5]);
            } else if !line.is_empty() && !line.starts_with(['#', ';']) {
                let wrong = || format!("line {} of the table of tiles is {line:?}", number + 1);
                let (key, value) = line.split_once(['=', ':']).ok_or_else(wrong)?;
                let place = ["m", "k", "bm", "bk", "bmm"].iter().position(|k| *k == key.trim());
                let section = sections.last_mut().ok_or_else(wrong)?;
                section[place.ok_or_else(wrong)?] = Some(value.trim().parse().map_err(|_| wrong())?);
            }
        }
        let tile = |section: [Option<usize>; 5]| {
            let [Some(rows), Some(cols), Some(tile_rows), Some(tile_cols), Some(lanes)] = section else {
                return Err("a section of the table of tiles lacks one of m, k, bm, bk and bmm".to_owned());
            };
            Ok(Tile { rows, cols, tile_rows, tile_cols, lanes })
        };
        sections.into_iter().map(tile).collect::<Result<_, _>>().map(Self)
    }

    /// The tile of matrices of a shape.
    pub fn find(&self, rows: usize, cols: usize) -> Option<Tile> {
        self.0.iter().find(|t| t.rows == rows && t.cols == cols).copied()
    }
}

/// The two packings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the formats' own")]
pub enum Tiled {
    Tl1,
    Tl2,
}

/// Columns of an index of three.
const TRIPLE: usize = 3;
/// Rows of a vector of `TL2`, columns whose triples lie in a byte, and columns whose signs lie in a vector.
const TL2_LANES: usize = 32;
const TL2_COLS: usize = 6;
const TL2_SIGN_COLS: usize = 24;
/// The same of its pairs.
const PAIR_TILE: usize = 32;

impl Tiled {
    /// The name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tl1 => "TL1",
            Self::Tl2 => "TL2",
        }
    }

    /// Bytes of a matrix; `None` where the tile does not fit the shape.
    pub fn bytes(self, t: &Tile) -> Option<usize> {
        let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
        let weights = t.rows.checked_mul(t.cols)?;
        let fits = divides(t.tile_rows, t.rows) && divides(t.lanes, t.tile_rows);
        match self {
            Self::Tl1 => {
                let fits = fits && divides(16, t.lanes) && t.lanes <= 64 && divides(t.tile_cols, t.cols);
                (fits && divides(256 / t.lanes, t.tile_cols)).then_some(weights / 4)
            }
            Self::Tl2 => {
                let (three, two) = (t.cols - t.cols % t.tile_cols.max(1), t.cols % t.tile_cols.max(1));
                let fits = fits
                    && t.tile_cols > 0
                    && t.lanes == TL2_LANES
                    && divides(TL2_SIGN_COLS, t.tile_cols)
                    && three > 0;
                // What bitnet.cpp reserves, whatever the columns behind the last tile take.
                let reserved = (t.cols.checked_sub(256)? * t.rows / 3 * 5 / 8) + 256 * t.rows / 2 * 4 / 8;
                let need = three * t.rows * 5 / 24 + two * t.rows / 4;
                (fits && divides(PAIR_TILE, two) && need <= reserved).then(|| reserved.next_multiple_of(32))
            }
        }
    }

    /// Reads a matrix; its scale is left at `Scale::Tensor(1.0)`.
    pub fn unpack(self, t: &Tile, data: &[u8]) -> Result<TernaryMatrix, PackingError> {
        let need = self.need(t)?;
        if data.len() != need {
            let (packing, rows, cols) = (self.name(), t.rows, t.cols);
            return Err(PackingError::Length { packing, rows, cols, need, got: data.len() });
        }
        let stride = TernaryMatrix::row_bytes(t.cols);
        let mut codes = vec![ZEROS; t.rows * stride];
        let mut reserved = None;
        let mut set = |row: usize, col: usize, code: u8| {
            let shift = 2 * (col % 4);
            let byte = &mut codes[row * stride + col / 4];
            *byte = *byte & !(3 << shift) | code << shift;
        };
        self.places(t, |place| match place {
            Place::Pair { byte, shift, row, col } => {
                let index = data[byte] >> shift & 15;
                if index > 8 {
                    reserved = reserved.or(Some((row, col)));
                    return;
                }
                set(row, col, index / 3);
                set(row, col + 1, index % 3);
            }
            Place::Triple { byte, shift, sign, bit, row, col } => {
                let magnitude = data[byte] >> shift & 15;
                if magnitude > 13 {
                    reserved = reserved.or(Some((row, col)));
                    return;
                }
                let index = if data[sign] >> bit & 1 == 1 { 13 - magnitude } else { 13 + magnitude };
                set(row, col, index / 9);
                set(row, col + 1, index / 3 % 3);
                set(row, col + 2, index % 3);
            }
        });
        match reserved {
            Some((row, col)) => Err(PackingError::ReservedCode { packing: self.name(), row, col }),
            None => Ok(TernaryMatrix::new(t.rows, t.cols, codes.into(), Scale::Tensor(1.0))?),
        }
    }

    /// Appends the trits of a matrix to `out`.
    pub fn pack(self, t: &Tile, m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
        let need = self.need(t)?;
        if (m.rows(), m.cols()) != (t.rows, t.cols) {
            let (packing, rows, cols) = (self.name(), m.rows(), m.cols());
            return Err(PackingError::Shape { packing, rows, cols, need: "another tile is needed" });
        }
        let start = out.len();
        out.resize(start + need, 0);
        let data = &mut out[start..];
        let code = |row: usize, col: usize| m.row_codes(row)[col / 4] >> (2 * (col % 4)) & 3;
        self.places(t, |place| match place {
            Place::Pair { byte, shift, row, col } => {
                data[byte] |= (3 * code(row, col) + code(row, col + 1)) << shift;
            }
            Place::Triple { byte, shift, sign, bit, row, col } => {
                let index = 9 * code(row, col) + 3 * code(row, col + 1) + code(row, col + 2);
                data[byte] |= index.abs_diff(13) << shift;
                data[sign] |= u8::from(index < 13) << bit;
            }
        });
        Ok(())
    }

    /// What is wrong with a tile that does not fit.
    pub fn misfit(self, t: &Tile) -> PackingError {
        let (packing, rows, cols) = (self.name(), t.rows, t.cols);
        let need = "the tile of this shape in the table does not divide it as the packing asks";
        PackingError::Shape { packing, rows, cols, need }
    }

    fn need(self, t: &Tile) -> Result<usize, PackingError> {
        self.bytes(t).ok_or_else(|| self.misfit(t))
    }

    /// Where each index of a matrix lies.
    fn places(self, t: &Tile, mut each: impl FnMut(Place)) {
        match self {
            Self::Tl1 => {
                let step = 256 / t.lanes;
                let mut byte = 0;
                for tile in tiles(t.rows, t.cols, t.tile_rows, t.tile_cols, t.lanes, step) {
                    for sixteen in (0..t.lanes).step_by(16) {
                        for four in (0..step).step_by(4) {
                            for row in 0..16 {
                                for (pair, shift) in [(0, 4), (2, 0)] {
                                    let (row, col) = (tile.0 + sixteen + row, tile.1 + four + pair);
                                    each(Place::Pair { byte, shift, row, col });
                                }
                                byte += 1;
                            }
                        }
                    }
                }
            }
            Self::Tl2 => {
                let three = t.cols - t.cols % t.tile_cols;
                let signs = t.rows * three / TRIPLE / 2;
                for (n, (row, col)) in
                    tiles(t.rows, three, t.tile_rows, t.tile_cols, TL2_LANES, TL2_COLS).enumerate()
                {
                    // Signs of four vectors of indices: a bit for each half of the rows, from the highest on.
                    let (vector, quarter) = (n / 4, n % 4);
                    for lane in 0..TL2_LANES {
                        for (triple, shift) in [(0, 4), (1, 0)] {
                            let bit = 15 - 2 * (2 * quarter + triple) - lane / 16;
                            each(Place::Triple {
                                byte: n * TL2_LANES + shuffled(lane),
                                shift,
                                sign: signs + vector * 32 + 2 * (lane % 16) + bit / 8,
                                bit: bit % 8,
                                row: row + lane,
                                col: col + TRIPLE * triple,
                            });
                        }
                    }
                }
                let start = signs + t.rows * three / TRIPLE / 8;
                for (n, (row, col)) in
                    tiles(t.rows, t.cols - three, t.tile_rows, PAIR_TILE, TL2_LANES, 4).enumerate()
                {
                    for lane in 0..TL2_LANES {
                        for (pair, shift) in [(0, 4), (2, 0)] {
                            let byte = start + n * TL2_LANES + shuffled(lane);
                            each(Place::Pair { byte, shift, row: row + lane, col: three + col + pair });
                        }
                    }
                }
            }
        }
    }
}

/// Where an index lies and what it stands for: the first row and column.
enum Place {
    Pair { byte: usize, shift: usize, row: usize, col: usize },
    Triple { byte: usize, shift: usize, sign: usize, bit: usize, row: usize, col: usize },
}

/// The second and the third eight of 32 rows change places.
fn shuffled(lane: usize) -> usize {
    match lane / 8 {
        1 => lane + 8,
        2 => lane - 8,
        _ => lane,
    }
}

/// First rows and columns of the smallest parts: tiles down, then across; in a tile vectors of rows, then steps of columns.
fn tiles(
    rows: usize,
    cols: usize,
    tile_rows: usize,
    tile_cols: usize,
    lanes: usize,
    step: usize,
) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(tile_rows).flat_map(move |row| {
        (0..cols).step_by(tile_cols).flat_map(move |col| {
            (row..row + tile_rows)
                .step_by(lanes)
                .flat_map(move |row| (col..col + tile_cols).step_by(step).map(move |col| (row, col)))
        })
    })
}

#[cfg(test)]
mod tests;
