//! Prepared weights: stacked matrices, each run of one kind as one part.

use crate::driver::Launch;
use crate::gpu::{Gpu, STAGED, elements};
use crate::head::Screen;
use crate::memory::Buffer;
use bitnet_core::{
    ActivationPrecision, BackendError, DenseMatrix, DenseType, Matrix, Purpose, Scale, TernaryMatrix,
};
use bitnet_memory::Tag;
use bitnet_quant::dense::{first_not_finite, widened};

/// Rows of a tile of ternary weights, and columns.
pub(crate) const TILE_ROWS: usize = 16;
pub(crate) const TILE_COLS: usize = 128;
/// Codes of a word.
const WORD_CODES: usize = 16;

/// How products of one token with int8 activations read ternary weights; they give the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OneToken {
    /// Tiles of 16 rows by 128 columns, which products of several tokens read too.
    #[default]
    Tiles,
    /// Blocks of 16 rows by 32 columns, codes interleaved, as Microsoft's BitNet kernels have them: for comparison. Weights whose rows have
    /// one scale are there a second time.
    Interleaved,
}

/// Neighbouring rows of a weight that one launch computes.
pub(crate) struct Part {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) data: Buffer,
    pub(crate) form: Form,
}

pub(crate) enum Form {
    /// As `kernels/ternary.cu` has it.
    Ternary {
        /// `[groups][rows, padded to whole tiles]`
        scales: Buffer,
        /// Words of a row that share a scale; `None`, a row has one.
        group_words: Option<usize>,
        /// The weights as `kernels/interleaved.cu` has them, where one token reads those.
        interleaved: Option<Buffer>,
    },
    /// As `kernels/dense.cu` has it.
    Dense { dtype: DenseType, row_words: usize },
}

/// Matrices stacked by rows, `[rows, cols]`.
pub struct CudaWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) act: ActivationPrecision,
    pub(crate) parts: Vec<Part>,
    /// For the scores of a vocabulary.
    pub(crate) screen: Option<Screen>,
}

