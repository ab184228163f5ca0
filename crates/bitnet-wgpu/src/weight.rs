//! Prepared weights: stacked matrices, cut where an adapter's bindings end.

use crate::gpu::Gpu;
use crate::memory::Buffer;
use bitnet_core::{ActivationPrecision, BackendError, DenseMatrix, DenseType, Matrix, Scale, TernaryMatrix};
use bitnet_memory::Tag;
use bitnet_quant::dense::{first_not_finite, widened};

/// Rows of a tile of ternary weights.
pub(crate) const TILE_ROWS: usize = 32;
/// Codes of a vector of ternary weights, and of a word.
pub(crate) const VECTOR_CODES: usize = 64;
const WORD_CODES: usize = 16;
/// Rows of dense weights that a workgroup multiplies, and workgroups that a dispatch may have in one dimension.
pub(crate) const DENSE_ROWS: usize = 16;
const MAX_GROUPS: usize = 65_535;

/// Neighbouring rows of a weight that one dispatch computes.
pub(crate) struct Part {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) data: Buffer,
    pub(crate) form: Form,
}

pub(crate) enum Form {
    /// As `shaders/ternary.wgsl` has it.
    Ternary {
        /// `[groups][rows, padded to whole tiles]`
        scales: Buffer,
        /// Words of a row that share a scale; `None`, a row has one.
        group_words: Option<usize>,
    },
    /// Row-major, each row and each block filled up to whole words.
    Dense { dtype: DenseType, row_words: usize },
}

/// A norm's weight.
pub struct WgpuVector {
    pub(crate) data: Buffer,
    pub(crate) len: usize,
}

/// Matrices stacked by rows, `[rows, cols]`.
pub struct WgpuWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) act: ActivationPrecision,
    pub(crate) parts: Vec<Part>,
}

