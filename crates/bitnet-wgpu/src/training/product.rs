//! Products of matrices.

use super::recording::{Operand, Recording, SUBMISSION};
use super::shader::{Shader, Sides, Stored, TILE};
use crate::product::word;
use bitnet_core::{At, BackendError, DeviceSide, DeviceStore, DeviceValues, Factor, Product, Terms};

/// Terms of all elements for which a dispatch counts as one.
const WORK: usize = 1 << 28;
/// What stands for a place where there is none (`sides.wgsl`).
const NONE: u32 = u32::MAX;

/// Records a product, in pieces where what is read or written is larger than a binding may be, or the work than a submission.
pub(super) fn product(r: &mut Recording<'_>, p: &Product<'_>) -> Result<(), BackendError> {
    let (m, n, k) = p.sizes;
    // Vectors of a side that are rows are cut there, those that are columns only where the result is.
    let rows_of = |side: DeviceSide<'_>| match (side.columns, side.values) {
        (true, _) => usize::MAX,
        (false, DeviceValues::F32(_)) => r.most() / side.stride.max(1),
        (false, DeviceValues::I8(_)) => r.most() * 4 / side.stride.max(1),
        (false, DeviceValues::Trits(_)) => r.most() * 4 / (side.stride / 4).max(1),
    };
    let whole = |vectors: usize| (vectors / TILE * TILE).max(TILE);
    let columns = whole(rows_of(p.b));
    let soon_done = SUBMISSION * WORK / columns.min(n).saturating_mul(k).max(1);
    let rows = whole((r.most() / p.stride.max(1)).min(rows_of(p.a)).min(soon_done));
    for row in (0..m).step_by(rows) {
        for column in (0..n).step_by(columns) {
            let piece = Product {
                sizes: (rows.min(m - row), columns.min(n - column), k),
                a: skip(p.a, row),
                b: skip(p.b, column),
                store: skip_store(p.store, row, column),
                c: p.c.skip(row * p.stride),
                first: p.first + column,
                ..*p
            };
            record(r, &piece)?;
            r.send_when_much();
        }
    }
    Ok(())
}

/// A side without its first vectors, a multiple of four.
fn skip(side: DeviceSide<'_>, vectors: usize) -> DeviceSide<'_> {
    let elements = if side.columns { vectors } else { vectors * side.stride };
    let values = match side.values {
        DeviceValues::F32(at) => DeviceValues::F32(at.skip(elements)),
        DeviceValues::I8(at) => DeviceValues::I8(at.skip(elements)),
        DeviceValues::Trits(at) => DeviceValues::Trits(at.skip(elements / 4)),
    };
    DeviceSide { values, ..side }
}

fn skip_store(store: DeviceStore<'_>, row: usize, column: usize) -> DeviceStore<'_> {
    let skipped = |factor| match factor {
        Factor::Rows(at) => Factor::Rows(at.skip(row)),
        Factor::Columns(at) => Factor::Columns(at.skip(column)),
        other => other,
    };
    match store {
        DeviceStore::Set { rows, scale } => {
            DeviceStore::Set { rows: rows.map(|at| at.skip(row)), scale: skipped(scale) }
        }
        DeviceStore::Add { scale } => DeviceStore::Add { scale: skipped(scale) },
        DeviceStore::Continue => DeviceStore::Continue,
    }
}

fn record(r: &mut Recording<'_>, p: &Product<'_>) -> Result<(), BackendError> {
    let (m, n, k) = p.sizes;
    let ((a_stored, a), (b_stored, b)) = (side(r, p.a, m, k)?, side(r, p.b, n, k)?);
    let c = r.floats(p.c.skip(p.first), (m - 1) * p.stride + n)?;
    let sides = Sides { a: a_stored, a_columns: p.a.columns, b: b_stored, b_columns: p.b.columns };
    let exact = sides.are_integers() && p.a.factors.is_none() && p.b.factors.is_none();

    let (store, rows, scale) = match p.store {
        DeviceStore::Set { rows, scale } => (0, rows, scale),
        DeviceStore::Add { scale } => (1, None, scale),
        DeviceStore::Continue => (2, None, Factor::Value(1.0)),
    };
    let (a_factors, a_at) = optional(r, p.a.factors, k)?;
    let (b_factors, b_at) = optional(r, p.b.factors, k)?;
    let (rows, rows_at) = optional(r, rows, m)?;
    let (scaled_by, (scale, scale_at)) = match scale {
        Factor::Value(value) => (0, (r.nothing(), value.to_bits())),
        Factor::One(at) => (1, optional(r, Some(at), 1)?),
        Factor::Rows(at) => (2, optional(r, Some(at), m)?),
        Factor::Columns(at) => (3, optional(r, Some(at), n)?),
    };
    let params = [
        word(m),
        word(n),
        word(k),
        a.first,
        word(p.a.stride),
        b.first,
        word(p.b.stride),
        c.first,
        word(p.stride),
        a_at,
        b_at,
        store,
        rows_at,
        scaled_by,
        scale_at,
    ];
    let groups = [n.div_ceil(TILE), m.div_ceil(TILE), 1];
    *r.work += m.saturating_mul(n).saturating_mul(k) / WORK;
    if exact {
        r.run(Shader::Integers(sides), &[&a, &b, &c, &rows, &scale], &params, groups);
    } else {
        let shader = Shader::Product(sides, p.terms == Terms::Bf16);
        r.run(shader, &[&a, &b, &c, &rows, &scale, &a_factors, &b_factors], &params, groups);
    }
    Ok(())
}

fn side<'m>(
    r: &Recording<'_>,
    side: DeviceSide<'m>,
    vectors: usize,
    k: usize,
) -> Result<(Stored, Operand<'m>), BackendError> {
    let (rows, cols) = if side.columns { (k, vectors) } else { (vectors, k) };
    let len = if k == 0 { 0 } else { (rows - 1) * side.stride + cols };
    Ok(match side.values {
        DeviceValues::F32(at) => (Stored::F32, r.floats(at, len)?),
        DeviceValues::I8(at) => (Stored::I8, r.bytes(at, len)?),
        DeviceValues::Trits(at) => (Stored::Trits, r.bytes(at, len.div_ceil(4))?),
    })
}

/// Factors and where they begin, or what stands for none.
fn optional<'m>(
    r: &Recording<'m>,
    at: Option<At<'m>>,
    len: usize,
) -> Result<(Operand<'m>, u32), BackendError> {
    Ok(match at {
        Some(at) => {
            let operand = r.floats(at, len)?;
            let first = operand.first;
            (operand, first)
        }
        None => (r.nothing(), NONE),
    })
}
