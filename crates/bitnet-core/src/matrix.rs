//! Weight matrices as the model sees them: ternary in one canonical form, or dense in the type of the file.

use crate::Bytes;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Rows of canonical codes are padded with zero trits to a multiple of this many.
pub const ROW_ALIGN: usize = 128;

/// What maps a trit to a real weight: `weight = trit * scale`, always a multiplier.
///
/// A file that stores a divisor is read as `1/divisor`.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// One scale for the whole matrix.
    Tensor(f32),
    /// One scale a row, `[rows]`.
    Rows(Arc<[f32]>),
    /// One scale for every `size` neighbouring columns of a row, row-major `[rows, ceil(cols/size)]`.
    Groups {
        /// Columns that share a scale.
        size: usize,
        /// Row-major `[rows, ceil(cols/size)]`.
        values: Arc<[f32]>,
    },
}

/// A shape and its data disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {rows} x {cols} needs {need}, got {got}")]
pub struct ShapeError {
    /// What was counted.
    pub what: &'static str,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// The count that the shape asks for.
    pub need: usize,
    /// The count that was given.
    pub got: usize,
}

/// A matrix of -1, 0 and +1 in canonical form, with its scale.
///
/// Canonical codes: row-major, `code = trit + 1` (0, 1 or 2; never 3), four codes a byte, lowest bits first, every row
/// padded to a multiple of [`ROW_ALIGN`] codes with zero trits (code 1).
///
/// A matrix may also still be [`Packed`] as its file has it: then the canonical form is made when somebody asks for it.
#[derive(Clone, Debug)]
pub struct TernaryMatrix {
    rows: usize,
    cols: usize,
    codes: Codes,
    scale: Scale,
}

#[derive(Clone, Debug)]
enum Codes {
    Canonical(Bytes),
    /// With the canonical form, once it was asked for.
    Packed(Packed, OnceLock<Bytes>),
}

/// Codes where a file has them, for backends whose own layout that is. Whoever makes one has seen that all codes are trits.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The name of the packing: `I2_S`.
    pub packing: &'static str,
    /// The codes of the whole matrix in that packing, without a scale.
    pub bytes: Bytes,
    /// Canonical codes of `rows` by `cols` packed ones. It is also given some of the rows, each of which has as many bytes.
    pub unpack: fn(rows: usize, cols: usize, bytes: &[u8]) -> Vec<u8>,
}

impl TernaryMatrix {
    /// Bytes of one canonical row of `cols` codes.
    pub fn row_bytes(cols: usize) -> usize {
        cols.div_ceil(ROW_ALIGN) * (ROW_ALIGN / 4)
    }

    /// Wraps canonical codes `[rows, row_bytes(cols)]`. Checks lengths; the producer answers for the codes.
    pub fn new(rows: usize, cols: usize, codes: Bytes, scale: Scale) -> Result<Self, ShapeError> {
        let (need, got) = (rows * Self::row_bytes(cols), codes.len());
        if need != got {
            return Err(ShapeError { what: "code bytes", rows, cols, need, got });
        }
        Self { rows, cols, codes: Codes::Canonical(codes), scale: Scale::Tensor(1.0) }.with_scale(scale)
    }

    /// Keeps codes where a file has them. The canonical form is made when somebody asks for it, and the file's pages are given
    /// back then.
    pub fn packed(rows: usize, cols: usize, packed: Packed, scale: Scale) -> Result<Self, ShapeError> {
        let codes = Codes::Packed(packed, OnceLock::new());
        Self { rows, cols, codes, scale: Scale::Tensor(1.0) }.with_scale(scale)
    }

    /// The same trits with another scale.
    pub fn with_scale(self, scale: Scale) -> Result<Self, ShapeError> {
        let (rows, cols) = (self.rows, self.cols);
        let check = |what, need, got| {
            if need == got { Ok(()) } else { Err(ShapeError { what, rows, cols, need, got }) }
        };
        match &scale {
            Scale::Tensor(_) => {}
            Scale::Rows(v) => check("row scales", rows, v.len())?,
            Scale::Groups { size, values } => {
                check("group size", (*size).max(1), *size)?;
                check("group scales", rows * cols.div_ceil(*size), values.len())?;
            }
        }
        Ok(Self { scale, ..self })
    }

