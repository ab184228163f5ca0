//! Prepared weights: stacked matrices, each run of ternary ones in panels, dense ones as the file stores them.

use crate::Isa;
use crate::kernels::quantize::int8;
use crate::kernels::screen::{self, Screen};
use crate::kernels::ternary::{Kernel, Place};
use crate::kernels::{dense, skip, ternary};
use crate::layout::{Order, Panels};
use crate::memory::{Buffer, OutOfMemory, Scratch, kept};
use crate::pool::Pool;
use bitnet_core::{
    Activation, ActivationPrecision, BackendError, Bytes, DenseMatrix, Logits, LogitsNeed, Matrix, Purpose,
    Scale, Storage, TernaryMatrix,
};
use bitnet_memory::Tag;
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
        scratch: &Scratch<'_>,
        out: &mut Logits,
    ) -> Result<(), OutOfMemory> {
        let memory = pool.memory();
        out.clear();
        let (Some(screen), [Part::Dense(w)]) = (&self.screen, self.parts.as_slice()) else {
            return self.all_rows(isa, pool, x, scratch, out);
        };
        let picked = screen.pick(isa, pool, w, x, needs, scratch)?;
        let (mut full, mut some) = (0, 0);
        for t in 0..needs.len() {
            match picked.of(t) {
                Some(ids) => some += ids.len(),
                None => full += 1,
            }
        }
        if full == needs.len() {
            return self.all_rows(isa, pool, x, scratch, out);
        }
        // As much as it can ever become, so that no later step takes more memory.
        let most = (needs.len() - full) * screen::most_picked(self.rows);
        memory.fit(&mut out.ids, most.max(some))?;
        memory.fit(&mut out.values, full * self.rows + most.max(some))?;
        memory.fit(&mut out.ids, some)?;
        memory.fit(&mut out.values, full * self.rows + some)?;
        let (all, mut values) = out.values.split_at_mut(full * self.rows);
        if full > 0 {
            let of_full = scratch.buffer(full * self.cols)?;
            let tokens = x.chunks_exact(self.cols).enumerate().filter(|(t, _)| picked.of(*t).is_none());
            for ((_, x), of_full) in tokens.zip(of_full.chunks_exact_mut(self.cols)) {
                of_full.copy_from_slice(x);
            }
            self.linear(isa, pool, of_full, full, scratch, all)?;
        }
        let mut full_rows = (0..full).map(|at| (0..0, at * self.rows..(at + 1) * self.rows));
        let mut at = 0;
        for (t, x) in x.chunks_exact(self.cols).enumerate() {
            let Some(ids) = picked.of(t) else {
                out.rows.extend(full_rows.next());
                continue;
            };
            let (own, rest) = values.split_at_mut(ids.len());
            out.ids[at..at + ids.len()].copy_from_slice(ids);
            dense::dense_rows(isa, pool, w, ids, x, own);
            let first = full * self.rows + at;
            out.rows.push((at..at + ids.len(), first..first + ids.len()));
            at += ids.len();
            values = rest;
        }
        Ok(())
    }

    /// The products of tokens with all rows.
    fn all_rows(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        scratch: &Scratch<'_>,
        out: &mut Logits,
    ) -> Result<(), OutOfMemory> {
        let m = x.len() / self.cols;
        pool.memory().fit(&mut out.values, m * self.rows)?;
        self.linear(isa, pool, x, m, scratch, &mut out.values)?;
        out.push_full(m);
        Ok(())
    }

    /// `y[m, rows] = x[m, cols] * self^T`.
    pub(crate) fn linear(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        m: usize,
        scratch: &Scratch<'_>,
        y: &mut [f32],
    ) -> Result<(), OutOfMemory> {
        let mut quantized = None;
        let mut first = 0;
        for part in &self.parts {
            let (rows, stride) = (part.rows(), self.rows);
            match part {
                Part::Ternary(w, kernel) if self.act == ActivationPrecision::Int8 => {
                    let x = match quantized {
                        Some(x) => x,
                        None => *quantized.insert(int8(isa, pool, x, self.cols, scratch)?),
                    };
                    ternary::ternary_linear(isa, *kernel, pool, w, x, scratch, Place { y, stride, first })?;
                }
                _ if rows == stride => float_part(part, isa, pool, x, m, scratch, y)?,
                _ => {
                    let out = scratch.buffer(m * rows)?;
                    float_part(part, isa, pool, x, m, scratch, out)?;
                    for (y, out) in y.chunks_exact_mut(stride).zip(out.chunks_exact(rows)) {
                        y[first..first + rows].copy_from_slice(out);
                    }
                }
            }
            first += rows;
        }
        Ok(())
    }

    /// Whether [`CpuWeight::gated`] can do without the rows of `up` whose gate is closed.
    pub(crate) fn is_gated(&self) -> bool {
        matches!(self.parts.as_slice(), [Part::Ternary(..), Part::Ternary(up, _)] if up.order == Order::Rows)
    }

    /// `out[i] = max(gate, 0)^2 * up` of one token, leaving out the rows of `up` whose gate is closed.
    ///
    /// # Panics
    /// This weight was not made for it.
    pub(crate) fn gated(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &[f32],
        scratch: &Scratch<'_>,
        out: &mut [f32],
    ) -> Result<(), OutOfMemory> {
        let [Part::Ternary(gate, kernel), Part::Ternary(up, _)] = self.parts.as_slice() else {
            unreachable!("a gate and what it lets through")
        };
        let x = int8(isa, pool, x, self.cols, scratch)?;
        skip::gated_relu2(isa, *kernel, pool, (gate, up), x, scratch, out)
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
    let mut copy = kept(pool.memory(), from.len(), Tag::Weights, "the head")?;
    let parts = (0..from.len()).step_by(COPY_BYTES).zip(copy.chunks_mut(COPY_BYTES));
    for (at, out) in parts {
        let part = from.slice(at..from.len().min(at + COPY_BYTES)).expect("a part lies inside");
        let share = part.len().div_ceil(pool.threads());
        pool.chunks_mut(&mut out[..part.len()], share, &|i, out| {
            out.copy_from_slice(&part[i * share..][..out.len()]);
        });
        part.release();
    }
    let data = Bytes::new(Arc::new(Copied(copy)));
    Ok(DenseMatrix::new(w.rows(), w.cols(), w.dtype(), data)?)
}

/// Bytes of a file in memory of the pool.
struct Copied(Buffer<u8>);

impl AsRef<[u8]> for Copied {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Storage for Copied {}

/// The product of a part whose input stays f32.
fn float_part(
    part: &Part,
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    m: usize,
    scratch: &Scratch<'_>,
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    match part {
        Part::Ternary(w, _) => {
            ternary::float_linear(isa, pool, w, x, y);
            Ok(())
        }
        Part::Dense(w) => dense::dense_linear(isa, pool, w, x, m, scratch, y),
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
