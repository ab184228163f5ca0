//! Prepared weights: stacked matrices, each run of ternary ones in panels, dense ones as the file stores them.

use crate::Isa;
use crate::kernels::attend::Partials;
use crate::kernels::screen::{self, Screen, ScreenScratch};
use crate::kernels::ternary::{Kernel, Place};
use crate::kernels::{dense, skip, ternary};
use crate::layout::{self, Line, Order, Panels};
use crate::lines::Lines;
use crate::pool::Pool;
use bitnet_core::{
    Activation, ActivationPrecision, BackendError, Bytes, DenseMatrix, Logits, LogitsNeed, Matrix, Purpose,
    Scale, TernaryMatrix,
};
use bitnet_quant::dense::{dequantize_row, first_not_finite};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Neighbouring rows of a weight that one product computes.
enum Part {
    /// With the kernel that its layout was chosen for.
    Ternary(Panels, Kernel),
    Dense(DenseMatrix),
}

impl Part {
    fn rows(&self) -> usize {
        match self {
            Self::Ternary(p, _) => p.rows,
            Self::Dense(m) => m.rows(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Ternary(p, _) => p.len_bytes(),
            Self::Dense(m) => m.data().len(),
        }
    }

    /// Bytes that were not copied.
    fn mapped(&self) -> usize {
        match self {
            Self::Ternary(p, _) => p.file_bytes(),
            Self::Dense(m) => m.data().len(),
        }
    }
}

/// Matrices stacked by rows, `[rows, cols]`.
pub struct CpuWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    act: ActivationPrecision,
    parts: Vec<Part>,
    /// Bytes that lie where the caller had them.
    mapped: usize,
    /// What screening knows of a head.
    screen: Option<Screen>,
}

/// Memory that products use and leave behind for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    ternary: ternary::Scratch,
    part: Vec<f32>,
    screen: ScreenScratch,
    pub(crate) attend: Partials,
    /// What low-rank matrices make of a step: `[m, r]` and `[m, n]`.
    pub(crate) low_rank: (Vec<f32>, Vec<f32>),
}

/// How weights are multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) isa: Isa,
    /// For ternary matrices.
    pub(crate) kernel: Kernel,
    /// Whether matrices whose products can leave out rows or columns lie in the order for that.
    pub(crate) skip: bool,
}

impl CpuWeight {
    pub(crate) fn new(
        pool: &Pool,
        plan: Plan,
        stacked: &[Matrix],
        act: ActivationPrecision,
        purpose: Purpose,
    ) -> Result<Self, BackendError> {
        let cols = stacked.first().map_or(0, Matrix::cols);
        if let Some(odd) = stacked.iter().find(|m| m.cols() != cols) {
            return Err(BackendError::Stack { what: "columns", a: cols, b: odd.cols() });
        }
        let mut parts = match skipping(pool, plan, stacked, act, purpose)? {
            Some(parts) => parts,
            None => parts(pool, plan.kernel, stacked, act)?,
        };
        let mut mapped: usize = parts.iter().map(Part::mapped).sum();
        if let (Purpose::Head, [Part::Dense(w)]) = (purpose, parts.as_mut_slice())
            && w.dtype().block().0 > 1
        {
            mapped = 0;
            // Read whole for every token, unlike floats, of which screening has a copy.
            *w = in_large_pages(pool, w)?;
        }
        let screen = match (purpose, parts.as_slice()) {
            (Purpose::Head, [Part::Dense(w)]) => screen::prepare(plan.isa, pool, w)?,
            _ => None,
        };
        Ok(Self { rows: parts.iter().map(Part::rows).sum(), cols, act, parts, mapped, screen })
    }