    /// Packs row-major trits `[rows, cols]`; any positive value counts as +1 and any negative one as -1.
    pub fn from_trits(rows: usize, cols: usize, trits: &[i8], scale: Scale) -> Result<Self, ShapeError> {
        if trits.len() != rows * cols {
            return Err(ShapeError { what: "trits", rows, cols, need: rows * cols, got: trits.len() });
        }
        let stride = Self::row_bytes(cols);
        let mut codes = vec![0b0101_0101u8; rows * stride];
        for (row, out) in trits.chunks_exact(cols.max(1)).zip(codes.chunks_exact_mut(stride.max(1))) {
            let code = |t: i8| (t.signum() + 1) as u8;
            let (fours, rest) = row.as_chunks::<4>();
            for (out, t) in out.iter_mut().zip(fours) {
                *out = code(t[0]) | code(t[1]) << 2 | code(t[2]) << 4 | code(t[3]) << 6;
            }
            for (c, t) in rest.iter().enumerate() {
                let out = &mut out[fours.len()];
                *out = *out & !(3 << (2 * c)) | code(*t) << (2 * c);
            }
        }
        Self::new(rows, cols, codes.into(), scale)
    }

    /// Output features, `n`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Input features, `k`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// The scale.
    pub fn scale(&self) -> &Scale {
        &self.scale
    }
    /// Canonical codes, `[rows, row_bytes(cols)]`.
    pub fn codes(&self) -> &[u8] {
        match &self.codes {
            Codes::Canonical(codes) => codes,
            Codes::Packed(packed, canonical) => canonical.get_or_init(|| {
                let codes = (packed.unpack)(self.rows, self.cols, &packed.bytes);
                assert_eq!(codes.len(), self.rows * Self::row_bytes(self.cols), "{}", packed.packing);
                packed.bytes.release();
                codes.into()
            }),
        }
    }
    /// The codes where the file has them, if they still lie there.
    pub fn in_file(&self) -> Option<&Packed> {
        match &self.codes {
            Codes::Canonical(_) => None,
            Codes::Packed(packed, _) => Some(packed),
        }
    }
    /// Canonical codes of neighbouring rows. Where the file has them in its own form and no canonical one was made, this makes
    /// them for these rows alone.
    pub fn rows_codes(&self, rows: Range<usize>) -> Cow<'_, [u8]> {
        match &self.codes {
            Codes::Packed(packed, canonical) if canonical.get().is_none() => {
                let bytes = packed.bytes.len() / self.rows.max(1);
                let bytes = &packed.bytes[rows.start * bytes..rows.end * bytes];
                Cow::Owned((packed.unpack)(rows.len(), self.cols, bytes))
            }
            _ => {
                let stride = Self::row_bytes(self.cols);
                Cow::Borrowed(&self.codes()[rows.start * stride..rows.end * stride])
            }
        }
    }
    /// Gives back the pages of a file that has the codes; they come again when they are asked for.
    pub fn release(&self) {
        if let Codes::Packed(packed, _) = &self.codes {
            packed.bytes.release();
        }
    }
    /// Canonical codes of one row.
    pub fn row_codes(&self, row: usize) -> &[u8] {
        let stride = Self::row_bytes(self.cols);
        &self.codes()[row * stride..(row + 1) * stride]
    }
    /// One trit. For tests and inspection; kernels read whole rows.
    pub fn trit(&self, row: usize, col: usize) -> i8 {
        assert!(col < self.cols, "column {col} of {}", self.cols);
        ((self.row_codes(row)[col / 4] >> (2 * (col % 4))) & 3) as i8 - 1
    }
    /// The multiplier of one element.
    pub fn scale_at(&self, row: usize, col: usize) -> f32 {
        match &self.scale {
            Scale::Tensor(s) => *s,
            Scale::Rows(v) => v[row],
            Scale::Groups { size, values } => values[row * self.cols.div_ceil(*size) + col / size],
        }
    }
}

/// Element or block type of a dense matrix, as files store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types, reason = "the names are the formats' own")]
pub enum DenseType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q6_K,
}

impl DenseType {
    /// Values in a block and bytes a block takes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q6_K => (256, 210),
        }
    }
    /// Bytes of a row of `cols` values; `None` when the row is not whole blocks or the product overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        cols.is_multiple_of(values).then(|| (cols / values).checked_mul(bytes))?
    }
    /// The name used in GGUF tools and in `inspect`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q6_K => "Q6_K",
        }
    }
}

/// A dense matrix, row-major `[rows, cols]`, in the type of its file.
#[derive(Clone, Debug)]
pub struct DenseMatrix {
    rows: usize,
    cols: usize,
    dtype: DenseType,
    data: Bytes,
}