impl CudaWeight {
    pub(crate) fn new(
        gpu: &Gpu,
        stacked: &[Matrix],
        act: ActivationPrecision,
        purpose: Purpose,
        one_token: OneToken,
    ) -> Result<Self, BackendError> {
        let cols = stacked.first().map_or(0, Matrix::cols);
        if let Some(odd) = stacked.iter().find(|m| m.cols() != cols) {
            return Err(BackendError::Stack { what: "columns", a: cols, b: odd.cols() });
        }
        let mut weight = Self { rows: 0, cols, act, parts: Vec::new(), screen: None };
        let mut rest = stacked;
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|m| group(m).is_some() && group(m) == group(first)).count();
            let (run, behind) = rest.split_at(run.max(1));
            match first {
                Matrix::Ternary(_) => weight.push_ternary(gpu, run, group(first).flatten(), one_token)?,
                Matrix::Dense(m) => weight.push_dense(gpu, m)?,
            }
            rest = behind;
        }
        if let (Purpose::Head, [part]) = (purpose, &weight.parts[..]) {
            weight.screen = Screen::new(gpu, part, cols)?;
        }
        Ok(weight)
    }

    /// Bytes on the GPU.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = self.parts.iter().map(|part| match &part.form {
            Form::Ternary { scales, interleaved, .. } => {
                part.data.bytes() + scales.bytes() + interleaved.as_ref().map_or(0, Buffer::bytes)
            }
            Form::Dense { .. } => part.data.bytes(),
        });
        bytes.sum::<usize>() + self.screen.as_ref().map_or(0, Screen::bytes)
    }

    fn push(&mut self, rows: usize, data: Buffer, form: Form) {
        self.parts.push(Part { first: self.rows, rows, data, form });
        self.rows += rows;
    }

    /// Ternary matrices of one kind of scale become one.
    fn push_ternary(
        &mut self,
        gpu: &Gpu,
        run: &[Matrix],
        group: Option<usize>,
        one_token: OneToken,
    ) -> Result<(), BackendError> {
        let group_words = group.map(|size| size / WORD_CODES);
        if let Some(size) = group.filter(|size| !size.is_multiple_of(WORD_CODES)) {
            return Err(BackendError::Unsupported {
                backend: "cuda",
                what: format!("scales for groups of {size} columns"),
                hint: "groups of a multiple of 16 columns, or --device cpu, would do",
            });
        }
        let matrices: Vec<&TernaryMatrix> = run
            .iter()
            .filter_map(|m| match m {
                Matrix::Ternary(m) => Some(m),
                Matrix::Dense(_) => None,
            })
            .collect();
        let rows: usize = matrices.iter().map(|m| m.rows()).sum();
        let padded = rows.next_multiple_of(TILE_ROWS);
        let row_bytes = TernaryMatrix::row_bytes(self.cols);
        let storage = || gpu.storage_for(Tag::Weights, padded * row_bytes, "ternary weights");
        let data = storage()?;
        let interleaved = match (one_token, group) {
            (OneToken::Interleaved, None) => Some(storage()?),
            _ => None,
        };
        let tiles = self.cols.div_ceil(TILE_COLS);
        let mut first = 0;
        for (number, m) in matrices.iter().enumerate() {
            let at_once = (STAGED / row_bytes.max(1)).max(1);
            for from in (0..m.rows()).step_by(at_once) {
                let own = from..m.rows().min(from + at_once);
                let codes = m.rows_codes(own.clone());
                // The last rows bring the padding along.
                let last = number + 1 == matrices.len() && own.end == m.rows();
                let with_padding = if last { padded - first } else { own.len() };
                let sizes = [own.len(), with_padding, first, tiles].map(|n| n as u64);
                let grid = elements(with_padding * tiles * (TILE_COLS / WORD_CODES));
                first += own.len();
                if codes.is_empty() {
                    continue;
                }
                gpu.load(&codes, |from| {
                    let put = |kernel, to: &Buffer| {
                        let params: Vec<u64> = [from, to.address()].into_iter().chain(sizes).collect();
                        Launch::new(kernel, grid, 256, 0, &params)
                    };
                    let tiles = put(gpu.kernels.tile_codes, &data);
                    let blocks = interleaved.as_ref().map(|to| put(gpu.kernels.interleave_codes, to));
                    [tiles].into_iter().chain(blocks).collect()
                })?;
            }
            m.release();
        }
        let groups = group.map_or(1, |size| self.cols.div_ceil(size).max(1));
        let mut scales: Vec<u8> = Vec::with_capacity(4 * groups * padded);
        for g in 0..groups {
            for m in &matrices {
                let scale = |row| m.scale_at(row, g * group.unwrap_or(0));
                scales.extend((0..m.rows()).flat_map(|row| scale(row).to_le_bytes()));
            }
            scales.resize(4 * (g + 1) * padded, 0);
        }
        let on_gpu = gpu.storage_for(Tag::Weights, scales.len(), "scales")?;
        gpu.write(&on_gpu, 0, &scales)?;
        self.push(rows, data, Form::Ternary { scales: on_gpu, group_words, interleaved });
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
        let spread = matches!(dtype, DenseType::F16 | DenseType::BF16);
        let (values, block_bytes) = dtype.block();
        // Scales of 32 values get a word of their own, so that the bytes behind them begin with one.
        let (head, padding) = match dtype {
            DenseType::Q8_0 | DenseType::Q4_0 => (2, 2),
            DenseType::Q6_K => (block_bytes, 2),
            DenseType::F32 | DenseType::F16 | DenseType::BF16 | DenseType::Q4_1 => (block_bytes, 0),
        };
        let row_bytes = if spread {
            2 * m.cols().next_multiple_of(TILE_COLS)
        } else {
            (m.cols() / values * (block_bytes + padding)).next_multiple_of(4)
        };
        let data = gpu.storage_for(Tag::Weights, m.rows() * row_bytes, "dense weights")?;
        let at_once = (STAGED / row_bytes.max(1)).max(1);
        let stride = m.data().len() / m.rows().max(1);
        for first in (0..m.rows()).step_by(at_once) {
            let own = first..m.rows().min(first + at_once);
            let stored = &m.data()[own.start * stride..own.end * stride];
            if stored.is_empty() {
                continue;
            }
            if spread {
                let sizes = [own.len(), first, m.cols(), row_bytes / 2].map(|n| n as u64);
                let grid = elements(own.len() * row_bytes / 2);
                gpu.load(stored, |from| {
                    let params: Vec<u64> = [from, data.address()].into_iter().chain(sizes).collect();
                    vec![Launch::new(gpu.kernels.spread_lanes, grid, 256, 0, &params)]
                })?;
                continue;
            }
            if row_bytes == stride {
                gpu.load_into(&data, first * row_bytes, stored)?;
                continue;
            }
            let mut out = Vec::with_capacity(own.len() * row_bytes);
            for row in stored.chunks_exact(stride) {
                let end = out.len() + row_bytes;
                for block in row.chunks_exact(block_bytes) {
                    let (scale, rest) = block.split_at(head);
                    out.extend_from_slice(scale);
                    out.extend_from_slice(&[0; 2][..padding]);
                    out.extend_from_slice(rest);
                }
                out.resize(end, 0);
            }
            gpu.load_into(&data, first * row_bytes, &out)?;
        }
        self.push(m.rows(), data, Form::Dense { dtype, row_words: row_bytes / 4 });
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