    /// Bytes in all, and how many of them are the file's own.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let screen = self.screen.as_ref().map_or(0, Screen::len_bytes);
        (screen + self.parts.iter().map(Part::bytes).sum::<usize>(), self.mapped)
    }

    /// The products of tokens `x [m, cols]` that their `needs` ask for, or more of them.
    pub(crate) fn head(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        needs: &[LogitsNeed],
        scratch: &mut Scratch,
        out: &mut Logits,
    ) {
        let mut screening = std::mem::take(&mut scratch.screen);
        let picked = match (self.parts.as_slice(), &self.screen) {
            ([Part::Dense(w)], Some(screen)) => screen.pick(isa, pool, w, x, needs, &mut screening),
            _ => vec![None; needs.len()],
        };
        out.clear();
        let full: Vec<usize> = (0..needs.len()).filter(|t| picked[*t].is_none()).collect();
        out.values.resize(full.len() * self.rows, 0.0);
        if full.len() == needs.len() {
            self.linear(isa, pool, x, full.len(), scratch, &mut out.values);
            out.push_full(full.len());
        } else {
            if !full.is_empty() {
                let x: Vec<f32> =
                    full.iter().flat_map(|t| &x[t * self.cols..(t + 1) * self.cols]).copied().collect();
                self.linear(isa, pool, &x, full.len(), scratch, &mut out.values);
            }
            let most = (needs.len() - full.len()) * screen::most_picked(self.rows);
            out.ids.reserve(most);
            out.values.reserve(most);
            let mut full = (0..).map(|at| (0..0, at * self.rows..(at + 1) * self.rows));
            for (picked, x) in picked.iter().zip(x.chunks_exact(self.cols)) {
                let (Some(picked), [Part::Dense(w)]) = (picked, self.parts.as_slice()) else {
                    out.rows.extend(full.next());
                    continue;
                };
                let (ids, values) = (out.ids.len(), out.values.len());
                out.ids.extend_from_slice(picked);
                out.values.resize(values + picked.len(), 0.0);
                dense::dense_rows(isa, pool, w, picked, x, &mut out.values[values..]);
                out.rows.push((ids..out.ids.len(), values..out.values.len()));
            }
        }
        scratch.screen = screening;
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
        let int8 = self.act == ActivationPrecision::Int8;
        if int8 && self.parts.iter().any(|part| matches!(part, Part::Ternary(..))) {
            scratch.ternary.quantize(isa, pool, x, self.cols);
        }
        let mut first = 0;
        for part in &self.parts {
            let (rows, stride) = (part.rows(), self.rows);
            match part {
                Part::Ternary(w, kernel) if int8 => {
                    let place = Place { y, stride, first };
                    ternary::ternary_linear(isa, *kernel, pool, w, &mut scratch.ternary, place);
                }
                _ if rows == stride => float_part(part, isa, pool, x, m, y),
                _ => {
                    let out = &mut scratch.part;
                    out.resize(m * rows, 0.0);
                    float_part(part, isa, pool, x, m, out);
                    for (y, out) in y.chunks_exact_mut(stride).zip(out.chunks_exact(rows)) {
                        y[first..first + rows].copy_from_slice(out);
                    }
                }
            }
            first += rows;
        }
    }

    /// `out[i] = max(gate, 0)^2 * up` of one token, leaving out the rows of `up` whose gate is closed; false where this weight was
    /// not made for it.
    pub(crate) fn gated(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> bool {
        match self.parts.as_slice() {
            [Part::Ternary(gate, kernel), Part::Ternary(up, _)] if up.order == Order::Rows => {
                scratch.ternary.quantize(isa, pool, x, self.cols);
                skip::gated_relu2(isa, *kernel, pool, (gate, up), &mut scratch.ternary, out);
                true
            }
            _ => false,
        }
    }

    /// One row as floats.
    pub(crate) fn row(&self, mut row: usize, out: &mut [f32]) {
        for part in &self.parts {
            if row < part.rows() {
                return match part {
                    Part::Ternary(p, _) => p.dequantize_row(row, out),
                    Part::Dense(m) => dequantize_row(m.dtype(), m.row(row), out),
                };
            }
            row -= part.rows();
        }
    }
}

/// The parts of a stack in the orders for products that skip, where there are such products.
fn skipping(
    pool: &Pool,
    plan: Plan,
    stacked: &[Matrix],
    act: ActivationPrecision,
    purpose: Purpose,
) -> Result<Option<Vec<Part>>, BackendError> {
    let plain = |m: &TernaryMatrix| group(m) == 0 && m.cols() <= skip::MAX_COLUMNS;
    if !plan.skip || act != ActivationPrecision::Int8 {
        return Ok(None);
    }
    let kernel = plan.kernel.general();
    Ok(match (purpose, stacked) {
        (Purpose::GateUp(Activation::Relu2), [Matrix::Ternary(gate), Matrix::Ternary(up)])
            if plain(gate) && plain(up) =>
        {
            let gate = Panels::new(pool, plan.kernel.layout(), &[gate])?;
            Some(vec![Part::Ternary(gate, plan.kernel), Part::Ternary(Panels::by_row(pool, &[up])?, kernel)])
        }
        (Purpose::Down(Activation::Relu2), [Matrix::Ternary(down)]) if plain(down) => {
            Some(vec![Part::Ternary(Panels::by_column(pool, &[down])?, kernel)])
        }
        _ => None,
    })
}