impl TernaryMatrix {
    /// Some of its rows, over the same memory.
    ///
    /// # Panics
    /// It has no such rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let part = |bytes: &Bytes| {
            let row = bytes.len() / self.rows.max(1);
            bytes.slice(rows.start * row..rows.end * row).expect("rows of the matrix")
        };
        let codes = match &self.codes {
            Codes::Canonical(codes) => Codes::Canonical(part(codes)),
            Codes::Packed(packed, _) => {
                Codes::Packed(Packed { bytes: part(&packed.bytes), ..packed.clone() }, OnceLock::new())
            }
        };
        let scale = match &self.scale {
            Scale::Tensor(scale) => Scale::Tensor(*scale),
            Scale::Rows(values) => Scale::Rows(values[rows.clone()].into()),
            Scale::Groups { size, values } => {
                let groups = self.cols.div_ceil(*size);
                Scale::Groups { size: *size, values: values[rows.start * groups..rows.end * groups].into() }
            }
        };
        Self { rows: rows.len(), cols: self.cols, codes, scale }
    }
}

impl DenseMatrix {
    /// Some of its rows, over the same memory.
    ///
    /// # Panics
    /// It has no such rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let row = self.data.len() / self.rows.max(1);
        let data = self.data.slice(rows.start * row..rows.end * row).expect("rows of the matrix");
        Self { rows: rows.len(), data, ..*self }
    }
}

impl DenseMatrix {
    /// Wraps little-endian data of `dtype`.
    pub fn new(rows: usize, cols: usize, dtype: DenseType, data: Bytes) -> Result<Self, ShapeError> {
        let need = dtype.row_bytes(cols).and_then(|r| r.checked_mul(rows));
        match need {
            Some(need) if need == data.len() => Ok(Self { rows, cols, dtype, data }),
            _ => Err(ShapeError {
                what: "dense bytes",
                rows,
                cols,
                need: need.unwrap_or(usize::MAX),
                got: data.len(),
            }),
        }
    }
    /// Output features, `n`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Input features, `k`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Element or block type.
    pub fn dtype(&self) -> DenseType {
        self.dtype
    }
    /// All rows.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        let stride = self.data.len() / self.rows.max(1);
        &self.data[row * stride..(row + 1) * stride]
    }
}

/// A weight matrix `[n, k]` on its way to a backend.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// Trits and scales.
    Ternary(TernaryMatrix),
    /// Anything else.
    Dense(DenseMatrix),
}

impl Matrix {
    /// Some of its rows, over the same memory.
    ///
    /// # Panics
    /// It has no such rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Ternary(m) => Self::Ternary(m.slice(rows)),
            Self::Dense(m) => Self::Dense(m.slice(rows)),
        }
    }
    /// Output features, `n`.
    pub fn rows(&self) -> usize {
        match self {
            Self::Ternary(m) => m.rows(),
            Self::Dense(m) => m.rows(),
        }
    }
    /// Input features, `k`.
    pub fn cols(&self) -> usize {
        match self {
            Self::Ternary(m) => m.cols(),
            Self::Dense(m) => m.cols(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trits_survive_packing_and_padding_is_zero() {
        let trits: Vec<i8> = (0..3 * 130).map(|i| (i % 3) as i8 - 1).collect();
        let m = TernaryMatrix::from_trits(3, 130, &trits, Scale::Tensor(2.0)).unwrap();
        assert_eq!(m.row_codes(0).len(), 64);
        for r in 0..3 {
            for c in 0..130 {
                assert_eq!(m.trit(r, c), trits[r * 130 + c]);
            }
        }
        assert_eq!(m.row_codes(1)[63], 0b0101_0101);
    }

    #[test]
    fn slices_have_the_rows_and_their_scales() {
        let trits: Vec<i8> = (0..5 * 130).map(|i| (i % 3) as i8 - 1).collect();
        let values = |n: usize| (0..n).map(|v| v as f32).collect();
        for scale in
            [Scale::Tensor(2.0), Scale::Rows(values(5)), Scale::Groups { size: 64, values: values(15) }]
        {
            let m = TernaryMatrix::from_trits(5, 130, &trits, scale).unwrap();
            let part = m.slice(2..4);
            assert_eq!((part.rows(), part.cols()), (2, 130));
            for (own, row) in [(0, 2), (1, 3)] {
                assert_eq!(part.row_codes(own), m.row_codes(row));
                assert_eq!(part.scale_at(own, 129), m.scale_at(row, 129));
            }
            assert_eq!(m.slice(5..5).rows(), 0);
        }
        let m = DenseMatrix::new(3, 2, DenseType::BF16, (0..12u8).collect::<Vec<_>>().into()).unwrap();
        assert_eq!(&m.slice(1..3).data()[..], &m.data()[4..]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(TernaryMatrix::new(2, 4, vec![0u8; 63].into(), Scale::Tensor(1.0)).is_err());
        let zero_groups = Scale::Groups { size: 0, values: Arc::from([]) };
        assert!(TernaryMatrix::new(0, 0, vec![].into(), zero_groups).is_err());
        assert!(DenseMatrix::new(1, 31, DenseType::Q8_0, vec![0u8; 34].into()).is_err());
    }
}
