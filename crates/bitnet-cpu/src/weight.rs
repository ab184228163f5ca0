//! Prepared weights: stacked matrices, each run of ternary ones in panels, dense ones as the file stores them.

use crate::Isa;
use crate::kernels::screen::{self, Screen, ScreenScratch};
use crate::kernels::{dense, quantize::Quantized, ternary};
use crate::layout::Panels;
use crate::pool::Pool;
use bitnet_core::{
    ActivationPrecision, BackendError, DenseMatrix, DenseType, LogitsNeed, Matrix, Scale, TernaryMatrix,
};
use bitnet_quant::dense::dequantize_row;
use half::{bf16, f16};
use std::sync::atomic::{AtomicU32, Ordering};

/// Neighbouring rows of a weight that one product computes.
enum Part {
    Ternary(Panels),
    Dense(DenseMatrix),
}

impl Part {
    fn rows(&self) -> usize {
        match self {
            Self::Ternary(p) => p.rows,
            Self::Dense(m) => m.rows(),
        }
    }
}

/// Matrices stacked by rows, `[rows, cols]`.
pub struct CpuWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    act: ActivationPrecision,
    parts: Vec<Part>,
    /// What screening knows of a head.
    screen: Option<Screen>,
}

/// Memory that products use and leave behind for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    quantized: Quantized,
    part: Vec<f32>,
    screen: ScreenScratch,
}

impl CpuWeight {
    pub(crate) fn new(
        pool: &Pool,
        stacked: &[Matrix],
        act: ActivationPrecision,
    ) -> Result<Self, BackendError> {
        let cols = stacked.first().map_or(0, Matrix::cols);
        if let Some(odd) = stacked.iter().find(|m| m.cols() != cols) {
            return Err(BackendError::Stack { what: "columns", a: cols, b: odd.cols() });
        }
        let mut parts = Vec::new();
        let mut run: Vec<&TernaryMatrix> = Vec::new();
        for matrix in stacked {
            match matrix {
                Matrix::Ternary(m) => {
                    if run.last().is_some_and(|last| group(last) != group(m)) {
                        parts.push(Part::Ternary(Panels::new(pool, &std::mem::take(&mut run))?));
                    }
                    run.push(m);
                }
                Matrix::Dense(m) => {
                    if !run.is_empty() {
                        parts.push(Part::Ternary(Panels::new(pool, &std::mem::take(&mut run))?));
                    }
                    check_finite(pool, m)?;
                    parts.push(Part::Dense(m.clone()));
                }
            }
        }
        if !run.is_empty() {
            parts.push(Part::Ternary(Panels::new(pool, &run)?));
        }
        Ok(Self { rows: parts.iter().map(Part::rows).sum(), cols, act, parts, screen: None })
    }

    /// Bytes in all, and how many of them are the file's own.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let screen = self.screen.as_ref().map_or(0, Screen::len_bytes);
        self.parts.iter().fold((screen, 0), |(all, mapped), part| match part {
            Part::Ternary(p) => (all + p.len_bytes(), mapped),
            Part::Dense(m) => (all + m.data().len(), mapped + m.data().len()),
        })
    }

    /// Makes what [`CpuWeight::top`] needs.
    pub(crate) fn prepare_head(&mut self, isa: Isa, pool: &Pool) -> Result<(), BackendError> {
        if let [Part::Dense(w)] = self.parts.as_slice() {
            self.screen = screen::prepare(isa, pool, w)?;
        }
        Ok(())
    }

    /// The products of one token that `need` asks for; false where all have to be computed.
    #[allow(clippy::too_many_arguments, reason = "one product: where, what and how")]
    pub(crate) fn top(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        need: &LogitsNeed,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        y: &mut Vec<f32>,
    ) -> bool {
        match (self.parts.as_slice(), &self.screen) {
            ([Part::Dense(w)], Some(screen)) => {
                screen.top(isa, pool, w, x, need, &mut scratch.screen, ids, y)
            }
            _ => false,
        }
    }

    /// `y[m, rows] = x[m, cols] * self^T`.
    pub(crate) fn linear(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        m: usize,
        scratch: &mut Scratch,
        y: &mut [f32],
    ) {
        if let [part] = self.parts.as_slice() {
            return self.part(part, isa, pool, x, m, &mut scratch.quantized, y);
        }
        let Scratch { quantized, part: out, .. } = scratch;
        let mut first = 0;
        for part in &self.parts {
            out.resize(m * part.rows(), 0.0);
            self.part(part, isa, pool, x, m, quantized, out);
            for (y, out) in y.chunks_exact_mut(self.rows).zip(out.chunks_exact(part.rows())) {
                y[first..first + part.rows()].copy_from_slice(out);
            }
            first += part.rows();
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one product: where, what and how")]
    fn part(
        &self,
        part: &Part,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        m: usize,
        quantized: &mut Quantized,
        y: &mut [f32],
    ) {
        match (part, self.act) {
            (Part::Ternary(p), ActivationPrecision::Int8) => {
                ternary::ternary_linear(isa, pool, p, x, quantized, y)
            }
            (Part::Ternary(p), ActivationPrecision::Float) => ternary::float_linear(isa, pool, p, x, y),
            (Part::Dense(w), _) => dense::dense_linear(isa, pool, w, x, m, y),
        }
    }

    /// One row as floats.
    pub(crate) fn row(&self, mut row: usize, out: &mut [f32]) {
        for part in &self.parts {
            if row < part.rows() {
                return match part {
                    Part::Ternary(p) => p.dequantize_row(row, out),
                    Part::Dense(m) => dequantize_row(m.dtype(), m.row(row), out),
                };
            }
            row -= part.rows();
        }
    }
}

/// Columns that share a scale; 0 where a whole row does.
fn group(m: &TernaryMatrix) -> usize {
    match m.scale() {
        Scale::Groups { size, .. } => *size,
        Scale::Tensor(_) | Scale::Rows(_) => 0,
    }
}

/// Refuses a matrix with a NaN or an infinity: everything behind the weights may then rely on finite numbers. Block types
/// can only hold them in their scales.
fn check_finite(pool: &Pool, m: &DenseMatrix) -> Result<(), BackendError> {
    let found = AtomicU32::new(0);
    let (_, block) = m.dtype().block();
    let data: &[u8] = m.data();
    pool.ranges(data.len() / block, 1 << 16, &|range| {
        let bytes = &data[range.start * block..range.end * block];
        let bad = match m.dtype() {
            DenseType::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).find(|v| !v.is_finite())
            }
            DenseType::F16 => bytes.as_chunks::<2>().0.iter().find_map(not_finite_f16),
            DenseType::BF16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .find_map(|b| Some(bf16::from_le_bytes(*b).to_f32()).filter(|v| !v.is_finite())),
            DenseType::Q8_0 | DenseType::Q4_0 => {
                bytes.chunks_exact(block).find_map(|b| not_finite_f16(&[b[0], b[1]]))
            }
            DenseType::Q6_K => bytes.chunks_exact(block).find_map(|b| not_finite_f16(&[b[208], b[209]])),
        };
        if let Some(bad) = bad {
            found.store(bad.to_bits(), Ordering::Relaxed);
        }
    });
    match f32::from_bits(found.into_inner()) {
        value if value.is_finite() => Ok(()),
        value => Err(BackendError::NotFinite { value }),
    }
}

fn not_finite_f16(bytes: &[u8; 2]) -> Option<f32> {
    Some(f16::from_le_bytes(*bytes).to_f32()).filter(|v| !v.is_finite())
}