impl WgpuWeight {
    pub(crate) fn new(gpu: &Gpu, stacked: &[Matrix], act: ActivationPrecision) -> Result<Self, BackendError> {
        let cols = stacked.first().map_or(0, Matrix::cols);
        if let Some(odd) = stacked.iter().find(|m| m.cols() != cols) {
            return Err(BackendError::Stack { what: "columns", a: cols, b: odd.cols() });
        }
        let mut weight = Self { rows: 0, cols, act, parts: Vec::new() };
        let mut rest = stacked;
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|m| group(m).is_some() && group(m) == group(first)).count();
            let (run, behind) = rest.split_at(run.max(1));
            match first {
                Matrix::Ternary(_) => weight.push_ternary(gpu, run, group(first).flatten())?,
                Matrix::Dense(m) => weight.push_dense(gpu, m)?,
            }
            rest = behind;
        }
        gpu.check()?;
        Ok(weight)
    }

    /// Bytes on the GPU.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = self.parts.iter().map(|part| match &part.form {
            Form::Ternary { scales, .. } => part.data.bytes() + scales.bytes(),
            Form::Dense { .. } => part.data.bytes(),
        });
        bytes.sum()
    }

    fn push(&mut self, rows: usize, data: Buffer, form: Form) {
        self.parts.push(Part { first: self.rows, rows, data, form });
        self.rows += rows;
    }

    /// Ternary matrices of one kind of scale become one.
    fn push_ternary(&mut self, gpu: &Gpu, run: &[Matrix], group: Option<usize>) -> Result<(), BackendError> {
        let group_words = group.map(|size| size / WORD_CODES);
        if let Some(size) = group.filter(|size| !size.is_multiple_of(WORD_CODES)) {
            return Err(BackendError::Unsupported {
                backend: "wgpu",
                what: format!("scales for groups of {size} columns"),
                hint: "groups of a multiple of 16 columns, or --device cpu, would do",
            });
        }
        let matrices = run.iter().filter_map(|m| match m {
            Matrix::Ternary(m) => Some(m),
            Matrix::Dense(_) => None,
        });
        let rows: Vec<(&TernaryMatrix, usize)> =
            matrices.flat_map(|m| (0..m.rows()).map(move |row| (m, row))).collect();
        let row_bytes = TernaryMatrix::row_bytes(self.cols);
        let most = gpu.max_binding() / (TILE_ROWS * row_bytes).max(1) * TILE_ROWS;
        if most == 0 {
            return Err(too_wide(self.cols));
        }
        for rows in rows.chunks(most) {
            let tiles = rows.chunks(TILE_ROWS);
            let bytes = tiles.len() * TILE_ROWS * row_bytes;
            let data = gpu.storage(Tag::Weights, bytes, "ternary weights")?;
            gpu.fill(&data, |put| {
                let mut tile = vec![0u8; TILE_ROWS * row_bytes];
                for rows in tiles.clone() {
                    // Rows that a last tile lacks are zeros.
                    tile.fill(0b0101_0101);
                    for (lane, (m, row)) in rows.iter().enumerate() {
                        let vectors = m.row_codes(*row).chunks_exact(VECTOR_CODES / 4);
                        for (vector, out) in vectors.zip(tile.chunks_exact_mut(TILE_ROWS * VECTOR_CODES / 4))
                        {
                            out[lane * VECTOR_CODES / 4..][..VECTOR_CODES / 4].copy_from_slice(vector);
                        }
                    }
                    put(&tile)?;
                }
                Ok(())
            })?;
            let padded = tiles.len() * TILE_ROWS;
            let groups = group.map_or(1, |size| self.cols.div_ceil(size).max(1));
            let on_gpu = gpu.storage(Tag::Weights, 4 * groups * padded, "scales")?;
            gpu.fill(&on_gpu, |put| {
                for g in 0..groups {
                    let scale = |(m, row): &(&TernaryMatrix, usize)| m.scale_at(*row, g * group.unwrap_or(0));
                    let mut scales: Vec<u8> = rows.iter().flat_map(|row| scale(row).to_le_bytes()).collect();
                    scales.resize(4 * padded, 0);
                    put(&scales)?;
                }
                Ok(())
            })?;
            self.push(rows.len(), data, Form::Ternary { scales: on_gpu, group_words });
        }
        Ok(())
    }

    fn push_dense(&mut self, gpu: &Gpu, m: &DenseMatrix) -> Result<(), BackendError> {
        if let Some(value) = first_not_finite(m.dtype(), m.data()) {
            return Err(BackendError::NotFinite { value });
        }
        // There is no kernel for its offsets: it lies here as what its weights are worth.
        let widened = (m.dtype() == DenseType::Q4_1).then(|| widened(m));
        let (stored, m) = (m, widened.as_ref().unwrap_or(m));
        let dtype = m.dtype();
        let (values, block_bytes) = dtype.block();
        // Scales of 32 values get a word of their own, so that the bytes behind them begin with one.
        let padding = match dtype {
            DenseType::Q8_0 | DenseType::Q4_0 => (2, &[0u8; 2][..]),
            DenseType::Q6_K => (block_bytes, &[0; 2][..]),
            DenseType::F32 | DenseType::F16 | DenseType::BF16 | DenseType::Q4_1 => (block_bytes, &[][..]),
        };
        let row_bytes = (m.cols() / values * (block_bytes + padding.1.len())).next_multiple_of(4);
        let most = (gpu.max_binding() / row_bytes.max(1)).min(MAX_GROUPS * DENSE_ROWS);
        if most == 0 {
            return Err(too_wide(self.cols));
        }
        for first in (0..m.rows()).step_by(most) {
            let rows = most.min(m.rows() - first);
            let data = gpu.storage(Tag::Weights, rows * row_bytes, "dense weights")?;
            gpu.fill(&data, |put| {
                let mut out = Vec::with_capacity(row_bytes);
                for row in first..first + rows {
                    out.clear();
                    match padding.1 {
                        [] => out.extend_from_slice(m.row(row)),
                        zeros => m.row(row).chunks_exact(block_bytes).for_each(|block| {
                            let (scale, rest) = block.split_at(padding.0);
                            out.extend_from_slice(scale);
                            out.extend_from_slice(zeros);
                            out.extend_from_slice(rest);
                        }),
                    }
                    out.resize(row_bytes, 0);
                    put(&out)?;
                }
                Ok(())
            })?;
            self.push(rows, data, Form::Dense { dtype, row_words: row_bytes / 4 });
        }
        stored.data().release();
        Ok(())
    }
}

/// Columns of a ternary matrix that share a scale, where not all of a row do; `None` for a dense one.
fn group(m: &Matrix) -> Option<Option<usize>> {
    match m {
        Matrix::Ternary(m) => Some(match m.scale() {
            Scale::Groups { size, .. } => Some(*size),
            Scale::Tensor(_) | Scale::Rows(_) => None,
        }),
        Matrix::Dense(_) => None,
    }
}

fn too_wide(cols: usize) -> BackendError {
    BackendError::Unsupported {
        backend: "wgpu",
        what: format!("rows of {cols} columns, which no binding of the adapter holds"),
        hint: "--device cpu would do",
    }
}