/// The parts of a stack: each run of ternary matrices in tiles, or each one by itself where its file has tiles of the kernel's
/// layout; dense ones as they are.
fn parts(
    pool: &Pool,
    kernel: Kernel,
    stacked: &[Matrix],
    act: ActivationPrecision,
) -> Result<Vec<Part>, BackendError> {
    let panels = |run: &[&TernaryMatrix]| {
        let plain = act == ActivationPrecision::Int8 && run.iter().all(|m| group(m) == 0);
        let kernel = if plain { kernel } else { kernel.general() };
        Panels::new(pool, kernel.layout(), run).map(|panels| Part::Ternary(panels, kernel))
    };
    let in_file = |m: &TernaryMatrix| {
        act == ActivationPrecision::Int8 && group(m) == 0 && kernel.layout().in_file(m).is_some()
    };
    let mut parts = Vec::new();
    let mut run: Vec<&TernaryMatrix> = Vec::new();
    for matrix in stacked {
        match matrix {
            Matrix::Ternary(m) => {
                let apart = |last: &&TernaryMatrix| group(last) != group(m) || in_file(last) || in_file(m);
                if run.last().is_some_and(apart) {
                    parts.push(panels(&std::mem::take(&mut run))?);
                }
                run.push(m);
            }
            Matrix::Dense(m) => {
                if !run.is_empty() {
                    parts.push(panels(&std::mem::take(&mut run))?);
                }
                check_finite(pool, m)?;
                parts.push(Part::Dense(m.clone()));
            }
        }
    }
    if !run.is_empty() {
        parts.push(panels(&run)?);
    }
    Ok(parts)
}

/// Bytes that are copied before their pages are given back.
const COPY_BYTES: usize = 16 << 20;

/// A copy in pages that a stream reads faster than a file's. The file's are given back meanwhile, so that memory never holds both.
fn in_large_pages(pool: &Pool, w: &DenseMatrix) -> Result<DenseMatrix, BackendError> {
    let from = w.data();
    let mut lines = Lines::new(from.len().div_ceil(size_of::<Line>()), "the head")?;
    let parts = (0..from.len()).step_by(COPY_BYTES).zip(layout::bytes_mut(&mut lines).chunks_mut(COPY_BYTES));
    for (at, out) in parts {
        let part = from.slice(at..from.len().min(at + COPY_BYTES)).expect("a part lies inside");
        let share = part.len().div_ceil(pool.threads());
        pool.chunks_mut(&mut out[..part.len()], share, &|i, out| {
            out.copy_from_slice(&part[i * share..][..out.len()]);
        });
        part.release();
    }
    let data = Bytes::new(Arc::new(lines)).slice(0..from.len()).expect("there is room for all of it");
    Ok(DenseMatrix::new(w.rows(), w.cols(), w.dtype(), data)?)
}

/// The product of a part whose input stays f32.
fn float_part(part: &Part, isa: Isa, pool: &Pool, x: &[f32], m: usize, y: &mut [f32]) {
    match part {
        Part::Ternary(w, _) => ternary::float_linear(isa, pool, w, x, y),
        Part::Dense(w) => dense::dense_linear(isa, pool, w, x, m, y),
    }
}

/// Columns that share a scale; 0 where a whole row does.
fn group(m: &TernaryMatrix) -> usize {
    match m.scale() {
        Scale::Groups { size, .. } => *size,
        Scale::Tensor(_) | Scale::Rows(_) => 0,
    }
}

/// Refuses a matrix with a NaN or an infinity: everything behind the weights may then rely on finite numbers.
fn check_finite(pool: &Pool, m: &DenseMatrix) -> Result<(), BackendError> {
    let found = AtomicU32::new(0);
    let (_, block) = m.dtype().block();
    let data: &[u8] = m.data();
    pool.ranges(data.len() / block, 1 << 16, &|range| {
        let bytes = &data[range.start * block..range.end * block];
        if let Some(bad) = first_not_finite(m.dtype(), bytes) {
            found.store(bad.to_bits(), Ordering::Relaxed);
        }
    });
    match f32::from_bits(found.into_inner()) {
        value if value.is_finite() => Ok(()),
        value => Err(BackendError::NotFinite { value }),
    }
}
